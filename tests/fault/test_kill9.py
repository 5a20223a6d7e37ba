# SPDX-License-Identifier: Apache-2.0
"""kill -9 at random instants: durable, atomic-end, ttl-survives and never-early, as docs/guarantees.md states them.

LESSOR_KILLS sets the number of kills (default 5); LESSOR_KILL_SEED repeats a run.
"""

import os
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from lessor.api.proto import rpc_pb2
from tests.fault.crash_load import LONG_TTL_S, ServerProcess, Stubs, Worker, found, load_until_killed

KILLS = int(os.environ.get("LESSOR_KILLS", "5"))
SEED = int(os.environ.get("LESSOR_KILL_SEED", str(time.time_ns() % 1_000_000)))
UNTOUCHED, RENEWED = 7, 8  # lease ids beside the workers' own
AGE_S = 5.0  # how old the untouched lease is at the first kill: beyond what a crash may give it anew


def check(stubs: Stubs, workers: list[Worker]) -> None:
    """Every acknowledged call is there; the one unknown call of each worker is there whole or not at all."""
    for worker in workers:
        state = found(stubs, worker)
        assert state in (worker.acknowledged, worker.possible), f"worker {worker.number}"
        worker.acknowledged, worker.possible = state, None


def remaining(stubs: Stubs, lease: int) -> int:
    reply = stubs("Lease/LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=lease))
    assert reply.grantedTTL == LONG_TTL_S
    return int(reply.TTL)


@pytest.mark.slow
def test_killed_at_random_instants_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    print(f"LESSOR_KILL_SEED={SEED}")
    server = ServerProcess(tmp_path / "data")
    server.start()
    workers = [Worker(number, chance.randrange(2**32)) for number in range(4)]
    stubs = server.stubs()
    granted_at = time.monotonic()
    for lease in (UNTOUCHED, RENEWED):
        stubs("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=LONG_TTL_S, ID=lease))
    time.sleep(AGE_S)  # served without load: what is to be seen is that this time is not given back
    served_s = AGE_S
    for _ in range(KILLS):
        assert stubs.renew(RENEWED).TTL == LONG_TTL_S
        renewed_at = time.monotonic()
        served_s += load_until_killed(server, workers, chance.uniform(0.02, 0.6))
        server.start()
        stubs = server.stubs()
        check(stubs, workers)
        # Down time is not counted, so the age of a lease lies between the time we saw it served and the time on the
        # wall. A crash may set the data clock back by a second and adds one, and whole seconds are cut off.
        left_s = remaining(stubs, UNTOUCHED)
        assert left_s >= LONG_TTL_S - (time.monotonic() - granted_at) - 1, "ended early"
        assert left_s <= LONG_TTL_S - served_s + 2, "began anew"
        assert remaining(stubs, RENEWED) >= LONG_TTL_S - (time.monotonic() - renewed_at) - 1, "a renewal was lost"
    assert sum(worker.calls for worker in workers) > 10 * KILLS, "too little load to mean anything"
    assert server.terminate() == 0


def saved(data_dir: Path, lease: int) -> tuple[bool, float]:
    """What the rows of a stopped server say: whether it stopped cleanly, and what remains of the lease, in seconds."""
    with closing(sqlite3.connect(f"file:{data_dir / 'lessor.db'}?mode=ro", uri=True)) as database:
        meta = dict(database.execute("SELECT name, value FROM meta"))
        ((deadline_s,),) = database.execute("SELECT deadline_s FROM lease WHERE id = ? AND NOT ended", (lease,))
    return bool(meta["clean"]), deadline_s - meta["clock_s"]


@pytest.mark.slow
def test_a_clean_stop_keeps_remaining_ttls_exact(tmp_path: Path) -> None:
    """The last renewal saved a later deadline than it promised; the stop has to save the promise itself."""
    server = ServerProcess(tmp_path / "data")
    server.start()
    stubs = server.stubs()
    stubs("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=LONG_TTL_S, ID=RENEWED))
    renewing_at = time.monotonic()
    assert stubs.renew(RENEWED).TTL == LONG_TTL_S
    renewed_at = time.monotonic()
    time.sleep(1.5)  # the data clock goes on, and the stop has to save that
    told_s = remaining(stubs, RENEWED)
    stopping_at = time.monotonic()
    assert server.terminate() == 0
    stopped_at = time.monotonic()
    clean, saved_s = saved(tmp_path / "data", RENEWED)
    assert clean
    # As exact as an outside view allows: renewal and stop each took a moment.
    assert LONG_TTL_S - (stopped_at - renewing_at) <= saved_s <= LONG_TTL_S - (stopping_at - renewed_at) + 0.2
    assert told_s - (stopped_at - stopping_at) <= saved_s + 0.2
    assert saved_s < told_s + 1  # the reply was in whole seconds
    time.sleep(2)  # down time, which does not count
    starting_at = time.monotonic()
    server.start()
    left_s = remaining(server.stubs(), RENEWED)
    assert saved_s - (time.monotonic() - starting_at) - 1 < left_s <= saved_s
    server.kill()

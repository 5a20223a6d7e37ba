# SPDX-License-Identifier: Apache-2.0
"""How soon after its deadline a lease's key is deleted: on an idle server, and when very many are due at once.

Laws
- The deadline is one TTL after the last renewal (or the grant). The server took it between our sending and its reply:
  a delete earlier than one TTL after the sending is early, and ends the run; lateness counts from one TTL after the
  reply, so that what is shown is not less than what a client sees.
- A watcher must see the delete of each key, once.

`expiry_idle`: leases granted at random instants, as etcd looks for expired ones every half second. `expiry_10k`,
`expiry_100k`: all leases are renewed, as fast as it goes, when all have a key; then they are due within that short
time. With the 100,000, ten other clients keep leases alive meanwhile (bench/paced.py): how long does that take them?
"""

import argparse
import gc
import random
import sys
import time
from collections.abc import Sequence

from bench import population
from bench.h2_calls import Address, UnaryCalls, WatchCall
from bench.harness import Node
from bench.load_loop import Poll, WrongReplyError, percentiles
from bench.processes import Paced
from bench.rows import Figures, Goal, Row, main
from lessor.api.proto import rpc_pb2

IDLE_TTL_S = 3
IDLE_LEASES = 200
IDLE_S = 2.5  # the grants are spread over; less than the TTL, so that the client only watches when leases end
PROBE_BEFORE_S = 0.5  # so long before the leases are due the other clients begin
PROBES_PER_S = 500
SEEN_WITHIN_S_MAX = 400.0


class Deletes:
    """A watcher of the keys of bench/population.py: when each was deleted."""

    def __init__(self, address: Address) -> None:
        self.at: dict[bytes, float] = {}
        self._watch = WatchCall(address, *population.SPAN, self._on_events, deletes_only=True)
        self._poll = Poll([self._watch])
        self.close = self._watch.close  # a server that is to stop waits for those who are still there

    def _on_events(self, response: rpc_pb2.WatchResponse, now: float) -> None:
        for event in response.events:
            if event.type != event.DELETE or event.kv.key in self.at:
                raise WrongReplyError(f"not the one delete of a key: {event}")
            self.at[event.kv.key] = now

    def wait(self, count: int, until: float) -> None:
        """Until so many keys were deleted."""
        while len(self.at) < count:
            self._poll.turn(0.1)
            if time.perf_counter() > until:
                raise WrongReplyError(f"{len(self.at)} of {count} keys were deleted in time")

    def look(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while (left_s := end - time.perf_counter()) > 0:
            self._poll.turn(left_s)


def one_by_one(address: Address, ids: Sequence[int]) -> tuple[UnaryCalls, UnaryCalls]:
    """Connections that grant the leases, and put their keys, one by one. The first lease of each is another one."""
    (first,) = population.new_ids(1)
    others = [first, *ids]

    def check(number: int, data: bytes) -> None:
        reply = rpc_pb2.LeaseGrantResponse.FromString(data)
        granted = (reply.ID, reply.TTL)
        if granted != (others[number], IDLE_TTL_S):
            raise WrongReplyError(f"asked for lease {others[number]} with {IDLE_TTL_S} s and got {granted}")

    requests = [rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=IDLE_TTL_S) for lease_id in others]
    grants = UnaryCalls(address, 0, population.GRANT_PATH, requests, check, once=True)
    keys = [rpc_pb2.PutRequest(key=b"other/0123456789", value=population.VALUE, lease=first)]
    keys += [rpc_pb2.PutRequest(key=population.key_of(it), value=population.VALUE, lease=it) for it in ids]
    keys[0].key = keys[0].key.ljust(len(keys[1].key), b"_")
    puts = UnaryCalls(address, 0, population.PUT_PATH, keys, lambda _, data: None, once=True)
    return grants, puts


def idle(node: Node, options: argparse.Namespace) -> Figures:
    deletes = Deletes(node.address)
    ids = population.new_ids(max(int(IDLE_LEASES * options.scale), 20))
    population.grant(node.address, ids, population.TTL_S)
    population.revoke(node.address, ids)  # the server has done it all before
    grants, puts = one_by_one(node.address, ids)
    sent: dict[int, float] = {}
    answered: dict[int, float] = {}
    begin = time.perf_counter()
    for lease_id, offset_s in zip(ids, sorted(random.uniform(0, IDLE_S) for _ in ids), strict=True):
        time.sleep(max(begin + offset_s - time.perf_counter(), 0.0))
        sent[lease_id], answered[lease_id] = grants.one()
        puts.one()
    deletes.wait(len(ids), time.perf_counter() + IDLE_TTL_S + 30.0)
    for client in (deletes, grants, puts):
        client.close()
    late_s = []
    for lease_id in ids:
        at = deletes.at[population.key_of(lease_id)]
        if at < sent[lease_id] + IDLE_TTL_S:
            raise WrongReplyError(f"lease {lease_id} ended {sent[lease_id] + IDLE_TTL_S - at:.4f} s early")
        late_s.append(at - answered[lease_id] - IDLE_TTL_S)
    p50_s, p99_s, most_s = percentiles(late_s, (0.5, 0.99, 1.0))
    return {"late_p50_ms": 1e3 * p50_s, "late_p99_ms": 1e3 * p99_s, "late_max_ms": 1e3 * most_s, "leases": len(ids)}


def storm(node: Node, count: int, probing: bool) -> Figures:
    """Leases with a key each that are all due at once, on a server that may hold others."""
    ids = population.new_ids(count)
    begin = time.perf_counter()
    population.grant(node.address, ids[: count // 10])
    # Long enough to make the rest, their keys, and the renewals on a server that slows down.
    ttl_s = int(3 + 25 * (time.perf_counter() - begin))
    population.revoke(node.address, ids[: count // 10])
    begin = time.perf_counter()
    population.populate(node.address, ids, ttl_s)
    deletes = Deletes(node.address)
    first_sent, last_answered = population.renew(node.address, ids, ttl_s)
    if last_answered - begin > ttl_s:
        raise WrongReplyError(f"{count} leases took longer to make than their TTL of {ttl_s} s")
    gc.collect()
    gc.disable()
    due = first_sent + ttl_s
    deletes.look(due - PROBE_BEFORE_S - time.perf_counter())
    figures: Figures = {}
    if probing:
        with Paced(node, "--keepalives", PROBES_PER_S) as probe:
            deletes.wait(count, due + SEEN_WITHIN_S_MAX)
        figures = probe.figures
    else:
        deletes.wait(count, due + SEEN_WITHIN_S_MAX)
    gc.enable()
    deletes.close()
    first_delete, last_delete = min(deletes.at.values()), max(deletes.at.values())
    if first_delete < due:
        raise WrongReplyError(f"the first lease ended {due - first_delete:.4f} s early")
    late_s = last_delete - last_answered - ttl_s
    return {**figures, "last_delete_s": late_s, "renewals_s": last_answered - first_sent, "ttl_s": ttl_s}


def storm_row(count: int, text: str, at_most_s: float, *others: Goal) -> Row:
    goal = Goal(
        "last_delete_s", f"{text} leases with a key each, due at once: last delete seen", "s", at_most=at_most_s
    )
    return Row(
        f"expiry_{count // 1_000}k",
        lambda node, options: storm(node, int(count * options.scale) // 1_000 * 1_000 or 1_000, bool(others)),
        (goal, *others),
        rounds_max=1,
    )


ROWS = (
    Row(
        "expiry_idle",
        idle,
        (
            Goal("late_p50_ms", "Expiry lateness, idle, p50", "ms", at_most=3.0),
            Goal("late_p99_ms", "Expiry lateness, idle, p99", "ms", at_most=15.0),
        ),
        rounds_max=2,
    ),
    storm_row(10_000, "10,000", 0.4),
    storm_row(
        100_000,
        "100,000",
        3.0,
        Goal("keepalive_p99_ms", "- keepalives of other clients meanwhile, p99", "ms", at_most=50.0),
        Goal("keepalive_failed", "- keepalives of other clients that failed", "calls", at_most=0),
    ),
)

if __name__ == "__main__":
    sys.exit(main(ROWS))

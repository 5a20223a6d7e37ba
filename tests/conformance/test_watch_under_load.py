# SPDX-License-Identifier: Apache-2.0
"""Watch while others write: history and live events join without a gap and without a repetition."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.subject import Subject, end_of
from tests.conformance.watch_peer import DELETE, PUT, WatchPeer, seen

KEYS = 6
WRITERS = 3
WRITES = 60  # per writer

Told = tuple[int, bytes, int]


def _write(subject: Subject, prefix: bytes, seed: int) -> list[Told]:
    """Random writes; returns the events that watchers have to be sent for them, by the server's replies."""
    chance = random.Random(seed)
    log: list[Told] = []
    for _ in range(WRITES):
        key = prefix + b"%d" % chance.randrange(KEYS)
        kind = chance.random()
        if kind < 0.6:
            log.append((PUT, key, subject.put(key)))
        elif kind < 0.8:
            reply = subject.do(rpc.DeleteRangeRequest(key=key, range_end=end_of(prefix), prev_kv=True))
            log += [(DELETE, gone.key, reply.header.revision) for gone in reply.prev_kvs]
        else:
            keys = [prefix + b"%d" % number for number in chance.sample(range(KEYS), 3)]
            puts = [rpc.RequestOp(request_put=rpc.PutRequest(key=key)) for key in keys]
            revision = subject.do(rpc.TxnRequest(success=puts)).header.revision
            log += [(PUT, key, revision) for key in keys]
    return log


def _watch(subject: Subject, prefix: bytes, first: int, seed: int, last_key: bytes) -> tuple[int, bytes, list[Told]]:
    """Watches while others write; returns where it began, its range's first key, and the events that it was sent."""
    chance = random.Random(seed)
    low = prefix + (b"%d" % chance.randrange(KEYS) if chance.random() < 0.5 else b"")
    start = chance.choice([0, first, subject.revision, subject.revision + chance.randrange(20)])
    with WatchPeer(subject) as watch:
        created = watch.create(low, range_end=end_of(prefix), start_revision=start)
        events: list[Told] = []
        while not events or events[-1][1] != last_key:
            reply = watch.read()
            revisions = [event.kv.mod_revision for event in reply.events]
            assert reply.header.revision >= revisions[-1]
            events += seen(reply.events)
    return start or created.header.revision + 1, low, events


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_told_twice(subject: Subject, prefix: bytes, seed: int) -> None:
    first = subject.put(prefix + b"0")
    last_key = prefix + b"last"
    with ThreadPoolExecutor(WRITERS + 8) as pool:
        writers = [pool.submit(_write, subject, prefix, seed * 100 + number) for number in range(WRITERS)]
        watchers = [pool.submit(_watch, subject, prefix, first, seed * 100 + number, last_key) for number in range(8)]
        log: list[Told] = [(PUT, prefix + b"0", first)]
        for writer in writers:
            log += writer.result()
        # Beyond the start of every watcher that waits for the future.
        for _ in range(20):
            log.append((PUT, prefix + b"1", subject.put(prefix + b"1")))
        log.append((PUT, last_key, subject.put(last_key)))
        # Within a revision the log is in the order of its operations, and sorting by revision keeps that.
        log.sort(key=lambda entry: entry[2])
        for watcher in watchers:
            start, low, events = watcher.result()
            assert events == [entry for entry in log if entry[2] >= start and entry[1] >= low]

# SPDX-License-Identifier: Apache-2.0
"""How fast the state machine is by itself: no sockets, no disk, no loop.

Run: .venv/bin/python bench/state_core.py [--count 100000] [--only NAME] [--profile]

Each figure is the best of three runs on a fresh machine, in operations per second; requests are built beforehand,
replies are encoded (what the server sends). `range` figures of the key index come last: they are what its design was
chosen by.
"""

import argparse
import cProfile
import gc
import pstats
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lessor.api.proto import rpc_pb2
from lessor.state.key_index import KeyIndex
from lessor.state.machine import Identity, StateMachine

VALUE = b"v" * 64
RUNS = 3


def new_machine() -> StateMachine:
    return StateMachine(Identity(14841639068965178418, 10276657743932975437, 2))


def key_of(number: int) -> bytes:
    return b"/svc/instances/%08d" % number


class Clock:
    """Measures the part of a run that counts."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        gc.collect()
        gc.freeze()  # the requests built beforehand are not the state machine's garbage to look through
        start = time.perf_counter()
        yield
        self.spent_s += time.perf_counter() - start
        gc.unfreeze()


def grant(count: int, clock: Clock) -> None:
    machine = new_machine()
    requests = [rpc_pb2.LeaseGrantRequest(TTL=60) for _ in range(count)]
    apply = machine.apply_encoded
    with clock.running():
        for request in requests:
            apply(request, 1.0)


def leased(count: int, keys_each: int = 0) -> StateMachine:
    machine = new_machine()
    for number in range(1, count + 1):
        machine.apply_encoded(rpc_pb2.LeaseGrantRequest(ID=number, TTL=60), number * 1e-4)
        for key in range(keys_each):
            machine.apply_encoded(
                rpc_pb2.PutRequest(key=key_of(number * keys_each + key), value=VALUE, lease=number), 0.0
            )
    machine.journal.seal(1.0)
    return machine


def renew(count: int, clock: Clock) -> None:
    machine = leased(count)
    apply = machine.apply_encoded
    requests = [rpc_pb2.LeaseKeepAliveRequest(ID=number) for number in range(1, count + 1)]
    for request in requests:
        apply(request, 20.0)  # writes the row that gives the slack; the measured ones need none
    with clock.running():
        for request in requests:
            apply(request, 30.0)


def renew_bare(count: int, clock: Clock) -> None:
    machine = leased(count)
    renew_one = machine.leases.renew
    for number in range(1, count + 1):
        renew_one(number, 20.0)
    with clock.running():
        for number in range(1, count + 1):
            renew_one(number, 30.0)


def put_new(count: int, clock: Clock) -> None:
    machine = new_machine()
    requests = [rpc_pb2.PutRequest(key=key_of(number), value=VALUE) for number in range(count)]
    apply = machine.apply_encoded
    with clock.running():
        for request in requests:
            apply(request, 1.0)


def put_again(count: int, clock: Clock) -> None:
    machine = new_machine()
    requests = [rpc_pb2.PutRequest(key=key_of(number % 1000), value=VALUE) for number in range(count)]
    apply = machine.apply_encoded
    with clock.running():
        for request in requests:
            apply(request, 1.0)


def put_with_lease(count: int, clock: Clock) -> None:
    machine = leased(1)
    requests = [rpc_pb2.PutRequest(key=key_of(number), value=VALUE, lease=1) for number in range(count)]
    apply = machine.apply_encoded
    with clock.running():
        for request in requests:
            apply(request, 1.0)


def range_one(count: int, clock: Clock) -> None:
    machine = new_machine()
    for number in range(1000):
        machine.apply_encoded(rpc_pb2.PutRequest(key=key_of(number), value=VALUE), 0.0)
    requests = [rpc_pb2.RangeRequest(key=key_of(number % 1000)) for number in range(count)]
    apply = machine.apply_encoded
    with clock.running():
        for request in requests:
            apply(request, 1.0)


def txn_create(count: int, clock: Clock) -> None:
    machine = leased(1)
    requests = []
    for number in range(count):
        key = key_of(number)
        requests.append(
            rpc_pb2.TxnRequest(
                compare=[rpc_pb2.Compare(target=rpc_pb2.Compare.CREATE, key=key, create_revision=0)],
                success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=VALUE, lease=1))],
                failure=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key))],
            )
        )
    apply = machine.apply_encoded
    with clock.running():
        for request in requests:
            apply(request, 1.0)


def expire(count: int, clock: Clock) -> None:
    machine = leased(count, keys_each=1)
    with clock.running():
        ended = 0
        while ended < count:
            ended += machine.expire(1e6, 1000)


def revoke_one(count: int, clock: Clock) -> None:
    machine = leased(1, keys_each=count)
    with clock.running():
        machine.apply_encoded(rpc_pb2.LeaseRevokeRequest(ID=1), 1.0)


def compact(count: int, clock: Clock) -> None:
    machine = new_machine()
    for number in range(count):
        machine.apply_encoded(rpc_pb2.PutRequest(key=key_of(number % 1000), value=VALUE), 0.0)
    with clock.running():
        machine.apply_encoded(rpc_pb2.CompactionRequest(revision=machine.revision), 1.0)
        machine.store.sweep(machine.store.unswept)


def index_settle(count: int, clock: Clock, *, shuffled: bool) -> None:
    keys = [key_of(number) for number in range(count)]
    if shuffled:
        random.Random(1).shuffle(keys)
    index = KeyIndex()
    with clock.running():
        for key in keys:
            index.add(key)
        index.count(b"\0", b"")


def index_mixed(count: int, clock: Clock) -> None:
    """A new key, then a short range, and again: nothing may be put off."""
    keys = [key_of(number) for number in range(count * 2)]
    random.Random(1).shuffle(keys)
    index = KeyIndex(keys[:count])
    with clock.running():
        for key in keys[count:]:
            index.add(key)
            index.range(key, b"", 3)


BENCHES: dict[str, Callable[[int, Clock], None]] = {
    "grant": grant,
    "renew (keepalive reply)": renew,
    "renew (lessor only)": renew_bare,
    "put, new key": put_new,
    "put, 1000 keys again": put_again,
    "put onto one lease": put_with_lease,
    "range, one key": range_one,
    "txn, create if absent": txn_create,
    "expire, a key each": expire,
    "revoke one lease, per key": revoke_one,
    "compact, per event": compact,
    "key index, sequential": lambda count, clock: index_settle(count, clock, shuffled=False),
    "key index, random": lambda count, clock: index_settle(count, clock, shuffled=True),
    "key index, add + range": index_mixed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="operations per figure")
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--profile", action="store_true", help="where the time goes, instead of figures")
    args = parser.parse_args()
    for name, bench in BENCHES.items():
        if args.only not in name:
            continue
        if args.profile:
            profile = cProfile.Profile()
            profile.runcall(bench, args.count, Clock())
            pstats.Stats(profile).sort_stats("tottime").print_stats(15)
            continue
        best_s = float("inf")
        for _ in range(RUNS):
            clock = Clock()
            bench(args.count, clock)
            # What the last run left is not this one's to pay for.
            gc.collect()
            best_s = min(best_s, clock.spent_s)
        print(f"{name:28s} {args.count / best_s:12,.0f} /s {best_s / args.count * 1e6:8.2f} us", flush=True)


if __name__ == "__main__":
    main()

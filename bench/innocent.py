# SPDX-License-Identifier: Apache-2.0
"""How long an innocent client waits for its renewal while others flood the server, or make long calls.

    python -m bench.innocent                              # floods and long calls, against Lessor
    python -m bench.innocent --server-path build/compiled # the compiled build
    python -m bench.innocent --etcd /path/to/etcd
    python -m bench.innocent --only ranges --seconds 5

To be run from the root of the repository, on a machine that does nothing else. A renewal is due 50 times a second;
the first one is due at once. Each flood comes over four connections, each from a process of its own. A long call comes
from one process, again and again; it has 100,000 keys before it, and those that write are given them anew. Not a row of
`scripts/bench`: what counts here is the worst case, which a median over runs would hide.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import grpc

from lessor.api.methods import METHODS
from lessor.api.proto import rpc_pb2 as rpc
from tests.attack.floods import FLOODS
from tests.attack.peers import Attacker, Innocent
from tests.conformance.etcd_server import EtcdServer
from tests.conformance.lessor_server import LessorServer
from tests.conformance.server_process import ServerProcess

RENEWAL_S = 0.02
CONNECTIONS = 4
KEYS = 100_000
KEYS_OF_TXN = 100
LEASE = 4711
WARM_UP_S = 0.3
ALL: dict[str, Any] = {"key": b"many/", "range_end": b"many0"}

_REQUESTS = {method.request: method for method in METHODS if method.unary}


class Caller:
    """A gRPC client that takes replies of any size."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options=options)

    def call(self, request: Any) -> None:
        """An error is an outcome, too: what counts is how long others wait."""
        method = _REQUESTS[type(request)]
        call = self._channel.unary_unary(method.path, request_serializer=method.request.SerializeToString)
        with contextlib.suppress(grpc.RpcError):
            call(request, timeout=120)


def fill(caller: Caller, lease: int = 0) -> None:
    for first in range(0, KEYS, KEYS_OF_TXN):
        puts = [
            rpc.RequestOp(request_put=rpc.PutRequest(key=b"many/%06d" % number, value=b"v%d" % number, lease=lease))
            for number in range(first, first + KEYS_OF_TXN)
        ]
        caller.call(rpc.TxnRequest(success=puts))


def _attached(caller: Caller) -> None:
    caller.call(rpc.LeaseGrantRequest(ID=LEASE, TTL=6000))
    fill(caller, LEASE)


def _ranges(**how: Any) -> list[rpc.RequestOp]:
    return [rpc.RequestOp(request_range=rpc.RangeRequest(**ALL, **how)) for _ in range(128)]


def _compares() -> list[rpc.Compare]:
    return [rpc.Compare(**ALL, target=rpc.Compare.VERSION, result=rpc.Compare.GREATER, version=0) for _ in range(128)]


def _deletes() -> list[rpc.RequestOp]:
    ends = [b"many/%06d" % (KEYS * number // 128) for number in range(128)] + [b"many0"]
    return [
        rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=end))
        for key, end in pairwise(ends)
    ]


_PUT = rpc.RequestOp(request_put=rpc.PutRequest(key=b"one", value=b"v"))

Work = Callable[[str, str, Event, Event, Event], None]

# Name: (what comes before each call and is not measured, the call).
LONG: dict[str, tuple[Callable[[Caller], None] | None, Any]] = {
    "range of all": (None, rpc.RangeRequest(**ALL)),
    "sorted range": (None, rpc.RangeRequest(**ALL, sort_order="DESCEND", sort_target="VALUE", limit=1)),
    "txn of 128 sorted ranges": (
        None, rpc.TxnRequest(success=_ranges(sort_order="DESCEND", sort_target="VALUE", limit=1))
    ),
    "txn of 128 keys-only ranges": (None, rpc.TxnRequest(success=_ranges(keys_only=True))),
    "txn of 128 compares": (None, rpc.TxnRequest(compare=_compares())),
    "hash": (None, rpc.HashKVRequest()),
    "put with a range": (None, rpc.TxnRequest(success=[_PUT, *_ranges(limit=KEYS - 1)[:1]])),
    "delete of all": (fill, rpc.DeleteRangeRequest(**ALL)),
    "txn of 128 range deletes": (fill, rpc.TxnRequest(success=_deletes())),
    "remaining time of a lease, with keys": (_attached, rpc.LeaseTimeToLiveRequest(ID=LEASE, keys=True)),
    "revoke": (_attached, rpc.LeaseRevokeRequest(ID=LEASE)),
}  # fmt: skip


def flood(address: str, name: str, ready: Event, begin: Event, end: Event) -> None:
    """A process of its own. A connection that was cut off is made anew."""
    ready.set()
    begin.wait()
    while not end.is_set():
        with contextlib.suppress(OSError):
            attacker = Attacker(address)
            try:
                if attacker.send(FLOODS[name].opening):
                    for each in FLOODS[name].rounds():
                        if end.is_set() or not attacker.send(each):
                            break
            finally:
                attacker.close()


def long_call(address: str, name: str, ready: Event, begin: Event, end: Event) -> None:
    caller = Caller(address)
    before, request = LONG[name]
    if before is not None:
        before(caller)
    ready.set()
    begin.wait()
    while not end.is_set():
        caller.call(request)
        if before is not None:  # a second one would find nothing
            time.sleep(0.2)
            end.set()


def renewals(innocent: Innocent, begin: Event, end: Event, seconds: float) -> list[float]:
    """How long each took, in ms, from the instant at which it was due."""
    innocent.renew()
    waits: list[float] = []
    begin.set()
    due_s = time.monotonic()
    until_s = due_s + seconds
    while time.monotonic() < until_s and not (waits and end.is_set()):
        time.sleep(max(due_s - time.monotonic(), 0.0))
        innocent.renew()
        now_s = time.monotonic()
        waits.append((now_s - due_s) * 1e3)
        due_s = max(due_s + RENEWAL_S, now_s - RENEWAL_S)  # one that had to wait does not make many late
    end.set()
    return waits


def case(address: str, name: str, work: Work, count: int, seconds: float) -> None:
    ready, begin, end = multiprocessing.Event(), multiprocessing.Event(), multiprocessing.Event()
    arguments = address, name, ready, begin, end
    others = [multiprocessing.Process(target=work, args=arguments, daemon=True) for _ in range(count)]
    for other in others:
        other.start()
    if others:
        ready.wait()
    time.sleep(WARM_UP_S)
    try:
        with Innocent(address, lease=1 + abs(hash(name)) % 1_000_000) as innocent:
            waits = sorted(renewals(innocent, begin, end, seconds))
    except (AssertionError, OSError) as error:
        print(f"| {name} | | | not served: {error} | |", flush=True)
        waits = []
    begin.set()
    end.set()
    for other in others:
        other.join(10)
        if other.is_alive():
            other.kill()
    if not waits:
        return
    p50, p99 = (waits[min(int(len(waits) * part), len(waits) - 1)] for part in (0.5, 0.99))
    print(f"| {name} | {p50:.1f} | {p99:.1f} | {waits[-1]:.1f} | {len(waits)} |", flush=True)


@contextlib.contextmanager
def served(options: argparse.Namespace) -> Iterator[ServerProcess]:
    if options.etcd is not None:
        with EtcdServer(options.etcd) as etcd:
            yield etcd
        return
    if options.server_path:
        os.environ["PYTHONPATH"] = options.server_path
    with LessorServer() as lessor:
        yield lessor


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.innocent", description=__doc__)
    parser.add_argument("--etcd", type=Path, metavar="BINARY")
    parser.add_argument("--server-path", default="", help="a folder with the package to serve from")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--seconds", type=float, default=2.0, help="for a flood; a long call has five times as much")
    options = parser.parse_args()
    with served(options) as server:
        with urllib.request.urlopen(f"{server.client_url}/version", timeout=5) as page:
            print("server:", json.loads(page.read()))
        print("| beside | p50 ms | p99 ms | worst ms | renewals |\n|---|---|---|---|---|")
        case(server.address, "nobody", flood, 0, options.seconds)
        for name in FLOODS:
            if options.only in name:
                case(server.address, name, flood, CONNECTIONS, options.seconds)
        fill(Caller(server.address))
        for name in LONG:
            if options.only in name:
                case(server.address, name, long_call, 1, options.seconds * 5)


if __name__ == "__main__":
    main()

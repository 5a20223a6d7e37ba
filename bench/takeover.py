# SPDX-License-Identifier: Apache-2.0
"""For how long a client waits when a server of three is lost, or hands the lead over; and how far watches are behind.

Laws
- Three servers on an etcd of three members, or the three members of an etcd alone, with fsync on, all on this machine.
- A client has a connection to a member that is not struck, and calls it again when a call fails.

    python -m bench.takeover --etcd FILE [--of "lessor on etcd"] [--rounds N] [--cluster-lease 400ms]

KILL      kill -9 of the member that leads, to the acknowledgement of a put at another one
BELOW     kill -9 of the member that leads the etcd below Lessor, to the acknowledgement of a put at Lessor's leader
HAND OVER the longest of lone puts at a third member while the lead goes from one to another, and how many failed
LAG       from the acknowledgement of a put at the leader to its event in a watch at another member
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from bench.cluster import GROUPS, MEMBERS, Group, serving
from bench.harness import ROOT
from lessor.api.proto import rpc_pb2
from tests.conformance.grpc_peer import Failure, GrpcPeer
from tests.conformance.server_process import hand_over

QUIET_S = 1.0  # between two strikes, so that all members follow again
RETRY_S = 0.005
LAG_PUTS = 500


def put(peer: GrpcPeer, key: bytes = b"k") -> int:
    """Puts until a put is acknowledged; returns how many calls failed before."""
    failed = 0
    while True:
        try:
            if not isinstance(peer.call(rpc_pb2.PutRequest(key=key, value=b"v")), Failure):
                return failed
        except grpc.RpcError:
            pass
        failed += 1
        time.sleep(RETRY_S)


def address(port: int) -> str:
    return f"127.0.0.1:{port}"


def spread(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    p99 = ordered[int(0.99 * (len(ordered) - 1))]
    return f"median {1e3 * statistics.median(ordered):.0f} ms, p99 {1e3 * p99:.0f}, worst {1e3 * ordered[-1]:.0f}"


def timed_put(port: int) -> Callable[[], float]:
    """Connects; what it returns puts, and says when that was acknowledged."""
    peer = GrpcPeer(address(port)).__enter__()

    def acknowledged_s() -> float:
        try:
            put(peer)
            return time.monotonic()
        finally:
            peer.channel.close()

    return acknowledged_s


def kills(group: Group, rounds: int, *, below: bool) -> str:
    """Of the leader, or of the leader of the etcd below it. A put is made at a member that lives."""
    first = 0 if below else group.count - MEMBERS  # the members were spawned last
    ports = group.below if below else group.ports
    waited = []
    for _ in range(rounds):
        leader, struck = group.wait_for_leader(), group.wait_for_leader(ports)
        acknowledged_s = timed_put(leader if below else next(port for port in ports if port != leader))
        number = first + ports.index(struck)
        began_s = time.monotonic()
        group.kill(number)
        waited.append(acknowledged_s() - began_s)
        group.begin_again(number)
        group.wait_until_serving()
        time.sleep(QUIET_S)
    return f"{'BELOW' if below else 'KILL'}: {rounds} times: {spread(waited)}"


@contextmanager
def puts_at(port: int) -> Iterator[tuple[list[float], list[int]]]:
    """Lone puts, one after the other: how long each took, its failed calls included, and how many failed."""
    took: list[float] = []
    failed: list[int] = []
    over = threading.Event()

    def run() -> None:
        with GrpcPeer(address(port)) as peer:
            while not over.is_set():
                began_s = time.monotonic()
                failed.append(put(peer))
                took.append(time.monotonic() - began_s)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield took, failed
    finally:
        over.set()
        thread.join()


def hand_overs(group: Group, rounds: int) -> str:
    longest, usual, failures = [], [], 0
    for _ in range(rounds):
        leader = group.wait_for_leader()
        target, third = (port for port in group.ports if port != leader)
        with puts_at(third) as (took, failed):
            time.sleep(QUIET_S / 2)
            before = len(took)
            hand_over(f"http://{address(leader)}", f"http://{address(target)}")
            time.sleep(QUIET_S / 2)
        usual += took[:before]
        longest.append(max(took[before:]))
        failures += sum(failed)
    return f"HAND OVER: {rounds} times, {failures} calls failed: {spread(longest)}; without: {spread(usual)}"


def lags(group: Group) -> str:
    leader = group.wait_for_leader()
    other = next(port for port in group.ports if port != leader)
    created = threading.Event()
    seen: dict[bytes, float] = {}

    def watch() -> None:
        with GrpcPeer(address(other)) as peer:
            create = rpc_pb2.WatchCreateRequest(key=b"lag/", range_end=b"lag0")
            replies: Any = peer.watch(rpc_pb2.WatchRequest(create_request=create))
            for reply in replies:
                created.set()
                now_s = time.monotonic()
                seen.update((event.kv.key, now_s) for event in reply.events)
                if len(seen) == LAG_PUTS:
                    break

    thread = threading.Thread(target=watch)
    thread.start()
    created.wait()
    written = {}
    with GrpcPeer(address(leader)) as peer:
        for number in range(LAG_PUTS):
            key = b"lag/%d" % number
            put(peer, key)
            written[key] = time.monotonic()
            time.sleep(0.005)
    thread.join()
    return f"LAG: {LAG_PUTS} puts: {spread([max(0.0, seen[key] - written[key]) for key in written])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--etcd", required=True, help="the etcd to compare with, and below Lessor")
    parser.add_argument("--of", choices=list(GROUPS), action="append", help="these groups only")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cluster-lease", help="Lessor's, instead of its default")
    parser.add_argument("--directory", help="where the data is: a disk whose fsync counts")
    parser.add_argument("--server-path", type=Path, default=ROOT / "src")
    options = parser.parse_args()
    options.server_path = options.server_path.resolve()
    options.flags = [f"--cluster-lease={options.cluster_lease}"] if options.cluster_lease else []
    for name in options.of or ["lessor on etcd", "etcd"]:
        with serving(name, options) as group:
            print(f"{name}: {lags(group)}", flush=True)
            print(f"{name}: {hand_overs(group, options.rounds)}", flush=True)
            print(f"{name}: {kills(group, options.rounds, below=False)}", flush=True)
            if group.below:
                print(f"{name}: {kills(group, options.rounds, below=True)}", flush=True)


if __name__ == "__main__":
    main()

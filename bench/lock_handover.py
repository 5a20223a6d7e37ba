# SPDX-License-Identifier: Apache-2.0
"""How a lock changes hands when its holder is killed: not before its lease ends, and how long after.

Two processes contend for a lock by grpcio, which shares no code with ours. The holder renews its lease three times per
TTL and says when; it is killed with SIGKILL between two renewals. The other one says when it got the lock. The lease
ends one TTL after the server took the last renewal, which was between its sending and its reply: the lock must not
come earlier than one TTL after the sending, and is late by what it comes after one TTL after the reply.

`python -m bench.lock_handover` runs ours and etcd in turn, and fails when ours is early or later than LATE_S_MAX.
--hogs N keeps N more processes busy meanwhile.
"""

import argparse
import contextlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from bench import harness
from lessor.api.methods import METHODS
from lessor.api.proto import lock_pb2, rpc_pb2

TTL_S = 2  # the least that etcd grants
LATE_S_MAX = 0.1
NAME = b"handover"


def stub(channel: Any, name: str) -> Any:
    method = next(method for method in METHODS if method.path.endswith("/" + name))
    make = channel.unary_unary if method.unary else channel.stream_stream
    return make(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )


def say(*words: object) -> None:
    """One line of what a client process tells; times are those of the monotonic clock, which processes share."""
    print(*words, flush=True)


def client(address: str) -> None:
    """Locks, says so, and renews until it is killed: `locked TIME`, then for each renewal `renewed SENT ANSWERED`."""
    with grpc.insecure_channel(address) as channel:
        lease = stub(channel, "LeaseGrant")(rpc_pb2.LeaseGrantRequest(TTL=TTL_S), timeout=10)
        keep = stub(channel, "LeaseKeepAlive")
        lock = stub(channel, "Lock").future(lock_pb2.LockRequest(name=NAME, lease=lease.ID), timeout=60)
        lock.add_done_callback(lambda done: say("locked" if done.code() is grpc.StatusCode.OK else done, time_s()))
        while True:
            sent_s = time_s()
            (reply,) = keep(iter([rpc_pb2.LeaseKeepAliveRequest(ID=lease.ID)]), timeout=10)
            assert reply.TTL == TTL_S, "the lease is gone"
            say("renewed", sent_s, time_s())
            time.sleep(TTL_S / 3)


def time_s() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)


@contextlib.contextmanager
def started(address: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "bench.lock_handover", "--client", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(process: "subprocess.Popen[str]", word: str) -> list[float]:
    """Reads a client's lines up to one that begins with `word`; returns its figures."""
    assert process.stdout is not None
    for line in process.stdout:
        said, *figures = line.split()
        if said == word:
            return [float(figure) for figure in figures]
    raise SystemExit("a client ended by itself")


def handover(address: str) -> tuple[float, float]:
    """One holder killed. Returns how long after one TTL since the last renewal (sent, answered) the lock came, in s."""
    with started(address) as holder:
        heard(holder, "locked")
        with started(address) as waiter:
            heard(waiter, "renewed")
            sent_s, answered_s = heard(holder, "renewed")
            while time_s() - answered_s > TTL_S / 30:  # an old line: the holder went on while the other one started
                sent_s, answered_s = heard(holder, "renewed")
            time.sleep(random.uniform(0.1, 0.8) * TTL_S / 3)  # somewhere between this renewal and the next
            holder.send_signal(signal.SIGKILL)
            (locked_s,) = heard(waiter, "locked")
        ended = locked_s - TTL_S
    return ended - sent_s, ended - answered_s


@contextlib.contextmanager
def hogs(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(server: harness.Server, rounds: int, directory: Path) -> bool:
    """Prints a line of figures; returns whether no lock came early and none late."""
    with harness.running(server, directory) as (_, port):
        results = [handover(f"127.0.0.1:{port}") for _ in range(rounds)]
    early_s = min(after_sent_s for after_sent_s, _ in results)
    late_s = [after_answered_s for _, after_answered_s in results]
    print(
        f"{server.name} {server.version}: {rounds} holders killed, TTL {TTL_S} s; lock late by "
        f"median {statistics.median(late_s) * 1e3:.1f} ms, at most {max(late_s) * 1e3:.1f} ms; "
        f"least after the promise {early_s * 1e3:.1f} ms"
    )
    return early_s >= 0 and max(late_s) <= LATE_S_MAX


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--hogs", type=int, default=0, help="processes that compute beside it")
    parser.add_argument("--client", metavar="HOST:PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        client(options.client)
    binary = harness.find_etcd()
    with hogs(options.hogs):
        if binary is not None:
            measure(harness.etcd(binary), options.rounds, options.directory)
        return 0 if measure(harness.ours(), options.rounds, options.directory) else 1


if __name__ == "__main__":
    sys.exit(main())

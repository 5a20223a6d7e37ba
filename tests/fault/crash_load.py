# SPDX-License-Identifier: Apache-2.0
"""A load whose outcome can be checked after a crash, and the server process that is killed under it.

Each worker works on keys of its own, one call after the other, and notes what was acknowledged. When the server is
killed, at most the worker's last call has an unknown outcome: what is found afterwards must be the acknowledged state,
with that one call either wholly done or not done at all.
"""

import copy
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2
from tests.conformance.server_process import wait_until_healthy
from tests.ports import free_port

CALL_S = 10.0
LONG_TTL_S = 1_000


class Stubs:
    """Unary calls by name over a grpcio channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._made: dict[str, Any] = {}

    def __call__(self, path: str, request: Any) -> Any:
        stub = self._made.get(path)
        if stub is None:
            method = BY_PATH["/etcdserverpb." + path]
            stub = self._made[path] = self._channel.unary_unary(
                method.path, request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )  # fmt: skip
        return stub(request, timeout=CALL_S)

    def renew(self, lease_id: int) -> Any:
        method = BY_PATH["/etcdserverpb.Lease/LeaseKeepAlive"]
        stub = self._channel.stream_stream(
            method.path, request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )  # fmt: skip
        (reply,) = stub(iter([rpc_pb2.LeaseKeepAliveRequest(ID=lease_id)]), timeout=CALL_S)
        return reply


class ServerProcess:
    """`lessor serve` on a data directory, as a process that can be killed and started again."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        url = f"http://{self.address}"
        log = self.data_dir.parent / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lessor", "serve", "--data-dir", str(self.data_dir),
                 "--listen-client-urls", url, "--log-level", "warn"],
                stdout=output, stderr=output,
            )  # fmt: skip
        wait_until_healthy(url, self._process, log)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(20)

    def stubs(self) -> Stubs:
        channel = grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])
        grpc.channel_ready_future(channel).result(CALL_S)
        return Stubs(channel)


@dataclass
class State:
    """What one worker's part of the data looks like."""

    keys: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)  # key -> (value, lease)
    leases: set[int] = field(default_factory=set)

    def put(self, key: bytes, value: bytes, lease: int) -> None:
        self.keys[key] = (value, lease)

    def revoke(self, lease: int) -> None:
        self.leases.discard(lease)
        self.keys = {key: kept for key, kept in self.keys.items() if kept[1] != lease}


class Worker:
    """Calls the server until it dies."""

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.random = random.Random(seed)
        self.acknowledged = State()
        self.possible: State | None = None  # the state if the call with the unknown outcome was done
        self.calls = 0
        self._next = 0

    def key(self, name: int) -> bytes:
        return b"w%d/%d" % (self.number, name)

    def run(self, stubs: Stubs) -> None:
        while True:
            after = copy.deepcopy(self.acknowledged)
            call = self._choose(after)
            self.possible = after
            try:
                call(stubs)
            except grpc.RpcError:
                return
            self.acknowledged, self.possible = after, None
            self.calls += 1

    def _choose(self, after: State) -> Any:
        """Picks a call and applies it to `after`; returns what makes the call."""
        self._next += 1
        value = b"%d" % self._next
        leases = sorted(after.leases)
        lease = self.random.choice([0, *leases])
        key = self.key(self.random.randrange(8))
        kind = self.random.random()
        if kind < 0.2 or not leases:
            granted = (self.number + 1) * 1_000_000 + self._next
            after.leases.add(granted)
            request: Any = rpc_pb2.LeaseGrantRequest(TTL=LONG_TTL_S, ID=granted)
            return lambda stubs: stubs("Lease/LeaseGrant", request)
        if kind < 0.5:
            after.put(key, value, lease)
            put = rpc_pb2.PutRequest(key=key, value=value, lease=lease)
            return lambda stubs: stubs("KV/Put", put)
        if kind < 0.65:
            ended = self.random.choice(leases)
            after.revoke(ended)
            return lambda stubs: stubs("Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=ended))
        # Both of a pair change in one revision: half of that must never be seen.
        pair = self.key(100), self.key(101)
        txn = rpc_pb2.TxnRequest()
        for one in pair:
            after.put(one, value, lease)
            txn.success.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=one, value=value, lease=lease))
        after.keys.pop(key, None)
        txn.success.add().request_delete_range.key = key
        return lambda stubs: stubs("KV/Txn", txn)


def found(stubs: Stubs, worker: Worker) -> State:
    """This worker's part of the data as the server has it, attachments taken from both ends."""
    prefix = b"w%d/" % worker.number
    kvs = stubs("KV/Range", rpc_pb2.RangeRequest(key=prefix, range_end=prefix[:-1] + b"0")).kvs
    state = State({kv.key: (kv.value, kv.lease) for kv in kvs})
    low = (worker.number + 1) * 1_000_000
    listed = [lease.ID for lease in stubs("Lease/LeaseLeases", rpc_pb2.LeaseLeasesRequest()).leases]
    state.leases = {lease for lease in listed if low <= lease < low + 1_000_000}
    for lease in state.leases:
        asked = stubs("Lease/LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=lease, keys=True))
        assert sorted(asked.keys) == sorted(kv.key for kv in kvs if kv.lease == lease), f"attachments of {lease}"
    return state


def load_until_killed(server: ServerProcess, workers: list[Worker], kill_after_s: float) -> float:
    """Runs all workers, kills the server in their midst; returns how long they ran, in seconds."""
    threads = [threading.Thread(target=worker.run, args=(server.stubs(),)) for worker in workers]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    time.sleep(kill_after_s)  # the instant of the kill is what is random here
    server.kill()
    lasted_s = time.monotonic() - begun
    for thread in threads:
        thread.join(CALL_S + 5)
        assert not thread.is_alive()
    return lasted_s

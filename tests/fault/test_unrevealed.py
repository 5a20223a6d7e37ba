# SPDX-License-Identifier: Apache-2.0
"""unrevealed, as docs/guarantees.md states it: while the disk has not taken a write, nobody can tell that it was made.

A whole server runs on a disk that stands still. Writes, reads of them, errors that give them away, renewals and watches
come in over gRPC and JSON; none may be answered before the disk goes on, and all must be after that.

How silence is seen without waiting for it: a keepalive on an old lease is answered at once, behind everything that the
server sent before it on this connection; and the server counts the calls that it has answered.
"""

import json
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import leases_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.durable.file_engine import FileEngine
from lessor.state.journal import Batch
from lessor.testing.server import InProcessServer
from tests.conformance.subject import Conversation
from tests.in_process import in_process

pytestmark = pytest.mark.slow

ANSWER_S = 20.0
OLD, ENDED, NEW, JSON_NEW = 1, 2, 3, 4  # leases: the first two are granted before the disk stands still


class HaltingEngine(FileEngine):
    """Commits while `goes` is set, and otherwise waits for it."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.goes = threading.Event()
        self.goes.set()

    def commit(self, batch: Batch) -> None:
        assert self.goes.wait(60)
        super().commit(batch)


class World:
    """The server, one gRPC connection to it, and what was asked while the disk stood still."""

    def __init__(
        self, served: InProcessServer, engine: HaltingEngine, channel: grpc.Channel, pool: ThreadPoolExecutor
    ) -> None:
        self.served, self.engine, self._channel, self._pool = served, engine, channel, pool
        self.streams: list[Conversation] = []
        self._fence = self.stream("Lease/LeaseKeepAlive")
        self.pending: dict[str, Any] = {}  # name -> future of a gRPC reply
        self.sockets: dict[str, socket.socket] = {}  # name -> connection that waits for a JSON reply

    def _stub(self, path: str) -> Any:
        method = BY_PATH[path if path.startswith("/") else "/etcdserverpb." + path]
        make = self._channel.unary_unary if method.unary else self._channel.stream_stream
        return make(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )

    def stream(self, path: str) -> Conversation:
        opened = Conversation(self._stub(path), 60, [])
        self.streams.append(opened)
        return opened

    def call(self, path: str, request: Any) -> Any:
        """A call that has to be answered at once."""
        return self._stub(path)(request, timeout=ANSWER_S)

    def renew_old(self) -> Any:
        """The reply to a keepalive of an old lease, which comes after all that was sent on this connection before."""
        self._fence.send(rpc.LeaseKeepAliveRequest(ID=OLD))
        return self._fence.read()

    def ask(self, name: str, path: str, request: Any) -> None:
        """Makes a unary call and sees to it that the server has it."""
        self.pending[name] = self._stub(path).future(request, timeout=60)
        self.renew_old()

    def ask_stream(self, name: str, stream: Conversation, request: Any) -> None:
        """Sends on a stream, whose next response is then waited for."""
        stream.send(request)
        self.listen(name, stream)
        self.renew_old()

    def listen(self, name: str, stream: Conversation) -> None:
        self.pending[name] = self._pool.submit(stream.read)

    def ask_json(self, name: str, path: str, request: dict[str, Any]) -> None:
        body = json.dumps(request).encode()
        started = self.started
        host, _, port = self.served.address.partition(":")
        connection = self.sockets[name] = socket.create_connection((host, int(port)), ANSWER_S)
        # In one piece, so that the server applies it in the step in which it counts it.
        connection.sendall(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body
        )
        while self.started == started:
            pass
        self.renew_old()

    @property
    def started(self) -> int:
        return self.served.call(lambda: sum(count.n for count in self.served.server.core.metrics.started.values()))

    @property
    def handled(self) -> int:
        return self.served.call(lambda: sum(count.n for count in self.served.server.core.metrics.handled.values()))

    def answered(self) -> list[str]:
        """The names of the questions to which there is an answer."""
        readable, _, _ = select.select(list(self.sockets.values()), [], [], 0)
        ready = [name for name, connection in self.sockets.items() if connection in readable]
        return ready + [name for name, future in self.pending.items() if future.done()]

    def close(self) -> None:
        for stream in self.streams:
            stream.cancel()
        for connection in self.sockets.values():
            connection.close()

    def result(self, name: str) -> Any:
        """The answer: a message, or the code of an error."""
        future: Future[Any] = self.pending[name]
        try:
            return future.result(ANSWER_S)
        except grpc.RpcError as error:
            status: Any = error
            return status.code()

    def json_result(self, name: str) -> str:
        """The first bytes of the answer, as text."""
        return self.sockets[name].recv(65_536).decode()


@contextmanager
def world(tmp_path: Path) -> Iterator[World]:
    """With leases OLD and ENDED, and the key `old`. OLD was renewed, so that its next renewals write nothing."""
    engine = HaltingEngine(tmp_path)
    with in_process(tmp_path, engine=engine) as served, ThreadPoolExecutor(32) as pool:
        channel = grpc.insecure_channel(served.address, options=[("grpc.use_local_subchannel_pool", 1)])
        made = None
        try:
            grpc.channel_ready_future(channel).result(ANSWER_S)
            made = World(served, engine, channel, pool)
            for lease in (OLD, ENDED):
                made.call("Lease/LeaseGrant", rpc.LeaseGrantRequest(ID=lease, TTL=600))
            made.renew_old()
            made.call("KV/Put", rpc.PutRequest(key=b"old", value=b"v"))
            yield made
        finally:
            engine.goes.set()
            if made is not None:
                made.close()
            channel.close()


def test_what_no_write_has_touched_is_answered_while_the_disk_stands_still(tmp_path: Path) -> None:
    with world(tmp_path) as here:
        here.engine.goes.clear()
        reply = here.call("KV/Range", rpc.RangeRequest(key=b"old"))
        assert reply.kvs[0].value == b"v"
        revision = reply.header.revision
        assert here.call("Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=OLD)).grantedTTL == 600
        here.ask("put", "KV/Put", rpc.PutRequest(key=b"k", value=b"v"))
        # A renewal goes on being answered, and does not tell of the put.
        renewed = here.renew_old()
        assert (renewed.TTL, renewed.header.revision) == (600, revision)
        assert here.answered() == []
        here.engine.goes.set()
        assert here.result("put").header.revision == revision + 1
        assert here.renew_old().header.revision == revision + 1


def ask_over_grpc(here: World, revision: int) -> None:
    here.ask("put", "KV/Put", rpc.PutRequest(key=b"k", value=b"v"))
    here.ask("range", "KV/Range", rpc.RangeRequest(key=b"k"))
    here.ask("range of another key", "KV/Range", rpc.RangeRequest(key=b"old"))  # its header tells
    here.ask("grant", "Lease/LeaseGrant", rpc.LeaseGrantRequest(ID=NEW, TTL=600))
    here.ask("put on it", "KV/Put", rpc.PutRequest(key=b"leased", lease=NEW))
    here.ask("timetolive", "Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=NEW, keys=True))
    here.ask("leases", "Lease/LeaseLeases", rpc.LeaseLeasesRequest())
    here.ask("list of leases", "/lessorpb.Leases/List", leases_pb2.LeaseListRequest())
    here.ask("duplicate grant", "Lease/LeaseGrant", rpc.LeaseGrantRequest(ID=NEW, TTL=600))
    here.ask("revoke", "Lease/LeaseRevoke", rpc.LeaseRevokeRequest(ID=ENDED))
    here.ask("second revoke", "Lease/LeaseRevoke", rpc.LeaseRevokeRequest(ID=ENDED))
    here.ask("put on the ended", "KV/Put", rpc.PutRequest(key=b"x", lease=ENDED))
    here.ask("timetolive of the ended", "Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=ENDED))
    here.ask("compact", "KV/Compact", rpc.CompactionRequest(revision=revision))
    here.ask("compacted", "KV/Range", rpc.RangeRequest(key=b"old", revision=1))
    renewing = rpc.LeaseKeepAliveRequest
    here.ask_stream("keepalive", here.stream("Lease/LeaseKeepAlive"), renewing(ID=NEW))
    here.ask_stream("keepalive of the ended", here.stream("Lease/LeaseKeepAlive"), renewing(ID=ENDED))


def ask_over_json(here: World) -> None:
    here.ask_json("json put", "/v3/kv/put", {"key": "aw==", "value": "dg=="})
    here.ask_json("json range", "/v3/kv/range", {"key": "aw=="})
    here.ask_json("json grant", "/v3/lease/grant", {"ID": JSON_NEW, "TTL": 600})
    here.ask_json("json timetolive", "/v3/lease/timetolive", {"ID": JSON_NEW, "keys": True})
    here.ask_json("json duplicate grant", "/v3/lease/grant", {"ID": JSON_NEW, "TTL": 600})
    here.ask_json("json second revoke", "/v3/lease/revoke", {"ID": ENDED})
    here.ask_json("json keepalive", "/v3/lease/keepalive", {"ID": JSON_NEW})
    here.ask_json("json watch", "/v3/watch", {"create_request": {"key": "aw==", "start_revision": 1000}})


def test_nothing_tells_of_a_write_before_it_is_on_disk(tmp_path: Path) -> None:
    with world(tmp_path) as here:
        early, late = here.stream("Watch/Watch"), here.stream("Watch/Watch")
        early.send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k")))
        assert early.read().created
        of_leases = here.stream("/lessorpb.Leases/Watch")
        of_leases.send(leases_pb2.LeaseWatchRequest())
        of_leases.half_close()
        assert of_leases.read().created
        revision = here.renew_old().header.revision
        here.engine.goes.clear()
        answered = here.handled
        here.listen("event", early)
        here.listen("lease event", of_leases)
        ask_over_grpc(here, revision)
        history = rpc.WatchCreateRequest(key=b"k", start_revision=revision + 1)
        here.ask_stream("created", late, rpc.WatchRequest(create_request=history))
        ask_over_json(here)
        assert here.renew_old().header.revision == revision
        assert here.answered() == []
        assert here.handled == answered
        here.engine.goes.set()

        results = {name: here.result(name) for name in here.pending}
        assert results["put"].header.revision == revision + 1
        assert results["range"].kvs[0].mod_revision == revision + 1
        assert results["range of another key"].header.revision == revision + 1
        assert results["put on it"].header.revision == revision + 2
        assert list(results["timetolive"].keys) == [b"leased"]
        assert {lease.ID for lease in results["leases"].leases} == {OLD, ENDED, NEW}
        assert {lease.ID for lease in results["list of leases"].leases} == {OLD, ENDED, NEW}
        assert results["lease event"].events[0].ID == NEW
        assert results["duplicate grant"] == grpc.StatusCode.FAILED_PRECONDITION
        assert results["second revoke"] == results["put on the ended"] == grpc.StatusCode.NOT_FOUND
        assert results["timetolive of the ended"].TTL == -1
        assert results["compacted"] == grpc.StatusCode.OUT_OF_RANGE
        assert (results["keepalive"].TTL, results["keepalive of the ended"].TTL) == (600, 0)
        assert results["created"].created
        assert [event.kv.mod_revision for event in results["event"].events] == [revision + 1]
        assert late.read().events[0].kv.mod_revision == revision + 1
        replies = {name: here.json_result(name) for name in here.sockets}
        assert {name for name, reply in replies.items() if not reply.startswith("HTTP/1.1 200")} == {
            "json duplicate grant",
            "json second revoke",
        }
        assert "lease already exists" in replies["json duplicate grant"]

# SPDX-License-Identifier: Apache-2.0
"""Bugs of ours, made on purpose: on every kind of call the call that meets one is answered, and no other notices."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import bcrypt
import pytest
from google.protobuf.message import Message

from lessor.api.proto import election_pb2, leases_pb2, lock_pb2, mvcc_pb2, rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import Code
from lessor.gateway import json_codec
from lessor.server.loop import bugs
from lessor.server.services import elections, keepalive, snapshot, watch
from lessor.server.services.leases import LeaseWatch
from lessor.state.digest import KvDigest
from lessor.state.lease_list import LeaseList
from lessor.state.machine import StateMachine
from lessor.testing.server import InProcessServer
from tests.conformance.raw_h2 import RawH2, framed
from tests.in_process import in_process

pytestmark = pytest.mark.inside

KV = "/etcdserverpb.KV/"
LEASE = "/etcdserverpb.Lease/"
MAINTENANCE = "/etcdserverpb.Maintenance/"
WATCH = "/etcdserverpb.Watch/Watch"
OBSERVE = "/v3electionpb.Election/Observe"
LEASES = "/lessorpb.Leases/"
BUG = (Code.INTERNAL, bugs.TEXT)
CREATE = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"k"))
PUT = rpc_pb2.PutRequest(key=b"k")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    with in_process(tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.fixture
def raw(server: InProcessServer) -> Iterator[RawH2]:
    with RawH2(server.address) as connection:
        yield connection


def broken(*_arguments: Any, **_named: Any) -> Any:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("path", "request_", "owner", "name"),
    [
        (KV + "Put", PUT, StateMachine, "apply_in_pieces"),
        (MAINTENANCE + "HashKV", rpc_pb2.HashKVRequest(), KvDigest, "step"),
        (MAINTENANCE + "Hash", rpc_pb2.HashRequest(), KvDigest, "step"),
        (LEASES + "List", leases_pb2.LeaseListRequest(), LeaseList, "page"),
        ("/etcdserverpb.Auth/UserAdd", rpc_pb2.AuthUserAddRequest(name="u", password="p"), bcrypt, "hashpw"),
        (WATCH, CREATE, watch, "watch_range"),
        (WATCH, CREATE, watch.WatchStream, "deliver"),
        (LEASE + "LeaseKeepAlive", rpc_pb2.LeaseKeepAliveRequest(ID=1), keepalive, "_parse"),
        (OBSERVE, election_pb2.LeaderRequest(name=b"n"), elections, "prefix_of"),
        (MAINTENANCE + "Snapshot", rpc_pb2.SnapshotRequest(), snapshot, "etcd_copy"),
        (LEASES + "Watch", leases_pb2.LeaseWatchRequest(), LeaseWatch, "_begin"),
        (LEASES + "Watch", leases_pb2.LeaseWatchRequest(), LeaseWatch, "deliver"),
    ],
)
def test_who_meets_a_bug_is_told_and_the_next_call_is_served(
    raw: RawH2,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
    request_: Message,
    owner: Any,
    name: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        assert raw.call(path, framed(request_)).status == BUG
    (record,) = [record for record in caplog.records if record.message == "unexpected error"]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert "a bug" in str(record.exc_info[1])
    assert raw.call(KV + "Put", framed(PUT)).status == (0, "")


def test_a_bug_at_the_end_of_a_stream_s_requests_ends_it(raw: RawH2, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(keepalive.KeepAlive, "on_requests_end", broken)
        assert raw.call(LEASE + "LeaseKeepAlive").status == BUG
        patch.setattr(limits, "SNAPSHOTS_MAX", 0)  # and what is refused there is refused, not a bug
        outcome = raw.call("/v3/maintenance/snapshot", content_type="application/json")
        assert json.loads(outcome.data)["message"] == errors.TOO_MANY_REQUESTS.message
    assert raw.call(KV + "Put", framed(PUT)).status == (0, "")


def test_a_call_that_cannot_be_let_go_of_does_not_keep_others_from_it(
    server: InProcessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is lost, with a broken call on it and a watch behind that."""
    with RawH2(server.address) as lost:
        lost.open(LEASE + "LeaseKeepAlive", framed(rpc_pb2.LeaseKeepAliveRequest(ID=1)), end=False)
        lost.open(WATCH, framed(CREATE), end=False)
        lost.call(KV + "Put", framed(PUT))
        assert server.call(lambda: server.server.core.metrics.watchers) == 1
        monkeypatch.setattr(keepalive.KeepAlive, "on_over", broken)
    with RawH2(server.address) as another:
        while server.call(lambda: len(server.server._connections)) > 1:
            another.call(KV + "Put", framed(PUT))
    assert server.call(lambda: server.server.core.metrics.watchers) == 0


@pytest.mark.parametrize(
    ("path", "body", "owner", "name"),
    [
        ("/v3/kv/put", {"key": "aw=="}, StateMachine, "apply_in_pieces"),
        ("/v3/kv/put", {"key": "aw=="}, json_codec, "decode"),
        ("/v3/kv/put", {"key": "aw=="}, json_codec, "encode"),
        ("/v3/maintenance/hash", {}, KvDigest, "step"),
        ("/v3/watch", {"create_request": {"key": "aw=="}}, watch, "watch_range"),
        ("/v3/watch", {"create_request": {"key": "aw=="}}, json_codec, "decode"),
        ("/v3/maintenance/snapshot", {}, snapshot, "etcd_copy"),
    ],
)
def test_in_json_too(
    server: InProcessServer, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, owner: Any, name: str
) -> None:
    with RawH2(server.address) as raw:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            outcome = raw.call(path, json.dumps(body).encode(), content_type="application/json")
        assert outcome.blocks[0][":status"] == "500"
        assert json.loads(outcome.data)["message"] == bugs.TEXT
        outcome = raw.call("/v3/kv/put", b'{"key": "aw=="}', content_type="application/json")
        assert outcome.blocks[0][":status"] == "200"


def test_who_waits_for_a_lock_is_told_of_a_bug_and_who_let_it_go_is_not(
    raw: RawH2, server: InProcessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, unlock = "/v3lockpb.Lock/Lock", "/v3lockpb.Lock/Unlock"
    held = raw.call(lock, framed(lock_pb2.LockRequest(name=b"l")))
    waiting = raw.open(lock, framed(lock_pb2.LockRequest(name=b"l")))
    observing = raw.open(OBSERVE, framed(election_pb2.LeaderRequest(name=b"l")))
    raw.call(KV + "Put", framed(PUT))
    key = lock_pb2.LockResponse.FromString(held.data[5:]).key
    with monkeypatch.context() as patch:
        patch.setattr("lessor.server.services.waiting_lines.Claim._outcome", broken)
        patch.setattr(elections.Observe, "show", broken)
        unlocking = raw.open(unlock, framed(lock_pb2.UnlockRequest(key=key)))
        outcomes = raw.outcomes([waiting, unlocking, observing])
    assert outcomes[waiting].status == outcomes[observing].status == BUG
    assert outcomes[unlocking].status == (0, "")
    assert server.call(lambda: len(server.server.services.lines)) == 0


def test_a_line_that_cannot_be_kept_lets_all_go_who_wait_in_it(
    raw: RawH2, server: InProcessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = "/v3lockpb.Lock/Lock"
    held = raw.call(lock, framed(lock_pb2.LockRequest(name=b"m")))
    waiting = [raw.open(lock, framed(lock_pb2.LockRequest(name=b"m"))) for _ in range(2)]
    waiting.append(raw.open(OBSERVE, framed(election_pb2.LeaderRequest(name=b"m"))))
    raw.call(KV + "Put", framed(PUT))
    key = lock_pb2.LockResponse.FromString(held.data[5:]).key
    with monkeypatch.context() as patch:
        patch.setattr("lessor.server.services.waiting_lines.WaitingLine.on_changes", broken)
        unlocking = raw.open("/v3lockpb.Lock/Unlock", framed(lock_pb2.UnlockRequest(key=key)))
        outcomes = raw.outcomes([*waiting, unlocking])
    assert {outcomes[stream].status for stream in waiting} == {BUG}
    assert outcomes[unlocking].status == (0, "")
    assert server.call(lambda: len(server.server.services.lines)) == 0


def test_a_broken_watch_that_catches_up_is_ended_and_another_goes_on(
    raw: RawH2, server: InProcessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def history(stream: watch.WatchStream, watcher: Any) -> int:
        return int(broken() if watcher.key == b"broken" else sound(stream, watcher))

    sound = watch.WatchStream._send_history
    monkeypatch.setattr(watch.WatchStream, "_send_history", history)
    raw.call(KV + "Put", framed(PUT))
    with RawH2(server.address) as another:
        streams = []
        for connection, key in ((raw, b"broken"), (another, b"k"), (raw, b"broken")):
            create = rpc_pb2.WatchCreateRequest(key=key, start_revision=1)
            streams.append(connection.open(WATCH, framed(rpc_pb2.WatchRequest(create_request=create)), end=False))
        failed = raw.outcomes([streams[0], streams[2]])
        assert {outcome.status for outcome in failed.values()} == {BUG}
        event = mvcc_pb2.Event(kv=mvcc_pb2.KeyValue(key=b"k")).SerializeToString()[2:5]
        while (frame := another.read()) is not None and event not in frame.payload:
            pass
        assert frame is not None

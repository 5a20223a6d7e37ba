# SPDX-License-Identifier: Apache-2.0
"""A follower that is slow to apply records shows its clients what they have changed, as a member of an etcd does."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.durable.shared_record import BATCH, Entry
from lessor.testing.server import InProcessServer
from tests.conformance.grpc_peer import Failure, GrpcPeer
from tests.whole.test_followers import follower_of, leave_behind, two
from tests.whole.test_on_a_shared_log import eventually, put

COMPACTED = Failure(11, "etcdserver: mvcc: required revision has been compacted")


class Held:
    """A follower that applies no record of the leader's until `release`."""

    def __init__(self, follower: InProcessServer) -> None:
        hands: Any = follower.server._engine._hands  # type: ignore[attr-defined]
        self._free = threading.Event()
        self.waiting = threading.Event()
        took = hands._took

        def held(entry: Entry, own: bool) -> None:
            if entry.kind == BATCH:
                self.waiting.set()
                self._free.wait()
            took(entry, own)

        hands._took = held
        self.release = self._free.set


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls wait for as long as it takes."""
    for name in ("READ_OWN_WRITE_S_MAX", "READ_INDEX_S_MAX", "LINK_SILENT_S_MAX"):
        monkeypatch.setattr(limits, name, 1e9)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "change",
    [
        rpc.CompactionRequest(revision=2),
        rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, alarm=rpc.NOSPACE),
        rpc.AuthRoleAddRequest(name="r"),
        put(b"k", b"w"),
    ],
    ids=lambda change: type(change).__name__,
)
def test_a_change_is_answered_when_it_can_be_seen(tmp_path: Path, change: Message) -> None:
    with two(tmp_path) as (_leader, follower), GrpcPeer(follower.address) as peer, ThreadPoolExecutor(1) as thread:
        for value in (b"1", b"2"):
            peer.call(put(b"k", value))
        held = Held(follower)
        try:
            answer = thread.submit(peer.call, change)
            held.waiting.wait()
            home = follower_of(follower)
            if not isinstance(change, rpc.PutRequest):
                eventually(lambda: bool(follower.call(lambda: home._reads._due)))  # the leader has said how far
            assert not answer.done()
        finally:
            held.release()
        assert not isinstance(answer.result(), Failure)
        if isinstance(change, rpc.CompactionRequest):
            old = rpc.RangeRequest(key=b"k", revision=1, serializable=True)
            assert peer.call(old) == COMPACTED
        elif isinstance(change, rpc.AlarmRequest):
            status: Any = peer.call(rpc.StatusRequest())
            assert any("NOSPACE" in text for text in status.errors)
        elif isinstance(change, rpc.AuthRoleAddRequest):
            assert follower.call(lambda: "r" in follower.server.core.machine.auth.roles)
        else:
            found: Any = peer.call(rpc.RangeRequest(key=b"k", serializable=True))
            assert found.kvs[0].value == b"w"


@pytest.mark.parametrize("until", ["the batch does not come", "the link is lost"])
def test_it_is_answered_all_the_same_when_the_follower_stays_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: str
) -> None:
    with two(tmp_path) as (_leader, follower), GrpcPeer(follower.address) as peer:
        home = follower_of(follower)
        leave_behind(home, until, monkeypatch)
        assert not isinstance(peer.call(rpc.AuthRoleAddRequest(name="r")), Failure)
        assert follower.call(lambda: home._kept_bytes) == 0

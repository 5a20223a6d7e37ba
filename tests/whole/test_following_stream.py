# SPDX-License-Identifier: Apache-2.0
"""The stream on which a leader speaks to a server that follows."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from lessor.api.proto import following_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.durable.shared_record import BATCH, Entry
from lessor.server.services.followers import FollowStream
from tests.conformance.grpc_peer import GrpcPeer
from tests.whole.test_followers import two
from tests.whole.test_on_a_shared_log import eventually, put


def test_no_follower_is_asked_for_less_than_another_one_is_shown(tmp_path: Path) -> None:
    """The leader's loop hears of a batch last: meanwhile its followers may be told, and shown, that it has landed."""
    with two(tmp_path) as (leader, _follower), GrpcPeer(leader.address) as peer:
        engine: Any = leader.server._engine
        core, engine_took = leader.server.core, engine._hands._took
        found: list[tuple[Entry, int, following_pb2.FollowResponse]] = []

        def ask() -> following_pb2.FollowResponse:
            (stream,) = core.followers
            assert isinstance(stream, FollowStream)
            call, stream._call = stream._call, Mock(backlog_bytes=0)
            stream.on_messages([following_pb2.FollowRequest(question=1).SerializeToString()])
            ((sent,),) = stream._call.send.call_args.args
            stream._call = call
            return following_pb2.FollowResponse.FromString(sent)

        def took(entry: Entry, own: bool) -> None:
            engine_took(entry, own)
            if entry.kind == BATCH:
                found.append((entry, core.gate.durable, leader.call(ask)))

        engine._hands._took = took
        peer.call(put(b"k", b"the value"))
        ((entry, durable, answer),) = found
        assert durable < entry.record.rows.number
        assert answer.record == entry.number
        assert b"the value" in answer.records[-1]
        assert answer.batch == entry.record.rows.number


def test_a_stream_that_ends_alone_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINK_SILENT_S_MAX", 1e9)  # as if other calls went on
    with two(tmp_path) as (leader, follower), GrpcPeer(leader.address) as writer, GrpcPeer(follower.address) as reader:
        for value in (b"1", b"2", b"3"):
            (stream,) = leader.call(lambda: list(leader.server.core.followers))
            leader.call(lambda stream=stream: stream._call.finish(None))  # type: ignore[misc]
            # At the leader: of a write that the follower has passed on when its link ends, the outcome is unknown.
            writer.call(put(b"k", value))
            found: Any = reader.call(rpc.RangeRequest(key=b"k"))
            assert found.kvs[0].value == value
            eventually(lambda: bool(leader.call(lambda: leader.server.core.followers)))


def test_no_words_pile_up_for_a_follower_that_takes_none(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, _follower):
        stream: Any = leader.call(lambda: next(iter(leader.server.core.followers)))

        def told(backlog_bytes: int) -> bool:
            call, stream._call = stream._call, Mock(backlog_bytes=backlog_bytes)
            stream.tell()
            sent = stream._call.send.called
            stream._call = call
            return bool(sent)

        assert leader.call(lambda: told(limits.FOLLOWER_BACKLOG_BYTES_MAX))
        assert not leader.call(lambda: told(limits.FOLLOWER_BACKLOG_BYTES_MAX + 1))


def test_a_leader_that_hands_over_answers_questions_until_it_has_released(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as reader:
        core = leader.server.core
        before = leader.call(lambda: list(core.followers))
        leader.call(lambda: setattr(core, "elsewhere", Mock()))
        try:
            found: Any = reader.call(rpc.RangeRequest(key=b"k"))
            assert found.count == 0
            assert leader.call(lambda: list(core.followers)) == before
        finally:
            leader.call(lambda: setattr(core, "elsewhere", None))

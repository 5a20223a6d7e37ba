# SPDX-License-Identifier: Apache-2.0
"""RangeStream at a server that follows: answered there, and never with less than anybody was told before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.testing.server import InProcessServer
from tests.conformance.grpc_peer import CALL_S_MAX, Failure, GrpcPeer
from tests.conformance.subject import in_background
from tests.whole.test_followers import cut_off, follower_of, leads, two
from tests.whole.test_on_a_shared_log import eventually, put

STREAM = BY_PATH["/etcdserverpb.KV/RangeStream"]
ALL = rpc.RangeRequest(key=b"k", range_end=b"l")
OLD = rpc.RangeRequest(key=b"k", range_end=b"l", serializable=True)


def stream(peer: GrpcPeer, request: rpc.RangeRequest, **metadata: str) -> rpc.RangeResponse | Failure:
    """The chunks joined, or the error."""
    call = peer.channel.unary_stream(
        STREAM.path,
        request_serializer=rpc.RangeRequest.SerializeToString,
        response_deserializer=rpc.RangeStreamResponse.FromString,
    )
    reply = rpc.RangeResponse()
    try:
        for chunk in call(request, timeout=CALL_S_MAX, metadata=list(metadata.items())):
            reply.MergeFrom(chunk.range_response)
    except grpc.RpcError as error:
        status: Any = error
        return Failure(status.code().value[0], status.details())
    return reply


def streams(server: InProcessServer) -> int:
    """How many it has answered itself."""
    counts = server.server.core.metrics.handled
    return server.call(lambda: sum(n.n for (of, _code), n in counts.items() if of is STREAM))


def test_it_is_answered_there_and_shows_all_that_anybody_was_told(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, GrpcPeer(leader.address) as other:
        for number in range(100):
            written: Any = other.call(put(b"k%03d" % number, b"v"))
            found = stream(peer, ALL)
            assert isinstance(found, rpc.RangeResponse)
            assert (len(found.kvs), found.count) == (number + 1, number + 1)
            assert found.header.revision >= written.header.revision
            assert found.header.member_id != written.header.member_id
        assert stream(peer, ALL) == peer.call(ALL)
        assert streams(leader) == 0
        assert streams(follower) == 101


def test_an_old_one_needs_no_leader_and_others_wait_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, GrpcPeer(leader.address) as other:
        written: Any = other.call(put(b"k", b"v"))
        eventually(lambda: follower.call(lambda: follower_of(follower).has_applied(written.header.revision)))
        cut_off(follower)
        old = stream(peer, OLD)
        assert isinstance(old, rpc.RangeResponse)
        assert old.count == 1
        descending = rpc.RangeRequest(key=b"k", sort_order=rpc.RangeRequest.DESCEND)
        assert stream(peer, descending) == Failure(12, "RangeStream does not support custom sort orders")
        monkeypatch.setattr(limits, "NO_LEADER_S_MAX", 0.2)
        assert stream(peer, ALL) == Failure(14, "etcdserver: no leader")
        eventually(lambda: follower.call(lambda: follower_of(follower)._kept_bytes) == 0)


def test_one_whose_question_is_lost_asks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, GrpcPeer(leader.address) as other:
        other.call(put(b"k", b"v"))
        home = follower_of(follower)
        asked: list[int] = []
        ask: Callable[[int], None] = home.ask_how_far

        def ask_how_far(number: int) -> None:
            asked.append(number)
            if len(asked) <= 2:
                home._let_go()
            else:
                ask(number)

        monkeypatch.setattr(home, "ask_how_far", ask_how_far)
        found = stream(peer, ALL)
        assert isinstance(found, rpc.RangeResponse)
        assert found.count == 1
        assert len(asked) == 3
        assert streams(leader) == 0


def test_one_waits_for_its_batch_and_is_dropped_with_its_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, GrpcPeer(leader.address) as other:
        other.call(put(b"k", b"v"))
        home = follower_of(follower)
        answered = home._reads.answered
        monkeypatch.setattr(home._reads, "answered", lambda number, batch: answered(number, batch + 5))
        monkeypatch.setattr(limits, "READ_INDEX_S_MAX", 0.0)  # calls of Range are passed on at once
        asked: list[int] = []
        ask = home.ask_how_far

        def ask_how_far(number: int) -> None:
            asked.append(number)
            ask(number)

        monkeypatch.setattr(home, "ask_how_far", ask_how_far)
        found: list[Any] = []
        reading = in_background(lambda: found.append(stream(peer, ALL)))
        eventually(lambda: follower.call(lambda: bool(home._reads._due)))
        call = peer.channel.unary_stream(STREAM.path)(ALL.SerializeToString(), timeout=CALL_S_MAX)
        eventually(lambda: follower.call(lambda: len(home._streams)) == 2)
        call.cancel()
        eventually(lambda: follower.call(lambda: len(home._streams)) == 1)
        looks: list[bool] = []
        look = home._reads.pass_on_late

        def pass_on_late() -> None:
            looks.append(True)
            look()

        monkeypatch.setattr(home._reads, "pass_on_late", pass_on_late)
        eventually(lambda: len(looks) > 3)
        assert not found
        for number in range(8):
            other.call(put(b"k%d" % number, b"v"))
        reading.join(CALL_S_MAX)
        assert found[0].count > 1
        assert len(asked) == 2
        eventually(lambda: follower.call(lambda: (home._kept_bytes, len(home._streams))) == (0, 0))


def test_the_rights_of_a_caller_are_judged_there(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, GrpcPeer(leader.address) as other:
        for request in (
            put(b"k", b"v"),
            put(b"other", b"v"),
            rpc.AuthUserAddRequest(name="root", password="p"),
            rpc.AuthUserAddRequest(name="ada", password="p"),
            rpc.AuthRoleAddRequest(name="root"),
            rpc.AuthRoleAddRequest(name="reader"),
            rpc.AuthRoleGrantPermissionRequest(name="reader", perm={"key": b"k", "range_end": b"l"}),
            rpc.AuthUserGrantRoleRequest(user="root", role="root"),
            rpc.AuthUserGrantRoleRequest(user="ada", role="reader"),
            rpc.AuthEnableRequest(),
        ):
            other.call(request)
        token = other.call(rpc.AuthenticateRequest(name="ada", password="p")).token  # type: ignore[union-attr]
        for asked in (ALL, OLD):
            found = stream(peer, asked, token=token)
            assert isinstance(found, rpc.RangeResponse)
            assert found.count == 1
            other_key = rpc.RangeRequest(key=b"other", serializable=asked.serializable)
            assert stream(peer, other_key, token=token) == Failure(7, "etcdserver: permission denied")
            assert stream(peer, asked) == Failure(3, "etcdserver: user name is empty")
            assert stream(peer, asked, token="no token") == Failure(16, "etcdserver: invalid auth token")
        assert streams(leader) == 0


def test_a_stream_that_waits_is_answered_by_the_server_when_it_leads(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, GrpcPeer(leader.address) as other:
        other.call(put(b"k", b"v"))
        cut_off(follower)
        found: list[Any] = []
        reading = in_background(lambda: found.append(stream(peer, ALL)))
        eventually(lambda: follower.call(lambda: bool(follower_of(follower)._streams)))
        leader.kill()
        reading.join(CALL_S_MAX)
        assert found[0].count == 1
        assert leads(follower)

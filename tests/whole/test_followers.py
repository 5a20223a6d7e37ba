# SPDX-License-Identifier: Apache-2.0
"""A server that follows another one: it answers its own clients, and goes on when it has to lead."""

import base64
import contextlib
import json
import re
import socket
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from wsproto import events

from lessor.api.methods import BY_PATH
from lessor.api.proto import following_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.cluster.proof import proof, reader_answer
from lessor.durable.engine import FencedError
from lessor.replicated.engine import ReplicatedEngine
from lessor.server.following.follower import Follower
from lessor.testing.server import InProcessServer
from lessor.testing.virtual_clock import VirtualClock
from tests.conformance.grpc_peer import Failure, GrpcPeer
from tests.conformance.websocket_peer import WebSocketPeer
from tests.memory_log import MemoryLog, MemoryRecords
from tests.metrics_page import fresh
from tests.whole.test_on_a_shared_log import FAST, eventually, put

SNAPSHOT = BY_PATH["/etcdserverpb.Maintenance/Snapshot"]


def server_on(kept: MemoryRecords, data_dir: Path, *flags: str) -> InProcessServer:
    def engine(path: Path) -> ReplicatedEngine:
        return ReplicatedEngine(path, lambda: MemoryLog(kept), FAST, urls=(server.client_url,), sync=False)

    server = InProcessServer(*flags, clock=VirtualClock(flowing=True), data_dir=data_dir, make_engine=engine)
    return server


def leads(server: InProcessServer) -> bool:
    return bool(server.call(lambda: server.server.core.elsewhere is None))


def follower_of(server: InProcessServer) -> Follower:
    found = server.server.role.follower
    assert found is not None
    return found


def is_linked(server: InProcessServer) -> bool:
    return bool(server.call(lambda: follower_of(server)._ready is not None))


def cut_off(server: InProcessServer) -> None:
    """The follower has no link, and knows of no leader."""

    def cut() -> None:
        found = follower_of(server)
        found._leader = lambda: None
        assert found._link is not None
        found._link.close()

    server.call(cut)
    eventually(lambda: not is_linked(server))


@contextlib.contextmanager
def two(tmp_path: Path, *flags: str) -> Iterator[tuple[InProcessServer, InProcessServer]]:
    """A server that leads, and one that follows it."""
    kept = MemoryRecords()
    with server_on(kept, tmp_path / "a", *flags) as leader:
        eventually(lambda: leads(leader))
        with server_on(kept, tmp_path / "b", *flags) as follower:
            eventually(lambda: is_linked(follower))
            yield leader, follower


def test_a_follower_answers_as_the_leader_would(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, GrpcPeer(leader.address) as other:
        granted: Any = peer.call(rpc.LeaseGrantRequest(TTL=60, ID=7))
        written: Any = peer.call(put(b"k", b"v", 7))
        found: Any = other.call(rpc.RangeRequest(key=b"k"))
        assert (granted.TTL, found.kvs[0].value, found.kvs[0].mod_revision) == (60, b"v", written.header.revision)
        at_follower: Any = peer.call(rpc.RangeRequest(key=b"k"))
        assert at_follower.kvs == found.kvs
        renewed: Any = peer.call(rpc.LeaseKeepAliveRequest(ID=7))
        assert (renewed.ID, renewed.TTL) == (7, 60)
        left: Any = peer.call(rpc.LeaseTimeToLiveRequest(ID=7, keys=True))
        assert list(left.keys) == [b"k"]
        assert peer.call(rpc.LeaseRevokeRequest(ID=8)) == Failure(5, "etcdserver: requested lease not found")
        with urllib.request.urlopen(
            urllib.request.Request(f"{follower.client_url}/v3/kv/range", b'{"key":"aw=="}'), timeout=10
        ) as reply:
            assert json.load(reply)["kvs"][0]["value"] == "dg=="


def ranges(server: InProcessServer) -> int:
    """How many reads of keys it has answered itself."""
    counts = server.server.core.metrics.handled
    return server.call(lambda: sum(n.n for (of, _code), n in counts.items() if of.path == "/etcdserverpb.KV/Range"))


def test_a_follower_answers_reads_itself_and_never_with_less_than_anybody_was_told_before(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, GrpcPeer(leader.address) as other:
        before = ranges(leader)
        for number in range(200):
            written: Any = other.call(put(b"k", b"%d" % number))
            found: Any = peer.call(rpc.RangeRequest(key=b"k"))
            assert found.kvs[0].value == b"%d" % number
            assert found.header.revision >= written.header.revision
        assert ranges(leader) == before
        assert ranges(follower) >= 200


def leave_behind(home: Follower, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the follower never know that it is far enough."""
    if how == "the batch does not come":
        answered = home._reads.answered
        monkeypatch.setattr(home._reads, "answered", lambda number, batch: answered(number, batch + 1_000))
    else:
        monkeypatch.setattr(home, "ask_how_far", lambda number: home._let_go())


@pytest.mark.parametrize("until", ["the leader answers no question", "the batch does not come"])
def test_a_read_that_cannot_be_answered_at_the_follower_goes_to_the_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: str
) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer:
        peer.call(put(b"k", b"v"))
        home = follower_of(follower)
        leave_behind(home, until, monkeypatch)
        before = ranges(leader)
        found: Any = peer.call(rpc.RangeRequest(key=b"k"))
        assert found.kvs[0].value == b"v"
        assert ranges(leader) == before + 1
        assert follower.call(lambda: home._kept_bytes) == 0


def test_a_follower_counts_what_it_passes_on_and_is_not_ready_while_it_is_behind(tmp_path: Path) -> None:
    with two(tmp_path) as (_leader, follower), GrpcPeer(follower.address) as peer:

        def read() -> str:
            with urllib.request.urlopen(f"{follower.client_url}/metrics", timeout=10) as page:
                return str(page.read().decode())

        def value(name: str) -> float:
            found = re.search(rf"^{name} (\S+)$", fresh(read), re.MULTILINE)
            assert found is not None
            return float(found[1])

        before = value("lessor_passed_on_calls_total")
        peer.call(put(b"k", b"v"))
        assert value("lessor_passed_on_calls_total") == before + 1
        assert value("lessor_claims_total") == 0
        assert value("lessor_follower_lag_seconds") == 0
        home = follower_of(follower)
        follower.call(lambda: home._lag.named(1_000_000, home.now_s()))  # a batch that does not come
        eventually(lambda: value("lessor_follower_lag_seconds") > limits.FOLLOWER_LAG_S_MAX)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{follower.client_url}/readyz", timeout=10)
        assert value("etcd_server_has_leader") == 1


def test_a_follower_says_who_leads(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, GrpcPeer(leader.address) as other:
        here: Any = peer.call(rpc.StatusRequest())
        there: Any = other.call(rpc.StatusRequest())
        assert here.leader == there.leader == there.header.member_id != here.header.member_id
        assert here.header.cluster_id == there.header.cluster_id
        eventually(lambda: peer.call(rpc.StatusRequest()).header.raft_term == there.header.raft_term)  # type: ignore[union-attr]
        assert not here.errors
        with urllib.request.urlopen(f"{follower.client_url}/readyz", timeout=10) as page:
            assert page.read() == b"ok\n"


def leadership(server: InProcessServer) -> dict[str, float]:
    """What /metrics says of it."""

    def read() -> str:
        with urllib.request.urlopen(f"{server.client_url}/metrics", timeout=10) as page:
            return str(page.read().decode())

    found = re.findall(
        r"^etcd_server_(has_leader|is_leader|leader_changes_seen_total) (\S+)$", fresh(read), re.MULTILINE
    )
    return {name: float(value) for name, value in found}


def test_the_metrics_say_who_leads_and_whether_the_leader_can_be_reached(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower):
        assert leadership(leader) == {"has_leader": 1, "is_leader": 1, "leader_changes_seen_total": 1}
        follower.call(lambda: setattr(follower.server.core.metrics, "leader_changes", 3))
        assert leadership(follower) == {"has_leader": 1, "is_leader": 0, "leader_changes_seen_total": 3}
        cut_off(follower)
        now = leadership(follower)
        assert (now["has_leader"], now["is_leader"]) == (0, 0)
        leader.kill()
        eventually(lambda: leads(follower))
        now = leadership(follower)
        assert (now["has_leader"], now["is_leader"]) == (1, 1)


def test_a_follower_shows_what_the_leader_has_written_to_watchers_and_in_old_reads(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, GrpcPeer(leader.address) as other:
        stream = peer.watch(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k", range_end=b"l")))
        assert next(stream).created
        for number in range(5):
            other.call(put(b"k%d" % number, b"v"))
        seen: list[bytes] = []
        while len(seen) < 5:
            seen += [event.kv.key for event in next(stream).events]
        assert seen == [b"k%d" % number for number in range(5)]
        old: Any = peer.call(rpc.RangeRequest(key=b"k", range_end=b"l", serializable=True))
        assert [kv.key for kv in old.kvs] == seen
        assert old.header.member_id == follower.call(lambda: follower.server.core.machine.identity.member_id)
        digest_here: Any = peer.call(rpc.HashKVRequest())
        digest_there: Any = other.call(rpc.HashKVRequest())
        assert digest_here.hash == digest_there.hash


def test_calls_at_a_follower_wait_for_the_next_leader_which_is_itself(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, ThreadPoolExecutor(3) as threads:
        peer.call(rpc.LeaseGrantRequest(TTL=60, ID=7))
        peer.call(put(b"k", b"1", 7))
        stream = peer.watch(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k")))
        assert next(stream).created
        leader.kill()
        eventually(lambda: not is_linked(follower))
        asked: list[Future[Any]] = [
            threads.submit(peer.call, put(b"k", b"2", 7)),
            threads.submit(peer.call, rpc.LeaseKeepAliveRequest(ID=7)),
            threads.submit(peer.call, rpc.LeaseLeasesRequest()),
        ]
        written, renewed, leases = (call.result(20) for call in asked)
        assert leads(follower)
        assert renewed.TTL == 60
        assert [each.ID for each in leases.leases] == [7]
        values: list[bytes] = []
        while not values or values[-1] != b"2":
            values += [event.kv.value for event in next(stream).events]
        found: Any = peer.call(rpc.RangeRequest(key=b"k"))
        assert (found.kvs[0].value, found.kvs[0].mod_revision) == (b"2", written.header.revision)
        assert leader.server.core.machine.identity.term < found.header.raft_term


def test_after_an_orderly_end_the_follower_leads_and_no_call_at_it_fails(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer:
        ended = threading.Event()
        written: list[int] = []

        def write() -> None:
            while not ended.is_set():
                reply: Any = peer.call(put(b"k", b"%d" % len(written)))
                written.append(reply.header.revision)

        with ThreadPoolExecutor(1) as threads:
            writing = threads.submit(write)
            eventually(lambda: len(written) > 20)
            leader.stop()
            eventually(lambda: leads(follower))
            enough = len(written) + 20
            eventually(lambda: len(written) > enough or writing.done())
            ended.set()
            writing.result(20)
        assert written == list(range(written[0], written[0] + len(written)))  # each took effect once


def test_without_a_leader_a_call_waits_and_is_refused_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "NO_LEADER_S_MAX", 0.3)
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer:
        peer.call(put(b"k", b"v"))
        cut_off(follower)
        with pytest.raises(grpc.RpcError, match="etcdserver: no leader"):
            peer.call(put(b"k", b"w"))
        with pytest.raises(grpc.RpcError, match="etcdserver: no leader"):
            peer.call(rpc.LeaseKeepAliveRequest(ID=7))
        old: Any = peer.call(rpc.RangeRequest(key=b"k", serializable=True))
        assert old.kvs[0].value == b"v"
        status: Any = peer.call(rpc.StatusRequest())
        assert (status.leader, list(status.errors)) == (0, ["etcdserver: no leader"])
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{follower.client_url}/readyz", timeout=10)
        assert leads(leader)


def test_rights_are_judged_where_the_token_is_known(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower):
        leader._enable_auth("secret")
        eventually(lambda: follower.call(lambda: follower.server.core.auth.enabled))
        for server in (leader, follower):
            with GrpcPeer(server.address) as stranger:
                refused = Failure(3, "etcdserver: user name is empty")
                assert stranger.call(rpc.RangeRequest(key=b"k", serializable=True)) == refused
                assert stranger.call(put(b"k", b"v")) == refused
                assert stranger.call(rpc.HashKVRequest()) == refused
                with pytest.raises(grpc.RpcError) as error:
                    list(stranger.channel.unary_stream("/etcdserverpb.Maintenance/Snapshot")(b"", timeout=10))
                assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        from lessor.client import Client

        with Client(follower.address, user="root", password="secret") as client:
            client.put("k", "v")
            assert client.get("k").kvs[0].value == b"v"
            revision = client.put("k", "w").header.revision
            with client.watch("k", start_revision=revision) as responses:
                assert [event.kv.value for event in next(iter(responses)).events] == [b"w"]


def test_a_renewal_whose_answer_is_old_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer:
        peer.call(rpc.LeaseGrantRequest(TTL=60, ID=7))
        clock = [100.0]
        found = follower_of(follower)
        follower.call(lambda: setattr(found, "now_s", lambda: clock[0]))
        renewed = leader.call(lambda: leader.server.core.metrics.renewed)

        def answered_late() -> None:  # the leader has renewed the lease, and the answer is on its way for long
            eventually(lambda: leader.call(lambda: leader.server.core.metrics.renewed) == renewed + 1)

        link = follower.call(lambda: found._ready)
        assert link is not None
        received = link.data_received

        def late(data: bytes) -> None:
            answered_late()
            clock[0] += 1.0
            link.data_received = received  # type: ignore[method-assign]
            received(data)

        follower.call(lambda: setattr(link, "data_received", late))
        reply: Any = peer.call(rpc.LeaseKeepAliveRequest(ID=7))
        assert (reply.ID, reply.TTL) == (7, 60)
        assert leader.call(lambda: leader.server.core.metrics.renewed) == renewed + 2


def test_members_are_those_who_are_there(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(leader.address) as peer, GrpcPeer(follower.address) as other:

        def members(asked: GrpcPeer) -> set[str]:
            listed = asked.channel.unary_unary(
                "/etcdserverpb.Cluster/MemberList", None, rpc.MemberListResponse.FromString
            )(b"", timeout=10)
            return {member.clientURLs[0] for member in listed.members}

        eventually(lambda: members(peer) == {leader.client_url, follower.client_url})
        assert members(other) == members(peer)
        follower.kill()
        eventually(lambda: members(peer) == {leader.client_url})


def test_nobody_follows_who_cannot_read_the_log(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, _follower), GrpcPeer(leader.address) as peer:
        asked = following_pb2.FollowRequest(member_id=7, name="n7", client_urls=["http://evil:1"], proof=bytes(32))
        with pytest.raises(grpc.RpcError, match="no proof of access to the log"):
            list(
                peer.channel.unary_stream("/lessorpb.Following/Follow", None, following_pb2.FollowResponse.FromString)(
                    asked.SerializeToString(), timeout=10
                )
            )
        assert all(member.member_id != 7 for member in leader.call(lambda: list(leader.server.core.followers.values())))


def test_records_are_shown_only_to_those_who_answer_the_challenge(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, _follower), GrpcPeer(leader.address) as peer:
        end = leader.call(lambda: leader.server.core.log_end())
        assert end is not None
        follow = peer.channel.stream_stream(
            "/lessorpb.Following/Follow",
            following_pb2.FollowRequest.SerializeToString,
            following_pb2.FollowResponse.FromString,
        )
        asked = following_pb2.FollowRequest(member_id=7, name="n7", nonce=b"n" * 16, challenge=b"c")
        asked.proof = proof(end.nonce, asked.nonce, 7, "n7", ())

        def following(nonce: bytes | None) -> Iterator[following_pb2.FollowResponse]:
            """Responses to one who answers with that nonce; None: it has only what another one has sent before."""
            requests: SimpleQueue[following_pb2.FollowRequest] = SimpleQueue()
            requests.put(asked)
            responses = follow(iter(requests.get, None), timeout=10)
            first = next(responses)
            if nonce is not None:
                requests.put(following_pb2.FollowRequest(answer=reader_answer(nonce, first.challenge)))
            yield from responses

        def shown(responses: Iterator[following_pb2.FollowResponse]) -> list[bytes]:
            """In the responses up to that to the last of three puts."""
            next(responses)
            for _ in range(3):
                peer.call(put(b"k", b"the value"))
            last = leader.call(lambda: leader.server.core.log_end())
            assert last is not None
            found: list[bytes] = []
            for response in responses:
                found += response.records
                if response.record >= last.record:
                    break
            return found

        with pytest.raises(grpc.RpcError, match="no proof of access to the log"):
            list(following(b"x" * 16))
        assert shown(following(None)) == []
        records = shown(following(end.nonce))
        assert sum(b"the value" in record for record in records) >= 2  # the first may land before the answer is read
        assert all(end.nonce not in record for record in records)


def revision_of(server: InProcessServer) -> int:
    return int(server.call(lambda: server.server.core.machine.revision))


def link_of(server: InProcessServer) -> Any:
    found = server.call(lambda: follower_of(server)._ready)
    assert found is not None
    return found


def test_a_write_is_found_in_the_log_when_its_answer_does_not_come(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer:
        link = link_of(follower)
        before = revision_of(leader)
        follower.call(lambda: setattr(link, "data_received", lambda data: None))
        granted: Any = peer.call(rpc.LeaseGrantRequest(TTL=60))
        written: Any = peer.call(put(b"k", b"v", granted.ID))
        assert written.header.revision == before + 1 == revision_of(leader)
        left: Any = peer.call(rpc.RangeRequest(key=b"k", serializable=True))  # the answer came behind the record
        assert left.kvs[0].lease == granted.ID


@pytest.mark.parametrize("lost", ["the request", "the answer"])
def test_a_write_under_way_when_the_leader_dies_takes_effect_once(tmp_path: Path, lost: str) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, ThreadPoolExecutor(1) as threads:
        peer.call(put(b"before", b"v"))
        link, before = link_of(follower), revision_of(leader)
        if lost == "the request":
            follower.call(lambda: setattr(link, "_flush", lambda: None))
        else:
            follower.call(lambda: setattr(link, "data_received", lambda data: None))
            follower.call(lambda: setattr(follower.server._committer, "_give_look", lambda: None))  # nor the record yet
        writing = threads.submit(peer.call, put(b"k", b"v"))
        eventually(lambda: bool(follower.call(lambda: follower_of(follower)._named)))
        if lost == "the answer":
            eventually(lambda: revision_of(leader) == before + 1)
            time.sleep(0.05)  # in the log, too
        leader.kill()
        if lost == "the answer":
            follower.call(lambda: delattr(follower.server._committer, "_give_look"))
            follower.call(lambda: follower.server._committer._give_look())
        written: Any = writing.result(20)
        assert leads(follower)
        found: Any = peer.call(rpc.RangeRequest(key=b"k"))
        assert (found.kvs[0].version, found.kvs[0].mod_revision) == (1, before + 1)
        assert written.header.revision == before + 1


def large_put() -> rpc.TxnRequest:
    """Puts a key, and reads more than the log keeps of a reply."""
    return rpc.TxnRequest(
        success=[
            rpc.RequestOp(request_put=put(b"k", b"v")),
            rpc.RequestOp(request_range=rpc.RangeRequest(key=b"large")),
        ]
    )


def long_put() -> rpc.TxnRequest:
    """Puts a key, and deletes so many others that it takes several steps."""
    return rpc.TxnRequest(
        success=[
            rpc.RequestOp(request_put=put(b"k", b"v")),
            rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"many/", range_end=b"many0")),
        ]
    )


@pytest.mark.parametrize("write", [large_put, long_put])
def test_a_write_whose_reply_the_log_does_not_have_takes_effect_once_too(
    tmp_path: Path, write: Callable[[], rpc.TxnRequest]
) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, ThreadPoolExecutor(1) as threads:
        peer.call(put(b"large", bytes(limits.ORIGIN_REPLY_BYTES_MAX)))
        keys = [b"many/%04d" % number for number in range(limits.WRITE_STEP_KEYS + 100)]
        for first in range(0, len(keys), 100):
            puts = [rpc.RequestOp(request_put=put(key, b"v")) for key in keys[first : first + 100]]
            peer.call(rpc.TxnRequest(success=puts))
        link, before = link_of(follower), revision_of(leader)
        eventually(lambda: revision_of(follower) == before)
        follower.call(lambda: setattr(link, "data_received", lambda data: None))
        writing = threads.submit(peer.call, write())
        eventually(lambda: revision_of(leader) == before + 1 == revision_of(follower))
        leader.kill()
        with pytest.raises(grpc.RpcError, match="request timed out, possibly due to previous leader failure"):
            writing.result(20)
        eventually(lambda: leads(follower))
        found: Any = peer.call(rpc.RangeRequest(key=b"k"))
        assert (found.kvs[0].version, found.kvs[0].mod_revision) == (1, before + 1)
        assert revision_of(follower) == before + 1


def test_a_call_that_was_passed_on_for_another_epoch_does_nothing(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(leader.address) as peer, GrpcPeer(follower.address) as other:
        before = revision_of(leader)
        epoch = leader.call(lambda: leader.server.core.machine.identity.term)
        # The last one is for the right epoch, and of a process that has not shown that it follows.
        for asked, named in ((peer, epoch + 1), (peer, epoch - 1), (other, epoch), (peer, epoch)):
            write = asked.channel.unary_unary("/etcdserverpb.KV/Put", None, rpc.PutResponse.FromString)
            header = (("lessor-forwarded", f"{'0' * 32}:1:{named}"),)
            with pytest.raises(grpc.RpcError, match="etcdserver: leader changed"):
                write(put(b"k", b"v").SerializeToString(), timeout=10, metadata=header)
        write = peer.channel.unary_unary("/etcdserverpb.KV/Put")
        with pytest.raises(grpc.RpcError, match="malformed header"):
            write(put(b"k", b"v").SerializeToString(), timeout=10, metadata=(("lessor-forwarded", "me"),))
        assert revision_of(leader) == before


# --- snapshots, digests and streams, in both protocols ----------------------------------------------------------------


def posted(server: InProcessServer, path: str, asked: Any, headers: dict[str, str] | None = None) -> Any:
    """The answers to one JSON request, line by line as they come."""
    request = urllib.request.Request(f"{server.client_url}{path}", json.dumps(asked).encode(), headers or {})
    with urllib.request.urlopen(request, timeout=20) as reply:
        for line in reply:
            yield json.loads(line)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_digests_at_a_follower_are_those_of_the_leader_in_both_protocols(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(leader.address) as other, GrpcPeer(follower.address) as peer:
        for number in range(20):
            written: Any = other.call(put(b"k%d" % (number % 7), b"%d" % number))
        other.call(rpc.CompactionRequest(revision=written.header.revision - 5))
        eventually(lambda: bool(follower.call(lambda: follower.server.core.machine.compact_revision > 0)))
        revision = written.header.revision
        for request in (rpc.HashKVRequest(), rpc.HashKVRequest(revision=revision - 2), rpc.HashRequest()):
            here: Any = peer.call(request)
            there: Any = other.call(request)
            assert here.hash == there.hash != 0
            assert here.header.member_id != there.header.member_id  # each its own
            path = "/v3/maintenance/" + ("hash" if isinstance(request, rpc.HashRequest) else "hashkv")
            asked = {"revision": request.revision} if isinstance(request, rpc.HashKVRequest) else {}
            (in_json,) = posted(follower, path, asked)
            assert in_json["hash"] == here.hash
        assert peer.call(rpc.HashKVRequest(revision=1)) == other.call(rpc.HashKVRequest(revision=1))  # compacted


def watched(revision: int) -> Any:
    return {"create_request": {"key": base64_of(b"k"), "range_end": base64_of(b"l"), "start_revision": revision}}


def test_watches_at_a_follower_over_json(tmp_path: Path) -> None:
    with two(tmp_path) as (_leader, follower), GrpcPeer(follower.address) as peer:
        first: Any = peer.call(put(b"k1", b"v"))
        stream = posted(follower, "/v3/watch", watched(first.header.revision))
        assert next(stream)["result"]["created"]
        assert next(stream)["result"]["events"][0]["kv"]["key"] == base64_of(b"k1")
        second: Any = peer.call(put(b"k2", b"v"))
        (event,) = next(stream)["result"]["events"]
        assert (event["kv"]["key"], event["kv"]["mod_revision"]) == (base64_of(b"k2"), str(second.header.revision))
        stream.close()


def test_keepalives_at_a_follower_over_json_are_answered_in_their_order(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer:
        peer.call(rpc.LeaseGrantRequest(TTL=60, ID=7))
        request = urllib.request.Request(f"{follower.client_url}/v3/lease/keepalive", b'{"ID":7}{"ID":8}{"ID":"7"}')
        with urllib.request.urlopen(request, timeout=20) as reply:
            results = [json.loads(line)["result"] for line in reply]
        assert [(result["ID"], result.get("TTL")) for result in results] == [("7", "60"), ("8", None), ("7", "60")]
        assert leader.call(lambda: leader.server.core.metrics.renewed) == 3


def test_a_websocket_at_a_follower(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer:
        peer.call(rpc.LeaseGrantRequest(TTL=60, ID=7))
        address = follower.address
        with WebSocketPeer(address, "/v3/watch") as watch, WebSocketPeer(address, "/v3/lease/keepalive") as keepalive:
            assert isinstance(watch.opened, events.AcceptConnection)
            assert isinstance(keepalive.opened, events.AcceptConnection)
            watch.send(json.dumps(watched(0)))
            assert watch.result()["created"]
            for _ in range(3):
                keepalive.send('{"ID":7}')
                assert keepalive.result()["TTL"] == "60"
            peer.call(put(b"k1", b"v", 7))
            (event,) = watch.result()["events"]
            assert (event["kv"]["key"], event["kv"]["lease"]) == (base64_of(b"k1"), "7")
            leader.kill()  # both outlive it
            keepalive.send('{"ID":7}')
            assert keepalive.result()["TTL"] == "60"
            assert leads(follower)
            peer.call(put(b"k2", b"v"))
            (event,) = watch.result()["events"]
            assert event["kv"]["key"] == base64_of(b"k2")


def test_a_compaction_below_a_long_read_at_a_follower_holds_nothing_up(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(leader.address) as peer, GrpcPeer(follower.address) as other:
        for _ in range(5):
            written: Any = peer.call(put(b"k", b"v"))
        revision = written.header.revision
        eventually(lambda: revision_of(follower) == revision)
        store = follower.server.core.machine.store
        follower.call(lambda: store.pin(revision - 3))  # as a read that is made in steps does
        peer.call(rpc.CompactionRequest(revision=revision))
        eventually(lambda: bool(follower.call(lambda: store.compact_revision == revision)))
        old: Any = other.call(rpc.RangeRequest(key=b"k", serializable=True))
        assert old.kvs[0].version == 5
        assert follower.call(lambda: store.unswept)
        follower.call(lambda: store.unpin(revision - 3))
        eventually(lambda: not follower.call(lambda: store.unswept))


def rows_on_disk(data_dir: Path) -> int:
    with contextlib.closing(sqlite3.connect(data_dir / "lessor.db")) as tables:
        return int(tables.execute("SELECT count(*) FROM event").fetchone()[0])


def test_a_follower_deletes_what_compactions_leave_and_keeps_no_list_of_it(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(leader.address) as peer:
        for _ in range(20):
            written: Any = peer.call(put(b"k", b"v"))
        eventually(lambda: revision_of(follower) == written.header.revision)
        eventually(lambda: rows_on_disk(tmp_path / "b") == 20)
        peer.call(rpc.CompactionRequest(revision=written.header.revision))
        eventually(lambda: rows_on_disk(tmp_path / "b") == 1)
        assert not follower.call(lambda: follower.server.core.machine.journal.names_dead)
        leader.kill()
        eventually(lambda: leads(follower))
        with GrpcPeer(follower.address) as other:
            found: Any = other.call(rpc.RangeRequest(key=b"k"))
        assert found.kvs[0].version == 20


def test_a_malformed_request_in_a_json_stream_is_answered_behind_the_others_as_at_the_leader(tmp_path: Path) -> None:
    def answers(server: InProcessServer) -> list[tuple[str, Any]]:
        request = urllib.request.Request(f"{server.client_url}/v3/lease/keepalive", b'{"ID":7}{"ID":')
        with urllib.request.urlopen(request, timeout=20) as reply:
            lines = [json.loads(line) for line in reply]
        return [("ID", line["result"]["ID"]) if "result" in line else ("error", line["error"]) for line in lines]

    with two(tmp_path) as (leader, follower):
        found = answers(follower)
        assert [kind for kind, _ in found] == ["ID", "error"]
        assert found == answers(leader)


def test_sockets_that_no_other_server_of_the_process_takes_are_closed(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower):
        port = leader.address.rpartition(":")[2]
        leader.call(lambda: leader.server._stop_unanswered(FencedError("another process has taken over the log")))
        eventually(lambda: leads(follower) and not leader.running)
        assert leader.server.remains.sockets.open == {}
        with socket.create_server(("127.0.0.1", int(port))):
            pass  # the address is free

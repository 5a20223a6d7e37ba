# SPDX-License-Identifier: Apache-2.0
"""Maintenance and Cluster of a server that stands alone - Lessor and a real etcd - and what alarms stop.

The tests share a server of their own: alarms, compactions and defragmentation would disturb others.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.grpc_peer import Failure
from tests.conformance.subject import RUNNERS, Subject, running

CLUSTER = "etcdserverpb.Cluster/"
MAINTENANCE = "etcdserverpb.Maintenance/"
CORRUPT = Failure(15, "etcdserver: corrupt cluster")
NO_SPACE = Failure(8, "etcdserver: mvcc: database space exceeded")
COMPACTED = Failure(11, "etcdserver: mvcc: required revision has been compacted")
FUTURE = Failure(11, "etcdserver: mvcc: required revision is a future revision")
NOT_FOUND = Failure(5, "etcdserver: member not found")
URLS_INVALID = Failure(3, "etcdserver: given member URLs are invalid")
NOT_ENOUGH = Failure(2, "etcdserver: re-configuration failed due to not enough started members")


@pytest.fixture(scope="module", params=RUNNERS)
def alone(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with running(request.param) as server:
        server.put(b"seed")
        yield server


@pytest.fixture
def undisturbed(alone: Subject) -> Iterator[Subject]:
    """The server, whose alarms are taken back afterwards."""
    yield alone
    for alarm in alone.do(rpc.AlarmRequest()).alarms:
        set_alarm(alone, alarm.alarm, member_id=alarm.memberID, active=False)


def ask(subject: Subject, name: str, request: Any) -> Any:
    """The reply, or the failure, of a method by its name."""
    try:
        return subject.stub(name)(request, timeout=20)
    except grpc.RpcError as error:
        status: Any = error
        return Failure(status.code().value[0], status.details())


def me(subject: Subject) -> int:
    return int(ask(subject, CLUSTER + "MemberList", rpc.MemberListRequest()).header.member_id)


def set_alarm(subject: Subject, kind: int, member_id: int | None = None, active: bool = True) -> Any:
    action = rpc.AlarmRequest.ACTIVATE if active else rpc.AlarmRequest.DEACTIVATE
    member = me(subject) if member_id is None else member_id
    return subject.do(rpc.AlarmRequest(action=action, memberID=member, alarm=kind))  # type: ignore[arg-type]


def release(subject: Subject) -> str:
    """The server's release, "3.6" of Lessor; its storage version is that with ".0" (3.5 reports none)."""
    return "3.7" if subject.like(3, 7) else "3.6" if subject.like(3, 6) else "3.5"


def alarms(reply: Any) -> list[tuple[int, int]]:
    return sorted((alarm.memberID, alarm.alarm) for alarm in reply.alarms)


# --- status -----------------------------------------------------------------------------------------------------------


def test_status(alone: Subject) -> None:
    reply = ask(alone, MAINTENANCE + "Status", rpc.StatusRequest())
    assert reply.leader == reply.header.member_id == me(alone)
    assert reply.header.revision == alone.revision
    assert reply.raftTerm == reply.header.raft_term >= 2
    assert reply.raftIndex >= reply.raftAppliedIndex > 0
    assert 0 < reply.dbSizeInUse <= reply.dbSize
    assert list(reply.errors) == []
    assert not reply.isLearner
    if alone.like(3, 6):
        assert (reply.storageVersion, reply.dbSizeQuota) == (f"{release(alone)}.0", 2 * 1024**3)
        assert reply.HasField("downgradeInfo")


def eventually(subject: Subject, condition: Callable[[Any], bool]) -> Any:
    """The first Status that fulfils the condition: both servers measure their files a moment after they answered."""
    give_up = time.monotonic() + 10
    while True:
        reply = ask(subject, MAINTENANCE + "Status", rpc.StatusRequest())
        if condition(reply):
            return reply
        assert time.monotonic() < give_up, reply
        time.sleep(0.02)  # waiting for another process, not for a clock


def test_status_follows_the_data(alone: Subject) -> None:
    before = ask(alone, MAINTENANCE + "Status", rpc.StatusRequest())
    for index in range(30):
        alone.put(b"big%d" % index, b"x" * 200_000)
    grown = eventually(alone, lambda status: status.dbSize > before.dbSize + 4_000_000)
    assert grown.raftIndex > before.raftIndex
    alone.compact(alone.delete(b"big", b"bih"))

    def shrunk(status: Any) -> bool:
        ask(alone, MAINTENANCE + "Defragment", rpc.DefragmentRequest())
        return bool(status.dbSize < 2_000_000 and status.dbSizeInUse < 2_000_000)

    eventually(alone, shrunk)


# --- alarms -----------------------------------------------------------------------------------------------------------


def test_alarms_are_raised_listed_and_taken_back(undisturbed: Subject) -> None:
    member = me(undisturbed)
    assert alarms(set_alarm(undisturbed, rpc.NOSPACE)) == [(member, 1)]
    assert alarms(set_alarm(undisturbed, rpc.NOSPACE)) == [(member, 1)]
    set_alarm(undisturbed, rpc.CORRUPT, member_id=77)
    assert alarms(undisturbed.do(rpc.AlarmRequest())) == sorted([(member, 1), (77, 2)])
    assert alarms(undisturbed.do(rpc.AlarmRequest(alarm=rpc.CORRUPT))) == [(77, 2)]
    status = ask(undisturbed, MAINTENANCE + "Status", rpc.StatusRequest())
    errors = {" ".join(error.split()) for error in status.errors}  # some builds of etcd put one space more
    assert errors == {f"memberID:{member} alarm:NOSPACE", "memberID:77 alarm:CORRUPT"}
    # It takes the exact member; there is no way to mean all.
    assert alarms(set_alarm(undisturbed, rpc.NOSPACE, member_id=0, active=False)) == []
    assert alarms(set_alarm(undisturbed, rpc.NOSPACE, active=False)) == [(member, 1)]
    assert alarms(undisturbed.do(rpc.AlarmRequest())) == [(77, 2)]


@pytest.mark.parametrize(("kind", "refusal"), [(rpc.CORRUPT, CORRUPT), (rpc.NOSPACE, NO_SPACE)])
def test_what_an_alarm_stops(undisturbed: Subject, kind: int, refusal: Failure) -> None:
    lease_id = undisturbed.grant()
    undisturbed.put(b"kept", lease=lease_id)
    revision = undisturbed.put(b"other")
    set_alarm(undisturbed, kind)
    put = rpc.RequestOp(request_put=rpc.PutRequest(key=b"x"))
    growing: tuple[Message, ...] = (
        rpc.PutRequest(key=b"x"),
        rpc.PutRequest(key=b"x", lease=99),
        rpc.TxnRequest(failure=[put]),
        rpc.LeaseGrantRequest(TTL=10),
        rpc.LeaseGrantRequest(TTL=2**62),
    )
    for request in growing:
        assert undisturbed.call(request) == refusal, request
    assert undisturbed.call(rpc.PutRequest()) == Failure(3, "etcdserver: key is not provided")
    shrinking: tuple[Message, ...] = (
        rpc.DeleteRangeRequest(key=b"other"),
        rpc.TxnRequest(success=[rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"other"))]),
        rpc.CompactionRequest(revision=revision),
        rpc.LeaseRevokeRequest(ID=lease_id),
    )
    reading: tuple[Message, ...] = (
        rpc.RangeRequest(key=b"kept"),
        rpc.TxnRequest(success=[rpc.RequestOp(request_range=rpc.RangeRequest(key=b"kept"))]),
        rpc.TxnRequest(),
        rpc.LeaseKeepAliveRequest(ID=lease_id),
        rpc.LeaseTimeToLiveRequest(ID=lease_id),
        rpc.LeaseLeasesRequest(),
    )
    for request in reading:
        assert not isinstance(undisturbed.call(request), Failure), request
    for request in shrinking:
        reply = undisturbed.call(request)
        assert reply == CORRUPT if kind == rpc.CORRUPT else not isinstance(reply, Failure), request


# --- digests ----------------------------------------------------------------------------------------------------------


def test_hashkv(alone: Subject) -> None:
    if not alone.like(3, 6):
        pytest.skip("3.5 has no hash_revision")
    first = alone.put(b"h", b"1")
    then = ask(alone, MAINTENANCE + "HashKV", rpc.HashKVRequest())
    assert (then.hash_revision, then.header.revision) == (first, first)
    last = alone.put(b"h", b"2")
    now = ask(alone, MAINTENANCE + "HashKV", rpc.HashKVRequest())
    assert now.hash_revision == last
    assert now.hash != then.hash
    again = ask(alone, MAINTENANCE + "HashKV", rpc.HashKVRequest(revision=first))
    assert (again.hash, again.hash_revision, again.header.revision) == (then.hash, first, last)
    assert ask(alone, MAINTENANCE + "HashKV", rpc.HashKVRequest(revision=last + 1)) == FUTURE
    alone.compact(last)
    assert ask(alone, MAINTENANCE + "HashKV", rpc.HashKVRequest(revision=last - 1)) == COMPACTED
    newer = alone.put(b"h", b"3")
    compacted = ask(alone, MAINTENANCE + "HashKV", rpc.HashKVRequest(revision=newer))
    assert (compacted.compact_revision, compacted.hash_revision) == (last, newer)


def test_hash(alone: Subject) -> None:
    first = ask(alone, MAINTENANCE + "Hash", rpc.HashRequest())
    assert first.header.revision == alone.revision
    assert ask(alone, MAINTENANCE + "Hash", rpc.HashRequest()).hash == first.hash
    alone.put(b"hash")
    assert ask(alone, MAINTENANCE + "Hash", rpc.HashRequest()).hash != first.hash


# --- the data ---------------------------------------------------------------------------------------------------------


def test_defragment_has_no_header_and_changes_nothing_that_is_read(alone: Subject) -> None:
    lease_id = alone.grant()
    revision = alone.put(b"defrag", b"v", lease=lease_id)
    reply = ask(alone, MAINTENANCE + "Defragment", rpc.DefragmentRequest())
    assert not reply.HasField("header")
    assert alone.revision == revision
    assert alone.get(b"defrag").lease == lease_id
    assert alone.put(b"defrag") == revision + 1


def test_snapshot_comes_in_pieces_with_a_checksum(alone: Subject) -> None:
    for index in range(10):
        alone.put(b"snap%d" % index, b"x" * 50_000)
    method = BY_PATH["/" + MAINTENANCE + "Snapshot"]
    call: Any = alone.channel.unary_stream(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )
    pieces = list(call(rpc.SnapshotRequest(), timeout=20))
    data = b"".join(piece.blob for piece in pieces[:-1])
    assert len(data) > 500_000
    assert pieces[-1].blob == hashlib.sha256(data).digest()
    assert pieces[-1].remaining_bytes == 0
    sent = 0
    for piece in pieces[:-1]:
        assert len(piece.blob) == 32_768 or piece is pieces[-2]
        sent += len(piece.blob)
        assert piece.remaining_bytes == len(data) - sent
        assert not piece.HasField("header")
    if alone.like(3, 6):
        assert {piece.version for piece in pieces} == {f"{release(alone)}.0"}


def test_snapshot_over_the_gateway(alone: Subject) -> None:
    reply = alone.post("/v3/maintenance/snapshot", {})
    lines = reply.body.splitlines()
    assert reply.status == 200
    assert all(line.startswith(b'{"result":{') for line in lines)
    assert len(lines) >= 2


# --- one member -------------------------------------------------------------------------------------------------------


def test_there_is_nobody_to_hand_the_leadership_to(alone: Subject) -> None:
    member = me(alone)
    assert ask(alone, MAINTENANCE + "MoveLeader", rpc.MoveLeaderRequest(targetID=member)) == rpc.MoveLeaderResponse()
    refused = Failure(9, "etcdserver: bad leader transferee")
    assert ask(alone, MAINTENANCE + "MoveLeader", rpc.MoveLeaderRequest(targetID=0)) == refused
    assert ask(alone, MAINTENANCE + "MoveLeader", rpc.MoveLeaderRequest(targetID=member + 1)) == refused


def test_member_list(alone: Subject) -> None:
    for linearizable in (False, True):
        reply = ask(alone, CLUSTER + "MemberList", rpc.MemberListRequest(linearizable=linearizable))
        assert reply.header.revision == 0
        (member,) = reply.members
        assert reply.header.member_id == member.ID
        assert list(member.clientURLs) == [alone.server.client_url]
        assert member.name
        assert member.peerURLs
        assert not member.isLearner


@pytest.mark.parametrize(
    "url", ["foo", "http://127.0.0.1", "http://127.0.0.1:1/x", "ftp://127.0.0.1:9", "http://127.0.0.1:x", ""]
)
def test_member_add_wants_urls_that_could_be_a_members(alone: Subject, url: str) -> None:
    assert ask(alone, CLUSTER + "MemberAdd", rpc.MemberAddRequest(peerURLs=[url])) == URLS_INVALID


def test_member_changes_that_are_refused(alone: Subject) -> None:
    member = me(alone)
    urls = list(ask(alone, CLUSTER + "MemberList", rpc.MemberListRequest()).members[0].peerURLs)
    exists = Failure(9, "etcdserver: Peer URLs already exists")
    not_a_learner = Failure(9, "etcdserver: can only promote a learner member")
    assert ask(alone, CLUSTER + "MemberAdd", rpc.MemberAddRequest()) == URLS_INVALID
    assert ask(alone, CLUSTER + "MemberAdd", rpc.MemberAddRequest(peerURLs=urls)) == exists
    assert ask(alone, CLUSTER + "MemberRemove", rpc.MemberRemoveRequest(ID=member + 1)) == NOT_FOUND
    assert ask(alone, CLUSTER + "MemberUpdate", rpc.MemberUpdateRequest(ID=member + 1)) == NOT_FOUND
    assert ask(alone, CLUSTER + "MemberPromote", rpc.MemberPromoteRequest(ID=member + 1)) == NOT_FOUND
    assert ask(alone, CLUSTER + "MemberPromote", rpc.MemberPromoteRequest(ID=member)) == not_a_learner
    updated = ask(alone, CLUSTER + "MemberUpdate", rpc.MemberUpdateRequest(ID=member, peerURLs=urls))
    assert [list(each.peerURLs) for each in updated.members] == [urls]
    if alone.like(3, 6):
        assert ask(alone, CLUSTER + "MemberRemove", rpc.MemberRemoveRequest(ID=member)) == NOT_ENOUGH
    if alone.is_lessor:  # etcd takes a second member in, and answers no write until it has started
        other = "http://127.0.0.1:9"
        learner = Failure(9, "etcdserver: too many learner members in cluster")
        assert ask(alone, CLUSTER + "MemberAdd", rpc.MemberAddRequest(peerURLs=[other])) == NOT_ENOUGH
        assert ask(alone, CLUSTER + "MemberAdd", rpc.MemberAddRequest(peerURLs=[other], isLearner=True)) == learner
        # etcd's server believes anything; its clients look first.
        for urls in ([], ["nonsense"], [other, "http://127.0.0.1:9/x"]):
            moved = rpc.MemberUpdateRequest(ID=member, peerURLs=urls)
            assert ask(alone, CLUSTER + "MemberUpdate", moved) == URLS_INVALID


def test_a_member_takes_other_peer_urls(alone: Subject) -> None:
    member = me(alone)
    before = ask(alone, CLUSTER + "MemberList", rpc.MemberListRequest()).members
    urls = ["http://127.0.0.1:9", "http://127.0.0.1:8"]
    updated = ask(alone, CLUSTER + "MemberUpdate", rpc.MemberUpdateRequest(ID=member, peerURLs=urls))
    assert updated.header.revision == 0
    listed = ask(alone, CLUSTER + "MemberList", rpc.MemberListRequest()).members
    assert [sorted(each.peerURLs) for each in listed] == [sorted(urls)]
    assert [list(each.clientURLs) for each in listed] == [list(each.clientURLs) for each in before]
    assert updated.members[0].peerURLs == listed[0].peerURLs
    taken = ask(alone, CLUSTER + "MemberAdd", rpc.MemberAddRequest(peerURLs=urls[1:]))
    assert taken == Failure(9, "etcdserver: Peer URLs already exists")
    ask(alone, CLUSTER + "MemberUpdate", rpc.MemberUpdateRequest(ID=member, peerURLs=before[0].peerURLs))


WRONG_FORMAT = Failure(3, "etcdserver: wrong downgrade target version format")
INVALID_TARGET = Failure(3, "etcdserver: invalid downgrade target version")


DOWNGRADE = MAINTENANCE + "Downgrade"
# By release: the one that a downgrade may go to, and what VALIDATE then names as the present one.
DOWNGRADES = {"3.5": ("3.4", "3.5.0"), "3.6": ("3.5", "3.6"), "3.7": ("3.6", "3.7")}


@pytest.mark.parametrize("version", ["", "abc", "3", " 3.4", " 3.5", " 3.6", "v3.5.0", "v3.6.0", "3.5.0.1", "3.6.0.1"])
def test_a_downgrade_needs_a_version_that_can_be_read(alone: Subject, version: str) -> None:
    for action in (rpc.DowngradeRequest.VALIDATE, rpc.DowngradeRequest.ENABLE):
        assert ask(alone, DOWNGRADE, rpc.DowngradeRequest(action=action, version=version)) == WRONG_FORMAT


@pytest.mark.parametrize(
    "version", ["2.5.0", "3.3", "3.4", "3.4.0", "3.5", "3.5.0", "3.6", "3.6.0", "3.7", "3.7.0", "3.8.0", "4.0.0"]
)
def test_downgrade_takes_the_version_before_only(alone: Subject, version: str) -> None:
    before, present = DOWNGRADES[release(alone)]
    validate = rpc.DowngradeRequest(action=rpc.DowngradeRequest.VALIDATE, version=version)
    if version in (before, f"{before}.0"):  # nobody enables it here: an etcd would really go back
        assert ask(alone, DOWNGRADE, validate).version == present
        return
    assert ask(alone, DOWNGRADE, validate) == INVALID_TARGET
    enable = rpc.DowngradeRequest(action=rpc.DowngradeRequest.ENABLE, version=version)
    assert ask(alone, DOWNGRADE, enable) == INVALID_TARGET


def test_downgrade_is_told_until_it_is_cancelled(alone: Subject) -> None:
    if not alone.is_lessor:
        pytest.skip("etcd would really go back, and not come forth again")
    action = rpc.DowngradeRequest.DowngradeAction
    valid = rpc.DowngradeRequest(action=action.VALIDATE, version="3.5.0")
    assert ask(alone, DOWNGRADE, valid).version == "3.6"
    ask(alone, DOWNGRADE, rpc.DowngradeRequest(action=action.ENABLE, version="3.5"))
    info = ask(alone, MAINTENANCE + "Status", rpc.StatusRequest()).downgradeInfo
    assert (info.enabled, info.targetVersion) == (True, "3.5.0")
    in_progress = Failure(9, "etcdserver: cluster has a downgrade job in progress")
    assert ask(alone, DOWNGRADE, valid) == in_progress
    ask(alone, DOWNGRADE, rpc.DowngradeRequest(action=action.CANCEL))
    assert not ask(alone, MAINTENANCE + "Status", rpc.StatusRequest()).downgradeInfo.enabled

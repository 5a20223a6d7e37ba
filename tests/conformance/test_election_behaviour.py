# SPDX-License-Identifier: Apache-2.0
"""v3electionpb.Election: who leads, what it proclaims, what observers see, by Lessor and by a real etcd."""

import base64
import json
from typing import Any

import pytest

from lessor.api.proto import election_pb2
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.grpc_peer import Failure
from tests.conformance.lock_peer import LockPeer, key_of
from tests.conformance.subject import Subject, read_line

UNKNOWN = 2
NOT_LEADER = Failure(UNKNOWN, "election: not leader")
NO_LEADER = Failure(UNKNOWN, "election: no leader")
NO_LEADER_FIELD = Failure(UNKNOWN, '"leader" field must be provided')
NO_LEASE = Failure(UNKNOWN, "etcdserver: requested lease not found")
NO_KEY = Failure(UNKNOWN, "etcdserver: key is not provided")
TOO_LARGE = Failure(UNKNOWN, "etcdserver: request is too large")


@pytest.fixture
def election(subject: Subject) -> LockPeer:
    return LockPeer(subject)


@pytest.fixture
def name(prefix: bytes) -> bytes:
    return prefix + b"election"


# --- campaign ---------------------------------------------------------------------------------------------------------


def test_the_only_candidate_leads(election: LockPeer, name: bytes) -> None:
    lease_id = election.lease()
    reply = election.campaign(name, lease_id, b"me")
    key = key_of(name, lease_id)
    kv = election.subject.get(key)
    assert (kv.value, kv.lease, kv.create_revision) == (b"me", lease_id, reply.header.revision)
    assert reply.leader == election_pb2.LeaderKey(name=name, key=key, rev=kv.create_revision, lease=lease_id)


def test_without_a_lease_the_server_grants_one_of_a_minute(election: LockPeer, name: bytes) -> None:
    leader = election.campaign(name, 0, b"me").leader
    assert leader.key == key_of(name, leader.lease)
    assert election.subject.do(rpc.LeaseTimeToLiveRequest(ID=leader.lease)).grantedTTL == 60
    election.end(leader.lease)


def test_an_unknown_lease_is_refused_without_its_code(election: LockPeer, name: bytes) -> None:
    assert election.campaign(name, 0xDEAD) == NO_LEASE


def test_a_value_that_is_too_large_is_refused_without_its_code(election: LockPeer, name: bytes) -> None:
    lease_id = election.lease()
    assert election.campaign(name, lease_id, b"v" * 1_600_000) == TOO_LARGE
    assert election.subject.get(key_of(name, lease_id)) is None


def test_candidates_lead_in_the_order_of_coming(election: LockPeer, name: bytes) -> None:
    leases = [election.lease() for _ in range(4)][::-1]
    leader = election.campaign(name, leases[0]).leader
    waiting = [election.wait_for_victory(name, lease_id) for lease_id in leases[1:]]
    for number, pending in enumerate(waiting):
        assert not any(later.done for later in waiting[number:])
        election.resign(leader)
        leader = pending.result().leader
        assert leader.lease == leases[number + 1]
        assert election.leader(name).kv.key == leader.key


def test_the_header_of_a_victory_is_that_of_the_candidacy(election: LockPeer, name: bytes) -> None:
    first = election.campaign(name, election.lease()).leader
    lease_id = election.lease()
    pending = election.wait_for_victory(name, lease_id)
    revision = election.subject.get(key_of(name, lease_id)).create_revision
    assert election.resign(first).header.revision > revision
    reply = pending.result()
    assert (reply.header.revision, reply.leader.rev) == (revision, revision)


def test_campaigning_again_with_the_same_value_changes_nothing(election: LockPeer, name: bytes) -> None:
    lease_id = election.lease()
    first = election.campaign(name, lease_id, b"me")
    revision = election.subject.put(name + b"-other")
    again = election.campaign(name, lease_id, b"me")
    assert (again.leader, again.header.revision) == (first.leader, revision)
    assert election.subject.get(first.leader.key).version == 1


def test_campaigning_again_with_another_value_proclaims_it(election: LockPeer, name: bytes) -> None:
    """The header is that of the look at the candidacy, before the proclamation."""
    lease_id = election.lease()
    first = election.campaign(name, lease_id, b"me")
    again = election.campaign(name, lease_id, b"you")
    assert (again.leader, again.header.revision) == (first.leader, first.header.revision)
    kv = election.subject.get(first.leader.key)
    assert (kv.value, kv.version, kv.mod_revision) == (b"you", 2, first.header.revision + 1)


def test_a_candidate_may_change_its_value_while_it_waits(election: LockPeer, name: bytes) -> None:
    first = election.campaign(name, election.lease()).leader
    lease_id = election.lease()
    pending = election.wait_for_victory(name, lease_id, b"old")
    again = election.start(election_pb2.CampaignRequest(name=name, lease=lease_id, value=b"new"))
    election.until_value(key_of(name, lease_id), b"new")
    election.resign(first)
    assert pending.result().leader == again.result().leader
    assert election.leader(name).kv.value == b"new"


def test_a_candidates_key_that_was_there_is_hung_on_the_lease_by_a_new_value(election: LockPeer, name: bytes) -> None:
    lease_id = election.lease()
    key = key_of(name, lease_id)
    election.subject.put(key, b"old")
    rev = election.campaign(name, lease_id, b"new").leader.rev
    kv = election.subject.get(key)
    assert (kv.create_revision, kv.value, kv.lease) == (rev, b"new", lease_id)


def test_a_candidate_that_cannot_proclaim_loses_its_key(election: LockPeer, name: bytes) -> None:
    key = key_of(name, 0xDEAD)
    election.subject.put(key, b"old")
    assert election.campaign(name, 0xDEAD, b"new") == NO_LEASE
    assert election.subject.get(key) is None


def test_a_cancelled_candidacy_is_taken_back(election: LockPeer, name: bytes) -> None:
    first, second = election.lease(), election.lease()
    leader = election.campaign(name, first).leader
    pending = election.wait_for_victory(name, second)
    pending.cancel()
    election.until_gone(key_of(name, second))
    election.resign(leader)
    assert election.leader(name) == NO_LEADER


def test_a_candidate_that_lost_its_lease(election: LockPeer, name: bytes) -> None:
    """etcd tells it, when its turn would have come, that it leads. Lessor tells it the truth, and at once."""
    first, second = election.lease(), election.lease()
    leader = election.campaign(name, first).leader
    pending = election.wait_for_victory(name, second)
    election.end(second)
    if election.subject.is_lessor:
        assert pending.result() == NOT_LEADER
    election.resign(leader)
    result = pending.result()
    assert result == NOT_LEADER if election.subject.is_lessor else result.leader.lease == second
    assert election.leader(name) == NO_LEADER


# --- proclaim and resign ----------------------------------------------------------------------------------------------


def test_the_leader_proclaims(election: LockPeer, name: bytes) -> None:
    leader = election.campaign(name, election.lease(), b"1").leader
    reply = election.proclaim(leader, b"2")
    kv = election.subject.get(leader.key)
    assert (kv.value, kv.mod_revision, kv.lease) == (b"2", reply.header.revision, leader.lease)


def test_a_proclamation_without_a_lease_gets_a_new_one(election: LockPeer, name: bytes) -> None:
    leader = election.campaign(name, election.lease(), b"1").leader
    leader.lease = 0
    election.proclaim(leader, b"2")
    lease_id = election.subject.get(leader.key).lease
    assert election.subject.do(rpc.LeaseTimeToLiveRequest(ID=lease_id)).grantedTTL == 60
    election.end(lease_id)


def test_who_does_not_lead_any_more_cannot_proclaim(election: LockPeer, name: bytes) -> None:
    lease_id = election.lease()
    old = election.campaign(name, lease_id, b"1").leader
    election.resign(old)
    assert election.proclaim(old, b"2") == NOT_LEADER
    election.campaign(name, lease_id, b"3")
    assert election.proclaim(old, b"2") == NOT_LEADER
    assert election.subject.get(old.key).value == b"3"


def test_the_revision_is_looked_at_before_the_lease(election: LockPeer, name: bytes) -> None:
    leader = election.campaign(name, election.lease()).leader
    leader.lease = 0xDEAD
    assert election.proclaim(leader, b"2") == NO_LEASE
    leader.rev += 1
    assert election.proclaim(leader, b"2") == NOT_LEADER


def test_a_waiting_candidate_may_proclaim(election: LockPeer, name: bytes) -> None:
    """Only the revision of the key is looked at, not whether it leads."""
    election.campaign(name, election.lease())
    lease_id = election.lease()
    pending = election.wait_for_victory(name, lease_id, b"1")
    key = key_of(name, lease_id)
    rev = election.subject.get(key).create_revision
    election.proclaim(election_pb2.LeaderKey(name=name, key=key, rev=rev, lease=lease_id), b"2")
    assert election.subject.get(key).value == b"2"
    pending.cancel()
    election.until_gone(key)


def test_a_leader_key_has_to_be_given(election: LockPeer) -> None:
    assert election.ask(election_pb2.ProclaimRequest(value=b"v")) == NO_LEADER_FIELD
    assert election.ask(election_pb2.ResignRequest()) == NO_LEADER_FIELD
    assert election.proclaim(election_pb2.LeaderKey(lease=1), b"v") == NO_KEY
    assert election.resign(election_pb2.LeaderKey(lease=1)) == NO_KEY


def test_the_leader_resigns(election: LockPeer, name: bytes) -> None:
    reply = election.campaign(name, election.lease())
    assert election.resign(reply.leader).header.revision == reply.header.revision + 1
    assert election.subject.get(reply.leader.key) is None


def test_resigning_without_leading_succeeds_and_changes_nothing(election: LockPeer, name: bytes) -> None:
    lease_id = election.lease()
    old = election.campaign(name, lease_id).leader
    election.resign(old)
    revision = election.campaign(name, lease_id).header.revision
    assert election.resign(old).header.revision == revision
    assert election.subject.get(old.key) is not None


# --- leader and observe -----------------------------------------------------------------------------------------------


def test_nobody_leads(election: LockPeer, name: bytes) -> None:
    election.subject.put(name)
    assert election.leader(name) == NO_LEADER


def test_the_leader_is_the_oldest_key_whoever_put_it(election: LockPeer, name: bytes) -> None:
    election.subject.put(name + b"/z", b"first")
    revision = election.subject.put(name + b"/a", b"second")
    reply = election.leader(name)
    assert (reply.kv.value, reply.header.revision) == (b"first", revision)
    election.subject.put(name + b"/z", b"again")
    assert election.leader(name).kv.value == b"again"


class Sight:
    """What an observer sees."""

    def __init__(self, election: LockPeer, name: bytes) -> None:
        self.stream = election.observe(name)

    def read(self) -> tuple[bytes, bytes, int]:
        """(key, value, revision of the header)."""
        reply: Any = self.stream.read()
        assert isinstance(reply, election_pb2.LeaderResponse), reply
        return reply.kv.key, reply.kv.value, reply.header.revision


def test_an_observer_sees_the_leader_of_now_and_each_change(election: LockPeer, name: bytes) -> None:
    first, second = election.lease(), election.lease()
    leader = election.campaign(name, first, b"1").leader
    sight = Sight(election, name)
    assert sight.read() == (leader.key, b"1", election.subject.revision)
    revision = election.proclaim(leader, b"1b").header.revision
    assert sight.read() == (leader.key, b"1b", revision)
    election.wait_for_victory(name, second, b"2")
    election.subject.put(name + b"-other")
    revision = election.resign(leader).header.revision
    assert sight.read() == (key_of(name, second), b"2", revision)
    sight.stream.cancel()


def test_an_observer_waits_for_a_leader(election: LockPeer, name: bytes) -> None:
    sight = Sight(election, name)
    first = election.campaign(name, election.lease(), b"1")
    assert sight.read() == (first.leader.key, b"1", first.header.revision)
    election.resign(first.leader)
    second = election.campaign(name, election.lease(), b"2")
    assert sight.read() == (second.leader.key, b"2", second.header.revision)
    sight.stream.cancel()


def test_an_observer_sees_the_end_of_a_lease(election: LockPeer, name: bytes) -> None:
    first, second = election.lease(), election.lease()
    election.campaign(name, first, b"1")
    pending = election.wait_for_victory(name, second, b"2")
    sight = Sight(election, name)
    sight.read()
    revision = election.end(first)
    assert sight.read() == (key_of(name, second), b"2", revision)
    assert pending.result().leader.lease == second
    sight.stream.cancel()


def test_an_observer_does_not_see_who_waits(election: LockPeer, name: bytes) -> None:
    leader = election.campaign(name, election.lease(), b"1").leader
    sight = Sight(election, name)
    sight.read()
    second, third = election.lease(), election.lease()
    election.wait_for_victory(name, second, b"2")
    election.wait_for_victory(name, third, b"3")
    election.end(second)
    election.resign(leader)
    assert sight.read()[:2] == (key_of(name, third), b"3")
    sight.stream.cancel()


def test_the_value_of_a_waiting_candidate_is_seen_when_it_leads(election: LockPeer, name: bytes) -> None:
    leader = election.campaign(name, election.lease(), b"1").leader
    sight = Sight(election, name)
    sight.read()
    lease_id = election.lease()
    election.wait_for_victory(name, lease_id, b"2")
    key = key_of(name, lease_id)
    election.subject.put(key, b"2b", lease=lease_id)
    election.resign(leader)
    assert sight.read()[:2] == (key, b"2b")
    sight.stream.cancel()


# --- JSON -------------------------------------------------------------------------------------------------------------


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_an_election_in_json(election: LockPeer, name: bytes) -> None:
    lease_id = election.lease()
    post = election.subject.post
    won = post("/v3/election/campaign", {"name": b64(name), "lease": str(lease_id), "value": b64(b"me")}).json()
    assert won["leader"] == {
        "name": b64(name),
        "key": b64(key_of(name, lease_id)),
        "rev": won["header"]["revision"],
        "lease": str(lease_id),
    }
    assert post("/v3/election/proclaim", {"leader": won["leader"], "value": b64(b"you")}).status == 200
    assert post("/v3/election/leader", {"name": b64(name)}).json()["kv"]["value"] == b64(b"you")
    assert list(post("/v3/election/resign", {"leader": won["leader"]}).json()) == ["header"]
    nobody = post("/v3/election/leader", {"name": b64(name)})
    assert (nobody.status, nobody.json()["code"], nobody.json()["message"]) == (500, UNKNOWN, NO_LEADER.text)


@pytest.mark.parametrize("path", ["proclaim", "resign"])
def test_a_leader_key_has_to_be_given_in_json(election: LockPeer, path: str) -> None:
    reply = election.subject.post(f"/v3/election/{path}", "{}")
    assert (reply.status, reply.json()["code"], reply.json()["message"]) == (500, UNKNOWN, NO_LEADER_FIELD.text)


def test_observing_in_json(election: LockPeer, name: bytes) -> None:
    leader = election.campaign(name, election.lease(), b"1").leader
    with election.subject.http_stream("/v3/election/observe", json.dumps({"name": b64(name)})) as reply:
        assert reply.status == 200
        assert read_line(reply)["result"]["kv"]["value"] == b64(b"1")
        revision = election.proclaim(leader, b"2").header.revision
        line = read_line(reply)["result"]
        assert (line["kv"]["value"], line["header"]["revision"]) == (b64(b"2"), str(revision))

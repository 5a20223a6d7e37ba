# SPDX-License-Identifier: Apache-2.0
"""Elections inside the server: what observers are shown and when, and the answer to a candidate that has lost.

What clients see of them is stated in tests/conformance/test_election_behaviour.py, for a real etcd too.
"""

import pytest

from lessor.api.proto import election_pb2, rpc_pb2
from lessor.base import limits
from lessor.base.errors import Code
from tests.unit.server.lock_world import LockWorld


@pytest.fixture
def world() -> LockWorld:
    made = LockWorld()
    for lease_id in (0xA, 0xB, 0xC):
        made.lease(lease_id)
    return made


def test_a_candidate_that_lost_its_lease_is_told_that_it_does_not_lead(world: LockWorld) -> None:
    world.campaign(b"e", 0xA)
    candidate = world.campaign(b"e", 0xB)
    world.revoke(0xB)
    assert (candidate.outcome.code, candidate.error) == (Code.UNKNOWN, "election: not leader")
    assert world.idle


def test_the_reply_to_a_campaign_has_the_header_of_the_candidacy(world: LockWorld) -> None:
    world.campaign(b"e", 0xA)
    candidate = world.campaign(b"e", 0xB, b"b")
    revision = world.machine.revision
    world.unlock(b"e/a")
    reply = candidate.outcome
    assert reply.header.revision == revision < world.machine.revision
    assert reply.leader == election_pb2.LeaderKey(name=b"e", key=b"e/b", rev=revision, lease=0xB)


def test_a_candidate_that_cannot_proclaim_gives_up_its_candidacy(world: LockWorld) -> None:
    """Its key is there, hung on nothing, and its lease is not: as in etcd, the key goes."""
    world.do(rpc_pb2.PutRequest(key=b"e/dead", value=b"old"))
    call = world.campaign(b"e", 0xDEAD, b"new")
    assert (call.outcome.code, call.error) == (Code.UNKNOWN, "etcdserver: requested lease not found")
    assert world.keys() == []


def test_an_observer_is_shown_the_leader_of_now_and_each_change(world: LockWorld) -> None:
    stream = world.observe(b"e")
    assert stream.shown() == []
    leader = world.campaign(b"e", 0xA, b"1").outcome.leader
    assert stream.shown() == [(b"e/a", b"1")]
    world.campaign(b"e", 0xB, b"2")
    assert stream.shown() == []
    world.do(election_pb2.ProclaimRequest(leader=leader, value=b"1b"))
    assert stream.shown() == [(b"e/a", b"1b")]
    late = world.observe(b"e")
    assert late.shown() == [(b"e/a", b"1b")]
    world.do(election_pb2.ResignRequest(leader=leader))
    assert stream.shown() == late.shown() == [(b"e/b", b"2")]
    world.revoke(0xB)
    assert stream.shown() == []
    world.campaign(b"e", 0xC, b"3")
    assert stream.shown() == [(b"e/c", b"3")]
    stream.finish()
    late.finish()
    assert world.idle


def test_an_observer_sees_nothing_that_is_not_durable(world: LockWorld) -> None:
    stream = world.observe(b"e")
    world.begin(election_pb2.CampaignRequest(name=b"e", lease=0xA))
    world.loop.settle()
    assert stream.shown() == []
    late = world.core.stream_handlers[stream.method](world.core, stream)
    late.on_messages([election_pb2.LeaderRequest(name=b"e").SerializeToString()])
    world.loop.settle()
    assert stream.shown() == []
    world.disk.succeed()
    assert stream.shown() == [(b"e/a", b""), (b"e/a", b"")]


def test_leaders_that_end_in_one_turn_are_not_shown_in_between(world: LockWorld) -> None:
    world.lease(1, ttl_s=5), world.lease(2, ttl_s=5)
    for lease_id in (1, 2, 0xA):
        world.campaign(b"e", lease_id)
    stream = world.observe(b"e")
    assert stream.shown() == [(b"e/1", b"")]
    world.pass_time(5.5)
    assert stream.shown() == [(b"e/a", b"")]


def test_of_keys_that_one_write_made_the_smallest_leads(world: LockWorld) -> None:
    stream = world.observe(b"e")
    puts = [rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key)) for key in (b"e/z", b"e/y", b"e/x")]
    world.do(rpc_pb2.TxnRequest(success=puts))
    leader = election_pb2.LeaderRequest(name=b"e")
    assert world.do(leader).kv.key == b"e/x"
    stream.finish()
    assert world.idle
    assert world.do(leader).kv.key == b"e/x"
    world.unlock(b"e/x")
    assert world.do(leader).kv.key == b"e/y"


def test_an_observer_that_does_not_read_is_shown_the_leader_of_then(world: LockWorld) -> None:
    leader = world.campaign(b"e", 0xA, b"0").outcome.leader
    slow, quick = world.observe(b"e"), world.observe(b"e")
    slow.shown(), quick.shown()
    slow.to_take_bytes = limits.CONNECTION_BACKLOG_BYTES_MAX + 1
    values = [b"%d" % number for number in range(1, 10)]
    for value in values:
        world.do(election_pb2.ProclaimRequest(leader=leader, value=value))
    assert slow.shown() == []
    assert quick.shown() == [(b"e/a", value) for value in values]
    slow.read()
    world.settle()
    assert slow.shown() == [(b"e/a", b"9")]
    world.do(election_pb2.ProclaimRequest(leader=leader, value=b"10"))
    assert slow.shown() == [(b"e/a", b"10")]


def test_what_waits_at_the_gate_while_an_observer_catches_up_is_shown_once(world: LockWorld) -> None:
    leader = world.campaign(b"e", 0xA, b"0").outcome.leader
    slow = world.observe(b"e")
    slow.shown()
    slow.to_take_bytes = limits.CONNECTION_BACKLOG_BYTES_MAX + 1
    world.do(election_pb2.ProclaimRequest(leader=leader, value=b"1"))
    world.begin(election_pb2.ProclaimRequest(leader=leader, value=b"2"))
    slow.read()
    world.loop.settle()
    world.settle()
    assert slow.shown() == [(b"e/a", b"2")]


def test_a_slow_observer_that_goes_is_forgotten(world: LockWorld) -> None:
    world.campaign(b"e", 0xA)
    slow = world.observe(b"e")
    slow.to_take_bytes = limits.CONNECTION_BACKLOG_BYTES_MAX + 1
    world.unlock(b"e/a")
    world.campaign(b"e", 0xB)
    slow.shown()
    slow.finish()
    slow.read()
    world.settle()
    assert slow.shown() == []
    assert world.idle


def test_observers_share_a_response(world: LockWorld) -> None:
    streams = [world.observe(b"e") for _ in range(3)]
    world.campaign(b"e", 0xA, b"v")
    assert [stream.shown() for stream in streams] == [[(b"e/a", b"v")]] * 3

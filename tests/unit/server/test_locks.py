# SPDX-License-Identifier: Apache-2.0
"""Locks inside the server: when a call that waits is answered, what is left behind, what waiting costs.

What clients see of them is stated in tests/conformance/test_lock_behaviour.py, for a real etcd too.
"""

from unittest.mock import patch

import pytest

from lessor.api.proto import lock_pb2, rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import Code
from lessor.server.services.waiting_lines import SESSION_TTL_S, Claim, WaitingLines
from tests.unit.server.lock_world import LockWorld


@pytest.fixture
def world() -> LockWorld:
    return LockWorld()


def test_a_free_lock_is_answered_with_its_commit(world: LockWorld) -> None:
    world.lease(0xA)
    call = world.begin(lock_pb2.LockRequest(name=b"l", lease=0xA))
    world.loop.settle()
    assert not call.answered, "answered before its key was durable"
    world.disk.succeed()
    assert call.outcome.key == b"l/a"


def test_the_next_one_is_answered_with_the_commit_that_deletes_the_key_before_its_own(world: LockWorld) -> None:
    world.lease(0xA), world.lease(0xB)
    world.lock(b"l", 0xA)
    waiting = world.lock(b"l", 0xB)
    unlock = world.begin(lock_pb2.UnlockRequest(key=b"l/a"))
    world.loop.settle()
    assert waiting.decided
    assert (waiting.outcome, unlock.outcome) == (None, None)
    world.disk.succeed()
    assert waiting.outcome.key == b"l/b"
    assert waiting.outcome.header.revision == unlock.outcome.header.revision == world.machine.revision


def test_one_that_waits_does_not_get_the_lock_of_a_key_that_ends_with_its_own(world: LockWorld) -> None:
    """Both leases end in one turn: the order of the two ends must not make a holder of one that is gone."""
    world.lease(0xA, ttl_s=5), world.lease(0xB, ttl_s=5), world.lease(0xC)
    world.lock(b"l", 0xA)
    gone, next_one = world.lock(b"l", 0xB), world.lock(b"l", 0xC)
    world.pass_time(5.5)
    assert gone.error == "mutex: session is expired"
    assert next_one.outcome.key == b"l/c"


def test_a_lost_lease_ends_the_wait_at_once(world: LockWorld) -> None:
    world.lease(0xA), world.lease(0xB)
    world.lock(b"l", 0xA)
    waiting = world.lock(b"l", 0xB)
    world.revoke(0xB)
    assert (waiting.outcome.code, waiting.error) == (Code.UNKNOWN, "mutex: session is expired")
    assert world.keys() == [b"l/a"]
    assert world.idle


def test_a_key_made_anew_does_not_bring_back_the_place_of_the_old_one(world: LockWorld) -> None:
    world.lease(0xA), world.lease(0xB), world.lease(0xC)
    world.lock(b"l", 0xA)
    first, second = world.lock(b"l", 0xB), world.lock(b"l", 0xC)
    world.unlock(b"l/b")
    assert first.error == "mutex: session is expired"
    again = world.lock(b"l", 0xB)
    world.unlock(b"l/a")
    assert second.outcome.key == b"l/c"
    assert again.outcome is None


def test_a_call_that_goes_takes_its_key_along(world: LockWorld) -> None:
    world.lease(0xA), world.lease(0xB), world.lease(0xC)
    world.lock(b"l", 0xA)
    gone, waiting = world.lock(b"l", 0xB), world.lock(b"l", 0xC)
    revision = world.machine.revision
    gone.gone()
    world.settle()
    assert world.keys() == [b"l/a", b"l/c"]
    assert world.machine.revision == revision + 1
    assert (gone.outcome, waiting.outcome) == (None, None)
    world.unlock(b"l/a")
    assert waiting.outcome.key == b"l/c"
    assert world.idle


def test_the_removal_of_a_key_is_durable_like_any_write(world: LockWorld) -> None:
    world.lease(0xA), world.lease(0xB)
    world.lock(b"l", 0xA)
    waiting = world.lock(b"l", 0xB)
    waiting.gone()
    world.settle()
    (key, value) = world.disk.batches[-1].events[0][2:4]
    assert (key, value) == (b"l/b", None)


def test_a_call_repeated_on_a_new_connection_survives_the_end_of_the_old_one(world: LockWorld) -> None:
    """The server learns of the broken connection after the client has repeated its call: the place must be kept."""
    world.lease(0xA), world.lease(0xB)
    world.lock(b"l", 0xA)
    first = world.lock(b"l", 0xB)
    repeated = world.lock(b"l", 0xB)
    first.gone()
    world.settle()
    assert world.keys() == [b"l/a", b"l/b"]
    world.unlock(b"l/a")
    assert repeated.outcome.key == b"l/b"
    assert first.outcome is None


def test_two_calls_on_one_key_get_the_lock_together(world: LockWorld) -> None:
    world.lease(0xA), world.lease(0xB)
    world.lock(b"l", 0xA)
    calls = [world.lock(b"l", 0xB) for _ in range(2)]
    world.unlock(b"l/a")
    assert [call.outcome.key for call in calls] == [b"l/b"] * 2


def test_keys_that_one_write_made_do_not_wait_for_each_other(world: LockWorld) -> None:
    world.lease(0xB), world.lease(0xC)
    puts = [rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key)) for key in (b"l/c", b"l/b", b"l/z")]
    world.do(rpc_pb2.PutRequest(key=b"l/old"))
    world.do(rpc_pb2.TxnRequest(success=puts))
    calls = [world.lock(b"l", 0xB), world.lock(b"l", 0xC)]
    assert [call.outcome for call in calls] == [None, None]
    world.do(rpc_pb2.DeleteRangeRequest(key=b"l/old"))
    assert [call.outcome.key for call in calls] == [b"l/b", b"l/c"]


def test_a_lock_waits_for_the_locks_below_its_name(world: LockWorld) -> None:
    world.lease(0xA), world.lease(0xB)
    world.lock(b"l/inner", 0xA)
    outer = world.lock(b"l", 0xB)
    assert not outer.answered
    world.unlock(b"l/inner/a")
    assert outer.outcome.key == b"l/b"


def test_names_that_begin_alike_have_nothing_to_do_with_each_other(world: LockWorld) -> None:
    world.lease(0xA)
    for name in (b"l", b"ll", b"l0", b"", b"l\xff", b"/"):
        assert world.lock(name, 0xA).outcome.key == name + b"/a", name


def test_without_a_lease_the_server_grants_one(world: LockWorld) -> None:
    reply = world.lock(b"l", 0).outcome
    lease_id = int(reply.key.removeprefix(b"l/"), 16)
    assert world.do(rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id)).grantedTTL == SESSION_TTL_S == 60
    world.lease(0xB, ttl_s=600)
    waiting = world.lock(b"l", 0xB)
    world.pass_time(59)
    assert not waiting.answered
    world.pass_time(1.5)
    assert waiting.outcome.key == b"l/b"


def test_what_is_refused_leaves_nothing(world: LockWorld) -> None:
    call = world.lock(b"l", 0xDEAD)
    assert (call.outcome.code, call.error) == (Code.UNKNOWN, "etcdserver: requested lease not found")
    assert world.keys() == []
    assert world.idle


def test_a_stopping_server_answers_those_who_wait_and_keeps_their_places(world: LockWorld) -> None:
    world.lease(0xA), world.lease(0xB)
    world.lock(b"l", 0xA)
    waiting = world.lock(b"l", 0xB)
    world.services.lines.stop(errors.SERVER_STOPPED)
    world.settle()
    assert (waiting.outcome.code, waiting.error) == (Code.UNAVAILABLE, "etcdserver: server stopped")
    assert world.lock(b"l", 0xB).error == "etcdserver: server stopped"
    assert world.keys() == [b"l/a", b"l/b"]
    assert world.idle


def test_a_thousand_waiting_calls_cost_an_unlock_no_more_than_one(world: LockWorld) -> None:
    calls = 1_000
    looked_at = 0
    real = WaitingLines.keys_below

    def counting(self: WaitingLines, prefix: bytes) -> list[object]:
        nonlocal looked_at
        found = real(self, prefix)
        looked_at += len(found)
        return list(found)

    for number in range(calls + 1):
        world.begin(rpc_pb2.LeaseGrantRequest(ID=1 + number, TTL=60))
    world.settle()
    with patch.object(WaitingLines, "keys_below", counting), patch.object(Claim, "settle", autospec=True) as settle:
        settle.side_effect = lambda claim: claim.finish(b"")
        waiting = [world.begin(lock_pb2.LockRequest(name=b"l", lease=1 + number)) for number in range(calls + 1)]
        world.settle()
        # The first call looks for older keys, the second one too and then opens the line: one key, two, two.
        assert looked_at == 1 + 2 + 2
        for number in range(calls):
            world.unlock(b"l/%x" % (1 + number))
            assert settle.call_count == number + 1
            assert waiting[number + 1].outcome is not None
        assert looked_at == 1 + 2 + 2
    assert world.idle


@pytest.mark.parametrize("at_once", [0, 1, 1_000])
def test_a_write_of_many_keys_ends_waits_in_its_own_step(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Other watchers are told of such a write later; a decision about a lock has to see it at once."""
    monkeypatch.setattr(limits, "WATCH_AT_ONCE_EVENTS", at_once)
    world = LockWorld()
    for number in range(5):
        world.do(rpc_pb2.PutRequest(key=b"a%d" % number))
    world.lock(b"job", world.lease(1))
    second, third = world.lock(b"job", world.lease(2)), world.lock(b"job", world.lease(3))
    first_key = world.machine.store.range(b"job/", b"job0")[0].key
    world.begin(rpc_pb2.DeleteRangeRequest(key=b"a", range_end=first_key + b"\0"))
    # Nothing is durable yet, and the line has moved: who asks anew waits behind the third.
    fourth = world.begin(lock_pb2.LockRequest(name=b"job", lease=world.lease(4)))
    assert second.decided
    world.settle()
    assert second.answered
    assert second.error is None
    assert not third.answered
    assert not fourth.answered

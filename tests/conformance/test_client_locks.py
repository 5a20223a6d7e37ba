# SPDX-License-Identifier: Apache-2.0
"""What the client makes of leases, on Lessor and on a real etcd: locks, elections, registration and discovery."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lessor.api.proto import lock_pb2 as lock_api
from lessor.client import CallTimeout, Client, LeaseLost, NotLeader, op
from tests.conformance.subject import Subject, in_background, until


@pytest.fixture
def client(subject: Subject) -> Iterator[Client]:
    with Client(subject.server.address) as client:
        yield client


@pytest.fixture
def other(subject: Subject) -> Iterator[Client]:
    with Client(subject.server.address) as client:
        yield client


# --- locks ------------------------------------------------------------------------------------------------------------


def test_one_holds_a_lock_and_the_next_has_the_greater_token(client: Client, other: Client, prefix: bytes) -> None:
    with client.lock(prefix) as lock:
        token = lock.token
        kv = client.get(lock.key).kvs[0]
        assert (kv.create_revision, kv.lease) == (token, lock.lease.id)
        assert lock.key == prefix + b"/%x" % lock.lease.id  # where etcd's own locks put it
        assert lock.acquire() == token  # held already
        assert lock.held
        rival = other.lock(prefix)
        assert not rival.try_acquire()
        with pytest.raises(CallTimeout, match="not first in the line within"):
            rival.acquire(timeout_s=0.05)
        assert client.get(prefix + b"/", prefix=True).count == 1  # the rival has left the line
        assert not rival.held
    assert not lock.held
    for use in (lambda: lock.token, lambda: lock.key, lambda: lock.mine):
        with pytest.raises(NotLeader):
            use()
    assert rival.try_acquire()
    assert rival.token > token
    rival.release()
    rival.release()
    assert client.get(prefix + b"/", prefix=True).count == 0


def test_who_waits_gets_the_lock_in_turn(client: Client, prefix: bytes) -> None:
    inside, most, tokens = 0, 0, []
    count = threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, most
        with client.lock(prefix) as lock:
            with count:
                inside += 1
                most = max(most, inside)
                tokens.append(lock.token)
            with count:
                inside -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(12)))
    assert most == 1
    assert tokens == sorted(tokens)


def test_a_lock_of_ones_own_lease_is_lost_with_it(client: Client, other: Client, prefix: bytes) -> None:
    with client.lease(60) as lease, client.lock(prefix, lease=lease) as lock:
        assert lock.lease.id == lease.id
        assert client.transaction().when(lock.mine).then(op.put(prefix + b"guarded")).commit().succeeded
        mine = lock.mine
        other.revoke(lease.id)
        assert other.lock(prefix).try_acquire()
        assert not client.transaction().when(mine).then(op.put(prefix + b"guarded")).commit().succeeded


@pytest.mark.slow
def test_waiting_ends_with_the_lease(subject: Subject, client: Client, other: Client, prefix: bytes) -> None:
    ended: list[LeaseLost] = []

    def wait() -> None:
        try:
            lock.acquire()
        except LeaseLost as error:
            ended.append(error)

    with other.lock(prefix), client.lease(subject.min_ttl_s) as lease:
        lock = client.lock(prefix, lease=lease)
        lease_id = lease.id
        waiting = in_background(wait)
        until(lambda: client.get(prefix + b"/%x" % lease_id).count == 1)
        other.revoke(lease_id)
        waiting.join(20)
        assert [error.lease_id for error in ended] == [lease_id]


def test_a_lease_that_is_gone_is_noticed_when_it_is_used(client: Client, other: Client, prefix: bytes) -> None:
    with client.lease(60) as lease:
        other.revoke(lease.id)
        with pytest.raises(LeaseLost):
            client.lock(prefix, lease=lease).acquire()
        assert lease.lost.is_set()


def test_ours_and_the_servers_stand_in_one_line(subject: Subject, client: Client, prefix: bytes) -> None:
    lease_id = subject.grant()
    got: list[Any] = []
    with client.lock(prefix) as lock:
        request = lock_api.LockRequest(name=prefix, lease=lease_id)
        waiting = in_background(lambda: got.append(subject.stub("v3lockpb.Lock/Lock")(request, timeout=20)))
        until(lambda: client.get(prefix + b"/", prefix=True).count == 2)
        assert not got
        token = lock.token
    waiting.join(10)
    assert got[0].key == prefix + b"/%x" % lease_id
    assert client.get(got[0].key).kvs[0].create_revision > token
    assert not client.lock(prefix).try_acquire()
    subject.revoke(lease_id)
    assert client.lock(prefix).try_acquire()


@pytest.mark.parametrize("again", [False, True])
def test_a_key_that_somebody_deletes_is_not_a_lock(client: Client, other: Client, prefix: bytes, again: bool) -> None:
    first, second = client.lock(prefix), other.lock(prefix)
    first.acquire()
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            second.acquire()
        except NotLeader as error:
            failed.append(error)

    waiting = in_background(wait)
    until(lambda: client.get(prefix + b"/", prefix=True).count == 2)
    line = client.get(prefix + b"/", prefix=True, sort_target=2, sort_order=1)
    client.delete(line.kvs[1].key)
    if again:  # another place, at the end of the line, by whoever it is
        client.put(line.kvs[1].key, lease_id=line.kvs[1].lease)
    first.release()
    waiting.join(10)
    assert len(failed) == 1


# --- elections --------------------------------------------------------------------------------------------------------


def test_one_leads_and_all_see_it(client: Client, other: Client, prefix: bytes) -> None:
    election = client.election(prefix)
    assert election.leader() is None
    with other.election(prefix).observe() as leaders:
        assert next(leaders) is None
        token = election.campaign("ann")
        leader = next(leaders)
        assert leader is not None
        assert (leader.value, leader.token, leader.lease_id) == (b"ann", token, election.lease.id)
        assert election.leader() == leader
        election.proclaim("ann, at home")
        seen = next(leaders)
        assert seen is not None
        assert (seen.value, seen.token) == (b"ann, at home", token)
        with other.election(prefix) as rival:
            with pytest.raises(CallTimeout):
                rival.campaign("bob", timeout_s=0.05)
            with pytest.raises(NotLeader):
                rival.proclaim("bob")
            waiting = in_background(lambda: rival.campaign("bob"))
            until(lambda: client.get(prefix + b"/", prefix=True).count == 2)
            election.resign()
            waiting.join(10)
            assert rival.leads
            assert rival.token > token
            while (seen := next(leaders)) is None or seen.value != b"bob":
                pass
        assert next(leaders) is None
    assert not election.leads
    election.resign()


def test_a_leader_whose_key_is_deleted_leads_no_more(client: Client, prefix: bytes) -> None:
    with client.election(prefix) as election:
        election.campaign("ann")
        client.delete(prefix + b"/", prefix=True)
        with pytest.raises(NotLeader):
            election.proclaim("still me")
        assert not election.leads


# --- registration and discovery ---------------------------------------------------------------------------------------


def test_who_registers_is_seen_to_come_and_go(client: Client, other: Client, prefix: bytes) -> None:
    service = prefix.decode() + "web"
    with other.discover(service) as web, web as changes:
        assert web.instances == ()
        with client.register(service, "10.0.0.5:80", 10, value="blue") as registration:
            assert registration.registered
            registration.check()
            change = changes.next(timeout_s=10)
            assert (change.kind, change.instance.address, change.instance.value) == ("appeared", "10.0.0.5:80", b"blue")
            assert web.addresses == ("10.0.0.5:80",)
            client.put(f"{service}/10.0.0.5:80", "green", ignore_lease=True)
            change = changes.next(timeout_s=10)
            assert (change.kind, change.instance.value) == ("changed", b"green")
            with other.discover(service) as late:
                assert late.addresses == ("10.0.0.5:80",)
        change = changes.next(timeout_s=10)
        assert (change.kind, change.instance.value) == ("vanished", b"green")
        assert list(web.addresses) == []
        assert not registration.registered
    with pytest.raises(StopIteration):
        next(changes)


def test_what_came_and_went_unseen_is_not_told(client: Client, prefix: bytes) -> None:
    service = prefix.decode() + "web"
    with client.discover(service) as web:
        with client.register(service, "a"):
            pass
        with client.register(service, "b"):
            until(lambda: "b" in web.addresses)
            change = web.next(timeout_s=10)
            assert (change.kind, change.instance.address) == ("appeared", "b")


@pytest.mark.slow
def test_a_registration_comes_back(subject: Subject, client: Client, other: Client, prefix: bytes) -> None:
    service = prefix.decode() + "web"
    with client.discover(service) as web, client.register(service, "a", subject.min_ttl_s):
        first = web.next(timeout_s=10).instance
        other.revoke(first.lease_id)
        assert web.next(timeout_s=10).kind == "vanished"
        again = web.next(timeout_s=10)
        assert again.kind == "appeared"
        assert again.instance.lease_id != first.lease_id

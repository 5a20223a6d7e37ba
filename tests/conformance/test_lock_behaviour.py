# SPDX-License-Identifier: Apache-2.0
"""v3lockpb.Lock: which call gets a lock, when, and how the others are answered, by Lessor and by a real etcd."""

import base64
import json
import socket
from typing import Any

import pytest

from lessor.api.proto import lock_pb2
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.grpc_peer import Failure, GrpcPeer
from tests.conformance.lock_peer import LockPeer, key_of
from tests.conformance.subject import Subject

UNKNOWN = 2
EXPIRED = Failure(UNKNOWN, "mutex: session is expired")
NO_LEASE = Failure(UNKNOWN, "etcdserver: requested lease not found")
NO_KEY = Failure(UNKNOWN, "etcdserver: key is not provided")


@pytest.fixture
def locks(subject: Subject) -> LockPeer:
    return LockPeer(subject)


@pytest.fixture
def name(prefix: bytes) -> bytes:
    return prefix + b"lock"


# --- a free lock ------------------------------------------------------------------------------------------------------


def test_a_free_lock_is_a_key_on_the_lease(locks: LockPeer, name: bytes) -> None:
    lease_id = locks.lease()
    reply = locks.lock(name, lease_id)
    assert reply.key == b"%b/%x" % (name, lease_id)
    kv = locks.subject.get(reply.key)
    assert (kv.value, kv.lease, kv.create_revision) == (b"", lease_id, reply.header.revision)
    assert reply.header == locks.subject.do(rpc.RangeRequest(key=name)).header


def test_a_negative_lease_id_is_spelt_with_its_sign(locks: LockPeer, name: bytes) -> None:
    locks.subject.do(rpc.LeaseGrantRequest(ID=-0x77, TTL=60))
    assert locks.lock(name, -0x77).key == name + b"/-77"
    locks.end(-0x77)


@pytest.mark.parametrize("name", [b"", b"/", b"\xff\xfe", b"a b/"])
def test_any_bytes_are_a_name(locks: LockPeer, name: bytes) -> None:
    lease_id = locks.lease()
    reply = locks.lock(name, lease_id)
    assert reply.key == key_of(name, lease_id)
    locks.unlock(reply.key)


def test_without_a_lease_the_server_grants_one_of_a_minute(locks: LockPeer, name: bytes) -> None:
    reply = locks.lock(name, 0)
    lease_id = int(reply.key.removeprefix(name + b"/"), 16)
    assert lease_id > 0
    lease = locks.subject.do(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True))
    assert (lease.grantedTTL, list(lease.keys)) == (60, [reply.key])
    locks.end(lease_id)


def test_two_calls_without_a_lease_are_two_contenders(locks: LockPeer, name: bytes) -> None:
    first = locks.lock(name, 0)
    second = locks.start(lock_pb2.LockRequest(name=name))
    unlocked = locks.unlock(first.key)
    reply = second.result()
    assert reply.key != first.key
    assert reply.header.revision >= unlocked.header.revision or locks.subject.get(first.key) is None
    locks.unlock(reply.key)


def test_an_unknown_lease_is_refused_without_its_code(locks: LockPeer, name: bytes) -> None:
    assert locks.lock(name, 0xDEAD) == NO_LEASE
    assert locks.subject.get(key_of(name, 0xDEAD)) is None


def test_the_same_lease_locks_again_at_once(locks: LockPeer, name: bytes) -> None:
    lease_id = locks.lease()
    first = locks.lock(name, lease_id)
    revision = locks.subject.put(name + b"-other")
    again = locks.lock(name, lease_id)
    assert (again.key, again.header.revision) == (first.key, revision)
    assert locks.subject.get(first.key).version == 1


def test_a_key_that_is_there_already_is_the_lock(locks: LockPeer, name: bytes) -> None:
    """Whoever put it: it is not written again, not even hung on the lease."""
    lease_id = locks.lease()
    key = key_of(name, lease_id)
    locks.subject.put(key, b"mine")
    assert locks.lock(name, lease_id).key == key
    kv = locks.subject.get(key)
    assert (kv.value, kv.lease, kv.version) == (b"mine", 0, 1)


def test_one_lease_may_hold_many_locks(locks: LockPeer, name: bytes) -> None:
    lease_id = locks.lease()
    keys = [locks.lock(name + b"%d" % number, lease_id).key for number in range(5)]
    assert locks.subject.keys_of(lease_id) == sorted(keys)
    revision = locks.end(lease_id)
    assert locks.subject.revision == revision
    assert [locks.subject.get(key) for key in keys] == [None] * 5


# --- unlock -----------------------------------------------------------------------------------------------------------


def test_unlock_deletes_the_key(locks: LockPeer, name: bytes) -> None:
    reply = locks.lock(name, locks.lease())
    unlocked = locks.unlock(reply.key)
    assert unlocked.header.revision == reply.header.revision + 1
    assert locks.subject.get(reply.key) is None


def test_unlock_of_what_is_not_locked_succeeds_and_changes_nothing(locks: LockPeer, name: bytes) -> None:
    revision = locks.subject.put(name)
    assert locks.unlock(name + b"/1").header.revision == revision


def test_unlock_takes_any_key(locks: LockPeer, name: bytes) -> None:
    locks.subject.put(name)
    locks.unlock(name)
    assert locks.subject.get(name) is None


def test_unlock_needs_a_key(locks: LockPeer) -> None:
    assert locks.unlock(b"") == NO_KEY


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_the_second_waits_until_the_first_unlocks(locks: LockPeer, name: bytes) -> None:
    first = locks.lock(name, locks.lease())
    lease_id = locks.lease()
    second = locks.wait_for_lock(name, lease_id)
    assert not second.done
    unlocked = locks.unlock(first.key)
    reply = second.result()
    assert reply.key == key_of(name, lease_id)
    assert reply.header.revision == unlocked.header.revision
    assert locks.subject.get(reply.key).create_revision < unlocked.header.revision


def test_first_come_first_served(locks: LockPeer, name: bytes) -> None:
    """The ids are in the opposite order of coming: neither they nor the keys decide."""
    leases = [locks.lease() for _ in range(6)][::-1]
    holder = locks.lock(name, leases[0]).key
    waiting = [locks.wait_for_lock(name, lease_id) for lease_id in leases[1:]]
    for number, pending in enumerate(waiting):
        assert not any(later.done for later in waiting[number:])
        locks.unlock(holder)
        holder = pending.result().key
        assert holder == key_of(name, leases[number + 1])
    locks.unlock(holder)


def test_the_end_of_the_holders_lease_gives_the_lock_away(locks: LockPeer, name: bytes) -> None:
    first, second = locks.lease(), locks.lease()
    locks.lock(name, first)
    pending = locks.wait_for_lock(name, second)
    revision = locks.end(first)
    reply = pending.result()
    assert (reply.key, reply.header.revision) == (key_of(name, second), revision)


@pytest.mark.slow
def test_a_lease_that_expires_gives_the_lock_away(locks: LockPeer, name: bytes) -> None:
    first, second = locks.lease(ttl_s=locks.subject.min_ttl_s), locks.lease()
    locks.lock(name, first)
    pending = locks.wait_for_lock(name, second)
    locks.subject.pass_time(locks.subject.min_ttl_s)
    assert pending.result().key == key_of(name, second)
    assert not locks.subject.alive(first)


def test_waiting_does_not_renew_the_lease(locks: LockPeer, name: bytes) -> None:
    locks.lock(name, locks.lease())
    lease_id = locks.lease(ttl_s=1000)
    pending = locks.wait_for_lock(name, lease_id)
    assert locks.subject.do(rpc.LeaseTimeToLiveRequest(ID=lease_id)).TTL < 1000
    pending.cancel()
    locks.until_gone(key_of(name, lease_id))


def test_any_deletion_of_the_holders_key_gives_the_lock_away(locks: LockPeer, name: bytes) -> None:
    holder = locks.lock(name, locks.lease()).key
    lease_id = locks.lease()
    pending = locks.wait_for_lock(name, lease_id)
    revision = locks.subject.delete(holder)
    assert pending.result().header.revision == revision


def test_a_new_value_of_the_holders_key_does_not(locks: LockPeer, name: bytes) -> None:
    holder = locks.lock(name, locks.lease()).key
    pending = locks.wait_for_lock(name, locks.lease())
    locks.subject.put(holder, b"new")
    unlocked = locks.unlock(holder)
    assert pending.result().header.revision == unlocked.header.revision


def test_a_foreign_key_below_the_name_is_waited_for(locks: LockPeer, name: bytes) -> None:
    """A client that builds its locks from puts takes part, and so does a lock whose name goes on after a slash."""
    locks.subject.put(name + b"/somebody")
    inner = locks.lock(name + b"/inner", locks.lease())
    assert isinstance(inner, lock_pb2.LockResponse)
    pending = locks.wait_for_lock(name, locks.lease())
    locks.subject.delete(name + b"/somebody")
    assert not pending.done
    unlocked = locks.unlock(inner.key)
    assert pending.result().header.revision == unlocked.header.revision


def test_a_key_below_the_name_that_came_later_is_not_waited_for(locks: LockPeer, name: bytes) -> None:
    holder = locks.lock(name, locks.lease()).key
    pending = locks.wait_for_lock(name, locks.lease())
    locks.subject.put(name + b"/0")
    locks.unlock(holder)
    assert isinstance(pending.result(), lock_pb2.LockResponse)


@pytest.mark.parametrize("suffix", [b"x", b"0", b"\xff", b""])
def test_names_that_begin_alike_are_different_locks(locks: LockPeer, name: bytes, suffix: bytes) -> None:
    locks.subject.put(name + suffix)
    locks.subject.put(name + suffix + b"x/1")
    assert isinstance(locks.lock(name, locks.lease()), lock_pb2.LockResponse)


# --- waiting in vain --------------------------------------------------------------------------------------------------


def test_a_cancelled_call_takes_its_key_along(locks: LockPeer, name: bytes) -> None:
    first, second, third = (locks.lease() for _ in range(3))
    locks.lock(name, first)
    gone = locks.wait_for_lock(name, second)
    pending = locks.wait_for_lock(name, third)
    gone.cancel()
    locks.until_gone(key_of(name, second))
    assert not pending.done
    locks.unlock(key_of(name, first))
    assert pending.result().key == key_of(name, third)


def test_a_call_whose_deadline_passes_takes_its_key_along(locks: LockPeer, name: bytes) -> None:
    first, second = locks.lease(), locks.lease()
    locks.lock(name, first)
    locks.start(lock_pb2.LockRequest(name=name, lease=second), timeout_s=0.1)
    locks.until_there(key_of(name, second))
    locks.until_gone(key_of(name, second))
    assert locks.subject.alive(second)


def test_a_connection_that_breaks_takes_its_keys_along(locks: LockPeer, name: bytes) -> None:
    first, second = locks.lease(), locks.lease()
    locks.lock(name, first)
    with GrpcPeer(locks.subject.server.address) as other:
        other_subject: Any = other
        stub = Subject.stub(other_subject, "v3lockpb.Lock/Lock")
        _held = stub.future(lock_pb2.LockRequest(name=name, lease=second), timeout=20)
        locks.until_there(key_of(name, second))
    locks.until_gone(key_of(name, second))


def test_a_lost_lease_never_gets_the_lock(locks: LockPeer, name: bytes) -> None:
    """Lessor tells it at once, etcd when its turn would have come."""
    first, second, third = (locks.lease() for _ in range(3))
    locks.lock(name, first)
    lost = locks.wait_for_lock(name, second)
    pending = locks.wait_for_lock(name, third)
    locks.end(second)
    if locks.subject.is_lessor:
        assert lost.result() == EXPIRED
    locks.unlock(key_of(name, first))
    assert lost.result() == EXPIRED
    assert pending.result().key == key_of(name, third)


def test_a_deleted_key_never_gets_the_lock(locks: LockPeer, name: bytes) -> None:
    first, second = locks.lease(), locks.lease()
    locks.lock(name, first)
    lost = locks.wait_for_lock(name, second)
    locks.subject.delete(key_of(name, second))
    locks.unlock(key_of(name, first))
    assert lost.result() == EXPIRED


def test_two_calls_of_one_lease_wait_for_one_key(locks: LockPeer, name: bytes) -> None:
    """In etcd the end of one takes the key from the other too; in Lessor a repeated call keeps the place."""
    first, second = locks.lease(), locks.lease()
    locks.lock(name, first)
    one = locks.wait_for_lock(name, second)
    other = locks.start(lock_pb2.LockRequest(name=name, lease=second), timeout_s=0.2)
    other.wait()
    if locks.subject.is_lessor:
        assert locks.subject.get(key_of(name, second)) is not None
    else:
        locks.until_gone(key_of(name, second))
    locks.unlock(key_of(name, first))
    result = one.result()
    assert (result.key == key_of(name, second)) if locks.subject.is_lessor else (result == EXPIRED)


# --- JSON -------------------------------------------------------------------------------------------------------------


def body_of(name: bytes, lease_id: int) -> dict[str, str]:
    return {"name": base64.b64encode(name).decode(), "lease": str(lease_id)}


@pytest.mark.parametrize("version", ["v3", "v3beta"])
def test_lock_and_unlock_in_json(locks: LockPeer, name: bytes, version: str) -> None:
    lease_id = locks.lease()
    reply = locks.subject.post(f"/{version}/lock/lock", body_of(name, lease_id))
    assert reply.status == 200
    locked = reply.json()
    assert base64.b64decode(locked["key"]) == key_of(name, lease_id)
    assert int(locked["header"]["revision"]) == locks.subject.get(key_of(name, lease_id)).create_revision
    unlocked = locks.subject.post(f"/{version}/lock/unlock", {"key": locked["key"]})
    assert (unlocked.status, list(unlocked.json())) == (200, ["header"])
    assert locks.subject.get(key_of(name, lease_id)) is None


def test_errors_in_json(locks: LockPeer, name: bytes) -> None:
    reply = locks.subject.post("/v3/lock/lock", body_of(name, 0xDEAD))
    assert (reply.status, reply.json()["code"], reply.json()["message"]) == (500, UNKNOWN, NO_LEASE.text)
    reply = locks.subject.post("/v3/lock/unlock", "{}")
    assert (reply.status, reply.json()["code"], reply.json()["message"]) == (500, UNKNOWN, NO_KEY.text)


def open_request(subject: Subject, path: str, body: dict[str, str], *headers: str) -> socket.socket:
    """Sends a POST whose reply is not waited for."""
    host, port = subject.server.address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    payload = json.dumps(body)
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(payload)}", *headers, "", payload]
    connection.sendall("\r\n".join(lines).encode())
    return connection


def test_a_call_in_json_waits_for_its_turn(locks: LockPeer, name: bytes) -> None:
    first, second = locks.lease(), locks.lease()
    locks.lock(name, first)
    with open_request(locks.subject, "/v3/lock/lock", body_of(name, second)) as connection:
        locks.until_there(key_of(name, second))
        locks.unlock(key_of(name, first))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert locks.subject.get(key_of(name, second)) is not None


def test_a_json_client_that_hangs_up_takes_its_key_along(locks: LockPeer, name: bytes) -> None:
    first, second = locks.lease(), locks.lease()
    locks.lock(name, first)
    with open_request(locks.subject, "/v3/lock/lock", body_of(name, second)):
        locks.until_there(key_of(name, second))
    locks.until_gone(key_of(name, second))

# SPDX-License-Identifier: Apache-2.0
"""The remembered rights on keys of leases against a look at every key, while keys, leases and rights come and go."""

from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors, limits
from lessor.base.errors import EtcdError
from lessor.state import permissions
from lessor.state.auth import READ, READWRITE, WRITE, Spans
from lessor.state.machine import Identity, StateMachine
from lessor.state.permissions import Caller

KEYS = [b"a", b"b", b"c", b"e"]
LEASES = [1, 2]
USERS = ["u", "v", "v", "gone"]
BYTES_MAX = 1 << 20
REFUSED = limits.LEASE_RIGHTS_REFUSED_KEYS_MAX  # keys that a user may not use are looked at once more, to note them

keys = st.sampled_from(KEYS)
leases = st.sampled_from([1, 1, 2])
# Asking comes often: it is what remembers.
steps = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(USERS), leases),
    st.tuples(st.sampled_from(["ask", "read", "list"]), st.sampled_from(USERS), leases),
    st.tuples(st.sampled_from(["read", "list"]), st.sampled_from(USERS), leases),
    st.tuples(st.just("put"), keys, st.sampled_from([0, 1, 1, 2])),
    st.tuples(st.just("put"), keys, st.just(1)),
    st.tuples(st.just("delete"), keys, keys),
    st.tuples(st.just("end"), leases, st.booleans()),
    st.tuples(st.just("grant"), st.tuples(keys, st.just(b"f")), st.sampled_from([READ, WRITE, READWRITE])),
    st.tuples(st.just("revoke"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("switch"), st.just(0), st.just(0)),
)


def machine_of(users: list[str], all_until: bytes = b"z") -> StateMachine:
    machine = StateMachine(Identity(1, 2, 3))
    auth = machine.auth
    for name in ("root", *users):
        auth.add_user(name, b"", no_password=False)
    auth.grant_role("root", "root")
    auth.add_role("all")
    auth.grant_permission("all", (b"a", all_until, READWRITE))
    auth.add_role("some")
    for name in users:
        auth.grant_role(name, "all" if name == "v" else "some")
    auth.enable()
    for lease_id in LEASES:
        machine.apply(rpc.LeaseGrantRequest(ID=lease_id, TTL=60), 0.0)
    return machine


def asked(machine: StateMachine, user: str, lease_id: int) -> str | None:
    return said(machine, user, rpc.LeaseKeepAliveRequest(ID=lease_id))


def said(machine: StateMachine, user: str, request: Message) -> str | None:
    try:
        permissions.check(machine, Caller(user, machine.auth.revision), request, BYTES_MAX)
    except EtcdError as error:
        return error.message
    return None


def by_every_key(machine: StateMachine, user: str, leases: list[int], write: bool) -> str | None:
    grants = machine.auth.grants(user)
    keys = [key for lease_id in leases if (lease := machine.leases.get(lease_id)) for key in lease.keys]
    if not keys:
        return None
    may = grants is not None and all((grants.write if write else grants.read).cover(key, b"") for key in keys)
    return None if may else errors.PERMISSION_DENIED.message


class Ways:
    """The steps, each on a machine."""

    def __init__(self) -> None:
        self.machine = machine_of(["u", "v"], all_until=b"e")
        self.granted: list[tuple[bytes, bytes]] = []

    def ask(self, user: str, lease_id: int) -> None:
        machine = self.machine
        assert asked(machine, user, lease_id) == by_every_key(machine, user, [lease_id], write=True)

    def read(self, user: str, lease_id: int) -> None:
        machine = self.machine
        shown = rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True)
        assert said(machine, user, shown) == by_every_key(machine, user, [lease_id], write=False)

    def list(self, user: str, _: int) -> None:
        machine = self.machine
        assert said(machine, user, rpc.LeaseLeasesRequest()) == by_every_key(machine, user, LEASES, write=False)

    def put(self, key: bytes, lease_id: int) -> None:
        self.machine.apply(rpc.PutRequest(key=key, lease=lease_id), 0.0)

    def delete(self, key: bytes, end: bytes) -> None:
        self.machine.apply(rpc.DeleteRangeRequest(key=key, range_end=end if end > key else b""), 0.0)

    def end(self, lease_id: int, revoked: bool) -> None:
        """Ends the lease and grants another of the same id."""
        if revoked:
            self.machine.apply(rpc.LeaseRevokeRequest(ID=lease_id), 0.0)
        else:
            self.machine.expire(1_000.0, 10)
        for missing in LEASES:
            if missing not in self.machine.leases:
                self.machine.apply(rpc.LeaseGrantRequest(ID=missing, TTL=60), 0.0)

    def grant(self, where: tuple[bytes, bytes], kind: int) -> None:
        self.machine.auth.grant_permission("some", (*where, kind))
        self.granted.append(where)

    def revoke(self, index: int, _: int) -> None:
        if index < len(self.granted):
            self.machine.auth.revoke_permission("some", *self.granted[index])
            self.granted = [one for one in self.granted if one != self.granted[index]]

    def switch(self, _: int, __: int) -> None:
        self.machine.auth.disable()
        self.machine.auth.enable()


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, min_size=20, max_size=80), st.integers(0, 1), st.integers(1, 3), st.sampled_from([0, 2, 1_000]))
def test_what_is_remembered_is_what_a_look_at_every_key_says(
    taken: list[tuple[Any, ...]], keys_min: int, users_max: int, added_min: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "LEASE_RIGHTS_KEYS_MIN", keys_min)
        patch.setattr(limits, "LEASE_RIGHTS_READ_KEYS_MIN", keys_min)
        patch.setattr(limits, "LEASE_RIGHTS_USERS_MAX", users_max)
        patch.setattr(limits, "LEASE_RIGHTS_ADDED_KEYS_MIN", added_min)
        ways = Ways()
        for name, one, other in taken:
            getattr(ways, name)(one, other)
            for way in (ways.ask, ways.read, ways.list):
                way("v", 1)
        rights = ways.machine.leases.rights
        assert len(rights.of_leases) <= len(LEASES)
        assert rights.of_leases.keys() <= {lease.id for lease in ways.machine.leases}
        for record in filter(None, (*rights.of_leases.values(), rights.of_all)):
            for verdicts in filter(None, (record, record.reading)):
                assert len(verdicts.checked.keys() | verdicts.refused.keys()) <= users_max
            assert len(record.added) <= max(added_min, len(KEYS))


def test_a_renewal_or_a_put_looks_at_no_key_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    cover = Spans.cover

    def count(spans: Spans, key: bytes, range_end: bytes) -> bool:
        nonlocal looks
        looks += 1
        return cover(spans, key, range_end)

    monkeypatch.setattr(Spans, "cover", count)
    machine = machine_of(["u", "v"])
    caller = Caller("v", machine.auth.revision)
    for number in range(2_000):
        put = rpc.PutRequest(key=b"k%d" % number, lease=1)
        permissions.check(machine, caller, put, BYTES_MAX)
        machine.apply(put, 0.0)
    assert looks <= 2 * 2_000 + 17 * 17  # for each the key itself, and then the key on the lease
    looks = 0
    for _ in range(1_000):
        assert asked(machine, "v", 1) is None
        assert asked(machine, "u", 1) == errors.PERMISSION_DENIED.message
    assert looks <= REFUSED + 2
    machine.apply(rpc.LeaseRevokeRequest(ID=1), 0.0)
    assert (machine.leases.rights.of_leases, machine.leases.rights.of_all) == ({}, None)


@pytest.mark.inside
@pytest.mark.parametrize("asked_for", [rpc.LeaseTimeToLiveRequest(ID=1, keys=True), rpc.LeaseLeasesRequest()])
def test_showing_leases_with_many_keys_looks_at_no_key_twice(
    asked_for: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machine_of(["u", "v"])
    for number in range(2_000):
        machine.apply(rpc.PutRequest(key=b"k%d" % number, lease=1), 0.0)
    looks = 0
    cover, first_beyond = Spans.cover, Spans.first_beyond

    def count(spans: Spans, key: bytes, range_end: bytes) -> bool:
        nonlocal looks
        looks += 1
        return cover(spans, key, range_end)

    def count_all(spans: Spans, sets: Any) -> bytes | None:
        nonlocal looks
        looks += sum(map(len, sets))
        return first_beyond(spans, sets)

    monkeypatch.setattr(Spans, "cover", count)
    monkeypatch.setattr(Spans, "first_beyond", count_all)
    for number in range(100):
        assert said(machine, "v", asked_for) is None
        assert said(machine, "u", asked_for) == errors.PERMISSION_DENIED.message
        machine.apply(rpc.PutRequest(key=b"m%d" % number, lease=1), 0.0)
    assert looks <= 2 * 2_000 + REFUSED + 2 * 100 + 2
    for user in ("v", "u"):  # the one key that `v` may not read counts, until it goes
        machine.apply(rpc.PutRequest(key=b"z", lease=1), 0.0)
        assert said(machine, user, asked_for) == errors.PERMISSION_DENIED.message
        machine.apply(rpc.DeleteRangeRequest(key=b"z"), 0.0)
    assert said(machine, "v", asked_for) is None
    assert looks <= 2 * 2_000 + REFUSED + 2 * 100 + 10


@pytest.mark.inside
@pytest.mark.parametrize(
    "asked_for",
    [
        rpc.LeaseKeepAliveRequest(ID=1),
        rpc.LeaseTimeToLiveRequest(ID=1, keys=True),
        rpc.LeaseLeasesRequest(),
    ],
)
def test_when_the_key_that_refuses_a_user_goes_the_others_are_not_looked_at_again(
    asked_for: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machine_of(["v"])
    for number in range(2_000):
        machine.apply(rpc.PutRequest(key=b"k%d" % number, lease=1), 0.0)
    for number in range(100):
        machine.apply(rpc.PutRequest(key=b"z%d" % number, lease=1), 0.0)
    looks = 0
    first_beyond = Spans.first_beyond

    def count(spans: Spans, sets: Any) -> bytes | None:
        nonlocal looks
        looks += 1
        return first_beyond(spans, sets)

    monkeypatch.setattr(Spans, "first_beyond", count)
    for number in range(100):
        assert said(machine, "v", asked_for) == errors.PERMISSION_DENIED.message
        machine.apply(rpc.DeleteRangeRequest(key=b"z%d" % number), 0.0)
        machine.apply(rpc.PutRequest(key=b"zz%d" % number, lease=1), 0.0)
    machine.apply(rpc.DeleteRangeRequest(key=b"z", range_end=b"{"), 0.0)
    assert said(machine, "v", asked_for) is None
    assert looks == 1


def test_keys_that_come_and_go_for_ever_take_no_memory_for_ever() -> None:
    machine = machine_of(["v"])
    for number in range(20):
        machine.apply(rpc.PutRequest(key=b"k%d" % number, lease=1), 0.0)
    most = 0
    for number in range(5_000):
        assert asked(machine, "v", 1) is None
        machine.apply(rpc.PutRequest(key=b"x%d" % number, lease=1), 0.0)
        machine.apply(rpc.DeleteRangeRequest(key=b"x%d" % number), 0.0)
        most = max([most, *(len(record.added) for record in machine.leases.rights.of_leases.values())])
    assert most <= limits.LEASE_RIGHTS_ADDED_KEYS_MIN


def test_an_old_token_is_refused_whatever_is_remembered() -> None:
    machine = machine_of(["v"])
    for number in range(20):
        machine.apply(rpc.PutRequest(key=b"k%d" % number, lease=1), 0.0)
    assert asked(machine, "v", 1) is None
    old = Caller("v", machine.auth.revision - 1)
    with pytest.raises(EtcdError, match=str(errors.OLD_AUTH_REVISION.message)):
        permissions.check(machine, old, rpc.LeaseKeepAliveRequest(ID=1), BYTES_MAX)

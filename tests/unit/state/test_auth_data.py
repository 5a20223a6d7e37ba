# SPDX-License-Identifier: Apache-2.0
"""Users and roles as data: what changes, what does not, and which rows that leaves.

What calls answer is stated in tests/conformance/test_auth_users.py.
"""

from collections.abc import Callable
from itertools import combinations

import pytest

from lessor.api.proto import rpc_pb2
from lessor.base import errors
from lessor.base.errors import ErrorText, EtcdError
from lessor.state.auth import READ, READWRITE, ROOT, WRITE, Auth, Spans
from lessor.state.journal import AuthRows, Journal
from lessor.state.machine import Identity, StateMachine


def new_auth() -> tuple[Auth, Journal]:
    journal = Journal()
    return Auth(journal), journal


def rooted() -> tuple[Auth, Journal]:
    auth, journal = new_auth()
    auth.add_user(ROOT, b"hash", no_password=False)
    auth.grant_role(ROOT, ROOT)
    return auth, journal


def rows_of(journal: Journal) -> AuthRows:
    batch = journal.seal(0.0)
    assert batch.auth is not None
    assert batch.row_count == batch.auth.row_count > 0
    return batch.auth


def restored(*sealed: AuthRows) -> Auth:
    """What a boot makes of batches in their order."""
    journal = Journal()
    for rows in sealed:
        journal.auth(rows)
    auth, _ = new_auth()
    auth.load(rows_of(journal))
    return auth


def test_a_batch_without_auth_has_no_auth_rows() -> None:
    _, journal = new_auth()
    assert journal.seal(0.0).auth is None


def test_each_change_raises_the_revision_by_one() -> None:
    auth, _ = rooted()
    revision = auth.revision
    steps: list[Callable[[], None]] = [
        lambda: auth.add_role("r"),
        lambda: auth.grant_permission("r", (b"a", b"", READ)),
        lambda: auth.grant_permission("r", (b"a", b"", READ)),  # etcd counts this one too
        lambda: auth.add_user("u", b"h", no_password=False),
        lambda: auth.grant_role("u", "r"),
        lambda: auth.change_password("u", b"i"),
        lambda: auth.revoke_role("u", "r"),
        lambda: auth.revoke_permission("r", b"a", b""),
        lambda: auth.delete_role("r"),
        lambda: auth.delete_user("u"),
    ]
    for count, step in enumerate(steps, 1):
        step()
        assert auth.revision == revision + count
    auth.enable()
    auth.enable()
    assert auth.revision == revision + len(steps)
    auth.disable()
    auth.disable()
    assert auth.revision == revision + len(steps) + 1


def test_a_refusal_changes_nothing_and_leaves_no_row() -> None:
    auth, journal = rooted()
    auth.add_role("r")
    auth.enable()
    journal.seal(0.0)
    revision = auth.revision
    refused: list[tuple[Callable[[], None], ErrorText]] = [
        (lambda: auth.add_user("", b"", no_password=False), errors.USER_EMPTY),
        (lambda: auth.add_user(ROOT, b"", no_password=False), errors.USER_EXISTS),
        (lambda: auth.add_role(""), errors.ROLE_EMPTY),
        (lambda: auth.add_role("r"), errors.ROLE_EXISTS),
        (lambda: auth.grant_permission("r", (b"b", b"a", READ)), errors.INVALID_AUTH_MANAGEMENT),
        (lambda: auth.grant_permission("r", (b"", b"", READ)), errors.INVALID_AUTH_MANAGEMENT),
        (lambda: auth.grant_permission("x", (b"a", b"", READ)), errors.ROLE_NOT_FOUND),
        (lambda: auth.revoke_permission("r", b"a", b""), errors.PERMISSION_NOT_GRANTED),
        (lambda: auth.delete_user(ROOT), errors.INVALID_AUTH_MANAGEMENT),
        (lambda: auth.delete_role(ROOT), errors.INVALID_AUTH_MANAGEMENT),
        (lambda: auth.revoke_role(ROOT, ROOT), errors.INVALID_AUTH_MANAGEMENT),
        (lambda: auth.revoke_role(ROOT, "r"), errors.ROLE_NOT_GRANTED),
        (lambda: auth.grant_role(ROOT, "x"), errors.ROLE_NOT_FOUND),
        (lambda: auth.grant_role("x", ROOT), errors.USER_NOT_FOUND),
        (lambda: auth.change_password("x", b""), errors.USER_NOT_FOUND),
    ]
    for step, known in refused:
        with pytest.raises(EtcdError) as raised:
            step()
        assert raised.value.message == known.message
    assert auth.revision == revision
    assert journal.row_count == 0


def test_root_may_go_while_auth_is_off() -> None:
    auth, _ = rooted()
    auth.revoke_role(ROOT, ROOT)
    with pytest.raises(EtcdError, match="root user does not have root role"):
        auth.enable()
    auth.delete_user(ROOT)
    with pytest.raises(EtcdError, match="root user does not exist"):
        auth.enable()


def test_a_permission_replaces_the_one_on_the_same_range_only() -> None:
    auth, _ = new_auth()
    auth.add_role("r")
    for permission in ((b"a", b"b", READWRITE), (b"a", b"c", READWRITE), (b"a", b"", READWRITE)):
        auth.grant_permission("r", permission)
    auth.grant_permission("r", (b"a", b"c", READ))
    assert auth.roles["r"] == ((b"a", b"", READWRITE), (b"a", b"b", READWRITE), (b"a", b"c", READ))
    auth.add_user("u", b"", no_password=True)
    auth.grant_role("u", "r")
    grants = auth.grants("u")
    assert grants is not None
    assert grants.read.cover(b"a", b"c")
    assert not grants.write.cover(b"b", b"")  # narrowed, not added to


def test_what_a_user_may_do_follows_each_change() -> None:
    auth, _ = new_auth()
    auth.add_user("u", b"", no_password=True)
    auth.add_role("r")

    def may_write(key: bytes) -> bool:
        grants = auth.grants("u")
        return grants is not None and grants.write.cover(key, b"")

    auth.grant_permission("r", (b"a", b"", WRITE))
    assert not may_write(b"a")
    auth.grant_role("u", "r")
    assert may_write(b"a")
    auth.revoke_permission("r", b"a", b"")
    assert not may_write(b"a")
    auth.grant_permission("r", (b"a", b"", READWRITE))
    assert may_write(b"a")
    auth.delete_role("r")
    assert not may_write(b"a")
    auth.add_role("r")  # a new one by the old name is not the old one
    auth.grant_permission("r", (b"a", b"", READWRITE))
    assert not may_write(b"a")
    auth.delete_user("u")
    assert auth.grants("u") is None


@pytest.mark.parametrize(
    ("spans", "merged"),
    [
        ([(b"a", b"b"), (b"b", b"c")], [(b"a", b"c")]),
        ([(b"a", b"c"), (b"b", b"bb")], [(b"a", b"c")]),
        ([(b"a", b""), (b"b", b"c")], [(b"a", b"")]),
        ([(b"a", b"b"), (b"a", b"")], [(b"a", b"")]),
        ([(b"c", b"d"), (b"a", b"b")], [(b"a", b"b"), (b"c", b"d")]),
        ([], []),
    ],
)
def test_spans_are_merged(spans: list[tuple[bytes, bytes]], merged: list[tuple[bytes, bytes]]) -> None:
    made = Spans(spans)
    assert list(zip(made._starts, made._ends, strict=True)) == merged


def test_rows_restore_everything() -> None:
    auth, journal = rooted()
    auth.add_role("r")
    auth.grant_permission("r", (b"a\0", b"\0", READ))
    auth.add_user("u", b"$2a$", no_password=False)
    auth.add_user("cert", b"", no_password=True)
    auth.grant_role("u", "r")
    first = rows_of(journal)
    auth.add_role("gone")
    auth.grant_role("u", "gone")
    second = rows_of(journal)
    auth.delete_role("gone")
    auth.delete_user("cert")
    auth.enable()
    third = rows_of(journal)
    copy = restored(first, second, third)
    assert copy.roles == auth.roles == {"r": ((b"a\0", b"\0", READ),)}
    assert {name: user.row() for name, user in copy.users.items()} == {
        name: user.row() for name, user in auth.users.items()
    }
    assert (copy.enabled, copy.revision) == (True, auth.revision)
    grants = copy.grants("u")
    assert grants is not None
    assert grants.read.cover(b"z", b"\0")


def test_the_machine_never_looks_at_a_password() -> None:
    machine = StateMachine(Identity(1, 2, 3))
    machine.apply(rpc_pb2.AuthUserAddRequest(name="u", password="secret", hashedPassword="aGFzaA=="), 0.0)
    assert machine.auth.users["u"].password == b"hash"
    batch = machine.journal.seal(0.0)
    assert batch.auth is not None
    assert "secret" not in repr(batch.auth.users)


@pytest.mark.parametrize(
    "spans",
    [[], [(b"b", b"d")], [(b"b", b"")], [(b"", b"")], [(b"a", b"b"), (b"c", b"d")], [(b"a", b"b"), (b"c", b"")]],
)
def test_many_keys_at_once_are_told_like_one_by_one(spans: list[tuple[bytes, bytes]]) -> None:
    held = Spans(spans)
    letters = [b"a", b"b", b"c", b"c\0", b"d"]
    groups = [set(group) for size in (1, 2, 3) for group in combinations(letters, size)]
    for sets in [[], *([one] for one in groups), *([one, other] for one in groups for other in groups)]:
        beyond = [key for keys in sets for key in keys if not held.cover(key, b"")]
        found = held.first_beyond(sets)
        assert found in beyond if beyond else found is None


def test_many_keys_of_a_user_with_one_span_are_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Spans([(b"b", b"d")])
    monkeypatch.setattr(Spans, "cover", None)
    assert held.first_beyond([{b"b", b"c"}, {b"c"}]) is None
    assert held.first_beyond([{b"b", b"c"}, {b"d"}]) == b"d"

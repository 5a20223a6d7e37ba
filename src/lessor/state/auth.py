# SPDX-License-Identifier: Apache-2.0
"""Users, roles and their permissions, and the switch of auth.

Laws
- A change is made whole, with its rows in the journal, or raises `EtcdError` and has changed nothing.
- Each change but enabling adds one to the auth revision; a fresh store has revision 1. A request that changes nothing
  (a role granted twice, enabling auth twice) leaves the revision as it is.
- While auth is enabled there is a user root with the role root, so that auth can be disabled.
- Passwords come here as hashes only.

Theory of operation. A user has roles, a role has permissions, a permission is a type on a key or a range of keys. For
checks, the permissions of all roles of a user are merged once into sorted spans, for reading and for writing. The next
change throws the merged spans away. The role root needs no permissions.

Worked example: role r has read on [a, c) and both on [c, e). Its reading spans merge into [a, e), its writing ones are
[c, e): a range over [b, d) may be read, and written only from c on.

Does not do: deciding which request needs which permission (permissions.py), tokens, hashing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from lessor.base import errors
from lessor.base.key_range import OPEN_END, open_end
from lessor.base.limits import AUTH_NAME_BYTES_MAX
from lessor.state.journal import TOKEN_KEY_NAME, AuthRows, Journal, PermissionRow, RoleRow, UserRow

ROOT: Final = "root"  # the name of the first user, and of the role that needs no permissions
READ: Final = 0  # authpb.Permission.Type
WRITE: Final = 1
READWRITE: Final = 2
ROOT_PERMISSION: Final[PermissionRow] = (b"", OPEN_END, READWRITE)  # how the role root is shown


def check_name(name: str) -> None:
    """Raises NAME_TOO_LONG for a name that no user or role can have."""
    if len(name) > AUTH_NAME_BYTES_MAX or len(name.encode()) > AUTH_NAME_BYTES_MAX:
        raise errors.NAME_TOO_LONG.error()


class User:
    """One user. Replaced, not changed."""

    __slots__ = ("name", "no_password", "password", "roles")

    def __init__(self, name: str, password: bytes, no_password: bool, roles: tuple[str, ...]) -> None:
        self.name = name
        self.password = password  # a bcrypt hash; b"" when no password is accepted
        self.no_password = no_password
        self.roles = roles  # sorted

    def row(self) -> UserRow:
        return self.name, self.password, self.no_password, self.roles, False


class Spans:
    """A set of keys: ranges, merged and in order."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, spans: Iterable[tuple[bytes, bytes]]) -> None:
        """`spans`: [start, end) each; the end b"" means no upper bound."""
        self._starts: list[bytes] = []
        self._ends: list[bytes] = []
        for start, end in sorted(spans):
            last = self._ends[-1] if self._ends else None
            if last is not None and (not last or start <= last):
                if last and (not end or end > last):
                    self._ends[-1] = end
            else:
                self._starts.append(start)
                self._ends.append(end)

    def cover(self, key: bytes, range_end: bytes) -> bool:
        """Whether all keys that a request means by `key` and `range_end` are in the set. Cost: O(log n)."""
        index = bisect_right(self._starts, key) - 1
        if index < 0:
            return False
        end = self._ends[index]
        if not end:
            return True
        if key >= end:
            return False
        return not range_end or (range_end != OPEN_END and range_end <= end)

    def first_beyond(self, sets: Sequence[AbstractSet[bytes]]) -> bytes | None:
        """One of the keys in `sets` that is not in this set, or None. No set may be empty.

        Cost: for a user with one span 20 ns a key and 0.2 us a set, otherwise a search for each key.
        """
        if len(self._starts) == 1 and sets:
            least = min(map(min, sets))
            if least < self._starts[0]:
                return least
            end = self._ends[0]
            most = max(map(max, sets)) if end else end
            return most if end and most >= end else None
        for keys in sets:
            for key in keys:
                if not self.cover(key, b""):
                    return key
        return None


class Grants:
    """The keys that one user may read and write."""

    __slots__ = ("read", "root", "write")

    def __init__(self, root: bool, permissions: Iterable[PermissionRow]) -> None:
        self.root = root
        readable: list[tuple[bytes, bytes]] = []
        writable: list[tuple[bytes, bytes]] = []
        for key, range_end, kind in permissions:
            # A single key is the range up to the next possible key.
            end = open_end(range_end) if range_end else key + b"\0"
            if kind in (READ, READWRITE):
                readable.append((key, end))
            if kind in (WRITE, READWRITE):
                writable.append((key, end))
        self.read = Spans(readable)
        self.write = Spans(writable)


class Auth:
    """The auth data of one server."""

    __slots__ = ("_grants", "_journal", "enabled", "revision", "roles", "token_key", "users")

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._grants: dict[str, Grants] = {}
        self.enabled = False
        self.revision = 1
        self.users: dict[str, User] = {}
        self.token_key = b""  # that signs simple tokens, where several servers share a log; b"": none yet
        self.roles: dict[str, tuple[PermissionRow, ...]] = {}  # in the order of keys

    # --- looking ------------------------------------------------------------------------------------------------

    def is_root(self, name: str) -> bool:
        """Whether the user exists and has the role root."""
        user = self.users.get(name)
        return user is not None and ROOT in user.roles

    def grants(self, name: str) -> Grants | None:
        """The grants of a user; None when there is no such user. Merged at the first call after a change."""
        grants = self._grants.get(name)
        if grants is None:
            user = self.users.get(name)
            if user is None:
                return None
            permissions = [permission for role in user.roles for permission in self.roles.get(role, ())]
            grants = self._grants[name] = Grants(ROOT in user.roles, permissions)
        return grants

    def permissions_of(self, role: str) -> tuple[PermissionRow, ...]:
        """A role's permissions, as requests show them. Raises ROLE_NOT_FOUND."""
        permissions = self._role(role)
        return (ROOT_PERMISSION,) if role == ROOT else permissions

    def user(self, name: str) -> User:
        """Raises USER_NOT_FOUND."""
        user = self.users.get(name)
        if user is None:
            raise errors.USER_NOT_FOUND.error()
        return user

    def _role(self, name: str) -> tuple[PermissionRow, ...]:
        permissions = self.roles.get(name)
        if permissions is None:
            raise errors.ROLE_NOT_FOUND.error()
        return permissions

    # --- the switch ---------------------------------------------------------------------------------------------

    def enable(self) -> None:
        """Switches auth on. Raises ROOT_USER_MISSING, ROOT_ROLE_MISSING. Enabling twice does nothing."""
        if self.enabled:
            return
        if ROOT not in self.users:
            raise errors.ROOT_USER_MISSING.error()
        if not self.is_root(ROOT):
            raise errors.ROOT_ROLE_MISSING.error()
        self.enabled = True
        self._journal.auth(AuthRows(switch=(True, self.revision)))

    def disable(self) -> None:
        """Switches auth off: every call is permitted. Disabling twice does nothing."""
        if self.enabled:
            self.enabled = False
            self._changed()

    def change_token_key(self, key: bytes) -> None:
        """Tokens that were signed with an earlier key are void. The auth revision stays."""
        self.token_key = key
        self._journal.auth(AuthRows([(TOKEN_KEY_NAME, key, False, (), False)]))

    # --- users --------------------------------------------------------------------------------------------------

    def add_user(self, name: str, password: bytes, *, no_password: bool) -> None:
        """Raises USER_EMPTY, NAME_TOO_LONG, USER_EXISTS. `password`: its hash."""
        if not name:
            raise errors.USER_EMPTY.error()
        check_name(name)
        if name in self.users:
            raise errors.USER_EXISTS.error()
        self._put_user(User(name, password, no_password, ()))

    def delete_user(self, name: str) -> None:
        """Raises USER_NOT_FOUND, and INVALID_AUTH_MANAGEMENT for root while auth is enabled."""
        if self.enabled and name == ROOT:
            raise errors.INVALID_AUTH_MANAGEMENT.error()
        user = self.user(name)
        del self.users[name]
        self._changed(users=[(name, b"", user.no_password, (), True)])

    def change_password(self, name: str, password: bytes) -> None:
        """Raises USER_NOT_FOUND. A user that was added without a password stays without one."""
        user = self.user(name)
        self._put_user(User(name, b"" if user.no_password else password, user.no_password, user.roles))

    def grant_role(self, name: str, role: str) -> None:
        """Raises USER_NOT_FOUND, ROLE_NOT_FOUND. The role root need not have been added."""
        user = self.user(name)
        if role != ROOT:
            self._role(role)
        if role not in user.roles:
            self._put_user(User(name, user.password, user.no_password, tuple(sorted((*user.roles, role)))))

    def revoke_role(self, name: str, role: str) -> None:
        """Raises USER_NOT_FOUND, ROLE_NOT_GRANTED, and INVALID_AUTH_MANAGEMENT for root's root while auth is on."""
        if self.enabled and name == role == ROOT:
            raise errors.INVALID_AUTH_MANAGEMENT.error()
        user = self.user(name)
        if role not in user.roles:
            raise errors.ROLE_NOT_GRANTED.error()
        self._put_user(self._without_role(user, role))

    @staticmethod
    def _without_role(user: User, role: str) -> User:
        return User(user.name, user.password, user.no_password, tuple(one for one in user.roles if one != role))

    def _put_user(self, user: User) -> None:
        self.users[user.name] = user
        self._changed(users=[user.row()])

    # --- roles --------------------------------------------------------------------------------------------------

    def add_role(self, name: str) -> None:
        """Raises ROLE_EMPTY, NAME_TOO_LONG, ROLE_EXISTS."""
        if not name:
            raise errors.ROLE_EMPTY.error()
        check_name(name)
        if name in self.roles:
            raise errors.ROLE_EXISTS.error()
        self._put_role(name, ())

    def delete_role(self, name: str) -> None:
        """Takes the role from its users too. Raises ROLE_NOT_FOUND, and INVALID_AUTH_MANAGEMENT as `delete_user`."""
        if self.enabled and name == ROOT:
            raise errors.INVALID_AUTH_MANAGEMENT.error()
        self._role(name)
        del self.roles[name]
        bereft = [self._without_role(user, name) for user in self.users.values() if name in user.roles]
        self.users |= {user.name: user for user in bereft}
        self._changed(users=[user.row() for user in bereft], roles=[(name, (), True)])

    def grant_permission(self, role: str, permission: PermissionRow) -> None:
        """Gives a role a permission, in place of the role's permission on exactly that range.

        Raises ROLE_NOT_FOUND, and INVALID_AUTH_MANAGEMENT for a range without keys.
        """
        key, range_end, _ = permission
        if not key or (range_end and range_end != OPEN_END and key >= range_end):
            raise errors.INVALID_AUTH_MANAGEMENT.error()
        others = [one for one in self._role(role) if one[:2] != (key, range_end)]
        self._put_role(role, tuple(sorted((*others, permission))))

    def revoke_permission(self, role: str, key: bytes, range_end: bytes) -> None:
        """Raises ROLE_NOT_FOUND, and PERMISSION_NOT_GRANTED unless the role has a permission on exactly that range."""
        permissions = self._role(role)
        left = tuple(one for one in permissions if one[:2] != (key, range_end))
        if len(left) == len(permissions):
            raise errors.PERMISSION_NOT_GRANTED.error()
        self._put_role(role, left)

    def _put_role(self, name: str, permissions: tuple[PermissionRow, ...]) -> None:
        self.roles[name] = permissions
        self._changed(roles=[(name, permissions, False)])

    # --- rows ---------------------------------------------------------------------------------------------------

    def _changed(self, users: Iterable[UserRow] = (), roles: Iterable[RoleRow] = ()) -> None:
        self.revision += 1
        self._grants.clear()
        self._journal.auth(AuthRows(users, roles, (self.enabled, self.revision)))

    def load(self, rows: AuthRows) -> None:
        """Takes in rows, in place of earlier ones of the same users and roles; writes none. Some may be deleted."""
        for name, password, no_password, user_roles, deleted in rows.users.values():
            if name == TOKEN_KEY_NAME:
                self.token_key = password
            elif deleted:
                self.users.pop(name, None)
            else:
                self.users[name] = User(name, password, no_password, tuple(sorted(user_roles)))
        for name, permissions, deleted in rows.roles.values():
            if deleted:
                self.roles.pop(name, None)
            else:
                self.roles[name] = tuple(sorted(permissions))
        if rows.switch is not None:
            self.enabled, self.revision = rows.switch
        self._grants.clear()

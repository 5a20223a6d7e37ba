# SPDX-License-Identifier: Apache-2.0
"""The tables of users and roles: how a batch changes them, how they are read.

Laws
- A user's roles and a role's permissions are written with the user or the role, all of them, in one transaction: the
  row's batch number speaks for them too.
- What was deleted stays as a marked row until a compaction, so that a reader of new batches sees it go.

It does not: begin or end transactions, or turn SQLite's errors into ours; tables.py calls it inside of both.
"""

import sqlite3
from pathlib import Path

from lessor.durable import directory, schema
from lessor.state.journal import AuthRows


def write(connection: sqlite3.Connection, rows: AuthRows, batch: int) -> list[tuple[str, object]]:
    """Writes changed users and roles; returns the rows of `meta` that go with them."""
    users = rows.users.values()
    roles = rows.roles.values()
    for name in rows.users:
        connection.execute("DELETE FROM auth_user_role WHERE user = ?", (name,))
    for name in rows.roles:
        connection.execute("DELETE FROM auth_permission WHERE role = ?", (name,))
    schema.execute_rows(
        connection,
        schema.AUTH_USERS,
        [(name, password, no_password, deleted, batch) for name, password, no_password, _, deleted in users],
    )
    schema.execute_rows(
        connection, schema.AUTH_USER_ROLES, [(name, role) for name, _, _, granted, _ in users for role in granted]
    )
    schema.execute_rows(connection, schema.AUTH_ROLES, [(name, deleted, batch) for name, _, deleted in roles])
    schema.execute_rows(
        connection, schema.AUTH_PERMISSIONS, [(name, *one) for name, granted, _ in roles for one in granted]
    )
    if rows.switch is None:
        return []
    enabled, revision = rows.switch
    return [("auth_enabled", int(enabled)), ("auth_revision", revision)]


def load(connection: sqlite3.Connection, path: Path) -> AuthRows:
    """All users and roles that were not deleted, and the switch. DataDirError when the rows cannot be those."""
    user_roles: dict[str, list[str]] = {}
    for user, role in connection.execute("SELECT user, role FROM auth_user_role ORDER BY user, role"):
        user_roles.setdefault(user, []).append(role)
    permissions: dict[str, list[tuple[bytes, bytes, int]]] = {}
    for role, key, range_end, kind in connection.execute(
        "SELECT role, key, range_end, type FROM auth_permission ORDER BY role, key, range_end"
    ):
        permissions.setdefault(role, []).append((bytes(key), bytes(range_end), kind))
    users = connection.execute("SELECT name, password, no_password FROM auth_user WHERE NOT deleted")
    roles = connection.execute("SELECT name FROM auth_role WHERE NOT deleted")
    meta = dict(connection.execute("SELECT name, value FROM meta WHERE name IN ('auth_enabled', 'auth_revision')"))
    revision = meta.get("auth_revision")
    if meta.get("auth_enabled") not in (0, 1) or not isinstance(revision, int) or revision < 1:
        raise directory.damaged(path, f"meta.auth_enabled and meta.auth_revision are {meta}")
    return AuthRows(
        users=[
            (name, bytes(password), bool(no_password), tuple(user_roles.get(name, ())), False)
            for name, password, no_password in users
        ],
        roles=[(name, tuple(permissions.get(name, ())), False) for (name,) in roles],
        switch=(bool(meta["auth_enabled"]), revision),
    )


def sweep(connection: sqlite3.Connection, before_batch: int) -> None:
    """Deletes the marked rows of batches before a compaction's."""
    connection.execute("DELETE FROM auth_user WHERE deleted AND batch < ?", (before_batch,))
    connection.execute("DELETE FROM auth_role WHERE deleted AND batch < ?", (before_batch,))

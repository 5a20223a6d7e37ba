# SPDX-License-Identifier: Apache-2.0
"""`lessor role`: add, delete, get, list, grant-permission, revoke-permission. Arguments and outputs are etcdctl's."""

import os
from typing import TYPE_CHECKING, cast

import click

from lessor.cli import printing
from lessor.cli.auth import auth_call, change, only
from lessor.cli.failure import BAD_ARGS, Failure
from lessor.cli.notation import quote
from lessor.cli.options import Command, Group, settings_of
from lessor.cli.print_auth import check_format, role_text, show
from lessor.cli.terminal import word_text

if TYPE_CHECKING:
    from lessor.api.proto import rpc_pb2 as rpc

EXCLUSIVE = "--from-key and --prefix flags are mutually exclusive"

one_name = click.argument("args", nargs=-1, metavar="NAME")
prefix_option = click.option("--prefix", is_flag=True, help="All keys that begin with KEY.")
from_key_option = click.option("--from-key", is_flag=True, help="KEY and all keys after it, in byte order.")


def permitted_range(args: tuple[str, ...], *, prefix: bool, from_key: bool) -> tuple[bytes, bytes]:
    """The key and range end that KEY [ENDKEY] and the flags mean. An empty KEY is the first possible one."""
    from lessor.client import FROM_KEY, prefix_end

    key = os.fsencode(args[0])
    if prefix and from_key and (len(args) == 1 or not key):
        raise Failure(BAD_ARGS, EXCLUSIVE)
    if not key:
        return b"\0", FROM_KEY if prefix or from_key else b""
    if len(args) > 1:
        if prefix or from_key:
            flag = "--prefix" if prefix else "--from-key"
            raise Failure(BAD_ARGS, f"unexpected endkey argument with {flag} flag")
        return key, os.fsencode(args[1])
    return key, prefix_end(key) if prefix else FROM_KEY if from_key else b""


@click.command("add", cls=Command)
@one_name
@click.pass_context
def add(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Add a role, which may do nothing yet."""
    from lessor.api.proto import rpc_pb2

    only(args, 1, "role add command requires role name as its argument")
    change(ctx, "RoleAdd", rpc_pb2.AuthRoleAddRequest(name=args[0]), f"Role {args[0]} created")


@click.command("delete", cls=Command)
@one_name
@click.pass_context
def delete(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Delete a role, and take it from its users."""
    from lessor.api.proto import rpc_pb2

    only(args, 1, "role delete command requires role name as its argument")
    change(ctx, "RoleDelete", rpc_pb2.AuthRoleDeleteRequest(role=args[0]), f"Role {args[0]} deleted")


@click.command("get", cls=Command)
@one_name
@click.pass_context
def get(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Show what a role may do."""
    from lessor.api.proto import rpc_pb2

    only(args, 1, "role get command requires role name as its argument")
    settings = settings_of(ctx)
    check_format(settings)
    reply = cast("rpc.AuthRoleGetResponse", auth_call(settings, "RoleGet", rpc_pb2.AuthRoleGetRequest(role=args[0])))
    printing.write(role_text(settings, args[0], reply))


@click.command("list", cls=Command)
@click.argument("args", nargs=-1, metavar="")
@click.pass_context
def list_(ctx: click.Context, args: tuple[str, ...]) -> None:
    """List all roles."""
    from lessor.api.proto import rpc_pb2

    only(args, 0, "role list command requires no arguments")
    settings = settings_of(ctx)
    check_format(settings)
    reply = cast("rpc.AuthRoleListResponse", auth_call(settings, "RoleList", rpc_pb2.AuthRoleListRequest()))
    simple = "".join(f"{word_text(name)}\n" for name in reply.roles).encode()
    names = "".join(f" {quote(name.encode())}" for name in reply.roles)
    printing.write(show(settings, reply, simple, [f'"Roles" :{names}']))


@click.command("grant-permission", cls=Command)
@click.argument("args", nargs=-1, metavar="NAME read|write|readwrite KEY [ENDKEY]")
@prefix_option
@from_key_option
@click.pass_context
def grant_permission(ctx: click.Context, args: tuple[str, ...], prefix: bool, from_key: bool) -> None:
    """Let a role read, write or both on KEY, or on the keys from KEY up to but not including ENDKEY."""
    from lessor.api.proto import auth_pb2, rpc_pb2

    if len(args) < 3:
        needs = "role name, permission type, and key [endkey] as its argument"
        raise Failure(BAD_ARGS, f"role grant command requires {needs}")
    name, kind, *keys = args
    if kind.upper() not in auth_pb2.Permission.Type.keys():  # noqa: SIM118 - an enum, not a dict
        raise Failure(BAD_ARGS, f"invalid permission type: {kind}")
    key, range_end = permitted_range(tuple(keys), prefix=prefix, from_key=from_key)
    permission = auth_pb2.Permission(permType=kind.upper(), key=key, range_end=range_end)
    request = rpc_pb2.AuthRoleGrantPermissionRequest(name=name, perm=permission)
    change(ctx, "RoleGrantPermission", request, f"Role {name} updated")


@click.command("revoke-permission", cls=Command)
@click.argument("args", nargs=-1, metavar="NAME KEY [ENDKEY]")
@prefix_option
@from_key_option
@click.pass_context
def revoke_permission(ctx: click.Context, args: tuple[str, ...], prefix: bool, from_key: bool) -> None:
    """Take a permission from a role; the range must be exactly the one that was granted."""
    from lessor.api.proto import rpc_pb2

    if len(args) < 2:
        raise Failure(BAD_ARGS, "role revoke-permission command requires role name and key [endkey] as its argument")
    name, *keys = args
    key, range_end = permitted_range(tuple(keys), prefix=prefix, from_key=from_key)
    request = rpc_pb2.AuthRoleRevokePermissionRequest(role=name, key=key, range_end=range_end)
    what = f"key {keys[0]}" if not range_end else f"range [{keys[0]}, "
    if range_end:
        what += "<open ended>" if range_end == b"\0" else f"{os.fsdecode(range_end)})"
    change(ctx, "RoleRevokePermission", request, f"Permission of {what} is revoked from role {name}")


role = Group(
    "role",
    help="Manage roles and what they may do.",
    loaders={
        "add": ("Add a role.", lambda: add),
        "delete": ("Delete a role.", lambda: delete),
        "get": ("Show what a role may do.", lambda: get),
        "list": ("List all roles.", lambda: list_),
        "grant-permission": ("Let a role read or write keys.", lambda: grant_permission),
        "revoke-permission": ("Take a permission from a role.", lambda: revoke_permission),
    },
)

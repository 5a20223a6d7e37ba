# SPDX-License-Identifier: Apache-2.0
"""`lessor user`: add, delete, get, list, passwd, grant-role, revoke-role. Arguments, outputs, exit codes as etcdctl.

A password is asked for on the terminal, twice, unless it comes with the name (`add ann:secret`), with
--new-user-password, or in a line of stdin (--interactive=false).
"""

import getpass
import sys
from typing import TYPE_CHECKING, Any, cast

import click

from lessor.cli import printing
from lessor.cli.asking import ask
from lessor.cli.auth import AUTH, auth_call, change, only
from lessor.cli.failure import BAD_ARGS, Failure
from lessor.cli.options import Command, Group, Settings, settings_of
from lessor.cli.print_auth import check_format, role_text, show
from lessor.cli.terminal import word_text

if TYPE_CHECKING:
    from lessor.api.proto import rpc_pb2 as rpc
    from lessor.client import AsyncClient


one_name = click.argument("args", nargs=-1, metavar="NAME")
name_and_role = click.argument("args", nargs=-1, metavar="NAME ROLE")
interactive_option = click.option(
    "--interactive/--no-interactive",
    default=True,
    help="Ask for the password on the terminal (default true); --interactive=false reads it from stdin.",
)


def _asked_twice(name: str) -> str:
    try:
        first = getpass.getpass(f"Password of {name}: ")
        if not first:
            raise Failure(BAD_ARGS, "empty password")
        if getpass.getpass(f"Type password of {name} again for confirmation: ") != first:
            raise Failure(BAD_ARGS, "given passwords are different")
    except EOFError:
        raise Failure(BAD_ARGS, "failed to ask password: EOF") from None
    return first


def _password(name: str, interactive: bool) -> str:
    if interactive:
        return _asked_twice(name)
    words = sys.stdin.readline().split()
    return words[0] if words else ""


@click.command("add", cls=Command)
@click.argument("args", nargs=-1, metavar="NAME[:PASSWORD]")
@interactive_option
@click.option("--new-user-password", default="", metavar="PASSWORD", help="The new user's password.")
@click.option("--no-password", is_flag=True, help="The user has none and comes with a client certificate.")
@click.pass_context
def add(
    ctx: click.Context, args: tuple[str, ...], interactive: bool, new_user_password: str, no_password: bool
) -> None:
    """Add a user."""
    from lessor.api.proto import auth_pb2, rpc_pb2

    only(args, 1, "user add command requires user name as its argument")
    name, colon, password = args[0].partition(":")
    if no_password or new_user_password:
        name, password = args[0], new_user_password
    elif not colon:
        password = _password(name, interactive)
    elif not name:
        raise Failure(BAD_ARGS, "empty user name is not allowed")
    options = auth_pb2.UserAddOptions(no_password=no_password)
    request = rpc_pb2.AuthUserAddRequest(name=name, password="" if no_password else password, options=options)
    change(ctx, "UserAdd", request, f"User {name} created")


@click.command("delete", cls=Command)
@one_name
@click.pass_context
def delete(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Delete a user; its tokens end."""
    from lessor.api.proto import rpc_pb2

    only(args, 1, "user delete command requires user name as its argument")
    change(ctx, "UserDelete", rpc_pb2.AuthUserDeleteRequest(name=args[0]), f"User {args[0]} deleted")


@click.command("get", cls=Command)
@one_name
@click.option("--detail", is_flag=True, help="Show the permissions of the user's roles too.")
@click.pass_context
def get(ctx: click.Context, args: tuple[str, ...], detail: bool) -> None:
    """Show a user's roles."""
    from lessor.api.proto import rpc_pb2

    only(args, 1, "user get command requires user name as its argument")
    name = args[0]
    settings = settings_of(ctx)
    check_format(settings, fields=detail)
    if detail:
        printing.write(ask(settings, lambda client: _detail(client, settings, name)))
        return
    reply = cast("rpc.AuthUserGetResponse", auth_call(settings, "UserGet", rpc_pb2.AuthUserGetRequest(name=name)))
    roles = "".join(f" {word_text(role)}" for role in reply.roles)
    printing.write(show(settings, reply, f"User: {word_text(name)}\nRoles:{roles}\n".encode()))


async def _detail(client: "AsyncClient", settings: Settings, name: str) -> bytes:
    """The user's name, and each role as `role get` prints it: as in etcdctl, whatever the format."""
    from lessor.api.proto import rpc_pb2

    text = f"User: {word_text(name)}\n".encode()
    user: Any = await client.call(f"{AUTH}UserGet", rpc_pb2.AuthUserGetRequest(name=name))
    for role in user.roles:
        reply: Any = await client.call(f"{AUTH}RoleGet", rpc_pb2.AuthRoleGetRequest(role=role))
        text += b"\n" + role_text(settings, role, reply)
    return text


@click.command("list", cls=Command)
@click.argument("args", nargs=-1, metavar="")
@click.pass_context
def list_(ctx: click.Context, args: tuple[str, ...]) -> None:
    """List all users."""
    from lessor.api.proto import rpc_pb2

    only(args, 0, "user list command requires no arguments")
    settings = settings_of(ctx)
    check_format(settings, fields=False)
    reply = cast("rpc.AuthUserListResponse", auth_call(settings, "UserList", rpc_pb2.AuthUserListRequest()))
    printing.write(show(settings, reply, "".join(f"{word_text(name)}\n" for name in reply.users).encode()))


@click.command("passwd", cls=Command)
@one_name
@interactive_option
@click.pass_context
def passwd(ctx: click.Context, args: tuple[str, ...], interactive: bool) -> None:
    """Change a user's password; its tokens end."""
    from lessor.api.proto import rpc_pb2

    only(args, 1, "user passwd command requires user name as its argument")
    password = _password(args[0], interactive)
    request = rpc_pb2.AuthUserChangePasswordRequest(name=args[0], password=password)
    change(ctx, "UserChangePassword", request, "Password updated")


@click.command("grant-role", cls=Command)
@name_and_role
@click.pass_context
def grant_role(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Grant a role to a user."""
    from lessor.api.proto import rpc_pb2

    only(args, 2, "user grant command requires user name and role name as its argument")
    name, role = args
    change(
        ctx,
        "UserGrantRole",
        rpc_pb2.AuthUserGrantRoleRequest(user=name, role=role),
        f"Role {role} is granted to user {name}",
    )


@click.command("revoke-role", cls=Command)
@name_and_role
@click.pass_context
def revoke_role(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Revoke a role from a user."""
    from lessor.api.proto import rpc_pb2

    only(args, 2, "user revoke-role requires user name and role name as its argument")
    name, role = args
    change(
        ctx,
        "UserRevokeRole",
        rpc_pb2.AuthUserRevokeRoleRequest(name=name, role=role),
        f"Role {role} is revoked from user {name}",
    )


user = Group(
    "user",
    help="Manage users.",
    loaders={
        "add": ("Add a user.", lambda: add),
        "delete": ("Delete a user.", lambda: delete),
        "get": ("Show a user's roles.", lambda: get),
        "list": ("List all users.", lambda: list_),
        "passwd": ("Change a user's password.", lambda: passwd),
        "grant-role": ("Grant a role to a user.", lambda: grant_role),
        "revoke-role": ("Revoke a role from a user.", lambda: revoke_role),
    },
)

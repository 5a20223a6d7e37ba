# SPDX-License-Identifier: Apache-2.0
"""`lessor auth`: enable, disable, status. Same arguments, outputs and exit codes as etcdctl.

Also the helpers of `user` and `role`: most of their commands are one call whose reply says only that it succeeded.
"""

from typing import TYPE_CHECKING, Any, cast

import click

from lessor.cli import printing
from lessor.cli.asking import ask
from lessor.cli.failure import BAD_ARGS, Failure
from lessor.cli.many import call
from lessor.cli.options import Command, Group, Settings, settings_of
from lessor.cli.print_auth import check_format, raw, show

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from lessor.client import AsyncClient

AUTH = "/etcdserverpb.Auth/"


def only(args: tuple[str, ...], count: int, complaint: str) -> None:
    if len(args) != count:
        raise Failure(BAD_ARGS, complaint)


def auth_call(settings: Settings, method: str, request: "Message") -> Any:
    return call(settings, AUTH + method, request)


def change(ctx: click.Context, method: str, request: "Message", sentence: str) -> None:
    """Makes a call that changes something, and prints its reply; the simple format prints `sentence`."""
    settings = settings_of(ctx)
    check_format(settings)
    printing.write(show(settings, auth_call(settings, method, request), raw(sentence + "\n")))


def _none(args: tuple[str, ...], command: str) -> None:
    if args:
        raise Failure(BAD_ARGS, f"auth {command} command does not accept any arguments")


no_arguments = click.argument("args", nargs=-1, metavar="")


@click.command("enable", cls=Command)
@no_arguments
@click.pass_context
def enable(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Switch authentication on. The user root must exist; it gets the role root if it lacks that."""
    from lessor.api.proto import rpc_pb2 as rpc
    from lessor.base.errors import ROLE_EXISTS, ROOT_ROLE_MISSING

    _none(args, "enable")

    async def switch_on(client: "AsyncClient") -> None:
        from lessor.client import ServerError

        try:
            await client.call(f"{AUTH}AuthEnable", rpc.AuthEnableRequest())
            return
        except ServerError as error:
            if error.message != ROOT_ROLE_MISSING.message:
                raise
        try:
            await client.call(f"{AUTH}RoleAdd", rpc.AuthRoleAddRequest(name="root"))
        except ServerError as error:
            if error.message != ROLE_EXISTS.message:
                raise
        await client.call(f"{AUTH}UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root"))
        await client.call(f"{AUTH}AuthEnable", rpc.AuthEnableRequest())

    ask(settings_of(ctx), switch_on)
    printing.write(b"Authentication Enabled\n")


@click.command("disable", cls=Command)
@no_arguments
@click.pass_context
def disable(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Switch authentication off: everybody may do everything."""
    from lessor.api.proto import rpc_pb2 as rpc

    _none(args, "disable")
    auth_call(settings_of(ctx), "AuthDisable", rpc.AuthDisableRequest())
    printing.write(b"Authentication Disabled\n")


@click.command("status", cls=Command)
@no_arguments
@click.pass_context
def status(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Show whether authentication is on, and the revision of users and roles."""
    from lessor.api.proto import rpc_pb2 as rpc

    _none(args, "status")
    settings = settings_of(ctx)
    check_format(settings, fields=False)
    reply = cast(rpc.AuthStatusResponse, auth_call(settings, "AuthStatus", rpc.AuthStatusRequest()))
    text = f"Authentication Status: {str(reply.enabled).lower()}\nAuthRevision: {reply.authRevision}\n"
    printing.write(show(settings, reply, text.encode()))


auth = Group(
    "auth",
    help="Switch authentication on and off.",
    loaders={
        "enable": ("Switch authentication on.", lambda: enable),
        "disable": ("Switch authentication off.", lambda: disable),
        "status": ("Show whether authentication is on.", lambda: status),
    },
)

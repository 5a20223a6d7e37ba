# SPDX-License-Identifier: Apache-2.0
"""`lessor lease`: grant, revoke, timetolive, list, keep-alive, with etcdctl's arguments, outputs and exit codes; watch.

Beyond etcdctl: a TTL may have a unit (30s, 5m, 2h). Ids may be decimal: one of them with a mark
(`0d7587845169630795786`), or all of a command with `--decimal`, which also prints them so. `list` takes flags
(lease_list.py), and `watch` is our own (lease_watch.py).
"""

import os
from typing import TYPE_CHECKING

import click

from lessor.cli import notation, printing
from lessor.cli.asking import ask, ask_once
from lessor.cli.failure import BAD_ARGS, BAD_CONNECTION, Failure
from lessor.cli.options import DURATION, Command, GoValue, Group, settings_of
from lessor.cli.printer import Printer

if TYPE_CHECKING:
    from lessor.api.proto import rpc_pb2 as rpc
    from lessor.client import AsyncClient


def _order(text: str) -> str:
    if text not in ("remaining", "id", "keys"):
        raise ValueError("expecting remaining, id or keys")
    return text


arguments = click.argument("args", nargs=-1, metavar="LEASE_ID")
SORT = GoValue("order", _order)
decimal_option = click.option("--decimal", is_flag=True, help="Read and print lease ids in decimal.")


def _printer(ctx: click.Context, decimal: bool) -> Printer:
    settings = settings_of(ctx)
    return printing.choose(settings.output_format, hexadecimal=settings.hexadecimal, decimal=decimal)


def _only(args: tuple[str, ...], complaint: str) -> str:
    if len(args) != 1:
        raise Failure(BAD_ARGS, complaint)
    return args[0]


def _lease_id(args: tuple[str, ...], decimal: bool, complaint: str) -> int:
    text = _only(args, complaint)
    try:
        return notation.lease_id(text, decimal=decimal)
    except ValueError as error:
        raise Failure(BAD_ARGS, f"bad lease ID arg ({error}), {notation.expecting_id(text, decimal=decimal)}") from None


@click.command("grant", cls=Command)
@click.argument("args", nargs=-1, metavar="TTL")
@decimal_option
@click.pass_context
def grant(ctx: click.Context, args: tuple[str, ...], decimal: bool) -> None:
    """Grant a lease of TTL seconds, or of a time with a unit: 30s, 5m, 2h."""
    text = _only(args, "lease grant command needs TTL argument")
    try:
        ttl_s = notation.ttl_s(text)
    except ValueError as error:
        raise Failure(BAD_ARGS, f"bad TTL ({error})") from None
    printer = _printer(ctx, decimal)
    reply = ask_once(settings_of(ctx), lambda calls: calls.grant(ttl_s), failed_to="grant lease")
    printing.write(printer.grant(reply))


@click.command("revoke", cls=Command)
@arguments
@decimal_option
@click.pass_context
def revoke(ctx: click.Context, args: tuple[str, ...], decimal: bool) -> None:
    """Revoke a lease: it ends at once, and its keys are deleted."""
    lease_id = _lease_id(args, decimal, "lease revoke command needs 1 argument")
    printer = _printer(ctx, decimal)
    reply = ask_once(settings_of(ctx), lambda calls: calls.revoke(lease_id), failed_to="revoke lease")
    printing.write(printer.revoke(lease_id, reply))


@click.command("timetolive", cls=Command)
@arguments
@click.option("--keys", is_flag=True, help="Show the keys attached to the lease.")
@decimal_option
@click.pass_context
def timetolive(ctx: click.Context, args: tuple[str, ...], keys: bool, decimal: bool) -> None:
    """Show the granted and the remaining TTL of a lease."""
    lease_id = _lease_id(args, decimal, "lease timetolive command needs lease ID as argument")
    printer = _printer(ctx, decimal)
    reply = ask_once(settings_of(ctx), lambda calls: calls.time_to_live(lease_id, keys=keys), exit_code=BAD_CONNECTION)
    printing.write(printer.time_to_live(reply, keys))


@click.command("list", cls=Command)
@click.argument("args", nargs=-1, metavar="")
@click.option("--long", is_flag=True, help="Show granted and remaining TTL, the number of keys, and the keys.")
@click.option("--expiring-in", type=DURATION, default=0.0, help="Only leases with at most so long left: 30s, 5m.")
@click.option("--prefix", default="", help="Only leases with a key that begins so.")
@click.option("--sort", type=SORT, help="Order by remaining (default), id or keys (most first).")
@decimal_option
@click.pass_context
def list_(
    ctx: click.Context,
    args: tuple[str, ...],
    long: bool,
    expiring_in: float,
    prefix: str,
    sort: str | None,
    decimal: bool,
) -> None:
    """List the ids of all leases, the one that ends first at the top.

    The flags are beyond etcdctl; a server other than Lessor is asked about each lease by itself for them.
    """
    printer = _printer(ctx, decimal)
    if long or expiring_in > 0 or prefix or sort:
        from lessor.cli.lease_list import Wanted, show

        show(settings_of(ctx), Wanted(os.fsencode(prefix), expiring_in, sort or "remaining", long), printer, decimal)
        return
    printing.write(printer.leases(ask_once(settings_of(ctx), lambda calls: calls.leases(), exit_code=BAD_CONNECTION)))


@click.command("keep-alive", cls=Command)
@arguments
@click.option("--once", is_flag=True, help="Renew once and exit.")
@decimal_option
@click.pass_context
def keep_alive(ctx: click.Context, args: tuple[str, ...], once: bool, decimal: bool) -> None:
    """Renew a lease at every third of its TTL, until it ends or Ctrl-C."""
    lease_id = _lease_id(args, decimal, "lease keep-alive command needs lease ID as argument")
    printer = _printer(ctx, decimal)

    if once:
        renewed = ask_once(settings_of(ctx), lambda calls: calls.keep_alive_once(lease_id), exit_code=BAD_CONNECTION)
        printing.write(printer.keep_alive(renewed))
        return

    async def renew(client: "AsyncClient") -> None:
        reply: rpc.LeaseKeepAliveResponse
        async for reply in client.keep_alive(lease_id):
            printing.write(printer.keep_alive(reply))
        printing.write(printer.lease_gone(lease_id))

    ask(settings_of(ctx), renew, exit_code=BAD_CONNECTION)


def _watch() -> click.Command:
    from lessor.cli.lease_watch import watch

    return watch


lease = Group(
    "lease",
    help="Grant, renew, show and end leases.",
    loaders={
        "grant": ("Grant a lease.", lambda: grant),
        "revoke": ("Revoke a lease.", lambda: revoke),
        "timetolive": ("Show the granted and the remaining TTL of a lease.", lambda: timetolive),
        "list": ("List the ids of all leases.", lambda: list_),
        "keep-alive": ("Keep a lease alive.", lambda: keep_alive),
        "watch": ("Print what becomes of leases, as it happens.", _watch),
    },
)

# SPDX-License-Identifier: Apache-2.0
"""`lessor lease watch`: prints grants, expiries and revocations as they happen, one line for each, until Ctrl-C.

A lost connection is made again, and one line on stderr says so. Events from the time without one are printed then, as
far as a list of the leases shows them (see lease_follow.py).
"""

from typing import TYPE_CHECKING

import click

from lessor.api.proto import leases_pb2
from lessor.cli import printing
from lessor.cli.asking import ask
from lessor.cli.failure import INTERRUPTED
from lessor.cli.lease_follow import Follower, resumed
from lessor.cli.options import Command, Settings, settings_of
from lessor.cli.print_json import line
from lessor.cli.printer import id_text
from lessor.cli.terminal import complain

if TYPE_CHECKING:
    from lessor.client import AsyncClient, ClientError


@click.command("watch", cls=Command)
@click.argument("args", nargs=-1, metavar="")
@click.option("--decimal", is_flag=True, help="Print lease ids in decimal.")
@click.pass_context
def watch(ctx: click.Context, args: tuple[str, ...], decimal: bool) -> None:
    """Print what becomes of leases from now on: granted, expired, revoked. Renewals are not told. Lessor only.

    A lost connection is made again. A lease that is gone by then has "ended": how, nobody tells any more.
    """
    settings = settings_of(ctx)
    printing.choose(settings.output_format)  # refuses an unknown format

    def report(response: leases_pb2.LeaseWatchResponse) -> None:
        printing.write(response_bytes(response, settings, decimal))

    async def follow(client: "AsyncClient") -> None:
        await resumed(Follower(client, report).follow, say_lost)

    ask(settings, follow, exit_code=INTERRUPTED)


def say_lost(error: "ClientError") -> None:
    complain(f"connection lost, retrying: {error}")


def response_bytes(response: leases_pb2.LeaseWatchResponse, settings: Settings, decimal: bool) -> bytes:
    """A response as it is printed; nothing for the one that only says that the watch has begun."""
    if settings.output_format == "protobuf":
        return response.SerializeToString()
    return b"".join(event_bytes(event, settings, decimal) for event in response.events)


def event_bytes(event: leases_pb2.LeaseEvent, settings: Settings, decimal: bool) -> bytes:
    kind = leases_pb2.LeaseEvent.Type.Name(event.type)
    if settings.output_format == "json":
        numbers = {"id": event.ID, "ttl": event.TTL, "key-count": event.key_count, "revision": event.revision}
        return line({"type": kind.lower(), **numbers})
    if settings.output_format == "fields":
        shown = id_text(event.ID, decimal=decimal or not settings.hexadecimal)
        text = f'"Type" : {kind}\n"ID" : {shown}\n"TTL" : {event.TTL}\n'
        return f'{text}"KeyCount" : {event.key_count}\n"Revision" : {event.revision}\n'.encode()
    keys = f", {event.key_count} key{'s' * (event.key_count > 1)} deleted in revision {event.revision}"
    text = f"lease {id_text(event.ID, decimal=decimal)} {kind.lower()}, TTL({event.TTL}s)"
    return f"{text}{keys if event.key_count else ''}\n".encode()

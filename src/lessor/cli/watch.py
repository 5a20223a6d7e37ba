# SPDX-License-Identifier: Apache-2.0
"""`lessor watch`: prints changes as they happen, or runs a command for each. Same arguments and outputs as etcdctl.

The key and range end may come from ETCDCTL_WATCH_KEY and ETCDCTL_WATCH_RANGE_END instead of the line. What stands after
`--` is a command that is run for each event, with ETCD_WATCH_REVISION, ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY and
ETCD_WATCH_VALUE in its environment.

A lost connection is not the end: the client resumes after the last event that it saw. The server ending the watch is.
"""

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click

from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli import printing
from lessor.cli.failure import BAD_ARGS, ERROR, INTERRUPTED, Failure
from lessor.cli.notation import quote
from lessor.cli.options import INT64, Command, settings_of
from lessor.cli.printing import Printer
from lessor.cli.session import ask

if TYPE_CHECKING:
    from lessor.client import AsyncClient

WRONG_NUMBER = "bad number of arguments"
COMMAND_KEY = "lessor.watch.command"


class WatchCommand(Command):
    """Keeps what stands after `--` apart; click would mix it with the arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        line, separator, command = args, "", []
        if "--" in args:
            at = args.index("--")
            line, separator, command = args[:at], "--", args[at + 1 :]
        if separator and not command:
            raise Failure(BAD_ARGS, f"{WRONG_NUMBER} (found separator --, but no commands)")
        ctx.meta[COMMAND_KEY] = command
        return super().parse_args(ctx, line)


def watched(args: tuple[str, ...], *, prefix: bool) -> tuple[bytes, bytes]:
    """The key and range end to watch, from the line or else the environment. Failure when there is none, or both."""
    from lessor.client import prefix_end

    key, range_end = os.environ.get("ETCDCTL_WATCH_KEY", ""), os.environ.get("ETCDCTL_WATCH_RANGE_END", "")
    if range_end and not key:
        raise Failure(
            BAD_ARGS, f"ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={quote(os.fsencode(range_end))}"
        )
    if key and args:
        raise Failure(BAD_ARGS, f"{WRONG_NUMBER} (found conflicting environment key)")
    if key:
        args = (key, range_end) if range_end else (key,)
    if not args:
        raise Failure(BAD_ARGS, WRONG_NUMBER)
    # A third argument makes etcdctl forget the second one; that is not worth keeping.
    if len(args) > 2:
        raise Failure(BAD_ARGS, WRONG_NUMBER)
    first = os.fsencode(args[0])
    if len(args) == 2:
        if prefix:
            raise Failure(BAD_ARGS, "`range_end` and `--prefix` are mutually exclusive")
        return first, os.fsencode(args[1])
    if prefix:
        return (first, prefix_end(first)) if first else (b"\0", b"\0")
    return first, b""


def show(reply: rpc.WatchResponse, printer: Printer, command: list[str]) -> None:
    """Prints one response and runs the command for each of its events. Failure when the watch or the command failed."""
    if reply.created and reply.canceled:
        # A watch that the server refused: of its answer the Go client keeps nothing but that.
        reply = rpc.WatchResponse(canceled=True, cancel_reason=reply.cancel_reason)
    if reply.canceled:
        print(f"watch was canceled ({why_canceled(reply)})", file=sys.stderr)
    elif not reply.events and reply.header.revision:
        printing.write(b"progress notify: %d\n" % reply.header.revision)
    printing.write(printer.watch(reply))
    for event in reply.events if command else ():
        environment = {
            **os.environ,
            "ETCD_WATCH_REVISION": str(reply.header.revision),
            "ETCD_WATCH_EVENT_TYPE": '"DELETE"' if event.type else '"PUT"',
            "ETCD_WATCH_KEY": quote(event.kv.key),
            "ETCD_WATCH_VALUE": quote(event.kv.value),
        }
        try:
            subprocess.run(command, env=environment, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failure(ERROR, f"command {command} failed: {error}") from None
    if reply.canceled:
        raise Failure(INTERRUPTED, "watch is canceled by the server")


def why_canceled(reply: rpc.WatchResponse) -> str:
    """The server's reason, in the words of the Go client, which has its own for a compacted start."""
    if reply.compact_revision:
        return "etcdserver: mvcc: required revision has been compacted"
    return reply.cancel_reason or "etcdserver: mvcc: required revision is a future revision"


@click.command("watch", cls=WatchCommand)
@click.argument("args", nargs=-1, metavar="[KEY] [RANGE_END] [-- COMMAND [ARG]...]")
@click.option("--prefix", is_flag=True, help="Watch the keys that begin with KEY.")
@click.option("--rev", type=INT64, default=0, help="Begin with the changes of this revision, also past ones.")
@click.option("--prev-kv", is_flag=True, help="Print what a key was before each change.")
@click.option("--progress-notify", is_flag=True, help="Print the revision from time to time while nothing happens.")
@click.pass_context
def watch(ctx: click.Context, /, args: tuple[str, ...], prefix: bool, rev: int, **flags: Any) -> None:
    """Print changes of KEY, or of the keys from KEY up to but not including RANGE_END, until Ctrl-C.

    A COMMAND after two dashes is run for each change.
    """
    key, range_end = watched(args, prefix=prefix)
    settings = settings_of(ctx)
    printer = printing.choose(settings.output_format, hexadecimal=settings.hexadecimal)

    async def follow(client: "AsyncClient") -> None:
        async for reply in client.watch(key, range_end=range_end, start_revision=rev, **flags):
            show(reply, printer, ctx.meta[COMMAND_KEY])

    ask(settings, follow)

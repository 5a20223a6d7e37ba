# SPDX-License-Identifier: Apache-2.0
"""`lessor watch`: prints changes as they happen, or runs a command for each. Same arguments and outputs as etcdctl.

The key and range end may come from ETCDCTL_WATCH_KEY and ETCDCTL_WATCH_RANGE_END instead of the line. The words after
`--` are a command that is run for each event, with ETCD_WATCH_REVISION, ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY and
ETCD_WATCH_VALUE in its environment.

A lost connection does not end the command: the client goes on after the last event that it saw. It ends when the server
ends the watch.

With --interactive the watches come from stdin, one in a line, any number of them at a time:

    watch a --prefix --rev 7          as on the command line
    watch b -- echo changed
    progress                          asks how far they all are
"""

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli import printing, words
from lessor.cli.asking import ask
from lessor.cli.failure import BAD_ARGS, ERROR, INTERRUPTED, INVALID_INPUT, Failure
from lessor.cli.notation import quote
from lessor.cli.options import INT64, Command, read_own, settings_of
from lessor.cli.printer import Printer
from lessor.cli.terminal import complain

if TYPE_CHECKING:
    from lessor.client import AsyncClient

WRONG_NUMBER = "bad number of arguments"
RANGE_AND_PREFIX = "`range_end` and `--prefix` are mutually exclusive"
COMMAND_KEY = "lessor.watch.command"


class WatchCommand(Command):
    """Keeps the command after `--` apart; click would mix it with the arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        line, ctx.meta[COMMAND_KEY] = split_command(args)
        return super().parse_args(ctx, line)


def split_command(args: list[str]) -> tuple[list[str], list[str]]:
    """The words before `--`, and the command after it. Failure when there is none after it."""
    if "--" not in args:
        return args, []
    at = args.index("--")
    if at == len(args) - 1:
        raise Failure(BAD_ARGS, f"{WRONG_NUMBER} (found separator --, but no commands)")
    return args[:at], args[at + 1 :]


def watched(args: tuple[str, ...], *, prefix: bool) -> tuple[bytes, bytes]:
    """The key and range end to watch, from the line or the environment. Failure for neither and for both."""
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
    # etcdctl ignores the second argument when there is a third; here that is an error.
    if len(args) > 2:
        raise Failure(BAD_ARGS, WRONG_NUMBER)
    first = os.fsencode(args[0])
    if len(args) == 2:
        if prefix:
            raise Failure(BAD_ARGS, RANGE_AND_PREFIX)
        return first, os.fsencode(args[1])
    if prefix:
        return (first, prefix_end(first)) if first else (b"\0", b"\0")
    return first, b""


async def show(reply: rpc.WatchResponse, printer: Printer, command: list[str]) -> None:
    """Prints one response and runs the command for each of its events. Exit when the command fails."""
    from lessor.cli.tasks import program

    if reply.created and reply.canceled:
        # The server refused the watch: the Go client keeps nothing else of its answer.
        reply = rpc.WatchResponse(canceled=True, cancel_reason=reply.cancel_reason)
    if reply.canceled:
        complain(f"watch was canceled ({why_canceled(reply)})")
    elif not reply.events and reply.header.revision:
        printing.write(b"progress notify: %d\n" % reply.header.revision)
    printing.write(printer.watch(reply))
    for event in reply.events if command else ():
        variables = {
            "ETCD_WATCH_REVISION": str(reply.header.revision),
            "ETCD_WATCH_EVENT_TYPE": '"DELETE"' if event.type else '"PUT"',
            "ETCD_WATCH_KEY": quote(event.kv.key),
            "ETCD_WATCH_VALUE": quote(event.kv.value),
        }
        try:
            code = await program(command, variables)
            said = f"exit status {code}" if code > 0 else f"signal: {-code}"
        except OSError as error:
            code, said = 1, f"exec: {quote(os.fsencode(command[0]))}: {(error.strerror or str(error)).lower()}"
        if code:
            named = " ".join(quote(os.fsencode(word)) for word in command)
            complain(f"command [{named}] error ({said})")
            raise click.exceptions.Exit(ERROR)


def why_canceled(reply: rpc.WatchResponse) -> str:
    """The server's reason, in the words of the Go client, which has its own words for a compacted start."""
    if reply.compact_revision:
        return "etcdserver: mvcc: required revision has been compacted"
    return reply.cancel_reason or "etcdserver: mvcc: required revision is a future revision"


@click.command("watch", cls=WatchCommand)
@click.argument("args", nargs=-1, metavar="[KEY] [RANGE_END] [-- COMMAND [ARG]...]")
@click.option("-i", "--interactive", is_flag=True, help="Read from stdin what to watch, a line for each watch.")
@click.option("--prefix", is_flag=True, help="Watch the keys that begin with KEY.")
@click.option("--rev", type=INT64, default=0, help="Begin with the changes of this revision, also past ones.")
@click.option("--prev-kv", is_flag=True, help="Print what a key was before each change.")
@click.option("--progress-notify", is_flag=True, help="Print the revision from time to time while nothing happens.")
@click.pass_context
def watch(
    ctx: click.Context, /, args: tuple[str, ...], interactive: bool, prefix: bool, rev: int, **flags: Any
) -> None:
    """Print changes of KEY, or of the keys from KEY up to but not including RANGE_END, until Ctrl-C.

    A COMMAND after two dashes is run for each change.
    """
    range_ = None if interactive else watched(args, prefix=prefix)
    settings = settings_of(ctx)
    printer = printing.choose(settings.output_format, hexadecimal=settings.hexadecimal)

    async def one(client: "AsyncClient") -> None:
        assert range_ is not None
        await follow(client, range_, rev, flags, printer, ctx.meta[COMMAND_KEY])
        raise Failure(INTERRUPTED, "watch is canceled by the server")

    ask(settings, one if range_ else lambda client: from_lines(client, printer, flags["progress_notify"]))


async def follow(
    client: "AsyncClient",
    range_: tuple[bytes, bytes],
    revision: int,
    flags: dict[str, Any],
    printer: Printer,
    command: list[str],
) -> None:
    """Prints one watch until the server ends it."""
    key, range_end = range_
    async for reply in client.watch(key, range_end=range_end, start_revision=revision, **flags):
        await show(reply, printer, command)


async def from_lines(client: "AsyncClient", printer: Printer, progress_notify: bool) -> None:
    """Runs the watches that stdin asks for. Failure at its end, and for a line that cannot be understood."""
    from lessor.cli.tasks import crew, lines

    async with crew() as start:
        async for raw in lines(sys.stdin.fileno()):
            line = os.fsdecode(raw.removesuffix(b"\n"))
            if not raw.endswith(b"\n"):
                break
            try:
                said = words.split(line)
            except ValueError as error:
                raise Failure(INVALID_INPUT, str(error)) from None
            if said == ["progress", *said[1:]]:
                await client.request_progress()
                continue
            complaint = _not_a_watch(line, said)
            if complaint:
                complain(complaint)
                continue
            args, command = split_command(said[1:])
            flags = read_own(watch, args)
            prefix, revision = flags.pop("prefix"), flags.pop("rev")
            flags.pop("interactive")
            flags["progress_notify"] |= progress_notify
            try:
                range_ = watched(flags.pop("args"), prefix=prefix)
            except Failure as failure:
                if failure.text != RANGE_AND_PREFIX:
                    raise
                complain(f"Invalid command {line} ({failure.text})")
                continue
            start(follow(client, range_, revision, flags, printer, command))
        raise Failure(INVALID_INPUT, "error reading watch request line: EOF")


def _not_a_watch(line: str, said: list[str]) -> str:
    """The complaint about a line that asks for no watch; "" for one that does."""
    if not said:
        return f"Invalid command: {line} (watch and progress supported)"
    if said[0] != "watch":
        return f"Invalid command {line} (only support watch)"
    if len(said) < 2 and not os.environ.get("ETCDCTL_WATCH_KEY"):
        return f"Invalid command {line} (command type or key is not provided)"
    return ""

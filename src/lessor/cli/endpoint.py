# SPDX-License-Identifier: Apache-2.0
"""`lessor endpoint`: health, status, hashkv of each endpoint. Same arguments, outputs and exit codes as etcdctl.

Endpoints are asked one after another. stderr names each one that does not answer; the others are asked all the same,
and the exit code is 1.
"""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lessor.cli import printing
from lessor.cli.asking import ask_once
from lessor.cli.failure import ERROR, Failure
from lessor.cli.many import MAINTENANCE, call, check_format, one_by_one, size_text, table, took_text
from lessor.cli.options import INT64, Command, Group, Settings, settings_of
from lessor.cli.print_fields import header_lines
from lessor.cli.print_json import plain
from lessor.cli.terminal import complain

if TYPE_CHECKING:
    from lessor.client._finite import FiniteCalls

FORMATS = ("simple", "json", "fields", "table")
cluster_option = click.option(
    "--cluster", is_flag=True, help="Ask all members of the cluster, not the endpoints named."
)
any_arguments = click.argument("args", nargs=-1, metavar="")


def _ask_all(every: list[Settings], question: Callable[[Settings], Any], what: str) -> tuple[list[Any], str]:
    """The replies that came, each with its endpoint, and the last complaint ("" when all endpoints answered)."""
    replies, complaint = [], ""
    for settings in every:
        endpoint = settings.endpoints[0]
        try:
            replies.append((endpoint, question(settings)))
        except Failure as failure:
            complaint = failure.text
            complain(f"Failed to get the {what} of endpoint {endpoint} ({complaint})")
    return replies, complaint


def _lines(*lines: str) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def _json(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


# --- status -----------------------------------------------------------------------------------------------------

_STATUS_TITLES = (
    *("endpoint", "ID", "version", "storage version", "db size", "in use", "percentage not in use", "quota"),
    *("is leader", "is learner", "raft term", "raft index", "raft applied index", "errors"),
    *("downgrade target version", "downgrade enabled"),
)


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _status_cells(endpoint: str, reply: Any) -> list[str]:
    not_in_use = 100 - int(reply.dbSizeInUse * 100 / reply.dbSize) if reply.dbSize else 0
    return [
        endpoint,
        f"{reply.header.member_id:x}",
        reply.version,
        reply.storageVersion,
        size_text(reply.dbSize),
        size_text(reply.dbSizeInUse),
        f"{not_in_use}%",
        size_text(reply.dbSizeQuota),
        _bool(reply.leader == reply.header.member_id),
        _bool(reply.isLearner),
        str(reply.raftTerm),
        str(reply.raftIndex),
        str(reply.raftAppliedIndex),
        ", ".join(reply.errors),
        reply.downgradeInfo.targetVersion,
        _bool(reply.downgradeInfo.enabled),
    ]


def _status_fields(endpoint: str, reply: Any, hexadecimal: bool) -> bytes:
    return _lines(
        *header_lines(reply.header, hexadecimal),
        f'"Version" : "{reply.version}"',
        f'"StorageVersion" : "{reply.storageVersion}"',
        f'"DBSize" : {reply.dbSize}',
        f'"DBSizeInUse" : {reply.dbSizeInUse}',
        f'"DBSizeQuota" : {reply.dbSizeQuota}',
        f'"Leader" : {reply.leader}',
        f'"IsLearner" : {_bool(reply.isLearner)}',
        f'"RaftIndex" : {reply.raftIndex}',
        f'"RaftAppliedIndex" : {reply.raftAppliedIndex}',
        f'"Errors" : [{" ".join(reply.errors)}]',
        f'"Endpoint" : "{endpoint}"',
        f'"DowngradeTargetVersion" : "{reply.downgradeInfo.targetVersion}"',
        f'"DowngradeEnabled" : {_bool(reply.downgradeInfo.enabled)}',
        "",
    )


@click.command("status", cls=Command)
@any_arguments
@cluster_option
@click.pass_context
def status(ctx: click.Context, args: tuple[str, ...], cluster: bool) -> None:
    """Show version, size and state of each endpoint."""
    from lessor.api.proto import rpc_pb2 as rpc

    settings = settings_of(ctx)
    output = check_format(settings, *FORMATS)
    every = one_by_one(settings, cluster)
    replies, complaint = _ask_all(every, lambda one: call(one, MAINTENANCE + "Status", rpc.StatusRequest()), "status")
    if output == "json":
        data = [{"Endpoint": endpoint, "Status": plain(reply)} for endpoint, reply in replies]
        printing.write(_json(data or None))
    elif output == "fields":
        printing.write(b"".join(_status_fields(endpoint, reply, settings.hexadecimal) for endpoint, reply in replies))
    elif output == "table":
        printing.write(table(_STATUS_TITLES, [_status_cells(*each) for each in replies]))
    else:
        printing.write(_lines(*(", ".join(_status_cells(*each)) for each in replies)))
    if complaint:
        raise click.exceptions.Exit(ERROR)


# --- hashkv -----------------------------------------------------------------------------------------------------


@click.command("hashkv", cls=Command)
@any_arguments
@cluster_option
@click.option(
    "--rev", type=INT64, default=0, metavar="REVISION", help="Hash up to this revision (default: the newest)."
)
@click.pass_context
def hashkv(ctx: click.Context, args: tuple[str, ...], cluster: bool, rev: int) -> None:
    """Show a hash over the keys and their history, for each endpoint."""
    from lessor.api.proto import rpc_pb2 as rpc

    settings = settings_of(ctx)
    output = check_format(settings, *FORMATS)
    request = rpc.HashKVRequest(revision=rev)
    every = one_by_one(settings, cluster)
    replies, complaint = _ask_all(every, lambda one: call(one, MAINTENANCE + "HashKV", request), "hash")
    rows = [[endpoint, str(reply.hash), str(reply.hash_revision)] for endpoint, reply in replies]
    if output == "json":
        # Of no endpoint at all etcdctl prints no list.
        data = [{"Endpoint": endpoint, "HashKV": plain(reply)} for endpoint, reply in replies]
        printing.write(_json(data or None))
    elif output == "fields":
        for endpoint, reply in replies:
            own = (
                f'"Endpoint" : "{endpoint}"',
                f'"Hash" : {reply.hash}',
                f'"HashRevision" : {reply.hash_revision}',
                "",
            )
            printing.write(_lines(*header_lines(reply.header, settings.hexadecimal), *own))
    elif output == "table":
        printing.write(table(("endpoint", "hash", "hash revision"), rows))
    else:
        printing.write(_lines(*(", ".join(row) for row in rows)))
    if complaint:
        raise Failure(ERROR, complaint)


# --- health -----------------------------------------------------------------------------------------------------


def _health_of(settings: Settings) -> tuple[str, bool, str, str]:
    """(endpoint, whether it is well, how long the answer took, its error or "")."""
    from lessor.api.proto import rpc_pb2 as rpc
    from lessor.base.clock import MonotonicClock
    from lessor.base.errors import PERMISSION_DENIED
    from lessor.client import ServerError

    clock = MonotonicClock()
    began_s = clock.now_s()

    async def question(calls: "FiniteCalls") -> Any:
        nonlocal began_s
        began_s = clock.now_s()  # without the imports: what follows is the connection and the calls, as in etcdctl
        # A refused permission shows that the server answers; the key itself does not matter.
        try:
            await calls.get("health")
        except ServerError as refused:
            if refused.message != PERMISSION_DENIED.message:
                raise
        return await calls.call(MAINTENANCE + "Alarm", rpc.AlarmRequest())

    error = ""
    try:
        reply = ask_once(settings, question)
        if reply.alarms:
            error = "Active Alarm(s): " + "".join(f"{_alarm_name(alarm.alarm)} " for alarm in reply.alarms)
    except Failure as failure:
        error = failure.text
    return settings.endpoints[0], not error, took_text(clock.now_s() - began_s), error


def _alarm_name(kind: int) -> str:
    from lessor.api.proto import rpc_pb2 as rpc

    return rpc.AlarmType.Name(kind) if kind in rpc.AlarmType.values() else str(kind)


@click.command("health", cls=Command)
@any_arguments
@cluster_option
@click.pass_context
def health(ctx: click.Context, args: tuple[str, ...], cluster: bool) -> None:
    """Check whether each endpoint answers and has no alarm."""
    settings = settings_of(ctx)
    output = check_format(settings, *FORMATS)
    found = [_health_of(each) for each in one_by_one(settings, cluster)]
    if output == "json":
        printing.write(_json([_health_json(*each) for each in found]))
    elif output == "fields":
        for endpoint, well, took, error in found:
            lines = (
                f'"Endpoint" : "{endpoint}"',
                f'"Health" : {_bool(well)}',
                f'"Took" : {took}',
                f'"Error" : {error}',
            )
            printing.write(_lines(*lines, ""))
    elif output == "table":
        rows = [[endpoint, _bool(well), took, error] for endpoint, well, took, error in found]
        printing.write(table(("endpoint", "health", "took", "error"), rows))
    else:
        for endpoint, well, took, error in found:
            if well:
                printing.write(f"{endpoint} is healthy: successfully committed proposal: took = {took}\n".encode())
            else:
                complain(f"{endpoint} is unhealthy: failed to commit proposal: {error}")
    if not all(well for _, well, _, _ in found):
        raise Failure(ERROR, "unhealthy cluster")


def _health_json(endpoint: str, well: bool, took: str, error: str) -> dict[str, Any]:
    return {"endpoint": endpoint, "health": well, "took": took, **({"error": error} if error else {})}


endpoint = Group(
    "endpoint",
    help="Look at each endpoint.",
    loaders={
        "health": ("Check whether each endpoint is well.", lambda: health),
        "status": ("Show version, size and state of each endpoint.", lambda: status),
        "hashkv": ("Show a hash over keys and history.", lambda: hashkv),
    },
)

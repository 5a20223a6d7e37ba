# SPDX-License-Identifier: Apache-2.0
"""`lessor alarm`, `defrag`, `compaction`, `move-leader`, `downgrade`: etcdctl's arguments, outputs and exit codes."""

from typing import Any

import click

from lessor.cli import notation, printing
from lessor.cli.endpoint import any_arguments, cluster_option
from lessor.cli.failure import BAD_ARGS, ERROR, Failure
from lessor.cli.many import MAINTENANCE, call, check_format, one_by_one, took_text
from lessor.cli.options import Command, Group, Settings, settings_of
from lessor.cli.print_fields import header_lines
from lessor.cli.print_json import line, plain
from lessor.cli.terminal import complain

FORMATS = ("simple", "json", "fields", "protobuf")
WITHOUT_FIELDS = ("simple", "json", "protobuf")


def _none(args: tuple[str, ...], command: str) -> None:
    if args:
        raise Failure(BAD_ARGS, f"{command} command accepts no arguments")


# --- alarm ------------------------------------------------------------------------------------------------------


def _alarm_name(kind: int) -> str:
    from lessor.api.proto import rpc_pb2 as rpc

    return rpc.AlarmType.Name(kind) if kind in rpc.AlarmType.values() else str(kind)


def _write_alarms(settings: Settings, reply: Any) -> None:
    output = settings.output_format
    if output == "json":
        printing.write(line(plain(reply)))
    elif output == "protobuf":
        printing.write(reply.SerializeToString())
    elif output == "fields":
        # An answer that was put together from several replies has no header: its fields are 0.
        lines = [*header_lines(reply.header, settings.hexadecimal)]
        for alarm in reply.alarms:
            member = f"{alarm.memberID:x}" if settings.hexadecimal else str(alarm.memberID)
            lines += [f'"MemberID" : {member}', f'"AlarmType" : {_alarm_name(alarm.alarm)}', ""]
        printing.write("".join(text + "\n" for text in lines).encode())
    else:
        lines = [f"memberID:{alarm.memberID} alarm:{_alarm_name(alarm.alarm)}\n" for alarm in reply.alarms]
        printing.write("".join(lines).encode())


@click.command("list", cls=Command)
@any_arguments
@click.pass_context
def alarm_list(ctx: click.Context, args: tuple[str, ...]) -> None:
    """List the alarms that are up."""
    from lessor.api.proto import rpc_pb2 as rpc

    _none(args, "alarm list")
    settings = settings_of(ctx)
    check_format(settings, *FORMATS)
    _write_alarms(settings, call(settings, MAINTENANCE + "Alarm", rpc.AlarmRequest()))


@click.command("disarm", cls=Command)
@any_arguments
@click.pass_context
def alarm_disarm(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Take all alarms back."""
    from lessor.api.proto import rpc_pb2 as rpc

    _none(args, "alarm disarm")
    settings = settings_of(ctx)
    check_format(settings, *FORMATS)
    found = call(settings, MAINTENANCE + "Alarm", rpc.AlarmRequest())
    disarmed = rpc.AlarmResponse()
    for alarm in found.alarms:
        action = rpc.AlarmRequest.DEACTIVATE
        request = rpc.AlarmRequest(action=action, memberID=alarm.memberID, alarm=alarm.alarm)
        reply = call(settings, MAINTENANCE + "Alarm", request)
        disarmed.alarms.extend(reply.alarms)
    _write_alarms(settings, disarmed)


alarm = Group(
    "alarm",
    help="List alarms and take them back.",
    loaders={
        "list": ("List the alarms that are up.", lambda: alarm_list),
        "disarm": ("Take all alarms back.", lambda: alarm_disarm),
    },
)


# --- space ------------------------------------------------------------------------------------------------------


@click.command("defrag", cls=Command)
@any_arguments
@cluster_option
@click.pass_context
def defrag(ctx: click.Context, args: tuple[str, ...], cluster: bool) -> None:
    """Give the space that deleted data took back to the file system, at each endpoint."""
    from lessor.api.proto import rpc_pb2 as rpc
    from lessor.base.clock import MonotonicClock

    settings = settings_of(ctx)
    check_format(settings, *FORMATS, "table")
    clock = MonotonicClock()
    failed = False
    for one in one_by_one(settings, cluster):
        endpoint, began_s = one.endpoints[0], clock.now_s()
        try:
            call(one, MAINTENANCE + "Defragment", rpc.DefragmentRequest())
        except Failure as failure:
            failed = True
            took = took_text(clock.now_s() - began_s)
            complain(f"Failed to defragment etcd member[{endpoint}]. took {took}. ({failure.text})")
        else:
            took = took_text(clock.now_s() - began_s)
            printing.write(f"Finished defragmenting etcd member[{endpoint}]. took {took}\n".encode())
    if failed:
        raise click.exceptions.Exit(ERROR)


@click.command("compaction", cls=Command)
@click.argument("args", nargs=-1, metavar="REVISION")
@click.option("--physical", is_flag=True, help="Wait until the history is gone.")
@click.pass_context
def compaction(ctx: click.Context, args: tuple[str, ...], physical: bool) -> None:
    """Forget the history before a revision."""
    from lessor.api.proto import rpc_pb2 as rpc

    if len(args) != 1:
        raise Failure(BAD_ARGS, "compaction command needs 1 argument")
    try:
        revision = notation.int64(args[0], 10)
    except ValueError as error:
        raise Failure(ERROR, str(error)) from None
    settings = settings_of(ctx)
    check_format(settings, *FORMATS, "table")
    call(settings, "/etcdserverpb.KV/Compact", rpc.CompactionRequest(revision=revision, physical=physical))
    printing.write(f"compacted revision {revision}\n".encode())


# --- the cluster's version and leader -----------------------------------------------------------------------------


def _write(settings: Settings, reply: Any, sentence: str) -> None:
    """The reply in the format of the settings; the simple one is `sentence`."""
    output = settings.output_format
    printing.write(
        line(plain(reply))
        if output == "json"
        else reply.SerializeToString()
        if output == "protobuf"
        else sentence.encode()
    )


@click.command("move-leader", cls=Command)
@click.argument("args", nargs=-1, metavar="MEMBER_ID")
@click.pass_context
def move_leader(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Hand the leadership to another member, named by its hexadecimal id."""
    from lessor.api.proto import rpc_pb2 as rpc

    if len(args) != 1:
        raise Failure(BAD_ARGS, "move-leader command needs 1 argument")
    try:
        target = notation.uint64(args[0])
    except ValueError as error:
        raise Failure(BAD_ARGS, str(error)) from None
    settings = settings_of(ctx)
    check_format(settings, *WITHOUT_FIELDS)
    for one in one_by_one(settings, False):
        reply = call(one, MAINTENANCE + "Status", rpc.StatusRequest())
        if reply.leader == reply.header.member_id:
            moved = call(one, MAINTENANCE + "MoveLeader", rpc.MoveLeaderRequest(targetID=target))
            _write(settings, moved, f"Leadership transferred from {reply.leader:x} to {target:x}\n")
            return
    raise Failure(BAD_ARGS, f"no leader endpoint given at [{' '.join(settings.endpoints)}]")


def _downgrade(ctx: click.Context, args: tuple[str, ...], action: str) -> None:
    from lessor.api.proto import rpc_pb2 as rpc

    if action != "cancel" and len(args) != 1:
        raise Failure(BAD_ARGS, "TARGET_VERSION not provided" if not args else "too many arguments")
    settings = settings_of(ctx)
    check_format(settings, *WITHOUT_FIELDS)
    request = rpc.DowngradeRequest(action=action.upper(), version=args[0] if args else "")
    reply = call(settings, MAINTENANCE + "Downgrade", request)
    _write(settings, reply, f"Downgrade {action} success, cluster version {reply.version}\n")


@click.command("validate", cls=Command)
@click.argument("args", nargs=-1, metavar="TARGET_VERSION")
@click.pass_context
def downgrade_validate(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Ask whether the cluster could be downgraded."""
    _downgrade(ctx, args, "validate")


@click.command("enable", cls=Command)
@click.argument("args", nargs=-1, metavar="TARGET_VERSION")
@click.pass_context
def downgrade_enable(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Begin a downgrade."""
    _downgrade(ctx, args, "enable")


@click.command("cancel", cls=Command)
@any_arguments
@click.pass_context
def downgrade_cancel(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Cancel the downgrade that was begun."""
    _downgrade(ctx, (), "cancel")


downgrade = Group(
    "downgrade",
    help="Prepare a cluster for the version before.",
    loaders={
        "validate": ("Ask whether the cluster could be downgraded.", lambda: downgrade_validate),
        "enable": ("Begin a downgrade.", lambda: downgrade_enable),
        "cancel": ("Cancel the downgrade that was begun.", lambda: downgrade_cancel),
    },
)

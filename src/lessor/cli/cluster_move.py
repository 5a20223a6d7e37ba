# SPDX-License-Identifier: Apache-2.0
"""`lessor cluster handover` and `move`: another server leads, or all data has another home."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lessor.base.clock import MonotonicClock
from lessor.cli import printing
from lessor.cli.failure import BAD_ARGS, ERROR, Failure
from lessor.cli.many import CLUSTER, MAINTENANCE, call, one_by_one, size_text
from lessor.cli.options import Command, settings_of
from lessor.cli.progress import progress
from lessor.cli.terminal import complain

if TYPE_CHECKING:
    from lessor.replicated.moving import DirectorySource, DirectoryTarget, LogSource, LogTarget

LOOK_S: Final = 0.05  # between two looks whether the other one leads
_STEPS: Final = 5  # of a move


@click.command("handover", cls=Command)
@click.argument("args", nargs=-1, metavar="[NAME|MEMBER_ID]")
@click.pass_context
def handover(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Have another server lead: the one that is named, by its name or hexadecimal id, or any that follows."""
    from lessor.api.proto import rpc_pb2 as rpc

    if len(args) > 1:
        raise Failure(BAD_ARGS, "cluster handover takes one argument at most: the server that is to lead")
    settings = settings_of(ctx)
    states = [(one, call(one, MAINTENANCE + "Status", rpc.StatusRequest())) for one in one_by_one(settings, False)]
    leading = [one for one, state in states if state.leader == state.header.member_id]
    if not leading:
        raise Failure(ERROR, f"none of {' '.join(settings.endpoints)} leads: name the endpoint of the leader too")
    members: Any = call(leading[0], CLUSTER + "MemberList", rpc.MemberListRequest(linearizable=False))
    names = {member.ID: member.name for member in members.members}
    leader = members.header.member_id
    target = _chosen(names, leader, *args)
    clock = MonotonicClock()
    began_s = clock.now_s()
    call(leading[0], MAINTENANCE + "MoveLeader", rpc.MoveLeaderRequest(targetID=target))
    while True:
        state: Any = call(settings, MAINTENANCE + "Status", rpc.StatusRequest())
        if state.leader not in (0, leader):
            break
        if clock.now_s() - began_s > settings.command_timeout_s:
            raise Failure(ERROR, f"{_shown(names, target)} does not lead yet: see `lessor cluster status`")
        time.sleep(LOOK_S)
    if state.leader != target:
        raise Failure(ERROR, f"{_shown(names, state.leader)} leads now, and not {_shown(names, target)}")
    printing.write(f"{_shown(names, target)} leads, after {_shown(names, leader)}\n".encode())


def _shown(names: dict[int, str], member_id: int) -> str:
    name = names.get(member_id, "")
    return f"{name} ({member_id:x})" if name else f"{member_id:x}"


def _chosen(names: dict[int, str], leader: int, wanted: str = "") -> int:
    """The member that is wanted, or any but the leader; Failure when there is none."""
    followers = [member_id for member_id in names if member_id != leader]
    if not wanted:
        if not followers:
            raise Failure(ERROR, "no other server follows: start one first")
        return followers[0]
    found = [member_id for member_id, name in names.items() if wanted in (name, f"{member_id:x}")]
    if len(found) != 1:
        known = ", ".join(_shown(names, member_id) for member_id in followers)
        what = "there are several of that name" if found else "no server of that name or id"
        raise Failure(ERROR, f"{wanted}: {what}; those that follow: {known or 'none'}")
    if found[0] == leader:
        raise Failure(ERROR, f"{_shown(names, leader)} leads already")
    return found[0]


@click.command("move", cls=Command)
@click.option("--from", "source", required=True, metavar="HOME", help="Where the data is: an engine's URL, or a DIR.")
@click.option("--to", "target", required=True, metavar="HOME", help="Where it is to be: the same, empty.")
@click.option("--engine-may-lose-commits", is_flag=True, help="As for `lessor serve`, for trials.")
def move(source: str, target: str, engine_may_lose_commits: bool) -> None:
    """Move all data from one engine or data directory to another. Stop the servers first. It can be repeated."""
    from lessor.durable.engine import DataDirError, EngineError
    from lessor.durable.log import LogError
    from lessor.replicated.moving import MoveError
    from lessor.replicated.moving import move as move_all

    logging.getLogger("lessor").addHandler(_Complaints(logging.WARNING))
    try:
        homes = _source(source, engine_may_lose_commits), _target(target, engine_may_lose_commits)
        with progress("moving", _STEPS) as done:
            moved = move_all(*homes, lambda step: done(1))
    except (MoveError, DataDirError, EngineError, LogError) as error:
        raise Failure(ERROR, str(error)) from None
    except OSError as error:
        raise Failure(ERROR, f"{error.filename or 'the move'}: {error.strerror or error}: run it again") from None
    what = f"cluster {moved.cluster_id:x}, {size_text(moved.size_bytes)}"
    printing.write(f"moved {what}, to {homes[1].place}: start the servers on that\n".encode())


class _Complaints(logging.Handler):
    """Shows what the engine has to say, and that it is waited for."""

    def emit(self, record: logging.LogRecord) -> None:
        more = getattr(record, "reason", "") or getattr(record, "warning", "")
        complain(f"{record.getMessage()}: {more}" if more else record.getMessage())


def _source(home: str, may_lose_commits: bool) -> "DirectorySource | LogSource":
    from lessor.engines.named import place, shared_log
    from lessor.replicated.moving import DirectorySource, LogSource

    if "://" not in home:
        return DirectorySource(Path(home))
    return LogSource(place(home), lambda: shared_log(home, may_lose_commits=may_lose_commits))


def _target(home: str, may_lose_commits: bool) -> "DirectoryTarget | LogTarget":
    from lessor.engines.named import place, shared_log
    from lessor.replicated.moving import DirectoryTarget, LogTarget

    if "://" not in home:
        return DirectoryTarget(Path(home))
    return LogTarget(place(home), lambda: shared_log(home, may_lose_commits=may_lose_commits))

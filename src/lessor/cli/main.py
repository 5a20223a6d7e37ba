# SPDX-License-Identifier: Apache-2.0
"""The `lessor` command: reads the line, runs one command, and turns each failure into one line and an exit code.

Laws
- A command's code is imported when it is called. `serve` is the server's own; lessor/__main__.py adds it here.
- No traceback is printed: a failure is one line on stderr, an internal error too (--debug shows its traceback).
- Ctrl-C ends quietly with 130, a closed stdout pipe (`lessor watch ... | head`) with 141, as a signal would.
"""

import os
import sys

import click

from lessor.cli.failure import CLOSED_PIPE, CTRL_C, ERROR, Failure
from lessor.cli.options import COMPLETION, Group, complaint
from lessor.cli.terminal import complain


def _lease() -> click.Command:
    from lessor.cli.lease import lease

    return lease


def _put() -> click.Command:
    from lessor.cli.kv import put

    return put


def _get() -> click.Command:
    from lessor.cli.kv import get

    return get


def _del() -> click.Command:
    from lessor.cli.kv import delete

    return delete


def _lock() -> click.Command:
    from lessor.cli.holding import lock

    return lock


def _elect() -> click.Command:
    from lessor.cli.holding import elect

    return elect


def _make_mirror() -> click.Command:
    from lessor.cli.mirror import make_mirror

    return make_mirror


def _txn() -> click.Command:
    from lessor.cli.txn import txn

    return txn


def _watch() -> click.Command:
    from lessor.cli.watch import watch

    return watch


def _auth() -> click.Command:
    from lessor.cli.auth import auth

    return auth


def _user() -> click.Command:
    from lessor.cli.user import user

    return user


def _role() -> click.Command:
    from lessor.cli.role import role

    return role


def _alarm() -> click.Command:
    from lessor.cli.maintenance import alarm

    return alarm


def _check() -> click.Command:
    from lessor.cli.check import check

    return check


def _cluster() -> click.Command:
    from lessor.cli.cluster import cluster

    return cluster


def _compaction() -> click.Command:
    from lessor.cli.maintenance import compaction

    return compaction


def _defrag() -> click.Command:
    from lessor.cli.maintenance import defrag

    return defrag


def _downgrade() -> click.Command:
    from lessor.cli.maintenance import downgrade

    return downgrade


def _endpoint() -> click.Command:
    from lessor.cli.endpoint import endpoint

    return endpoint


def _migrate() -> click.Command:
    from lessor.cli.migrate import migrate

    return migrate


def _member() -> click.Command:
    from lessor.cli.member import member

    return member


def _move_leader() -> click.Command:
    from lessor.cli.maintenance import move_leader

    return move_leader


def _snapshot() -> click.Command:
    from lessor.cli.snapshot import snapshot

    return snapshot


def _completion() -> click.Command:
    from lessor.cli.completion import completion

    return completion


def _help() -> click.Command:
    from lessor.cli.help import help_

    return help_


def _options() -> click.Command:
    from lessor.cli.help import options

    return options


def _top() -> click.Command:
    from lessor.cli.top import top

    return top


def _version_command() -> click.Command:
    from lessor.cli.version import version

    return version


def _version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from lessor.api.version import text

        click.echo(text(), nl=False)
        ctx.exit()


cli = Group(
    "lessor",
    help="An etcd v3-compatible lease server and its client.",
    loaders={
        "lease": ("Grant, renew, show and end leases.", _lease),
        "put": ("Write a key.", _put),
        "get": ("Print keys.", _get),
        "del": ("Delete keys.", _del),
        "lock": ("Hold a lock, or run a command under it.", _lock),
        "elect": ("Stand for election, or watch who leads.", _elect),
        "make-mirror": ("Copy all keys, and each change, to another server.", _make_mirror),
        "txn": ("Read and write several keys at one instant, under conditions.", _txn),
        "watch": ("Print changes as they happen.", _watch),
        "auth": ("Switch authentication on and off.", _auth),
        "user": ("Manage users.", _user),
        "role": ("Manage roles and what they may do.", _role),
        "alarm": ("List alarms and take them back.", _alarm),
        "check": ("Measure a server: its speed, its memory.", _check),
        "cluster": ("Start a cluster on this machine, or look at one.", _cluster),
        "compaction": ("Forget the history before a revision.", _compaction),
        "defrag": ("Give free space back to the file system.", _defrag),
        "downgrade": ("Prepare a cluster for the version before.", _downgrade),
        "endpoint": ("Look at each endpoint.", _endpoint),
        "member": ("List and change the members of the cluster.", _member),
        "migrate": ("Make a data directory out of a running etcd, and follow it.", _migrate),
        "move-leader": ("Hand the leadership to another member.", _move_leader),
        "snapshot": ("Save, check and restore a copy of the data.", _snapshot),
        "top": ("Show leases by the time that they have left, live.", _top),
        "completion": (
            "Print a script that completes command lines in the shell.",
            _completion,
        ),
        "help": ("Explain a command.", _help),
        "options": ("Show the flags of all commands.", _options),
        "version": ("Print the version.", _version_command),
    },
)
cli.params.append(
    click.Option(
        ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version."
    )
)


def main(args: list[str] | None = None) -> None:
    """Runs the command line (the process's own when `args` is None) and exits; never returns."""
    line = sys.argv[1:] if args is None else args
    if COMPLETION in os.environ:
        from lessor.cli.completion import complete

        complete(cli, os.environ[COMPLETION])
        sys.exit()
    exit_code = run(line)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        exit_code = _stdout_closed()
    if args is None and "asyncio" not in sys.modules:
        # Without an event loop there was no thread, no child and no file that somebody has to tidy up. The interpreter
        # takes a tenth of a short command's time to take its own modules apart.
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


def run(line: list[str]) -> int:
    """Runs one command line and returns its exit code, 0 for success; writes to stdout and stderr."""
    try:
        # Not click's own main(): it answers Ctrl-C with an empty line, and a closed pipe with its own exit code.
        with cli.make_context("lessor", list(line)) as ctx:
            cli.invoke(ctx)
    except Failure as failure:
        return _failed(failure.text, failure.exit_code)
    except click.UsageError as error:
        # A supervisor is to tell a wrong flag of the server, which a new start does not mend, from other failures.
        of_server = error.ctx is not None and error.ctx.command.name == "serve"
        return _failed(complaint(error), error.exit_code if of_server else ERROR)
    except click.ClickException as error:
        return _failed(error.format_message(), error.exit_code)
    except click.exceptions.Exit as end:
        return end.exit_code
    except KeyboardInterrupt:
        return CTRL_C
    except BrokenPipeError:
        return _stdout_closed()
    except Exception as error:
        if "--debug" in line:
            raise
        return _failed(f"internal error: {type(error).__name__}: {error} (--debug shows where)", ERROR)
    return 0


def _failed(text: str, exit_code: int) -> int:
    one_line = " ".join(text.splitlines())
    complain(f"Error: {one_line}")
    return exit_code


def _stdout_closed() -> int:
    # Otherwise the interpreter finds the pipe closed again when it ends, and prints a complaint.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_PIPE

# SPDX-License-Identifier: Apache-2.0
"""`lessor completion`: prints a script for the shell, which asks this program at each press of the tab key.

Law: a key press never gets an error message. What cannot be understood so far has no completions.

The scripts are click's. They call `lessor` with the line so far in the environment, and find the answer on stdout.
"""

from contextlib import suppress

import click

from lessor.cli.failure import ERROR, Failure
from lessor.cli.options import Command

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", cls=Command)
@click.argument("args", nargs=-1, metavar="bash|zsh|fish")
@click.pass_context
def completion(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Print a script that completes the command lines of lessor in a shell.

    \b
    bash:  source <(lessor completion bash)
    zsh:   source <(lessor completion zsh)
    fish:  lessor completion fish | source

    For all sessions put that into ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish.
    """
    from click.shell_completion import get_completion_class

    from lessor.cli.main import COMPLETION

    if len(args) != 1 or args[0] not in SHELLS:
        raise Failure(ERROR, f"completion command needs one argument: {', '.join(SHELLS)}")
    shell = get_completion_class(args[0])
    assert shell is not None
    # Not source(): it looks at the installed bash first, and this may run where the script is only made.
    completer = shell(ctx.find_root().command, {}, "lessor", COMPLETION)
    click.echo(completer.source_template % completer.source_vars())


def complete(cli: click.Command, instruction: str) -> None:
    """Answers the script; `instruction` says which shell it is and what it wants."""
    from click.shell_completion import shell_complete

    with suppress(Failure, click.ClickException):
        shell_complete(cli, {}, "lessor", "", instruction)

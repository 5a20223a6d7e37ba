# SPDX-License-Identifier: Apache-2.0
"""`lessor help COMMAND...`: the same as `lessor COMMAND... --help`."""

import click

from lessor.cli.options import Command


@click.command("help", cls=Command)
@click.argument("args", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Explain a command."""
    here = ctx.parent
    assert here is not None
    for name in args:
        if not isinstance(here.command, click.Group):
            break
        said, command, _ = here.command.resolve_command(here, [name])
        assert command is not None
        here = click.Context(command, info_name=said, parent=here)
    click.echo(here.get_help())

# SPDX-License-Identifier: Apache-2.0
"""`lessor help COMMAND...`: the same as `lessor COMMAND... --help`. `lessor options`: the flags of all commands."""

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


@click.command("options", cls=Command)
@click.argument("args", nargs=-1, metavar="")
@click.pass_context
def options(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Show the flags of all commands."""
    assert isinstance(ctx.command, Command)
    formatter = ctx.make_formatter()
    ctx.command.format_common_options(ctx, formatter)
    click.echo(formatter.getvalue().rstrip("\n"))

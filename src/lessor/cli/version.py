# SPDX-License-Identifier: Apache-2.0
"""`lessor version`: the version of this program, and of the etcd API that it speaks."""

import click

from lessor.api.version import text
from lessor.cli import printing
from lessor.cli.options import Command


@click.command("version", cls=Command)
@click.argument("args", nargs=-1, metavar="")
def version(args: tuple[str, ...]) -> None:
    """Print the version of lessor."""
    printing.write(text().encode())

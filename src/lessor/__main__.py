# SPDX-License-Identifier: Apache-2.0
"""The `lessor` command, also as `python -m lessor`: the client commands, and `serve`.

This is the one place above all floors: the command line and the server are strangers to each other, and only `serve`
imports the server.
"""

import gc

gc.set_threshold(20_000)  # imports leave no garbage, and looking for it takes a tenth of a short command's time

import click  # noqa: E402

from lessor.cli.main import cli, main  # noqa: E402


def _serve() -> click.Command:
    from lessor.server.command import serve

    return serve


cli.loaders["serve"] = ("Serve the etcd v3 API from one data directory.", _serve)

if __name__ == "__main__":
    main()

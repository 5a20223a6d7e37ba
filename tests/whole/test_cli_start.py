# SPDX-License-Identifier: Apache-2.0
"""What the short commands import: most of their time is the start of the program."""

import json
import subprocess
import sys

import pytest

from lessor.testing.server import InProcessServer

# asyncio alone takes as long as all the rest; the others are what comes with it, the server's parts, and TLS, which a
# plain connection has no use for.
HEAVY = (
    *("asyncio", "ssl", "uvloop", "concurrent.futures", "subprocess", "random", "bcrypt", "httptools", "sqlite3"),
    *("lessor.server", "lessor.state", "lessor.durable", "lessor.gateway", "lessor.testing", "lessor.engines"),
    *("lessor.client._async", "lessor.client._channel", "lessor.client._sync", "prometheus_client", "cryptography"),
)
RUN = """
import json, sys
from lessor.__main__ import cli
from lessor.cli.main import run
code = run(sys.argv[1:])
print("\\n" + json.dumps([code, sorted(sys.modules)]))
"""


@pytest.mark.parametrize(
    "line",
    [
        "put a b",
        "put a b --prev-kv -w json",
        "get a",
        "get a --prefix --stream",
        "get a -w fields",
        "del a",
        "lease grant 10",
        "lease list",
        "lease timetolive 7 --keys",
        "lease keep-alive --once 7",
        "lease revoke 7",
        "endpoint health",
        "endpoint status",
        "member list",
        "version",
    ],
)
def test_a_short_command_imports_no_event_loop(line: str) -> None:
    with InProcessServer() as server, server.client() as client:
        client.grant(60, lease_id=7)
        found = subprocess.run(
            [sys.executable, "-c", RUN, *line.split(), "--endpoints", server.address],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    code, modules = json.loads(found.stdout.splitlines()[-1])
    assert code == 0, found.stderr
    assert [each for each in modules if each in HEAVY] == []


def test_the_client_is_imported_piece_by_piece() -> None:
    code = "import sys, lessor.client as c; c.ServerError; c.prefix_end; print('asyncio' in sys.modules); c.Client"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


def test_every_public_name_of_the_client_is_there() -> None:
    import lessor.client

    assert set(dir(lessor.client)) == set(lessor.client.__all__)
    assert all(getattr(lessor.client, name) is not None for name in lessor.client.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        lessor.client.Clinet  # type: ignore[attr-defined]  # noqa: B018

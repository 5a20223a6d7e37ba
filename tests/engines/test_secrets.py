# SPDX-License-Identifier: Apache-2.0
"""`lessor serve --engine` with a password in the URL: no line and no page has it, also at level debug."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from lessor.client import Client
from tests.conformance.lessor_server import LessorServer
from tests.conformance.server_process import STOP_S_MAX, wait_until_healthy
from tests.engines.postgres_server import PostgresServer
from tests.ports import free_port

pytestmark = pytest.mark.slow

SECRET = "s3cr3t-Wort"
WORD = "s3cr3t"  # a piece of it is too much as well
PAGES = ("/metrics", "/debug/vars", "/health", "/readyz?verbose", "/version")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "LESSOR_", "PG"))}


def command(engine: str, data_dir: Path, url: str) -> list[str]:
    return [
        *(sys.executable, "-m", "lessor", "serve", f"--data-dir={data_dir}", "--log-level=debug"),
        *(f"--listen-client-urls={url}", f"--advertise-client-urls={url}", "--engine-may-lose-commits"),
        *("--engine", engine),
    ]


def shown_by_a_server(engine: str, folder: Path) -> str:
    """Everything that a server says from its start to its stop: its pages and its log."""
    url = f"http://127.0.0.1:{free_port()}"
    log = folder / "log"
    pages = []
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(engine, folder / "data", url), stdout=output, stderr=output, env=environment()
        )
    try:
        wait_until_healthy(url, process, log)
        with Client(url) as client:
            client.put("k", "v")
        for page in PAGES:
            with urllib.request.urlopen(url + page, timeout=STOP_S_MAX) as reply:
                pages.append(reply.read().decode())
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S_MAX) == 0
    finally:
        process.kill()
        process.wait(STOP_S_MAX)
    assert '"cmdline"' in pages[1]
    text = log.read_text()
    assert "leading the log" in text
    return text + "".join(pages)


@pytest.mark.parametrize(
    "form",
    [
        "postgres://postgres:{secret}@{place}/postgres?schema=secret_a",
        "postgres://{place}/postgres?schema=secret_b&user=postgres&password={secret}",
    ],
)
def test_a_server_on_a_postgres_shows_no_password(postgres: PostgresServer, tmp_path: Path, form: str) -> None:
    engine = form.format(secret=SECRET, place=f"127.0.0.1:{postgres.port}")
    assert WORD not in shown_by_a_server(engine, tmp_path)


def test_a_server_on_an_etcd_shows_no_password(tmp_path: Path) -> None:
    with LessorServer() as engine:
        with Client(engine.address) as client:
            client.auth.user_add("root", f"two words {SECRET}")
            client.auth.user_grant_role("root", "root")
            client.auth.enable()
        assert WORD not in shown_by_a_server(f"etcd://root:two words {SECRET}@{engine.address}/log", tmp_path)


WRONG = [
    f"postgres://keeper:{SECRET}@h:port/db",
    f"postgres://keeper:{SECRET}@a@h/db",
    f"postgres://keeper:{SECRET}%@h/db",
    f"postgres://keeper:{SECRET}/x@h/db",
    f"postgres://h/db?pasword={SECRET}",
    f"postgres://h/db?schema={SECRET}",
    f"etcd://root:{SECRET}@h:port/log",
    f"etcd://root:{SECRET}/x@h/log",
    f"etcd://root:{SECRET}#@h/log",
    f"etcd://h/log?password={SECRET}",
    f"etcds://root:{SECRET}@h/log?cert=/nowhere",
    f"etcds://root:{SECRET}@h/log?cert=/nowhere&key=/nowhere",
    f"mysql://root:{SECRET}@h/log",
    f"root:{SECRET}@h",
]
# In one process that is not the tests', because a server changes the settings of its own.
ALL_OF_THEM = """
import json, sys
from click.testing import CliRunner
from lessor.server.command import serve
for words in json.load(sys.stdin):
    result = CliRunner().invoke(serve, words)
    print(json.dumps([result.exit_code, type(result.exception).__name__, result.output]))
"""


def test_a_wrong_url_is_refused_in_a_line_without_it(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="the package psycopg is not here")
    url = f"http://127.0.0.1:{free_port()}"
    lines = [command(engine, tmp_path, url)[4:] for engine in WRONG]
    done = subprocess.run(
        [sys.executable, "-c", ALL_OF_THEM],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert WORD not in done.stdout + done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(WRONG)
    for engine, (code, error, output) in zip(WRONG, results, strict=True):
        assert (code, error) == (1, "SystemExit"), engine
        assert "engine" in output, engine

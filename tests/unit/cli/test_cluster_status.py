# SPDX-License-Identifier: Apache-2.0
"""`lessor cluster status`: what is made of the answers, and of those that do not come."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lessor.cli import main
from lessor.cli.cluster import Row, columns, compare, readiness
from lessor.cli.options import Settings
from tests.ports import free_port


def settings(endpoint: str) -> Settings:
    return Settings((endpoint,), 2.0, 5.0, "simple", False, False)


def test_the_lag_is_counted_behind_the_one_that_leads() -> None:
    rows = [
        Row("a", revision=90),
        Row("b", leads=True, term=3, revision=100),
        Row("c", revision=101),
        Row("d", fault="no"),
    ]
    leader = compare(rows)
    assert leader is rows[1]
    assert [row.lag for row in rows] == [10, None, 0, None]


def test_of_two_that_say_they_lead_the_newer_one_does() -> None:
    rows = [Row("a", leads=True, term=3, revision=1), Row("b", leads=True, term=4, revision=5)]
    assert compare(rows) is rows[1]
    assert [(row.leads, row.lag) for row in rows] == [(False, 4), (True, None)]


def test_nobody_leads() -> None:
    rows = [Row("a", revision=1), Row("b", fault="no")]
    assert compare(rows) is None
    assert rows[0].lag is None


def test_rows_for_people() -> None:
    rows = [
        Row("127.0.0.1:2379", "n1", "3.7.0", True, 2, 12, None, "ok"),
        Row("127.0.0.1:22379", "n2", "3.7.0", False, 2, 11, 1, "ok"),
        Row("127.0.0.1:3", fault="refused"),
    ]
    assert columns([row.cells() for row in rows]).decode() == (
        "127.0.0.1:2379   n1  3.7.0  leads            12  -  ok\n"
        "127.0.0.1:22379  n2  3.7.0  follows          11  1  ok\n"
        "127.0.0.1:3      -   -      does not answer  -   -  refused\n"
    )


class Readyz(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert self.path == "/readyz?verbose"
        well = b"[+]serializable_read ok\n[+]linearizable_read ok\nok"
        ill = b"[+]serializable_read ok\n[-]linearizable_read failed: no leader\n"
        assert isinstance(self.server, ReadyzServer)
        self.send_response(200 if self.server.well else 503)
        self.end_headers()
        self.wfile.write(well if self.server.well else ill)

    def log_message(self, format: str, *args: object) -> None:
        pass


class ReadyzServer(HTTPServer):
    well = True


@pytest.fixture
def readyz() -> Iterator[ReadyzServer]:
    with ReadyzServer(("127.0.0.1", 0), Readyz) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_page_of_health(readyz: ReadyzServer) -> None:
    endpoint = f"127.0.0.1:{readyz.server_port}"
    assert readiness(settings(endpoint)) == "ok"
    readyz.well = False
    assert readiness(settings(f"http://{endpoint}")) == "linearizable_read failed: no leader"


def test_where_there_is_no_page() -> None:
    assert readiness(settings("unix:///some/where")) == "-"
    assert readiness(settings(f"127.0.0.1:{free_port()}")).startswith("/readyz: ")


@pytest.mark.parametrize("output", ["simple", "table", "json"])
def test_endpoints_that_do_not_answer_are_rows_and_an_exit_code(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoints = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    assert main.run(["cluster", "status", "--endpoints", ",".join(endpoints), "-w", output]) == 1
    said = capsys.readouterr()
    assert said.err == "Error: nobody leads: see the logs of the servers, and whether the engine answers\n"
    if output == "json":
        rows = json.loads(said.out)
        assert [row["endpoint"] for row in rows] == endpoints
        assert all("connection refused" in row["fault"] for row in rows)
    else:
        lines = said.out.splitlines()
        for endpoint in endpoints:
            assert any(endpoint in line and "does not answer" in line for line in lines)


def test_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {
        "--local 3 status": "--local starts a cluster, and status is about one: leave out one",
        "--local 0": "Invalid value for '--local': 0 is not in the range 1<=x<=64 (see 'lessor cluster --help')",
        "status -w fields": "fields not supported as output format",
    }
    for line, text in lines.items():
        assert main.run(["cluster", *line.split()]) != 0
        assert capsys.readouterr().err == f"Error: {text}\n"


def test_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["cluster"]) == 0
    assert "--local N" in capsys.readouterr().out
    assert main.run(["cluster", "status", "--help"]) == 0
    assert "--endpoints LIST" in capsys.readouterr().out

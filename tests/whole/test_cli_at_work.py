# SPDX-License-Identifier: Apache-2.0
"""Commands that go on for a while, against a running Lessor: lock, elect, make-mirror, check, watch -i, help."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli import check, main
from lessor.cli.check import Load, Results, verdict
from lessor.cli.mirror import Mirror, batches
from lessor.cli.tasks import crew, first_of, sleep
from lessor.client import AsyncClient, run
from tests.conformance.lessor_server import LessorServer
from tests.whole.test_cli_beside_etcdctl import OURS

slow = pytest.mark.slow


class ShortLeases(LessorServer):
    min_lease_ttl_s = 1


@pytest.fixture(scope="module")
def server() -> Iterator[LessorServer]:
    with ShortLeases() as server:
        yield server


@pytest.fixture
def asked(server: LessorServer, monkeypatch: pytest.MonkeyPatch) -> LessorServer:
    """The server, empty, and commands go to it."""
    for name in [name for name in os.environ if name.startswith("ETCDCTL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", server.address)

    async def clear() -> None:
        async with AsyncClient(server.address) as client:
            for lease in (await client.leases()).leases:
                await client.revoke(lease.ID)
            await client.delete(b"\0", range_end=b"\0")

    run(clear())
    return server


def leases(server: LessorServer) -> list[int]:
    async def ask() -> list[int]:
        async with AsyncClient(server.address) as client:
            return [lease.ID for lease in (await client.leases()).leases]

    return run(ask())


@slow
def test_the_largest_messages(asked: LessorServer, capfd: pytest.CaptureFixture[str]) -> None:
    """One byte of field number and one of length for each field: a request of 4 + 1 + 4 bytes."""
    assert main.run(["put", "k", "1234", "--max-request-bytes", "8"]) == 1
    assert (
        capfd.readouterr().err
        == "Error: rpc error: code = ResourceExhausted desc = trying to send message larger than max (9 vs. 8)\n"
    )
    assert main.run(["get", "k"]) == 0
    assert main.run(["put", "k", "1234", "--max-request-bytes", "9"]) == 0
    assert capfd.readouterr().out == "OK\n"
    assert main.run(["get", "k", "--max-recv-bytes", "10"]) == 1
    assert "received message larger than max" in capfd.readouterr().err


# --- lock and elect -------------------------------------------------------------------------------------------------


@slow
def test_a_command_under_a_lock(asked: LessorServer, capfd: pytest.CaptureFixture[str]) -> None:
    """It knows its lock, its exit code is ours, and nothing is left behind."""
    script = "echo $ETCD_LOCK_KEY $ETCD_LOCK_REV; exit 7"
    assert main.run(["lock", "job", "--ttl", "5m", "--", "sh", "-c", script]) == 7
    said = capfd.readouterr()
    assert re.fullmatch(r"job/[0-9a-f]+ [0-9]+\n", said.out)
    assert said.err == "Error: exit status 7\n"
    assert leases(asked) == []


@slow
def test_a_command_that_a_signal_ends(asked: LessorServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(["lock", "job", "--", "sh", "-c", "kill -9 $$"]) == 255
    assert capfd.readouterr().err == "Error: signal: killed\n"
    assert leases(asked) == []


@slow
def test_somebody_is_told_when_the_lock_is_lost_under_the_command(
    asked: LessorServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command goes on, and its end counts."""
    revoke = f"{sys.executable} -m lessor lease revoke ${{ETCD_LOCK_KEY#job/}} && sleep 0.6"
    assert main.run(["lock", "job", "--ttl", "1", "--", "sh", "-c", revoke]) == 0
    assert "the lock's lease ended before the command did" in capfd.readouterr().err


@slow
@pytest.mark.parametrize("line", [["lock", "job"], ["elect", "job", "me"]])
def test_ctrl_c_while_waiting_is_an_error_and_leaves_the_line(asked: LessorServer, line: list[str]) -> None:
    async def held() -> int:
        async with AsyncClient(asked.address) as client:
            lease_id = (await client.grant(100)).ID
            await client.put("job/1", lease_id=lease_id)
            return lease_id

    lease_id = run(held())
    with subprocess.Popen([*OURS, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while len(leases(asked)) < 2:
            assert process.poll() is None
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (1, b"", b"Error: context canceled\n")
    assert leases(asked) == [lease_id]


@slow
def test_elections_are_seen_from_beginning_to_end(asked: LessorServer) -> None:
    """Nobody leads, one does and says something else, goes, and the next one leads."""

    async def lead() -> None:
        async with AsyncClient(asked.address) as client:
            for value in (b"1", b"2"):
                await sleep(0.1)
                await client.put("e/a", value)
            await client.put("e/b", b"3")
            await client.delete("e/a")

    async def main_() -> list[bytes]:
        from lessor.cli.holding import leaders

        seen: list[bytes] = []

        async def listen() -> None:
            async with AsyncClient(asked.address) as client:
                async for leader in leaders(client, b"e"):
                    seen.append(leader.kvs[0].value)
                    if len(seen) == 3:
                        return

        async def listen_and_lead() -> None:
            async with crew() as start:
                start(lead())
                start(listen())

        await listen_and_lead()
        return seen

    assert run(main_()) == [b"1", b"2", b"3"]


# --- make-mirror ----------------------------------------------------------------------------------------------------


def puts(*sizes: int) -> list[rpc.RequestOp]:
    return [rpc.RequestOp(request_put=rpc.PutRequest(key=b"k", value=bytes(size))) for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "ops_max", "bytes_max", "expected"),
    [
        ([], 2, 100, []),
        ([1, 1, 1], 2, 1000, [2, 1]),
        ([1, 1, 1], 1, 1000, [1, 1, 1]),
        ([60, 60, 60], 9, 160, [2, 1]),
        ([500, 1, 1], 9, 100, [1, 2]),
    ],
)
def test_batches_keep_both_limits(sizes: list[int], ops_max: int, bytes_max: int, expected: list[int]) -> None:
    operations = puts(*sizes)
    found = list(batches(operations, ops_max, bytes_max))
    assert [operation for batch in found for operation in batch] == operations
    assert list(map(len, found)) == expected


@slow
@pytest.mark.parametrize(
    ("prefix", "new_prefix", "there"), [(b"", b"", b"x/"), (b"x/", b"y/", b"y/"), (b"x/", b"", b"")]
)
def test_a_mirror_has_the_keys_and_then_the_changes(
    asked: LessorServer, prefix: bytes, new_prefix: bytes, there: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More keys than a page holds, txns of more operations than one at the destination takes, deletes too."""
    monkeypatch.setattr("lessor.cli.mirror.PAGE_KEYS", 2)
    names = [b"%d" % number for number in range(5)]

    async def change(client: AsyncClient) -> None:
        request = [rpc.RequestOp(request_put=rpc.PutRequest(key=b"x/" + name, value=b"new")) for name in names[1:]]
        await client.txn(success=[*request, rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"x/0"))])
        await client.put(b"x/last", b"1")

    async def copy(address: str) -> tuple[dict[bytes, bytes], int]:
        async with AsyncClient(asked.address) as source, AsyncClient(address) as destination:
            for name in names:
                await source.put(b"x/" + name, b"old")
            await source.put(b"other", b"1")
            mirror = Mirror(source, destination, prefix, new_prefix, 2)

            async def arrived() -> None:
                while not (await destination.get(there + b"4")).kvs:
                    await sleep(0.01)
                await change(source)
                while not (await destination.get(there + b"last")).kvs:
                    await sleep(0.01)

            await first_of(arrived(), mirror.run(0))
            kvs = (await destination.get(b"\0", range_end=b"\0")).kvs
            return {pair.key: pair.value for pair in kvs}, mirror.written

    with LessorServer() as destination:
        found, written = run(copy(destination.address))
    others = {} if prefix else {b"other": b"1"}
    assert found == {**{there + name: b"new" for name in names[1:]}, there + b"last": b"1", **others}
    assert written == len(names) + len(others) + len(names) + 1


@slow
def test_a_mirror_from_a_revision_on_copies_changes_only(asked: LessorServer) -> None:
    async def revision() -> int:
        async with AsyncClient(asked.address) as client:
            await client.put("x/1", "1")
            return (await client.put("x/2", "2")).header.revision

    with LessorServer() as destination:
        line = ["make-mirror", destination.address, "--prefix", "x/", "--rev", str(run(revision()))]
        with subprocess.Popen([*OURS, *line]) as process:

            async def wait() -> list[bytes]:
                async with AsyncClient(destination.address) as client:
                    while True:
                        kvs = (await client.get("x", range_end="y")).kvs
                        if kvs:
                            return [pair.key for pair in kvs]
                        await sleep(0.01)

            assert run(wait()) == [b"x/2"]
            process.terminate()


@slow
def test_a_mirror_without_a_source(asked: LessorServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(["make-mirror", asked.address, "--rev", "1", "--endpoints", "127.0.0.1:1"]) == 1
    assert "cannot connect to 127.0.0.1:1" in capfd.readouterr().err


# --- check ----------------------------------------------------------------------------------------------------------


def results(took_s: list[float], duration_s: float, errors: int = 0) -> Results:
    made = Results()
    made.took_s, made.duration_s = took_s, duration_s
    made.errors.update({"no": errors} if errors else {})
    return made


@pytest.mark.parametrize(
    ("made", "well", "lines"),
    [
        (
            results([0.25] * 100, 10.0),
            True,
            [
                "PASS: Throughput is 11 writes/s",
                "PASS: Slowest request took 0.250000s",
                "PASS: Stddev is 0.000000s",
                "PASS",
            ],
        ),
        (
            results([0.1, 1.1] * 20, 10.0, errors=2),
            False,
            [
                "FAIL: too many errors",
                "FAIL: ERROR(no) -> 2",
                "FAIL: Throughput too low: 5 writes/s",
                "Slowest request took too long: 1.100000s",
                "Stddev too high: 0.500000s",
                "FAIL",
            ],
        ),
        (
            results([], 1.0),
            False,
            [
                "FAIL: Throughput too low: 1 writes/s",
                "PASS: Slowest request took 0.000000s",
                "PASS: Stddev is 0.000000s",
                "FAIL",
            ],
        ),
    ],
)
def test_what_a_check_of_speed_says(made: Results, well: bool, lines: list[str]) -> None:
    assert verdict(made, 10) == (well, lines)


@slow
def test_checks_write_and_clean_up(
    asked: LessorServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(check.LOADS, "s", Load(clients=3, puts_per_s=100, puts=40))
    assert main.run(["check", "perf", "--duration", "200ms", "--auto-compact", "--auto-defrag"]) in (0, 1)
    out = capfd.readouterr().out
    assert re.search(r"^Compacting with revision \d+\nCompacted with revision \d+\nDefragmenting \"", out)
    assert re.search(r"\n(PASS|FAIL)\n$", out)
    assert main.run(["check", "datascale"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("Start data scale check for work load [40 key-value pairs, 1024 bytes per key-value, 3 con")
    assert re.search(r"\nPASS: Approximate system memory used : -?\d+\.\d\d MB\.\n$", out)
    assert main.run(["get", "", "--prefix", "--keys-only"]) == 0
    assert capfd.readouterr().out == ""


@slow
def test_a_check_leaves_the_keys_of_others_alone(asked: LessorServer, capfd: pytest.CaptureFixture[str]) -> None:
    main.run(["put", "mine/1", "v"])
    capfd.readouterr()
    assert main.run(["check", "perf", "--prefix", "mine/"]) == 3
    text = "Error: prefix \"mine/\" has keys. Delete with 'etcdctl del --prefix mine/' first\n"
    assert capfd.readouterr().err == text
    main.run(["get", "mine/1"])
    assert capfd.readouterr().out == "mine/1\nv\n"


# --- watch -i -------------------------------------------------------------------------------------------------------


@slow
def test_watches_from_lines_of_input(asked: LessorServer, tmp_path: Path) -> None:
    """Several at a time, one with a command; progress comes from each."""

    async def put() -> int:
        async with AsyncClient(asked.address) as client:
            await client.put("b", "2")
            return (await client.put("a", "1")).header.revision - 1

    rev = run(put())
    lines = tmp_path / "lines"
    lines.write_text(f"watch a --rev {rev}\nwatch b --rev {rev} -- sh -c 'echo ran $ETCD_WATCH_KEY'\n")
    command = ["sh", "-c", f"(cat {lines}; exec sleep 30) | {sys.executable} -m lessor watch -i"]
    environment = {**os.environ, "ETCDCTL_ENDPOINTS": asked.address}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as process:
        assert process.stdout is not None
        seen = b""
        while b"PUT\na\n1\n" not in seen or b'PUT\nb\n2\nran "b"\n' not in seen:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        os.killpg(process.pid, 9)


@slow
def test_progress_of_a_clients_watches(asked: LessorServer) -> None:
    async def ask() -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        async with AsyncClient(asked.address) as client:
            revision = (await client.put("a", "1")).header.revision

            async def follow(start_revision: int) -> None:
                async for reply in client.watch("a", start_revision=start_revision, progress_notify=True):
                    seen.append((len(reply.events), reply.header.revision - revision))
                    if not reply.events:
                        return

            async def nudge() -> None:
                while True:
                    await client.request_progress()
                    await sleep(0.02)

            async def both() -> None:
                async with crew() as start:
                    start(follow(revision))
                    start(follow(revision))

            await first_of(both(), nudge())
        return seen

    assert sorted(run(ask())) == [(0, 0), (0, 0), (1, 0), (1, 0)]


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["help", "lease", "gr"], ["lease", "grant", "--help"]):
        assert main.run(line) == 0
    one, _, two = capsys.readouterr().out.partition("Usage: lessor lease grant")
    assert one == ""
    assert two.count("Usage: lessor lease grant") == 1
    halves = two.split("Usage: lessor lease grant")
    assert halves[0] == halves[1]
    assert main.run(["help", "lease", "bogus"]) == 1
    assert capsys.readouterr().err.startswith('Error: unknown command "bogus" for "lessor lease"')
    assert main.run(["--version"]) == 0
    with_flag = capsys.readouterr().out
    assert main.run(["version"]) == 0
    assert capsys.readouterr().out == with_flag != ""

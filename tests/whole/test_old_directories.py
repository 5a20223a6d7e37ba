# SPDX-License-Identifier: Apache-2.0
"""Data directories that the servers of earlier versions left, stopped or killed: all that they acknowledged is there.

What is expected comes from the replies of those servers alone (tests/data/directories/README.md). Then the same with
the start killed, or losing power, at each of its steps: the next start finds the same.
"""

import base64
import json
import os
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.durable import file_log, opening, schema, snapshot_file
from lessor.durable.engine import DataDirError, EngineError
from lessor.durable.file_engine import FileEngine
from lessor.durable.page_sums import PageSums
from lessor.state.machine import Identity, StateMachine
from lessor.state.replay import restore
from tests.faulty_disk import Countdown, PowerLoss, StatementFaults, WriteFaults
from tests.unit.durable.engine_rows import files
from tests.unit.durable.test_snapshot_file import with_checksum

HERE = Path(__file__).parents[1] / "data" / "directories"
NAMES = sorted(path.name.removesuffix(".tar.gz") for path in HERE.glob("*.tar.gz"))
WITH_OLD_LOG = ["v2-log-killed", "v3-killed", "v3-killed-two-files"]
WITH_LOG = [*WITH_OLD_LOG, "v4-killed"]


def unpacked(name: str, home: Path) -> Path:
    data_dir = home / name
    with tarfile.open(HERE / f"{name}.tar.gz") as archive:
        archive.extractall(data_dir, filter="data")
    return data_dir


def raw(text: str) -> bytes:
    return base64.b64decode(text)


def value(form: Any) -> bytes:
    return raw(form) if isinstance(form, str) else raw(form[0]) * int(form[1])


def opened(data_dir: Path) -> tuple[StateMachine, list[Any], float]:
    """What a server would start from: its state, the rows of events, the data clock."""
    engine = FileEngine(data_dir)
    meta = engine.open((1, 1))
    assert meta.schema_version == schema.SCHEMA_VERSION
    machine = restore(Identity(meta.cluster_id, meta.member_id, meta.term + 1), engine.load())
    rows = list(engine.load().events)
    engine.close()
    return machine, rows, meta.clock_s


def answer(machine: StateMachine, request: Any, now_s: float) -> Any:
    return machine.apply(request, now_s)


def events(rows: list[Any], above: int) -> list[list[Any]]:
    """As a watch of all keys tells them."""
    return [
        ["DELETE", key, revision]
        if written is None
        else ["PUT", key, written, create_revision, revision, version, lease]
        for revision, _, key, written, create_revision, version, lease in rows
        if revision > above
    ]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_acknowledged_is_there(name: str, tmp_path: Path) -> None:
    expected = json.loads((HERE / f"{name}.expected.json").read_text())
    machine, rows, clock_s = opened(unpacked(name, tmp_path))
    changed = assert_keys_and_leases(machine, expected, clock_s)
    compacted = expected["compact_revision"]
    assert machine.store.compact_revision == (compacted or -1)
    if expected["events"] is not None:
        assert not changed
        wanted = [
            ["PUT", raw(one[1]), value(one[2]), *one[3:]] if one[0] == "PUT" else ["DELETE", raw(one[1]), one[2]]
            for one in expected["events"]
        ]
        assert events(rows, compacted) == wanted
    alarms = answer(machine, rpc.AlarmRequest(action=rpc.AlarmRequest.GET), clock_s).alarms
    assert sorted(rpc.AlarmType.Name(each.alarm) for each in alarms) == expected["alarms"]
    if expected["peer_urls"] is not None:
        assert list(machine.peer_urls) == expected["peer_urls"]
    if expected["auth"]:
        assert_auth(machine, expected["auth"])


def assert_keys_and_leases(machine: StateMachine, expected: dict[str, Any], clock_s: float) -> set[bytes]:
    """Returns the keys that calls without a reply have changed, which are there as a whole or not at all."""
    kvs = answer(machine, rpc.RangeRequest(key=b"\0", range_end=b"\0"), clock_s).kvs
    found = {kv.key: (kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in kvs}
    wanted = {raw(key): (value(form), *numbers) for key, form, *numbers in expected["keys"]}
    leases = {lease.id for lease in machine.leases}
    wanted_leases = {each["id"] for each in expected["leases"]}
    carried_out, changed = 0, set()
    for call in expected["unacknowledged"]:
        puts = {raw(key): (value(form), lease) for key, form, lease in call["puts"]}
        grants, deletes, revokes = set(call["grants"]), {raw(key) for key in call["deletes"]}, set(call["revokes"])
        if (
            any(key in found and (found[key][0], found[key][4]) == put for key, put in puts.items())
            or grants & leases
            or not (puts or grants or deletes & set(found) or revokes & leases)
        ):
            carried_out += 1
            assert all((found[key][0], found[key][4]) == put for key, put in puts.items())
            changed |= set(puts) | deletes
            wanted_leases = (wanted_leases | grants) - revokes
    assert {key: found.get(key) for key in found.keys() - changed} == {
        key: wanted.get(key) for key in wanted.keys() - changed
    }
    assert leases == wanted_leases
    assert expected["revision"] <= machine.revision <= expected["revision"] + carried_out
    assert not leases & set(expected["ended_leases"])
    for each in expected["leases"]:
        if each["id"] in wanted_leases:
            asked = answer(machine, rpc.LeaseTimeToLiveRequest(ID=each["id"], keys=True), clock_s)
            assert asked.grantedTTL == each["ttl_s"]
            if not changed:
                assert sorted(asked.keys) == [raw(key) for key in each["keys"]]
            # Answers have whole seconds; a crash may give a second or two, never take one.
            assert each["remaining_s_least"] - 1 <= asked.TTL <= each["remaining_s_most"] + 3
    return changed


def assert_auth(machine: StateMachine, expected: dict[str, Any]) -> None:
    auth = machine.auth
    assert (auth.enabled, auth.revision) == (expected["enabled"], expected["revision"])
    assert sorted(auth.users) == [user["name"] for user in expected["users"]]
    assert sorted(auth.roles) == [role["name"] for role in expected["roles"]]
    for user in expected["users"]:
        _, password, no_password, roles, deleted = auth.users[user["name"]].row()
        assert (sorted(roles), no_password, deleted) == (user["roles"], user["password"] is None, False)
        assert bool(password) == (user["password"] is not None)


@pytest.mark.parametrize("name", NAMES)
def test_the_next_starts_find_the_same(name: str, tmp_path: Path) -> None:
    data_dir = unpacked(name, tmp_path)
    first = content(data_dir)
    assert content(data_dir) == first
    for path in data_dir.glob("lessor.log.*"):
        assert path.read_bytes().startswith(b"lessor log")


def content(data_dir: Path) -> Any:
    """All that the engine gives, to be compared."""
    engine = FileEngine(data_dir)
    # Nothing is compared behind a crash between the begin of a round of SQLite's log and the sums that name it.
    meta = engine.open((1, 1))._replace(not_compared="")
    loaded = engine.load()
    auth = loaded.auth
    found = (
        meta, list(loaded.events), list(loaded.leases), list(loaded.alarms),
        auth.users, auth.roles, auth.switch,
    )  # fmt: skip
    engine.close()
    return found


# --- the start killed at each step ----------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[Path]:
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as name:
        yield Path(name)


def killed_at(engine: FileEngine) -> bool:
    """Whether the start failed."""
    why = ""
    try:
        engine.open((1, 1))
    except (DataDirError, EngineError) as error:
        why = str(error)
    assert "\n" not in why
    return bool(why)


Made = tuple[FileEngine, Countdown, Callable[[Path], None]]  # what a loss of power makes of a copy comes last


@pytest.mark.slow
@pytest.mark.parametrize("took_effect", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["v1-killed", "v2-killed", "v3-view-killed", *WITH_LOG])
def test_every_statement_of_the_start_fails_once(memory: Path, name: str, took_effect: bool) -> None:
    def make(data_dir: Path, fail_at: int) -> Made:
        faults = StatementFaults(fail_at, took_effect=took_effect)
        return FileEngine(data_dir, connect=faults.connect), faults.countdown, lambda left: None

    assert each_step(memory, name, make) > 30


@pytest.mark.slow
@pytest.mark.parametrize("written_max", [0, 100, None], ids=lambda size: f"{size} bytes written")
@pytest.mark.parametrize("name", WITH_OLD_LOG)  # the files of the one log are there
def test_every_write_of_the_start_fails_once(memory: Path, name: str, written_max: int | None) -> None:
    def make(data_dir: Path, fail_at: int) -> Made:
        faults = WriteFaults(fail_at, written_max=written_max)
        return FileEngine(data_dir, disk=faults), faults.countdown, lambda left: None

    assert each_step(memory, name, make) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v1-killed", *WITH_LOG])
def test_the_start_loses_power_at_every_statement(memory: Path, name: str) -> None:
    chance = random.Random(name)

    def make(data_dir: Path, fail_at: int) -> Made:
        power = PowerLoss(data_dir, fail_at, found_synced=True)

        def lose(left: Path) -> None:
            (left / "lessor.db-shm").unlink(missing_ok=True)
            power.leave(left, chance)

        return FileEngine(data_dir, connect=power.connect, disk=power), power.countdown, lose

    assert each_step(memory, name, make) > 30


def each_step(memory: Path, name: str, make: Callable[[Path, int], Made]) -> int:
    """Kills the start at its first step, its second, and so on; returns how many there were."""
    found = unpacked(name, memory)
    shutil.copytree(found, memory / "whole")
    expected = content(memory / "whole")
    alive, left = memory / "alive", memory / "left"
    fail_at, failed = 0, True
    while failed:
        fail_at += 1
        shutil.copytree(found, alive)
        engine, countdown, lose = make(alive, fail_at)

        def kill(lose: Callable[[Path], None] = lose) -> None:
            shutil.copytree(alive, left)
            lose(left)

        countdown.on_failure = kill
        failed = killed_at(engine)
        assert countdown.failed == failed
        engine.close()
        assert content(alive) == expected
        if failed:
            assert content(left) == expected
            shutil.rmtree(left)
        shutil.rmtree(alive)
    return fail_at


# --- snapshots and copies of earlier versions -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v1-clean", "v2-peers-clean", "v3-clean", "v4-clean"])
def test_a_snapshot_of_an_earlier_version_is_read_and_restored(name: str, tmp_path: Path) -> None:
    """A snapshot is the tables and their checksum, as a clean stop leaves them."""
    data_dir = unpacked(name, tmp_path)
    path = tmp_path / "saved"
    path.write_bytes(with_checksum((data_dir / "lessor.db").read_bytes()))
    snapshot_file.check(path)
    with snapshot_file.opened(path) as loaded:
        looked_at = (list(loaded.events), list(loaded.leases), list(loaded.alarms))
    snapshot_file.restore(path, tmp_path / "restored")
    expected = content(data_dir)
    assert content(tmp_path / "restored")[1:] == expected[1:]
    assert looked_at == expected[1:4]


@pytest.mark.parametrize("name", ["v3-killed", "v2-log-killed"])
@pytest.mark.parametrize("missing", [0, 1])
def test_an_old_log_that_is_missing_is_refused(name: str, missing: int, tmp_path: Path) -> None:
    data_dir = unpacked(name, tmp_path)
    path = data_dir / f"lessor.log.{missing}"
    path.unlink()
    with pytest.raises(DataDirError, match=f"{path.name}: missing, and the newest writes may be in it alone"):
        FileEngine(data_dir).open((1, 1))


def test_an_old_log_with_a_gap_is_refused_and_left_alone(tmp_path: Path) -> None:
    data_dir = unpacked("v3-killed-two-files", tmp_path)
    sums = PageSums(data_dir / "lessor.db")
    seen = opening.look(opening.Connector(), data_dir / "lessor.db", sums)
    sums.close()
    key = seen.old[len(seen.old) // 2].events[0][2]
    whole = {path: path.read_bytes() for path in data_dir.glob("lessor.log.*")}
    spoilt = {path: data.replace(key, bytes(len(key))) for path, data in whole.items()}
    assert spoilt != whole
    for path, data in spoilt.items():
        path.write_bytes(data)
    before = files(data_dir)
    with pytest.raises(DataDirError, match="of those before it only the ones up to"):
        FileEngine(data_dir).open((1, 1))
    assert files(data_dir) == before


def test_the_files_of_an_old_log_become_those_of_the_new_one(tmp_path: Path) -> None:
    data_dir = unpacked("v3-killed", tmp_path)
    engine = FileEngine(data_dir)
    engine.open((1, 1))
    sizes = [(data_dir / f"lessor.log.{index}").stat().st_size for index in (0, 1)]
    assert sizes == [file_log.SEGMENT_BYTES] * 2
    engine.close()

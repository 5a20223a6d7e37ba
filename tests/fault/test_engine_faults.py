# SPDX-License-Identifier: Apache-2.0
"""The engine when the disk fails, lies or is full: every acknowledged batch is there whole, and no half of one.

Method. A scripted load runs until a fault; the files are copied as they are at that instant, which is what a kill -9
leaves; a fresh engine opens the copy. The Nth statement fails for N = 1, 2, 3... until the load gets through.
"""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lessor.durable import directory, file_log, sweep, upkeep
from lessor.durable.engine import FIRST_TERM, DataDirError, EngineError
from lessor.durable.file_engine import FileEngine
from lessor.durable.file_log import Disk
from lessor.durable.opening import PAGE_BYTES
from lessor.state.journal import AuthRows, Batch, EventRow, LeaseRow
from tests.faulty_disk import (
    DISK_FULL,
    FSYNC_FAILED,
    WRITE_FAILED,
    FaultyEngine,
    PowerLoss,
    StatementFaults,
    WriteFaults,
    run_at_once,
)
from tests.unit.durable.engine_rows import rest, settle

IDENTITY = (11, 22)


@pytest.fixture
def quick_dir(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: these tests make hundreds of databases."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def make_batch(number: int, **parts: Any) -> Batch:
    empty: dict[str, Any] = {
        "clock_s": float(number),
        "events": [],
        "leases": [],
        "alarms": [],
        "compact_revision": None,
        "dead": [],
        "leases_touched": [],
        "clean": False,
    }
    return Batch(number, **(empty | parts))


def scripted_batch(number: int) -> Batch:
    """Twenty events in transactions of four, three leases of which one ends in the next batch; each tells its batch."""
    first = number * 10
    events: list[EventRow] = [
        (first + row // 4, row % 4, b"key%d" % row, b"batch %d" % number * 20, first + row // 4, 1, number)
        for row in range(20)
    ]
    leases: list[LeaseRow] = [(number * 3 + row, 60, number + 60.0, False) for row in range(3)]
    if number > 1:
        leases.append(((number - 1) * 3, 60, number + 59.0, True))
    compacted = number * 10 - 1 if number == 3 else None
    dead = [row[:2] for older in (1, 2) for row in scripted_batch(older).events] if compacted else []
    parts: dict[str, Any] = {}
    if number == 2:
        parts["alarms"] = [(5, 1, True), (6, 1, True)]
    elif number == 4:
        parts["auth"] = AuthRows([("u", b"h", False, ("r",), False)], [("r", ((b"a", b"", 0),), False)], (True, 7))
        parts["alarms"] = [(6, 1, False)]
    elif number == 5:
        parts["peer_urls"] = ("http://a", "http://b")
        events.append((first + 9, 0, b"large", b"v" * LARGE_BYTES, first + 9, 1, 0))
    return make_batch(
        number,
        events=events,
        leases=leases,
        compact_revision=compacted,
        dead=dead,
        clean=number == LAST_BATCH,
        **parts,
    )


LAST_BATCH = 6
LARGE_BYTES = 30_000  # more than a file of the log takes, where files are small


@dataclass
class Acknowledged:
    """What the engine said is durable."""

    term: int = 0
    batch: int = 0


def scripted_load(engine: FileEngine | FaultyEngine, acknowledged: Acknowledged) -> None:
    engine.open(IDENTITY)
    begun = engine.try_to_lead(lambda rows, term, origins: None)
    assert begun is not None
    acknowledged.term = begun.term
    for number in range(1, LAST_BATCH + 1):
        engine.commit(scripted_batch(number))
        acknowledged.batch = number
        settle(engine)
        if number == 4:
            engine.flush()
        if number == 3:
            rest(engine)  # which sweeps


def assert_whole(data_dir: Path, acknowledged: Acknowledged) -> int:
    """Opens what a fault left; returns the number of the last batch that is there."""
    engine = FileEngine(data_dir)
    meta = engine.open(IDENTITY)
    loaded = engine.load()
    events, leases = list(loaded.events), list(loaded.leases)
    assert (meta.cluster_id, meta.member_id) == IDENTITY
    assert meta.term in (acknowledged.term, FIRST_TERM)
    assert meta.batch in (acknowledged.batch, acknowledged.batch + 1)
    batches = [scripted_batch(number) for number in range(1, meta.batch + 1)]
    dead = {row for batch in batches for row in batch.dead}
    assert [row for row in events if row[:2] not in dead] == [
        row for batch in batches for row in batch.events if row[:2] not in dead
    ]
    newest = {row[0]: row for batch in batches for row in batch.leases}
    assert leases == sorted(row for row in newest.values() if not row[3])
    assert meta.clock_s == float(meta.batch)
    assert meta.clean == (meta.batch == LAST_BATCH or meta.term == 0)
    assert list(loaded.alarms) == {0: [], 1: [], 2: [(5, 1, True), (6, 1, True)], 3: [(5, 1, True), (6, 1, True)]}.get(
        meta.batch, [(5, 1, True)]
    )
    assert meta.compact_revision == (29 if meta.batch >= 3 else -1)
    assert meta.peer_urls == (("http://a", "http://b") if meta.batch >= 5 else ())
    with_auth = (["u"], ["r"], (True, 7))
    auth = loaded.auth
    assert (list(auth.users), list(auth.roles), auth.switch) == (with_auth if meta.batch >= 4 else ([], [], (False, 1)))
    # The engine goes on from here.
    engine.begin_term(meta.term + 1)
    engine.commit(make_batch(meta.batch + 1, events=[(10_000, 0, b"after", b"v", 10_000, 1, 0)]))
    assert [row[2] for row in engine.load().events][-1] == b"after"
    engine.close()
    return meta.batch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("took_effect", "error"),
    [(False, WRITE_FAILED), (True, FSYNC_FAILED), (False, DISK_FULL)],
    ids=["write, before", "fsync, after", "full, before"],
)
def test_every_statement_fails_once(
    quick_dir: Path, took_effect: bool, error: tuple[int, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "WAL_PAGES_SYNC", 4)  # so that SQLite's log is copied during the load
    monkeypatch.setattr(upkeep, "FOLD_BYTES", 1_000)  # so that upkeep folds each batch
    monkeypatch.setattr(sweep, "SWEEP_ROWS_MAX", 15)
    monkeypatch.setattr(file_log, "SEGMENT_BYTES", 16_384)  # files of the usual size take their time
    messages: list[str] = []
    fail_at, seen = 0, set()
    while True:
        fail_at += 1
        alive, crashed = quick_dir / f"alive{fail_at}", quick_dir / f"crashed{fail_at}"
        faults = StatementFaults(fail_at, took_effect=took_effect, error=error)
        acknowledged = Acknowledged()
        engine = FileEngine(alive, connect=faults.connect, start=run_at_once)
        try:
            scripted_load(engine, acknowledged)
        except (DataDirError, EngineError) as caught:
            messages.append(str(caught))
        shutil.copytree(alive, crashed)
        engine.close()
        seen.add(assert_whole(crashed, acknowledged))
        assert_whole(alive, acknowledged)
        if not faults.countdown.failed:
            break
        shutil.rmtree(alive)
        shutil.rmtree(crashed)
    assert seen == set(range(LAST_BATCH + 1))
    said = "disk is full" if error is DISK_FULL else "disk failed to read or write"
    assert all(said in message and "\n" not in message for message in messages)


@pytest.fixture
def small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the log that are full after two batches of the script."""
    monkeypatch.setattr(file_log, "SEGMENT_BYTES", 8_192)
    monkeypatch.setattr(upkeep, "FOLD_BYTES", 3_000)


@pytest.mark.slow
@pytest.mark.usefixtures("small_log")
@pytest.mark.parametrize("written_max", [0, 1, 48, 512, 1_000, None], ids=lambda size: f"{size} bytes written")
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_every_write_of_the_log_fails_once(quick_dir: Path, written_max: int | None, error: int) -> None:
    fail_at, seen = 0, set()
    while True:
        fail_at += 1
        alive, crashed = quick_dir / f"alive{fail_at}", quick_dir / f"crashed{fail_at}"
        faults = WriteFaults(fail_at, written_max=written_max, error=error)
        acknowledged = Acknowledged()
        engine = FileEngine(alive, disk=faults, start=run_at_once)
        message = ""
        try:
            scripted_load(engine, acknowledged)
        except (DataDirError, EngineError) as caught:
            message = str(caught)
            with pytest.raises((AssertionError, EngineError)):  # not open, or refusing
                engine.commit(make_batch(100, alarms=[(1, 1, True)]))
        shutil.copytree(alive, crashed)
        engine.close()
        found = assert_whole(crashed, acknowledged)
        # What was written whole counts, though it was not acknowledged; what was torn does not. To make a file longer
        # is no write of a record.
        whole = written_max is None and acknowledged.term and faults.countdown.failed and not faults.growing
        assert found == acknowledged.batch + (faults.shortening or whole)
        seen.add(acknowledged.batch)
        if not faults.countdown.failed:
            break
        assert "disk is full" in message if error == errno.ENOSPC else "disk failed to read or write (EIO)" in message
        assert str(alive) in message
        assert "\n" not in message
    assert seen == set(range(LAST_BATCH + 1))


@pytest.mark.usefixtures("small_log")
@pytest.mark.parametrize("step_bytes_max", [97, 4_096])
def test_a_kernel_that_writes_less_than_it_is_asked_for(quick_dir: Path, step_bytes_max: int) -> None:
    acknowledged = Acknowledged()
    faults = WriteFaults(step_bytes_max=step_bytes_max)
    engine = FileEngine(quick_dir / "alive", disk=faults)
    scripted_load(engine, acknowledged)
    engine.close()
    assert faults.countdown.calls > 2 * 8_192 // step_bytes_max
    assert assert_whole(quick_dir / "alive", acknowledged) == LAST_BATCH


def test_a_write_that_takes_nothing_is_an_error_and_not_a_loop(tmp_path: Path) -> None:
    with pytest.raises(DataDirError, match="disk failed to read or write"):
        FileEngine(tmp_path, disk=TakesNothing()).open(IDENTITY)


class TakesNothing(Disk):
    def write(self, descriptor: int, data: bytes | memoryview, position: int) -> int:
        return 0


@pytest.mark.parametrize("took_effect", [False, True], ids=["before", "after"])
def test_a_wrapped_engine_fails_every_write_once(quick_dir: Path, took_effect: bool) -> None:
    fail_at, failed = 0, True
    while failed:
        fail_at += 1
        data_dir = quick_dir / str(fail_at)
        acknowledged = Acknowledged()
        made = FileEngine(data_dir, start=run_at_once)
        engine = FaultyEngine(made, fail_at, took_effect=took_effect, message="gone")
        try:
            scripted_load(engine, acknowledged)
        except EngineError:
            with pytest.raises(EngineError, match="gone"):
                engine.commit(make_batch(100))
        failed = engine.failed
        engine.close()
        assert_whole(data_dir, acknowledged)
    assert fail_at > 2 * LAST_BATCH


# --- SQLite's log that lost its tail --------------------------------------------------------------------------------


@pytest.fixture
def crashed_files(quick_dir: Path) -> tuple[bytes, bytes]:
    """Database and SQLite's log after all batches, of which none was copied into the database."""
    engine = FileEngine(quick_dir / "alive")
    engine.open(IDENTITY)
    engine.begin_term(1)
    for number in range(1, LAST_BATCH + 1):
        engine.commit(scripted_batch(number))
        engine.flush()
    shutil.copytree(quick_dir / "alive", quick_dir / "files")
    engine.close()
    return (quick_dir / "files" / "lessor.db").read_bytes(), (quick_dir / "files" / "lessor.db-wal").read_bytes()


def prefix_left(data_dir: Path, database: bytes, log: bytes) -> int:
    """The number of whole batches that a fresh engine finds without the log; anything else fails."""
    shutil.rmtree(data_dir, ignore_errors=True)
    data_dir.mkdir()
    for name in directory.LOG_NAMES:
        (data_dir / name).write_bytes(directory.GIVEN_UP)
    (data_dir / "lessor.db").write_bytes(database)
    (data_dir / "lessor.db-wal").write_bytes(log)
    engine = FileEngine(data_dir)
    meta = engine.open(IDENTITY)
    loaded = engine.load()
    batches = [scripted_batch(number) for number in range(1, meta.batch + 1)]
    assert list(loaded.events) == [row for batch in batches for row in batch.events]
    newest = {row[0]: row for batch in batches for row in batch.leases}
    assert list(loaded.leases) == sorted(row for row in newest.values() if not row[3])
    engine.close()
    return meta.batch


@pytest.mark.slow
def test_a_log_cut_anywhere_is_a_prefix_of_whole_batches(quick_dir: Path, crashed_files: tuple[bytes, bytes]) -> None:
    database, log = crashed_files
    chance = random.Random(20)
    offsets = {*range(0, len(log), 512), len(log), *(chance.randrange(len(log)) for _ in range(50))}
    left = [prefix_left(quick_dir / "cut", database, log[:offset]) for offset in sorted(offsets)]
    assert left == sorted(left)
    assert set(left) == set(range(LAST_BATCH + 1))


@pytest.mark.slow
def test_a_log_with_a_bad_byte_is_a_prefix_of_whole_batches(
    quick_dir: Path, crashed_files: tuple[bytes, bytes]
) -> None:
    """What a disk that reorders writes leaves: the log's checksums end it at the first page that is not right."""
    database, log = crashed_files
    chance = random.Random(21)
    for _ in range(60):
        offset = chance.randrange(32, len(log))
        bad = bytearray(log)
        bad[offset] ^= 1 << chance.randrange(8)
        assert prefix_left(quick_dir / "bad", database, bytes(bad)) < LAST_BATCH


@pytest.mark.slow
def test_sqlites_log_cut_anywhere_in_what_was_not_synced_costs_nothing_beside_the_log(quick_dir: Path) -> None:
    power = PowerLoss(quick_dir / "alive")
    engine = FileEngine(quick_dir / "alive", connect=power.connect)
    engine.open(IDENTITY)
    engine.begin_term(1)
    synced_bytes = len(power.synced[1])
    batches = [make_batch(number, events=scripted_batch(number).events) for number in range(1, 5)]
    for batch in batches:
        engine.commit(batch)
        engine.flush()
    shutil.copytree(quick_dir / "alive", quick_dir / "files")
    engine.close()
    log = (quick_dir / "files" / "lessor.db-wal").read_bytes()
    assert len(log) > synced_bytes + len(batches) * PAGE_BYTES
    for offset in range(synced_bytes, len(log), 1_500):
        left = quick_dir / str(offset)
        shutil.copytree(quick_dir / "files", left, ignore=shutil.ignore_patterns("*-shm"))
        (left / "lessor.db-wal").write_bytes(log[:offset])
        engine = FileEngine(left)
        assert (engine.open(IDENTITY).term, engine.load().meta.batch) == (1, len(batches))
        assert list(engine.load().events) == [row for batch in batches for row in batch.events]
        engine.close()
        shutil.rmtree(left)


# --- garbage over the database --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [100, 4_096, 50_000])
def test_garbage_over_the_database_is_said_and_left_alone(
    tmp_path: Path, crashed_files: tuple[bytes, bytes], size_bytes: int
) -> None:
    database, log = crashed_files
    data_dir = tmp_path / "garbage"
    data_dir.mkdir()
    garbage = random.Random(size_bytes).randbytes(size_bytes) + database[size_bytes:]
    (data_dir / "lessor.db").write_bytes(garbage)
    (data_dir / "lessor.db-wal").write_bytes(log)
    with pytest.raises(DataDirError, match="damaged") as caught:
        FileEngine(data_dir).open(IDENTITY)
    assert "\n" not in str(caught.value)
    assert str(data_dir / "lessor.db") in str(caught.value)
    assert (data_dir / "lessor.db").read_bytes() == garbage
    assert (data_dir / "lessor.db-wal").read_bytes() == log


@pytest.mark.slow
def test_a_damaged_page_is_an_error_of_ours_or_harmless(tmp_path: Path) -> None:
    """Whatever page is overwritten, the engine either says so in one line or gives the rows; nothing else is raised."""
    engine = FileEngine(tmp_path / "whole")
    engine.open(IDENTITY)
    for number in range(1, LAST_BATCH + 1):
        engine.commit(scripted_batch(number))
    engine.close()
    whole = (tmp_path / "whole" / "lessor.db").read_bytes()
    chance, data_dir = random.Random(22), tmp_path / "damaged"
    messages: list[str] = []
    data_dir.mkdir()
    for page in range(len(whole) // PAGE_BYTES):
        for start in (100, 0):  # the first page's header is looked at before SQLite is
            at = page * PAGE_BYTES + start
            garbage = chance.randbytes(PAGE_BYTES - start)
            (data_dir / "lessor.db").write_bytes(whole[:at] + garbage + whole[at + len(garbage) :])
            engine = FileEngine(data_dir)
            try:
                engine.open(IDENTITY)
                loaded = engine.load()
                _ = list(loaded.events), list(loaded.leases), list(loaded.alarms)
            except DataDirError as caught:
                messages.append(str(caught))
            finally:
                engine.close()
    assert len(messages) >= len(whole) // PAGE_BYTES
    assert all("\n" not in message for message in messages)


# --- a disk that is really full -------------------------------------------------------------------------------------

WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_engine_faults import IDENTITY, make_batch
from lessor.durable.engine import EngineError
from lessor.durable.file_engine import FileEngine
from lessor.durable.opening import PAGE_BYTES
engine = FileEngine(Path(sys.argv[2]))
engine.open(IDENTITY)
engine.begin_term(1)
number = 0
try:
    while number < 2_000:
        number += 1
        events = [(number, sub, b"k%d" % sub, b"v" * 300, number, 1, 0) for sub in range(30)]
        engine.commit(make_batch(number, events=events))
        os.write(1, b"%d\\n" % number)
        if sys.argv[3] == "settle":
            engine.upkeep(number * 0.001, False)
except EngineError as error:
    os.write(1, str(error).encode() + b"\\n")
os._exit(0)
"""


def run_writer(
    data_dir: Path, settle: bool, wrap: list[str], limit: Callable[[], None] | None = None
) -> tuple[int, str]:
    """Commits in another process until an error; returns the last acknowledged batch and the last message."""
    here = str(Path(__file__).parent)
    command = [*wrap, sys.executable, "-c", WRITER, here, str(data_dir), "settle" if settle else "no"]
    done = subprocess.run(command, stdout=subprocess.PIPE, preexec_fn=limit, check=True, text=True, timeout=60)
    *numbers, message = done.stdout.splitlines()
    return int(numbers[-1]), message


def assert_prefix(data_dir: Path, acknowledged: int) -> None:
    engine = FileEngine(data_dir)
    meta = engine.open(IDENTITY)
    assert meta.batch in (acknowledged, acknowledged + 1)
    order = [row[:2] for row in engine.load().events]
    assert order == [(number, sub) for number in range(1, meta.batch + 1) for sub in range(30)]
    engine.commit(make_batch(meta.batch + 1))
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("settle", [False, True])
def test_a_file_that_may_not_grow(tmp_path: Path, settle: bool) -> None:
    """The kernel refuses writes beyond a size: of the log first, or of the database when the log is copied."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, 6_000_000))

    acknowledged, message = run_writer(tmp_path / "data", settle, [], limit)
    assert 10 < acknowledged < 2_000
    assert "disk failed to read or write" in message
    assert str(tmp_path / "data" / "lessor.db") in message
    assert_prefix(tmp_path / "data", acknowledged)


SMALL_DISK = 'mount -t tmpfs -o size=10m none "$1" && shift && "$@" && cp -r "$DATA" "$OUT"'


@pytest.mark.slow
def test_a_disk_without_space(tmp_path: Path) -> None:
    """A file system of 10 MB, where the system lets an ordinary process have one of its own."""
    mounted, kept = tmp_path / "mounted", tmp_path / "kept"
    mounted.mkdir()
    unshare = shutil.which("unshare")
    alone = [unshare or "unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if unshare is None or subprocess.run([*alone, 'mount -t tmpfs none "$0"', mounted], capture_output=True).returncode:
        pytest.skip("this system allows no mounts in a namespace of our own")
    environment = {"DATA": str(mounted / "data"), "OUT": str(kept)}
    os.environ.update(environment)
    try:
        wrap = [*alone, SMALL_DISK, "sh", str(mounted)]
        acknowledged, message = run_writer(mounted / "data", False, wrap)
    finally:
        for name in environment:
            del os.environ[name]
    assert 10 < acknowledged < 2_000
    assert "disk is full" in message
    assert_prefix(kept, acknowledged)

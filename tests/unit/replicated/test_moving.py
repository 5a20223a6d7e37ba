# SPDX-License-Identifier: Apache-2.0
"""A move of all data between logs and data directories: what comes along, and a move that is cut off."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lessor.cluster.tenure import Timing
from lessor.durable import shared_record
from lessor.durable.engine import DataDirError, EngineError, MovedError
from lessor.durable.file_engine import FileEngine
from lessor.durable.shared_log import SharedLog, UnknownError
from lessor.durable.shared_record import ARRIVAL, RELEASE, SEAL
from lessor.replicated import moving
from lessor.replicated.engine import ReplicatedEngine
from lessor.replicated.moving import DirectorySource, DirectoryTarget, LogSource, LogTarget, MoveError, Source, Target
from lessor.state.digest import hash_kv
from lessor.state.journal import AuthRows
from lessor.state.machine import Identity, StateMachine
from lessor.state.replay import apply, promote, restore
from tests.memory_log import MemoryLog, MemoryRecords
from tests.unit.durable.engine_rows import IDENTITY, batch, put, tombstone
from tests.unit.replicated.test_engine import Times, engine_of, kinds, lead

TIMING = Timing()
STEPS = ("look", "copy", "arrive", "seal", "open")
Engine = FileEngine | ReplicatedEngine


class Home:
    """A log, or a directory: `kind` says which."""

    def __init__(self, kind: str, folder: Path, times: Times) -> None:
        self.kind, self.times = kind, times
        self.folder = folder
        self.records = MemoryRecords()
        self._numbers = itertools.count()

    def engine(self) -> Engine:
        """Of a server here; on a log one with a new copy."""
        if self.kind == "directory":
            return FileEngine(self.folder, sync=False)
        return engine_of(self.folder / str(next(self._numbers)), self.records, self.times)

    def source(self) -> Source:
        if self.kind == "directory":
            return DirectorySource(self.folder)

        def engine(path: Path, make_log: Callable[[], SharedLog], timing: Timing | None) -> moving._SharedEngine:
            return moving._SharedEngine(path, make_log, timing, clock=self.times, sleep=self.times.sleep, sync=False)

        return LogSource(f"log {self.folder.name}", lambda: MemoryLog(self.records), TIMING, engine)

    def target(self) -> Target:
        if self.kind == "directory":
            return DirectoryTarget(self.folder)
        return LogTarget(f"log {self.folder.name}", lambda: MemoryLog(self.records))


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture(params=["directory", "log"])
def source(request: pytest.FixtureRequest, tmp_path: Path, times: Times) -> Home:
    return Home(request.param, tmp_path / "old", times)


@pytest.fixture(params=["directory", "log"])
def target(request: pytest.FixtureRequest, tmp_path: Path, times: Times) -> Home:
    return Home(request.param, tmp_path / "new", times)


def leading(home: Home) -> Engine:
    engine = home.engine()
    engine.open(IDENTITY)
    engine.load()
    lead(engine)
    return engine


def fill(home: Home, *, clean: bool = True) -> None:
    engine = leading(home)
    auth = AuthRows([("root", b"hash", False, ("root",), False)], [("root", (), False)], (True, 3))
    engine.commit(
        batch(1, clock_s=10.0, leases=[(7, 60, 52.5, False), (8, 100, 99.25, False)], events=[put(2, b"a", b"1")])
    )
    engine.commit(batch(2, clock_s=11.0, events=[put(3, b"a", b"2"), tombstone(4, b"a"), put(5, b"k", b"v")]))
    engine.commit(batch(3, clock_s=12.0, alarms=[(IDENTITY[1], 1, True)], auth=auth))
    engine.commit(batch(4, clock_s=12.5, compact_revision=3, leases=[(7, 60, 52.5, False)], clean=clean))
    if clean:
        engine.close()
    else:
        kill(engine)


def kill(engine: Engine) -> None:
    """As if the process were killed: nothing is brought into the tables."""
    engine._failure.reason = "killed"
    engine.close()


def served(home: Home) -> tuple[StateMachine, float]:
    """What a server that starts here has in memory, and where its data clock goes on."""
    engine = home.engine()
    meta = engine.open(IDENTITY)
    machine = restore(Identity(meta.cluster_id, meta.member_id, meta.term), engine.load())
    followed = []

    def follow(rows: object, term: int, origins: object) -> None:
        apply(machine, rows)  # type: ignore[arg-type]
        followed.append(rows)

    begun = lead(engine, follow)
    if followed:
        promote(machine, begun.term, begun.clock_s, clean=begun.clean, passed_on_s=0.0)
    kill(engine)
    return machine, begun.clock_s


def facts(home: Home) -> list[object]:
    machine, clock_s = served(home)
    store = machine.store
    return [
        machine.identity.cluster_id,
        store.revision,
        store.compact_revision,
        hash_kv(store),
        sorted((one.id, one.ttl_s, round(one.deadline_s - clock_s, 6)) for one in machine.leases),
        set(machine.alarms),
        machine.auth.enabled,
        sorted(machine.auth.users),
    ]


def moved(source: Home, target: Home, step: Callable[[str], object] = lambda name: None) -> None:
    moving.move(source.source(), target.target(), step)


def refusal(home: Home) -> str:
    engine = home.engine()
    with pytest.raises((DataDirError, EngineError)) as error:
        engine.open(IDENTITY)
    engine.close()
    return str(error.value)


@pytest.mark.parametrize("clean", [True, False])
def test_all_comes_along(source: Home, target: Home, tmp_path: Path, times: Times, clean: bool) -> None:
    twin = Home("directory", tmp_path / "twin", times)
    for home in (source, twin):
        fill(home, clean=clean)
    steps: list[str] = []
    moved(source, target, steps.append)
    assert tuple(steps) == STEPS
    found = facts(target)
    assert found == facts(twin)
    assert found[:3] == [IDENTITY[0], 5, 3]
    assert found[4] == ([(7, 60, 40.0), (8, 100, 86.75)] if clean else [(7, 60, 41.0), (8, 100, 87.75)])
    assert found[5:] == [{(IDENTITY[1], 1)}, True, ["root"]]
    assert f"the data has moved to {target.target().place}: start the servers on that" in refusal(source)


def test_there_and_back_again(tmp_path: Path, times: Times) -> None:
    homes = [
        Home(kind, tmp_path / f"home{number}", times)
        for number, kind in enumerate(("directory", "log", "log", "directory"))
    ]
    fill(homes[0])
    for before, after in itertools.pairwise(homes):
        moved(before, after)
        assert facts(after)[1:3] == [5, 3]
        engine = after.engine()  # and a batch is written behind the move
        meta = engine.open(IDENTITY)
        engine.load()
        begun = lead(engine)
        assert begun.term > 2
        engine.commit(batch(meta.batch + 1, clock_s=begun.clock_s, clean=True))
        engine.close()


class CutError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", STEPS)
def test_a_move_that_is_cut_off_is_repeated(source: Home, target: Home, tmp_path: Path, times: Times, at: str) -> None:
    twin = Home("directory", tmp_path / "twin", times)
    for home in (source, twin):
        fill(home, clean=False)  # a server that starts meanwhile, and is killed, changes nothing about leases then
    expected = facts(twin)

    def cut(name: str) -> None:
        if name == at:
            raise CutError

    with pytest.raises(CutError):
        moved(source, target, cut)
    if at in ("arrive", "seal"):
        text = f"a move of data from {source.source().place} to here is not finished: run `lessor cluster move` again"
        assert text in refusal(target)
    if at in ("seal", "open"):
        assert "the data has moved to" in refusal(source)
    else:
        assert facts(source) == expected
    if at == "open":
        with pytest.raises(MoveError, match="the data has moved to"):
            moved(source, target)
    else:
        moved(source, target)
    assert facts(target) == expected
    assert "the data has moved to" in refusal(source)


def test_what_was_written_between_two_tries_comes_along(source: Home, target: Home) -> None:
    fill(source)

    def cut(name: str) -> None:
        if name == "arrive":
            raise CutError

    with pytest.raises(CutError):
        moved(source, target, cut)
    engine = leading(source)
    engine.commit(batch(5, clock_s=20.0, events=[put(6, b"z", b"late")]))
    kill(engine)
    moved(source, target)
    assert facts(target)[1] == 6


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(2))
def test_an_append_of_unknown_outcome_is_settled(
    tmp_path: Path, times: Times, monkeypatch: pytest.MonkeyPatch, number: int, after: bool
) -> None:
    source, target = Home("directory", tmp_path / "old", times), Home("log", tmp_path / "new", times)
    monkeypatch.setattr(moving, "TICK_S", 0.0)
    fill(source)
    calls = itertools.count()

    def lose() -> None:
        if next(calls) == number:
            raise UnknownError("lost")

    if after:
        target.records.after_append = lose
    else:
        target.records.before_append = lose
    moved(source, target)
    assert kinds(target.records) == [ARRIVAL, RELEASE]
    assert facts(target)[1] == 5


def test_the_source_log_gets_one_record(tmp_path: Path, times: Times) -> None:
    source, target = Home("log", tmp_path / "old", times), Home("directory", tmp_path / "new", times)
    fill(source)
    before = list(source.records.records)
    with pytest.raises(CutError):
        moved(source, target, lambda name: (_ for _ in ()).throw(CutError) if name == "arrive" else None)
    assert source.records.records == before
    moved(source, target)
    assert source.records.records[:-1] == before
    assert kinds(source.records)[-1] == SEAL


def test_a_server_that_writes_keeps_the_log(tmp_path: Path, times: Times) -> None:
    source, target = Home("log", tmp_path / "old", times), Home("directory", tmp_path / "new", times)
    engine = leading(source)
    engine.commit(batch(1, events=[put(2, b"a")]))
    times.asleep = lambda: engine.upkeep(times.now, True)
    with pytest.raises(MoveError, match="stop all servers on it first"):
        moved(source, target)
    engine.commit(batch(2, events=[put(3, b"b")]))  # it has noticed nothing


@pytest.mark.parametrize("at", ["copy", "arrive"])
def test_a_server_that_starts_during_the_move_keeps_the_log(tmp_path: Path, times: Times, at: str) -> None:
    source, target = Home("log", tmp_path / "old", times), Home("log", tmp_path / "new", times)
    fill(source)

    def start(name: str) -> None:
        if name == at:
            assert served(source)

    with pytest.raises(MoveError, match="a server has written to the log since it was copied"):
        moved(source, target, start)
    assert SEAL not in kinds(source.records)
    assert "not finished" in refusal(target)
    moved(source, target)
    assert facts(target)[1] == 5


def test_a_leader_that_stood_still_finds_the_seal(tmp_path: Path, times: Times) -> None:
    source, target = Home("log", tmp_path / "old", times), Home("log", tmp_path / "new", times)
    engine = leading(source)
    engine.commit(batch(1, events=[put(2, b"a")]))
    moved(source, target)
    before = len(source.records.records)
    with pytest.raises(MovedError, match="the data has moved to log new"):
        engine.commit(batch(2, events=[put(3, b"b")]))
    assert len(source.records.records) == before


def test_a_server_that_follows_finds_the_seal(tmp_path: Path, times: Times) -> None:
    source, target = Home("log", tmp_path / "old", times), Home("log", tmp_path / "new", times)
    fill(source)
    follower = source.engine()
    follower.open(IDENTITY)
    follower.load()
    moved(source, target)
    with pytest.raises(MovedError, match="the data has moved to log new"):
        lead(follower)


def test_of_two_runs_of_one_move_the_older_one_ends(tmp_path: Path, times: Times) -> None:
    source, target = Home("log", tmp_path / "old", times), Home("log", tmp_path / "new", times)
    fill(source)

    def other(name: str) -> None:
        if name == "arrive":
            moved(source, target)

    with pytest.raises(MoveError, match="another process writes there too"):
        moved(source, target, other)
    assert kinds(target.records) == [ARRIVAL, ARRIVAL, RELEASE]
    assert facts(target)[1] == 5


def test_a_target_that_is_not_empty_is_refused(source: Home, target: Home) -> None:
    fill(source)
    fill(target)
    with pytest.raises(MoveError, match="not empty: a move needs an empty target"):
        moved(source, target)
    assert facts(source)[1] == 5
    assert facts(target)[1] == 5


def test_a_strange_file_is_not_an_empty_target(source: Home, tmp_path: Path, times: Times) -> None:
    fill(source)
    target = Home("directory", tmp_path / "new", times)
    target.folder.mkdir()
    (target.folder / "notes").write_text("mine")
    with pytest.raises(MoveError, match="not empty"):
        moved(source, target)
    assert (target.folder / "notes").read_text() == "mine"


def test_a_second_move_elsewhere_is_refused(source: Home, target: Home, tmp_path: Path, times: Times) -> None:
    fill(source)
    moved(source, target)
    for number, kind in enumerate(("directory", "log")):
        third = Home(kind, tmp_path / f"third{number}", times)
        with pytest.raises(MoveError, match=r"the data has moved to .*new"):
            moved(source, third)


def test_no_data_is_no_move(source: Home, target: Home) -> None:
    with pytest.raises(MoveError, match="no data"):
        moved(source, target)


def test_a_copy_of_a_log_is_no_source(tmp_path: Path, times: Times) -> None:
    log = Home("log", tmp_path / "log", times)
    fill(log)
    copy = Home("directory", tmp_path / "log" / "0", times)
    with pytest.raises(DataDirError, match="only a copy of the log of a cluster"):
        moved(copy, Home("directory", tmp_path / "new", times))


def test_a_copy_from_before_the_move_came_is_made_anew(tmp_path: Path, times: Times) -> None:
    """Otherwise a server that was started too early would lead without the data."""
    source, target = Home("log", tmp_path / "old", times), Home("log", tmp_path / "new", times)
    fill(source)
    too_early = engine_of(tmp_path / "early", target.records, times)

    def start(name: str) -> None:
        if name == "look":
            too_early.open((IDENTITY[0], 5))
            too_early.close()

    moved(source, target, start)
    too_early.open((IDENTITY[0], 5))
    assert [row[2] for row in too_early.load().events] == [b"a", b"a", b"a", b"k"]
    too_early.close()


@pytest.mark.parametrize("at", STEPS)
def test_kill_9_between_directories(tmp_path: Path, times: Times, at: str) -> None:
    source, target = Home("directory", tmp_path / "old", times), Home("directory", tmp_path / "new", times)
    fill(source, clean=False)
    process = os.fork()
    if not process:
        moved(source, target, lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == at else None)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    if at == "open":
        assert "has moved" in refusal(source)
    else:
        moved(source, target)
    assert facts(target)[1] == 5


def test_the_marks_are_records_like_others() -> None:
    rows = batch(3, clean=True)
    for kind in (SEAL, ARRIVAL):
        entry = shared_record.encode(kind, 4, 2, bytes(16), 5, bytes(16), rows, texts=("name", "there"))
        read = shared_record.decode(entry.data)
        assert read is not None
        assert (read.kind, read.texts, read.record.rows.clean) == (kind, ["name", "there"], True)

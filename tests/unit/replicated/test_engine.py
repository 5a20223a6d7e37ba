# SPDX-License-Identifier: Apache-2.0
"""The engine on a shared log: one process, two of them, and a log that does not answer. All in one thread."""

import contextlib
import gc
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lessor.cluster.tenure import Timing
from lessor.durable import shared_record
from lessor.durable.engine import (
    FIRST_TERM,
    FOLLOW_S,
    FOLLOW_SOON_S,
    Begun,
    DataDirError,
    EngineError,
    FencedError,
    Follow,
    Loaded,
)
from lessor.durable.file_engine import FileEngine
from lessor.durable.log import LogError
from lessor.durable.shared_log import LogRefusedError, UnknownError, UnreachableError
from lessor.durable.shared_record import BATCH, BEAT, CLAIM, RELEASE, with_nonce
from lessor.replicated import snapshots
from lessor.replicated.carrying import QUIET_S
from lessor.replicated.engine import SHOWN_BYTES_MAX, SHOWN_MAX, ReplicatedEngine
from lessor.state.journal import AuthRows, Rows
from tests.memory_log import MemoryLog, MemoryRecords
from tests.unit.durable.engine_rows import IDENTITY, batch, put, rest, tombstone

TIMING = Timing()


class Times:
    """The clocks of one machine. `sleep` moves them on, and tells whoever wants to do something meanwhile."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asleep: Callable[[], object] = lambda: None

    def now_s(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.asleep()


def engine_of(folder: Path, kept: MemoryRecords, times: Times, timing: Timing = TIMING) -> ReplicatedEngine:
    return ReplicatedEngine(
        folder, lambda: MemoryLog(kept), timing, clock=times, wall_clock=times, sleep=times.sleep, sync=False
    )


def lead(engine: ReplicatedEngine | FileEngine, follow: Follow = lambda rows, term, origins: None) -> Begun:
    """Looks whether it may lead until it does, as the committer does."""
    while (begun := engine.try_to_lead(follow)) is None:
        assert isinstance(engine, ReplicatedEngine)
        engine._sleep(FOLLOW_S)
    return begun


def started(folder: Path, kept: MemoryRecords, times: Times) -> ReplicatedEngine:
    engine = engine_of(folder, kept, times)
    engine.open(IDENTITY)
    engine.load()
    lead(engine)
    return engine


def kinds(kept: MemoryRecords) -> list[int]:
    found = []
    for data in kept.records:
        entry = shared_record.decode(data)
        assert entry is not None
        found.append(entry.kind)
    return found


def content(loaded: Loaded) -> list[object]:
    return [list(loaded.events), list(loaded.leases)]


def values(engine: ReplicatedEngine) -> list[object]:
    return [row[3] for row in engine.load().events]


def test_the_first_start_claims_and_commits(tmp_path: Path, kept: MemoryRecords, times: Times) -> None:
    engine = engine_of(tmp_path, kept, times)
    meta = engine.open(IDENTITY)
    assert (meta.cluster_id, meta.term, meta.batch) == (IDENTITY[0], 0, 0)
    began_s = times.now
    begun = lead(engine)
    assert (begun.term, begun.clock_s) == (FIRST_TERM, 0.0)
    assert times.now - began_s > TIMING.claim_s  # somebody else might have been there
    engine.commit(batch(1, events=[put(2, b"k", b"v")]))
    assert kinds(kept) == [CLAIM, BATCH]
    assert values(engine) == [b"v"]
    engine.close()


def test_all_is_there_after_a_crash_also_without_the_tables(tmp_path: Path, kept: MemoryRecords, times: Times) -> None:
    engine = started(tmp_path / "a", kept, times)
    for number in range(1, 20):
        engine.commit(batch(number, events=[put(number + 1, b"k%d" % number, b"v")], leases=[(number, 10, 5.0, False)]))
        if number == 10:
            rest(engine)
    engine._let_go()  # as kill -9 does
    again = started(tmp_path / "a", kept, times)
    there = content(again.load())
    assert len(kept.records) == 21
    again.close()
    fresh = started(tmp_path / "b", kept, times)
    assert content(fresh.load()) == there
    assert [len(each) for each in there if isinstance(each, list)] == [19, 19]
    fresh.close()


def test_after_an_orderly_end_the_next_one_leads_at_once(tmp_path: Path, kept: MemoryRecords, times: Times) -> None:
    engine = started(tmp_path / "a", kept, times)
    engine.commit(batch(1, clean=True))
    engine.close()
    assert kinds(kept) == [CLAIM, RELEASE]
    another = engine_of(tmp_path / "b", kept, times)
    another.open(IDENTITY)
    began_s = times.now
    begun = lead(another)
    assert (begun.term, begun.clean) == (FIRST_TERM + 1, True)
    assert times.now == began_s
    another.close()


def test_one_stands_by_while_another_beats_and_follows_it(tmp_path: Path, kept: MemoryRecords, times: Times) -> None:
    one = started(tmp_path / "a", kept, times)
    two = engine_of(tmp_path / "b", kept, times)
    two.open(IDENTITY)
    two.load()
    followed: list[Rows] = []
    until_s = times.now + 20

    def meanwhile() -> None:
        if times.now < until_s:
            one.upkeep(times.now, True)
            if 5 > len(followed) == one._decisions.standing.batch:
                one.commit(batch(len(followed) + 1, events=[put(len(followed) + 2, b"k", b"%d" % len(followed))]))

    times.asleep = meanwhile
    begun = lead(two, lambda rows, term, origins: followed.append(rows) if rows.events else None)
    assert times.now > until_s + TIMING.claim_s - TIMING.beat_s - 0.1
    assert [rows.events[0][3] for rows in followed] == [b"0", b"1", b"2", b"3", b"4"]
    assert kinds(kept).count(BEAT) > 20 / TIMING.beat_s / 2
    assert begun.term == FIRST_TERM + 1
    times.asleep = lambda: None
    records = len(kept.records)
    with pytest.raises(FencedError, match="another process"):
        one.commit(batch(6, events=[put(7, b"k", b"lost")]))
    with pytest.raises(Exception, match="no write after a failed one"):
        one.commit(batch(7))
    assert len(kept.records) == records
    two.commit(batch(6, events=[put(7, b"k", b"kept")]))
    assert values(two) == [b"0", b"1", b"2", b"3", b"4", b"kept"]
    two.close()
    one.close()


def test_in_the_place_of_a_fenced_one_follows_one_that_has_what_the_log_has(
    tmp_path: Path, kept: MemoryRecords, times: Times
) -> None:
    one = started(tmp_path / "a", kept, times)
    one.commit(batch(1, events=[put(2, b"k", b"v")]))
    nonce, member_id = one._decisions.nonce, one._decisions.node_id
    two = started(tmp_path / "b", kept, times)
    with pytest.raises(FencedError):
        one.commit(batch(2, events=[put(3, b"k", b"lost")]))
    two.commit(batch(2, events=[put(3, b"k", b"kept")]))
    two.commit(batch(3))  # confirms what came before it
    one.close()
    again = engine_of(tmp_path / "a", kept, times)
    assert again.open(IDENTITY).member_id == member_id
    assert values(again) == [b"v", b"kept"]
    assert again._decisions.nonce != nonce  # what it counts begins anew
    again.close()
    two.close()


def test_a_record_may_land_while_another_thread_looks_at_the_newest(
    tmp_path: Path, kept: MemoryRecords, times: Times
) -> None:
    engine = engine_of(tmp_path, kept, times)
    numbers = iter(range(1, 1_000_000))

    def lands(phase: str, info: object) -> None:
        """The collector may be called wherever memory is asked for, and other threads run while it is."""
        engine._landed.append((next(numbers), b"record"))

    for _ in range(SHOWN_MAX):
        lands("", None)
    looks = []  # kept: otherwise no memory is asked for
    before = gc.get_threshold()
    gc.callbacks.append(lands)
    try:
        for threshold in range(1, 20):
            gc.set_threshold(threshold)
            looks += [engine.landed(engine._landed[0][0]) for _ in range(50)]
    finally:
        gc.callbacks.remove(lands)
        gc.set_threshold(*before)
    assert len(looks) == 19 * 50


def test_records_that_the_leader_shows_are_taken_in_without_a_read(
    tmp_path: Path, kept: MemoryRecords, times: Times
) -> None:
    one = started(tmp_path / "a", kept, times)
    two = engine_of(tmp_path / "b", kept, times)
    two.open(IDENTITY)
    followed: list[Rows] = []

    def look() -> None:
        assert two.try_to_lead(lambda rows, term, origins: followed.append(rows)) is None

    def show(after: int) -> None:
        end = one.end
        assert end is not None
        shown = [with_nonce(data, end.nonce) for data in one.landed(after)]
        two.told(end.epoch, end.record, shown)

    look()
    reads = kept.reads
    for number in (1, 2, 3):
        one.commit(batch(number, events=[put(number + 1, b"k", b"%d" % number)]))
        show(number)  # behind the claim, record 1
        look()
    assert [rows.events[0][3] for rows in followed if rows.events] == [b"1", b"2", b"3"]
    assert kept.reads == reads
    one.commit(batch(4, events=[put(5, b"k", b"4")]))
    one.commit(batch(5, events=[put(6, b"k", b"5")]))
    show(5)  # the one before it was not shown
    look()
    assert [rows.events[0][3] for rows in followed if rows.events] == [b"1", b"2", b"3", b"4", b"5"]
    assert kept.reads == reads + 1
    two.close()
    one.close()


def test_who_ends_its_term_in_order_follows_with_the_same_tables_and_leads_again(
    tmp_path: Path, kept: MemoryRecords, times: Times
) -> None:
    one = started(tmp_path / "a", kept, times)
    two = engine_of(tmp_path / "b", kept, times)
    meta = two.open((IDENTITY[0], 99))
    two.load()
    followed: list[Rows] = []

    def follow(rows: Rows, _term: int, _origins: Any) -> None:
        followed.append(rows)

    assert two.try_to_lead(follow) is None
    one.commit(batch(1, events=[put(2, b"k", b"1")]))
    one.name_successor(meta.member_id, goes_on=True)
    one.commit(batch(2, clean=True))
    end = one.released
    assert end is not None
    assert (end.record, end.batch, one.end, one.answering, one.leader) == (3, 2, None, None, None)
    assert two.look_again_s == FOLLOW_S
    two.told(end.epoch, end.record, [with_nonce(data, end.nonce) for data in one.landed(0)])
    begun = two.try_to_lead(follow)  # in the look in which it hears of it
    assert begun == Begun(FIRST_TERM + 1, batch(2).clock_s, clean=True, goes_on=True)
    assert [rows.number for rows in followed] == [0, 1, 2]
    followed.clear()
    assert one.look_again_s == FOLLOW_SOON_S
    assert one.try_to_lead(follow) is None
    leader = one.leader
    assert leader is not None
    assert (leader.member_id, leader.epoch, one.look_again_s) == (meta.member_id, begun.term, FOLLOW_S)
    two.commit(batch(3, events=[put(3, b"k", b"3")]))
    two.name_successor(0, goes_on=False)
    two.commit(batch(4, clean=True))
    again = lead(one, follow)
    assert (again.term, again.clean, again.goes_on, one.released) == (begun.term + 1, True, False, None)
    assert [rows.number for rows in followed] == [2, 3, 4]  # the claim repeats the number of the batch before it
    assert len(one.landed(0)) == 0  # those of its first term are none of this one's
    one.commit(batch(5, events=[put(4, b"k", b"5")]))
    one.flush()
    assert values(one)[-1] == b"5"
    one.close()
    two.close()
    assert kinds(kept)[:7] == [CLAIM, BATCH, RELEASE, CLAIM, BATCH, RELEASE, CLAIM]


def test_who_was_not_named_does_not_count_on_clients_that_stayed(tmp_path: Path, kept: MemoryRecords) -> None:
    times = Times()
    one = started(tmp_path / "a", kept, times)
    two = engine_of(tmp_path / "b", kept, times)
    two.open((IDENTITY[0], 99))
    two.load()
    one.name_successor(4711, goes_on=True)  # and that one is lost
    one.commit(batch(1, clean=True))
    begun = lead(two, lambda *_: None)
    assert (begun.clean, begun.goes_on) == (True, False)


def test_large_records_and_those_with_users_are_not_shown(tmp_path: Path, kept: MemoryRecords, times: Times) -> None:
    engine = started(tmp_path, kept, times)

    def commit(number: int, size_bytes: int = 1, **rows: Any) -> None:
        engine.commit(batch(number, events=[put(number + 1, b"k", bytes(size_bytes))], **rows))

    commit(1)
    assert len(engine.landed(0)) == 2
    assert len(engine.landed(1)) == 1
    assert engine.landed(2) == []
    commit(2, auth=AuthRows())
    assert engine.landed(1) == engine.landed(2) == ()
    commit(3)
    assert engine.landed(2) == ()
    assert len(engine.landed(3)) == 1
    commit(4, SHOWN_BYTES_MAX)
    commit(5)
    assert engine.landed(4) == ()
    for number in range(6, 6 + SHOWN_MAX):
        commit(number)
    assert engine.landed(5) == ()  # too long ago
    assert len(engine.landed(6)) == SHOWN_MAX
    engine.close()


def test_who_follows_deletes_the_rows_that_a_compaction_has_left(
    tmp_path: Path, kept: MemoryRecords, times: Times
) -> None:
    """The records do not name them: the machine that follows does, in another thread."""
    one = started(tmp_path / "a", kept, times)
    one.commit(batch(1, events=[put(2, b"k"), put(3, b"k"), put(4, b"l"), put(5, b"l")]))
    one.commit(batch(2, compact_revision=3, dead=[(2, 0)]))
    two = engine_of(tmp_path / "b", kept, times)
    two.open(IDENTITY)
    two.load()
    two.name_dead([(2, 0)])
    compacted = False

    def follow(rows: Rows, term: int, origins: object) -> None:
        nonlocal compacted
        compacted = compacted or rows.compact_revision == 5

    one.commit(batch(3, compact_revision=5, dead=[(4, 0)]))
    while not compacted:
        one.upkeep(times.now, True)  # a beat says that the record before it has landed
        assert two.try_to_lead(follow) is None
        times.sleep(0.05)
    two.name_dead([(4, 0)])
    for _ in range(10):  # so that what waits is folded, and swept then
        one.upkeep(times.now, True)
        assert two.try_to_lead(follow) is None
        times.sleep(0.05)
    assert [row[0] for row in two.load().events] == [3, 5]
    two.name_dead([(3, 0)])  # and the last that it was told of before it leads
    begun = lead(two, follow)
    two.commit(batch(4, events=[tombstone(6, b"l")]))
    rest(two)
    assert [row[0] for row in two.load().events] == [5, 6]
    assert begun.term == FIRST_TERM + 1
    two.close()
    one.close()


def test_a_commit_of_unknown_outcome_is_made_once(tmp_path: Path, kept: MemoryRecords, times: Times) -> None:
    engine = started(tmp_path, kept, times)
    calls = 0

    def lose_the_answer() -> None:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise UnknownError("the answer was lost")

    kept.after_append = lose_the_answer
    for number in range(1, 6):
        engine.commit(batch(number, events=[put(number + 1, b"k", b"%d" % number)]))
    kept.after_append, kept.before_append = lambda: None, lose_the_answer
    for number in range(6, 11):
        engine.commit(batch(number, events=[put(number + 1, b"k", b"%d" % number)]))
    assert kinds(kept) == [CLAIM, *[BATCH] * 10]
    assert values(engine) == [b"%d" % number for number in range(1, 11)]
    engine.close()


def test_an_engine_that_refuses_is_told_from_one_that_does_not_answer(
    tmp_path: Path, kept: MemoryRecords, times: Times, caplog: pytest.LogCaptureFixture
) -> None:
    engine = started(tmp_path, kept, times)
    errors: list[LogError] = [LogRefusedError("name a standby"), UnreachableError("nobody is there")]

    def trouble() -> None:
        if errors:
            times.now += QUIET_S  # more often it says nothing
            raise errors.pop(0)

    kept.before_append = trouble
    engine.commit(batch(1, events=[put(2, b"k", b"v")]))
    said = [
        (each.levelname, each.message, each.__dict__["reason"]) for each in caplog.records if "reason" in vars(each)
    ]
    assert said == [
        ("ERROR", "the engine cannot be used as it is; waiting until somebody has acted", "name a standby"),
        ("WARNING", "the engine does not answer; waiting for it", "nobody is there"),
    ]
    assert values(engine) == [b"v"]
    engine.close()


def test_a_commit_waits_for_a_log_that_is_away_and_nothing_may_be_answered(
    tmp_path: Path, kept: MemoryRecords, times: Times
) -> None:
    engine = started(tmp_path, kept, times)
    answering = engine.answering
    assert answering is not None
    engine.commit(batch(1))
    assert answering.may_send()
    served_s = answering.served_s()
    kept.up = False
    away_s, seen = times.now, []

    def meanwhile() -> None:
        seen.append((times.now - away_s < TIMING.lease_s, answering.may_send()))
        kept.up = times.now - away_s > 30

    times.asleep = meanwhile
    engine.commit(batch(2, events=[put(2, b"k", b"v")]))
    assert all(early == may for early, may in seen)
    assert [may for _, may in seen].count(False) > 100
    times.asleep = lambda: None
    assert answering.may_send()  # the log was looked at before the last try, and the record was not there
    assert answering.served_s() - served_s < TIMING.lease_s + 2 * TIMING.beat_s  # of 30 seconds
    assert kinds(kept) == [CLAIM, BATCH, BATCH]
    engine.close()


def test_the_clock_of_a_leader_that_nobody_asks_goes_on_with_its_beats(
    tmp_path: Path, kept: MemoryRecords, times: Times
) -> None:
    engine = started(tmp_path, kept, times)
    answering = engine.answering
    assert answering is not None
    before_s, began_s = answering.served_s(), times.now
    while times.now < began_s + 10:
        times.sleep(0.05)
        engine.upkeep(times.now, True)
    assert answering.served_s() - before_s == pytest.approx(times.now - began_s)
    assert answering.stood_s == 0
    engine.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots come early, and leave little."""
    monkeypatch.setattr(snapshots, "LOG_BYTES", 4_000)
    monkeypatch.setattr(snapshots, "KEPT_RECORDS", 5)


def grow(engine: ReplicatedEngine, times: Times, first: int, count: int) -> None:
    for number in range(first, first + count):
        engine.commit(batch(number, events=[put(number + 1, b"k%d" % number, bytes(100))]))
    engine.flush()
    engine.upkeep(times.now, True)  # begins a snapshot
    kept = engine._snapshots
    assert kept is not None
    assert kept._thread is not None
    kept._thread.join()
    engine.upkeep(times.now, True)


@pytest.mark.usefixtures("short")
def test_a_snapshot_in_the_engine_shortens_the_log_and_makes_new_copies(
    tmp_path: Path, kept: MemoryRecords, times: Times
) -> None:
    engine = started(tmp_path / "a", kept, times)
    old = engine_of(tmp_path / "old", kept, times)
    old_id = old.open((1, 77)).member_id
    old.close()
    somebodys = tmp_path / "old" / "lessor.db.of-last-week"
    somebodys.write_bytes(b"a copy")
    grow(engine, times, 1, 100)
    assert kept.snapshots[-1][0] == 101
    assert kept.first == 101 - 5
    engine.commit(batch(101, events=[put(102, b"new", b"v")], clean=True))
    there = content(engine.load())
    engine.close()
    # From the snapshot and what came after it: for a directory that is new, and for one that lacks what is forgotten.
    fresh = started(tmp_path / "b", kept, times)
    assert content(fresh.load()) == there
    fresh.close()
    late = engine_of(tmp_path / "old", kept, times)
    assert late.open(IDENTITY).member_id == old_id == 77
    assert somebodys.read_bytes() == b"a copy"
    assert content(late.load())[0] == there[0]
    lead(late)
    late.commit(batch(102, events=[put(103, b"newer", b"v")]))
    late.close()
    with pytest.raises(DataDirError, match="start with --engine"):
        FileEngine(tmp_path / "old").open(IDENTITY)


@pytest.mark.usefixtures("short")
def test_one_that_stood_still_until_the_log_has_forgotten_its_place_is_fenced_and_follows_from_the_snapshot(
    tmp_path: Path, kept: MemoryRecords, times: Times
) -> None:
    one = started(tmp_path / "a", kept, times)
    member_id = one._decisions.node_id
    two = started(tmp_path / "b", kept, times)
    grow(two, times, 1, 100)
    with pytest.raises(FencedError, match="the log begins at record"):
        one.commit(batch(1, events=[put(2, b"k", b"lost")]))
    one.close()
    two.commit(batch(101))
    again = engine_of(tmp_path / "a", kept, times)
    assert again.open(IDENTITY).member_id == member_id
    assert content(again.load()) == content(two.load())
    again.close()
    two.close()


@pytest.mark.usefixtures("short")
def test_a_snapshot_that_fails_is_made_later(tmp_path: Path, kept: MemoryRecords, times: Times) -> None:
    engine = started(tmp_path, kept, times)
    put_snapshot = MemoryLog.put_snapshot

    def fail(self: MemoryLog, position: int, pieces: object) -> None:
        raise UnreachableError("cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryLog, "put_snapshot", fail)
        grow(engine, times, 1, 50)
    assert (kept.snapshots, kept.first) == ([], 1)
    for number in range(51, 100):
        engine.commit(batch(number, events=[put(number + 1, b"k%d" % number, bytes(100))]))
    engine.upkeep(times.now, True)
    assert kept.snapshots == []
    times.sleep(snapshots.RETRY_S)
    assert MemoryLog.put_snapshot is put_snapshot
    grow(engine, times, 100, 1)
    assert kept.snapshots[-1][0] >= 101
    engine.close()


@pytest.mark.usefixtures("short")
def test_a_copy_that_is_overtaken_while_it_is_made_is_made_of_the_next_snapshot(
    tmp_path: Path, kept: MemoryRecords, times: Times, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started(tmp_path / "a", kept, times)
    grow(engine, times, 1, 50)
    newest_snapshot = MemoryLog.newest_snapshot
    overtaken = 0

    def slowly(self: MemoryLog) -> object:
        nonlocal overtaken
        found = newest_snapshot(self)
        if overtaken < 2:
            overtaken += 1
            grow(engine, times, 1 + 50 * overtaken, 50)
        return found

    fresh = engine_of(tmp_path / "b", kept, times)
    monkeypatch.setattr(MemoryLog, "newest_snapshot", slowly)
    fresh.open(IDENTITY)
    assert (overtaken, kept.snapshots[-1][0]) == (2, 151)
    assert content(fresh.load()) == content(engine.load())
    fresh.close()
    # Without a snapshot of what is forgotten nothing helps.
    kept.snapshots.clear()
    with pytest.raises(EngineError, match=r"the log begins at record \d+:.*, and the engine has no snapshot of that"):
        engine_of(tmp_path / "c", kept, times).open(IDENTITY)
    engine.close()


@pytest.mark.usefixtures("short")
def test_another_program_at_the_tables_holds_up_nobody(tmp_path: Path, kept: MemoryRecords, times: Times) -> None:
    engine = started(tmp_path, kept, times)
    for number in range(1, 51):
        engine.commit(batch(number, events=[put(number + 1, b"k%d" % number, bytes(100))]))
    engine.flush()
    with contextlib.closing(sqlite3.connect(tmp_path / "lessor.db", isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        engine.commit(batch(51, events=[put(52, b"k", b"v")]))
        engine.upkeep(times.now, True)  # it would wait for BUSY_S, and send no beat
        making = engine._snapshots
        assert making is not None
        assert making._thread is not None
        making._thread.join()
        assert kept.snapshots[-1][0] == 51  # without the batch that the tables lack
    engine.close()


def leading_for(engine: ReplicatedEngine, times: Times, seconds: float) -> None:
    """It leads for so long, and then it is gone."""
    until_s = times.now + seconds
    times.asleep = lambda: engine.upkeep(times.now, True) if times.now < until_s else None


@pytest.mark.parametrize("up_to_date", [True, False])
def test_who_stands_by_waits_as_long_as_the_leader_may_answer(
    up_to_date: bool, tmp_path: Path, kept: MemoryRecords, times: Times
) -> None:
    """Two servers were given different times. The one that stands by learns it from a record, old or new."""
    slow = Timing(lease_s=10.0, claim_s=12.5, beat_s=2.5, link_s=6.0)
    leader = engine_of(tmp_path / "a", kept, times, slow)
    leader.open(IDENTITY)
    lead(leader)
    leader.commit(batch(1, events=[put(2, b"k", b"v")]))
    answering = leader.answering
    assert answering is not None
    other = engine_of(tmp_path / "b", kept, times)
    other.open(IDENTITY)
    if up_to_date:  # it has all records in its tables, and sees no new one
        other.load()
        other._let_go()
        other = engine_of(tmp_path / "b", kept, times)
        other.open(IDENTITY)
    else:
        leading_for(leader, times, 20)
    lead(other)
    assert not answering.may_send()
    other.close()
    leader.close()


def test_a_server_that_ends_in_order_and_starts_again_leads_at_once(
    tmp_path: Path, kept: MemoryRecords, times: Times
) -> None:
    engine = started(tmp_path, kept, times)
    engine.commit(batch(1, clean=True))
    engine.close()
    again = engine_of(tmp_path, kept, times)
    again.open(IDENTITY)
    began_s = times.now
    assert lead(again).clean
    assert times.now - began_s < TIMING.claim_s
    again.close()


def test_an_engine_that_was_closed_starts_anew(tmp_path: Path, kept: MemoryRecords, times: Times) -> None:
    engine = started(tmp_path, kept, times)
    engine.commit(batch(1, events=[put(2, b"k", b"v")]))
    engine.close()
    engine.open(IDENTITY)
    assert values(engine) == [b"v"]
    engine.close()

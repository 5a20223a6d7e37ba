# SPDX-License-Identifier: Apache-2.0
"""The engine on a log that others may write to as well: PostgreSQL's, or etcd's. The tables are a copy of it.

Laws
- `commit` returns when the log has the record for good. Its outcome is never guessed: while the log does not answer,
  `commit` waits.
- The tables only follow the log, and have nothing that it lacks. They can be deleted, and are made anew; so are damaged
  ones, which stay in a folder beside the new ones.
- This process commits only in a term that it has claimed in the log, directly behind everything that it has taken in.
  When another process has claimed after it, nothing of this one lands any more: FencedError, for good.
- A clean batch ends the term. From then on this process follows the log as one that has just been opened, and may claim
  again. What it had in memory is what the log has.
- A primary that has nothing to commit appends a beat now and then, in `upkeep`. The committer calls that from a timer
  of the loop, so a loop that stands still does not beat (R8).

Theory of operation. `cluster/node.py` decides, `carrying.py` carries out, `durable/` keeps the tables. `open` brings
the tables up to the log's end. `try_to_lead` follows the log, one look at a time, until nobody else leads, and claims.

Does not do: answering while another process leads; what keeps the log short is in snapshots.py.
"""

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from lessor.base.clock import BootClock, Clock, WallClock
from lessor.cluster.answering import Answering
from lessor.cluster.node import Node
from lessor.cluster.standing import Standing
from lessor.cluster.tenure import Timing
from lessor.durable import directory, opening
from lessor.durable.engine import (
    FIRST_TERM,
    FOLLOW_S,
    FOLLOW_SOON_S,
    Begun,
    DamagedError,
    DataDirError,
    EngineError,
    FencedError,
    Follow,
    GivenUpError,
    HistoryError,
    Leader,
    LogEnd,
    Meta,
    MovedError,
)
from lessor.durable.engine_on_tables import UNFOLDED_ROWS_MAX, EngineOnTables
from lessor.durable.log import LogError
from lessor.durable.meta_rows import LogPosition
from lessor.durable.opening import Seen
from lessor.durable.record import Changes
from lessor.durable.shared_log import Info, LogRefusedError, SharedLog
from lessor.durable.shared_record import BATCH, BEAT, CLAIM, NONCE_BYTES, RELEASE, Entry, Origin, without_nonce
from lessor.durable.table_sync import Start, start_thread
from lessor.durable.upkeep import Upkeep
from lessor.replicated.carrying import TICK_S, BehindError, Carrying
from lessor.replicated.snapshots import Snapshots, fetch
from lessor.state.journal import Batch, Rows

log = logging.getLogger("lessor")
T = TypeVar("T")

OPEN_RETRY_S: Final = 1.0
SHOWN_MAX: Final = 16  # records that are kept for those who follow: about as many as land while one of them is told
SHOWN_BYTES_MAX: Final = 262_144  # of one of them; what is larger takes long anyway, and is read from the log


class _NoRoom:
    """The room that the log takes up is not the tables' business. Implements `upkeep.Room`."""

    trimmable = 0

    def trim(self, upto: int) -> None: ...


class ReplicatedEngine(EngineOnTables):
    """Implements `Engine` on a shared log, and the directory `data_dir` for the copy."""

    def __init__(
        self,
        data_dir: Path,
        make_log: Callable[[], SharedLog],
        timing: Timing | None = None,
        *,
        urls: tuple[str, ...] = (),
        clock: Clock | None = None,
        wall_clock: Clock | None = None,
        sleep: Callable[[float], object] | None = None,
        start: Start = start_thread,
        sync: bool = True,
    ) -> None:
        """`make_log`: a way to the engine, one for each thread. `urls`: those of the clients, for the claim.

        The rest stands in for the system in tests.
        """
        super().__init__(data_dir, start=start, sync=sync)
        self._make_log = make_log
        self._shared = make_log()
        self._snapshots: Snapshots | None = None  # once this process has led
        self._timing = timing or Timing()
        self._urls = urls
        self._now_s = (clock or BootClock()).now_s
        self._wall_s = (wall_clock or WallClock()).now_s
        self._given_up = threading.Event()
        self._sleep_s = sleep or self._given_up.wait
        self._info: Info | None = None  # once the log is open
        self._node: Node | None = None
        self._hands: Carrying | None = None
        self._follow: Follow = lambda rows, term, origins: None
        self._began_s: float | None = None  # when this process began to look whether it may lead; None: not yet
        self._over = ""  # why this process commits nothing any more, once it is so
        self._said = False  # that another process leads
        self._successor = 0  # who is to lead after a release; 0: whoever is first
        self._goes_on = False  # whether this process follows then
        self._told: deque[tuple[int, int, Sequence[bytes]]] = deque()  # what the leader has said since the last look
        self._landed: deque[tuple[int, bytes]] = deque(maxlen=SHOWN_MAX)  # this process's newest, one behind the other
        self._dead: deque[Sequence[tuple[int, int]]] = deque()  # named by another thread, for this one to delete
        self.answering: Answering | None = None
        self.released: LogEnd | None = None

    # --- open -------------------------------------------------------------------------------------------------------

    def open(self, new_identity: tuple[int, int]) -> Meta:
        return self._open_directory(lambda: self._open(new_identity))

    def _open(self, new_identity: tuple[int, int]) -> Meta:
        info = self._patiently(lambda: self._shared.open(new_identity[0]))
        for warning in info.warnings:
            log.warning("the engine", extra={"warning": warning})
        self._info = info
        member_id = new_identity[1]
        try:
            if directory.exists(self._path):
                return self._open_copy(info)
        except BehindError as error:
            log.info("the copy of the log is too old; making it anew", extra={"reason": str(error)})
            member_id = self._decisions.node_id
            self._forget_copy()
        except DamagedError as error:
            self._set_aside(error)
        return self._make_copy(info, member_id)

    def make_anew(self, error: DamagedError) -> Meta:
        assert self._info is not None, "the engine is not open"
        member_id = self._decisions.node_id
        self._set_aside(error)
        return self._make_copy(self._info, member_id)

    def _make_copy(self, info: Info, member_id: int) -> Meta:
        while True:
            if not self._patiently(lambda: fetch(self._shared, self._connector, self._path, member_id)):
                opening.create(self._connector, self._path, (info.cluster_id, member_id))
            try:
                return self._open_copy(info)
            except BehindError as error:
                newest = self._patiently(self._shared.newest_snapshot)
                if newest is None or newest[0] <= self._decisions.standing.number:
                    raise EngineError(
                        f"{error}, and the engine has no snapshot of that: --engine must name a whole log"
                    ) from None
                log.info("a newer snapshot came while one was read; taking that", extra={"record": newest[0]})
                self._forget_copy()

    def _open_copy(self, info: Info) -> Meta:
        tables = self._tables
        seen = opening.look(self._connector, self._path, tables.sums)
        self._check_origin(seen, info)
        meta, position = tables.open(seen)
        self._keep = Upkeep(tables, _NoRoom())
        try:
            if not seen.shared:
                tables.keep_shared(meta.member_id)
            self._begin_node(meta, position)
            self._catch_up()
            self._refuse_moved()
            self._upkeep.flush()
            meta = tables.begin()
        except BehindError:
            raise
        except HistoryError as error:
            raise DataDirError(f"{self._path}: {error}") from None
        except EngineError as error:
            raise DataDirError(str(error)) from None
        return meta._replace(not_compared=tables.sums.not_compared)

    def _refuse_moved(self) -> None:
        """Raises EngineError for a log that nobody leads, now or ever."""
        if self._decisions.moved is not None:
            raise MovedError(self._decisions.moved.refusal)

    def _set_aside(self, error: DamagedError) -> None:
        """Raises `error` when the directory may have what no log has."""
        if directory.has_own_log(self._dir):
            raise error
        self._tables.close()
        folder = directory.set_aside(self._path)
        self._begin_anew()
        remedy = "if this comes again, check the disk and the memory. The folder can be deleted"
        log.warning(
            "the copy of the log is damaged; making it anew",
            extra={"reason": error.what, "set_aside": str(folder), "remedy": remedy},
        )

    def _forget_copy(self) -> None:
        self._tables.close()
        # The file itself last, as in directory.set_aside.
        for suffix in directory.TABLE_SUFFIXES:
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._begin_anew()

    def _patiently(self, work: Callable[[], T]) -> T:
        """Waits for an engine that does not answer. Raises EngineError for one that cannot be used as it is."""
        said = False
        while True:
            try:
                return work()
            except LogRefusedError as error:
                raise EngineError(str(error)) from None
            except LogError as error:
                if not said:
                    log.warning("the engine does not answer; waiting for it", extra={"reason": str(error)})
                said = True
                self._sleep(OPEN_RETRY_S)

    def _check_origin(self, seen: Seen, info: Info) -> None:
        """Raises DataDirError when the tables are no copy of this log."""
        meta = seen.meta
        if seen.mark is not None:
            raise DataDirError(f"{self._path}: {seen.mark.refusal}; for a server there, give --data-dir another one")
        if not seen.shared and (meta.batch or (seen.log is not None and seen.log.record)):
            raise DataDirError(
                f"{self._path}: the data of a server without --engine: give --data-dir an empty directory, or start "
                "without --engine"
            )
        if meta.cluster_id != info.cluster_id:
            raise DataDirError(
                f"{self._path}: a copy of the log of cluster {meta.cluster_id:016x}, but the engine has that of "
                f"{info.cluster_id:016x}: give --data-dir another directory, or --engine the other log. If the engine "
                "has lost its log, keep this copy: docs/cluster.md says how to go on from it"
            )

    def _begin_node(self, meta: Meta, position: LogPosition) -> None:
        standing = Standing()
        if position.record:  # tables without a record have a chain value of their own
            standing.number, standing.chain = position.record, position.chain
        standing.epoch, standing.batch, standing.clock_s = max(meta.term, FIRST_TERM - 1), meta.batch, meta.clock_s
        standing.released = meta.clean and position.record > 0
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._node = Node(meta.member_id, nonce, self._timing, standing, self._urls)
        self._hands = Carrying(self._shared, self._node, self._now_s, self._sleep, self._took)

    def _catch_up(self) -> None:
        """Until the log was read to its end. Its newest record stays out while nobody has confirmed it."""
        hands = self._carrying
        hands.tick()
        while not hands.has_read:
            self._sleep(TICK_S)
            hands.tick()

    def _log_is_open(self) -> bool:
        return self._hands is not None

    def _close_log(self) -> None:
        self._hands = self._node = None
        self._shared.close()
        self._shared = self._make_log()  # it connects when it is opened

    def _let_go(self) -> None:
        snapshots, self._snapshots = self._snapshots, None
        if snapshots is not None:
            snapshots.close()
        super()._let_go()

    def stop_waiting(self) -> None:
        self._given_up.set()

    def _sleep(self, seconds: float) -> None:
        """Raises GivenUpError when nobody wants to wait any more."""
        self._sleep_s(seconds)
        if self._given_up.is_set():
            raise GivenUpError("the engine does not answer, and nobody waits for it any more")

    # --- lead -------------------------------------------------------------------------------------------------------

    @property
    def _carrying(self) -> Carrying:
        assert self._hands is not None, "the engine is not open"
        return self._hands

    @property
    def _decisions(self) -> Node:
        assert self._node is not None, "the engine is not open"
        return self._node

    @property
    def leader(self) -> Leader | None:
        node = self._node
        return None if node is None or node.leads else node.leader

    @property
    def end(self) -> LogEnd | None:
        node = self._node
        return None if node is None or not node.leads else _end_of(node)

    @property
    def look_again_s(self) -> float:
        node = self._node
        return FOLLOW_SOON_S if node is not None and node.awaits_claim(self._now_s()) else FOLLOW_S

    @property
    def hears_log(self) -> bool:
        node = self._node
        return node is not None and node.tenure.is_linked(self._now_s())

    @property
    def claim_s(self) -> float:
        return self._timing.claim_s

    def name_successor(self, member_id: int, *, goes_on: bool) -> None:
        self._successor, self._goes_on = member_id, goes_on

    def told(self, epoch: int, record: int, records: Sequence[bytes] = ()) -> None:
        self._told.append((epoch, record, records))

    def landed(self, after: int) -> Sequence[bytes]:
        landed = self._landed.copy()  # not `tuple`, which may collect garbage halfway, and meanwhile one more lands
        if not landed or landed[0][0] > after + 1:
            return ()
        return [data for number, data in landed if number > after]

    def name_dead(self, dead: Sequence[tuple[int, int]]) -> None:
        self._dead.append(dead)

    def _take_dead(self) -> None:
        """What was named goes behind the records that were taken in, which are those that made it dead, or later."""
        while self._dead:
            self._upkeep.name_dead(self._dead.popleft())

    def try_to_lead(self, follow: Follow) -> Begun | None:
        node, hands = self._decisions, self._carrying
        self._follow = follow
        if self._given_up.is_set():
            raise GivenUpError("nobody waits to lead any more")
        if self._began_s is None:
            self._began_s = self._now_s()
        hands.tick()
        if self._told:
            while self._told:  # behind the tick: while a read is under way, the node does not claim
                epoch, record, records = self._told.popleft()
                for data in records:
                    node.shown(data, self._now_s())
                node.told(epoch, record, self._now_s())
            hands.carry_out()
            if node.tenure.may_claim(self._now_s()):  # a release was among the records
                hands.tick()
        self._take_dead()
        if hands.lead is None:
            now_s = self._now_s()
            if not self._said and now_s - self._began_s > 2 * (self._timing.claim_s + self._timing.rank_s):
                self._said = True
                extra = {"epoch": node.standing.epoch, "record": node.standing.number}
                log.info("following the log: another process leads it", extra=extra)
            self._upkeep.step(now_s, idle=True)
            return None
        entry = hands.lead.entry
        log.info("leading the log", extra={"epoch": entry.epoch, "record": entry.number})
        if self._snapshots is None:
            self._snapshots = Snapshots(self._dir, self._make_log, self._tables.backup)
        else:
            self._snapshots.begin_anew()
        self.released = None
        self.answering = Answering(node.tenure, self._now_s, self._wall_s)
        return Begun(entry.epoch, hands.lead.clock_s, hands.lead.clean, hands.lead.goes_on)

    def _took(self, entry: Entry, own: bool) -> None:
        rows = entry.record.rows
        if self._upkeep.unfolded.rows >= UNFOLDED_ROWS_MAX:
            self._for_good(self._upkeep.flush)
        self._upkeep.committed(entry.record)
        if not own:
            self._follow(rows, entry.epoch, entry.origins)
            return
        if self._snapshots is not None:
            self._snapshots.appended(len(entry.data))
        if entry.kind == CLAIM:
            self._landed.clear()  # those of an earlier term
        if rows.auth is None and len(entry.data) <= SHOWN_BYTES_MAX:
            self._landed.append((entry.number, without_nonce(entry.data)))
        else:
            self._landed.clear()

    # --- write ------------------------------------------------------------------------------------------------------

    def commit(self, batch: Batch) -> None:
        node = self._decisions
        assert batch.number > node.standing.batch, f"batch {batch.number} after {node.standing.batch}"
        self._take_dead()  # before those that the batch names
        self._append(RELEASE if batch.clean else BATCH, batch, [Origin(*each) for each in batch.origins])

    def _append(self, kind: int, rows: Rows, origins: Sequence[Origin] = ()) -> None:
        """Returns when the record has landed. Raises FencedError, EngineError."""
        self._failure.refuse_after()
        if self._over:
            raise EngineError(f"no write after a failed one: {self._over}")
        node, hands = self._decisions, self._carrying
        try:
            if kind == RELEASE:
                node.submit(kind, rows, self._now_s(), origins, self._successor, goes_on=self._goes_on)
            else:
                node.submit(kind, rows, self._now_s(), origins)
            hands.carry_out()
            while not (node.free or hands.released):
                self._sleep(TICK_S)
                hands.tick()
        except (FencedError, HistoryError, MovedError, GivenUpError) as error:
            self._over = str(error)  # the tables are as good as before: closing brings in what the log had
            raise
        except BaseException as error:
            self._failure.reason = str(error)
            raise
        if hands.released:
            self._stand_by(node)

    def _stand_by(self, node: Node) -> None:
        """The term has ended in order."""
        self.released = _end_of(node)
        self.answering = None
        self._carrying.stand_by()
        if self._snapshots is not None:
            self._snapshots.stand_by()
        self._began_s, self._said = None, False
        self._successor, self._goes_on = 0, False

    def defragment(self) -> None:
        self._take_dead()
        super().defragment()

    def upkeep(self, now_s: float, idle: bool) -> float | None:
        self._take_dead()
        next_s = super().upkeep(now_s, idle)
        node = self._decisions
        if not node.leads:
            return next_s
        if self._snapshots is not None:
            self._snapshots.look(now_s, idle)
        own_s = self._now_s()
        if node.beat_due(own_s, own_s):
            self._append(BEAT, Changes(node.standing.batch, node.standing.clock_s))
        beat_s = now_s + self._timing.beat_s
        return beat_s if next_s is None else min(next_s, beat_s)


def _end_of(node: Node) -> LogEnd:
    standing = node.standing
    return LogEnd(standing.epoch, standing.number, standing.batch, node.nonce)

# SPDX-License-Identifier: Apache-2.0
"""Moves all data from one home to another: from a shared log, or a data directory, to another one of either kind.

Laws
- Until the seal is durable the data is where it was, and a move that fails has changed nothing there. After it nobody
  ever writes there again, and the data is where it has gone to.
- The seal is written once the target has all of it, durably. It stands directly behind what was copied, or nowhere.
- Nobody serves the target before the seal: a mark stands there until then. Nobody serves the source after it.
- A move that was cut off anywhere is made again by the same call. A move that has ended cannot be.

| step | source | target |
|---|---|---|
| look | read | read: empty, or a mark of an unfinished move |
| arrive | | a mark, with the name of the move |
| copy | | the data, durable |
| seal | the seal, with the name of the move and where the data is | |
| open | | the mark is gone |

Each further try puts its mark behind the one before. So a try that stood still meanwhile cannot go on: what it appends
is refused. When the source is sealed already, a try copies again, from what cannot change any more, and opens.

The seal of a log is a claim (cluster/node.py): it waits for the silence that a claim waits for, and fences as one does.
Nothing is written before it. So servers that run there keep the move from happening, and not the other way round.

A target that is a log gets a snapshot, and behind the mark one record, which says whether the deadlines are exact.

Memory: one piece of the copy. Room: two copies in the folder for temporary files.

Does not do: stopping servers; trying again.
"""

import contextlib
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from lessor.base.limits import ENGINE_PIECE_BYTES
from lessor.cluster.tenure import Timing
from lessor.durable import directory, opening, shared_record
from lessor.durable.engine import DataDirError, Meta
from lessor.durable.file_engine import FileEngine
from lessor.durable.meta_rows import LogPosition
from lessor.durable.moved import ARRIVING, AWAY, Mark, rewrite
from lessor.durable.opening import Connector, Seen
from lessor.durable.record import CHAIN_BYTES, Changes
from lessor.durable.shared_log import (
    LANDED,
    LOST,
    TAKEN,
    TRY,
    Placing,
    SharedLog,
    TakenError,
    TrimmedError,
    UnknownError,
)
from lessor.durable.shared_record import ARRIVAL, BEAT, NONCE_BYTES, RELEASE, Entry
from lessor.durable.tables import Tables
from lessor.replicated.carrying import TICK_S
from lessor.replicated.engine import ReplicatedEngine

STOPPING_S: Final = 5.0  # for which servers on the source may still write: they may be about to end
_READ_BYTES: Final = 1_048_576
_ALIEN: Final = "not empty: a move needs an empty target"


class MoveError(Exception):
    """The data was not moved, or not wholly. The message is one line. To try again is safe, and may succeed."""


class Source(Protocol):
    """Where the data is. One thread."""

    place: str  # for people; without secrets

    def open(self, work: Path) -> Meta:
        """Takes it, and reads. `work`: a folder that is deleted later. Raises MoveError, EngineError, DataDirError."""
        ...

    @property
    def mark(self) -> Mark | None:
        """The seal of a move that has come so far."""
        ...

    def copy(self, path: Path) -> None:
        """Writes all data, as tables, to a new file. Waits until nobody else can be writing."""
        ...

    def seal(self, mark: Mark) -> None:
        """Ends the life of the data here, if it still is what `copy` has written. Raises MoveError if it is not."""
        ...

    def close(self) -> None: ...


class Target(Protocol):
    """Where the data is to be. One thread."""

    place: str

    def look(self, cluster_id: int) -> str | None:
        """The name of the unfinished move to here; "" when it is empty; None when there is something else."""
        ...

    def arrive(self, mark: Mark, path: Path) -> None:
        """Puts the mark and the data in `path`, durably. May change that file."""
        ...

    def open_up(self) -> None:
        """Takes the mark away, durably."""
        ...

    def close(self) -> None: ...


class Moved(NamedTuple):
    """What was moved."""

    cluster_id: int
    size_bytes: int  # of the tables


def move(source: Source, target: Target, step: Callable[[str], object] = lambda name: None) -> Moved:
    """Moves all data. `step` is told the name of each step when it is done.

    Raises MoveError, DataDirError, EngineError, LogError: trying again is safe. Cost: the data is read and written
    about four times.
    """
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lessor-move-")))
        stack.callback(source.close)
        cluster_id = source.open(work).cluster_id
        stack.callback(target.close)
        sealed, found = source.mark, target.look(cluster_id)
        if sealed is not None and found != sealed.move:
            raise MoveError(f"{source.place}: {sealed.refusal}")
        if found is None:
            raise MoveError(f"{target.place}: {_ALIEN}")
        name = found or secrets.token_hex(16)
        step("look")
        copy = work / "copy.db"
        source.copy(copy)
        size_bytes = copy.stat().st_size
        step("copy")
        target.arrive(Mark(ARRIVING, name, source.place), copy)
        step("arrive")
        if sealed is None:
            source.seal(Mark(AWAY, name, target.place))
        step("seal")
        target.open_up()
        step("open")
        return Moved(cluster_id, size_bytes)


# --- data directories ------------------------------------------------------------------------------------------------


class _FileEngine(FileEngine):
    """One whose directory may be sealed."""

    mark: Mark | None = None

    def _refuse(self, seen: Seen) -> None:
        if seen.mark is not None and seen.mark.kind == AWAY:
            self.mark = seen.mark
        elif seen.mark is None and seen.shared:
            raise DataDirError(f"{self._path}: only a copy of the log of a cluster: move the data from its engine")
        else:
            super()._refuse(seen)

    def seal(self, mark: Mark) -> None:
        self._tables.keep_mark(mark)


class DirectorySource:
    """Implements `Source`: the data directory of a server that does not run."""

    def __init__(self, folder: Path) -> None:
        self.place = str(folder.absolute())
        self._database = folder / directory.DATABASE_NAME
        self._engine = _FileEngine(folder)

    @property
    def mark(self) -> Mark | None:
        return self._engine.mark

    def open(self, work: Path) -> Meta:
        if not directory.exists(self._database):
            raise MoveError(f"{self.place}: no data of a Lessor server is there")
        return self._engine.open((1, 1))  # which it has: these do not count

    def copy(self, path: Path) -> None:
        self._engine.backup(path)

    def seal(self, mark: Mark) -> None:
        self._engine.seal(mark)

    def close(self) -> None:
        self._engine.close()


class DirectoryTarget:
    """Implements `Target`: a directory that is empty, or is not there."""

    def __init__(self, folder: Path) -> None:
        self.place = str(folder.absolute())
        self._folder = folder
        self._database = folder / directory.DATABASE_NAME
        self._lock: int | None = None

    def look(self, cluster_id: int) -> str | None:
        directory.prepare(self._folder)
        directory.refuse_irregular(self._folder)
        self._lock = directory.lock(self._folder)
        part = self._database.with_name(self._database.name + ".new")
        others = {each.name for each in self._folder.iterdir()} - {directory.LOCK_NAME, part.name}
        if not others:
            return ""
        if not directory.exists(self._database):
            return None
        tables = Tables(self._database)
        try:
            seen = opening.look(Connector(), self._database, tables.sums)
        finally:
            tables.close()
        arriving = seen.mark is not None and seen.mark.kind == ARRIVING and seen.meta.cluster_id == cluster_id
        return seen.mark.move if seen.mark is not None and arriving else None

    def arrive(self, mark: Mark, path: Path) -> None:
        rewrite(path, {"moved": str(mark), "shared": 1})
        part = self._database.with_name(self._database.name + ".new")
        with path.open("rb") as source, part.open("wb") as file:
            part.chmod(0o600)  # values may be secrets
            while piece := source.read(ENGINE_PIECE_BYTES):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self._database)
        directory.sync_directory(self._folder)
        directory.sync_directory(self._folder.absolute().parent)

    def open_up(self) -> None:
        rewrite(self._database, {"moved": None, "shared": None})

    def close(self) -> None:
        descriptor, self._lock = self._lock, None
        if descriptor is not None:
            directory.unlock(descriptor)


# --- shared logs -----------------------------------------------------------------------------------------------------


class _SharedEngine(ReplicatedEngine):
    """One that never leads, and may seal."""

    def _begin_node(self, meta: Meta, position: LogPosition) -> None:
        super()._begin_node(meta, position)
        self._decisions.claims = False

    def _refuse_moved(self) -> None:
        if self.mark is None:
            super()._refuse_moved()

    @property
    def mark(self) -> Mark | None:
        mark = self._decisions.moved
        return mark if mark is not None and mark.kind == AWAY else None

    @property
    def empty(self) -> bool:
        return self._decisions.standing.number == 0

    def settle(self) -> None:
        """Takes in all that is in the log, once nobody else can be writing. Raises MoveError while somebody does."""
        node, hands = self._decisions, self._carrying
        began_s, newest = self._now_s(), node.standing.number
        while self.mark is None and not node.tenure.may_claim(self._now_s()):
            self._sleep(TICK_S)
            hands.tick()
            if node.standing.number > newest:
                newest = node.standing.number
                if self._now_s() - began_s > STOPPING_S:
                    raise MoveError("a server writes to the log that is to be moved: stop all servers on it first")
        node.confirm_newest()
        hands.carry_out()
        self._upkeep.flush()

    def seal(self, mark: Mark) -> None:
        node, hands = self._decisions, self._carrying
        copied = node.standing.number
        node.seal(mark, self._now_s())
        hands.carry_out()
        while not node.idle:
            self._sleep(TICK_S)
            hands.tick()
        if node.moved != mark or node.standing.number != copied + 1:
            raise MoveError("a server has written to the log since it was copied: stop all servers on it first")


class LogSource:
    """Implements `Source`: a shared log on which no server runs."""

    def __init__(
        self,
        place: str,
        make_log: Callable[[], SharedLog],
        timing: Timing | None = None,
        engine: Callable[[Path, Callable[[], SharedLog], Timing | None], _SharedEngine] = _SharedEngine,
    ) -> None:
        """`engine` stands in for another one in tests."""
        self.place = place
        self._make_engine: Callable[[Path], _SharedEngine] = lambda folder: engine(folder, make_log, timing)
        self._opened: _SharedEngine | None = None

    @property
    def _engine(self) -> _SharedEngine:
        assert self._opened is not None, "open comes first"
        return self._opened

    @property
    def mark(self) -> Mark | None:
        return self._engine.mark

    def open(self, work: Path) -> Meta:
        self._opened = self._make_engine(work / "source")
        meta = self._engine.open((secrets.randbits(64) | 1, secrets.randbits(64) | 1))
        if self._engine.empty:
            raise MoveError(f"{self.place}: there is no data in it")
        return meta

    def copy(self, path: Path) -> None:
        self._engine.settle()
        self._engine.backup(path)

    def seal(self, mark: Mark) -> None:
        self._engine.seal(mark)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()


class LogTarget:
    """Implements `Target`: a shared log without records, or with those of an unfinished move."""

    def __init__(self, place: str, make_log: Callable[[], SharedLog]) -> None:
        self.place = place
        self._log = make_log()
        self._newest: Entry | None = None
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._rows = Changes(0, 0.0)  # what the record behind the mark says

    def look(self, cluster_id: int) -> str | None:
        info = self._log.open(cluster_id)
        if info.cluster_id != cluster_id:
            return None
        try:
            last = self._log.read(0, 1).last
            if not last:
                return "" if self._log.newest_snapshot() is None else None
            self._newest = shared_record.decode(self._log.read(last - 1, 1).records[0])
        except TrimmedError:
            return None
        newest = self._newest
        return newest.texts[0] if newest is not None and newest.kind == ARRIVAL and newest.texts else None

    def arrive(self, mark: Mark, path: Path) -> None:
        tables = Tables.reading(path)
        try:
            meta = tables.load().meta
        finally:
            tables.close()
        self._rows = Changes(meta.batch, meta.clock_s)
        epoch = meta.term + 1 if self._newest is None else max(meta.term + 1, self._newest.epoch)
        arrival = self._append(ARRIVAL, epoch, (mark.move, mark.place))
        self._rows.clean = meta.clean
        rewrite(path, {"record": arrival.number, "chain": arrival.chain.hex(), "term": epoch, "moved": None})
        digest = hashlib.sha256()
        self._log.put_snapshot(arrival.number, _pieces(path, digest.update))
        found = self._log.newest_snapshot()
        read = hashlib.sha256()
        for piece in found[1] if found is not None and found[0] == arrival.number else ():
            read.update(piece)
        if read.digest() != digest.digest():
            raise MoveError(f"{self.place}: it does not give back what was put there")

    def open_up(self) -> None:
        assert self._newest is not None, "arrive comes first"
        self._append(RELEASE if self._rows.clean else BEAT, self._newest.epoch)

    def _append(self, kind: int, epoch: int, texts: tuple[str, ...] = ()) -> Entry:
        """The next record, once it is in the log for good."""
        newest = self._newest
        number, chain = (0, bytes(CHAIN_BYTES)) if newest is None else (newest.number, newest.chain)
        entry = shared_record.encode(kind, number + 1, epoch, chain, 1, self._nonce, self._rows, texts=texts)
        placing = Placing(number, chain, entry.data)
        while placing.next not in (LANDED, TAKEN, LOST):
            if placing.next == TRY:
                self._try(placing)
            else:
                placing.looking(0.0)
                placing.found(self._log.read(placing.look_after, _READ_BYTES))
        if placing.next != LANDED:
            raise MoveError(f"{self.place}: another process writes there too: run the same move again")
        self._newest = entry
        return entry

    def _try(self, placing: Placing) -> None:
        placing.trying(0.0)
        try:
            self._log.append(placing.expect, placing.chain, placing.data)
        except TakenError:
            placing.refused()
        except UnknownError:
            placing.unknown()
            time.sleep(TICK_S)
        else:
            placing.accepted()

    def close(self) -> None:
        self._log.close()


def _pieces(path: Path, told: Callable[[bytes], object]) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(ENGINE_PIECE_BYTES):
            told(piece)
            yield piece

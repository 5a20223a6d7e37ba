# SPDX-License-Identifier: Apache-2.0
"""Reading the files of the log: which records are there, and whether one is missing.

Laws
- Nothing is written, and nothing raised but DataDirError.
- What is needed and not whole is refused as damage, never left out; but for the one record that a crash may have torn.

Theory of operation. Every sector of both files is looked at. A record is there when all its sectors stand in a row.
Those above what the tables have must be a chain without a gap; where they stand does not matter. What is left is
sectors above the newest whole record. They can only be of the one record that was being written when the server
stopped, of which some sectors are still as they were before: it is *torn*, no client was answered, and it ends the log.
It is *damaged*, and refused, when that cannot be:

- a sector that is one bit off belongs above the newest record: all of it had been written;
- the record has its last sector, and none that is as it was before;
- the record would reach beyond the end of the file, or the file is shorter than a segment: it was cut;
- the last sector of a file belongs to a record, as file_log.py never leaves it: it was cut between two records;
- it is not the record after the newest: those between are missing;
- the tables have a record that is newer than all in the files, which keep the newest one: they are of another moment.

So a flipped bit is always found, and so is a file that was cut, wherever. A newest record of whose last sector more
than a bit is wrong is taken for torn: it could be.
"""

from pathlib import Path
from typing import Final

from lessor.durable import directory, explain, sectors
from lessor.durable.engine import DataDirError
from lessor.durable.log_file_header import FORMAT, UNMARKED_END, parse
from lessor.durable.record import Record, UnknownFormatError, decode
from lessor.durable.sectors import SECTOR_BYTES, ZEROS, Head, sectors_of

_NEWER: Final = "written by a newer Lessor ({}): run the newer one, or restore a backup of before the upgrade"


class LogFile:
    """The sectors of one file, the first one left out."""

    __slots__ = ("_data", "bad", "format", "heads", "path")

    def __init__(self, path: Path, data: bytes, file_format: int) -> None:
        self.path = path
        self.format = file_format
        self._data = data
        self.heads: list[Head | None] = []  # by sector
        self.bad: list[int] = []  # sectors that are neither whole nor as they were at first
        for index in range(1, len(data) // SECTOR_BYTES):
            sector = self.sector(index)
            head = None
            if sector != ZEROS:
                head = sectors.head_of(sector)
                if head is None:
                    self.bad.append(index)
            self.heads.append(head)
        self.heads.insert(0, None)

    def sector(self, index: int) -> bytes:
        return self._data[index * SECTOR_BYTES : (index + 1) * SECTOR_BYTES]

    def whole(self, least: int) -> dict[int, int]:
        """Where each whole record from number `least` on begins: number to sector."""
        return {
            head.number: index
            for index, head in enumerate(self.heads)
            if head is not None and head.number >= least and not head.part and not self.missing(index, head)
        }

    def missing(self, start: int, head: Head) -> list[int]:
        """Of the sectors of the record that begins in sector `start`, those that do not hold their part of it."""
        end = start + sectors_of(head.record_bytes)
        return [
            index
            for index in range(start, end)
            if index >= len(self.heads) or self.heads[index] != head._replace(part=index - start)
        ]

    def record(self, index: int) -> bytes:
        head = self.heads[index]
        assert head is not None
        data = self._data[index * SECTOR_BYTES : (index + sectors_of(head.record_bytes)) * SECTOR_BYTES]
        return sectors.payload(data, head.record_bytes)


def load(data_dir: Path, log_id: bytes, segment_bytes: int, *, may_be_missing: bool) -> list[LogFile]:
    """Both files, each with the id; one that says GIVEN_UP is left out: somebody said to go without it."""
    files: list[LogFile] = []
    for index, name in enumerate(directory.LOG_NAMES):
        path = data_dir / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            if may_be_missing:
                continue
            raise directory.log_missing(path) from None
        except OSError as error:
            raise DataDirError(explain.system_error(error, path)) from None
        if data.strip() == directory.GIVEN_UP:
            continue
        found = parse(data[:SECTOR_BYTES])
        if found is None:
            raise directory.damaged(path, "it does not start as a log of Lessor does")
        if found.format > FORMAT:
            raise DataDirError(f"{path}: {_NEWER.format(f'log format {found.format}, this one knows {FORMAT}')}")
        if (found.log_id, found.number) != (log_id, index):
            raise DataDirError(
                f"{path}: the log of another data directory, or the other file of this one: put the right file back"
            )
        if len(data) < segment_bytes:
            raise directory.damaged(path, f"cut short, {len(data)} bytes of at least {segment_bytes}")
        files.append(LogFile(path, data, found.format))
    return files


def records(data_dir: Path, files: list[LogFile], after: int, chain: bytes, *, complete: bool = True) -> list[Record]:
    """The records above number `after`, ascending, without a gap; `chain` is the chain value of record `after`.

    `complete`: files that end before that record are no loss.
    """
    found: dict[int, tuple[LogFile, int]] = {}
    for file in files:
        for number, index in file.whole(max(after, 1)).items():
            if number in found:
                raise directory.damaged(file.path, f"record {number} is there twice")
            found[number] = file, index
    result: list[Record] = []
    newest = after
    for number in sorted(found):
        file, index = found[number]
        record = _decode(file, index, number)
        if number == after:
            if record.chain != chain:
                raise _other_history(data_dir, number)
            continue
        if number != newest + 1:
            raise _gap(data_dir, number, newest)
        if record.previous != chain:
            raise _other_history(data_dir, number)
        result.append(record)
        newest, chain = number, record.chain
    for file in files:
        _refuse_damage(data_dir, file, newest)
    if not complete and len(files) == len(directory.LOG_NAMES):
        _refuse_earlier(data_dir, files, after)
    return result


def _decode(file: LogFile, index: int, number: int) -> Record:
    try:
        record = decode(file.record(index))
    except UnknownFormatError as error:
        raise DataDirError(f"{file.path}: {_NEWER.format(error)}") from None
    if record is None or record.number != number:
        raise directory.damaged(file.path, f"record {number} is none")
    return record


def _refuse_damage(data_dir: Path, file: LogFile, newest: int) -> None:
    """Raises unless all that is above record `newest` can be what a crash left of the next one."""
    for index in file.bad:
        mended = sectors.head_but_for_a_bit(file.sector(index))
        if mended is not None and mended.number > newest:
            raise directory.damaged(file.path, f"a bit of record {mended.number}, at byte {index * SECTOR_BYTES}")
    torn = {
        (index - head.part, head._replace(part=0))
        for index, head in enumerate(file.heads)
        if head is not None and head.number > newest
    }
    bad = set(file.bad)
    for start, head in sorted(torn):
        if head.number != newest + 1:
            raise _gap(data_dir, head.number, newest)
        end = start + sectors_of(head.record_bytes)
        if end > len(file.heads):
            raise directory.damaged(file.path, f"cut short, in the middle of record {head.number}")
        missing = file.missing(start, head)
        if bad.issuperset(missing) and end - 1 not in missing:
            raise directory.damaged(file.path, f"record {head.number}, at byte {missing[0] * SECTOR_BYTES}")
    last = file.heads[-1]
    if last is not None and file.format > UNMARKED_END:
        raise directory.damaged(file.path, f"cut short, behind record {last.number}")


def _refuse_earlier(data_dir: Path, files: list[LogFile], after: int) -> None:
    """Raises when the files hold records, but none as new as the newest one in the tables."""
    newest = max((head.number for file in files for head in file.heads if head is not None), default=0)
    # A bad sector may be of a newer one, which a crash tore and wrote over it.
    if 0 < newest < after and not any(file.bad for file in files):
        raise DataDirError(
            f"{data_dir / 'lessor.log.*'}: the newest record is {newest}, but the tables have {after}: the files are "
            "of different moments: put those that belong together back, or restore a backup"
        )


def _gap(data_dir: Path, number: int, newest: int) -> DataDirError:
    what = f"record {number} is there, but of those before it only the ones up to {newest}"
    return directory.damaged(data_dir / "lessor.log.*", what)


def _other_history(data_dir: Path, number: int) -> DataDirError:
    return DataDirError(
        f"{data_dir / 'lessor.log.*'}: record {number} does not follow what the tables have: the files are of "
        "different moments: put those that belong together back, or restore a backup"
    )

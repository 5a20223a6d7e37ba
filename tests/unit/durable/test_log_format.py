# SPDX-License-Identifier: Apache-2.0
"""A reader of the log, made from docs/log-format.md alone, reads what the engine wrote.

It imports nothing of the package: what it knows stands on that page.
"""

import hashlib
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from lessor.durable.file_engine import FileEngine
from lessor.state.journal import AuthRows
from tests.unit.durable.engine_rows import IDENTITY, batch, put, tombstone

# --- the stranger's reader ------------------------------------------------------------------------------------------


class Fields:
    """Takes fields from the front of some bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, form: str) -> Any:
        found = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return found if len(found) > 1 else found[0]

    def take_bytes(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def sized(self) -> bytes:
        return self.take_bytes(self.take("I"))

    def text(self) -> str:
        return self.sized().decode()


def sectors(path: Path, index: int, log_id: str) -> list[bytes]:
    data = path.read_bytes()
    assert len(data) >= 4 * 1024 * 1024
    assert data[-512:] == bytes(512)
    assert data[:16] == b"lessor log\n" + bytes(5)
    form, number, found, checksum = struct.unpack("<II16sI", data[16:44])
    assert (form, number, found.hex()) == (2, index, log_id)
    assert checksum == zlib.crc32(data[:40])
    assert data[44:512] == bytes(468)
    return [data[at : at + 512] for at in range(512, len(data), 512)]


def whole_records(found: list[bytes]) -> Iterator[tuple[int, bytes]]:
    index = 0
    while index < len(found):
        number, size = struct.unpack_from("<QI", found[index])
        count = -(-size // 486)
        those = found[index : index + count]
        if (
            count
            and len(those) == count
            and all(one[:20] == found[index][:16] + struct.pack("<I", part) for part, one in enumerate(those))
            and all(zlib.crc32(one[:16] + one[510:] + one[16:506]) == checksum_of(one) for one in those)
        ):
            tail = bytes(bits << 1 | bits.bit_count() & 1 for bits in (number & 127, number >> 7 & 127))
            assert all(one[510:] == tail for one in those)
            yield number, b"".join(one[20:506] for one in those)[:size]
            index += count
        else:
            index += 1


def checksum_of(sector: bytes) -> int:
    return int.from_bytes(sector[506:510], "little")


def parsed(data: bytes) -> dict[str, Any]:
    assert data[:4] == b"LsRc"
    assert hashlib.sha256(data[:-16]).digest()[:16] == data[-16:]
    fields = Fields(data)
    fields.at = 4
    form, flags = fields.take("HH")
    assert form == 1
    number, term, batch_number = fields.take("QQQ")
    clock_s, compaction, auth_revision = fields.take("dqq")
    before = fields.take_bytes(16)
    counts = fields.take("6I")
    events = []
    for _ in range(counts[0]):
        revision, sub, created, version, lease, key_size, value_size = fields.take("qIqqqIi")
        key = fields.take_bytes(key_size)
        value = None if value_size == -1 else fields.take_bytes(value_size)
        events.append((revision, sub, key, value, created, version, lease))
    found = {
        "number": number,
        "term": term,
        "batch": batch_number,
        "clock_s": clock_s,
        "before": before,
        "chain": data[-16:],
        "clean": bool(flags & 1),
        "compaction": compaction if flags & 2 else None,
        "events": events,
        "leases": [fields.take("qqdB") for _ in range(counts[1])],
        "alarms": [fields.take("QIB") for _ in range(counts[2])],
        "peer_urls": [fields.text() for _ in range(counts[3])] if flags & 4 else None,
        "users": [],
        "roles": [],
        "switch": (bool(flags & 32), auth_revision) if flags & 16 else None,
    }
    for _ in range(counts[4]):
        name, password = fields.text(), fields.sized()
        no_password, deleted, roles = fields.take("BBI")
        found["users"].append((name, password, no_password, [fields.text() for _ in range(roles)], deleted))
    for _ in range(counts[5]):
        name = fields.text()
        deleted, permissions = fields.take("BI")
        granted = [(fields.sized(), fields.sized(), fields.take("B")) for _ in range(permissions)]
        found["roles"].append((name, granted, deleted))
    assert fields.at == len(data) - 16
    return found


def read(data_dir: Path) -> list[dict[str, Any]]:
    """The records above the tables, ascending."""
    with closing(sqlite3.connect(f"file:{data_dir / 'lessor.db'}?mode=ro", uri=True)) as tables:
        meta = dict(tables.execute("SELECT name, value FROM meta"))
    records: dict[int, bytes] = {}
    for index in (0, 1):
        records |= whole_records(sectors(data_dir / f"lessor.log.{index}", index, meta["log"]))
    found: list[dict[str, Any]] = []
    chain = bytes.fromhex(meta["chain"])
    for number in sorted(number for number in records if number > meta["record"]):
        record = parsed(records[number])
        assert record["number"] == number == meta["record"] + 1 + len(found)
        assert record["before"] == chain
        chain = record["chain"]
        found.append(record)
    return found


# --- what the engine wrote ------------------------------------------------------------------------------------------


def test_a_stranger_reads_what_the_engine_wrote(tmp_path: Path) -> None:
    engine = FileEngine(tmp_path / "alive")
    engine.open(IDENTITY)
    engine.begin_term(3)
    engine.commit(batch(1, events=[put(2, b"in the tables")]))
    engine.flush()
    auth = AuthRows(
        [("ännchen", b"hash", False, ("r", "root"), False), ("u", b"", True, (), True)],
        [("r", ((b"a", b"b", 2), (b"k", b"", 0)), False), ("gone", (), True)],
        (True, 9),
    )
    engine.commit(batch(2, events=[put(3, b"k", b""), tombstone(3, b"k", sub=1)], leases=[(7, 60, 61.5, False)]))
    engine.commit(batch(4, alarms=[(2**64 - 1, 1, True)], compact_revision=3, dead=[(3, 0)], clock_s=9.25))
    engine.commit(batch(5, peer_urls=("http://a", "http://b"), auth=auth))
    engine.commit(batch(6, events=[put(5, b"large", b"v" * 10_000_000)], leases=[(-7, 1, 2.0, True)]))
    engine.commit(batch(7, clean=True))
    shutil.copytree(tmp_path / "alive", tmp_path / "crashed")
    engine.close()
    second, fourth, fifth, sixth, seventh = read(tmp_path / "crashed")
    assert [one["batch"] for one in (second, fourth, fifth, sixth, seventh)] == [2, 4, 5, 6, 7]
    assert {one["term"] for one in (second, fourth, fifth, sixth, seventh)} == {3}
    assert second["events"] == [(3, 0, b"k", b"", 3, 1, 0), (3, 1, b"k", None, 0, 0, 0)]
    assert second["leases"] == [(7, 60, 61.5, 0)]
    assert (second["clock_s"], second["clean"], second["compaction"], second["peer_urls"]) == (2.0, False, None, None)
    assert fourth["alarms"] == [(2**64 - 1, 1, 1)]
    assert (fourth["compaction"], fourth["clock_s"]) == (3, 9.25)
    assert fifth["peer_urls"] == ["http://a", "http://b"]
    assert fifth["users"] == [("ännchen", b"hash", 0, ["r", "root"], 0), ("u", b"", 1, [], 1)]
    assert fifth["roles"] == [("r", [(b"a", b"b", 2), (b"k", b"", 0)], 0), ("gone", [], 1)]
    assert fifth["switch"] == (True, 9)
    assert sixth["events"] == [put(5, b"large", b"v" * 10_000_000)]
    assert sixth["leases"] == [(-7, 1, 2.0, 1)]
    assert seventh["clean"]
    assert read(tmp_path / "alive") == []  # an orderly stop leaves nothing above the tables


def test_a_stranger_reads_a_log_that_has_started_over(tmp_path: Path) -> None:
    engine = FileEngine(tmp_path / "alive", sync=False)
    engine.open(IDENTITY)
    for number in range(1, 60):
        engine.commit(batch(number, events=[put(number, b"key", b"v" * 300_000)]))
        if number % 10 == 0:
            engine._upkeep.make_room()
    engine.begin_term(8)
    engine.commit(batch(60))
    shutil.copytree(tmp_path / "alive", tmp_path / "crashed")
    engine.close()
    (last,) = read(tmp_path / "crashed")
    assert (last["batch"], last["term"], last["number"]) == (60, 8, 61)

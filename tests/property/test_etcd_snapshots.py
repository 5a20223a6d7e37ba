# SPDX-License-Identifier: Apache-2.0
"""A snapshot of any history, in etcd's form, says what an etcd would have in its file. Read by a reader of its own.

What is expected comes from a book that keeps every change for ever, and from the definition of a compaction.
"""

import math
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lessor.api.proto import mvcc_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.durable.file_engine import FileEngine
from lessor.server.services.snapshots import Living, etcd_copy
from lessor.state.machine import Identity, StateMachine
from tests import bolt
from tests.unit.durable.engine_rows import rest, rest_a_step

KEYS = [b"a", b"a\0", b"b", b"c/1", b"c/2", b"\xff"]
LEASES = [1, 9, 2**63 - 1, -2, -(2**63)]
Row = tuple[int, int, bytes, bytes | None, int, int, int]  # revision, sub, key, value, created, version, lease


class Put(NamedTuple):
    """Some keys, one each, in one txn."""

    keys: list[bytes]
    value: bytes
    lease: int


class Delete(NamedTuple):
    first: bytes
    end: bytes


class Grant(NamedTuple):
    lease: int
    ttl_s: int


class Revoke(NamedTuple):
    lease: int


class Renew(NamedTuple):
    lease: int


class Pass(NamedTuple):
    seconds: float


class Compact(NamedTuple):
    back: int


class Tidy(NamedTuple):
    """Some dead versions leave memory, and some dead rows the disk."""

    versions: int
    steps: int


class Book:
    """Every change there ever was."""

    def __init__(self) -> None:
        self.revision, self.compacted, self.now_s = 1, -1, 1.0
        self.rows: list[Row] = []
        self.live: dict[bytes, tuple[int, int, int]] = {}  # created, version, lease
        self.leases: dict[int, tuple[int, float]] = {}  # ttl, deadline

    def put(self, key: bytes, value: bytes, lease: int, sub: int) -> None:
        created, version, _ = self.live.get(key, (self.revision, 0, 0))
        self.live[key] = (created, version + 1, lease)
        self.rows.append((self.revision, sub, key, value, created, version + 1, lease))

    def delete(self, keys: list[bytes]) -> None:
        self.revision += bool(keys)
        for sub, key in enumerate(sorted(keys)):
            del self.live[key]
            self.rows.append((self.revision, sub, key, None, 0, 0, 0))

    def kept(self) -> list[Row]:
        newest = {row[2]: row for row in self.rows if row[0] <= self.compacted}
        return [row for row in self.rows if row[0] > self.compacted or (newest[row[2]] == row and row[3] is not None)]


class Server:
    """A machine and its engine, and the book beside them."""

    def __init__(self, folder: Path) -> None:
        self.book = Book()
        self.engine = FileEngine(folder, sync=False)
        meta = self.engine.open((7, 8))
        self.machine = StateMachine(Identity(7, 8, 2), batch_number=meta.batch + 1)
        self.engine.begin_term(2)

    def do(self, step: object) -> None:
        book, apply = self.book, self.machine.apply
        if isinstance(step, Put):
            lease = step.lease if step.lease in book.leases else 0
            puts = [rpc.PutRequest(key=key, value=step.value, lease=lease) for key in step.keys]
            apply(rpc.TxnRequest(success=[rpc.RequestOp(request_put=put) for put in puts]), book.now_s)
            book.revision += 1
            for sub, key in enumerate(step.keys):
                book.put(key, step.value, lease, sub)
        elif isinstance(step, Delete):
            apply(rpc.DeleteRangeRequest(key=step.first, range_end=step.end), book.now_s)
            book.delete([key for key in book.live if step.first <= key < step.end])
        elif isinstance(step, Grant) and step.lease not in book.leases:
            apply(rpc.LeaseGrantRequest(ID=step.lease, TTL=step.ttl_s), book.now_s)
            book.leases[step.lease] = step.ttl_s, book.now_s + step.ttl_s
        elif isinstance(step, Revoke) and step.lease in book.leases:
            apply(rpc.LeaseRevokeRequest(ID=step.lease), book.now_s)
            del book.leases[step.lease]
            book.delete([key for key, (_, _, lease) in book.live.items() if lease == step.lease])
        elif isinstance(step, Renew) and step.lease in book.leases:
            self.machine.leases.renew(step.lease, book.now_s)
            ttl_s, _ = book.leases[step.lease]
            book.leases[step.lease] = ttl_s, book.now_s + ttl_s
        elif isinstance(step, Compact):
            at = book.revision - step.back
            if at > max(book.compacted, 0):
                apply(rpc.CompactionRequest(revision=at), book.now_s)
                book.compacted = at
        elif isinstance(step, Tidy):
            self.machine.store.sweep(step.versions)
            self.commit()
            for _ in range(step.steps):
                rest_a_step(self.engine)
        elif isinstance(step, Pass):
            book.now_s += step.seconds

    def commit(self) -> None:
        if self.machine.journal.has_rows or self.machine.journal.names_dead:
            self.engine.commit(self.machine.journal.seal(self.book.now_s))

    def snapshot(self, folder: Path, *, leads: bool) -> bytes:
        self.commit()
        self.engine.flush()
        living = Living(self.machine.leases.get, self.book.now_s) if leads else None
        with etcd_copy(self.engine, folder, lambda: False, living) as file:
            file.seek(0)
            return file.read()


steps = st.one_of(
    st.builds(
        Put,
        st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True),
        st.binary(max_size=3) | st.integers(0, 9_000).map(bytes),
        st.sampled_from([0, *LEASES]),
    ),
    st.builds(Delete, st.sampled_from(KEYS[:3]), st.sampled_from([*KEYS[2:], b"\xff\xff"])),
    st.builds(Grant, st.sampled_from(LEASES), st.integers(2, 5_000)),
    st.builds(Revoke, st.sampled_from(LEASES)),
    st.builds(Renew, st.sampled_from(LEASES)),
    st.builds(Pass, st.floats(0.0, 1_000.0)),
    st.builds(Compact, st.integers(0, 5)),
    st.builds(Tidy, st.integers(1, 5), st.integers(0, 3)),
)


def element(row: Row) -> tuple[bytes, bytes]:
    revision, sub, key, value, created, version, lease = row
    name = struct.pack(">QcQ", revision, b"_", sub)
    if value is None:
        return name + b"t", mvcc_pb2.KeyValue(key=key).SerializeToString()
    kv = mvcc_pb2.KeyValue(
        key=key, create_revision=created, mod_revision=revision, version=version, value=value, lease=lease
    )
    return name, kv.SerializeToString()


def varints(data: bytes) -> dict[int, int]:
    """The fields of a message that has nothing but whole numbers."""
    numbers: list[int] = []
    shift = number = 0
    for byte in data:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(number)
            shift = number = 0
    return {name >> 3: value for name, value in zip(numbers[::2], numbers[1::2], strict=True)}


@settings(deadline=None, max_examples=80)
@given(st.lists(steps, max_size=60), st.booleans())
@example([Put([b"a"], b"1", 0), Put([b"a"], b"", 0), Delete(b"a", b"b"), Put([b"b"], b"2", 0), Compact(0)], True)
@example([*[Grant(lease, 100) for lease in LEASES], Pass(30.5), Put([b"a"], b"", -2), Revoke(1), Renew(9)], True)
def test_the_file_says_what_happened(history: list[object], leads: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder / "data")
        for step in history:
            server.do(step)
        book = server.book
        found = bolt.buckets(server.snapshot(folder, leads=leads))
        assert [path.name for path in folder.iterdir()] == ["data"]
        rest(server.engine)
        server.engine.close()
    assert found[b"key"] == [element(row) for row in book.kept()]
    meta = dict(found[b"meta"])
    at = struct.pack(">QcQ", book.compacted, b"_", 0) if book.compacted >= 0 else None
    assert meta.get(b"scheduledCompactRev") == meta.get(b"finishedCompactRev") == at
    assert struct.unpack(">Q", meta[b"term"])[0] > 0
    assert [key for key, _ in found[b"lease"]] == sorted(struct.pack(">q", lease) for lease in book.leases)
    for key, value in found[b"lease"]:
        (lease,) = struct.unpack(">q", key)
        ttl_s, deadline_s = book.leases[lease]
        fields = varints(value)
        assert (fields[1], fields[2]) == (lease % 2**64, ttl_s)
        remaining_s = fields.get(3, ttl_s)
        true_s = max(1, math.ceil(deadline_s - book.now_s))
        if leads:
            assert remaining_s == min(true_s, ttl_s)
        else:  # as the rows have it: never earlier
            assert min(true_s, ttl_s) <= remaining_s <= ttl_s

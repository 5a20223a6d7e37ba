# SPDX-License-Identifier: Apache-2.0
"""A shared log in an etcd.

Laws, beside those of durable/shared_log.py
- E1: an append is one txn. It compares the value of the key `tail`, which names cluster, position and chain value, and
  puts a new tail and the record. So a try that arrives late, behind whatever others have done, does nothing.
- E2 is etcd's: its answer to a txn means that a majority of its members has the txn on disk.
- E3: reads are linearizable, and one txn reads the tail and the records, so they are of one instant.
- A record above ENGINE_PIECE_BYTES goes ahead in pieces under keys that nothing names; the txn that appends it puts
  what names them. Pieces are deleted only once their record can not land any more: when another stands at its
  position, or when the log is trimmed above it.

Theory of operation. Keys and values: etcd_keys.py. One call of `append` is one call of the etcd; so is a read that
finds a few records. A read that finds more asks for the sizes of runs of 4, 8, 16 and so on, and then for as long a run
as it may bring.

An append that is not answered soon is given up, and its outcome is unknown: a member that has sent it to a leader which
then died answers after 7 s only. The client leaves an endpoint from which it has heard nothing meanwhile. Connecting to
another may take longer than an append has time; the read that settles the append has that time.

Trimming deletes keys. The etcd's own history goes on to hold them until it is compacted, which concerns everybody who
uses that etcd: the log does it when nothing else is in it, or as `compact=` of its address says (etcd_url.py).

Does not do: retries (`Placing` does), pushing records to readers, leases.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from lessor.api.proto import mvcc_pb2 as mvcc
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors
from lessor.base.limits import (
    ENGINE_APPEND_S_MAX,
    ENGINE_LARGE_APPEND_S_MAX,
    ENGINE_LARGE_BYTES,
    ENGINE_PIECE_BYTES,
    ENGINE_READ_S_MAX,
    ENGINE_SLOW_CALL_S_MAX,
    ENGINE_TRIM_STEP_RECORDS,
)
from lessor.client import ClientError, Key, ServerError, op
from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import (
    Found,
    Info,
    LogRefusedError,
    TakenError,
    TrimmedError,
    UnknownError,
    UnreachableError,
)
from lessor.engines.cut import cut
from lessor.engines.etcd_checks import alone, look_over
from lessor.engines.etcd_keys import (
    FORMAT,
    Keys,
    Pieces,
    Tail,
    decode_identity,
    decode_record,
    decode_tail,
    encode_identity,
    in_pieces,
    whole,
)
from lessor.engines.etcd_link import EtcdLink
from lessor.engines.etcd_snapshots import EtcdSnapshots
from lessor.engines.etcd_url import ALWAYS, NEVER, parse

_FEW = 4  # records that a read asks for at first
_DOUBLINGS = 10  # and the longest run that it asks for after that: 4,096
_NO_CHAIN = bytes(CHAIN_BYTES)


class _Newest(NamedTuple):
    """The newest record that this adapter knows, and what all up to it take."""

    position: int
    chain: bytes
    total_bytes: int


class EtcdLog:
    """Implements `SharedLog`. `url` is as etcd_url.py says."""

    def __init__(
        self,
        url: str,
        *,
        local: bool = False,
        append_s_max: float = ENGINE_APPEND_S_MAX,
        read_s_max: float = ENGINE_READ_S_MAX,
    ) -> None:
        """Connects nowhere. `local`: for a trial on one machine; versions of etcd that lose data are taken.

        `append_s_max`, `read_s_max`: longest wait for an answer; a large append gets ENGINE_LARGE_APPEND_S_MAX if that
        is more. Raises LogRefusedError: the address, or a file that it names.
        """
        parsed = parse(url)
        self._local = local
        self._append_s_max = append_s_max
        self._read_s_max = read_s_max
        self._keys = Keys(parsed.prefix)
        self._link = EtcdLink(parsed)
        self._snapshots = EtcdSnapshots(self._link, self._keys)
        self._cluster_id = 0  # until `open` has said it
        self._newest = _Newest(0, _NO_CHAIN, 0)

    def __repr__(self) -> str:
        return f"<EtcdLog {','.join(self._link.url.endpoints)} {self._link.url.prefix.decode()}>"

    # --- the beginning ----------------------------------------------------------------------------------------------

    def open(self, new_cluster_id: int) -> Info:
        assert 0 < new_cluster_id < 1 << 64
        warnings = look_over(self._link, self._keys, local=self._local)
        keys = self._keys
        reply = self._link.change(
            [Key(keys.prefix, prefix=True).missing],
            [
                op.put(keys.identity, encode_identity(new_cluster_id)),
                op.put(keys.tail, Tail(new_cluster_id, 0, _NO_CHAIN).encode()),
            ],
        )
        if not reply.succeeded:
            reply = self._link.look(op.get(keys.identity), op.get(keys.tail))
            self._cluster_id = self._identified(_kvs(reply, 0), _kvs(reply, 1))
        else:
            self._cluster_id = new_cluster_id
        return Info(self._cluster_id, FORMAT, tuple(warnings))

    def _identified(self, identity: Sequence[mvcc.KeyValue], tail: Sequence[mvcc.KeyValue]) -> int:
        found = decode_identity(identity[0].value) if identity else None
        prefix = self._link.url.prefix.decode()
        if found is None:
            raise LogRefusedError(f"below {prefix} the etcd has keys that are not Lessor's: name another prefix")
        if found[0] != FORMAT:
            text = f"the log below {prefix} has format {found[0]}; this Lessor knows {FORMAT}: upgrade it"
            raise LogRefusedError(text)
        end = decode_tail(tail[0].value) if tail else None
        if end is None or end.cluster_id != found[1]:
            raise LogRefusedError(f"the log below {prefix} has lost its end: restore the etcd, or name another prefix")
        return found[1]

    # --- append -----------------------------------------------------------------------------------------------------

    def append(self, expect: int, chain: bytes, data: bytes) -> None:
        assert self._cluster_id, "open comes first"
        position, own = expect + 1, data[-CHAIN_BYTES:]
        try:
            before_bytes = self._total_before(expect, chain)
            value = self._write_pieces(position, own, data) if len(data) > ENGINE_PIECE_BYTES else whole(data)
            total_bytes = before_bytes + len(data)
            reply = self._link.txn(
                [Key(self._keys.tail).value == Tail(self._cluster_id, expect, chain).encode()],
                [
                    op.put(self._keys.tail, Tail(self._cluster_id, position, own).encode()),
                    op.put(self._keys.record(position, total_bytes), value),
                ],
                timeout_s=self._append_limit_s(len(value)),
            )
        except ClientError as error:
            raise self._link.trouble(error, UnknownError) from None
        if not reply.succeeded:
            if len(data) > ENGINE_PIECE_BYTES:
                self._drop_pieces(position, own)
            raise TakenError(f"the newest record is not {expect} any more, or not the one that was named")
        self._newest = _Newest(position, own, total_bytes)

    def _append_limit_s(self, size_bytes: int) -> float:
        if size_bytes <= ENGINE_LARGE_BYTES:
            return self._append_s_max
        return max(self._append_s_max, ENGINE_LARGE_APPEND_S_MAX)

    def _total_before(self, expect: int, chain: bytes) -> int:
        """What all records up to `expect` take. Asks for it if another node has written that one."""
        if self._newest[:2] == (expect, chain):
            return self._newest.total_bytes
        if expect == 0:
            return 0
        steps = [op.get(self._keys.tail), self._run(expect, expect + 1, keys_only=True)]
        reply = self._link.txn((), steps, timeout_s=self._append_s_max)
        if self._tail_of(_kvs(reply, 0))[1:] != (expect, chain):
            raise TakenError(f"the newest record is not {expect} any more, or not the one that was named")
        return self._of_key(_kvs(reply, 1), expect)

    def _write_pieces(self, position: int, chain: bytes, data: bytes) -> bytes:
        """Puts the pieces of a record; returns what is to stand in its place."""
        folder = self._keys.pieces_of(position, chain)
        count = 0
        for piece in cut([data]):
            self._link.txn((), [op.put(self._keys.numbered(folder, count), piece)])
            count += 1
        return in_pieces(Pieces(count, len(data), chain))

    def _drop_pieces(self, position: int, chain: bytes) -> None:
        """After a refusal: deletes the pieces, unless they are of the record that stands there.

        An earlier try may have brought it. What stays because the etcd does not answer, a trim deletes.
        """
        with suppress(ClientError, LogRefusedError):
            kvs = _kvs(self._link.txn((), [self._run(position, position + 1)]), 0)
            standing = decode_record(kvs[0].value) if kvs else None
            if kvs and not (isinstance(standing, Pieces) and standing.chain == chain):
                self._link.txn((), [op.delete(self._keys.pieces_of(position, chain), prefix=True)])

    # --- read -------------------------------------------------------------------------------------------------------

    def read(self, after: int, bytes_max: int) -> Found:
        assert self._cluster_id, "open comes first"
        keys = self._keys
        reply = self._link.look(
            op.get(keys.tail),
            op.get(keys.log, prefix=True, limit=1, keys_only=True),
            op.get(keys.records_from(after + 1), range_end=keys.log_end, limit=_FEW),
            timeout_s=self._read_s_max,
        )
        last = self._tail_of(_kvs(reply, 0)).position
        self._refuse_trimmed(after, last, _kvs(reply, 1))
        records: list[bytes] = []
        whole_run = self._take(records, _kvs(reply, 2), after, bytes_max)
        if whole_run and last > after + len(records) and records:
            self._read_run(records, after, last, bytes_max)
        if not records and last > after:
            raise self._missing(after + 1)
        return Found(records, last)

    def _refuse_trimmed(self, after: int, last: int, first: Sequence[mvcc.KeyValue]) -> None:
        if not first:
            if last:
                raise self._missing(last)
        elif (begins := self._position_of(first[0])) > after + 1:
            raise TrimmedError(begins)

    def _read_run(self, records: list[bytes], after: int, last: int, bytes_max: int) -> None:
        """Adds as many more records as `bytes_max` allows, up to `last`: later ones have come since.

        Those that are trimmed meanwhile end it.
        """
        at, left = after + len(records), bytes_max - sum(map(len, records))
        ends = [end for doubling in range(_DOUBLINGS + 1) if (end := at + (_FEW << doubling)) <= last]
        count = min(_FEW, last - at)
        if ends:
            probes = [self._run(at, at + 1, keys_only=True), *(self._run(e, e + 1, keys_only=True) for e in ends)]
            reply = self._link.look(*probes, timeout_s=self._read_s_max)
            if not _kvs(reply, 0):
                return
            base = self._of_key(_kvs(reply, 0), at)
            fits = [
                end - at
                for index, end in enumerate(ends, 1)
                if _kvs(reply, index) and self._of_key(_kvs(reply, index), end) - base <= left
            ]
            count = max(fits, default=0)
        if count:
            reply = self._link.look(self._run(at + 1, at + 1 + count), timeout_s=ENGINE_SLOW_CALL_S_MAX)
            kvs = _kvs(reply, 0)
            if kvs and self._position_of(kvs[0]) == at + 1:
                self._take(records, kvs, at, left)

    def _take(self, records: list[bytes], kvs: Sequence[mvcc.KeyValue], after: int, bytes_max: int) -> bool:
        """Adds the records of `kvs`, which stand behind `after`, up to `bytes_max`; whether that was all of them."""
        taken_bytes = 0
        for position, kv in enumerate(kvs, after + 1):
            if self._position_of(kv) != position:
                raise self._missing(position)
            record = decode_record(kv.value)
            size = record.size_bytes if isinstance(record, Pieces) else len(kv.value)
            if records and taken_bytes + size > bytes_max:
                return False
            if isinstance(record, Pieces):
                record = self._joined(position, record)
            if record is None:
                raise self._missing(position)
            records.append(record)
            taken_bytes += size
        if kvs:
            position, total_bytes = self._keys.of_record(kvs[-1].key)
            self._newest = _Newest(position, records[-1][-CHAIN_BYTES:], total_bytes)
        return True

    def _joined(self, position: int, pieces: Pieces) -> bytes:
        folder = self._keys.pieces_of(position, pieces.chain)
        parts: list[bytes] = []
        for number in range(pieces.pieces):
            reply = self._link.look(op.get(self._keys.numbered(folder, number)))
            parts += [kv.value for kv in _kvs(reply, 0)]
        data = b"".join(parts)
        if len(data) != pieces.size_bytes:
            first = _kvs(self._link.look(op.get(self._keys.log, prefix=True, limit=1, keys_only=True)), 0)
            self._refuse_trimmed(position - 1, position, first)
            raise self._missing(position)
        return data

    # --- snapshots, room --------------------------------------------------------------------------------------------

    def put_snapshot(self, position: int, pieces: Iterator[bytes]) -> None:
        self._snapshots.put(position, pieces, encode_identity(self._cluster_id))

    def newest_snapshot(self) -> tuple[int, Iterator[bytes]] | None:
        return self._snapshots.newest()

    def trim(self, before: int) -> None:
        keys = self._keys
        reply = self._link.look(op.get(keys.tail), op.get(keys.log, prefix=True, limit=1, keys_only=True))
        before = min(before, self._tail_of(_kvs(reply, 0)).position)
        first = _kvs(reply, 1)
        at = self._position_of(first[0]) if first else before
        if at >= before:
            return
        while at < before:
            at = min(at + ENGINE_TRIM_STEP_RECORDS, before)
            reply = self._link.change(
                [Key(keys.identity).value == encode_identity(self._cluster_id)],
                [
                    op.delete(keys.log, range_end=keys.records_from(at)),
                    op.delete(keys.piece, range_end=keys.pieces_from(at)),
                ],
            )
            if not reply.succeeded:
                raise self._missing(before)
        compact = self._link.url.compact
        if compact == ALWAYS or (compact != NEVER and alone(self._link, keys)):
            self._compact(reply.header.revision)

    def _compact(self, revision: int) -> None:
        try:
            self._link.run(self._link.client.compact(revision, timeout_s=ENGINE_SLOW_CALL_S_MAX))
        except ServerError as error:
            if error.message == errors.PERMISSION_DENIED.message:
                text = "the engine's user may not compact the etcd: give it the role root, or say compact=never"
                raise LogRefusedError(text) from None
            if error.message != errors.COMPACTED.message:  # otherwise somebody else was quicker
                raise self._link.trouble(error, UnreachableError) from None
        except ClientError as error:
            raise self._link.trouble(error, UnreachableError) from None

    def size_bytes(self) -> int:
        keys = self._keys
        reply = self._link.look(op.get(keys.tail), op.get(keys.log, prefix=True, limit=1))
        snapshots_bytes = self._snapshots.size_bytes()
        first = _kvs(reply, 1)
        if not first:
            return snapshots_bytes
        last = self._tail_of(_kvs(reply, 0)).position
        newest = _kvs(self._link.look(self._run(last, last + 1, keys_only=True)), 0)
        if not newest:  # trimmed between the two calls, because others have appended
            return self.size_bytes()
        record = decode_record(first[0].value)
        first_bytes = record.size_bytes if isinstance(record, Pieces) else len(record or b"")
        _, before_bytes = keys.of_record(first[0].key)
        return self._of_key(newest, last) - before_bytes + first_bytes + snapshots_bytes

    def close(self) -> None:
        self._link.close()

    # --- what is in replies -----------------------------------------------------------------------------------------

    def _run(self, start: int, end: int, *, keys_only: bool = False) -> rpc.RequestOp:
        """Reads the records from position `start` up to but not including `end`."""
        keys = self._keys
        return op.get(keys.records_from(start), range_end=keys.records_from(end), keys_only=keys_only)

    def _tail_of(self, kvs: Sequence[mvcc.KeyValue]) -> Tail:
        tail = decode_tail(kvs[0].value) if kvs else None
        if tail is None or tail.cluster_id != self._cluster_id:
            prefix = self._link.url.prefix.decode()
            raise LogRefusedError(f"the log below {prefix} of the etcd was deleted or exchanged: restore the etcd")
        return tail

    def _position_of(self, kv: mvcc.KeyValue) -> int:
        return self._of(kv)[0]

    def _of_key(self, kvs: Sequence[mvcc.KeyValue], position: int) -> int:
        """What all records up to this one take, from its key."""
        if not kvs:
            raise self._missing(position)
        return self._of(kvs[0])[1]

    def _of(self, kv: mvcc.KeyValue) -> tuple[int, int]:
        try:
            return self._keys.of_record(kv.key)
        except ValueError:
            raise LogRefusedError("the log in the etcd has a key that Lessor does not write: remove it") from None

    def _missing(self, position: int) -> LogRefusedError:
        prefix = self._link.url.prefix.decode()
        return LogRefusedError(f"record {position} of the log below {prefix} is missing or damaged: restore the etcd")


def _kvs(reply: Any, index: int) -> Sequence[mvcc.KeyValue]:
    """The keys and values that a step of a txn has read."""
    kvs: Sequence[mvcc.KeyValue] = reply.responses[index].response_range.kvs
    return kvs

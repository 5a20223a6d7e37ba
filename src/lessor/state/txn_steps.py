# SPDX-License-Identifier: Apache-2.0
"""Txns that look at many keys, in steps; txn.py makes the others at once.

Laws
- The pieces joined are the reply that txn.py would make.
- A txn that cannot write is carried out in steps, all of it as of one pinned revision.
- A txn that may write is a `LongWrite`: nothing else is written between its steps. It keeps references to the versions
  that its ranges show; the reply is encoded in steps afterwards. How many there are is bounded by TXN_WRITE_KEYS_MAX.
- A piece has whole operations, since the length of an operation's reply stands before it. Ranges of one txn that ask
  for the same are made once.

Does not do: the checks that depend on the request alone, the choice of the way (txn.is_long).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.key_range import open_end
from lessor.state import kv, txn
from lessor.state.encode import nested, revision_header, varint
from lessor.state.mvcc import Store
from lessor.state.range_steps import captured_steps, encoded, range_pieces

# A part of the reply to a txn that has run: bytes, or a long part. That is its tag, the pieces that are yet to be made,
# and the bytes of memory that they keep.
Part = bytes | tuple[bytes, Iterator[bytes], int]


def oldest_revision(store: Store, node: txn.Node) -> int:
    """The oldest retained revision that a range of the txn asks for; 0: none."""
    oldest = 0
    for operations in (node.success, node.failure):
        for kind, request in operations:
            revision = 0
            if kind == txn.RANGE:
                revision = request.revision
            elif kind == txn.TXN:
                revision = oldest_revision(store, request)
            if revision > 0 and revision >= store.compact_revision:
                oldest = min(oldest, revision) if oldest else revision
    return oldest


# --- without writes ---------------------------------------------------------------------------------------------


def read_pieces(store: Store, node: txn.Node, header: bytes) -> Iterator[bytes]:
    """The reply to a txn that cannot write, at the newest revision, which is pinned. Raises as `txn.verify` does."""
    return _Reading(store).pieces(node, header)


class _Reading:
    """One such txn under way."""

    __slots__ = ("_compact_revision", "_made", "_revision", "_size", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._revision = store.revision
        self._compact_revision = store.compact_revision
        self._size = 0
        self._made: dict[bytes, bytes] = {}  # replies to long ranges, by request

    def pieces(self, node: txn.Node, header: bytes) -> Iterator[bytes]:
        for _ in self._choose(node):
            yield b""
        self._verify(node)
        yield header
        yield from self._run(node)

    def _choose(self, node: txn.Node) -> Iterator[None]:
        """As `txn.choose`, in steps."""
        node.succeeded, node.taken = True, node.success
        store, revision = self._store, self._revision
        for compare in node.compares:
            found, holds = False, True
            range_end = compare.range_end
            end = open_end(range_end) if range_end else compare.key + b"\0"
            for events in store.walk(compare.key, end, revision):
                if events:
                    found = True
                    holds = txn.holds_for_all(compare, events)
                yield None
                if not holds:
                    break
            if not found:
                holds = txn.holds_for(compare, None)
            if not holds:
                node.succeeded, node.taken = False, node.failure
                break
        for kind, request in node.taken:
            if kind == txn.TXN:
                yield from self._choose(request)

    def _verify(self, node: txn.Node) -> None:
        for kind, request in node.taken:
            if kind == txn.TXN:
                self._verify(request)
            else:
                kv.verify_range_in_txn(request, self._revision, self._compact_revision)

    def _run(self, node: txn.Node) -> Iterator[bytes]:
        """The fields after the header: whole operations, and b"" for the steps between."""
        if node.succeeded:
            yield b"\x10\x01"
        for kind, request in node.taken:
            made: list[bytes] = []
            tag = b"\x0a"
            if kind == txn.RANGE:
                asked = request.SerializeToString()
                again = self._made.get(asked)
                self._store.ranges += 1
                if again is None:
                    for piece in self._range(request):
                        self._count(len(piece))
                        made.append(piece)
                        yield b""
                    again = b"".join(made)
                    if len(again) > limits.READ_STEP_BYTES // limits.TXN_OPS_MAX:
                        self._made[asked] = again
                else:
                    self._count(len(again))
                made = [again]
            else:
                tag = b"\x22"
                made.append(b"\x0a\x00")
                for piece in self._run(request):
                    self._count(len(piece))  # again: each level copies what is in it
                    made.append(piece)
                    yield b""
            yield _operation(tag, made)

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > limits.REPLY_BYTES_MAX:
            raise errors.REPLY_TOO_LARGE.error()

    def _range(self, request: rpc_pb2.RangeRequest) -> Iterator[bytes]:
        store = self._store
        revision = request.revision if request.revision > 0 else self._revision
        return range_pieces(store, request, revision, revision_header(self._revision))


def _operation(tag: bytes, made: list[bytes]) -> bytes:
    """A ResponseOp as a field of the reply, from the pieces of its reply."""
    size = sum([len(piece) for piece in made])
    inner = tag + varint(size)
    return b"".join([b"\x1a", varint(len(inner) + size), inner, *made])


# --- with writes ------------------------------------------------------------------------------------------------


def choose_steps(store: Store, node: txn.Node) -> Iterator[None]:
    """As `txn.choose`, in steps. Nothing may be written meanwhile."""
    return _Reading(store)._choose(node)


def execute_steps(store: Store, node: txn.Node) -> Generator[None, None, list[Part]]:
    """As `txn.execute`, in steps, but what takes long to encode is left for `done_pieces`."""
    parts: list[Part] = [b"\x10\x01"] if node.succeeded else []
    for kind, request in node.taken:
        header = revision_header(store.revision_inside)
        if kind == txn.RANGE and request.range_end:
            store.ranges += 1
            part = yield from captured_steps(store, request, header)
            parts.append((b"\x0a", *part))
            yield
        elif kind == txn.RANGE:
            parts.append(nested(b"\x1a", nested(b"\x0a", txn.range_now(store, request))))
        elif kind == txn.PUT:
            rest = kv.do_put(store, request)
            parts.append(nested(b"\x1a", nested(b"\x12", revision_header(store.revision_inside) + rest)))
        elif kind == txn.DELETE:
            rest, shown, size_bytes = yield from kv.delete_range_steps(store, request)
            pieces = prev_kvs_pieces(store, revision_header(store.revision_inside) + rest, shown)
            parts.append((b"\x1a", pieces, size_bytes))
        else:
            inner = yield from execute_steps(store, request)
            parts.append((b"\x22", done_pieces(b"\x0a\x00", inner), parts_bytes(inner)))
    return parts


def parts_bytes(parts: list[Part]) -> int:
    """The memory that the parts keep until `done_pieces` has made the reply."""
    return sum([len(part) if isinstance(part, bytes) else part[2] for part in parts])


def done_pieces(header: bytes, parts: list[Part]) -> Iterator[bytes]:
    """The reply to a txn that has run."""
    yield header
    for part in parts:
        if isinstance(part, bytes):
            yield part
        else:
            tag, pieces, _ = part
            made: list[bytes] = []
            for piece in pieces:
                made.append(piece)
                yield b""
            yield _operation(tag, made)


def prev_kvs_pieces(store: Store, head: bytes, events: Any) -> Iterator[bytes]:
    """The reply to a DeleteRange that shows the versions that it has deleted."""
    yield head
    for first in range(0, len(events), limits.READ_STEP_KEYS):
        yield from encoded(store, events[first : first + limits.READ_STEP_KEYS], kv.prev_kvs_field)

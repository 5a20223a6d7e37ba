# SPDX-License-Identifier: Apache-2.0
"""The record of a log that several nodes share: a batch, or a word about who writes.

Laws
- Every record says who made it: a node, and the nonce of the process. Two processes never make the same bytes, so
  whoever finds a record in the log knows whether it is its own.
- Whatever its kind, a record has a number, an epoch, the data clock, the number of the newest batch, and the chain
  value of the record before. There is one chain over all kinds.
- A batch's rows stand in it byte for byte as in a record of a single node (record.py).
- `decode` raises nothing over any bytes, but UnknownFormatError over a whole record of a newer format or kind.

Kinds
- CLAIM: from here on its node writes, in this epoch, which is one above the last. texts: its URLs.
- BATCH: rows. origins: the forwarded requests that are in it, each with its reply.
- BEAT: no rows. The node is there, and so far has the data clock come.
  In these three, `subject` is for how many milliseconds the record lets its node answer; 0: not said.
- RELEASE: the rows of an orderly end, with exact deadlines; its node writes nothing any more in this epoch. subject:
  the node that is to follow, or 0. texts: GOES_ON if the node goes on as a follower, with the connections of its
  clients; else none.
- MEMBER: a node, `subject`, joins or leaves. texts: its name and its URLs; none when it leaves.
- SEAL: the data has moved; nothing ever stands behind this record. Clean if the record before is a release. texts: the
  name of the move, and where the data is now.
- ARRIVAL: a move to this log has begun. The snapshot of this record's position has the data, and nobody may lead before
  the next record that is none of these. texts: the name of the move, and where the data comes from.

Theory of operation. A front of this file's own, then the content of record.py (whose term is the epoch), then the chain
value, a digest of all that. One nonce per process is enough: a process never makes a second record for a number before
it knows what stands at that number.

Does not do: I/O, saying who may write (the log's positions and cluster/tenure.py do), snapshots.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from lessor.durable import record
from lessor.durable.record import MAGIC, Reader, Record, UnknownFormatError, chain_of
from lessor.state.journal import Rows

FORMAT: Final = 2
NONCE_BYTES: Final = 16

CLAIM: Final = 1
BATCH: Final = 2
BEAT: Final = 3
RELEASE: Final = 4
GOES_ON: Final = "goes on"
MEMBER: Final = 5
SEAL: Final = 6
ARRIVAL: Final = 7
KINDS: Final = ("", "claim", "batch", "beat", "release", "member", "seal", "arrival")

# Magic, format, kind; node, nonce, subject; how many texts and origins.
_FRONT: Final = struct.Struct("<4sHHQ16sQII")
_NONCE_AT: Final = struct.calcsize("<4sHHQ")
_ORIGIN: Final = struct.Struct("<16sQ")  # nonce, counter; the reply behind it with its size


class Origin(NamedTuple):
    """A request that another node forwarded, and that took effect in this batch."""

    nonce: bytes  # of the process that forwarded it
    counter: int  # that process counts its requests
    reply: bytes  # encoded, as the client is to get it


class Entry:
    """A decoded record of a shared log."""

    __slots__ = ("data", "kind", "node", "nonce", "origins", "record", "subject", "texts")

    def __init__(
        self,
        kind: int,
        node: int,
        nonce: bytes,
        subject: int,
        texts: Sequence[str],
        origins: Sequence[Origin],
        content: Record,
        data: bytes,
    ) -> None:
        self.kind = kind
        self.node = node
        self.nonce = nonce
        self.subject = subject
        self.texts = texts
        self.origins = origins
        self.record = content
        self.data = data  # the bytes of all of it

    @property
    def number(self) -> int:
        return self.record.number

    @property
    def epoch(self) -> int:
        return self.record.term

    @property
    def chain(self) -> bytes:
        return self.record.chain

    def __repr__(self) -> str:
        rows = self.record.rows
        return f"<{KINDS[self.kind]} {self.number} of node {self.node}, epoch {self.epoch}, batch {rows.number}>"


def encode(
    kind: int,
    number: int,
    epoch: int,
    previous: bytes,
    node: int,
    nonce: bytes,
    rows: Rows,
    *,
    subject: int = 0,
    texts: Sequence[str] = (),
    origins: Sequence[Origin] = (),
) -> Entry:
    """A record and its bytes. `previous`: the chain value of the record before; `nonce`: NONCE_BYTES of the process."""
    parts = [_FRONT.pack(MAGIC, FORMAT, kind, node, nonce, subject, len(texts), len(origins))]
    for text in texts:
        record.sized(parts, text.encode())
    for origin in origins:
        parts.append(_ORIGIN.pack(origin.nonce, origin.counter))
        record.sized(parts, origin.reply)
    parts.append(record.encode_content(number, epoch, previous, rows))
    content = b"".join(parts)
    chain = chain_of(content)
    data = content + chain
    written = Record(number, epoch, previous, chain, rows, len(data))
    return Entry(kind, node, nonce, subject, texts, origins, written, data)


def without_nonce(data: bytes) -> bytes:
    """A record as it may be shown to those who know its writer, over a line that others may hear."""
    return data[:_NONCE_AT] + data[_NONCE_AT + NONCE_BYTES :]


def with_nonce(data: bytes, nonce: bytes) -> bytes:
    """The record that `without_nonce` has shortened. With another nonce than its own it is none: `decode` says so."""
    return data[:_NONCE_AT] + nonce + data[_NONCE_AT:]


def decode(data: bytes) -> Entry | None:
    """The record that `data` is, from its first byte to its last; None when it is none, or is not whole.

    Raises UnknownFormatError for a whole record of another format or kind, and nothing else.
    """
    if not record.is_whole(data, len(MAGIC) + 4):
        return None
    found, kind = struct.unpack_from("<HH", data, len(MAGIC))
    if found != FORMAT or not 0 < kind < len(KINDS):
        raise UnknownFormatError(f"a record of format {found} and kind {kind}; this Lessor knows {FORMAT}")
    try:
        return _decode(data)
    except (struct.error, ValueError):  # whole, but nothing that `encode` makes
        return None


def _decode(data: bytes) -> Entry | None:
    _, _, kind, node, nonce, subject, text_count, origin_count = _FRONT.unpack_from(data)
    reader = Reader(data, _FRONT.size)
    texts = [reader.text() for _ in range(text_count)]
    origins: list[Origin] = []
    for _ in range(origin_count):
        origin_nonce, counter = _ORIGIN.unpack(reader.take(_ORIGIN.size))
        origins.append(Origin(origin_nonce, counter, reader.sized()))
    inner = data[reader.position :]
    if not inner.startswith(MAGIC + _INNER_FORMAT):
        return None
    content = record.decode_content(inner)
    if content is None:
        return None
    content.size_bytes = len(data)
    return Entry(kind, node, nonce, subject, texts, origins, content, data)


_INNER_FORMAT: Final = struct.pack("<H", record.FORMAT)

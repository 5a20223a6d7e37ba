# SPDX-License-Identifier: Apache-2.0
"""Snapshots in an etcd: pieces, and one key that names those that are whole.

Laws
- A snapshot is named in the txn that completes it, when all its pieces are durable. Before that nobody reads it.
- The one before the newest stays, for those who are reading it. All else below `snap/` is deleted by whoever has
  completed one: what another is still writing cannot be completed any more then, for the names have changed.
"""

import secrets
import struct
from collections.abc import Iterator

from lessor.client import Key, op
from lessor.durable.shared_log import LogRefusedError, UnreachableError
from lessor.engines.cut import cut
from lessor.engines.etcd_keys import Keys, Named, decode_snapshots, encode_snapshots
from lessor.engines.etcd_link import EtcdLink


class EtcdSnapshots:
    """The snapshots of one log."""

    def __init__(self, link: EtcdLink, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    def put(self, position: int, pieces: Iterator[bytes], identity: bytes) -> None:
        """As `SharedLog.put_snapshot`; `identity` is the value that the log's key of this name must have."""
        named, revision = self._named()
        if named and named[0].position >= position:
            return
        name = secrets.token_bytes(16)
        folder = self._keys.snap_of(name)
        count = size_bytes = 0
        for piece in cut(pieces):
            self._link.change((), [op.put(self._keys.numbered(folder, count), piece)])
            count += 1
            size_bytes += len(piece)
        named = [Named(position, name, count, size_bytes), *named[:1]]
        reply = self._link.change(
            [Key(self._keys.snapshot).mod_revision == revision, Key(self._keys.identity).value == identity],
            [op.put(self._keys.snapshot, encode_snapshots(named))],
        )
        if reply.succeeded:
            self._delete_all_but(named)
            return
        self._link.change((), [op.delete(folder, prefix=True)])
        named, _ = self._named()
        if not named or named[0].position < position:
            raise UnreachableError("another node has put an older snapshot meanwhile: put this one again")

    def newest(self) -> tuple[int, Iterator[bytes]] | None:
        named, _ = self._named()
        return (named[0].position, self._pieces(named[0])) if named else None

    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self._named()[0])

    def _named(self) -> tuple[list[Named], int]:
        """The snapshots, newest first, and the revision of the key that names them; 0: there is none."""
        kvs = self._link.look(op.get(self._keys.snapshot)).responses[0].response_range.kvs
        if not kvs:
            return [], 0
        try:
            return decode_snapshots(kvs[0].value), kvs[0].mod_revision
        except struct.error:
            raise LogRefusedError(f"{self._keys.snapshot.decode()} in the etcd is not what Lessor writes") from None

    def _pieces(self, named: Named) -> Iterator[bytes]:
        folder = self._keys.snap_of(named.name)
        for number in range(named.pieces):
            kvs = self._link.look(op.get(self._keys.numbered(folder, number))).responses[0].response_range.kvs
            if not kvs:
                raise UnreachableError(f"the snapshot of record {named.position} was replaced while it was read")
            yield kvs[0].value

    def _delete_all_but(self, named: list[Named]) -> None:
        start = self._keys.snap
        steps = []
        for folder in sorted(self._keys.snap_of(each.name) for each in named):
            steps.append(op.delete(start, range_end=folder))
            start = folder[:-1] + b"0"  # directly above what begins with the folder's name and a slash
        steps.append(op.delete(start, range_end=self._keys.snap_end))
        self._link.change((), steps)

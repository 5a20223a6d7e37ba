# SPDX-License-Identifier: Apache-2.0
"""A read that takes many steps, as of one revision.

Laws
- The read shows the revision at which its first step is taken, whatever is written, deleted or compacted after that.
- Before the first step it keeps nothing but its request. From the first step to `close` it pins its revisions.

Theory of operation. A read that waits for its turn has not begun, so it may show any revision between its arrival and
its answer; it shows that of its first step. Its pieces are made by a generator over `Store.walk`, which finds the
versions of a revision as long as the revision is pinned. A pin lasts as long as the reply is made, so the sweep of a
compaction waits for that long at most.

Does not do: the order of several reads (server/loop/long_reply.py), the meaning of a request (range_steps.py,
txn_steps.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lessor.base import errors, limits
from lessor.state.mvcc import Store


class LongRead:
    """The pieces of one reply: an iterator. It must be closed.

    An EtcdError from a step is the answer to the call: for instance REPLY_TOO_LARGE, for more than REPLY_BYTES_MAX.
    """

    __slots__ = ("_begin", "_oldest", "_pieces", "_pinned", "_size", "_store")

    def __init__(self, store: Store, begin: Callable[[], Iterator[bytes]], oldest: int = 0) -> None:
        """`begin` returns the pieces of the reply at the store's revision, which it is called at.

        `oldest`: the oldest revision that the read looks at, if that is an older one; 0: none.
        """
        self._store = store
        self._begin = begin
        self._oldest = oldest
        self._pieces: Iterator[bytes] | None = None
        self._pinned = 0
        self._size = 0

    def __iter__(self) -> LongRead:
        return self

    def __next__(self) -> bytes:
        pieces = self._pieces
        if pieces is None:
            self._pinned = self._store.revision
            if 0 < self._oldest < self._pinned:
                self._pinned = self._oldest
            self._store.pin(self._pinned)
            pieces = self._pieces = self._begin()
        piece = next(pieces)
        self._size += len(piece)
        if self._size > limits.REPLY_BYTES_MAX:
            raise errors.REPLY_TOO_LARGE.error()
        return piece

    def close(self) -> None:
        """Ends the read, complete or not. May be called again."""
        if self._pinned:
            self._store.unpin(self._pinned)
            self._pinned = 0
        self._begin = _ended
        self._pieces = iter(())


class Written:
    """The pieces of the reply to a write that has taken effect: the call may no more be refused.

    `kept_bytes`: the memory that they keep until they are made.
    """

    __slots__ = ("_pieces", "kept_bytes")

    def __init__(self, pieces: Iterator[bytes], kept_bytes: int) -> None:
        self._pieces = pieces
        self.kept_bytes = kept_bytes

    def __iter__(self) -> Written:
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)


def _ended() -> Iterator[bytes]:
    return iter(())

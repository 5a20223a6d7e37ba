# SPDX-License-Identifier: Apache-2.0
"""The last compactions, for HashKV: what each of them took out of the data that counts at its revision.

Laws
- HashKV at the revision of one of the last compactions is what it was before that compaction, as in etcd. After a
  restart the compactions are forgotten, as in etcd.
- A compaction costs nothing for versions that it leaves alone.

Theory of operation. The number of the data is the sum of the numbers of its versions (`Event.number`). A version that
dies leaves its number in the sum of each compaction at whose revision it counted. So the data of a compaction has the
sum of what is still there and of what has died since.

Worked example: a key with p2 p3 p4 (as in mvcc.py), compacted at 3 for the first time. At 3 counted p2 and p3. p2 dies,
its number goes into the sum; p3 is still there. Then compacted at 4: p3 dies. It counted at 3 and at 4, so it goes into
both sums. p2 counted at 3 only: a compaction at 3 lay between it and 4.

Does not do: which versions die and when (mvcc.py), the walk over those that are there (digest.py).
"""

from __future__ import annotations

from typing import Final

from lessor.base import limits

UINT32: Final = 0xFFFF_FFFF


def counts(mod_revision: int, is_put: bool, followed_at: int, compact_revision: int, revision: int) -> bool:
    """Whether a version counts in the data at a revision, as it is after a compaction at `compact_revision`.

    That is, it was written after the compaction and up to the revision, or it is a put that is the newest at the
    revision. `followed_at`: the revision of the version of the key that came next; with none any that is larger.
    """
    if mod_revision > revision:
        return False
    return mod_revision > compact_revision or (is_put and followed_at > revision)


class Compaction:
    """One compaction. `before`: the compact revision that it found; `fallen`: the sum of what has died, a uint32."""

    __slots__ = ("before", "fallen", "revision")

    def __init__(self, before: int, revision: int) -> None:
        self.before = before
        self.revision = revision
        self.fallen = 0

    def lose(self, number: int) -> None:
        """A version of this number that counted at `revision` has died."""
        self.fallen = (self.fallen + number) & UINT32


class Compactions:
    """The newest COMPACTIONS_KEPT compactions since the start."""

    __slots__ = ("_newest_first",)

    def __init__(self) -> None:
        self._newest_first: list[Compaction] = []

    def begin(self, before: int, revision: int) -> None:
        """Remembers a compaction. To be called before its first version dies."""
        self._newest_first.insert(0, Compaction(before, revision))
        del self._newest_first[limits.COMPACTIONS_KEPT :]

    def find(self, revision: int) -> Compaction | None:
        """The compaction at this very revision, if it is remembered."""
        for compaction in self._newest_first:
            if compaction.revision == revision:
                return compaction
        return None

    def counting(self, mod_revision: int, is_put: bool, followed_at: int) -> list[Compaction]:
        """Those at whose revision a version counted; the arguments are those of `counts`."""
        return [
            each for each in self._newest_first if counts(mod_revision, is_put, followed_at, each.before, each.revision)
        ]

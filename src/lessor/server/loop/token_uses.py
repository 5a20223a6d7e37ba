# SPDX-License-Identifier: Apache-2.0
"""When signed tokens were used last, anywhere: servers of one log tell each other.

Laws
- A token that is used ends `ttl_s` after that at the earliest, and an eighth of that later at the latest. So a token in
  use costs something only now and then, here and between servers.
- A follower tells the leader of uses at itself only. The leader tells all followers of all uses. So none comes back as
  a new one.
- What is kept and told of a token is a digest. Whoever hears it cannot make the token.

Does not do: judging tokens (services/signed_tokens.py), telling (services/followers.py, following/follower.py).
"""

from collections.abc import Callable, Iterable
from typing import Final

from lessor.api.proto.following_pb2 import TokenUse

LATER: Final = 1.125  # of ttl_s: when a token ends after a use
NEWS: Final = 0.0625  # of ttl_s: a use elsewhere that moves an end by less says nothing new
# Uses in one message; the rest comes with the next one. Their 29 bytes each stay below STRANGER_BYTES_MAX: the stream
# on which a follower tells of them has no token.
TOLD_MAX: Final = 500


class TokenUses:
    """Of one server. Loop thread only. Memory: tokens that were used within the last `ttl_s` * LATER."""

    __slots__ = ("_ends", "_now_s", "_serial", "ttl_s")

    def __init__(self, now_s: Callable[[], float], ttl_s: float) -> None:
        """`now_s`: a clock that never jumps."""
        self._now_s = now_s
        self.ttl_s = ttl_s
        self._serial = 0
        # Mark of the token -> end, serial, whether it was used here. In the order of the serials.
        self._ends: dict[bytes, tuple[float, int, bool]] = {}

    def is_live(self, mark: bytes) -> bool | None:
        """Whether a token has not ended; None if no use of it is known."""
        known = self._ends.get(mark)
        return None if known is None else self._now_s() < known[0]

    def used(self, mark: bytes) -> None:
        """A token was used here."""
        now_s = self._now_s()
        known = self._ends.get(mark)
        if known is None or known[0] < now_s + self.ttl_s:
            self._note(mark, now_s + self.ttl_s * LATER, here=True)

    def heard(self, uses: Iterable[TokenUse]) -> None:
        """Another server of the log says for how long tokens live on."""
        now_s = self._now_s()
        for use in uses:
            end_s = now_s + min(use.left_s, self.ttl_s * LATER)
            known = self._ends.get(use.mark)
            if end_s > (now_s if known is None else known[0] + self.ttl_s * NEWS):
                self._note(use.mark, end_s, here=False)

    def told(self, after: int, *, here: bool) -> tuple[int, list[TokenUse]]:
        """The uses behind the serial number `after`, oldest first, and the number of the last of them.

        `here`: only those at this server. Cost: O(those behind `after`).
        """
        found = []
        for mark, (end_s, serial, was_here) in reversed(self._ends.items()):
            if serial <= after:
                break
            if was_here or not here:
                found.append((serial, mark, end_s))
        if not found:
            return self._serial, []
        now_s = self._now_s()
        first = found[: -TOLD_MAX - 1 : -1]
        return first[-1][0], [TokenUse(mark=mark, left_s=end_s - now_s) for _, mark, end_s in first]

    def _note(self, mark: bytes, end_s: float, *, here: bool) -> None:
        now_s = self._now_s()
        while self._ends and (oldest := next(iter(self._ends.items())))[1][0] <= now_s:
            del self._ends[oldest[0]]
        self._ends.pop(mark, None)
        self._serial += 1
        self._ends[mark] = end_s, self._serial, here

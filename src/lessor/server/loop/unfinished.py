# SPDX-License-Identifier: Apache-2.0
"""How much of requests that have not come in whole is kept, by all connections together.

Laws
- What has come of a message, or of a request that is not ended, counts from the end of the read that brought it.
- One connection keeps at most UNFINISHED_CONNECTION_BYTES_MAX, but room for two messages in any case; beyond it the
  request that began last is refused, and the one before it, until it fits: so those before them can come to their end.
- All together keep at most UNFINISHED_BYTES_MAX. Beyond it the connection that keeps most loses its last request, and
  the next one, until it fits: whoever fills the memory pays, not the caller whose bytes came one too many.
- A request that comes in one read, as nearly all do, is never counted.
"""

from typing import Protocol

from lessor.base import limits
from lessor.base.errors import Code, EtcdError


class Holder(Protocol):
    """A connection that keeps unfinished requests."""

    def refuse_unfinished(self, error: EtcdError) -> None:
        """Ends the request that began last with the error, and takes what it kept off the count."""
        ...


class Unfinished:
    """The count. One per server."""

    __slots__ = ("_by_holder", "_connection_bytes_max", "total_bytes")

    def __init__(self, message_bytes_max: int) -> None:
        self._by_holder: dict[Holder, int] = {}
        self._connection_bytes_max = max(limits.UNFINISHED_CONNECTION_BYTES_MAX, 2 * message_bytes_max)
        self.total_bytes = 0

    def change(self, holder: Holder, by_bytes: int) -> None:
        """A connection keeps so much more, or less. Cost: O(1); beyond the bound of all, the connections that keep."""
        held = self._by_holder
        kept_bytes = held.get(holder, 0) + by_bytes
        if kept_bytes:
            held[holder] = kept_bytes
        else:
            held.pop(holder, None)
        self.total_bytes += by_bytes
        if by_bytes <= 0:
            return
        while held.get(holder, 0) > self._connection_bytes_max:
            holder.refuse_unfinished(_too_much("this connection", self._connection_bytes_max))
        while self.total_bytes > limits.UNFINISHED_BYTES_MAX:
            max(held, key=held.__getitem__).refuse_unfinished(_too_much("all connections", limits.UNFINISHED_BYTES_MAX))


def _too_much(whose: str, bytes_max: int) -> EtcdError:
    text = f"grpc: unfinished messages of {whose} are larger than max {bytes_max}; send fewer at a time"
    return EtcdError(Code.RESOURCE_EXHAUSTED, text)

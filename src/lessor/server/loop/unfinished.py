# SPDX-License-Identifier: Apache-2.0
"""Bounds the bytes kept of requests that are not served yet, over all connections together.

They have not come in whole, or wait for a step of their own, or until their peer has taken replies.

Laws
- The bytes of an unfinished message or request count from the end of the read that brought them. Those of a request
  that waits for its peer count from that moment on, with DEFERRED_REQUEST_BYTES.
- One connection keeps at most UNFINISHED_CONNECTION_BYTES_MAX, or two of the largest messages if that is more. Beyond
  it the request that began last is refused, then the one before it, until the rest fits: so older requests can end.
- All connections together keep at most UNFINISHED_BYTES_MAX. Beyond it the connection that keeps most, of the address
  whose connections keep most together, loses the request that began last, again and again until the rest fits: the peer
  that fills the memory pays, by many connections too, and not the one that sent the last byte.
- A request that comes in one read and is served at once, as nearly all are, is never counted.
"""

from typing import Protocol

from lessor.base import limits
from lessor.base.errors import Code, EtcdError
from lessor.server.observe.shortages import UNFINISHED, Shortages


class Holder(Protocol):
    """A connection that keeps such requests."""

    @property
    def address(self) -> str:
        """The peer's, see peer_address.py."""
        ...

    def refuse_unfinished(self, error: EtcdError) -> None:
        """Ends the request that began last with the error, and takes its bytes off the count."""
        ...


class Unfinished:
    """The count. One per server."""

    __slots__ = ("_by_holder", "_connection_bytes_max", "_shortages", "total_bytes")

    def __init__(self, message_bytes_max: int, shortages: Shortages | None = None) -> None:
        self._shortages = shortages or Shortages()
        self._by_holder: dict[Holder, int] = {}
        self._connection_bytes_max = max(limits.UNFINISHED_CONNECTION_BYTES_MAX, 2 * message_bytes_max)
        self.total_bytes = 0

    def change(self, holder: Holder, by_bytes: int) -> None:
        """A connection keeps `by_bytes` more, or fewer if negative.

        Cost: O(1); beyond the common bound O(connections that keep bytes) for each request that is refused.
        """
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
            self._shortages.reached(UNFINISHED)
            self._fullest().refuse_unfinished(_too_much("all connections", limits.UNFINISHED_BYTES_MAX))

    def _fullest(self) -> Holder:
        """The connection that keeps most, of the address whose connections keep most together."""
        held = self._by_holder
        of_address: dict[str, int] = {}
        for holder, kept_bytes in held.items():
            of_address[holder.address] = of_address.get(holder.address, 0) + kept_bytes
        address = max(of_address, key=of_address.__getitem__)
        return max([holder for holder in held if holder.address == address], key=held.__getitem__)


def _too_much(whose: str, bytes_max: int) -> EtcdError:
    text = f"grpc: unfinished messages of {whose} are larger than max {bytes_max}; send fewer at a time"
    return EtcdError(Code.RESOURCE_EXHAUSTED, text)

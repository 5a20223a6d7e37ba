# SPDX-License-Identifier: Apache-2.0
"""Bounds the memory of long replies, over all connections: those that are being made, and those that nobody reads.

Laws
- Together they take at most LONG_REPLIES_BYTES_MAX. Beyond it the address whose connections keep most loses, again and
  again until the rest fits. If most of that is not read, the connection is cut off whose long reply was made first: one
  that reads has had more time for it than the others. Otherwise the longest reply that is being made ends with
  TOO_MANY_REQUESTS.
- The reply to a write is never refused, since the write has taken effect. It counts when it has been made.
- Replies of less than READ_STEP_BYTES do not count: CONNECTION_SEND_BYTES_MAX bounds them, connection by connection.
  Chunks of a RangeStream count, whatever their size.

Theory of operation. Bytes that are made are counted as they are made. Bytes that are not read lie in the protocol and
in the socket's buffer. They are counted anew only when the sum may be too large. Then the connections that have read
their replies are forgotten.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lessor.base import errors, limits
from lessor.base.errors import EtcdError
from lessor.server.observe.shortages import LONG_REPLIES, Shortages


class Reader(Protocol):
    """A connection to which long replies are sent."""

    @property
    def unread_bytes(self) -> int:
        """The bytes of replies that the peer has not taken."""
        ...

    def cut_off(self) -> None:
        """Closes the connection now."""
        ...

    def look(self) -> None:
        """Looks at the end of the turn whether what waits for room among the replies may go on."""
        ...


class Counted(Protocol):
    """The connection of a call; see call.Held."""

    address: str
    reader: Reader | None
    size_bytes: int


class Made(Protocol):
    """A reply that is being made; see LongReply."""

    @property
    def made_bytes(self) -> int: ...

    @property
    def may_be_refused(self) -> bool: ...

    def refuse(self, error: EtcdError) -> None: ...


class ReplyMemory:
    """The count. One per server; loop thread only."""

    __slots__ = ("_readers", "_shortages", "_unread_bytes", "made_bytes")

    def __init__(self, shortages: Shortages) -> None:
        self._shortages = shortages
        self.made_bytes = 0  # of the replies that are being made
        # The connections that were sent long replies and may not have read them, in the order of the oldest of these.
        self._readers: dict[Reader, Counted] = {}
        self._unread_bytes = 0  # of those; not less than it is

    def sent(self, held: Counted, size_bytes: int) -> None:
        """A reply has been made, and is on its way to the peer."""
        if size_bytes >= limits.READ_STEP_BYTES:
            self.sent_chunk(held, size_bytes)

    def sent_chunk(self, held: Counted, size_bytes: int) -> None:
        """The same for a chunk of a reply. O(1)."""
        reader = held.reader
        if reader is not None:
            if not reader.unread_bytes:
                self._readers.pop(reader, None)
            self._readers[reader] = held
            self._unread_bytes += size_bytes

    def keep_bound(self, making: Mapping[Counted, Sequence[Made]]) -> None:
        """To be called after each step. `making`: the replies of each connection; the first is being made.

        Cost: O(1); when the bound may be reached, O(replies being made + connections that have not read one).
        """
        while self.made_bytes + self._unread_bytes > limits.LONG_REPLIES_BYTES_MAX:
            self._count_unread()
            if self.made_bytes + self._unread_bytes <= limits.LONG_REPLIES_BYTES_MAX or not self._refuse_one(making):
                return

    def _count_unread(self) -> None:
        unread = {reader: reader.unread_bytes for reader in self._readers}
        self._readers = {reader: held for reader, held in self._readers.items() if unread[reader]}
        self._unread_bytes = sum(unread.values())

    def _refuse_one(self, making: Mapping[Counted, Sequence[Made]]) -> bool:
        """Returns whether there was anything that could be refused."""
        unread: dict[str, int] = {}  # by address
        made: dict[str, int] = {}
        for reader, held in self._readers.items():
            unread[held.address] = unread.get(held.address, 0) + reader.unread_bytes
        replies = [(held.address, line[0]) for held, line in making.items() if line[0].may_be_refused]
        for address, reply in replies:
            made[address] = made.get(address, 0) + reply.made_bytes
        if not unread and not made:
            return False
        address = max({**unread, **made}, key=lambda each: unread.get(each, 0) + made.get(each, 0))
        told: dict[str, Any] = {"remote-addr": address, "bytes": unread.get(address, 0) + made.get(address, 0)}
        self._shortages.reached(LONG_REPLIES, **told)
        if unread.get(address, 0) >= made.get(address, 0):
            oldest = next(reader for reader, held in self._readers.items() if held.address == address)
            del self._readers[oldest]
            oldest.cut_off()
        else:
            longest = max([reply for of, reply in replies if of == address], key=lambda reply: reply.made_bytes)
            longest.refuse(errors.TOO_MANY_REQUESTS.error())
        return True

# SPDX-License-Identifier: Apache-2.0
"""What stands for a connection where bytes are counted that its calls keep.

Does not do: bounding them (call.py, reply_memory.py, kept_keys.py).
"""

from lessor.server.loop.reply_memory import Reader


class Held:
    """The bytes of replies that wait at the gate for one peer. A connection has one; its calls add and take away.

    `address`: the peer's, see peer_address.py. Calls of one connection have one Held, which stands for the connection.
    `reader`: the connection itself, see reply_memory.py; None if no long reply is sent there.
    `unmade_bytes`: of `size_bytes`, what long replies keep that are not made.
    """

    __slots__ = ("address", "reader", "size_bytes", "unmade_bytes")

    def __init__(self, address: str = "", reader: Reader | None = None) -> None:
        self.address = address
        self.reader = reader
        self.size_bytes = 0
        self.unmade_bytes = 0

    def dropped(self) -> None:
        """Bytes that waited at the gate will not leave. What waits until the peer has taken replies may go on."""
        if self.reader is not None:
            self.reader.look()

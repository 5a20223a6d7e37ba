# SPDX-License-Identifier: Apache-2.0
"""Replies of the leader, with the member id of the server that passes them on.

Each member of an etcd answers with its own id, also where another one has carried the call out.
"""

from typing import Final

from lessor.api.proto import rpc_pb2
from lessor.state.encode import nested

_TAG: Final = b"\x0a"  # of the header, the first field of every reply that is passed on


class OwnHeaders:
    """Puts the id in. Remembers the newest header, because many replies have the same one: those cost a copy."""

    __slots__ = ("_member_id", "_ours", "_theirs")

    def __init__(self, member_id: int) -> None:
        self._member_id = member_id
        self._theirs: bytes | None = None
        self._ours = b""  # that header with the id, and its tag and size

    def own(self, reply: bytes) -> bytes:
        """The serialized reply with the id of this server. One without a header is returned as it is."""
        if not reply.startswith(_TAG):
            return reply
        end = 2 + reply[1]  # a header is four numbers, so its size takes one byte
        theirs = reply[2:end]
        if theirs != self._theirs:
            header = rpc_pb2.ResponseHeader.FromString(theirs)
            header.member_id = self._member_id
            self._theirs, self._ours = theirs, nested(_TAG, header.SerializeToString())
        return self._ours + reply[end:]

# SPDX-License-Identifier: Apache-2.0
"""lessorpb.Following: the servers that follow this one, while it leads.

Laws
- Who follows has shown that it can read the log (cluster/proof.py). It is a member then, for as long as its stream
  lasts.
- The first response shows that this server is the leader that the log names. Who follows trusts no other.
- Each follower hears of each batch when it is in the log for good, with the replies that have waited for it. What it
  hears is a number; the batch itself it reads from the log. While nothing is written it hears the same again each
  FOLLOWERS_TELL_S, so that it notices when the way to the leader is gone.
"""

import asyncio

from google.protobuf.message import DecodeError

from lessor.api.proto import following_pb2
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.cluster.proof import answer, holds
from lessor.server.loop.call import StreamCall
from lessor.server.loop.core import Core, FollowerMember


class FollowStream:
    """One follower."""

    __slots__ = ("_call", "_core", "_member", "_timer")

    def __init__(self, core: Core, call: StreamCall) -> None:
        self._core = core
        self._call = call
        self._member: FollowerMember | None = None
        self._timer: asyncio.TimerHandle | None = None

    def on_messages(self, messages: list[bytes]) -> None:
        core = self._core
        try:
            asked = following_pb2.FollowRequest.FromString(messages[0])
        except DecodeError:
            raise errors.MALFORMED_IN_STREAM.error() from None
        end = core.log_end()
        if end is None or core.elsewhere is not None:
            raise EtcdError(Code.FAILED_PRECONDITION, "this server does not lead a shared log")
        if not holds(asked.proof, end.nonce, asked.nonce, asked.member_id, asked.name, asked.client_urls):
            raise EtcdError(Code.PERMISSION_DENIED, "no proof of access to the log")
        self._member = FollowerMember(asked.member_id, asked.name, tuple(asked.client_urls), asked.nonce, self.tell)
        core.followers[self] = self._member
        proof = answer(end.nonce, asked.challenge)
        self._call.send(
            [following_pb2.FollowResponse(epoch=end.epoch, record=end.record, proof=proof).SerializeToString()]
        )
        self._tell_again()

    def tell(self) -> None:
        """Says how far the log has come."""
        end = self._core.log_end()
        if end is not None:
            self._call.send([following_pb2.FollowResponse(epoch=end.epoch, record=end.record).SerializeToString()])

    def _tell_again(self) -> None:
        self.tell()
        self._timer = asyncio.get_running_loop().call_later(limits.FOLLOWERS_TELL_S, self._tell_again)

    def on_requests_end(self) -> None: ...

    def on_over(self) -> None:
        self._core.followers.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

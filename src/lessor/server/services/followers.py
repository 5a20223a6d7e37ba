# SPDX-License-Identifier: Apache-2.0
"""lessorpb.Following: the servers that follow this one, while it leads.

Laws
- Who follows has shown that it can read the log (cluster/proof.py). It is a member then, for as long as its stream
  lasts.
- The first response shows that this server is the leader that the log names. Who follows trusts no other.
- A server that has claimed the log and does not lead yet is asked early: the first request waits for it, LEADS_SOON_S.
- While this server hands over, it answers questions until it has released the log: nobody else can lead before that.
- When this server releases the log, each follower hears that on its stream, with the record, and the stream ends.
- A process with the member id of another one that runs is told so: its data directory is a copy. Of two that follow,
  the older one is replaced at first, since mostly it is gone. When it comes back, the newer one is told.
- Each follower hears of each batch when it is in the log for good, with the replies that have waited for it. It hears
  the number of the record, and gets the record too, once it has answered a challenge that nobody else can have answered
  before. While nothing is written it hears the same again each FOLLOWERS_TELL_S, so that it notices when the way to
  the leader is gone.
- A follower may ask how far it has to be to answer a linearizable read. The newest batch in the log is the answer, and
  leaves like any reply: only while nobody else can have taken the lead. The gate may not have heard of that batch yet,
  but another follower may, and may have shown it.
- A record goes without the nonce of this process, which is what proofs are made with. One with users or roles does not
  go, nor a large one, nor any while much waits for the follower: it reads from the log what it is not shown.
"""

import asyncio
import secrets
from typing import Final

from google.protobuf.message import DecodeError

from lessor.api.proto import following_pb2
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.cluster.proof import answer, holds, is_reader_answer
from lessor.durable.engine import LogEnd
from lessor.durable.shared_record import NONCE_BYTES
from lessor.server.loop.call import StreamCall
from lessor.server.loop.core import Core, FollowerMember

LEADS_SOON_S: Final = 0.5
EARLY_BYTES_MAX: Final = 4_096  # of a request that waits so long


class FollowStream:
    """One follower."""

    __slots__ = ("_call", "_challenge", "_core", "_early", "_reads", "_shown", "_timer", "_uses_told")

    def __init__(self, core: Core, call: StreamCall) -> None:
        self._core = core
        self._call = call
        self._challenge = b""
        self._reads = False  # it has shown just now that it can read the log
        self._shown = 0  # number of the newest record that it was shown or told of
        self._uses_told = 0  # serial number of the newest use of a token that it was told of
        self._early: list[bytes] = []  # requests that came before this server leads
        self._timer: asyncio.TimerHandle | None = None

    def on_messages(self, messages: list[bytes]) -> None:
        if self._core.elsewhere is not None and not self._challenge:
            self._wait_to_lead(messages)
            return
        for message in messages:
            try:
                asked = following_pb2.FollowRequest.FromString(message)
            except DecodeError:
                raise errors.MALFORMED_IN_STREAM.error() from None
            end = self._core.log_end()
            if end is None:
                if self._challenge:
                    return  # the release has landed, and its follower is told of that in a moment
                raise _not_leading()
            if not self._challenge:
                self._admit(asked, end)
            elif asked.question:
                self._send(end, following_pb2.FollowResponse(question=asked.question))
            elif asked.uses and self._reads:
                self._core.token_uses.heard(asked.uses)
            elif is_reader_answer(asked.answer, end.nonce, self._challenge):
                self._reads = True
            else:
                raise _no_proof()

    def _wait_to_lead(self, messages: list[bytes]) -> None:
        if self._early or sum(map(len, messages)) > EARLY_BYTES_MAX:  # nobody says more before he is answered
            raise _not_leading()
        self._early = messages
        self._core.when_leading[self] = self._begin
        self._timer = asyncio.get_running_loop().call_later(LEADS_SOON_S, self._call.finish, _not_leading())

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._core.metrics.received[self._call.method] -= len(self._early)  # `take` counts them once more
        self._call.take(self._early)

    def _admit(self, asked: following_pb2.FollowRequest, end: LogEnd) -> None:
        if not holds(asked.proof, end.nonce, asked.nonce, asked.member_id, asked.name, asked.client_urls):
            raise _no_proof()
        self._challenge = secrets.token_bytes(NONCE_BYTES)
        self._send(
            end, following_pb2.FollowResponse(proof=answer(end.nonce, asked.challenge), challenge=self._challenge)
        )
        if asked.member_id == self._core.machine.identity.member_id:
            self.refuse(asked.member_id)
            return
        self._look_for_twins(asked)
        urls = tuple(asked.client_urls)
        self._core.followers[self] = FollowerMember(
            asked.member_id,
            asked.name,
            urls,
            asked.nonce,
            self.tell,
            self.part,
            self.refuse,
            self._call.held,
            self._challenge,
        )
        self._tell_again()

    def _look_for_twins(self, asked: following_pb2.FollowRequest) -> None:
        """A process that is replaced by another one of its id, and comes back, is alive, and so is the other one."""
        core = self._core
        for stream, other in list(core.followers.items()):
            if other.member_id != asked.member_id or stream is self:
                continue
            if other.nonce != asked.nonce and core.replaced.get(asked.member_id) == asked.nonce:
                other.refuse(asked.member_id)
                continue
            if other.nonce != asked.nonce:
                core.replaced[asked.member_id] = other.nonce
            other.part(None)

    def refuse(self, member_id: int) -> None:
        """Another process with the member id of this follower is alive."""
        text = f"the member id {member_id:016x} is that of another server on this log, which runs"
        self._call.finish(EtcdError(Code.ALREADY_EXISTS, text))

    def tell(self) -> None:
        """Says how far the log has come, and shows what has come; not if much waits already."""
        end = self._core.log_end()
        if end is not None and self._call.backlog_bytes <= limits.FOLLOWER_BACKLOG_BYTES_MAX:
            self._send(end, following_pb2.FollowResponse())

    def part(self, end: LogEnd | None) -> None:
        """This server has released the log, with the record that `end` names; None: another stream takes the place."""
        if end is not None:
            self._send(end, following_pb2.FollowResponse())
        self._call.finish(errors.LEADER_CHANGED.error() if end is not None else _REPLACED.error())

    def _send(self, end: LogEnd, response: following_pb2.FollowResponse) -> None:
        response.epoch, response.record, response.batch = end.epoch, end.record, end.batch
        if self._reads:
            response.downgrade = self._core.downgrade
        if self._reads and self._call.backlog_bytes <= limits.FOLLOWER_BACKLOG_BYTES_MAX:
            response.records.extend(self._core.landed(self._shown))
        self._shown = end.record
        self._call.send([response.SerializeToString()])

    def _tell_again(self) -> None:
        end = self._core.log_end()
        if end is not None:
            told = following_pb2.FollowResponse()
            if self._reads:
                self._uses_told, uses = self._core.token_uses.told(self._uses_told, here=False)
                told.uses.extend(uses)
            self._send(end, told)
        self._timer = asyncio.get_running_loop().call_later(limits.FOLLOWERS_TELL_S, self._tell_again)

    def on_requests_end(self) -> None: ...

    def on_over(self) -> None:
        self._core.followers.pop(self, None)
        self._core.when_leading.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()


_REPLACED: Final = errors.ErrorText(Code.ABORTED, "another process with this member id follows")


def _not_leading() -> EtcdError:
    return EtcdError(Code.FAILED_PRECONDITION, "this server does not lead a shared log")


def _no_proof() -> EtcdError:
    return EtcdError(Code.PERMISSION_DENIED, "no proof of access to the log")

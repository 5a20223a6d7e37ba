# SPDX-License-Identifier: Apache-2.0
"""Renewals that are passed on to the server that leads.

Laws
- Each request of a keepalive stream has one reply, in order. So all streams of one caller share one stream to the
  leader, and replies are matched with requests by their places.
- An acknowledgement is passed on within FORWARD_PASS_ON_S of its renewal, by this server's own clock. When it is older,
  the renewal is sent again, and all behind it, so that their order stays. The leader gives FORWARD_ALLOWANCE_S more
  than that (cluster/forwarding.py). On a long way the second answer is no younger: then what it is too old is taken
  off the TTL that it promises.
- A stream of a client outlives the link. Renewals without an answer are sent again to the next leader, or carried out
  here: one too many does no harm.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.cluster.forwarding import FORWARD_PASS_ON_S
from lessor.server.following.link import NOBODY, Ended, Link, Shown
from lessor.server.following.passing import SLOW, Passing, caller_of, refusal
from lessor.server.loop.call import PassedAs, StreamCall, StreamFactory

KEEPALIVE: Final = BY_PATH["/etcdserverpb.Lease/LeaseKeepAlive"]
_TOO_MANY: Final = "too many renewals wait for the leader on this stream"


class Renewing(Protocol):
    """Who waits for renewals."""

    def answered(self, reply: bytes) -> None: ...

    def refused(self, error: EtcdError) -> None:
        """The leader has answered with an error, and ended the line."""
        ...

    def take_back(self, request: bytes) -> None:
        """The line has ended before the answer. Called for each such request, in order."""
        ...


class Lines(Passing, Protocol):
    """The part of a Follower that renewals need."""

    def line(self, caller: Shown, link: Link) -> "Line":
        """The stream to the leader for the renewals of this caller."""
        ...


class Line:
    """One keepalive stream to the leader. Implements link.Owner."""

    def __init__(self, home: Passing, caller: Shown, link: Link, on_over: Callable[[], None]) -> None:
        """`on_over` is called when the leader takes no more requests on it."""
        self._home = home
        self._on_over = on_over
        self.users = 0  # streams of clients
        self._caller = caller
        # Request, when it was sent, whose it is, whether it was sent before.
        self._under_way: deque[tuple[bytes, float, Renewing, bool]] = deque()
        self._outdated = 0  # replies still to come that count no more
        self._call = link.start(KEEPALIVE.path, self, PassedAs(home.nonce, 0, link.leader.epoch), caller)

    def send(self, messages: list[bytes], of: Renewing) -> None:
        now_s = self._home.now_s()
        self._under_way.extend((message, now_s, of, False) for message in messages)
        self._call.send(messages)

    def on_message(self, message: bytes) -> None:
        under_way = self._under_way
        if self._outdated:
            self._outdated -= 1
        elif under_way:
            now_s = self._home.now_s()
            _, sent_s, of, again = under_way[0]
            too_old_s = now_s - sent_s - FORWARD_PASS_ON_S
            if too_old_s > 0 and again:
                message = _shortened(message, math.ceil(too_old_s))
            if too_old_s <= 0 or (again and message):
                under_way.popleft()
                of.answered(self._home.own(message))
            else:
                self._outdated = len(under_way) - 1
                self._under_way = deque((request, now_s, each, True) for request, _, each, _ in under_way)
                self._call.send([request for request, *_ in under_way])

    def on_ended(self, ended: Ended) -> None:
        """Without a status, or with UNAVAILABLE, the leader is gone. Another status is the answer to one renewal."""
        if ended.code not in (Code.OK, Code.UNAVAILABLE) and self._under_way:
            self._under_way.popleft()[2].refused(EtcdError(ended.code, ended.text))
        self.give_back()

    def give_back(self) -> None:
        """The renewals without an answer wait for another stream."""
        self._on_over()
        under_way, self._under_way = self._under_way, deque()
        for request, _, of, _ in under_way:
            of.take_back(request)

    def leave(self) -> None:
        """A client's stream is over. A line of somebody ends with its last one: he may be gone for good."""
        self.users -= 1
        if not self.users and self._caller != NOBODY:
            self._call.finish()
            self._on_over()

    def end(self) -> None:
        """This server leads."""
        self._call.cancel()
        self.give_back()


def _shortened(reply: bytes, by_s: int) -> bytes:
    """The reply with so much less of a TTL; b"" if nothing is left."""
    renewed = rpc_pb2.LeaseKeepAliveResponse.FromString(reply)
    if not renewed.TTL:
        return reply  # the lease has ended
    renewed.TTL -= by_s
    return renewed.SerializeToString() if renewed.TTL > 0 else b""


class PassedRenewals:
    """A keepalive stream of a client. Implements call.StreamHandler and passing.Passable."""

    def __init__(self, home: Lines, call: StreamCall) -> None:
        self._home = home
        self.call = call
        call.passes_on = True
        call.end_behind = self._end_behind
        self.since_s = home.now_s()
        self.line: Line | None = None
        self._early: list[bytes] = []  # requests that wait for a line
        self._unanswered = 0  # requests on the line
        self._kept_bytes = 0  # of requests, since none was left without an answer
        self._error = refusal(call)  # ends the call behind the replies to come
        self._ended = self._error is not None  # no more requests are taken
        if not self._ended:
            home.open(self)

    @property
    def waits(self) -> bool:
        return self.line is None

    def start(self, link: Link) -> None:
        self.line = self._home.line(caller_of(self.call), link)
        self.line.users += 1
        early, self._early = self._early, []
        self._send(early)

    def serve_here(self, own: StreamFactory) -> None:
        if self._error is None:
            self.call.serve_here(own, self._early, ended=self._ended)
        else:
            self.call.finish(self._error)

    # --- from the call ---

    def on_messages(self, messages: list[bytes]) -> None:
        if self._error is None:
            self._send([message for message in messages if self._is_sound(message)])
            self._kept_bytes += sum(map(len, messages))
            if self._kept_bytes > limits.PASSED_STREAM_BYTES_MAX:
                self.call.finish(EtcdError(Code.RESOURCE_EXHAUSTED, _TOO_MANY))
        self._end_if_done()

    def _is_sound(self, message: bytes) -> bool:
        """Whether the leader can read it: its error would end the streams of others. Those behind it are not taken."""
        if self._error is None:
            try:
                rpc_pb2.LeaseKeepAliveRequest.FromString(message)
            except DecodeError:
                self._error = errors.MALFORMED_IN_STREAM.error()
                self._ended = True
        return self._error is None

    def _send(self, messages: list[bytes]) -> None:
        if self.line is None:
            self._early += messages
        elif messages:
            self._unanswered += len(messages)
            self.line.send(messages, self)

    def on_requests_end(self) -> None:
        self._ended = True
        self._end_if_done()

    def on_over(self) -> None:
        self._home.close(self)
        if self.line is not None:
            self.line.leave()

    # --- from the line ---

    def answered(self, reply: bytes) -> None:
        self._unanswered -= 1
        self.call.send([reply])
        if self.call.backlog_bytes > limits.CONNECTION_SEND_BYTES_MAX:
            self.call.cut_off(EtcdError(Code.RESOURCE_EXHAUSTED, SLOW))
        self._end_if_done()

    def refused(self, error: EtcdError) -> None:
        self._unanswered -= 1
        self.call.finish(error)

    def take_back(self, request: bytes) -> None:
        self._unanswered -= 1
        self._early.append(request)

    def leave_line(self) -> None:
        self.line = None
        self.since_s = self._home.now_s()

    def _end_behind(self, error: EtcdError) -> None:
        """The codec has found an error behind the requests that came."""
        self._error, self._ended = self._error or error, True
        self._end_if_done()

    def _end_if_done(self) -> None:
        if not (self._unanswered or self._early):
            self._kept_bytes = 0
        if self._ended and not (self._unanswered or self._early):
            self.call.finish(self._error)

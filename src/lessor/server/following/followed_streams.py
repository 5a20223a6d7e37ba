# SPDX-License-Identifier: Apache-2.0
"""Streams that a server which follows answers itself, once it has what they have to show: RangeStream and Observe.

Laws
- A RangeStream that may be old (`serializable`), of a caller whom this server knows, begins at once. Any other stream
  begins as the linearizable reads of reads.py do, when the leader has said how far this server has to be. By then this
  server also has all that is needed to judge the caller.
- A stream is not passed on: the link cannot be as slow as a reader. So it waits when its batch does not come, and asks
  again when its question is lost. One that waits for NO_LEADER_S_MAX ends with `no leader`.
- When this server leads, it begins here too. One that has begun goes on, whoever leads.
"""

from collections.abc import Callable
from typing import Protocol

from google.protobuf.message import DecodeError

from lessor.api.proto import rpc_pb2
from lessor.base import errors
from lessor.server.following.link import Link
from lessor.server.loop.call import StreamCall, StreamFactory
from lessor.state.range_stream import check_range_stream


class Home(Protocol):
    """The part of a Follower that these streams need."""

    now_s: Callable[[], float]

    def refuse_without_leader(self, call: StreamCall) -> None:
        """Raises NO_LEADER for a call that does not want to wait for a leader, if there has been none for long."""
        ...

    def knows(self, call: StreamCall) -> bool:
        """Whether the call's rights can be judged here."""
        ...

    def keep(self, size_bytes: int) -> None:
        """Counts a request that waits here. Raises EtcdError when that is too much."""
        ...

    def ask_for(self, stream: "Followed") -> None:
        """Begins to wait for the leader's word, or for a leader."""
        ...

    def ask_again(self, stream: "Followed") -> bool:
        """Asks the leader. Returns whether it could be asked."""
        ...

    def forget_followed(self, stream: "Followed") -> None:
        """The stream waits no more."""
        ...

    def has_begun(self, call: StreamCall) -> None:
        """The stream is answered here from now on, for as long as its client wants."""
        ...


class Followed:
    """A stream that has not begun. Implements call.StreamHandler, passing.Passable and reads.Asking."""

    patient = True

    def __init__(self, home: Home, call: StreamCall, own: StreamFactory) -> None:
        self._home = home
        self._own = own
        self._messages: list[bytes] = []  # the request
        self._ended = False  # the peer sends no more
        self._waiting = False  # it is kept here
        self.call = call
        self.since_s = home.now_s()
        self.size_bytes = 0
        self.waits = True

    # --- from the call ---

    def on_messages(self, messages: list[bytes]) -> None:
        if not self._waiting:
            self._messages = messages[:1]
            if self._may_be_old(messages[0]):
                self._begin()
            else:
                self._wait()

    def on_requests_end(self) -> None:
        self._ended = True
        if not self._messages:  # over HTTP the one request may be an empty body
            self._wait()

    def _may_be_old(self, message: bytes) -> bool:
        """Whether the request is answered with what this server has. Raises EtcdError for one that is refused."""
        self._home.refuse_without_leader(self.call)
        return False

    def _wait(self) -> None:
        size_bytes = sum(map(len, self._messages))
        self._home.keep(size_bytes)
        self.size_bytes = size_bytes
        self._waiting = True
        self._home.ask_for(self)

    def on_over(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._waiting:
            self._waiting = False
            self._home.forget_followed(self)

    def _begin(self) -> None:
        self._leave()
        self.call.serve_here(self._own, self._messages, ended=self._ended)

    # --- from the follower ---

    def start(self, link: Link) -> None:
        self.waits = not self._home.ask_again(self)

    def serve_here(self, own: StreamFactory) -> None:
        """This server leads."""
        self._begin()

    # --- from the reads ---

    def serve(self) -> None:
        if self._waiting:
            self._begin()

    def lost(self) -> None:
        self.waits = True


class FollowedRange(Followed):
    """Of RangeStream."""

    def _may_be_old(self, message: bytes) -> bool:
        try:
            request = rpc_pb2.RangeRequest.FromString(message)
        except DecodeError:
            raise errors.MALFORMED_IN_STREAM.error() from None
        check_range_stream(request)
        super()._may_be_old(message)
        return request.serializable and self._home.knows(self.call)


class FollowedObserve(Followed):
    """Of Observe."""

    def __init__(self, home: Home, call: StreamCall, own: StreamFactory) -> None:
        super().__init__(home, call, own)
        call.passes_on = True  # until it begins: this server may not know the caller's rights before that

    def _begin(self) -> None:
        super()._begin()
        if not self.call.over:
            self._home.has_begun(self.call)

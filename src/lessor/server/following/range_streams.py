# SPDX-License-Identifier: Apache-2.0
"""RangeStream at a server that follows: it is answered here, once this server has what it has to show.

Laws
- A stream that may be old (`serializable`), of a caller whom this server knows, begins at once. Any other begins as the
  linearizable reads of reads.py do, when the leader has said how far this server has to be. By then this server also
  has all that is needed to judge the caller.
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

    def ask_for(self, stream: "FollowedRange") -> None:
        """Begins to wait for the leader's word, or for a leader."""
        ...

    def ask_again(self, stream: "FollowedRange") -> bool:
        """Asks the leader. Returns whether it could be asked."""
        ...

    def forget_range(self, stream: "FollowedRange") -> None:
        """The stream waits no more."""
        ...


class FollowedRange:
    """One that has not begun. Implements call.StreamHandler, passing.Passable and reads.Asking."""

    patient = True

    def __init__(self, home: Home, call: StreamCall, own: StreamFactory) -> None:
        self._home = home
        self._own = own
        self._message = b""
        self._ended = False  # the peer sends no more
        self._waiting = False  # it is kept here
        self.call = call
        self.since_s = home.now_s()
        self.size_bytes = 0
        self.waits = True

    # --- from the call ---

    def on_messages(self, messages: list[bytes]) -> None:
        self._message = messages[0]
        try:
            request = rpc_pb2.RangeRequest.FromString(self._message)
        except DecodeError:
            raise errors.MALFORMED_IN_STREAM.error() from None
        check_range_stream(request)
        self._home.refuse_without_leader(self.call)
        if request.serializable and self._home.knows(self.call):
            self._begin()
            return
        size_bytes = len(self._message)
        self._home.keep(size_bytes)
        self.size_bytes = size_bytes
        self._waiting = True
        self._home.ask_for(self)

    def on_requests_end(self) -> None:
        self._ended = True

    def on_over(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._waiting:
            self._waiting = False
            self._home.forget_range(self)

    def _begin(self) -> None:
        self._leave()
        self.call.serve_here(self._own, [self._message], ended=self._ended)

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

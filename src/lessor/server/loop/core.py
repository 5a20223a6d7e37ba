# SPDX-License-Identifier: Apache-2.0
"""What every call works on, and the two ways in which a call meets it.

A *unary* call goes through `Core.unary`: the handler from services.py is run at once, and its reply or error waits at
the gate for the newest batch with rows. A *streaming* call is a `StreamHandler` that gets messages and answers when it
likes. Neither knows whether gRPC or JSON is spoken at the other end: that is the business of the `Call`s in
grpc_calls.py and http_calls.py, which are two codecs over the same messages.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from google.protobuf.message import DecodeError, Message

from lessor.api.methods import Method
from lessor.api.proto import rpc_pb2
from lessor.base import errors
from lessor.base.errors import EtcdError
from lessor.server.loop.bugs import told
from lessor.server.loop.committer import Committer
from lessor.server.loop.long_reply import Line, LongReply
from lessor.server.loop.release import Gate
from lessor.server.loop.turn import Turn
from lessor.server.loop.unfinished import Unfinished
from lessor.server.observe.metrics import Metrics
from lessor.server.observe.pages import Pages
from lessor.server.options import Options
from lessor.server.services.passwords import Passwords
from lessor.server.services.snapshots import Snapshots
from lessor.server.services.tokens import Tokens
from lessor.server.services.waiting_lines import WaitingLines
from lessor.state import permissions
from lessor.state.machine import StateMachine
from lessor.state.permissions import Caller, Claimed


class Credentials(Protocol):
    """What a call says about who makes it."""

    @property
    def token(self) -> bytes | None:
        """The metadata or header field with the caller's token, as it came."""
        ...

    @property
    def peer_common_name(self) -> str | None:
        """The common name in the client certificate of the connection, where that was verified and counts."""
        ...


class UnaryCall(Credentials, Protocol):
    """A call that takes one reply."""

    method: Method
    waiting: "Waiting | None"  # what the reply is waited for from, in a call of Core.waiting_handlers

    def encode(self, reply: bytes) -> Any:
        """A serialized reply, as it will be sent. Made before the gate, while the commit is under way."""
        ...

    def encode_pieces(self, pieces: Iterator[bytes]) -> Iterator[Any]:
        """`encode` of the sum of `pieces`, step by step: None after each step but the last, which is the outcome."""
        ...

    def deliver(self, payload: Any) -> None:
        """Sends what `encode` made, or an EtcdError, and ends the call."""
        ...

    def fail(self, error: EtcdError) -> None:
        """Ends the call with the error, now."""
        ...

    def refused(self) -> bool:
        """Ends the call if its peer has asked for more than it takes; returns whether it did."""
        ...


class Waiting(Protocol):
    """A unary call whose reply comes later: a lock that is not free, a password that is being hashed."""

    def on_gone(self) -> None:
        """The peer went away, or its deadline passed: nobody waits any more. Not called once `Core.finish` was."""
        ...


class StreamCall(Credentials, Protocol):
    """A call that takes any number of replies."""

    method: Method

    def send(self, replies: list[bytes]) -> None:
        """Sends serialized messages, in order. Does nothing once the call has ended."""
        ...

    def finish(self, error: EtcdError | None = None) -> None:
        """Ends the call: OK, or with the error."""
        ...

    @property
    def backlog_bytes(self) -> int:
        """What the peer has not taken yet on this connection."""
        ...

    def wake_when_drained(self, stream: Any) -> None:
        """Passes `stream` to Turn.catch_up_later when the peer has taken some of the backlog."""
        ...


class StreamHandler(Protocol):
    """The server's side of a streaming call."""

    def on_messages(self, messages: list[bytes]) -> None:
        """Serialized requests, in order. Raises EtcdError to end the call with it."""
        ...

    def on_requests_end(self) -> None:
        """The peer sends no more; it may still read."""
        ...

    def on_gone(self) -> None:
        """The call is over, whoever ended it; releases what it held. Called exactly once."""
        ...


class _Over:
    """Stands in for the handler of a call that has ended, so that the two do not keep each other."""

    def on_messages(self, messages: list[bytes]) -> None: ...

    def on_requests_end(self) -> None: ...

    def on_gone(self) -> None: ...


OVER: StreamHandler = _Over()

# Their handlers ask for permission themselves: for each watch and each keepalive, when its turn comes.
_ASK_THEMSELVES = frozenset({"/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"})


class WatchesProgress(Protocol):
    """A watch stream, as the timer of progress notifications sees it."""

    def notify_progress(self) -> None: ...

    def behind(self) -> tuple[int, int]:
        """How many of its watchers lag, and how many revisions they have not been told of, added up."""
        ...


# Returns the reply; one that takes long as pieces still to be made.
UnaryHandler = Callable[["Core", Any], bytes | Iterator[bytes]]
# Begins a call that answers by `Core.finish`, perhaps at once. Raises EtcdError to answer with that.
WaitingHandler = Callable[["Core", UnaryCall, Any], "Waiting | None"]
StreamFactory = Callable[["Core", StreamCall], StreamHandler]


class Core:
    """The parts of a running server, as main.py put them together. No behaviour of its own but `unary`."""

    def __init__(
        self,
        options: Options,
        machine: StateMachine,
        gate: Gate,
        turn: Turn,
        committer: Committer,
        metrics: Metrics,
    ) -> None:
        self.options = options
        self.machine = machine
        self.auth = machine.auth
        self.tokens: Tokens
        self.passwords: Passwords
        self.gate = gate
        self.turn = turn
        self.committer = committer
        self.metrics = metrics
        self.snapshots: Snapshots
        self.downgrade_target = ""  # of the downgrade that was enabled; see maintenance.py
        self.watch_streams: set[WatchesProgress] = set()
        self.waiting_lines = WaitingLines(self)
        self.pages = Pages()
        self.long_replies = Line()
        self.unfinished = Unfinished(options.message_bytes_max)
        self.unary_handlers: dict[Method, UnaryHandler] = {}
        self.waiting_handlers: dict[Method, WaitingHandler] = {}
        self.stream_handlers: dict[Method, StreamFactory] = {}

    def unary(self, call: UnaryCall, request: Message) -> None:
        """Runs the call's handler and holds its outcome until no crash can take it back."""
        handler = self.unary_handlers.get(call.method)
        outcome: bytes | EtcdError
        try:
            if self.auth.enabled:
                self.permit(call, request)
            if handler is None:
                call.waiting = self.waiting_handlers[call.method](self, call, request)
                return
            reply = handler(self, request)
            if isinstance(reply, bytes):
                outcome = reply
            elif self.long_replies.full:
                outcome = b"".join(reply)
            else:
                call.waiting = LongReply(self, call, reply)
                return
        except Exception as error:
            outcome = told(error, call.method.path)
        self.finish(call, outcome)

    def answer(self, call: UnaryCall, reply: Callable[[], bytes]) -> None:
        """`finish` with what `reply` returns or raises, for a call that has waited."""
        outcome: bytes | EtcdError
        try:
            outcome = reply()
        except Exception as error:
            outcome = told(error, call.method.path)
        self.finish(call, outcome)

    # --- who may do what: the one place where calls meet state/permissions.py ---

    def permit(self, call: Credentials, request: Message) -> None:
        """Raises EtcdError unless the caller may make the request. Ask only while `auth.enabled`, to save the cost."""
        self.permit_claimed(self.claimed(call), request)

    def permit_claimed(self, claimed: Claimed, request: Message) -> None:
        """The same for a caller who was found before, for what goes on after a while."""
        permissions.check(self.machine, claimed, request, self.options.max_request_bytes)

    def permit_messages(self, call: StreamCall, messages: list[bytes]) -> None:
        """`permit` for the requests of a stream, before its handler sees them.

        A peer that ends its side without any may still be served, as if it had sent an empty one.
        """
        if call.method.path not in _ASK_THEMSELVES:
            for message in messages:
                try:
                    request = call.method.request.FromString(message)
                except DecodeError:
                    raise errors.MALFORMED_IN_STREAM.error() from None
                self.permit(call, request)

    def claimed(self, call: Credentials) -> Claimed:
        """Who makes the call: by its token, or else by the client's certificate. An EtcdError for a bad token."""
        token = call.token
        if token is not None:
            text = token.decode("latin-1").removeprefix("Bearer ")
            return self.tokens.caller(text, self.auth.revision) or errors.INVALID_AUTH_TOKEN.error()
        name = call.peer_common_name
        return None if name is None else Caller(name, self.auth.revision)

    def finish(self, call: UnaryCall, outcome: bytes | EtcdError) -> None:
        """Answers a unary call with a serialized reply or an error, once no crash can take back what led to it."""
        try:
            payload = outcome if isinstance(outcome, EtcdError) else call.encode(outcome)
        except Exception as error:
            payload = told(error, call.method.path)
        self.finish_encoded(call, payload)

    def finish_encoded(self, call: UnaryCall, payload: Any) -> None:
        """The same with what `call.encode` has made of the reply, or an error."""
        call.waiting = None
        if self.machine.hub.outbox:
            self.turn.hold_publications()
        self.gate.hold(self.machine.journal.newest_with_rows, call, payload)
        self.turn.schedule()

    def serves(self, method: Method) -> bool:
        """Whether there is a handler of any kind."""
        return method in self.unary_handlers or method in self.stream_handlers or method in self.waiting_handlers

    def durable_header_field(self) -> bytes:
        """The header of a reply that does not wait at the gate, as its field 1: it names the durable revision."""
        return self.machine.header_field(self.turn.durable_revision)

    def header(self, revision: int) -> rpc_pb2.ResponseHeader:
        """A response header as of `revision`."""
        header = self.machine.header()
        header.revision = revision
        return header

# SPDX-License-Identifier: Apache-2.0
"""The life of a call. gRPC and JSON are two codecs (transport/) over the two classes here.

Laws
- A call ends exactly once: with its reply, with an error, or because its peer went away. The end of each call is
  counted here. A payload that the gate or a handler brings afterwards is dropped. (A request that a codec refuses
  before it makes a call of it is counted by the codec.)
- A unary request that has been read at its deadline or later is not carried out. A reply that has not left before the
  deadline is not sent. In both cases the client is answered DEADLINE_EXCEEDED. A streaming call whose deadline comes
  ends at once.
- A reply waits at the gate behind all that was applied when it was decided. So does an error that a handler raises, or
  that `finish` of a unary call is given. Errors in the requests of a stream wait there too, so they follow the replies
  to earlier requests. An error does not wait when it depends on no data: a deadline, a malformed unary request.
- While a write takes effect in many steps, calls that may touch keys wait for its end (long_writes.py).
- While auth is on, a caller needs the right to make each request. It is checked here; the handlers of Watch and
  LeaseKeepAlive check it themselves, request by request.
- While auth is on, a caller without a valid token may send STRANGER_BYTES_MAX of a request. Beyond it the codec ends
  the call, before it reads or decodes the request.

A *unary* call: the codec reads one request and calls `serve`. The handler from services/ runs at once. It returns the
reply, or the call waits and `finish` is called later. A *streaming* call: the codec hands requests to `take`; the
`StreamHandler` calls `send` and `finish` at any time.

    codec                      here                            services/
    request is whole      ->   serve: deadline, rights    ->   handler(core, request) -> reply
    encode(reply)         <-   finish: the gate holds it
    _send(payload)        <-   deliver: deadline, count

A codec overrides all members under "the codec's". It calls `gone` when the peer has gone away.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

from google.protobuf.message import DecodeError, Message

from lessor.api.methods import BY_PATH
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.server.loop.bugs import as_answer
from lessor.server.loop.core import Core
from lessor.server.loop.held import Held
from lessor.server.observe.metrics import CallCounts, Durations
from lessor.state.long_read import Written
from lessor.state.long_write import LongWrite, Outcome


class Waiting(Protocol):
    """Stands for a reply that comes later: a lock that is not free, a password that is being hashed, a long reply.

    Or for a request that is kept until the peer has taken replies.
    """

    @property
    def open_ended(self) -> bool:
        """Whether the wait has no bound. A peer that half-closes during such a wait has hung up."""
        ...

    def on_gone(self) -> None:
        """The call has ended without this reply: its peer went away, its deadline came, or it was refused.

        Not called after `UnaryCall.finish`.
        """
        ...


class PassedAs(NamedTuple):
    """How another server of the log names a call that it passes on."""

    nonce: bytes  # of its process
    counter: int  # of that process; 0: the call changes nothing
    epoch: int  # for which it is passed on


class UnaryCall:
    """A call that takes one reply."""

    __slots__ = ("_began_s", "_timer", "_took", "core", "counts", "deadline_s", "held", "method", "over", "waiting")

    def __init__(self, core: Core, counts: CallCounts, held: Held) -> None:
        self.core = core
        self.counts = counts
        self.held = held
        self.method = counts.method
        self.deadline_s: float | None = None  # on `Turn.read_clock`; None if the peer named no timeout
        self.waiting: Waiting | None = None  # set while the reply is still to come
        self.over = False
        self._timer: asyncio.TimerHandle | None = None
        self._began_s = 0.0  # when `serve` was called, on `Turn.read_clock`
        self._took: Durations | None = None  # where the duration is counted; None until `serve`, and for other methods
        counts.started.n += 1
        counts.requests.n += 1

    # --- the codec's ---

    @property
    def token(self) -> bytes | None:
        """The value of the metadata or header field with the caller's token, unchanged."""
        raise NotImplementedError

    @property
    def peer_common_name(self) -> str | None:
        """The common name in the connection's client certificate, if that was verified and may name a caller."""
        raise NotImplementedError

    @property
    def requires_leader(self) -> bool:
        """Whether the caller wants an error rather than to wait while this server knows no leader."""
        return False

    @property
    def passed_as(self) -> PassedAs | None:
        """Not None if another server passes the call on. Raises EtcdError for a name that no server gives."""
        return None

    @property
    def passed_again(self) -> bool:
        """Whether another server passes the call on that has done so before: part of it may be done."""
        return False

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        """Whether the replies that the peer has not taken exceed the bound of a connection.

        If so `go_on` is called once, when they do so no more, or when the connection is over. A later `go_on` of the
        same connection takes its place.
        """
        raise NotImplementedError

    def encode(self, reply: bytes) -> bytes:
        """The bytes to send for a serialized reply. Called before the gate, so that nothing is left to do behind it."""
        raise NotImplementedError

    def encode_pieces(self, pieces: Iterator[bytes]) -> Iterator[bytes | None]:
        """`encode` of all `pieces` joined, in steps. Yields None after each step but the last, then the bytes."""
        raise NotImplementedError

    def _send(self, payload: bytes) -> None:
        """Sends the bytes that `encode` made, and lets go of the stream or exchange."""
        raise NotImplementedError

    def _send_error(self, error: EtcdError) -> None:
        """Sends an error, and lets go of the stream or exchange."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Lets go of the stream or exchange. The peer went away: nothing can be sent."""
        raise NotImplementedError

    # --- from the codec ---

    def expire_after(self, timeout_s: float) -> None:
        """Sets the deadline to `timeout_s` from now."""
        self.deadline_s = self.core.turn.read_clock() + timeout_s

    def serve(self, request: Message) -> None:
        """Carries the request out. The answer leaves once no crash can take the outcome back."""
        core = self.core
        counts = self.counts
        took = counts.took
        if took is not None or self.deadline_s is not None:
            now_s = core.turn.read_clock()  # once for both: most calls are short, and two looks are a part of them
            if self.deadline_s is not None and now_s >= self.deadline_s:
                self.end_now(errors.DEADLINE_EXCEEDED.error())
                return
            if counts.readonly is not None and only_reads(request, core.options.max_txn_ops):
                took = counts.readonly
            self._took = took
            self._began_s = now_s
        payload: bytes | EtcdError
        try:
            passed_as: PassedAs | None = None
            if core.on_shared_log:
                elsewhere = core.elsewhere
                if elsewhere is not None and elsewhere.serves(self, request):
                    self.wait(elsewhere.pass_on(self, request))
                    return
                passed_as = self.passed_as
                if passed_as is not None:
                    core.check_passed_on(*passed_as)
            if core.auth.enabled:
                core.permit(self, request)
            handler = core.unary_handlers.get(self.method)
            if handler is None:
                self.wait(core.waiting_handlers[self.method](core, self, request))
                return
            reply = handler(core, request)
            if isinstance(reply, bytes):
                payload = self.encode(reply)
                if passed_as is not None:
                    self.took_effect(reply)
            elif isinstance(reply, LongWrite):
                self.wait(core.turn.long_writes.begin(reply, self))
                return
            else:
                if passed_as is not None:
                    self.took_effect()
                self.wait(core.long_replies.begin(self, reply, request))
                return
        except Exception as error:
            payload = as_answer(error, self.method.path)
        self.finish_encoded(payload)

    def gone(self) -> None:
        """The peer went away."""
        if self._close():
            self.counts.end(Code.CANCELED)
            self._let_go()

    def permit(self, request: Message) -> None:
        """Raises EtcdError unless the caller may make the request now."""
        if self.core.auth.enabled:
            self.core.permit(self, request)

    def wait(self, waiting: Waiting | None) -> None:
        """The call goes on later, or is answered later. Its deadline goes on; `waiting` is told if the call ends."""
        self.waiting = waiting
        if waiting is not None and self.deadline_s is not None:
            left_s = self.deadline_s - self.core.turn.read_clock()
            self._timer = asyncio.get_running_loop().call_later(left_s, self._out_of_time)

    def wait_no_more(self) -> None:
        """The call goes on now."""
        self.waiting = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- from the handler ---

    def finish(self, outcome: bytes | EtcdError) -> None:
        """Answers with a serialized reply or an error, once no crash can take back what led to it."""
        payload: bytes | EtcdError
        try:
            payload = outcome if isinstance(outcome, EtcdError) else self.encode(outcome)
        except Exception as error:
            payload = as_answer(error, self.method.path)
        self.finish_encoded(payload)

    def written(self, outcome: Outcome | EtcdError) -> None:
        """The long write of this call has ended: answers with its reply, which may take long to make, or its error."""
        if not isinstance(outcome, EtcdError):
            self.took_effect(outcome if isinstance(outcome, bytes) else b"")
        if isinstance(outcome, Written):
            self.waiting = self.core.long_replies.begin(self, outcome)
        else:
            self.finish(outcome)

    def took_effect(self, reply: bytes = b"") -> None:
        """Notes in the open batch that the call took effect there, if another server has named it when it passed it on.

        `reply`: for that server, should it not get the answer; b"": it takes too long to make.
        """
        core = self.core
        passed_as = self.passed_as if core.on_shared_log else None
        if passed_as is not None and passed_as.counter:
            kept = reply if len(reply) <= limits.ORIGIN_REPLY_BYTES_MAX else b""
            core.machine.journal.origin(passed_as.nonce, passed_as.counter, kept)

    def answer(self, reply: Callable[[], bytes]) -> None:
        """`finish` with the reply that `reply` returns or the error that it raises, for a call that has waited."""
        outcome: bytes | EtcdError
        try:
            outcome = reply()
        except Exception as error:
            outcome = as_answer(error, self.method.path)
        self.finish(outcome)

    def finish_encoded(self, payload: bytes | EtcdError) -> None:
        """`finish` with the bytes that `encode` made, or with an error."""
        self.waiting = None
        turn = self.core.turn
        ranges = self.counts.ranges
        if ranges is not None and self._took is not None:
            made_s = turn.read_clock() - self._began_s
            histogram = ranges.fine if isinstance(payload, bytes) else ranges.failed
            if made_s <= histogram.first:
                histogram.least += 1
                histogram.sum += made_s
            else:
                histogram.observe(made_s)
        if isinstance(payload, bytes):
            self.held.size_bytes += len(payload)
        turn.after_everything(self, payload)
        if not turn.scheduled:
            turn.schedule()

    def end_now(self, error: EtcdError) -> None:
        """Ends the call with the error, without waiting at the gate. Does nothing once it has ended."""
        if self._close():
            self.counts.end(error.code)
            self._send_error(error)

    # --- from the gate ---

    def deliver(self, payload: Any) -> None:
        """The gate lets the reply or the error through."""
        is_reply = isinstance(payload, bytes)
        if is_reply:
            self.held.size_bytes -= len(payload)
        if self.over:
            self.held.dropped()
            return
        took = self._took
        now_s = self.core.turn.read_clock() if took is not None or self.deadline_s is not None else 0.0
        if self.deadline_s is not None and now_s >= self.deadline_s:
            self.end_now(errors.DEADLINE_EXCEEDED.error())
        elif is_reply:
            self.over = True
            if self._timer is not None:
                self._timer.cancel()
            self.counts.succeeded.n += 1
            if took is not None:
                took_s = now_s - self._began_s
                fine = took.fine
                if took_s <= fine.first:
                    fine.least += 1
                    fine.sum += took_s
                else:
                    fine.observe(took_s)
            self._send(payload)
        else:
            self.end_now(payload)

    # --- inside ---

    def _out_of_time(self) -> None:
        if self.waiting is not None:  # otherwise the reply is at the gate, and `deliver` checks the deadline
            self.end_now(errors.DEADLINE_EXCEEDED.error())

    def _close(self) -> bool:
        """Returns whether the call ends now, and not earlier."""
        if self.over:
            return False
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._took is not None:
            self._took.failed.observe(self.core.turn.read_clock() - self._began_s)
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.on_gone()
        return True


def only_reads(request: Any, ops_max: int) -> bool:
    """Whether a txn has ranges alone, as etcd's metrics see it: a txn in it counts as a write.

    One with more than `ops_max` operations in a branch is refused, however many more, so they are not looked at.
    """
    for branch in (request.success, request.failure):
        if len(branch) > ops_max:
            return False
        for op in branch:
            if not op.HasField("request_range"):
                return False
    return True


class StreamHandler(Protocol):
    """The server's side of a streaming call."""

    def on_messages(self, messages: list[bytes]) -> None:
        """Serialized requests, in order. Raises EtcdError to end the call with it."""
        ...

    def on_requests_end(self) -> None:
        """The peer sends no more; it may still read."""
        ...

    def on_over(self) -> None:
        """The call has ended, for whatever reason: releases all that the handler holds. Called exactly once."""
        ...


class _Over:
    """Takes the place of the handler when a call has ended, so that the two do not keep each other alive."""

    def on_messages(self, messages: list[bytes]) -> None: ...

    def on_requests_end(self) -> None: ...

    def on_over(self) -> None: ...


_OVER: Final = _Over()

FORWARDED_HEADER: Final = b"lessor-forwarded"  # of a call that another server of the log passes on
AGAIN_HEADER: Final = b"lessor-again"  # of such a call that was passed on before
CALLER_HEADER: Final = b"lessor-caller"  # of such a call: the name in its client's certificate, see cluster/proof.py

# The handlers of these methods check the caller's rights themselves: for each watch and each keepalive, in its turn.
_ASK_THEMSELVES: Final = frozenset(
    {
        "/etcdserverpb.KV/RangeStream",  # behind the form of the request
        "/etcdserverpb.Watch/Watch",
        "/etcdserverpb.Lease/LeaseKeepAlive",
        "/lessorpb.Following/Follow",
    }
)
# Streaming calls that end soon by themselves: a server that stops lets them, as it does unary ones.
ENDING: Final = frozenset({BY_PATH["/etcdserverpb.KV/RangeStream"]})


class StreamCall:
    """A call that takes any number of replies."""

    __slots__ = ("_handler", "_timer", "core", "counts", "end_behind", "ending", "method", "over", "passes_on")

    def __init__(self, core: Core, counts: CallCounts) -> None:
        """Makes the handler. A codec calls this when it is ready to send."""
        self.core = core
        self.counts = counts
        self.method = counts.method
        self.over = False
        self.ending = False  # an error waits at the gate; later requests are ignored
        # Set by a handler that has to end the call itself, behind replies that are still to come from elsewhere.
        self.end_behind: Callable[[EtcdError], None] | None = None
        self.passes_on = False  # its handler takes it to the server that leads, which judges the caller's rights
        self._timer: asyncio.TimerHandle | None = None
        counts.begin()
        self._handler: StreamHandler = core.stream_handlers[counts.method](core, self)

    # --- the codec's ---

    @property
    def token(self) -> bytes | None:
        """As UnaryCall.token."""
        raise NotImplementedError

    @property
    def peer_common_name(self) -> str | None:
        """As UnaryCall.peer_common_name."""
        raise NotImplementedError

    @property
    def held(self) -> Held:
        """Stands for the connection, also for what the call's handler keeps. Not to be asked for once it has ended."""
        raise NotImplementedError

    @property
    def peer_address(self) -> str:
        """As Held.address."""
        raise NotImplementedError

    @property
    def requires_leader(self) -> bool:
        """As UnaryCall.requires_leader."""
        return False

    def metadata(self, name: bytes) -> bytes | None:
        """The value of a metadata field, named in lower case; None without it, and once the call has ended."""
        raise NotImplementedError

    @property
    def forwarded(self) -> bool:
        """Whether another server of the log passes it on, and its answers after that."""
        return False

    @property
    def backlog_bytes(self) -> int:
        """The bytes on this connection that the peer has not taken yet."""
        raise NotImplementedError

    def wake_when_drained(self, stream: Any) -> None:
        """Passes `stream` to Turn.catch_up_later when the peer has taken some of the backlog."""
        raise NotImplementedError

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        """As UnaryCall.waits_for_peer. gRPC only."""
        raise NotImplementedError

    def when_taken(self, left_bytes: int, go_on: Callable[[], None]) -> bool:
        """Whether more than `left_bytes` of this call's replies wait for the peer's windows. gRPC only.

        If so `go_on` is called once, when they do so no more, unless the call has ended by then.
        """
        raise NotImplementedError

    def _send(self, replies: list[bytes]) -> None:
        """Sends serialized messages, in order."""
        raise NotImplementedError

    def _send_long(self, head: bytes, chunks: Sequence[bytes]) -> Iterator[int]:
        """`send_long` of a call that is not over."""
        raise NotImplementedError

    def _send_end(self, error: EtcdError | None) -> None:
        """Sends the end, OK if `error` is None, and lets go of the stream or exchange."""
        raise NotImplementedError

    def _drop_waiting(self) -> None:
        """Drops replies that the peer has not taken, if the protocol allows that. The call is ended next."""

    def _let_go(self) -> None:
        """Lets go of the stream or exchange. The peer went away: nothing can be sent."""
        raise NotImplementedError

    # --- from the codec ---

    def expire_after(self, timeout_s: float) -> None:
        """Ends the call `timeout_s` from now, if it has not ended before."""
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self.end_now, errors.DEADLINE_EXCEEDED.error())

    def take(self, messages: list[bytes]) -> None:
        """Hands serialized requests to the handler, in order."""
        if self.over or self.ending:
            return
        core = self.core
        try:
            if core.auth.enabled and not self.passes_on:
                self._permit(messages)
            core.metrics.received[self.method] += len(messages)
            self._handler.on_messages(messages)
        except Exception as error:
            self.end_in_order(as_answer(error, self.method.path))

    def serve_here(self, make: "StreamFactory", messages: list[bytes], *, ended: bool) -> None:
        """The call was to be passed on, and this server leads now. `messages` have come; `ended`: no more will."""
        self.passes_on = False
        self.end_behind = None
        self._handler = make(self.core, self)
        self.core.metrics.received[self.method] -= len(messages)  # `take` counts them once more
        if messages:
            self.take(messages)
        if ended:
            self.requests_end(without_any=not messages)

    def pass_on(self, make: "StreamFactory") -> None:
        """Another server is to lead: the handler that `make` makes takes the requests from here on.

        What the one before has answered, or has at the gate, leaves before that.
        """
        if not (self.over or self.ending):
            before, self._handler = self._handler, _OVER
            before.on_over()
            self._handler = make(self.core, self)

    def requests_end(self, *, without_any: bool = False) -> None:
        """The peer sends no more. `without_any`: it has sent no request; the call goes on as after an empty one."""
        if self.over or self.ending:
            return
        try:
            if without_any and self.core.auth.enabled and not self.passes_on:
                self._permit([b""])
            self._handler.on_requests_end()
        except Exception as error:
            self.end_in_order(as_answer(error, self.method.path))

    def gone(self) -> None:
        """The peer went away."""
        if self._close():
            self.counts.end(Code.CANCELED)
            self._let_go()

    # --- from the handler ---

    def send(self, replies: list[bytes]) -> None:
        """Sends serialized messages, in order. Does nothing once the call has ended."""
        if not self.over:
            self.core.metrics.sent[self.method] += len(replies)
            self._send(replies)

    def send_long(self, head: bytes, chunks: Sequence[bytes]) -> Iterator[int]:
        """Sends one serialized message, `head` and `chunks` joined, in steps: yields the cost of each, in bytes.

        Each is a row of whole fields, in the order of their numbers. The message is sent with the last step. Messages
        that are sent in between go before it. The codec may keep the chunks until the peer has taken them.
        """
        if not self.over:
            self.core.metrics.sent[self.method] += 1
            yield from self._send_long(head, chunks)

    def finish(self, error: EtcdError | None = None) -> None:
        """Ends the call now, with OK or with the error. Does nothing once it has ended."""
        if self._close():
            self.counts.end(Code.OK if error is None else error.code)
            self._send_end(error)

    def cut_off(self, error: EtcdError) -> None:
        """`finish` for a peer that does not read: the error does not wait behind replies that it has not taken."""
        if self._close():
            self.counts.end(error.code)
            self._drop_waiting()
            self._send_end(error)

    def end_now(self, error: EtcdError) -> None:
        """`finish` with an error."""
        self.finish(error)

    def end_in_order(self, error: EtcdError) -> None:
        """Ends the call after the replies to earlier requests, which may still wait at the gate."""
        self.ending = True
        if self.end_behind is not None:
            self.end_behind(error)
        else:
            self.core.turn.after_all_writes(self, error)

    # --- from the gate ---

    def deliver(self, payload: Any) -> None:
        """The gate has let through all that was held before this end."""
        self.finish(payload)

    # --- inside ---

    def _permit(self, messages: list[bytes]) -> None:
        if self.method.path not in _ASK_THEMSELVES:
            for message in messages:
                try:
                    request = self.method.request.FromString(message)
                except DecodeError:
                    raise errors.MALFORMED_IN_STREAM.error() from None
                self.core.permit(self, request)

    def _close(self) -> bool:
        """Returns whether the call ends now, and not earlier."""
        if self.over:
            return False
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        handler, self._handler = self._handler, _OVER
        try:
            handler.on_over()
        except Exception as error:  # not raised: the connection may have other calls to end
            as_answer(error, self.method.path)
        return True


# Returns the reply, or the pieces of a long reply, which are still to be made, or a write whose steps are to be taken.
UnaryHandler = Callable[[Core, Any], bytes | Iterator[bytes] | LongWrite]
# Begins a call that is answered by `UnaryCall.finish`, perhaps at once. Raises EtcdError to answer with that.
WaitingHandler = Callable[[Core, UnaryCall, Any], Waiting | None]
StreamFactory = Callable[[Core, StreamCall], StreamHandler]

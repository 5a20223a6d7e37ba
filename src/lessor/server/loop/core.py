# SPDX-License-Identifier: Apache-2.0
"""The parts of a running server that every call works on, and the rights of callers.

Laws
- A core has all its parts from the beginning. It decides nothing but the rights of callers.
- It does not know what an RPC does (services/) or how a call came in (transport/). It holds the handlers of services/;
  call.py calls them and has their types.

The life of a call is in call.py.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from google.protobuf.message import Message

from lessor.api.methods import Method
from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.cluster.proof import vouched_name
from lessor.durable.engine import LogEnd
from lessor.server.loop.committer import Committer
from lessor.server.loop.held import Held
from lessor.server.loop.kept_keys import KeptKeys
from lessor.server.loop.long_reply import LongReplies
from lessor.server.loop.pace import Pace
from lessor.server.loop.release import Gate
from lessor.server.loop.reply_memory import ReplyMemory
from lessor.server.loop.token_uses import TokenUses
from lessor.server.loop.turn import Turn
from lessor.server.loop.unfinished import Unfinished
from lessor.server.observe.metrics import Metrics
from lessor.server.observe.pages import Pages
from lessor.server.options import Options
from lessor.state import permissions
from lessor.state.machine import StateMachine
from lessor.state.permissions import Caller, Claimed


class Credentials(Protocol):
    """The part of a call that names its caller."""

    @property
    def token(self) -> bytes | None:
        """The value of the metadata or header field with the caller's token, unchanged."""
        ...

    @property
    def peer_common_name(self) -> str | None:
        """The common name in the connection's client certificate, if that was verified and may name a caller.

        Raises EtcdError when that cannot be said any more.
        """
        ...


class KnowsTokens(Protocol):
    """Finds the caller of a token."""

    def caller(self, token: str, revision: int) -> Caller | None:
        """The user of a token; None for a token that is not valid, or no longer. `revision`: of the auth data now."""
        ...


class WatchesProgress(Protocol):
    """A watch stream, as the timer of progress notifications and the metrics see it."""

    def end_for_want_of_leader(self) -> None:
        """This server has known no leader for long: ends the stream if its caller does not want to wait for one."""
        ...

    def notify_progress(self) -> None: ...

    def behind(self) -> tuple[int, int]:
        """The number of its watchers that lag, and the sum of the revisions that they have not been sent."""
        ...


class FollowerMember(NamedTuple):
    """A server that follows this one."""

    member_id: int
    name: str
    urls: tuple[str, ...]  # for clients
    nonce: bytes  # by which its process names what it passes on
    tell: Callable[[], None]  # says to it how far the log has come
    part: Callable[[LogEnd | None], None]  # says to it that this server has released the log, and ends the stream
    refuse: Callable[[int], None]  # says to it that another process with its id is alive, and ends the stream
    held: Held  # stands for its connection
    challenge: bytes  # that it was given on that


class Elsewhere(Protocol):
    """Answers the calls that another server has to answer, while that one leads."""

    @property
    def leader_id(self) -> int:
        """The member id of the server that leads; 0: none is known."""
        ...

    def serves(self, call: Any, request: Message) -> bool:
        """Whether the request goes there. Then nothing about it is decided here, nor the rights of its caller."""
        ...

    def leave_behind(self, call: Any, request: Message) -> None:
        """Has the leader carry out a txn of a call whose client has gone, if it can be reached now."""
        ...

    def pass_on(self, call: Any, request: Message) -> Any:
        """Hands it over: a WaitingHandler of call.py. The call has ended when this returns None."""
        ...


class Handlers(NamedTuple):
    """The handlers of the served methods, by kind: UnaryHandler, WaitingHandler, StreamFactory of call.py."""

    unary: dict[Method, Callable[..., Any]]
    waiting: dict[Method, Callable[..., Any]]
    streams: dict[Method, Callable[..., Any]]
    # Of the unary and the waiting ones, those that touch neither keys nor leases, and need not wait for a long write.
    apart: frozenset[Method] = frozenset()


class Core:
    """The parts, put together by main.py. Loop thread only."""

    def __init__(
        self,
        options: Options,
        machine: StateMachine,
        gate: Gate,
        turn: Turn,
        committer: Committer,
        metrics: Metrics,
        tokens: KnowsTokens,
        token_uses: TokenUses,
        handlers: Handlers,
    ) -> None:
        self.options = options
        self.machine = machine
        machine.clock = turn.now_s
        self.auth = machine.auth
        self.gate = gate
        self.turn = turn
        self.committer = committer
        self.metrics = metrics
        self.tokens = tokens
        self.token_uses = token_uses
        self.unary_handlers = handlers.unary
        self.waiting_handlers = handlers.waiting
        self.stream_handlers = handlers.streams
        self._apart = handlers.apart
        self._own_handlers = handlers
        self.elsewhere: Elsewhere | None = None
        self.on_shared_log = False  # whether others may commit
        self.log_end: Callable[[], LogEnd | None] = lambda: None  # the engine's
        self.landed: Callable[[int], Sequence[bytes]] = lambda after: ()  # the engine's
        self.hand_over: Callable[[int], Any] = lambda member_id: None  # lets a follower lead
        self.replaced: dict[int, bytes] = {}  # by member id: the process whose place among them another one has taken
        self.when_leading: dict[
            object, Callable[[], None]
        ] = {}  # called, and forgotten, when this server begins to lead
        self.downgrade = (
            ""  # the version to which a downgrade is enabled; each server of a log hears it from the leader
        )
        self.followers: dict[object, FollowerMember] = {}  # while this server leads, by their streams
        turn.on_committed = self._tell_followers
        turn.long_writes.on_busy = self._hold_calls
        self.pages = Pages(turn.read_clock, ui=options.ui)
        self.watch_streams: set[WatchesProgress] = set()
        self.long_replies = LongReplies(ReplyMemory(metrics.shortages))
        self.request_pace = Pace(turn, limits.STREAM_REQUESTS_PER_TURN_MAX)
        self.body_pace = Pace(turn, limits.JSON_VALUES_PER_TURN)
        self.unfinished = Unfinished(options.message_bytes_max, metrics.shortages)
        self.kept_keys = KeptKeys(metrics.shortages)
        self._tasks: set[asyncio.Task[Any]] = set()  # keeps tasks alive: the loop does not

    def _hold_calls(self, hold: bool) -> None:
        """Whether a long write is under way: calls that may touch keys have to wait for it."""
        self.long_replies.paused = hold
        if not hold:
            self.unary_handlers, self.waiting_handlers, *_ = self._own_handlers
            return
        own = self._own_handlers.streams
        self._own_handlers = Handlers(self.unary_handlers, self.waiting_handlers, own, self._apart)
        unary, waiting, apart = self.unary_handlers, self.waiting_handlers, self._apart
        self.unary_handlers = {method: handler for method, handler in unary.items() if method in apart}
        self.waiting_handlers = dict.fromkeys([*unary, *waiting], self.turn.long_writes.queue)
        self.waiting_handlers |= {method: handler for method, handler in waiting.items() if method in apart}

    def _tell_followers(self) -> None:
        for member in list(self.followers.values()):
            member.tell()

    def check_passed_on(self, nonce: bytes, counter: int, epoch: int) -> None:
        """Raises EtcdError for a call that was passed on for another epoch: it may have been carried out elsewhere.

        Also for a named one of a process that has not shown that it follows: its name would stand in the log.
        """
        end = self.log_end()
        if end is None or end.epoch != epoch:
            raise errors.LEADER_CHANGED.error()
        if counter and all(member.nonce != nonce for member in self.followers.values()):
            raise errors.LEADER_CHANGED.error()

    def vouched_name(self, held: object, stream_id: int, path: str, said: bytes) -> str | None:
        """For whom a server that follows vouches, with a call on its connection `held`; None: for nobody.

        `said`: the value of CALLER_HEADER.
        """
        end = self.log_end()
        if end is not None:
            for member in self.followers.values():
                if member.held is held:
                    name = vouched_name(said, end.nonce, member.challenge, stream_id, path)
                    if name is not None:
                        return name
        return None

    def follow(self, elsewhere: Elsewhere, streams: dict[Method, Callable[..., Any]]) -> None:
        """Another server leads: `elsewhere` takes unary calls to it, `streams` are the handlers of streaming calls."""
        self.elsewhere = elsewhere
        self.stream_handlers = streams

    def lead(self) -> None:
        """This server leads from here on: it answers all calls itself."""
        self.elsewhere = None
        self.stream_handlers = self._own_handlers.streams
        waiting, self.when_leading = self.when_leading, {}
        for begin in waiting.values():
            begin()

    def serves(self, method: Method) -> bool:
        """Whether the method has a handler of any kind."""
        return method in self.unary_handlers or method in self.stream_handlers or method in self.waiting_handlers

    def run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Runs a coroutine in a task, and keeps the task until it ends. The coroutine must not raise."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- the rights of callers: the one place where calls meet state/permissions.py ---

    def permit(self, call: Credentials, request: Message) -> None:
        """Raises EtcdError unless the caller may make the request. Call it only while `auth.enabled`: it costs time."""
        self.permit_claimed(self.claimed(call), request)

    def permit_claimed(self, claimed: Claimed, request: Message) -> None:
        """The same for a caller who is known already, from the beginning of a call that has waited."""
        permissions.check(self.machine, claimed, request, self.options.max_request_bytes)

    def claimed(self, call: Credentials) -> Claimed:
        """The caller, by its token or else by the client's certificate. Returns an EtcdError for a bad token."""
        token = call.token
        if token is not None:
            text = token.decode("latin-1").removeprefix("Bearer ")
            return self.tokens.caller(text, self.auth.revision) or errors.INVALID_AUTH_TOKEN.error()
        try:
            name = call.peer_common_name
        except EtcdError as error:
            return error
        return None if name is None else Caller(name, self.auth.revision)

    def refuse_stranger(self, call: Credentials, request: type[Message], size_bytes: int) -> None:
        """Raises the EtcdError of a request that is too large for a caller without a valid token, while auth is on.

        `size_bytes`: of the part of the request that has come, encoded. Cost: beyond STRANGER_BYTES_MAX, one look at
        the token.
        """
        if size_bytes <= limits.STRANGER_BYTES_MAX or not self.auth.enabled or self.elsewhere is not None:
            return
        claimed = self.claimed(call)
        if isinstance(claimed, Caller):
            return
        if permissions.needs_no_caller(request):
            text = f"grpc: received message larger than max ({size_bytes} vs. {limits.STRANGER_BYTES_MAX})"
            raise EtcdError(Code.RESOURCE_EXHAUSTED, text)
        raise errors.USER_EMPTY.error() if claimed is None else claimed

    def refuse_to_keep(self, call: Credentials, request: type[Message]) -> None:
        """Raises the EtcdError of a caller without a valid token, while auth is on, for a request that needs one.

        For a request that has to wait: its caller would get that error behind the wait, too.
        """
        if self.auth.enabled and self.elsewhere is None and not permissions.needs_no_caller(request):
            claimed = self.claimed(call)
            if not isinstance(claimed, Caller):
                raise errors.USER_EMPTY.error() if claimed is None else claimed

    # --- headers ---

    def durable_header_field(self) -> bytes:
        """The header, as field 1, of a reply that does not wait at the gate: it names the durable revision."""
        return self.machine.header_field(self.turn.durable_revision)

    def header(self, revision: int) -> rpc_pb2.ResponseHeader:
        """A response header that names `revision`."""
        header = self.machine.header()
        header.revision = revision
        return header

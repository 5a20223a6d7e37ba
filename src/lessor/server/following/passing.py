# SPDX-License-Identifier: Apache-2.0
"""Calls on their way to the server that leads: unary ones, and streaming ones but for renewals (renewals.py).

Laws
- A write takes effect once. Its record names it, with its reply, so this server finds in the log what became of it. It
  is passed on once an epoch. When a record of a newer epoch has been applied, and the write was in none before, it has
  not taken effect and never will: it is passed on again, or carried out here.
- A call that was under way when the link was lost is passed on again if it changes nothing. Other calls that no record
  names have an unknown outcome, and so say their errors.
- A streaming call ends with its link, with a code on which clients begin it anew. It ends too when more than
  PASSED_STREAM_BYTES_MAX of its requests wait for the leader: nobody may have looked at its rights yet.
"""

from collections.abc import Callable
from typing import Final, Protocol

from google.protobuf.message import Message

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.server.following.link import Ended, Link, LinkCall, Shown
from lessor.server.loop.call import PassedAs, StreamCall, StreamFactory, UnaryCall

# Calls that change nothing: to pass them on once more does no harm.
_REPEATABLE: Final = frozenset(
    BY_PATH[path]
    for path in (
        "/etcdserverpb.KV/Range",
        "/etcdserverpb.Lease/LeaseTimeToLive",
        "/etcdserverpb.Lease/LeaseLeases",
        "/lessorpb.Leases/List",
        "/etcdserverpb.Cluster/MemberList",
        "/etcdserverpb.Auth/Authenticate",
        "/etcdserverpb.Auth/AuthStatus",
        "/etcdserverpb.Auth/UserGet",
        "/etcdserverpb.Auth/UserList",
        "/etcdserverpb.Auth/RoleGet",
        "/etcdserverpb.Auth/RoleList",
        "/v3electionpb.Election/Leader",
        "/v3electionpb.Election/Campaign",  # the contender's key is there, or is not
        "/v3lockpb.Lock/Lock",
    )
)
# Calls whose records name them.
_NAMED: Final = frozenset(
    BY_PATH[path]
    for path in (
        "/etcdserverpb.KV/Put",
        "/etcdserverpb.KV/DeleteRange",
        "/etcdserverpb.KV/Txn",
        "/etcdserverpb.KV/Compact",
        "/etcdserverpb.Lease/LeaseGrant",
        "/etcdserverpb.Lease/LeaseRevoke",
        "/v3lockpb.Lock/Unlock",
        "/v3electionpb.Election/Proclaim",
        "/v3electionpb.Election/Resign",
    )
)
# Named calls whose replies tell by their revision whether this server shows what they did. So it does not matter for a
# grant: nothing is answered here from leases.
_SHOWN_BY_REVISION: Final = _NAMED - {BY_PATH["/etcdserverpb.KV/Compact"]}
_GRANT: Final = BY_PATH["/etcdserverpb.Lease/LeaseGrant"]
_GRANT_PASS_ON_S: Final = 0.02  # the age up to which the answer to a grant is passed on as it is
# These wait for another client: there is no bound to how long that takes.
_OPEN_ENDED: Final = frozenset(BY_PATH[path] for path in ("/v3lockpb.Lock/Lock", "/v3electionpb.Election/Campaign"))
SLOW: Final = "the answers of the leader are not read"
_NO_REVISION: Final = 1 << 63  # is never reached
_TOO_MANY: Final = "too many requests wait for the leader on this stream"


class Passing(Protocol):
    """The part of a Follower that its calls need."""

    nonce: bytes  # names this process to the leader
    now_s: Callable[[], float]
    own: Callable[[bytes], bytes]  # OwnHeaders.own

    def next_counter(self) -> int:
        """Names a write, beside the nonce."""
        ...

    def hold(self, passed: "PassedOn") -> None:
        """The call waits for another link."""
        ...

    def forget(self, passed: "PassedOn") -> None:
        """The call is over."""
        ...

    def has_applied(self, revision: int) -> bool:
        """Whether this server has that revision in memory."""
        ...

    def wait_for_all(self, passed: "PassedOn") -> bool:
        """Has the call go on when this server has all that the leader has. False: the leader cannot be asked."""
        ...

    def renew(self, lease_id: int, of: "PassedOn") -> bool:
        """Renews a lease for the call, which is told as the stream of a client is. False: there is no link."""
        ...

    def open(self, stream: "Passable") -> None:
        """A streaming call begins: on the link, or when there is one."""
        ...

    def close(self, stream: "Passable") -> None:
        """The streaming call is over."""
        ...


class Passable(Protocol):
    """A streaming call that is passed on."""

    call: StreamCall
    since_s: float  # since when it waits for a link, if it does

    @property
    def waits(self) -> bool:
        """Whether it waits for a link to begin on."""
        ...

    def start(self, link: Link) -> None:
        """Begins on the link."""
        ...

    def serve_here(self, own: StreamFactory) -> None:
        """This server leads."""
        ...


def caller_of(call: UnaryCall | StreamCall) -> Shown:
    """How the call's client shows who it is, for the leader."""
    token = call.token
    return Shown(token, call.peer_common_name if token is None else None)


def refusal(call: StreamCall) -> EtcdError | None:
    """Why the call cannot be passed on, if it cannot: another server takes this one for the leader."""
    return errors.LEADER_CHANGED.error() if call.forwarded else None


class PassedOn:
    """A unary call on its way to the leader. Implements call.Waiting, link.Owner and reads.Asking."""

    __slots__ = (
        "_home",
        "_on_link",
        "_outcome",
        "_reply",
        "_sent_s",
        "adrift",
        "call",
        "counter",
        "done",
        "epoch",
        "request",
        "revision",
        "since_s",
        "size_bytes",
    )

    def __init__(self, home: Passing, call: UnaryCall, request: Message) -> None:
        self._home = home
        self._on_link: LinkCall | None = None
        self._reply: bytes | None = None
        self.call = call
        self.request = request
        self.counter = home.next_counter() if call.method in _NAMED else 0
        self.epoch = 0  # for which it was passed on last
        self.adrift = False  # its link is lost: the log says what became of it
        self.done = False  # the log has it, and not its reply
        self.size_bytes = request.ByteSize()
        self.revision = 0  # of the reply that waits, see `_answer_write`
        self._outcome: bytes | None = None  # that reply
        self._sent_s = 0.0
        self.since_s = home.now_s()  # when it came, or was lost

    @property
    def open_ended(self) -> bool:
        return self.call.method in _OPEN_ENDED

    def on_gone(self) -> None:
        self._home.forget(self)
        self._let_go()

    def _let_go(self) -> None:
        on_link, self._on_link = self._on_link, None
        if on_link is not None:
            on_link.cancel() if self.open_ended else on_link.abandon()

    def start(self, link: Link) -> None:
        call = self.call
        self.epoch = link.leader.epoch
        again, self._sent_s = self._sent_s > 0.0, self._home.now_s()
        left_s = None if call.deadline_s is None else max(call.deadline_s - call.core.turn.read_clock(), 0.0)
        self._reply = None
        passed_as = PassedAs(self._home.nonce, self.counter, self.epoch)
        self._on_link = link.start(call.method.path, self, passed_as, caller_of(call), left_s, again=again)
        self._on_link.send([self.request.SerializeToString()], last=True)

    def on_message(self, message: bytes) -> None:
        self._reply = self._home.own(message)

    def on_ended(self, ended: Ended) -> None:
        self._on_link = None
        not_done = errors.LEADER_CHANGED.message if ended.code == Code.UNAVAILABLE else None
        if ended.lost:
            if not ended.reached or self.call.method in _REPEATABLE:
                self._home.hold(self)
            elif self.counter and not self.done:
                self.adrift = True
                self.since_s = self._home.now_s()
            else:
                self._answer(errors.LEADER_LOST.error())
        elif ended.text == not_done:
            self._home.hold(self)
        elif ended.code != Code.OK:
            self._answer(EtcdError(ended.code, ended.text))
        elif self._reply is None:
            self._answer(EtcdError(Code.INTERNAL, "the leader sent no reply"))
        elif self.call.method in _SHOWN_BY_REVISION:
            self._answer_write(self._reply)
        elif self.call.method in _REPEATABLE:
            self._answer(self._reply)
        else:
            self._outcome, self.revision = self._reply, _NO_REVISION
            self.since_s = self._home.now_s()
            if not self._home.wait_for_all(self):
                self.serve()

    # --- of an answer that waits, as reads.Asking ---

    patient = False

    def serve(self) -> None:
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            self._answer(outcome)

    lost = serve

    def _answer_write(self, reply: bytes) -> None:
        """The answer waits until a read here shows the write, as etcd's member shows its own clients their writes."""
        self.revision = self.call.method.response.FromString(reply).header.revision  # type: ignore[attr-defined]
        if self._home.has_applied(self.revision):
            self._answer_young(reply)
        else:
            self._outcome = reply
            self.since_s = self._home.now_s()

    def look(self, now_s: float) -> None:
        """Something was applied, or time has passed."""
        reply = self._outcome
        waited = now_s - self.since_s > limits.READ_OWN_WRITE_S_MAX
        if reply is not None and (waited or self._home.has_applied(self.revision)):
            self._outcome = None
            self._answer_young(reply)

    def _answer_young(self, reply: bytes) -> None:
        """A grant promises a TTL: when its reply is not young any more, the lease is renewed first."""
        if self.call.method is _GRANT and self._home.now_s() - self._sent_s > _GRANT_PASS_ON_S:
            self._reply = reply
            self._home.forget(self)  # it is done, whoever leads next
            if self._home.renew(rpc_pb2.LeaseGrantResponse.FromString(reply).ID, self):
                return
        self._answer(reply)

    # --- of a renewal, as renewals.PassedRenewals ---

    def answered(self, _reply: bytes) -> None:
        assert self._reply is not None
        self._answer(self._reply)

    def refused(self, _error: EtcdError) -> None:
        self.answered(b"")

    def take_back(self, _request: bytes) -> None:
        """The leader is gone: the next one gives each lease its time anew."""
        self.answered(b"")

    def settle(self, reply: bytes) -> None:
        """The log has it. `reply`: b"" if the log does not have that."""
        if not reply:
            self.done = True
            if self.adrift:
                self.give_up()
            return
        self._let_go()
        self._outcome = None
        self._answer_young(self._home.own(reply))

    def hold_again(self) -> None:
        """A newer epoch has begun. Unless the leader has answered, it has not taken effect, and never will in that."""
        if self._outcome is not None:
            self._answer(self._outcome)
            return
        self._let_go()
        if self.done:
            self.give_up()
            return
        self.adrift = False
        self._home.hold(self)

    def give_up(self) -> None:
        """Nobody can say soon what became of it."""
        self._answer(errors.LEADER_LOST.error())

    def _answer(self, outcome: bytes | EtcdError) -> None:
        self._home.forget(self)
        if not self.call.over:
            self.call.finish(outcome)


class PassedStream:
    """A streaming call on its way to the leader. Implements call.StreamHandler and link.Owner."""

    def __init__(self, home: Passing, call: StreamCall) -> None:
        self._home = home
        self.call = call
        call.passes_on = True
        self._refusal = refusal(call)
        self.since_s = home.now_s()
        self._on_link: LinkCall | None = None
        self._early: list[bytes] = []  # requests that came before there was a link
        self._early_bytes = 0
        self._asked = False  # a request has come
        self._ended = False  # no more will come
        if self._refusal is None:
            home.open(self)

    # --- from the call ---

    def on_messages(self, messages: list[bytes]) -> None:
        if self._refusal is not None:
            raise self._refusal
        self._asked = True
        waiting_bytes = self._early_bytes if self._on_link is None else self._on_link.queued_bytes
        if waiting_bytes > limits.PASSED_STREAM_BYTES_MAX:
            self.call.finish(EtcdError(Code.RESOURCE_EXHAUSTED, _TOO_MANY))
        elif self._on_link is None:
            self._early += messages
            self._early_bytes += sum(map(len, messages))
        else:
            self._on_link.send(messages)

    def on_requests_end(self) -> None:
        self._ended = True
        if not (self._asked or self.call.method.client_streaming):
            self.on_messages([b""])  # JSON: a request without a body is an empty one
        if self._on_link is not None:
            self._on_link.send([], last=True)

    def on_over(self) -> None:
        self._home.close(self)
        if self._on_link is not None:
            self._on_link.cancel()

    # --- to and from the link ---

    @property
    def waits(self) -> bool:
        """Whether there was no link to begin on."""
        return self._on_link is None

    def start(self, link: Link) -> None:
        passed_as = PassedAs(self._home.nonce, 0, link.leader.epoch)
        self._on_link = link.start(self.call.method.path, self, passed_as, caller_of(self.call))
        early, self._early = self._early, []
        if early:
            self.on_messages(early)
        if self._ended:
            self.on_requests_end()

    def on_message(self, message: bytes) -> None:
        self.call.send([self._home.own(message)])
        if self.call.backlog_bytes > limits.CONNECTION_SEND_BYTES_MAX:
            self.call.cut_off(EtcdError(Code.RESOURCE_EXHAUSTED, SLOW))

    def on_ended(self, ended: Ended) -> None:
        if ended.lost:
            self.call.finish(errors.NO_LEADER.error())
        else:
            self.call.finish(None if ended.code == Code.OK else EtcdError(ended.code, ended.text))

    def serve_here(self, own: StreamFactory) -> None:
        """This server leads. A call that has begun elsewhere is ended: its client begins it anew."""
        if self.waits:
            self.call.serve_here(own, self._early, ended=self._ended)
        else:
            self.call.finish(errors.NO_LEADER.error())

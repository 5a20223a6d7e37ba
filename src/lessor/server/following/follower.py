# SPDX-License-Identifier: Apache-2.0
"""A server that follows: which calls it answers itself, and what becomes of those that it passes on to the leader.

Laws
- Reads that may be old (`serializable`), watches, digests, snapshots and the status are answered here, from what the
  log has shown. All else is passed on as it came, with its token and its deadline: the leader decides, also on rights.
- While auth is on, a call is answered here only if this server knows its token; otherwise it is passed on too.
- A call that nobody can take waits for a leader, REQUEST_S at most. Then it gets etcd's error, "no leader".
- A write takes effect once. Its record names it, with its reply, so this server finds in the log what became of it.
  It is passed on once an epoch. When a record of a newer epoch has been applied, and the write was in none before, it
  has not taken effect and never will: it is passed on again, or carried out here.
- A call that was under way when the link was lost is passed on again if it changes nothing. Other calls that no record
  names have an unknown outcome, and so say their errors.
- When this server leads, it carries out the calls that wait here.
- An acknowledgement of a renewal is passed on within FORWARD_PASS_ON_S of the renewal, by this server's own clock. When
  it is older, the renewal is sent again. The leader gives FORWARD_ALLOWANCE_S more than that.

Theory of operation. The log's records name who leads, and its URLs. A timer looks at that, connects, and lets go of a
leader that is one no more. A streaming call that is passed on ends with its link, with a code on which clients begin it
anew.

Does not do: following the log (main.py and the engine's thread do).
"""

import asyncio
import logging
import secrets
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf.message import Message

from lessor.api.methods import BY_PATH, Method
from lessor.api.proto import following_pb2
from lessor.base import errors, limits
from lessor.base.clock import BootClock
from lessor.base.errors import Code, EtcdError
from lessor.client._endpoint import parse_endpoint
from lessor.client._tls import tls_context
from lessor.cluster.forwarding import FORWARD_PASS_ON_S
from lessor.cluster.proof import proof
from lessor.durable.engine import FOLLOW_S, Leader
from lessor.durable.shared_record import NONCE_BYTES, Origin
from lessor.server.following.link import Ended, Link, LinkCall, connect
from lessor.server.loop.call import PassedAs, StreamCall, StreamFactory, StreamHandler, UnaryCall
from lessor.server.loop.core import Core
from lessor.server.options import TlsOptions
from lessor.state.permissions import Caller

log = logging.getLogger("lessor")

_HERE: Final = frozenset(
    BY_PATH[path]
    for path in (
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/etcdserverpb.Maintenance/Status",
        "/etcdserverpb.Maintenance/Hash",
        "/etcdserverpb.Maintenance/HashKV",
        "/etcdserverpb.Maintenance/Defragment",
        "/etcdserverpb.Maintenance/Snapshot",
        "/etcdserverpb.Watch/Watch",
        "/lessorpb.Following/Follow",
    )
)
_NEEDS_NO_CALLER: Final = frozenset(BY_PATH[f"/grpc.health.v1.Health/{name}"] for name in ("Check", "Watch"))
_RANGE: Final = BY_PATH["/etcdserverpb.KV/Range"]
_FOLLOW: Final = BY_PATH["/lessorpb.Following/Follow"]
_KEEPALIVE: Final = BY_PATH["/etcdserverpb.Lease/LeaseKeepAlive"]
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
# These wait for another client: there is no bound to how long that takes.
_OPEN_ENDED: Final = frozenset(BY_PATH[path] for path in ("/v3lockpb.Lock/Lock", "/v3electionpb.Election/Campaign"))
_CONNECT_S_MAX: Final = 1.0
_ALONE_S: Final = 0.01  # between two looks of a server that has no link to a leader
_NO_NAME: Final = "etcdserver: this server does not lead, and cannot pass on the name in a certificate; ask the leader"
_SLOW: Final = "the answers of the leader are not read"


class PassedOn:
    """A unary call on its way to the leader. Implements call.Waiting and link.Owner."""

    __slots__ = ("_follower", "_on_link", "_reply", "call", "counter", "epoch", "lost", "request", "since_s")

    def __init__(self, follower: "Follower", call: UnaryCall, request: Message) -> None:
        self._follower = follower
        self._on_link: LinkCall | None = None
        self._reply: bytes | None = None
        self.call = call
        self.request = request
        self.counter = follower.next_counter() if call.method in _NAMED else 0
        self.epoch = 0  # for which it was passed on last
        self.lost = False  # its link is: the log says what became of it
        self.since_s = follower.now_s()  # when it came, or was lost

    @property
    def open_ended(self) -> bool:
        return self.call.method in _OPEN_ENDED

    def on_gone(self) -> None:
        self._follower.forget(self)
        if self._on_link is not None:
            self._on_link.cancel()

    def start(self, link: Link, epoch: int) -> None:
        call = self.call
        self.epoch = epoch
        left_s = None if call.deadline_s is None else max(call.deadline_s - call.core.turn.read_clock(), 0.0)
        self._reply = None
        passed_as = PassedAs(self._follower.nonce, self.counter, epoch)
        self._on_link = link.start(call.method.path, self, passed_as, call.token, left_s)
        self._on_link.send([self.request.SerializeToString()], last=True)

    def on_message(self, message: bytes) -> None:
        self._reply = message

    def on_ended(self, ended: Ended) -> None:
        self._on_link = None
        not_done = errors.LEADER_CHANGED.message if ended.code == Code.UNAVAILABLE else None
        if ended.lost:
            if not ended.reached or self.call.method in _REPEATABLE:
                self._follower.hold(self)
            elif self.counter:
                self.lost = True
                self.since_s = self._follower.now_s()
            else:
                self._answer(errors.LEADER_LOST.error())
        elif ended.text == not_done:
            self._follower.hold(self)
        elif ended.code != Code.OK:
            self._answer(EtcdError(ended.code, ended.text))
        elif self._reply is None:
            self._answer(EtcdError(Code.INTERNAL, "the leader sent no reply"))
        else:
            self._answer(self._reply)

    def settle(self, reply: bytes) -> None:
        """The log has it."""
        if self._on_link is not None:
            self._on_link.cancel()
            self._on_link = None
        self._answer(reply)

    def hold_again(self) -> None:
        """It has not taken effect in the epoch that it was passed on for, and never will."""
        if self._on_link is not None:
            self._on_link.cancel()
            self._on_link = None
        self.lost = False
        self._follower.hold(self)

    def give_up(self) -> None:
        """Nobody can say soon what became of it."""
        self._answer(errors.LEADER_LOST.error())

    def _answer(self, outcome: bytes | EtcdError) -> None:
        self._follower.forget(self)
        if not self.call.over:
            self.call.finish(outcome)


class PassedStream:
    """A streaming call on its way to the leader. Implements call.StreamHandler and link.Owner."""

    def __init__(self, follower: "Follower", call: StreamCall) -> None:
        self._follower = follower
        self.call = call
        call.passes_on = True
        self._refusal: EtcdError | None = None
        if call.forwarded:
            self._refusal = errors.LEADER_CHANGED.error()
        elif follower.is_named_by_certificate(call):
            self._refusal = EtcdError(Code.UNAVAILABLE, _NO_NAME)
        self.since_s = follower.now_s()
        self._on_link: LinkCall | None = None
        self._early: list[bytes] = []  # requests that came before there was a link
        self._ended = False  # no more requests will come
        if self._refusal is None:
            follower.open(self)

    # --- from the call ---

    def on_messages(self, messages: list[bytes]) -> None:
        if self._refusal is not None:
            raise self._refusal
        if self._on_link is None:
            self._early += messages
        else:
            self._on_link.send(messages)

    def on_requests_end(self) -> None:
        self._ended = True
        if self._on_link is not None:
            self._on_link.send([], last=True)

    def on_over(self) -> None:
        self._follower.close(self)
        if self._on_link is not None:
            self._on_link.cancel()

    # --- to and from the link ---

    @property
    def waits(self) -> bool:
        """Whether there was no link to begin on."""
        return self._on_link is None

    def start(self, link: Link, epoch: int) -> None:
        passed_as = PassedAs(self._follower.nonce, 0, epoch)
        self._on_link = link.start(self.call.method.path, self, passed_as, self.call.token)
        early, self._early = self._early, []
        if early:
            self.on_messages(early)
        if self._ended:
            self.on_requests_end()

    def on_message(self, message: bytes) -> None:
        self.call.send([message])
        if self.call.backlog_bytes > limits.CONNECTION_SEND_BYTES_MAX:
            self.call.cut_off(EtcdError(Code.RESOURCE_EXHAUSTED, _SLOW))

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


class PassedRenewals(PassedStream):
    """A keepalive stream. Each request has one reply, in order, so they are matched by their places.

    It outlives its link: renewals without an answer are sent again to the next leader, or carried out here.
    """

    def __init__(self, follower: "Follower", call: StreamCall) -> None:
        self._under_way: deque[tuple[bytes, float]] = deque()  # requests, with the instants at which they were sent
        self._outdated = 0  # replies still to come that count no more
        super().__init__(follower, call)

    def on_messages(self, messages: list[bytes]) -> None:
        super().on_messages(messages)
        if not self.waits:
            now_s = self._follower.now_s()
            self._under_way.extend((message, now_s) for message in messages)

    def on_requests_end(self) -> None:
        self._ended = True
        if not self._under_way:  # otherwise a renewal may have to be sent again
            super().on_requests_end()

    def on_over(self) -> None:
        self._follower.close(self)
        if self._on_link is not None:
            self._on_link.finish()

    def on_message(self, message: bytes) -> None:
        if self._outdated:
            self._outdated -= 1
            return
        if not self._under_way:
            return
        if self._follower.now_s() - self._under_way[0][1] > FORWARD_PASS_ON_S:
            # This one and all behind it are sent again, so that their order stays.
            again = [request for request, _ in self._under_way]
            self._outdated = len(again) - 1
            self._under_way.clear()
            self.on_messages(again)
            return
        self._under_way.popleft()
        super().on_message(message)
        if self._ended:
            self.on_requests_end()

    def on_ended(self, ended: Ended) -> None:
        if ended.code != Code.UNAVAILABLE:
            super().on_ended(ended)
            return
        self._leave_link()

    def serve_here(self, own: StreamFactory) -> None:
        self._leave_link()
        super().serve_here(own)

    def _leave_link(self) -> None:
        """The renewals without an answer wait for the next leader."""
        self._on_link = None
        self._outdated = 0
        self.since_s = self._follower.now_s()
        self._early = [request for request, _ in self._under_way] + self._early
        self._under_way.clear()


class Follower:
    """Stands in for the leader. Implements core.Elsewhere."""

    def __init__(
        self, core: Core, leader: Callable[[], Leader | None], told: Callable[[int, int], None], tls: TlsOptions
    ) -> None:
        """`leader` says who leads now, as far as is known. `told` gets the epoch and the number of a record that the
        leader says to be in the log for good. `tls`: this server's own. A leader with TLS must have a
        certificate of its --trusted-ca-file, or of one that the machine trusts, and is shown this server's.
        """
        self.core = core
        self.now_s: Callable[[], float] = BootClock().now_s
        self._leader = leader
        self._told = told
        self._tls_options = tls
        self._context: ssl.SSLContext | None = None
        self._link: Link | None = None
        self._linked: Leader | None = None  # whose link that is
        self._connecting: asyncio.Task[None] | None = None
        self._introduced = False  # to the leader that the link is to
        self._attempt = 0
        self._said = ""  # why there is no link, as the log has it
        self.nonce = secrets.token_bytes(NONCE_BYTES)
        self._counter = 0
        self._epoch = 0  # of the newest record that was applied
        self._held: dict[PassedOn, None] = {}  # in the order in which they came
        self._named: dict[int, PassedOn] = {}  # those that were passed on with a counter, and have no answer yet
        self._streams: dict[PassedStream, None] = {}
        self._own_streams = core.stream_handlers
        self._timer: asyncio.TimerHandle | None = None
        core.follow(self, {method: self._factory(method, own) for method, own in self._own_streams.items()})
        core.metrics.reaches_leader = lambda: self._ready is not None
        self._look()

    def _factory(self, method: Method, own: StreamFactory) -> StreamFactory:
        passed = PassedRenewals if method is _KEEPALIVE else PassedStream

        def made(core: Core, call: StreamCall) -> StreamHandler:
            return own(core, call) if self._is_here(method) and self._knows(call) else passed(self, call)

        return made

    # --- core.Elsewhere ---

    @property
    def leader_id(self) -> int:
        leader = self._leader()
        return 0 if leader is None else leader.member_id

    def serves(self, call: UnaryCall, request: Any) -> bool:
        return not (
            (self._is_here(call.method) or (call.method is _RANGE and request.serializable)) and self._knows(call)
        )

    def pass_on(self, call: UnaryCall, request: Message) -> PassedOn:
        if self.is_named_by_certificate(call):
            raise EtcdError(Code.UNAVAILABLE, _NO_NAME)
        if call.passed_as is not None:  # another server takes this one for the leader
            raise errors.LEADER_CHANGED.error()
        passed = PassedOn(self, call, request)
        link = self._ready
        if link is None:
            self._held[passed] = None
        else:
            self._start(passed, link)
        return passed

    def _start(self, passed: PassedOn, link: Link) -> None:
        assert self._linked is not None
        if passed.counter:
            self._named[passed.counter] = passed
        passed.start(link, self._linked.epoch)

    def _is_here(self, method: Method) -> bool:
        return method in _HERE

    def _knows(self, call: Any) -> bool:
        """Whether the call's rights can be judged here."""
        return (
            not self.core.auth.enabled or call.method in _NEEDS_NO_CALLER or isinstance(self.core.claimed(call), Caller)
        )

    def is_named_by_certificate(self, call: Any) -> bool:
        """Whether only the certificate of its connection says who calls: the leader does not see that."""
        return self.core.auth.enabled and call.token is None and call.peer_common_name is not None

    # --- calls ---

    @property
    def _ready(self) -> Link | None:
        link = self._link
        return link if link is not None and link.ready else None

    def next_counter(self) -> int:
        self._counter += 1
        return self._counter

    def hold(self, passed: PassedOn) -> None:
        """The call waits for another link."""
        passed.since_s = self.now_s()
        self._named.pop(passed.counter, None)
        self._held[passed] = None

    def forget(self, passed: PassedOn) -> None:
        self._held.pop(passed, None)
        self._named.pop(passed.counter, None)

    def applied(self, epoch: int, origins: Sequence[Origin]) -> None:
        """A record of `epoch` was applied, in which these requests have taken effect."""
        for origin in origins:
            passed = self._named.get(origin.counter) if origin.nonce == self.nonce else None
            if passed is not None:
                passed.settle(origin.reply)
        if epoch > self._epoch:
            self._epoch = epoch
            for passed in [passed for passed in self._named.values() if passed.epoch < epoch]:
                passed.hold_again()

    def open(self, stream: PassedStream) -> None:
        self._streams[stream] = None
        link = self._ready
        if link is not None and self._linked is not None:
            stream.start(link, self._linked.epoch)

    def close(self, stream: PassedStream) -> None:
        self._streams.pop(stream, None)

    def lead(self) -> None:
        """This server leads: what waits here is carried out here."""
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        self.core.lead()
        self.core.metrics.reaches_leader = None
        link, self._link = self._link, None
        if link is not None:
            link.close()
        streams, self._streams = list(self._streams), {}
        for stream in streams:
            stream.serve_here(self._own_streams[stream.call.method])
        for passed in list(self._named.values()):
            passed.hold_again()
        held, self._held = list(self._held), {}
        for passed in held:
            if not passed.call.over:
                passed.call.wait_no_more()
                passed.call.serve(passed.request)

    def stop(self) -> None:
        """The server stops: nothing is passed on any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._link is not None:
            self._link.close()

    # --- the link ---

    def _look(self) -> None:
        """Now and then: whom to be linked with, and what has waited for too long."""
        leader = self._leader()
        link = self._link
        if link is not None and (link.lost or leader is None or leader.nonce != self._nonce_linked):
            self._link = None
            link.close()
        if self._link is None and self._connecting is None and leader is not None and leader.urls:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(leader))
        ready = self._ready
        if ready is not None:
            self._start_all(ready)
        else:
            self._told(0, 0)  # nobody says how far the log is, or that it was released
        self._timer = asyncio.get_running_loop().call_later(FOLLOW_S if ready is not None else _ALONE_S, self._look)
        self._refuse_old(self.now_s() - limits.NO_LEADER_S_MAX)

    @property
    def _nonce_linked(self) -> bytes:
        return b"" if self._linked is None else self._linked.nonce

    def _introduce(self, link: Link, leader: Leader) -> None:
        """Says to the leader who follows it, so that it tells how far the log has come."""
        self._introduced = True
        options = self.core.options
        member_id, name = self.core.machine.identity.member_id, options.name
        urls = options.advertise_client_urls
        asked = following_pb2.FollowRequest(
            member_id=member_id, name=name, client_urls=urls, proof=proof(leader.nonce, member_id, name, urls)
        )
        passed_as = PassedAs(self.nonce, 0, leader.epoch)
        link.start(_FOLLOW.path, self, passed_as).send([asked.SerializeToString()], last=True)

    def on_message(self, message: bytes) -> None:
        """The leader says how far the log has come."""
        told = following_pb2.FollowResponse.FromString(message)
        self._told(told.epoch, told.record)

    def on_ended(self, ended: Ended) -> None:
        """The leader says no more about that: the log is looked at now and then."""
        if not ended.lost:
            log.warning("the leader does not tell how far it is", extra={"reason": ended.text})

    def _start_all(self, link: Link) -> None:
        if not self._introduced and self._linked is not None:
            self._introduce(link, self._linked)
        if self._linked is None:
            return
        for stream in [stream for stream in self._streams if stream.waits]:
            if link.ready:
                stream.start(link, self._linked.epoch)
        for passed in list(self._held):
            if link.ready:
                del self._held[passed]
                self._start(passed, link)

    def _refuse_old(self, before_s: float) -> None:
        for passed in [passed for passed in self._held if passed.since_s < before_s]:
            del self._held[passed]
            passed.call.finish(errors.NO_LEADER.error())
        for passed in [passed for passed in self._named.values() if passed.lost and passed.since_s < before_s]:
            passed.give_up()
        for stream in [stream for stream in self._streams if stream.waits and stream.since_s < before_s]:
            stream.call.finish(errors.NO_LEADER.error())

    async def _connect(self, leader: Leader) -> None:
        url = leader.urls[self._attempt % len(leader.urls)]
        self._attempt += 1
        try:
            endpoint = parse_endpoint(url)
            link = await connect(endpoint, self._tls() if endpoint.tls else None, _CONNECT_S_MAX)
        except (OSError, TimeoutError, ValueError) as error:
            if self._said != url:
                self._said = url
                log.warning("cannot reach the leader", extra={"url": url, "reason": str(error) or type(error).__name__})
        else:
            self._said = ""
            self._link, self._linked = link, leader
            self._introduced = False
            log.info("calls are passed on to the leader", extra={"url": url})
        finally:
            self._connecting = None

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            tls = self._tls_options
            context = tls_context(ca_file=tls.trusted_ca_file or None)
            if tls.asks_clients and tls.cert_file:
                context.load_cert_chain(tls.cert_file, tls.key_file)
            context.set_alpn_protocols(["h2"])
            self._context = context
        return self._context

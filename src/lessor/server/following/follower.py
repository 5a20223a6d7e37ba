# SPDX-License-Identifier: Apache-2.0
"""A server that follows: which calls it answers itself, and what becomes of those that it passes on to the leader.

Laws
- Reads that may be old (`serializable`), watches, digests, snapshots and the status are answered here, from what the
  log has shown. So are other reads of keys, and observers of elections, once the leader has said how far this server
  has to be (reads.py, followed_streams.py).
- All else is passed on as it came, with its token and its deadline: the leader decides, also on rights.
- While auth is on, a call is answered here only if this server knows its token or its certificate; otherwise it is
  passed on too. With the name in a certificate goes this server's word for it.
- A client that requires a leader does not wait for one: its calls are refused once this server has had none for
  claim_s, and its streams end after three times that.
- A call that nobody can take waits for a leader, REQUEST_S at most. Then it gets etcd's error, "no leader".
- When this server leads, it carries out the calls that wait here.

Theory of operation. The log's records name who leads, and its URLs. A timer looks at that, connects, and lets go of a
leader that is one no more. What becomes of each call: passing.py, renewals.py.

Does not do: following the log (main.py and the engine's thread do).
"""

import asyncio
import logging
import secrets
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf.message import Message

from lessor.api.methods import BY_PATH, Method
from lessor.api.proto import following_pb2, rpc_pb2
from lessor.base import errors, limits
from lessor.base.clock import BootClock
from lessor.base.errors import Code, EtcdError
from lessor.client._endpoint import parse_endpoint
from lessor.client._tls import tls_context
from lessor.cluster.proof import is_answer, proof, reader_answer
from lessor.durable.engine import FOLLOW_S, Leader
from lessor.durable.shared_record import NONCE_BYTES, Origin, with_nonce
from lessor.server.following.followed_streams import Followed, FollowedObserve, FollowedRange
from lessor.server.following.lag import Lag
from lessor.server.following.link import Ended, Link, LinkCall, Shown, connect
from lessor.server.following.own_headers import OwnHeaders
from lessor.server.following.passing import Passable, PassedOn, PassedStream, caller_of
from lessor.server.following.reads import Asking, Read, Reads
from lessor.server.following.renewals import KEEPALIVE, Line, PassedRenewals
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
_TXN: Final = BY_PATH["/etcdserverpb.KV/Txn"]
_RANGE: Final = BY_PATH["/etcdserverpb.KV/Range"]
_FOLLOWED: Final[dict[Method, type[Followed]]] = {
    BY_PATH["/etcdserverpb.KV/RangeStream"]: FollowedRange,
    BY_PATH["/v3electionpb.Election/Observe"]: FollowedObserve,
}
_FOLLOW: Final = BY_PATH["/lessorpb.Following/Follow"]
_CONNECT_S_MAX: Final = 1.0
_RETRY_S_MAX: Final = 1.0  # between two tries to reach a leader that cannot be reached
_TOO_MUCH: Final = "too many requests wait for the leader"
_ALONE_S: Final = 0.01  # between two looks of a server that has no link to a leader


def _tenure(leader: Leader) -> tuple[bytes, int]:
    return leader.nonce, leader.epoch


class _Words:
    """What the other end of a link says of the log. Implements link.Owner."""

    def __init__(self, follower: "Follower", link: Link) -> None:
        self._follower = follower
        self._link = link

    def on_message(self, message: bytes) -> None:
        self._follower.hear(self._link, message)

    def on_ended(self, ended: Ended) -> None:
        self._follower.hear_end(self._link, ended)


class _Nobody:
    """Does not wait for an answer. Implements link.Owner."""

    def on_message(self, message: bytes) -> None: ...

    def on_ended(self, ended: Ended) -> None: ...


class Follower:
    """Stands in for the leader. Implements core.Elsewhere."""

    def __init__(
        self,
        core: Core,
        leader: Callable[[], Leader | None],
        told: Callable[[int, int, Sequence[bytes]], None],
        hears_log: Callable[[], bool],
        claim_s: float,
        tls: TlsOptions,
        on_twin: Callable[[str], None],
    ) -> None:
        """`leader` says who leads now, as far as is known.

        `told` gets the epoch and the number of a record that the leader says to be in the log for good, and the records
        that the leader shows. `hears_log`: whether the log answers. `claim_s`: for how long a leader may be silent
        before another server leads. `tls`: this server's own. A leader with TLS must have a certificate of its
        --trusted-ca-file, or of one that the machine trusts, and is shown this server's. `on_twin`: called when the
        leader says that another process has this server's member id.
        """
        self.core = core
        self.now_s: Callable[[], float] = BootClock().now_s
        self.own: Callable[[bytes], bytes] = OwnHeaders(core.machine.identity.member_id).own
        self._leader = leader
        self._told = told
        self._hears_log = hears_log
        self._claim_s = claim_s
        self._led_s = self._ended_s = self.now_s()  # when the leader was heard last; when streams were ended last
        self._uses_told = 0  # serial number of the newest use of a token that the leader was told of
        self._tls_options = tls
        self._on_twin = on_twin
        self._context: ssl.SSLContext | None = None
        self._link: Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._challenge = b""  # that the other end of the link has to answer
        self._words: LinkCall | None = None  # the call on which it speaks
        self._attempt = 0
        self._url = ""  # that is tried, or linked with
        self._fails = 0  # in a row
        self._tried = (b"", 0)  # the tenure of the leader that is tried
        self._over = (b"", 0)  # a tenure of which the leader has said that it is over
        self._try_s = 0.0  # when to try again
        self._said: set[str] = set()  # URLs of which the log says that they lead nowhere
        self.nonce = secrets.token_bytes(NONCE_BYTES)
        self._counter = 0
        self._epoch = 0  # of the newest record that was applied
        self._leads = False
        self._kept_bytes = 0  # of requests without an answer
        self._held: dict[PassedOn, None] = {}  # in the order in which they came
        self._named: dict[int, PassedOn] = {}  # those that were passed on with a counter, and have no answer yet
        self._reads = Reads(self, lambda: core.gate.durable)
        self._lag = Lag()
        self._streams: dict[Passable, None] = {}
        self._begun: dict[StreamCall, None] = {}  # answered here, which require a leader
        self._lines: dict[Shown, Line] = {}  # of this link
        self._own_streams = core.stream_handlers
        self._timer: asyncio.TimerHandle | None = None
        core.follow(self, {method: self._factory(method, own) for method, own in self._own_streams.items()})
        core.metrics.reaches_leader = self._hears_leader
        core.metrics.lag_s = self._lag_s
        self._look()

    def _factory(self, method: Method, own: StreamFactory) -> StreamFactory:
        def made(core: Core, call: StreamCall) -> StreamHandler:
            followed = _FOLLOWED.get(method)
            if followed is not None:
                return followed(self, call, own)
            if method in _HERE and self.knows(call):
                return own(core, call)
            return PassedRenewals(self, call) if method is KEEPALIVE else PassedStream(self, call)

        return made

    # --- core.Elsewhere ---

    @property
    def leader_id(self) -> int:
        leader = self._leader()
        return 0 if leader is None else leader.member_id

    def _hears_leader(self) -> bool:
        """Whether this server hears of the log, and of its leader."""
        link = self._link
        return link is not None and link.verified and not link.lost and self._hears_log()

    def _lag_s(self) -> float:
        return self._lag.seconds(self.core.gate.durable, self.now_s())

    def serves(self, call: UnaryCall, request: Any) -> bool:
        self.refuse_without_leader(call)
        is_here = call.method in _HERE or (call.method is _RANGE and request.serializable)
        return not (is_here and self.knows(call))

    def refuse_without_leader(self, call: UnaryCall | StreamCall) -> None:
        """Raises NO_LEADER for a call that does not want to wait for a leader, if there has been none for long."""
        if call.requires_leader and self.now_s() - self._led_s > self._claim_s:
            raise errors.NO_LEADER.error()

    @property
    def _can_ask(self) -> bool:
        return self._ready is not None and self._words is not None

    def pass_on(self, call: UnaryCall, request: Message) -> PassedOn | Read:
        if self._can_ask and isinstance(request, rpc_pb2.RangeRequest) and self.knows(call):
            self.keep(request.ByteSize())
            return self._reads.add(call, request)
        return self._pass_on(call, request)

    def _pass_on(self, call: UnaryCall, request: Message) -> PassedOn:
        if call.passed_as is not None:
            raise errors.LEADER_CHANGED.error()  # another server takes this one for the leader
        self.core.metrics.passed_on += 1
        passed = PassedOn(self, call, request)
        self.keep(passed.size_bytes)
        link = self._ready
        if link is None:
            self._held[passed] = None
        else:
            self._start(passed, link)
        return passed

    def leave_behind(self, call: UnaryCall, request: Message) -> None:
        link = self._ready
        if link is not None:
            passed_as = PassedAs(self.nonce, 0, link.leader.epoch)
            left = link.start(_TXN.path, _Nobody(), passed_as, caller_of(call))
            left.send([request.SerializeToString()], last=True)

    # --- reads.Home ---

    def ask_how_far(self, number: int) -> None:
        if self._words is not None:
            self._words.send([following_pb2.FollowRequest(question=number).SerializeToString()])

    def read_at_leader(self, read: Read) -> None:
        try:
            read.call.wait(self._pass_on(read.call, read.request))
        except EtcdError as error:
            read.call.finish(error)

    def forget_read(self, read: Asking) -> None:
        self._kept_bytes -= read.size_bytes
        read.size_bytes = 0

    # --- followed_streams.Home ---

    def ask_for(self, stream: Followed) -> None:
        self._streams[stream] = None
        if self._ready is not None:
            stream.start(self._ready)

    def ask_again(self, stream: Followed) -> bool:
        if self._words is None:
            return False
        self._reads.add_asking(stream)
        return True

    def forget_followed(self, stream: Followed) -> None:
        self._streams.pop(stream, None)
        self._reads.drop(stream)
        self.forget_read(stream)

    def has_begun(self, call: StreamCall) -> None:
        if call.requires_leader:
            self._begun = {each: None for each in self._begun if not each.over} | {call: None}

    def keep(self, size_bytes: int) -> None:
        """Counts a request that waits here. Raises EtcdError when that is too much."""
        if self._kept_bytes + size_bytes > limits.PASSED_BYTES_MAX:
            raise EtcdError(Code.RESOURCE_EXHAUSTED, _TOO_MUCH)
        self._kept_bytes += size_bytes

    def _start(self, passed: PassedOn, link: Link) -> None:
        if passed.counter:
            self._named[passed.counter] = passed
        passed.start(link)

    def knows(self, call: Any) -> bool:
        """Whether the call's rights can be judged here."""
        return (
            not self.core.auth.enabled or call.method in _NEEDS_NO_CALLER or isinstance(self.core.claimed(call), Caller)
        )

    # --- calls ---

    @property
    def _ready(self) -> Link | None:
        link = self._link
        return link if link is not None and link.ready and self._words is not None else None

    def next_counter(self) -> int:
        self._counter += 1
        return self._counter

    def hold(self, passed: PassedOn) -> None:
        """The call waits for another link."""
        passed.since_s = self.now_s()
        self._named.pop(passed.counter, None)
        if self._leads:
            self._serve(passed)
        else:
            self._held[passed] = None

    def _serve(self, passed: PassedOn) -> None:
        """This server leads, and carries the call out."""
        if not passed.call.over:
            passed.call.wait_no_more()
            passed.call.serve(passed.request)

    def forget(self, passed: PassedOn) -> None:
        self._held.pop(passed, None)
        self._named.pop(passed.counter, None)
        self._kept_bytes -= passed.size_bytes
        passed.size_bytes = 0

    def has_applied(self, revision: int) -> bool:
        return self.core.machine.revision >= revision

    def wait_for_all(self, passed: PassedOn) -> bool:
        if self._can_ask:
            self._reads.add_asking(passed)
            return True
        return False

    def renew(self, lease_id: int, of: PassedOn) -> bool:
        link = self._ready
        if link is None:
            return False
        request = rpc_pb2.LeaseKeepAliveRequest(ID=lease_id)
        self.line(caller_of(of.call), link).send([request.SerializeToString()], of)
        return True

    def applied(self, epoch: int, origins: Sequence[Origin]) -> None:
        """A record of `epoch` was applied, in which these requests have taken effect."""
        for origin in origins:
            passed = self._named.get(origin.counter) if origin.nonce == self.nonce else None
            if passed is not None:
                passed.settle(origin.reply)
        now_s = self.now_s()
        for passed in list(self._named.values()):
            passed.look(now_s)
        self._reads.look()
        if epoch > self._epoch:
            self._epoch = epoch
            for passed in [passed for passed in self._named.values() if passed.epoch < epoch]:
                passed.hold_again()

    def open(self, stream: Passable) -> None:
        self.core.metrics.passed_on += 1
        self._streams[stream] = None
        link = self._ready
        if link is not None:
            stream.start(link)

    def close(self, stream: Passable) -> None:
        self._streams.pop(stream, None)

    def line(self, caller: Shown, link: Link) -> Line:
        found = self._lines.get(caller)
        if found is None:
            found = self._lines[caller] = Line(self, caller, link, lambda: self._end_line(caller))
        return found

    def _end_line(self, caller: Shown) -> None:
        line = self._lines.pop(caller, None)
        for stream in self._streams:
            if isinstance(stream, PassedRenewals) and stream.line is line:
                stream.leave_line()

    def lead(self) -> None:
        """This server leads: what waits here is carried out here."""
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        self._leads = True
        self.core.lead()
        self.core.metrics.reaches_leader = self.core.metrics.lag_s = None
        link, self._link = self._link, None
        if link is not None:
            link.close()
        for line in list(self._lines.values()):
            line.end()
        streams, self._streams = list(self._streams), {}
        for stream in streams:
            stream.serve_here(self._own_streams[stream.call.method])
        self._reads.serve_all()
        held, self._held = list(self._held), {}
        for passed in list(self._named.values()):
            passed.hold_again()
        for passed in held:
            self._serve(passed)

    def stop(self) -> None:
        """The server stops: nothing is passed on any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._link is not None:
            self._link.close()

    # --- the link ---

    def on_looked(self) -> None:
        """The log was looked at: perhaps it names a leader now."""
        leader = self._leader()
        if leader is not None and leader.urls and _tenure(leader) != self._tried and self._timer is not None:
            self._timer.cancel()
            self._look()

    def _look(self) -> None:
        """Now and then, and when the log names another leader: whom to be linked with, and what has waited too long."""
        leader, link, now_s = self._leader(), self._link, self.now_s()
        if leader is not None and _tenure(leader) == self._over:
            leader = None  # the log will say so
        if link is not None:
            other = leader is not None and _tenure(leader) != _tenure(link.leader)
            mute = self._words is None and link.ready
            if link.lost or other or mute or link.h2.spent or link.silent_s > limits.LINK_SILENT_S_MAX:
                self._let_go()
        if leader is not None and _tenure(leader) != self._tried:
            self._tried, self._fails, self._try_s, self._said = _tenure(leader), 0, 0.0, set()
        may_try = self._link is None and self._connecting is None and now_s >= self._try_s
        if may_try and leader is not None and leader.urls:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(leader))
        ready = self._ready
        if self._hears_leader():
            self._led_s = now_s
        elif now_s - self._led_s > 3 * self._claim_s and now_s - self._ended_s > self._claim_s:
            self._ended_s = now_s
            self._end_those_that_require_leader()
        if ready is not None:
            self._start_all(ready)
            self._tell_uses()
        else:
            self._told(0, 0, ())  # nobody says how far the log is, or that it was released
        self._timer = asyncio.get_running_loop().call_later(FOLLOW_S if ready is not None else _ALONE_S, self._look)
        self._lag_s()  # so that it remembers a batch that is not here
        for passed in list(self._named.values()):
            passed.look(now_s)
        self._reads.pass_on_late()
        self._refuse_old(now_s - limits.NO_LEADER_S_MAX)

    def _end_those_that_require_leader(self) -> None:
        for watches in list(self.core.watch_streams):
            watches.end_for_want_of_leader()
        begun, self._begun = self._begun, {}
        for call in [*begun, *(stream.call for stream in self._streams if stream.call.requires_leader)]:
            call.finish(errors.NO_LEADER.error())

    def _tell_uses(self) -> None:
        self._uses_told, uses = self.core.token_uses.told(self._uses_told, here=True)
        if uses and self._words is not None:
            self._words.send([following_pb2.FollowRequest(uses=uses).SerializeToString()])

    def _introduce(self, link: Link) -> None:
        """Says to the leader who follows it, so that it shows who it is, and tells how far the log has come."""
        leader, options = link.leader, self.core.options
        member_id, name = self.core.machine.identity.member_id, options.name
        urls = options.advertise_client_urls
        self._challenge = secrets.token_bytes(NONCE_BYTES)
        asked = following_pb2.FollowRequest(
            member_id=member_id,
            name=name,
            client_urls=urls,
            proof=proof(leader.nonce, self.nonce, member_id, name, urls),
            nonce=self.nonce,
            challenge=self._challenge,
        )
        passed_as = PassedAs(self.nonce, 0, leader.epoch)
        self._words = link.start(_FOLLOW.path, _Words(self, link), passed_as)
        self._words.send([asked.SerializeToString()])

    def hear(self, link: Link, message: bytes) -> None:
        """The other end says that it leads, and how far the log has come."""
        if link is not self._link:
            return
        told = following_pb2.FollowResponse.FromString(message)
        if not link.verified:
            nonce = link.leader.nonce
            if not is_answer(told.proof, nonce, self._challenge) or self._words is None:
                self._fail("it is not the leader that the log names")
                return
            link.verified, link.challenge = True, told.challenge
            self._uses_told = 0
            answer = following_pb2.FollowRequest(answer=reader_answer(nonce, told.challenge))
            self._words.send([answer.SerializeToString()])
            self._fails, self._said = 0, set()
            log.info("calls are passed on to the leader", extra={"url": self._url})
            self._start_all(link)
        self.core.token_uses.heard(told.uses)
        if told.HasField("downgrade"):
            self.core.downgrade = told.downgrade
        self._told(told.epoch, told.record, [with_nonce(record, link.leader.nonce) for record in told.records])
        self._lag.named(told.batch, self.now_s())
        if told.question:
            self._reads.answered(told.question, told.batch)

    def hear_end(self, link: Link, ended: Ended) -> None:
        """The other end does not lead, or not any more."""
        if link is not self._link:
            return
        if not link.verified:
            self._fail(ended.text)
        elif ended.code == Code.ALREADY_EXISTS:
            self._on_twin(ended.text)
        else:  # if it is leaving, it answers what is under way; otherwise `_look` lets go of the link
            if ended.text == errors.LEADER_CHANGED.message:
                self._over = _tenure(link.leader)
            self._words = None
            self._reads.lose()

    def _fail(self, reason: str) -> None:
        """There is no way to the leader at this URL. The next one is tried, and all more seldom."""
        self._fails += 1
        self._try_s = self.now_s() + min(_RETRY_S_MAX, FOLLOW_S * 2 ** min(self._fails, 10))
        if self._url not in self._said:
            self._said.add(self._url)
            log.warning("cannot reach the leader", extra={"url": self._url, "reason": reason})
        self._let_go()

    def _let_go(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()
        self._words = None
        self._reads.lose()

    def _start_all(self, link: Link) -> None:
        for stream in [stream for stream in self._streams if stream.waits]:
            if link.ready:
                stream.start(link)
        for passed in list(self._held):
            if link.ready:
                del self._held[passed]
                self._start(passed, link)

    def _refuse_old(self, before_s: float) -> None:
        for passed in [passed for passed in self._held if passed.since_s < before_s]:
            self.forget(passed)
            passed.call.finish(errors.NO_LEADER.error())
        for passed in [passed for passed in self._named.values() if passed.adrift and passed.since_s < before_s]:
            passed.give_up()
        for stream in [stream for stream in self._streams if stream.since_s < before_s]:
            if stream.waits or isinstance(stream, Followed):
                stream.call.finish(errors.NO_LEADER.error())

    async def _connect(self, leader: Leader) -> None:
        self._url = url = leader.urls[self._attempt % len(leader.urls)]
        self._attempt += 1
        try:
            endpoint = parse_endpoint(url)
            link = await connect(endpoint, leader, self._tls() if endpoint.tls else None, _CONNECT_S_MAX)
        except TimeoutError:
            self._fail(f"no connection within {_CONNECT_S_MAX:g} s")
        except (OSError, ValueError) as error:
            self._fail(str(error) or "the connection was closed")
        else:
            self._link = link
            self._introduce(link)
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

# SPDX-License-Identifier: Apache-2.0
"""v3electionpb.Election: the oldest key below `name` and a slash leads, and its value is the proclaimed one.

Laws
- Candidates lead in the order in which they came. A candidate's key is attached to its lease.
- If a candidate's key goes while the candidate waits, the call ends with "not leader". (etcd 3.6 lets it wait, and then
  answers that it has won: two leaders.)
- Proclaim and Resign concern the key that was created at the leader key's `rev`, never a later one of the same name.
- An observer is sent the present leader, then each new leader and each new value, in order. An observer that does not
  read costs bounded memory: changes for which it has no room are skipped. When it has read, it is sent the leader of
  that moment.

State changes are txns on the state machine, as any client could send them. Calls wait in waiting_lines.py.
"""

from functools import partial

from google.protobuf.message import DecodeError

from lessor.api.proto import election_pb2, rpc_pb2
from lessor.base import errors, limits
from lessor.base.contenders import key_of, prefix_of
from lessor.base.errors import Code, ErrorText, EtcdError
from lessor.server.loop.bugs import as_answer
from lessor.server.loop.call import StreamCall, UnaryCall, Waiting
from lessor.server.loop.core import Core
from lessor.server.services.waiting_lines import WaitingLines, created_at
from lessor.state.mvcc import Event
from lessor.state.permissions import Caller

NOT_LEADER = ErrorText(Code.UNKNOWN, "election: not leader")
NO_LEADER = ErrorText(Code.UNKNOWN, "election: no leader")
LEADER_MISSING = ErrorText(Code.UNKNOWN, '"leader" field must be provided')


class Elections:
    """The calls."""

    def __init__(self, lines: WaitingLines) -> None:
        self._lines = lines

    def campaign(self, _core: Core, call: UnaryCall, request: election_pb2.CampaignRequest) -> Waiting | None:
        """Campaign: answers with the leader key when the candidate with this lease leads."""
        lines = self._lines
        name, value = request.name, request.value
        lease_id = lines.session_lease(request.lease)
        key = key_of(name, lease_id)
        get = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key))
        txn = lines.apply(
            rpc_pb2.TxnRequest(compare=[created_at(key, 0)], success=[_put(key, value, lease_id)], failure=[get])
        )
        create_revision = txn.header.revision
        if not txn.succeeded:
            candidate = txn.responses[0].response_range.kvs[0]
            create_revision = candidate.create_revision
            if candidate.value != value and not call.passed_again:  # it has proclaimed its value before
                try:
                    _proclaim(lines, key, create_revision, value, lease_id)
                except EtcdError:
                    lines.delete_if_created_at(key, create_revision)
                    raise
        leader = election_pb2.LeaderKey(name=name, key=key, rev=create_revision, lease=lease_id)
        # The header is that of the candidacy, not of the victory: as in etcd.
        reply = election_pb2.CampaignResponse(header=txn.header, leader=leader).SerializeToString()

        return lines.contend(
            call, prefix_of(name), key, create_revision, at_once=reply, won=lambda: reply, lost=NOT_LEADER
        )

    def proclaim(self, _core: Core, request: election_pb2.ProclaimRequest) -> bytes:
        """Proclaim: changes the leader's value. A leader key without a lease gets a new one, as in etcd."""
        if not request.HasField("leader"):
            raise LEADER_MISSING.error()
        lines, leader = self._lines, request.leader
        lease_id = lines.session_lease(leader.lease)
        header = _proclaim(lines, leader.key, leader.rev, request.value, lease_id)
        return election_pb2.ProclaimResponse(header=header).SerializeToString()

    def resign(self, _core: Core, request: election_pb2.ResignRequest) -> bytes:
        """Resign: deletes the leader key, if it is still the one that was created at `rev`."""
        if not request.HasField("leader"):
            raise LEADER_MISSING.error()
        txn = self._lines.delete_if_created_at(request.leader.key, request.leader.rev)
        return election_pb2.ResignResponse(header=txn.header).SerializeToString()

    def leader(self, _core: Core, request: election_pb2.LeaderRequest) -> bytes:
        """Leader: the key that leads now."""
        found = self._lines.leader(prefix_of(request.name))
        if found is None:
            raise NO_LEADER.error()
        return self._lines.leader_response(found)

    def observe(self, core: Core, call: StreamCall) -> "Observe":
        """Observe: begins with the one request."""
        return Observe(core, call, self._lines)


def _put(key: bytes, value: bytes, lease_id: int) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, lease=lease_id))


def _proclaim(
    lines: WaitingLines, key: bytes, create_revision: int, value: bytes, lease_id: int
) -> rpc_pb2.ResponseHeader:
    """Gives the key a new value. Raises NOT_LEADER if it is not the one that was created at that revision."""
    compare, put = created_at(key, create_revision), _put(key, value, lease_id)
    txn: rpc_pb2.TxnResponse = lines.apply(rpc_pb2.TxnRequest(compare=[compare], success=[put]))
    if not txn.succeeded:
        raise NOT_LEADER.error()
    return txn.header


class Observe:
    """Observe: one stream that is sent the leader of one election, as long as its caller may read the election's keys.

    The right is checked before each response, as etcd does with each new leader. The token is checked at the beginning
    only; then its user's name counts: an observer may wait for longer than a token lives.
    """

    __slots__ = ("_asked", "_behind", "_call", "_caller", "_core", "_lines", "_over", "_prefix", "_shown", "held")

    def __init__(self, core: Core, call: StreamCall, lines: WaitingLines) -> None:
        self._core = core
        self._lines = lines
        self._call = call
        self.held = call.held
        self._asked = election_pb2.LeaderRequest()
        self._caller: str | None = None  # None for a call without a user
        self._prefix: bytes | None = None  # None until the request has come, and after the end
        self._over = False
        self._behind = False  # whether a change was skipped since the peer last took all
        self._shown: Event | None = None  # the leader that was sent last

    def on_messages(self, messages: list[bytes]) -> None:
        try:
            request = election_pb2.LeaderRequest.FromString(messages[0])
        except DecodeError:
            raise errors.MALFORMED_IN_STREAM.error() from None
        self._begin(request)

    def on_requests_end(self) -> None:
        """Over HTTP the one request may be an empty body."""
        self._begin(self._asked)

    def _begin(self, request: election_pb2.LeaderRequest) -> None:
        writes = self._core.turn.long_writes
        if writes.busy:
            writes.after(partial(self._begin_later, request))
        else:
            self._begin_now(request)

    def _begin_later(self, request: election_pb2.LeaderRequest) -> None:
        """A long write has ended. Nobody is above to answer the call with an error."""
        try:
            self._begin_now(request)
        except Exception as error:
            self._call.end_in_order(as_answer(error, "Observe"))

    def _begin_now(self, request: election_pb2.LeaderRequest) -> None:
        if self._prefix is None and not self._over:
            claimed = self._core.claimed(self._call)
            self._caller = claimed.name if isinstance(claimed, Caller) else None
            prefix = prefix_of(request.name)
            self._core.kept_keys.add(self, _kept_bytes(prefix))
            self._asked = request
            self._prefix = prefix
            self._lines.observe(prefix, self)

    def on_over(self) -> None:
        self._over = True
        if self._prefix is not None:
            self._lines.unobserve(self._prefix, self)
            self._core.kept_keys.remove(self, _kept_bytes(self._prefix))
            self._prefix = None

    def lose_key(self, error: EtcdError) -> None:
        """The keys of all observers take too much memory: see loop/kept_keys.py."""
        self._call.finish(error)

    def show(self, leader: Event, response: bytes) -> None:
        payload: tuple[Event, bytes] | EtcdError = (leader, response)
        caller = None if self._caller is None else Caller(self._caller, self._core.auth.revision)
        try:
            self._core.permit_claimed(caller, self._asked)
        except EtcdError as error:
            payload = error
        self._core.turn.after_everything(self, payload)

    def deliver(self, payload: tuple[Event, bytes] | EtcdError) -> None:
        """The gate lets a leader or an error through. Such a leader may have been sent already, by `catch_up`."""
        if isinstance(payload, EtcdError):
            self._call.finish(payload)
            return
        leader, response = payload
        if self._prefix is None or self._behind or leader is self._shown:
            return
        if self._call.backlog_bytes > limits.CONNECTION_BACKLOG_BYTES_MAX:
            self._behind = True
            self._call.wake_when_drained(self)
        else:
            self._shown = leader
            self._call.send([response])

    def end_now(self, error: EtcdError) -> None:
        """A bug ends the call, see bugs.py."""
        self._call.finish(error)

    def catch_up(self) -> bool:
        """The peer has read: it is sent the present leader in place of all skipped changes."""
        if self._prefix is not None and self._behind:
            if self._core.turn.long_writes.busy:
                return True  # a leader of a write that is under way must not be shown
            if self._call.backlog_bytes > limits.CONNECTION_BACKLOG_BYTES_MAX:
                self._call.wake_when_drained(self)
                return False
            self._behind = False
            found = self._lines.leader(self._prefix)
            if found is not None:
                self.show(found, self._lines.leader_response(found))
        return False


def _kept_bytes(prefix: bytes) -> int:
    """What an observer keeps: the prefix, and the request with the name."""
    return 2 * len(prefix)

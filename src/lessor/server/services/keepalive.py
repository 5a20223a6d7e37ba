# SPDX-License-Identifier: Apache-2.0
"""LeaseKeepAlive: the hot path of renewals.

Laws
- Each request gets exactly one reply, in the order of the requests.
- A reply to a renewal waits for the batch that last wrote the lease's row (its grant, or a saved later deadline).
  Mostly that batch is durable and the reply leaves in the same turn. Replies behind a waiting reply wait too.
- A missing lease is no error: its reply carries the id and no TTL. It says that the lease has ended, so it waits for
  the newest batch with rows, which may be the batch that ended it; or for the end of the long write that ends it.
- A header names the newest durable revision, not the newest one: a reply that does not wait must not name a revision
  that a crash would take back.

The request of a given lease is always the same bytes, and its reply is always the header followed by the same bytes.
So both are remembered: `_fast` maps request bytes to the lease and the tail of its reply. `reply_slowly` reads the
request instead; tests/property/test_keepalive_paths.py holds the two equal.
"""

from google.protobuf.message import DecodeError

from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import EtcdError
from lessor.cluster.forwarding import FORWARD_ALLOWANCE_S
from lessor.server.loop.call import StreamCall, StreamFactory
from lessor.server.loop.core import Core
from lessor.server.loop.release import PROMISED
from lessor.state.lease import Lease
from lessor.state.lease_replies import renewed_fields

REMEMBERED_MAX = limits.KEEPALIVES_REMEMBERED_MAX
REMEMBERED_BYTES_MAX = limits.KEEPALIVE_REMEMBERED_BYTES_MAX


# Request -> the lease that it renewed, and the reply behind its header. The entry holds the Lease object itself, so a
# stale entry does not match a later lease with the same id.
Remembered = dict[bytes, tuple[Lease, bytes]]


class Renewals:
    """Opens the keepalive streams of one server, which share what they remember."""

    def __init__(self) -> None:
        self.remembered: Remembered = {}
        self._streams: dict[KeepAlive, None] = {}

    def open(self, core: Core, call: StreamCall) -> "KeepAlive":
        stream = KeepAlive(core, call, self)
        self._streams[stream] = None
        return stream

    def forget(self, stream: "KeepAlive") -> None:
        self._streams.pop(stream, None)

    def pass_on(self, make: StreamFactory) -> None:
        """Another server is to lead: handlers that `make` makes take the renewals of all streams from here on.

        A server that passes renewals on to this one passes those without an answer on to the other one.
        """
        for stream in list(self._streams):
            stream.pass_on(make)


class KeepAlive:
    """One keepalive stream."""

    __slots__ = ("_allowance_s", "_call", "_core", "_ended", "_fast", "_home", "_waits_for")

    def __init__(self, core: Core, call: StreamCall, home: Renewals) -> None:
        self._core = core
        self._call = call
        self._home = home
        self._fast = home.remembered
        self._waits_for = 0  # the newest batch that a reply of this stream has waited for
        self._ended = False  # no more leases are renewed: the call has ended, or an error waits at the gate
        # What another server passes on reaches its client later: cluster/forwarding.py.
        self._allowance_s = FORWARD_ALLOWANCE_S if call.forwarded else 0.0

    def on_messages(self, messages: list[bytes]) -> None:
        core = self._core
        if core.auth.enabled:
            self._on_messages_asking(messages)
            return
        now_s = core.turn.now_s() + self._allowance_s
        renew = core.machine.renew
        durable = core.gate.durable
        fast = self._fast
        header = core.durable_header_field()
        ready: list[bytes] = []
        renewed: list[Lease] = []
        try:
            for message in messages:
                known = fast.get(message)
                if known is not None and renew(known[0].id, now_s) is known[0]:
                    lease: Lease | None = known[0]
                    batch = known[0].batch
                    reply = header + known[1]
                else:
                    lease, batch, reply = self.reply_slowly(message, now_s, header)
                if batch > durable or self._waits_for > durable:
                    core.gate.hold(self._wait_for(batch), self, (reply, lease))
                    continue
                ready.append(reply)
                if lease is not None:
                    renewed.append(lease)
        finally:  # the replies before a malformed request are sent
            if ready:
                self._call.send(ready)
                core.turn.renewed += renewed
        core.metrics.renewed += len(messages)

    def _on_messages_asking(self, messages: list[bytes]) -> None:
        """While auth is on: each renewal needs the caller's right to write all keys of the lease."""
        core = self._core
        for message in messages:
            if self._ended:
                return
            try:
                core.permit(self._call, _parse(message))
                lease, batch, reply = self.reply_slowly(
                    message, core.turn.now_s() + self._allowance_s, core.durable_header_field()
                )
            except EtcdError as error:
                self._ended = True
                core.turn.after_all_writes(self, error)  # so after the replies to earlier requests, too
                return
            core.gate.hold(self._wait_for(batch), self, (reply, lease))
            core.metrics.renewed += 1

    def reply_slowly(self, message: bytes, now_s: float, header: bytes) -> tuple[Lease | None, int, bytes]:
        """Renews the lease that the request names. Returns the lease, the batch that the reply waits for, the reply.

        Remembers lease and reply in `_fast`.
        """
        core = self._core
        lease_id = _parse(message).ID
        lease = core.machine.renew(lease_id, now_s)
        tail = renewed_fields(lease_id, lease)
        if lease is None:
            write = core.machine.under_way
            if write is not None and write.ending is not None and write.ending.id == lease_id:
                return None, core.gate.promised, header + tail  # of the batch that will end it
            return None, core.machine.journal.newest_with_rows, header + tail
        if len(message) > REMEMBERED_BYTES_MAX:
            pass
        elif len(self._fast) < REMEMBERED_MAX:
            self._fast[message] = lease, tail
        elif len(core.machine.leases) < REMEMBERED_MAX:  # most of these have ended; else it would soon be full again
            self._fast.clear()
        return lease, lease.batch, header + tail

    def _wait_for(self, batch: int) -> int:
        """Takes `batch` in. Returns the batch that the next reply waits for, with all earlier ones of this stream."""
        waits_for = self._waits_for
        if PROMISED <= waits_for < self._core.gate.promised:  # that write has ended, in this batch or an earlier one
            waits_for = self._core.machine.journal.newest_with_rows
        self._waits_for = waits_for = max(waits_for, batch)
        return waits_for

    def deliver(self, payload: tuple[bytes, Lease | None] | EtcdError | None) -> None:
        """The gate lets a reply through, with the lease that it renewed; or the end of the stream, None for OK."""
        if payload is None or isinstance(payload, EtcdError):
            self._call.finish(payload)
            return
        reply, lease = payload
        self._call.send([reply])
        if lease is not None:
            turn = self._core.turn
            self._core.machine.leases.acknowledged((lease,), turn.now_s() + self._allowance_s)
            turn.renewed.append(lease)

    def end_now(self, error: EtcdError) -> None:
        """A bug ends the call, see bugs.py."""
        self._call.finish(error)

    def on_requests_end(self) -> None:
        self._core.gate.hold(self._wait_for(0), self, None)

    def on_over(self) -> None:
        self._ended = True
        self._home.forget(self)

    def pass_on(self, make: StreamFactory) -> None:
        if self._call.forwarded:
            self._call.end_in_order(errors.LEADER_CHANGED.error())
        elif not self._ended:
            self._call.pass_on(make)


def _parse(message: bytes) -> rpc_pb2.LeaseKeepAliveRequest:
    try:
        return rpc_pb2.LeaseKeepAliveRequest.FromString(message)
    except DecodeError:
        raise errors.MALFORMED_IN_STREAM.error() from None

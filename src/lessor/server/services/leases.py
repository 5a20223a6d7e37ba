# SPDX-License-Identifier: Apache-2.0
"""lessorpb.Leases: a list of the leases, and a stream of their events.

Laws
- A list never holds the loop up: it is made step by step, see long_reply.py.
- A lease event leaves when no crash can take it back. Each event leaves once and in order, without a gap after
  `created`.
- A watcher that does not read costs bounded memory: with more than CONNECTION_BACKLOG_BYTES_MAX waiting in its
  connection it is cut off with LEASE_WATCH_LAGS. It has missed events then, and there is no history of leases to catch
  up from: it has to list them and watch anew.

state/lease_list.py makes the page of a list. state/lease_events.py gathers events, which leave at the end of each turn,
see Turn.hold_publications.
"""

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from lessor.api.proto import leases_pb2
from lessor.base import errors, limits
from lessor.base.errors import EtcdError
from lessor.server.loop.call import StreamCall, UnaryCall, Waiting
from lessor.server.loop.core import Core
from lessor.state.permissions import lease_reader


def list_leases(core: Core, call: UnaryCall, request: leases_pb2.LeaseListRequest) -> Waiting:
    """List: one page. Cost: the number of leases, in steps; see LeaseList."""
    return core.long_replies.begin(call, _page(core, call, request), request)


def _page(core: Core, call: UnaryCall, request: leases_pb2.LeaseListRequest) -> Iterator[bytes]:
    """Yields empty pieces while the page is being made, then the page in pieces."""
    may_read = lease_reader(core.machine, core.claimed(call)) if core.auth.enabled else None  # as of the first step
    leases = core.machine.list_leases(request, may_read)
    while not leases.step(core.turn.now_s()):
        yield b""
    page = leases.page(core.machine.header())
    piece = leases_pb2.LeaseListResponse
    yield piece(header=page.header).SerializeToString()
    for first in range(0, len(page.leases), limits.REPLY_PARTS_MAX):
        yield piece(leases=page.leases[first : first + limits.REPLY_PARTS_MAX]).SerializeToString()
    yield piece(next_page_token=page.next_page_token, lease_count=page.lease_count).SerializeToString()


class LeaseWatch:
    """Watch: one stream of lease events."""

    __slots__ = ("_call", "_core")

    def __init__(self, core: Core, call: StreamCall) -> None:
        self._core = core
        self._call = call

    def on_messages(self, messages: list[bytes]) -> None:
        try:
            leases_pb2.LeaseWatchRequest.FromString(messages[0])
        except DecodeError:
            raise errors.MALFORMED_IN_STREAM.error() from None
        self._begin()

    def on_requests_end(self) -> None:
        """Over HTTP the one request may be an empty body."""
        self._begin()

    def _begin(self) -> None:
        core = self._core
        machine = core.machine
        if self not in machine.lease_events.watchers:
            core.turn.hold_publications()  # earlier events are only for the other watchers
            machine.watch_leases(self)
            created = leases_pb2.LeaseWatchResponse(header=core.machine.header(), created=True)
            core.turn.after_everything(self, created.SerializeToString())

    def on_over(self) -> None:
        self._core.machine.unwatch_leases(self)

    def deliver(self, created: bytes) -> None:
        """The gate lets `created` through."""
        self._call.send([created])

    def pass_on(self) -> None:
        """Another server is to lead. Who applies its rows does not know how a lease has ended: the stream ends here,
        behind the events until now.
        """
        self._core.turn.hold_publications()
        self._call.end_in_order(errors.LEADER_CHANGED.error())

    def end_now(self, error: EtcdError) -> None:
        """A bug ends the call, see bugs.py."""
        self._call.finish(error)

    def on_lease_events(self, response: bytes) -> None:
        """The gate lets events through."""
        if self._call.backlog_bytes > limits.CONNECTION_BACKLOG_BYTES_MAX:
            self._call.finish(errors.LEASE_WATCH_LAGS.error())
        else:
            self._call.send([response])

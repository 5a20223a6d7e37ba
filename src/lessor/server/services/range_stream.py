# SPDX-License-Identifier: Apache-2.0
"""KV.RangeStream: the call, from its request to its last chunk.

Laws
- A chunk is made when the peer has taken all but RANGE_BACKLOG_BYTES of those before, and the one before has passed the
  gate. So a peer that does not read costs that and a chunk, and a place in the range; it holds up no other call.
- The chunks of all streams are made in turn with the long replies (loop/long_reply.py), one a turn. The first one is
  small, and made at once, as the reply of Range is. While a long write is under way none is made.
- Chunks that no peer has taken count among the long replies. The keys of the request count among those that calls keep.
- The caller's rights are checked at the beginning, and before a chunk when auth has changed since. etcd sends all
  chunks then, and ends the stream with `revision of auth store is old`, whatever has changed.
- When the server stops, a stream goes on for as long as a unary call may.

state/range_stream.py makes the chunks.
"""

from typing import Any

from google.protobuf.message import DecodeError

from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import EtcdError
from lessor.server.loop.bugs import as_answer
from lessor.server.loop.call import StreamCall
from lessor.server.loop.core import Core
from lessor.state.range_stream import RangeStream


class RangeStreamCall:
    """One such call. Implements call.StreamHandler, release.Outlet, long_reply.Stepped and kept_keys.Keeper."""

    __slots__ = (
        "_at_gate_bytes",
        "_auth_revision",
        "_call",
        "_chunks",
        "_core",
        "_kept_bytes",
        "_looking",
        "_passed_gate",
        "_request",
        "gone",
        "held",
    )

    made_bytes = 0  # it keeps no reply that is half made
    may_be_refused = False

    def __init__(self, core: Core, call: StreamCall) -> None:
        self._core = core
        self._call = call
        self.held = call.held
        self.gone = False  # the call has ended
        self._request: rpc_pb2.RangeRequest | None = None
        self._chunks: RangeStream | None = None
        self._kept_bytes = 0
        self._auth_revision = -1  # at which the caller's rights were checked last; -1: auth was off
        self._looking = False  # nothing has been found since the last chunk
        self._at_gate_bytes = 0
        self._passed_gate = False  # a chunk has: what was not durable at the first step is, for all later ones

    # --- from the call ---

    def on_messages(self, messages: list[bytes]) -> None:
        core = self._core
        try:
            request = rpc_pb2.RangeRequest.FromString(messages[0])
        except DecodeError:
            raise errors.MALFORMED_IN_STREAM.error() from None
        chunks = core.machine.stream_range(request)
        self._check_rights(request)
        kept_bytes = len(request.key) + len(request.range_end)
        core.kept_keys.add(self, kept_bytes)
        self._kept_bytes = kept_bytes
        self._request, self._chunks = request, chunks
        if core.turn.long_writes.busy or self._call.backlog_bytes > limits.CONNECTION_BACKLOG_BYTES_MAX:
            self._stand_last()
        else:
            self.step()
            core.long_replies.keep_bound()

    def on_requests_end(self) -> None: ...

    def on_over(self) -> None:
        self.gone = True
        self._request = self._chunks = None
        if self._kept_bytes:
            self._core.kept_keys.remove(self, self._kept_bytes)
            self._kept_bytes = 0

    def lose_key(self, error: EtcdError) -> None:
        """The keys of all calls take too much memory: see loop/kept_keys.py."""
        self._call.finish(error)

    # --- its turns ---

    def _stand_last(self) -> None:
        if not self.gone:
            self._core.long_replies.stand_last(self.held, self)

    def waits_for_peer(self, go_on: Any) -> bool:
        """Not while it looks for the next key to show: then it keeps a version."""
        return not (self.gone or self._looking) and self._call.waits_for_peer(go_on)

    def refuse(self, error: EtcdError) -> None: ...

    def step(self) -> bool:
        chunks, request = self._chunks, self._request
        if chunks is None or request is None:
            return False
        payload: bytes | EtcdError
        try:
            self._check_rights(request)
            payload = chunks.step()
        except Exception as error:
            payload = as_answer(error, self._call.method.path)
        self._looking = payload == b""
        if self._looking:
            self._stand_last()
        elif self._passed_gate and isinstance(payload, bytes):
            self._send(payload)
        else:
            self._wait_at_gate(payload)
        return False

    def _check_rights(self, request: rpc_pb2.RangeRequest) -> None:
        auth = self._core.auth
        revision = auth.revision if auth.enabled else -1
        if revision != self._auth_revision:
            if auth.enabled:
                self._core.permit(self._call, request)
            self._auth_revision = revision

    def _wait_at_gate(self, payload: bytes | EtcdError) -> None:
        if isinstance(payload, bytes):
            self._at_gate_bytes = len(payload)
            self.held.size_bytes += len(payload)
        turn = self._core.turn
        turn.after_everything(self, payload)
        if not turn.scheduled:
            turn.schedule()

    # --- from the gate ---

    def deliver(self, payload: bytes | EtcdError) -> None:
        """The gate lets a chunk or an error through."""
        self.held.size_bytes -= self._at_gate_bytes
        self._at_gate_bytes = 0
        if self.gone:
            self.held.dropped()
        elif isinstance(payload, EtcdError):
            self._call.finish(payload)
        else:
            self._passed_gate = True
            self._send(payload)

    def end_now(self, error: EtcdError) -> None:
        """A bug ends the call, see bugs.py."""
        self._call.finish(error)

    def _send(self, chunk: bytes) -> None:
        self._core.long_replies.sent_chunk(self.held, len(chunk))
        self._call.send([chunk])
        if self._chunks is None or self._chunks.done:
            self._call.finish()
        elif not self._call.when_taken(limits.RANGE_BACKLOG_BYTES, self._stand_last):
            self._stand_last()

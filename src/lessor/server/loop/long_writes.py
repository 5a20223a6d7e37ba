# SPDX-License-Identifier: Apache-2.0
"""Writes that take many steps: one step a turn, and what has to wait for the last one.

Laws
- One long write is under way at a time. One step is taken in a turn, so renewals, pings, pages and the bytes of all
  connections are looked at in between.
- Calls that may touch keys or grant leases wait meanwhile, and are served after it in the order in which they came,
  some in each turn. A call that comes when the write has ended is served at once: perhaps before one that has waited,
  but then both were under way at the same time. Rights and deadlines are looked at when a call is served.
- A call that waits counts against its connection, as in long_reply.py, and is dropped when its peer goes away.
- A write whose peer goes away is completed all the same.
- A step that raises stops the server: nothing of the write has reached the journal, so nothing of it was saved.
- An orderly stop completes the write in one go. A server that is killed before the last step has saved nothing of it,
  and nobody was told of it.

Theory of operation. While `busy`, the core has another table of handlers, with `queue` for the calls that wait; so
calls that come at other times pay nothing for this. If calls had to wait behind those that have waited already, a busy
server would never be without such calls again.

Does not do: the steps themselves (state/long_write.py); replies (long_reply.py).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.base.errors import EtcdError
from lessor.server.loop import bugs
from lessor.server.loop.bugs import Answerable, as_answer
from lessor.server.loop.release import Gate
from lessor.state.long_write import LongWrite, Outcome
from lessor.state.machine import StateMachine


class Written(Answerable, Protocol):
    """The call that made the write; see UnaryCall."""

    def written(self, outcome: Outcome | EtcdError) -> None: ...

    def took_effect(self) -> None: ...


class Served(Protocol):
    """A call that waits; see UnaryCall."""

    held: Any

    def wait_no_more(self) -> None: ...

    def serve(self, request: Message) -> None: ...

    def finish(self, outcome: bytes | EtcdError) -> None: ...


class Clocked(Protocol):
    """The turn."""

    @property
    def halted(self) -> bool: ...

    def now_s(self) -> float: ...

    def schedule(self) -> None: ...

    def break_off(self, error: Exception) -> None: ...


class Writing:
    """A call waits for this while its write is under way (call.Waiting)."""

    __slots__ = ("call",)

    open_ended = False

    def __init__(self, call: Written) -> None:
        self.call: Written | None = call

    def on_gone(self) -> None:
        self.call = None


class Queued:
    """A call that waits for the end of another one's write (call.Waiting)."""

    __slots__ = ("_call", "_request", "_size_bytes")

    open_ended = False

    def __init__(self, call: Served, request: Message) -> None:
        self._call: Served | None = call
        self._request: Message | None = request
        self._size_bytes = limits.LONG_REPLY_WAITING_BYTES + request.ByteSize()
        call.held.size_bytes += self._size_bytes

    def on_gone(self) -> None:
        call, self._call, self._request = self._call, None, None
        if call is not None:
            call.held.size_bytes -= self._size_bytes

    def __call__(self) -> None:
        call, request = self._call, self._request
        if call is not None and request is not None:
            self.on_gone()
            call.wait_no_more()
            call.serve(request)


class LongWrites:
    """The long write of a server, and what waits for its end. Loop thread only."""

    __slots__ = ("_gate", "_loop", "_machine", "_queue", "_turn", "_write", "_writing", "busy", "on_busy")

    def __init__(self, turn: Clocked, machine: StateMachine, gate: Gate) -> None:
        self._turn = turn
        self._machine = machine
        self._gate = gate
        self._loop: asyncio.AbstractEventLoop
        self._write: LongWrite | None = None
        self._writing: Writing | None = None  # the call that made it; None: the end of a lease that was due
        self._queue: deque[Callable[[], None]] = deque()
        self.busy = False  # whether a write is under way, for which calls have to wait
        self.on_busy: Callable[[bool], None] = lambda busy: None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def begin(self, write: LongWrite, call: Written | None = None) -> Writing | None:
        """Takes the steps of a write that the state machine has begun, and answers the call then, if there is one."""
        self._write = write
        self._writing = None if call is None else Writing(call)
        self._set_busy(True)
        self._loop.call_soon(self._step)
        return self._writing

    def queue(self, core: Any, call: Served, request: Message) -> Queued | None:
        """Stands in for the handler of a call that has to wait (call.WaitingHandler)."""
        if isinstance(request, rpc_pb2.LeaseTimeToLiveRequest) and self._looks_at_time(request):
            call.finish(self._machine.apply_encoded(request, self._turn.now_s()))
            return None
        queued = Queued(call, request)
        self._queue.append(queued)
        return queued

    def _looks_at_time(self, request: rpc_pb2.LeaseTimeToLiveRequest) -> bool:
        """Whether the request asks for the time of a lease that the write does not end, and for nothing else."""
        return not request.keys and request.ID in self._machine.leases

    def after(self, work: Callable[[], None]) -> None:
        """Does work of the server's own that may touch keys: now, or in its turn when it has to wait."""
        if self.busy:
            self._queue.append(work)
        else:
            work()

    @property
    def pending(self) -> bool:
        """Whether a write is under way, or calls or work that waited for one are still to be served."""
        return self.busy or bool(self._queue)

    def _set_busy(self, busy: bool) -> None:
        if busy != self.busy:
            self.busy = busy
            self.on_busy(busy)

    def complete(self) -> None:
        """For an orderly stop: takes all steps of the write that is under way. Its call is not answered any more."""
        write, self._write = self._write, None
        if write is not None:
            call = None if self._writing is None else self._writing.call
            try:
                write.complete()
                if call is not None:
                    call.took_effect()
            except EtcdError:  # it was refused, and has changed nothing
                return
            except Exception as error:
                self._turn.break_off(error)

    def _step(self) -> None:
        """Takes the next step of the write."""
        write = self._write
        if write is None or self._turn.halted:
            return
        self._turn.schedule()  # before the first row, since it notes the time
        try:
            if write.step():
                self._loop.call_soon(self._step)
            else:
                self._end(write)
        except Exception as error:
            self._turn.break_off(error)

    def _end(self, write: LongWrite) -> None:
        self._write = None
        self._set_busy(False)
        self._gate.settle_promised(self._machine.journal.newest_with_rows)
        writing, self._writing = self._writing, None
        call = None if writing is None else writing.call
        if call is not None:
            try:
                call.written(write.outcome)
            except Exception as error:  # the write is whole
                bugs.end(call, error)
        if self._queue:
            self._loop.call_soon(self._serve)

    def _serve(self) -> None:
        """Serves some of the calls that have waited, until one of them begins a long write of its own."""
        self._turn.schedule()
        began_s = self._turn.now_s()
        left = limits.QUEUED_CALLS_PER_STEP
        queue = self._queue
        while queue and left and not self.busy and self._turn.now_s() - began_s < limits.H2_STEP_S:
            left -= 1
            try:
                queue.popleft()()
            except Exception as error:  # the others are for other calls
                as_answer(error, "a call that waited for a write")
        if queue and not self.busy:  # otherwise the end of the write leads back to here
            self._loop.call_soon(self._serve)

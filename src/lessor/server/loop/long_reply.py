# SPDX-License-Identifier: Apache-2.0
"""Unary replies that take long to make: step by step, with all other calls served in between.

Laws
- One step is taken in a turn, however many such replies are asked for. Nothing is made in one go.
- Addresses take turns, step by step, and within an address so do its connections. A connection has one reply made at a
  time. So a reply of n steps is made after n turns of each other address, or of each other connection of its own, and
  the replies before it on its connection, however long the replies of others are.
- A reply that waits its turn has not begun: see LongRead. Its request counts among the bytes of its connection that the
  peer has not taken, so a connection has to wait before it can ask for any number of them. What a write's reply will
  show is in memory from the beginning, and counts until the reply is made.
- The code that makes the pieces answers for their content. Here the pieces are only bytes. The call encodes them, as
  JSON for instance, in the same steps.
- A call whose peer went away is dropped, and its place with it.
- A stream of chunks (`Stepped`) has one step when its turn comes, and stands last on its connection for the next one.
- When the turn of a read comes, of keys, leases or a digest, it waits if its peer has not taken the replies to earlier
  calls, and what is behind it on its connection waits too. Then the caller's rights are checked anew, since they may
  have changed or auth may be on now. A write has taken effect: it is answered in any case.

Does not do: the bound on the memory of all replies (reply_memory.py); cutting an encoded reply, as the flow control of
HTTP/2 does.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from google.protobuf.message import Message

from lessor.api.methods import Method
from lessor.base import limits
from lessor.base.errors import EtcdError
from lessor.server.loop.bugs import as_answer
from lessor.server.loop.reply_memory import Counted, ReplyMemory
from lessor.state.long_read import LongRead, Written


class Answered(Protocol):
    """The call that the reply is for; see UnaryCall."""

    method: Method
    held: Any

    def permit(self, request: Message) -> None: ...

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool: ...

    def end_now(self, error: EtcdError) -> None: ...

    def encode_pieces(self, pieces: Iterator[bytes]) -> Iterator[bytes | None]: ...

    def finish_encoded(self, payload: Any) -> None: ...


class Stepped(Protocol):
    """What stands in the line of a connection: a long reply, or a stream that has a chunk to make."""

    @property
    def gone(self) -> bool:
        """Whether nobody waits for this any more."""
        ...

    @property
    def made_bytes(self) -> int: ...

    @property
    def may_be_refused(self) -> bool: ...

    def refuse(self, error: EtcdError) -> None: ...

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        """Whether this is not to have its turn now: see UnaryCall.waits_for_peer."""
        ...

    def step(self) -> bool:
        """Takes the next step; returns whether the next turn of the connection is for this again. Does not raise."""
        ...


class LongReply:
    """A call waits for this while its reply is made (call.Waiting)."""

    __slots__ = ("_call", "_memory", "_pieces", "_request", "_size_bytes", "_steps", "made_bytes")

    open_ended = False  # it ends when the reply is made

    def __init__(self, call: Answered, pieces: Iterator[bytes], request: Message | None, memory: ReplyMemory) -> None:
        self._call: Answered | None = call
        self._memory = memory
        self.made_bytes = 0
        self._pieces = pieces
        self._request = request
        self._steps: Iterator[bytes | None] | None = None
        self._size_bytes = limits.LONG_REPLY_WAITING_BYTES + (0 if request is None else request.ByteSize())
        if isinstance(pieces, Written):
            self._size_bytes += pieces.kept_bytes
        self._count(call, self._size_bytes)

    @property
    def gone(self) -> bool:
        """Whether nobody waits for this any more."""
        return self._call is None

    def on_gone(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            self._let_go(call)

    def _let_go(self, call: Answered) -> None:
        """Undoes all that waiting and working took."""
        self._count(call, -self._size_bytes)
        self._size_bytes = 0
        self._memory.made_bytes -= self.made_bytes
        self.made_bytes = 0
        pieces, self._pieces, self._steps, self._request = self._pieces, iter(()), None, None
        if isinstance(pieces, LongRead):
            pieces.close()

    @staticmethod
    def _count(call: Answered, by_bytes: int) -> None:
        call.held.size_bytes += by_bytes
        call.held.unmade_bytes += by_bytes

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        """Whether this has not begun, and is not to begin: see UnaryCall.waits_for_peer. A write does not wait."""
        call = self._call
        if call is None or self._steps is not None or isinstance(self._pieces, Written):
            return False
        return call.waits_for_peer(go_on)

    def step(self) -> bool:
        """Takes the next step; returns whether there is another one to take. Does not raise."""
        call = self._call
        if call is None:
            return False
        payload: Any
        try:
            if self._steps is None:
                self._begin(call)
            steps = self._steps
            payload = None if steps is None else next(steps)
        except Exception as error:
            payload = as_answer(error, call.method.path)
        if payload is None:
            return True
        self._call = None
        self._let_go(call)
        if isinstance(payload, bytes):
            self._memory.sent(call.held, len(payload))
        call.finish_encoded(payload)
        return False

    def _begin(self, call: Answered) -> None:
        kept_bytes = self._pieces.kept_bytes if isinstance(self._pieces, Written) else 0
        self._count(call, kept_bytes - self._size_bytes)
        self._size_bytes = kept_bytes
        request, self._request = self._request, None
        if request is not None and not isinstance(self._pieces, Written):
            call.permit(request)
        self._steps = call.encode_pieces(self._count_made(self._pieces))

    def _count_made(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.made_bytes += len(piece)
            self._memory.made_bytes += len(piece)
            yield piece

    @property
    def may_be_refused(self) -> bool:
        """Whether there is a call that has changed nothing, with a part of its reply."""
        return self.made_bytes > 0 and not isinstance(self._pieces, Written)

    def refuse(self, error: EtcdError) -> None:
        if self._call is not None:
            self._call.end_now(error)


class LongReplies:
    """The long replies of a server."""

    __slots__ = ("_addresses", "_lines", "_memory", "_parked", "_task", "paused")

    def __init__(self, memory: ReplyMemory) -> None:
        self._memory = memory
        # The replies of each connection that has any, oldest first: the first one may have begun.
        self._lines: dict[Counted, deque[Stepped]] = {}
        # Those of connections whose peer has to take replies first.
        self._parked: dict[Counted, deque[Stepped]] = {}
        # Those connections by address. The next to have a turn is the first of its address, and that the first of all.
        self._addresses: OrderedDict[str, deque[Counted]] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self.paused = False  # while a long write is under way: its steps and these would make a turn twice as long

    @property
    def idle(self) -> bool:
        """Whether no reply waits or is made."""
        return not (self._lines or self._parked)

    def begin(self, call: Answered, pieces: Iterator[bytes], request: Message | None = None) -> LongReply:
        """Answers `call` with all `pieces` joined, or with the EtcdError that is raised while a piece is made.

        `request`: whose rights are checked again unless `pieces` is a Written; it also counts for the memory that is
        kept. None: there is nothing to check.
        """
        reply = LongReply(call, pieces, request, self._memory)
        self.stand_last(call.held, reply)
        return reply

    def stand_last(self, held: Counted, stepped: Stepped) -> None:
        """Has a step taken when the turn of its connection has come, behind all that stands there already."""
        line = self._lines.get(held) or self._parked.get(held)
        if line is None:
            self._enter(held, deque((stepped,)))
        else:
            line.append(stepped)

    def sent_chunk(self, held: Counted, size_bytes: int) -> None:
        """A chunk of a stream is on its way to the peer: counts it among the long replies. O(1)."""
        self._memory.sent_chunk(held, size_bytes)

    def keep_bound(self) -> None:
        """To be called when a chunk was sent that was not made here: see ReplyMemory.keep_bound."""
        self._memory.keep_bound(self._lines)

    def _enter(self, held: Counted, line: deque[Stepped]) -> None:
        """The connection takes turns with the others."""
        self._lines[held] = line
        self._addresses.setdefault(held.address, deque()).append(held)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def _unpark(self, held: Counted) -> None:
        self._enter(held, self._parked.pop(held))

    async def _run(self) -> None:
        while self._lines:
            await asyncio.sleep(0)
            if self.paused:
                continue
            while self._lines and not self._step():
                pass
            try:
                self._memory.keep_bound(self._lines)
            except Exception as error:  # the replies are made all the same
                as_answer(error, "a long reply")
        self._task = None

    def _step(self) -> bool:
        """Gives the next connection its turn. Returns whether a step was taken.

        It was not if nobody waits for the reply, or if the peer has to take others first.
        """
        address, connections = next(iter(self._addresses.items()))
        self._addresses.move_to_end(address)
        held = connections.popleft()
        line = self._lines[held]
        reply = line[0]
        taken = not reply.gone
        try:
            if reply.waits_for_peer(partial(self._unpark, held)):
                self._parked[held] = self._lines.pop(held)
                if not connections:
                    del self._addresses[address]
                return False
            more = reply.step()
        except Exception as error:  # the other replies are for other calls
            as_answer(error, "a long reply")
            more = False
        if not more:
            line.popleft()
        if line:
            connections.append(held)
        else:
            del self._lines[held]
            if not connections:
                del self._addresses[address]
        return taken

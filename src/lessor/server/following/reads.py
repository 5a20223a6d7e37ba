# SPDX-License-Identifier: Apache-2.0
"""Linearizable reads that a server which follows answers itself, by asking the leader how far it has to be.

Answers to calls that the leader has carried out wait here, too, where no revision says whether this server has come as
far: its own clients see what they have changed, as they do at a member of an etcd.

Laws
- A read is answered from what this server has, once it has every batch that anybody was told of before the read came.
  The leader names that batch in an answer to a question that was asked after the read came.
- The reads of one loop step share a question. One question is under way at a time, and the reads that come meanwhile
  share the next one.
- A call of Range whose question is lost with its link, or that waits for its batch for READ_INDEX_S_MAX, is passed on
  to the leader like any other call. A stream is not: followed_streams.py.

Theory of operation. The leader's answer cannot be stale: its bytes leave only while nobody else can have taken the lead
(Turn), as those of any reply. Batches are numbered over all epochs.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.server.loop.call import UnaryCall

_STEP_READS: Final = 100  # that are answered in one loop step: 5 to 10 ms


class Home(Protocol):
    """The part of a Follower that its reads need."""

    now_s: Callable[[], float]

    def ask_how_far(self, number: int) -> None:
        """Asks the leader, over the link that is ready. It answers `Reads.answered`."""
        ...

    def read_at_leader(self, read: "Read") -> None:
        """The read goes the way of all other calls."""
        ...

    def forget_read(self, read: "Asking") -> None:
        """Nothing is kept of it any more."""
        ...


class Asking(Protocol):
    """A read that waits, a call of Range or a RangeStream; or the answer to a call that the leader has carried out."""

    since_s: float  # since when
    size_bytes: int

    @property
    def patient(self) -> bool:
        """Whether it goes on waiting when its batch does not come."""
        ...

    def serve(self) -> None:
        """This server has what it has to show."""
        ...

    def lost(self) -> None:
        """Its question is lost; or its batch does not come, and it is not patient."""
        ...


class Read:
    """A call of Range that waits. Implements call.Waiting and Asking."""

    __slots__ = ("_home", "_reads", "call", "request", "since_s", "size_bytes")

    patient = False

    def __init__(self, home: Home, reads: "Reads", call: UnaryCall, request: rpc_pb2.RangeRequest) -> None:
        self._home = home
        self._reads = reads
        self.call = call
        self.request = request
        self.since_s = home.now_s()
        self.size_bytes = request.ByteSize()

    @property
    def open_ended(self) -> bool:
        return False

    def on_gone(self) -> None:
        self._reads.drop(self)

    def serve(self) -> None:
        self._home.forget_read(self)
        self.request.serializable = True
        self.call.wait_no_more()
        self.call.serve(self.request)

    def lost(self) -> None:
        self._home.forget_read(self)
        self.call.wait_no_more()
        self._home.read_at_leader(self)


class Reads:
    """Those that wait, in the order in which they came: to be asked for, asked for, for their batch, to be answered."""

    def __init__(self, home: Home, durable: Callable[[], int]) -> None:
        """`durable` is the newest batch that this server has."""
        self._home = home
        self._durable = durable
        self._number = 0  # of the newest question
        self._gathered: dict[Asking, None] = {}
        self._asked: dict[Asking, None] = {}
        self._due: deque[tuple[int, dict[Asking, None]]] = deque()
        self._ready: dict[Asking, None] = {}
        self._asking = self._answering = False  # whether a step of the loop will ask, or answer

    def add(self, call: UnaryCall, request: rpc_pb2.RangeRequest) -> Read:
        """Begins to wait. There has to be a link that is ready."""
        read = Read(self._home, self, call, request)
        self.add_asking(read)
        return read

    def add_asking(self, read: Asking) -> None:
        """The same for a read of any kind."""
        self._gathered[read] = None
        if not (self._asked or self._asking):
            self._asking = True
            asyncio.get_running_loop().call_soon(self._ask)

    def drop(self, read: Asking) -> None:
        """The call is over."""
        for waiting in (self._gathered, self._asked, *(reads for _, reads in self._due), self._ready):
            if read in waiting:
                del waiting[read]
                self._home.forget_read(read)

    def _ask(self) -> None:
        self._asking = False
        if self._gathered and not self._asked:  # an answer may have come, and led to a question, since this was due
            self._asked, self._gathered = self._gathered, {}
            self._number += 1
            self._home.ask_how_far(self._number)

    def answered(self, number: int, batch: int) -> None:
        """The leader's answer: whoever has `batch` has all that anybody was told of when the question came to it."""
        if number == self._number:
            self._due.append((batch, self._asked))
            self._asked = {}
            self._ask()
            self.look()

    def look(self) -> None:
        """Lets go on whose batch is there. To be called when one has come."""
        durable = self._durable()
        while self._due and self._due[0][0] <= durable:
            self._ready |= self._due.popleft()[1]
        if self._ready and not self._answering:
            self._answering = True
            self._answer_some()

    def _answer_some(self) -> None:
        for read in list(self._ready)[:_STEP_READS]:
            if read in self._ready:  # an answer may end another call of its connection
                del self._ready[read]
                read.serve()
        self._answering = bool(self._ready)
        if self._answering:
            asyncio.get_running_loop().call_soon(self._answer_some)

    def lose(self) -> None:
        """The link is lost, and the question with it."""
        self._number += 1  # an answer that still comes is of a question that nobody has asked
        lost = self._asked | self._gathered
        self._asked, self._gathered = {}, {}
        self._pass_on(lost)

    def pass_on_late(self) -> None:
        """Passes on the reads whose batch does not come. To be called now and then."""
        before_s = self._home.now_s() - limits.READ_INDEX_S_MAX
        for _, reads in self._due:
            late = dict.fromkeys(read for read in reads if read.since_s < before_s and not read.patient)
            for read in late:
                del reads[read]
            self._pass_on(late)
        self._due = deque(each for each in self._due if each[1])  # the batch may not come for long

    def _pass_on(self, reads: dict[Asking, None]) -> None:
        for read in reads:
            read.lost()

    def serve_all(self) -> None:
        """This server leads: it needs to ask nobody."""
        self._number += 1
        waiting = self._ready
        for _, reads in self._due:
            waiting |= reads
        waiting |= self._asked | self._gathered
        self._ready, self._asked, self._gathered = {}, {}, {}
        self._due.clear()
        for read in waiting:
            read.serve()

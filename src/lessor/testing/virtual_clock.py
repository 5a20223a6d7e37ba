# SPDX-License-Identifier: Apache-2.0
"""A clock that tests can jump, and the event loop that runs by it. Sockets stay real.

Laws
- All times in the server come from this one clock: lease deadlines and every timer of the loop (RPC deadlines,
  compaction, progress notifications, tokens, handshakes). They move together or not at all.
- In a jump time passes as usual, only faster. The jump stops at each timer that comes due, in order. It goes on when
  all consequences are over: callbacks have run, batches are on disk, bytes are handed to the sockets. Bytes that wait
  in the sockets are read before each step, so a keepalive that was sent before the jump counts.
- Time never runs backwards, and never moves while a commit or the hash of a password is under way.

Theory of operation. An asyncio loop asks its selector to wait until the next timer is due. It asks only when nothing is
ready to run. The selector here then looks at the sockets. While they have bytes, or a thread of the server works, time
does not move. Otherwise, in a jump, time is set to the instant of that timer, and the loop runs it. When no timer is
left before the end of the jump, time is set to the end, and the jump is over.

A *frozen* clock moves by jumps only, so a test of an hour is exact. A *flowing* clock runs with real time, and jumps on
top. Clients are not on this clock: one that renews every ten real seconds does not renew during a jump of an hour.

This clock does not change the wall clock, by which JSON web tokens expire.
"""

import asyncio
import contextlib
import math
import selectors
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import Context
from typing import Any, Protocol, TypeVarTuple

from lessor.base.clock import MonotonicClock
from lessor.server.loop.expiry import MARGIN_S

FIRST_S = 1_000.0  # the first reading of a frozen clock
# A lease ends MARGIN_S after its deadline. A jump as long as its TTL must end it, so a jump also runs the timers that
# are due so soon after its end.
LATE_S_MAX = 2 * MARGIN_S
TICK_S = 1e-6  # the shortest delay of a timer: one that sets itself again within a rounding error would never end
LOOK_S = 0.0005  # how often to look whether the threads are done; the most important ones wake the loop themselves
AUTO_IDLE_S = 0.02
JUMP_REAL_S_MAX = 60.0  # when a jump takes longer, the server hangs

_real = MonotonicClock()
Ts = TypeVarTuple("Ts")
Poll = Callable[[float | None], list[Any]]


class Timed(Protocol):
    """A server that runs by a VirtualClock. All calls come in the thread of its loop."""

    def busy(self) -> bool:
        """Whether time must not move: a thread does work whose result is waited for."""
        ...

    def settled(self) -> bool:
        """Whether no work is left, upkeep included. Only called while not `busy`."""
        ...

    def next_deadline(self) -> float | None:
        """The earliest instant at which a lease may be due, on this clock; None without leases."""
        ...

    def hurry(self, jumping: bool) -> None:
        """A jump begins: work that is only done now and then may be left out. Or it ends: that work is done once."""
        ...


class VirtualClock:
    """The time of one server. `jump` and `auto_jump` are for any thread but the server's."""

    def __init__(self, *, flowing: bool = False) -> None:
        self.flowing = flowing
        self._base_s = 0.0 if flowing else FIRST_S
        self._loop: VirtualLoop | None = None
        self._one_at_a_time = threading.Lock()
        self._server: Timed | None = None
        self._jump: tuple[float, Future[None]] | None = None  # (the end, the future of the caller)
        self._arrived = False  # time is at the end of the jump, and only work is left
        self._auto_idle_s: float | None = None
        self._heard_s = 0.0  # when a socket or a thread last had something for the loop, in real time

    def now_s(self) -> float:
        """Seconds on this clock. Implements `lessor.base.clock.Clock`."""
        return self._base_s + _real.now_s() if self.flowing else self._base_s

    def jump(self, seconds: float) -> None:
        """Lets `seconds` (0 or more) pass. Returns when all consequences are over.

        Leases that ended are deleted, also on disk, and the events for their watchers are in the sockets. The jump is
        up to 2 ms longer than asked when a timer is due within those, so a jump of a lease's TTL ends the lease. Cost:
        less than a millisecond, and as much again for each timer on the way that causes a write. For a server that is
        not running, the time has passed at its next start. Raises TimeoutError when the server does not finish within
        JUMP_REAL_S_MAX, ValueError for a negative time.
        """
        if not seconds >= 0:
            raise ValueError(f"a jump of {seconds!r} s: time does not run backwards")
        with self._one_at_a_time:
            done: Future[None] = Future()
            loop = self._loop
            if loop is None:
                self._base_s += seconds
                return
            if loop.is_own_thread:
                raise RuntimeError("a jump waits for the server's loop, so it cannot be made in it")
            loop.call_soon_threadsafe(self._begin_jump, seconds, done)
            done.result(JUMP_REAL_S_MAX)

    @contextlib.contextmanager
    def auto_jump(self, idle_s: float = AUTO_IDLE_S) -> Iterator[None]:
        """Within the block an idle server jumps to its next lease deadline by itself, so no test waits for an expiry.

        Idle means: for `idle_s` of real time no socket was ready, no commit or hash was under way, and no other thread
        called into the server's loop. A client that keeps a lease alive at longer intervals than that loses it.
        """
        self._set_auto(idle_s)
        try:
            yield
        finally:
            self._set_auto(None)

    # --- for the server that runs by this clock ---

    def attach(self, loop: "VirtualLoop", server: Timed) -> None:
        """Gives the clock its loop and its server."""
        self._loop, self._server = loop, server

    def detach(self) -> None:
        """The loop is about to end: a caller that waits for a jump gets RuntimeError. In the loop's thread."""
        self._loop = self._server = None
        jump, self._jump = self._jump, None
        if jump is not None:
            jump[1].set_exception(RuntimeError("the server ended during the jump"))

    def wait(self, timeout_s: float | None, poll: Poll) -> list[Any]:
        """Called when the loop has nothing to run, instead of a wait of `timeout_s` for a socket. None: for ever."""
        # Asked before the sockets, because a thread that ends wakes the loop through one of them.
        server = self._server
        busy = server is not None and (server.busy() or (self._arrived and not server.settled()))
        events = poll(0)
        if events or busy:
            self._heard_s = _real.now_s()
            return events or poll(LOOK_S)
        if self._jump is not None:
            self._step(timeout_s, *self._jump)
            return []
        if not self.flowing:
            timeout_s = None
        if self._auto_idle_s is not None and server is not None:
            deadline_s = server.next_deadline()
            left_s = self._heard_s + self._auto_idle_s - _real.now_s()
            if deadline_s is not None and left_s <= 0:
                self._start_jump(deadline_s, Future())
                return []
            if deadline_s is not None:
                timeout_s = left_s if timeout_s is None else min(left_s, timeout_s)
        events = poll(timeout_s)
        if events:
            self._heard_s = _real.now_s()
        return events

    # --- in the loop's thread ---

    def _begin_jump(self, seconds: float, done: "Future[None]") -> None:
        # A jump that is under way is one of auto_jump, and no caller waits for it.
        self._start_jump(self.now_s() + seconds, done)

    def _start_jump(self, end_s: float, done: "Future[None]") -> None:
        assert self._server is not None
        self._jump = (end_s, done)
        self._arrived = False
        self._server.hurry(True)

    def _step(self, timeout_s: float | None, end_s: float, done: "Future[None]") -> None:
        timer_s = math.inf if timeout_s is None else self.now_s() + timeout_s
        if timer_s <= end_s + LATE_S_MAX:
            # asyncio runs timers that are due before its time plus a nanosecond, a sum that half a year rounds away.
            self._move_to(timer_s if timer_s + 1e-9 > timer_s else math.nextafter(timer_s, math.inf))
        elif not self._arrived:
            self._move_to(end_s)
            self._arrived = True
            assert self._server is not None
            self._server.hurry(False)
        else:
            self._jump = None
            self._arrived = False
            self._heard_s = _real.now_s()
            done.set_result(None)

    def _move_to(self, instant_s: float) -> None:
        ahead_s = instant_s - self.now_s()
        if ahead_s > 0:
            self._base_s = self._base_s + ahead_s if self.flowing else instant_s

    def _set_auto(self, idle_s: float | None) -> None:
        self._auto_idle_s = idle_s
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(lambda: None)


class _Selector(selectors.DefaultSelector):
    """The selector of the platform, with the waiting done by the clock."""

    wait: Callable[[float | None, Poll], list[Any]] | None = None

    def select(self, timeout: float | None = None) -> list[Any]:
        poll = super().select
        if self.wait is None or (timeout is not None and timeout <= 0):
            return poll(timeout)
        return self.wait(timeout, poll)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with the time of a VirtualClock, until `let_go`."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._virtual = _Selector()
        self._thread = threading.get_ident()
        self._let_go_s: float | None = None
        super().__init__(self._virtual)
        self._virtual.wait = clock.wait

    @property
    def is_own_thread(self) -> bool:
        return threading.get_ident() == self._thread

    def time(self) -> float:
        now_s = self._clock.now_s()
        return now_s if self._let_go_s is None else now_s + _real.now_s() - self._let_go_s

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if delay > 0:
            delay = max(delay, TICK_S, 4 * math.ulp(self.time()))
        return super().call_later(delay, callback, *args, context=context)

    def let_go(self) -> None:
        """From now on timers run in real time, while the clock stands still or flows as before.

        For the end of a server: it waits a little for its clients, and that must not shorten any lease.
        """
        self._virtual.wait = None
        if not self._clock.flowing:
            self._let_go_s = _real.now_s()

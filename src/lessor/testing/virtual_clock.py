# SPDX-License-Identifier: Apache-2.0
"""A clock that tests can jump, and the event loop that runs by it. Sockets stay real.

Laws
- All times in the server come from this one clock: lease deadlines and every timer of the loop (RPC deadlines,
  compaction, progress notifications, tokens, handshakes). They move together or not at all.
- In a jump time passes as usual, only faster. The jump stops at each timer that comes due, in order. It goes on when
  all consequences are over: callbacks have run, batches are on disk, bytes are handed to the sockets. Bytes that wait
  in the sockets are read before each step, so a keepalive that was sent before the jump counts.
- Time never runs backwards, and never moves while a commit or the hash of a password is under way.
- Time is a whole number of microseconds. A jump moves it by exactly what was asked, and runs what is due until its end,
  the end included, and nothing else. A lease granted (or renewed) at an instant, with a TTL of whole seconds, lives
  until one microsecond before that instant plus the TTL, and has ended at it.

Theory of operation. An asyncio loop asks its selector to wait until the next timer is due. It asks only when nothing is
ready to run. The selector here then looks at the sockets. While they have bytes, or a thread of the server works, time
does not move. Otherwise, in a jump, time is set to the instant of that timer, and the loop runs it. When no timer is
left before the end of the jump, time is set to the end, and the jump is over.

The server computes with float seconds, which do not hold a microsecond exactly. So a reading is rounded down to a
multiple of 2**-20 s (0.95 us). Such multiples are exact floats, and so are their sums and differences, up to
CLOCK_S_MAX. Different microseconds have different readings, and a whole second more is exactly 1.0 more in the reading.
That is why no deadline of whole seconds is ever rounded. asyncio compares a timer with the time plus a nanosecond, a
sum that half a year rounds away; so the loop keeps a timer half a multiple before the instant at which it is to run.

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
from concurrent.futures import Future, wait
from contextvars import Context
from typing import Any, Protocol, TypeVarTuple

from lessor.base.clock import MonotonicClock

FIRST_S = 1_000.0  # the first reading of a frozen clock
CLOCK_S_MAX = 1 << 32  # 136 years; half of what a float holds in multiples of GRAIN_S, for deadlines of leases
GRAIN_S = 2.0**-20  # a reading is a multiple of it
TICK_S = GRAIN_S  # the shortest delay of a timer: one that sets itself again without a delay would never end
LOOK_S = 0.0005  # how often to look whether the threads are done; the most important ones wake the loop themselves
AUTO_IDLE_S = 0.02
STUCK_REAL_S = 60.0  # a server that makes no step of a jump for so long hangs

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
        self._base_us = 0 if flowing else int(FIRST_S) * 1_000_000
        self._loop: VirtualLoop | None = None
        self._one_at_a_time = threading.Lock()
        self._server: Timed | None = None
        self._jump: tuple[int, Future[None]] | None = None  # (the end in microseconds, the future of the caller)
        self._arrived = False  # time is at the end of the jump, and only work is left
        self._auto_idle_s: float | None = None
        self._heard_s = 0.0  # when a socket or a thread last had something for the loop, in real time

    def now_s(self) -> float:
        """Seconds on this clock, a multiple of GRAIN_S. Implements `lessor.base.clock.Clock`."""
        return _reading_s(self._now_us())

    def _now_us(self) -> int:
        return self._base_us + int(_real.now_s() * 1e6) if self.flowing else self._base_us

    def jump(self, seconds: float) -> None:
        """Lets `seconds` (0 or more, rounded to whole microseconds) pass. Returns when all consequences are over.

        What is due by the end of the jump happens, to the microsecond: a jump of a lease's TTL ends the lease, a jump
        of a microsecond less does not. Leases that ended are deleted, also on disk, and the events for their watchers
        are in the sockets. Cost: less than a millisecond, and as much again for each timer on the way that causes a
        write; a year of an idle server takes seconds. For a server that is not running, the time has passed at its next
        start.

        Raises TypeError for anything but a number, and ValueError for one that is negative, not finite, or would take
        the clock beyond CLOCK_S_MAX, 136 years in all; time has not moved then. Raises TimeoutError when the server
        makes no step for STUCK_REAL_S of real time, and RuntimeError when it ends meanwhile or in its own thread.
        """
        ahead_us = _whole_us(check_seconds("a jump", seconds))
        with self._one_at_a_time:
            if self._now_us() + ahead_us > CLOCK_S_MAX * 1_000_000:
                raise ValueError(f"a jump of {seconds!r} s: this clock counts {CLOCK_S_MAX} s (136 years) in all")
            done: Future[None] = Future()
            loop = self._loop
            if loop is None:
                self._base_us += ahead_us
                return
            if loop.is_own_thread:
                raise RuntimeError("a jump waits for the server's loop, so it cannot be made in it")
            loop.call_soon_threadsafe(self._begin_jump, ahead_us, done)
            was_us = None
            while was_us != self._base_us and not done.done():
                was_us = self._base_us
                wait([done], STUCK_REAL_S)
            if not done.done():
                text = f"the server has made no step for {STUCK_REAL_S:g} s of real time"
                raise TimeoutError(f"a jump of {seconds!r} s: {text}")
            done.result()

    @contextlib.contextmanager
    def auto_jump(self, idle_s: float = AUTO_IDLE_S) -> Iterator[None]:
        """Within the block an idle server jumps to its next lease deadline by itself, so no test waits for an expiry.

        Idle means: for `idle_s` of real time no socket was ready, no commit or hash was under way, and no other thread
        called into the server's loop. A client that keeps a lease alive at longer intervals than that loses it.
        Raises TypeError and ValueError as `jump` does.
        """
        self._set_auto(check_seconds("an idle time", idle_s))
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
            if deadline_s is not None and deadline_s > CLOCK_S_MAX:
                deadline_s = None  # this clock does not get there
            if deadline_s is not None and left_s <= 0:
                self._start_jump(_first_us(deadline_s), Future())
                return []
            if deadline_s is not None:
                timeout_s = left_s if timeout_s is None else min(left_s, timeout_s)
        events = poll(timeout_s)
        if events:
            self._heard_s = _real.now_s()
        return events

    # --- in the loop's thread ---

    def _begin_jump(self, ahead_us: int, done: "Future[None]") -> None:
        # A jump that is under way is one of auto_jump, and no caller waits for it.
        self._start_jump(self._now_us() + ahead_us, done)

    def _start_jump(self, end_us: int, done: "Future[None]") -> None:
        assert self._server is not None
        self._jump = (end_us, done)
        self._arrived = False
        self._server.hurry(True)

    def _step(self, timeout_s: float | None, end_us: int, done: "Future[None]") -> None:
        timer_us = None if timeout_s is None else _first_us(self.now_s() + timeout_s)
        if timer_us is not None and timer_us <= end_us:
            self._move_to(timer_us)
        elif not self._arrived:
            self._move_to(end_us)
            self._arrived = True
            assert self._server is not None
            self._server.hurry(False)
        else:
            self._jump = None
            self._arrived = False
            self._heard_s = _real.now_s()
            done.set_result(None)

    def _move_to(self, instant_us: int) -> None:
        self._base_us += max(instant_us - self._now_us(), 0)

    def _set_auto(self, idle_s: float | None) -> None:
        self._auto_idle_s = idle_s
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(lambda: None)


def check_seconds(what: str, seconds: object) -> int | float:
    """A time that a test gave, 0 or more. Raises TypeError and ValueError, which say what is wrong with it."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{what} of {seconds!r}: it takes a number of seconds")
    if isinstance(seconds, float) and not math.isfinite(seconds):
        raise ValueError(f"{what} of {seconds!r} s: it takes a finite number of seconds")
    if seconds < 0:
        raise ValueError(f"{what} of {seconds!r} s: time does not run backwards")
    return seconds


def _whole_us(seconds: int | float) -> int:
    return seconds * 1_000_000 if isinstance(seconds, int) else round(seconds * 1e6)


def _reading_s(instant_us: int) -> float:
    """What the clock shows: the instant, rounded down to a multiple of GRAIN_S."""
    return ((instant_us << 20) // 1_000_000) * GRAIN_S


def _first_us(reading_s: float) -> int:
    """The first instant at which the clock shows `reading_s` or more."""
    return -((-math.ceil(reading_s / GRAIN_S) * 1_000_000) >> 20)


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
            delay = max(delay, TICK_S)
        return super().call_later(delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        # Half a grain early, so that asyncio finds it due when the clock shows exactly `when`. Between two readings:
        # with the one before, so that a jump of 0.3 s runs a timer of 0.3 s; it may run a microsecond early.
        when = (math.floor(when / GRAIN_S) - 0.5) * GRAIN_S
        return super().call_at(when, callback, *args, context=context)

    def let_go(self) -> None:
        """From now on timers run in real time, while the clock stands still or flows as before.

        For the end of a server: it waits a little for its clients, and that must not shorten any lease.
        """
        self._virtual.wait = None
        if not self._clock.flowing:
            self._let_go_s = _real.now_s()

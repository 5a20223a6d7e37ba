# SPDX-License-Identifier: Apache-2.0
"""The clock that can be jumped, with a bare loop: which timers run, when, and what time stands still for."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.testing.virtual_clock import (
    CLOCK_S_MAX,
    FIRST_S,
    GRAIN_S,
    VirtualClock,
    VirtualLoop,
    _first_us,
    _reading_s,
)


class Machine:
    """Stands in for a server. Implements `Timed`."""

    def __init__(self) -> None:
        self.work = 0  # what threads have in hand
        self.upkeep = 0
        self.deadline_s: float | None = None
        self.hurried: list[bool] = []

    def busy(self) -> bool:
        return self.work > 0

    def settled(self) -> bool:
        return self.upkeep == 0

    def next_deadline(self) -> float | None:
        return self.deadline_s

    def hurry(self, jumping: bool) -> None:
        self.hurried.append(jumping)


@contextmanager
def running(clock: VirtualClock, machine: Machine | None = None) -> Iterator[VirtualLoop]:
    """A loop that lives by the clock, in a thread."""
    loops: list[VirtualLoop] = []
    up = threading.Event()

    def run() -> None:
        loop = VirtualLoop(clock)
        loops.append(loop)
        clock.attach(loop, machine or Machine())
        loop.call_soon(up.set)
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    up.wait()
    try:
        yield loops[0]
    finally:
        loops[0].call_soon_threadsafe(clock.detach)
        loops[0].call_soon_threadsafe(loops[0].stop)
        thread.join()


def in_loop(loop: VirtualLoop, work: Callable[[], Any]) -> Any:
    async def run() -> Any:
        return work()

    return asyncio.run_coroutine_threadsafe(run(), loop).result(10)


SPANS = st.integers(0, 60_000).map(lambda ms: ms / 1000)


@given(delays=st.lists(SPANS, max_size=8), jumps=st.lists(SPANS, max_size=5))
@settings(max_examples=25, deadline=None)
def test_timers_run_in_order_each_at_its_time_and_none_too_soon(delays: list[float], jumps: list[float]) -> None:
    clock = VirtualClock()
    ran: list[tuple[float, float]] = []
    with running(clock) as loop:

        def run(due_s: float) -> None:
            ran.append((due_s, clock.now_s()))

        def start() -> None:
            for delay in delays:
                loop.call_later(delay, run, FIRST_S + delay)

        in_loop(loop, start)
        gone_ms = 0
        for seconds in jumps:
            clock.jump(seconds)
            gone_ms += round(seconds * 1000)
            assert clock.now_s() == pytest.approx(FIRST_S + gone_ms / 1000, abs=GRAIN_S, rel=0)
            due = {due_s for due_s, _ in ran}
            assert due == {FIRST_S + delay for delay in delays if round(delay * 1000) <= gone_ms}
        assert [due_s for due_s, _ in ran] == sorted(due_s for due_s, _ in ran)
        assert all(due_s - 1e-6 <= at_s <= due_s + 2e-6 for due_s, at_s in ran)


def test_what_a_timer_sets_going_is_part_of_the_jump() -> None:
    clock = VirtualClock()
    seen: list[float] = []
    with running(clock) as loop:

        async def story() -> None:
            for _ in range(3):
                await asyncio.sleep(1200)
                seen.append(clock.now_s() - FIRST_S)

        task = asyncio.run_coroutine_threadsafe(story(), loop)
        clock.jump(3600)
        assert task.done()
    assert seen == [1200, 2400, 3600]


def test_what_comes_through_a_socket_meanwhile_is_read_before_time_goes_on() -> None:
    clock = VirtualClock()
    order: list[str] = []
    here, there = socket.socketpair()
    with here, there, running(clock) as loop:

        def start() -> None:
            loop.add_reader(there, lambda: order.append(there.recv(1).decode()))
            loop.call_later(5, here.send, b"x")
            loop.call_later(5.0001, order.append, "timer")

        in_loop(loop, start)
        clock.jump(10)
        assert order == ["x", "timer"]
        in_loop(loop, lambda: loop.remove_reader(there))


def test_a_timer_that_sets_itself_again_at_once_does_not_stop_time() -> None:
    clock = VirtualClock()
    with running(clock) as loop:
        count = 0

        def again() -> None:
            nonlocal count
            count += 1
            loop.call_later(1e-12, again)

        in_loop(loop, again)
        clock.jump(0.0001)
        assert 10 < count < 10_000
        clock._base_us = (CLOCK_S_MAX - 1) * 1_000_000  # where floats are rarest
        clock.jump(0.0001)


def test_frozen_time_moves_by_jumps_only() -> None:
    clock = VirtualClock()
    with running(clock) as loop:
        timer = in_loop(loop, lambda: loop.call_later(0.001, lambda: None))
        for _ in range(5):
            in_loop(loop, lambda: None)
        assert clock.now_s() == FIRST_S
        assert timer.when() > loop.time()
        clock.jump(5)
        assert clock.now_s() == FIRST_S + 5


def test_flowing_time_flows_and_can_be_jumped() -> None:
    clock = VirtualClock(flowing=True)
    ran = threading.Event()
    with running(clock) as loop:
        in_loop(loop, lambda: loop.call_later(0.001, ran.set))
        assert ran.wait(10)
        ran.clear()
        before_s = clock.now_s()
        in_loop(loop, lambda: loop.call_later(3600, ran.set))
        clock.jump(3600)
        assert ran.is_set()
        assert clock.now_s() >= before_s + 3600


def test_time_stands_still_while_a_thread_works() -> None:
    clock, machine = VirtualClock(), Machine()
    with running(clock, machine) as loop:
        machine.work = 1
        timer = in_loop(loop, lambda: loop.call_later(5, lambda: None))
        jumping = threading.Thread(target=lambda: clock.jump(10))
        jumping.start()
        for _ in range(20):
            assert in_loop(loop, clock.now_s) == FIRST_S
        assert jumping.is_alive()
        machine.work = 0
        jumping.join(10)
        assert clock.now_s() == FIRST_S + 10
        assert timer.when() == FIRST_S + 5 - GRAIN_S / 2


def test_a_jump_ends_when_upkeep_is_done() -> None:
    clock, machine = VirtualClock(), Machine()
    with running(clock, machine) as loop:
        machine.upkeep = 1
        jumping = threading.Thread(target=lambda: clock.jump(10))
        jumping.start()
        while in_loop(loop, clock.now_s) != FIRST_S + 10:
            pass
        assert jumping.is_alive()
        assert machine.hurried == [True, False]
        machine.upkeep = 0
        jumping.join(10)
        assert not jumping.is_alive()


@pytest.mark.parametrize("later_s", [0, 365 * 86_400, CLOCK_S_MAX - 2_000], ids=["now", "in a year", "at last"])
def test_what_falls_due_at_the_end_belongs_to_the_jump_and_a_microsecond_later_does_not(later_s: int) -> None:
    clock = VirtualClock()
    ran: list[str] = []
    clock.jump(later_s)
    with running(clock) as loop:
        in_loop(loop, lambda: loop.call_later(10, ran.append, "at the end"))
        clock.jump(0.000_001)
        in_loop(loop, lambda: loop.call_later(10, ran.append, "behind it"))
        clock.jump(9.999_998)
        assert ran == []
        clock.jump(0.000_001)
        assert ran == ["at the end"]
        clock.jump(0)
        assert ran == ["at the end"]
        clock.jump(0.000_001)
        assert ran == ["at the end", "behind it"]


def test_auto_jump_goes_to_the_deadline_and_only_within_its_block() -> None:
    clock, machine = VirtualClock(), Machine()
    ran = threading.Event()

    def expire() -> None:
        machine.deadline_s = None
        ran.set()

    with running(clock, machine) as loop:
        machine.deadline_s = FIRST_S + 60
        in_loop(loop, lambda: loop.call_later(60, expire))
        assert not ran.wait(0.03)
        with clock.auto_jump(idle_s=0.001):
            assert ran.wait(10)
        assert FIRST_S + 60 <= clock.now_s() <= FIRST_S + 60.002
        machine.deadline_s = FIRST_S + 120
        assert in_loop(loop, clock.now_s) <= FIRST_S + 60.002


def test_a_clock_without_a_server_can_be_jumped() -> None:
    clock = VirtualClock()
    clock.jump(7)
    assert clock.now_s() == FIRST_S + 7


@pytest.mark.parametrize(
    ("seconds", "error", "says"),
    [
        (-1.0, ValueError, "a jump of -1.0 s: time does not run backwards"),
        (-1e-300, ValueError, "backwards"),
        (float("nan"), ValueError, "a jump of nan s: it takes a finite number of seconds"),
        (float("inf"), ValueError, "a jump of inf s: it takes a finite number of seconds"),
        (1e12, ValueError, "a jump of 1000000000000.0 s: this clock counts 4294967296 s .136 years. in all"),
        (10**400, ValueError, "136 years"),
        ("1", TypeError, "a jump of '1': it takes a number of seconds"),
        (None, TypeError, "a jump of None: it takes a number of seconds"),
        (True, TypeError, "a jump of True: it takes a number of seconds"),
        (1j, TypeError, "it takes a number of seconds"),
    ],
)
@pytest.mark.parametrize("with_a_loop", [False, True])
def test_a_jump_that_cannot_be_says_why(seconds: Any, error: type[Exception], says: str, with_a_loop: bool) -> None:
    clock = VirtualClock()
    with running(clock) if with_a_loop else nullcontext(), pytest.raises(error, match=says):
        clock.jump(seconds)
    assert clock.now_s() == FIRST_S


def test_a_clock_at_its_end_says_so_and_still_works() -> None:
    clock = VirtualClock()
    clock.jump(CLOCK_S_MAX - FIRST_S)
    with pytest.raises(ValueError, match="136 years"):
        clock.jump(1e-6)
    clock.jump(0)
    assert clock.now_s() == CLOCK_S_MAX


@given(instant_us=st.integers(0, CLOCK_S_MAX * 1_000_000), seconds=st.integers(0, CLOCK_S_MAX))
def test_readings_tell_microseconds_apart_and_whole_seconds_are_exact(instant_us: int, seconds: int) -> None:
    shown_s = _reading_s(instant_us)
    assert _first_us(shown_s) == instant_us
    assert instant_us / 1e6 - GRAIN_S <= shown_s <= instant_us / 1e6
    assert _reading_s(instant_us + seconds * 1_000_000) == shown_s + seconds
    assert _reading_s(instant_us + 1) > shown_s


def test_a_jump_in_the_loops_own_thread_is_refused() -> None:
    clock = VirtualClock()
    with running(clock) as loop, pytest.raises(RuntimeError, match="cannot be made in it"):
        in_loop(loop, lambda: clock.jump(1))


def test_who_waits_for_a_jump_is_told_when_the_loop_ends() -> None:
    clock, machine = VirtualClock(), Machine()
    problems: list[BaseException] = []

    def jump() -> None:
        try:
            clock.jump(1)
        except RuntimeError as problem:
            problems.append(problem)

    machine.work = 1
    with running(clock, machine) as loop:
        jumping = threading.Thread(target=jump)
        jumping.start()
        while in_loop(loop, lambda: clock._jump) is None:
            pass
    jumping.join(10)
    assert [str(problem) for problem in problems] == ["the server ended during the jump"]

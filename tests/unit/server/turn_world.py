# SPDX-License-Identifier: Apache-2.0
"""A `Turn` on a loop, a disk and a clock that the test moves."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from lessor.api.proto import rpc_pb2
from lessor.base.errors import EtcdError
from lessor.server.loop.committer import Committer
from lessor.server.loop.release import Gate
from lessor.server.loop.turn import Turn
from lessor.state.journal import Batch
from lessor.state.machine import Identity, StateMachine
from lessor.state.watch_changes import Changes
from lessor.state.watcher import Watcher


class Loop:
    """What Turn uses of an event loop. `run` is one iteration: due timers, then what was scheduled before it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._ready: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._timers: list[Timer] = []

    def call_soon(self, callback: Callable[..., Any], *arguments: Any) -> None:
        self._ready.append((callback, arguments))

    def call_later(self, delay_s: float, callback: Callable[..., Any], *arguments: Any) -> "Timer":
        timer = Timer(self.now_s + delay_s, callback, arguments)
        if delay_s > 0:
            self._timers.append(timer)
        else:  # as uvloop does it
            self.call_soon(lambda: timer.cancelled or callback(*arguments))
        return timer

    def run(self, poll: Callable[[], None] = lambda: None) -> None:
        """`poll` stands for the reading of the sockets, which comes after the callbacks, as in uvloop."""
        due = [timer for timer in self._timers if timer.due_s <= self.now_s and not timer.cancelled]
        self._timers = [timer for timer in self._timers if timer not in due and not timer.cancelled]
        for timer in due:
            timer.callback(*timer.arguments)
        ready, self._ready = self._ready, []
        for callback, arguments in ready:
            callback(*arguments)
        poll()

    def settle(self) -> None:
        """Runs until nothing is scheduled but timers of the future."""
        while self._ready or any(t.due_s <= self.now_s and not t.cancelled for t in self._timers):
            self.run()

    @property
    def next_timer_s(self) -> float | None:
        return min((timer.due_s for timer in self._timers if not timer.cancelled), default=None)


class Timer:
    def __init__(self, due_s: float, callback: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.due_s, self.callback, self.arguments = due_s, callback, arguments
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Disk:
    """Stands for the committer: holds the batch in flight until the test says what became of it."""

    def __init__(self) -> None:
        self.in_flight: Batch | None = None
        self.batches: list[Batch] = []
        self.failed = False

    def start(self, loop: Any, on_committed: Callable[[Batch], None], on_failure: Callable[[Any], None]) -> None:
        self._on_committed, self._on_failure = on_committed, on_failure

    @property
    def free(self) -> bool:
        return self.in_flight is None and not self.failed

    def commit(self, batch: Batch) -> None:
        assert self.free
        self.in_flight = batch
        self.batches.append(batch)

    def succeed(self) -> None:
        batch, self.in_flight = self.in_flight, None
        assert batch is not None
        self._on_committed(batch)

    def fail(self) -> None:
        self.in_flight = None
        self.give_up(OSError("disk full"))

    def give_up(self, error: Exception) -> None:
        if not self.failed:
            self.failed = True
            self._on_failure(error)


class Peer:
    """An outlet, a connection and an owner of watchers in one."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.shown: list[Changes] = []
        self.flushed = 0
        self.resumed = 0

    def deliver(self, payload: Any) -> None:
        self.got.append(payload)

    def on_changes(self, _watchers: list[Watcher], changes: Changes) -> None:
        self.shown.append(changes)

    def end_now(self, error: EtcdError) -> None:
        self.got.append(error)

    def flush(self) -> None:
        self.flushed += 1

    def resume_reading(self) -> None:
        self.resumed += 1

    def go_on(self) -> None:
        """It has no bytes that wait."""


class World:
    """A turn with everything around it."""

    def __init__(self) -> None:
        self.loop, self.disk = Loop(), Disk()
        self.machine = StateMachine(Identity(1, 2, 3))
        self.gate = Gate(durable=0)
        self.failures: list[Any] = []
        self.expired: list[tuple[int, float]] = []
        world = self

        class Clock:
            def now_s(self) -> float:
                return world.loop.now_s

        self.turn = Turn(
            self.machine,
            self.gate,
            cast(Committer, self.disk),
            Clock(),
            0.0,
            lambda leases, late_s: self.expired.append((leases, late_s)),
        )
        self.turn.start(cast(asyncio.AbstractEventLoop, self.loop), self.failures.append)
        self.loop.settle()

    def call(self, request: Any, peer: Peer | None = None) -> Any:
        """What core.unary does with a request that just came in."""
        reply = self.machine.apply(request, self.turn.now_s())
        self.gate.hold(self.machine.journal.newest_with_rows, peer or Peer(), reply)
        self.turn.schedule()
        return reply

    def grant(self, ttl_s: int, lease_id: int = 0, peer: Peer | None = None) -> int:
        return int(self.call(rpc_pb2.LeaseGrantRequest(TTL=ttl_s, ID=lease_id), peer).ID)

    def settle(self) -> None:
        self.loop.settle()
        while self.disk.in_flight:
            self.disk.succeed()
            self.loop.settle()

    def pass_time(self, seconds: float) -> None:
        """Lets the clock go on as on an idle machine: to each timer in turn."""
        end_s = self.loop.now_s + seconds
        while (timer_s := self.loop.next_timer_s) is not None and timer_s <= end_s:
            # A real clock has moved on a little whenever it is read. With one that does not, an instant that rounds to
            # just before the timer would stay there for ever.
            self.loop.now_s = max(self.loop.now_s, timer_s) + 1e-9
            self.settle()
        self.loop.now_s = max(self.loop.now_s, end_s)
        self.settle()


def once(unread: list[Callable[[], Any]]) -> Callable[[], None]:
    """A poll of the sockets that finds this, the first time."""

    def poll() -> None:
        if unread:
            unread.pop()()

    return poll


class Reader(Peer):
    """A connection that has read much, and renews a lease with the last of it, `turns` turns later."""

    def __init__(self, world: World, turns: int, lease: int = 0) -> None:
        super().__init__()
        self.world, self.turns, self.lease = world, turns, lease

    def go_on(self) -> None:
        if not self.turns:  # it has closed
            return
        self.world.turn.schedule()
        self.turns -= 1
        if self.turns:
            self.world.turn.go_on_later(self)
            return
        if self.lease:
            self.world.machine.leases.renew(self.lease, self.world.turn.now_s())
        self.world.turn.caught_up(self)

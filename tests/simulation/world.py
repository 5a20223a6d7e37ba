# SPDX-License-Identifier: Apache-2.0
"""The world of a simulation: one true time, one source of chance, a heap of things to come. Nothing else moves.

Laws
- One seed gives one run, step for step: whatever is random is drawn from `chance`, and nothing depends on the order of
  a set, on an address in memory or on the machine's clock.
- One step is carried out at a time; `after_step` is called after each.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

KEPT_NOTES = 90


class Broken(Exception):  # noqa: N818 - it is a finding, not an error
    """A law does not hold."""


class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.now_s = 0.0
        self.steps = 0
        self.after_step: Callable[[], None] = lambda: None
        self._coming: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._notes: deque[tuple[float, tuple[Any, ...]]] = deque(maxlen=KEPT_NOTES)

    def after(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        """Has `action` called in so many true seconds."""
        self._order += 1
        heapq.heappush(self._coming, (self.now_s + delay_s, self._order, action, args))

    def run(self, until_s: float) -> None:
        coming = self._coming
        while coming and coming[0][0] <= until_s:
            self.now_s, _, action, args = heapq.heappop(coming)
            self.steps += 1
            action(*args)
            self.after_step()
        self.now_s = until_s

    def note(self, *parts: Any) -> None:
        """Keeps a line for the report of a failing run; it is put together only then."""
        self._notes.append((self.now_s, parts))

    def story(self) -> str:
        """The last notes."""
        return "\n".join(f"{at_s:10.4f} {' '.join(map(str, parts))}" for at_s, parts in self._notes)

    def likely(self, chance: float) -> bool:
        return self.chance.random() < chance


class Clock:
    """A process's clock: `rate` seconds a true second. It stands still while its machine is frozen."""

    def __init__(self, world: World, rate: float) -> None:
        self._world = world
        self.rate = rate
        self._origin_s = -world.chance.uniform(0.0, 1e5)
        self.frozen_s = 0.0  # true time that it did not count

    def now_s(self) -> float:
        return (self._world.now_s - self._origin_s - self.frozen_s) * self.rate

    def wall_s(self) -> float:
        """The wall clock of the same machine, which is set right when that was frozen."""
        return self._world.now_s * self.rate

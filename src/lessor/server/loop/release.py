# SPDX-License-Identifier: Apache-2.0
"""The release gate: nothing that a crash would take back leaves the server.

Laws
- What is held for batch N leaves when N is durable, in the order in which it was held, and never before.
- What needs no batch, or one that is durable already, leaves at once.
- Nothing held is ever dropped, reordered or answered twice; after a failed commit the gate stays shut for good.

Theory: every change is applied to memory first and is on disk some milliseconds later, so between the two moments
memory knows more than a crash would leave. Replies, errors and watch events are therefore made at once, while the
effects are at hand, but delivered here. Batches are numbered from the journal and become durable in that order.

The gate knows no sockets: it delivers to `Outlet`s.
"""

from collections import deque
from typing import Any, Protocol

from lessor.server.loop import bugs
from lessor.server.loop.bugs import Answerable


class Outlet(Answerable, Protocol):
    """Where something held goes when its batch is durable."""

    def deliver(self, payload: Any) -> None:
        """Takes what was held. A peer that went away is the outlet's own business; whatever it raises is a bug."""
        ...


class Gate:
    """Holds what must wait for a batch. All calls belong to the loop's thread."""

    __slots__ = ("_held", "durable")

    def __init__(self, durable: int) -> None:
        # The newest batch known to be on disk.
        self.durable = durable
        # (batch, what waits for it), ascending by batch; batches that nobody waits for are absent.
        self._held: deque[tuple[int, list[tuple[Outlet, Any]]]] = deque()

    def hold(self, batch: int, outlet: Outlet, payload: Any) -> None:
        """Delivers now when `batch` is durable, otherwise when it becomes so. O(1).

        `batch` must not be older than that of anything still held for the same outlet, which keeps an outlet's
        payloads in order; callers pass the newest batch with rows, or the newest they have waited for.
        """
        if batch <= self.durable:
            try:
                outlet.deliver(payload)
            except Exception as error:
                bugs.end(outlet, error)
            return
        held = self._held
        if held and held[-1][0] == batch:
            held[-1][1].append((outlet, payload))
        elif not held or held[-1][0] < batch:
            held.append((batch, [(outlet, payload)]))
        else:
            self._hold_older(batch, outlet, payload)

    def _hold_older(self, batch: int, outlet: Outlet, payload: Any) -> None:
        """Something newer is waited for already: this is a keepalive on a lease whose own batch is in flight."""
        for index, (number, waiting) in enumerate(self._held):
            if number == batch:
                waiting.append((outlet, payload))
                return
            if number > batch:
                # An entry of its own: with the newer one it would leave too late, and behind what follows it.
                self._held.insert(index, (batch, [(outlet, payload)]))
                return

    def committed(self, batch: int) -> None:
        """`batch` and all before it are durable: delivers what waited for them, oldest first."""
        self.durable = batch
        held = self._held
        while held and held[0][0] <= batch:
            for outlet, payload in held.popleft()[1]:
                try:
                    outlet.deliver(payload)
                except Exception as error:  # what waits beside it is for others
                    bugs.end(outlet, error)

    @property
    def waiting(self) -> int:
        """How many payloads are held, for the metrics. Cost: the batches waited for, mostly two at most."""
        return sum(len(waiting) for _, waiting in self._held)

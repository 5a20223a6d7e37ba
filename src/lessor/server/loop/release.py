# SPDX-License-Identifier: Apache-2.0
"""The release gate: nothing that a crash would take back leaves the server.

Laws
- A payload that is held for batch N leaves when N is durable, never earlier. Payloads of one batch leave in the order
  in which they were held.
- A payload for a batch that is durable already leaves at once.
- No payload is dropped, reordered or delivered twice. After a failed commit the gate stays shut for good.

Theory: every change is applied to memory first and is on disk some milliseconds later. In between, memory knows more
than a crash would leave. So replies, errors and watch events are made at once, while the effects are at hand, but
delivered here. The journal numbers the batches, and they become durable in that order.

The gate knows no sockets: it delivers to `Outlet`s.
"""

from collections import deque
from typing import Any, Final, Protocol

from lessor.server.loop import bugs
from lessor.server.loop.bugs import Answerable

PROMISED: Final = 1 << 62  # no batch has such a number, or a greater one: see Gate.promised


class Outlet(Answerable, Protocol):
    """Takes payloads from the gate."""

    def deliver(self, payload: Any) -> None:
        """The payload's batch is durable. The outlet copes with a peer that went away; any exception is a bug."""
        ...


class Gate:
    """Holds payloads until their batch is durable. Loop thread only."""

    __slots__ = ("_held", "durable", "promised")

    def __init__(self, durable: int) -> None:
        # The newest batch known to be on disk.
        self.durable = durable
        # (batch, the payloads held for it), ascending by batch; a batch without payloads is absent.
        self._held: deque[tuple[int, list[tuple[Outlet, Any]]]] = deque()
        # Stands for the batch of the long write that is under way, which nobody knows yet. Another number after that.
        self.promised = PROMISED

    def hold(self, batch: int, outlet: Outlet, payload: Any) -> None:
        """Delivers now if `batch` is durable, otherwise when it becomes durable. O(1), or see `_hold_older`.

        `batch` must not be older than the batch of a payload that is still held for the same outlet: this keeps an
        outlet's payloads in order. Callers pass the newest batch with rows, or the newest that they have waited for.
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
        """A newer batch has payloads already, or the one that is promised.

        Then this one is for a keepalive on a lease whose own batch is in flight, or a long write is under way.

        Cost: O(batches waited for).
        """
        for index, (number, waiting) in enumerate(self._held):
            if number == batch:
                waiting.append((outlet, payload))
                return
            if number > batch:
                # An entry of its own: in the newer one it would leave too late.
                self._held.insert(index, (batch, [(outlet, payload)]))
                return

    def committed(self, batch: int) -> None:
        """`batch` and all before it are durable: delivers the payloads held for them, oldest first."""
        self.durable = batch
        held = self._held
        while held and held[0][0] <= batch:
            for outlet, payload in held.popleft()[1]:
                try:
                    outlet.deliver(payload)
                except Exception as error:  # the other payloads are for other calls
                    bugs.end(outlet, error)

    def settle_promised(self, batch: int) -> None:
        """The long write has ended, in `batch` or in none: what was held for `promised` waits for that batch."""
        held = self._held
        waiting = held.pop()[1] if held and held[-1][0] == self.promised else ()
        self.promised += 1
        for outlet, payload in waiting:
            self.hold(batch, outlet, payload)

    @property
    def waiting(self) -> int:
        """The number of payloads held, for the metrics. Cost: O(batches waited for), mostly two at most."""
        return sum(len(waiting) for _, waiting in self._held)

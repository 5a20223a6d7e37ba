# SPDX-License-Identifier: Apache-2.0
"""A write that takes effect in many steps, at one revision.

Laws
- From its beginning to its last step nothing else reads or writes keys, and no lease is granted or ended: the state
  machine refuses it. Renewals and all that looks at the time of leases alone go on.
- Until the last step the journal has nothing of the write, neither of its keys nor of the lease that it ends: a batch
  that is sealed meanwhile is as if the write had not begun. In the last step all of it joins the open batch.
- After each step the store can be read as of the revision before the write; so history may be sent meanwhile.
- An EtcdError is the answer to a write that has changed nothing. Any other exception leaves memory half changed: the
  caller has to stop the server.
- The lease that the write ends cannot be renewed any more, from the beginning on. Whoever is told so must not be told
  before the write is durable.

Theory of operation. The steps are those of a generator, which the state machine makes. The rows of the store go to an
`OpenWrite` in place of the journal. What has to wait for the end is kept by the server (server/loop/long_writes.py).

Does not do: knowing what the write means (kv.py, txn_steps.py, machine.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from heapq import merge
from itertools import islice

from lessor.base import limits
from lessor.base.errors import EtcdError
from lessor.state.lease import Lease
from lessor.state.long_read import Written

Outcome = bytes | Written
Steps = Generator[None, None, Outcome]

_RUN_KEYS = 8  # times WRITE_STEP_KEYS: keys that are sorted at once


class LongWrite:
    """One write under way. The state machine keeps it until its last step."""

    __slots__ = ("_ended", "_steps", "_untouched", "ending", "outcome")

    def __init__(
        self, steps: Steps, ending: Lease | None, untouched: Callable[[], bool], ended: Callable[[], None]
    ) -> None:
        """`ending`: the lease that it ends, if any. `untouched`: whether nothing has changed yet."""
        self._steps = steps
        self._untouched = untouched
        self._ended = ended
        self.ending = ending
        self.outcome: Outcome | EtcdError = b""  # after the last step: the reply, or the answer to a refused write

    def step(self) -> bool:
        """Takes the next step; returns whether there is another one to take.

        Raises what the caller has to stop the server for. Cost: WRITE_STEP_KEYS keys, some milliseconds.
        """
        try:
            next(self._steps)
        except StopIteration as end:
            self.outcome = end.value
        except EtcdError as error:
            if self.ending is not None or not self._untouched():
                raise RuntimeError("a write was refused after it had begun") from error
            self.outcome = error
        else:
            return True
        self._ended()
        return False

    def complete(self) -> Outcome:
        """Takes all steps at once. Raises the EtcdError of a refused write."""
        while self.step():
            pass
        if isinstance(self.outcome, EtcdError):
            raise self.outcome
        return self.outcome


def in_order(keys: set[bytes]) -> Iterator[list[bytes]]:
    """Empties the set: its keys in order, in lists of WRITE_STEP_KEYS; first some empty ones, for the work of sorting.

    To free a set of a million keys in one go would take 50 ms. Cost of a list: 1 us a key; while they are sorted 4 us.
    """
    size = limits.WRITE_STEP_KEYS
    runs: list[list[bytes]] = []
    while keys:
        runs.append(sorted([keys.pop() for _ in range(min(len(keys), _RUN_KEYS * size))]))
        yield []
    ordered = merge(*runs)
    while some := list(islice(ordered, size)):
        yield some

# SPDX-License-Identifier: Apache-2.0
"""Requests that one node passes to the primary, each of which takes effect once, over any number of take-overs.

Laws
- A forwarded write that takes effect stands in the log with its id and its reply, in the record that has its rows, also
  when it has made no rows. So the node that forwarded it learns of it from the log, and needs no other answer.
- A forward names the epoch that it is for. A primary takes it in that epoch only, and once.
- When the claim of a newer epoch has been applied, a request that is not in the log by then has not taken effect, and
  never will in an older epoch. It is forwarded again, or carried out here if this node is the primary now.
- An answer that does not come from the log (the request was refused: nothing was done) counts only if the request has
  not been forwarded in a newer epoch since. The primary keeps it, so that the same request is not tried twice.

Why the epoch: a forward can be under way for long. Without it, one that was sent to a primary of epoch 1 may arrive
when the same process is primary again, in epoch 3, after the request was forwarded and carried out in epoch 2.

Renewals are no writes and have no ids: one too many does no harm. Their promise counts from when the acknowledgement
leaves the node that forwarded them. The primary gives FORWARD_ALLOWANCE_S more than the TTL. The other node lets an
acknowledgement go up to FORWARD_PASS_ON_S after it sent the renewal, by its own clock, and renews again instead when it
is older. The second is shorter than the first by more than the clocks' rates differ.

Does not do: I/O, knowing what a request means, permissions. The server uses the times of this file; its follower keeps
the rules in a simpler form (decision 0022), and the simulation tries them here.
"""

from typing import Any, Final

from lessor.cluster.tenure import RATES_MAX
from lessor.durable.shared_record import Entry

FORWARD_ALLOWANCE_S: Final = 0.2
FORWARD_PASS_ON_S: Final = FORWARD_ALLOWANCE_S / RATES_MAX
RESEND_S: Final = 0.3  # after which a forward without any answer is sent again, in the same epoch


class Held:
    """A request that waits for its outcome."""

    __slots__ = ("counter", "epoch", "request", "sent_s", "since_s")

    def __init__(self, counter: int, request: Any) -> None:
        self.counter = counter
        self.request = request
        self.epoch = 0  # that it was forwarded for last; 0: not yet
        self.sent_s = 0.0  # when it was forwarded last
        self.since_s = 0.0  # when it was forwarded first in that epoch: it has not taken effect before


class Forwards:
    """The requests that a node has forwarded and that wait. One for the whole life of a process: its counters go on."""

    __slots__ = ("_held", "_next", "_pass_on_s", "_trusted_s", "nonce")

    def __init__(self, nonce: bytes, pass_on_s: float = FORWARD_PASS_ON_S) -> None:
        self.nonce = nonce
        self._pass_on_s = pass_on_s
        self._trusted_s = float("-inf")
        self._held: dict[int, Held] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, request: Any) -> Held:
        """Takes in a request of a client of this node."""
        held = Held(self._next, request)
        self._next += 1
        self._held[held.counter] = held
        return held

    @property
    def finished_below(self) -> int:
        """All requests with a lower counter have their outcome, or nobody waits for it any more."""
        return min(self._held, default=self._next)

    def due(self, epoch: int, now_s: float) -> list[Held]:
        """The requests to forward now, in order; they count as sent. `epoch`: of the newest claim that was applied."""
        due = [held for held in self._held.values() if held.epoch < epoch or now_s - held.sent_s >= RESEND_S]
        for held in due:
            if held.epoch < epoch:
                held.epoch, held.since_s = epoch, now_s
            held.sent_s = now_s
        return due

    def applied(self, entry: Entry) -> list[tuple[Held, bytes]]:
        """A record was applied: the requests that have taken effect in it, with their replies."""
        found = []
        for origin in entry.origins:
            if origin.nonce == self.nonce:
                held = self._held.pop(origin.counter, None)
                if held is not None:
                    found.append((held, origin.reply))
        return found

    def refused(self, epoch: int, counter: int) -> Held | None:
        """The primary of `epoch` says that the request does nothing; None when that does not count any more."""
        held = self._held.get(counter)
        if held is None or held.epoch != epoch:
            return None
        return self._held.pop(counter)

    def give_up(self, counter: int) -> None:
        """Nobody waits for the request any more. It may take effect all the same."""
        self._held.pop(counter, None)

    def may_pass(self, since_s: float, now_s: float) -> bool:
        """Whether the acknowledgement of a request that was sent at `since_s` may leave. Ask directly before that."""
        return self._trusted_s <= since_s and now_s - since_s <= self._pass_on_s

    def distrust(self, now_s: float) -> None:
        """The clock may have stood still before now: nobody knows the age of a request that was sent before."""
        self._trusted_s = now_s

    def take_all(self) -> list[Held]:
        """This node is the primary now: the requests that have not taken effect, to be carried out here."""
        held, self._held = list(self._held.values()), {}
        return held


class Forwarded:
    """The forwards that a primary has taken. One for each epoch."""

    __slots__ = ("_finished", "_refusals", "epoch")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self._refusals: dict[bytes, dict[int, Any]] = {}
        self._finished: dict[bytes, int] = {}

    def take(self, epoch: int, nonce: bytes, counter: int, finished_below: int) -> bool:
        """Whether to carry the request out. Otherwise it is for another epoch, or was taken before: see `refusal`."""
        if epoch != self.epoch:
            return False
        taken = self._refusals.setdefault(nonce, {})
        before = self._finished.get(nonce, 0)
        if finished_below > before:
            self._finished[nonce] = finished_below
            for old in [each for each in taken if each < finished_below]:
                del taken[old]
        if counter < before or counter in taken:
            return False
        taken[counter] = None
        return True

    def refuse(self, nonce: bytes, counter: int, error: Any) -> None:
        """Notes why a request that was taken does nothing."""
        self._refusals[nonce][counter] = error

    def refusal(self, nonce: bytes, counter: int) -> Any:
        """That, to be said again; None when the request has taken effect, or nobody waits."""
        return self._refusals.get(nonce, {}).get(counter)

# SPDX-License-Identifier: Apache-2.0
"""Decides when a lease may end, alone. turn.py carries the decision out.

Laws
- The sockets are read first. Leases end up to a cutoff, an instant of the data clock, and the sockets have been polled
  twice after that instant. So a keepalive that arrived in time does not lose against an expiry that merely ran first,
  not even when the process was stopped for minutes. A client that has connected anew meanwhile is accepted by the first
  poll and read by the second.
- A client whose connection has survived needs no more than that. After a stall of STALL_S or more some connections have
  not survived. So no lease ends until their clients have had the time to come back: as long as the stall took, but at
  most the time that every lease gets after a restart. Decision 0006 has the reasons.
- No lease ends before its grant or its last renewal was answered: none while a commit hangs, and after a commit that
  took long none until the batch that gathered meanwhile is durable.
- A full batch holds up the end of leases as it holds up reading. When it is sealed, the bytes that wait in the sockets
  are read before the leases end.
- The TTL that a reply promises counts from the moment the reply leaves. Replies leave at the end of a turn. So a lease
  ends MARGIN_S after its deadline at the earliest. After a turn that took longer than half of that, the leases that
  were renewed in it get their deadline once more (`must_count_anew`). Where the clock stands still during a turn, as in
  the test kit, the margin is 0: a lease ends at its deadline.
- Every lease that is due ends at last. In each state a timer, the polls or a commit leads on.

States
- RESTING: no timer is set. The end of a turn sets one as soon as a lease lives.
- ARMED: the timer is set, to `timer_s`: MARGIN_S after the earliest deadline, but after a stall not before the clients
  have had their time; or to an earlier instant at which the turn has to save the data clock (`save_s`).
- POLLING: leases are due. The sockets are polled twice; the two polls follow each other at once.
- DUE: the polls are over. The leases that are due until the cutoff may end in the next turn, unless they are held up.

Transitions. The rows of one state and event are tried from top to bottom.

| state | event | if | next | action |
|---|---|---|---|---|
| RESTING | turn_ended | | ARMED | set the timer |
| ARMED | turn_ended | the timer would come later, or as it is set | ARMED | nothing |
| ARMED | turn_ended | the timer would come earlier | ARMED | set the timer anew |
| POLLING, DUE | turn_ended | | the same | nothing |
| ARMED | timer_fired | no lease is due, or all are spared | RESTING | end the turn |
| ARMED | timer_fired | a lease is due | POLLING | poll twice |
| POLLING | polled | there was a stall between the polls | RESTING | end the turn |
| POLLING | polled | | DUE | end the turn |
| DUE | lapsed | it took STALL_S or longer | RESTING | nothing |
| DUE | lapsed | | DUE | nothing |
| DUE | may_end | the open batch is full | DUE | nothing |
| DUE | may_end | the commit under way takes longer than SLOW_COMMIT_S | DUE | nothing |
| DUE | may_end | the batch that gathered during a slow commit is not durable | DUE | nothing |
| DUE | may_end | | RESTING | end leases, up to the cutoff |
| RESTING, ARMED, POLLING | sealed | | the same | nothing |
| DUE | sealed | | POLLING | poll twice, for the same cutoff |
| any | committed | it took longer than SLOW_COMMIT_S | the same | note the batch that gathered meanwhile |
| any | committed | | the same | nothing |

A stall shows in the timer and in the polls: they come later than they could. A lapse, in which nobody could be answered
and the data clock stood still (turn.py), is a stall for the clients.

Does not do: reading clocks, setting timers, polling, ending leases. All instants are on the data clock, in seconds, and
are passed in. Each method costs a few comparisons. Loop thread only.
"""

from typing import Final

from lessor.state.replay import RECONNECT_GRACE_S

# If the timer is this late, the process stood still for longer than a client waits before it drops its connection. If
# it is less late, the keepalives of all clients that still wait are in the sockets. A busy machine is never this late.
STALL_S: Final = 1.0
# A lease ends at least this much after its deadline. It covers the way of a reply from the loop to the socket. After a
# turn that took longer than half of it, deadlines are set again.
MARGIN_S: Final = 0.001
# A commit that takes longer holds up the end of leases. A reply waits for two commits at most, so with the least TTL of
# 1 s no lease comes due before its reply has left.
SLOW_COMMIT_S: Final = 0.25

RESTING: Final = 0
ARMED: Final = 1
POLLING: Final = 2
DUE: Final = 3

NOTHING: Final = -1.0  # stands for "do nothing" where an instant is returned; the data clock begins with 0


class Expiry:
    """The state of a server's one expiry timer, and the decisions that follow from it."""

    __slots__ = (
        "_commit_began_s",
        "_cutoff_s",
        "_held_until_batch",
        "_polls_began_s",
        "_spared_until_s",
        "margin_s",
        "state",
        "timer_s",
    )

    def __init__(self) -> None:
        self.margin_s = MARGIN_S  # how long after its deadline a lease ends
        self.state = RESTING
        self.timer_s = 0.0  # when the timer is to fire, in ARMED
        self._polls_began_s = 0.0  # in POLLING
        self._cutoff_s = 0.0  # in POLLING and DUE
        self._spared_until_s = 0.0  # after a stall: no lease ends before this instant
        self._held_until_batch = 0  # no lease ends before this batch is durable
        self._commit_began_s = 0.0

    def turn_ended(self, deadline_s: float, save_s: float, turn_began_s: float) -> float:
        """Called while a lease lives. Returns the instant to set the timer to, or NOTHING to leave the timer as it is.

        `deadline_s`: the earliest one. `save_s`: when the turn has to save the data clock, and must be woken at the
        latest. `turn_began_s`: when the turn read its first bytes.
        """
        if self.state > ARMED:
            return NOTHING
        due_s = deadline_s + self.margin_s
        if due_s < self._spared_until_s:
            due_s = self._spared_until_s
        if due_s > save_s:
            due_s = save_s
        # In a storm the earliest deadline is long past. The timer could not fire then, but only after this turn began:
        # its lateness is measured from there. So a turn that took long is a stall, too.
        if due_s < turn_began_s:
            due_s = turn_began_s
        if self.state == ARMED and self.timer_s <= due_s:
            return NOTHING
        self.state = ARMED
        self.timer_s = due_s
        return due_s

    def timer_fired(self, now_s: float, deadline_s: float | None) -> bool:
        """Returns whether the sockets have to be polled twice. Otherwise the turn has to be ended.

        `deadline_s`: the earliest one, None when no lease lives.
        """
        self._notice_stall(self.timer_s, now_s)
        if deadline_s is None or deadline_s + self.margin_s > now_s or self._spared_until_s > now_s:
            self.state = RESTING
            return False
        self._cutoff_s = now_s - self.margin_s
        self._begin_polls(now_s)
        return True

    def polled(self, now_s: float) -> None:
        """Both polls have been made. The turn has to be ended next."""
        # No timer is set while the sockets are polled, so a stall between the polls shows here.
        self._notice_stall(self._polls_began_s, now_s)
        self.state = RESTING if now_s < self._spared_until_s else DUE

    def lapsed(self, now_s: float, lapse_s: float) -> None:
        """Called in DUE: for so long the data clock has stood still since this was called last."""
        self._notice_stall(now_s - lapse_s, now_s)
        if now_s < self._spared_until_s:
            self.state = RESTING

    def may_end(self, now_s: float, *, full: bool, committing: bool, durable: int) -> float:
        """Called in DUE. Returns the cutoff, which is the instant up to which leases may end now, or NOTHING.

        `full`: whether the open batch is full. `committing`: whether a batch is on its way to the disk. `durable`:
        number of the newest durable batch.
        """
        if full or durable < self._held_until_batch:
            return NOTHING
        if committing and now_s - self._commit_began_s > SLOW_COMMIT_S:
            return NOTHING
        self.state = RESTING
        return self._cutoff_s

    def sealed(self, now_s: float) -> bool:
        """A batch goes to the disk. Returns whether the sockets have to be polled twice, again."""
        self._commit_began_s = now_s
        if self.state != DUE:
            return False
        # If a full batch held up the leases, it has held up reading, too: the sockets are read before leases end.
        self._begin_polls(now_s)
        return True

    def committed(self, now_s: float, newest_with_rows: int) -> None:
        """The batch is durable. `newest_with_rows`: number of the newest batch that has rows, sealed or open."""
        if now_s - self._commit_began_s > SLOW_COMMIT_S:
            # Leases granted or renewed during the commit may be due already, though no reply to that has left.
            self._held_until_batch = newest_with_rows

    def must_count_anew(self, turn_began_s: float, now_s: float) -> bool:
        """Whether the replies of a turn left so late that the TTLs that they promise have to count from now."""
        return now_s - turn_began_s > self.margin_s / 2

    def _begin_polls(self, now_s: float) -> None:
        self.state = POLLING
        self._polls_began_s = now_s

    def _notice_stall(self, due_s: float, now_s: float) -> None:
        """Notes a stall if `now_s` is much later than `due_s`, when this call was due."""
        stall_s = now_s - due_s
        if stall_s >= STALL_S:
            # Packets that could not get through for some time get through within as much more: TCP doubles its waiting.
            self._spared_until_s = now_s + min(stall_s, RECONNECT_GRACE_S)

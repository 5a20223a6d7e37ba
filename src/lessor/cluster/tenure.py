# SPDX-License-Identifier: Apache-2.0
"""Decides when a node may answer as the primary, and when it may try to become it, alone.

The log is the lock and the clock. A node becomes primary by a claim, a record directly behind the newest one that it
knows. It may answer for `lease_s` from the instant before it sent its last record that landed. Another node may claim
when it has seen no new record for `claim_s`. `claim_s` is longer, by more than two clocks drift apart.

Laws
- R1: silence counts from the receipt of a record or, after the link to the engine was down, of its first answer.
  So an outage of the engine is not taken for the primary's death: after it all wait `claim_s` anew.
- R2: a claim stands directly behind the newest record seen. If anything was written since, it is refused.
- R3: the time for which a primary may answer counts from before its record was handed to anything (`Placing.since_s`),
  never from when the engine said that it had landed.
- R4: nothing leaves a primary unless `valid` holds at that instant. What may not leave waits.
- R5: a clock that may have stood still is not believed: after `distrust` nothing is valid until a record has landed
  that was sent later.
- R6: what a new primary gives its leases is in state/replay.py (`promote`): less when no client has lost a connection.
- R8: a node whose loop has stood still for `lease_s` sends no beat: one that cannot serve must not keep the others off.

Why no two nodes are valid at one time: let p be the last record of the old primary before the claim, sent at s. The
candidate received p at t, not before s, and claimed at t + claim_s or later. Nothing of the old primary stands between
p and the claim, so it was valid until s + lease_s at most. That is before the claim as long as the candidate's clock
runs at most claim_s / lease_s times as fast as the old primary's: by a quarter (`RATES_MAX`). No common clock is
needed.

| state | event | if | next | effect |
|---|---|---|---|---|
| FOLLOWER | saw | | FOLLOWER | silence counts from now |
| FOLLOWER | answered | the link was down, or silent for link_s | FOLLOWER | silence counts from now |
| FOLLOWER | answered | | FOLLOWER | the link is up |
| FOLLOWER | unanswered | | FOLLOWER | the link is down: no silence counts |
| FOLLOWER | saw_release | this node is named, or none is | FOLLOWER | it may claim at once |
| FOLLOWER | claiming | `may_claim` | CLAIMING | |
| CLAIMING | landed | | PRIMARY | valid until since_s + lease_s |
| CLAIMING | taken | | FOLLOWER | silence counts from now |
| PRIMARY | landed | | PRIMARY | valid until since_s + lease_s, if that is later |
| PRIMARY | distrust | | PRIMARY | not valid until a record lands that is sent from now on |
| PRIMARY | taken | | FOLLOWER | fenced: silence counts from now |
| PRIMARY | releasing | | RELEASING | not valid any more: the next one may claim as soon as it sees the release |
| RELEASING | landed, taken | | FOLLOWER | silence counts from now |

A primary whose validity has passed is *lapsed*. It is a state of `valid`, not of its own: the next record that lands
ends it.

Two threads may use a tenure. One appends, and calls everything but `distrust`. Another one answers: it may call
`valid`, `served_s`, `lapsed_s` and, alone, `distrust`. What either writes for the other is one value (served_clock.py).

Does not do: reading clocks, I/O, records. All instants are of the node's own clock, which also counts the time for
which the machine slept. Each method costs a few comparisons.
"""

from typing import Final, NamedTuple

from lessor.cluster.served_clock import NEVER_S, NO_DOUBT, Doubt, ServedClock

# How many times as fast one node's clock may run as another's.
RATES_MAX: Final = 1.25

# Within which the claim of a successor follows a release, if all is well. Who waits for it looks more often meanwhile.
CLAIM_FOLLOWS_S: Final = 0.3

FOLLOWER: Final = "follower"
CLAIMING: Final = "claiming"
PRIMARY: Final = "primary"
RELEASING: Final = "releasing"


class Timing(NamedTuple):
    """Seconds. The same on all nodes of a cluster, but for rank_s."""

    lease_s: float = 1.0  # for which a record lets its node answer
    claim_s: float = 1.25  # of silence, after which a node may claim
    rank_s: float = 0.0  # more than that, different for each node, so that two rarely claim at one time
    beat_s: float = 0.25  # a primary that has nothing to write appends a beat after this
    link_s: float = 0.6  # without an answer of the engine, after which the link counts as down

    def check(self) -> None:
        """Raises ValueError for times with which two nodes could be valid at one time."""
        if self.claim_s < self.lease_s * RATES_MAX:
            raise ValueError(f"claim_s {self.claim_s} is below {RATES_MAX} times lease_s {self.lease_s}")


class Tenure:
    """The part of one process in the question of who is the primary."""

    __slots__ = (
        "_answered_s",
        "_appended_s",
        "_at_once",
        "_doubt",
        "_served",
        "_silent_since_s",
        "others_lease_s",
        "state",
        "timing",
    )

    def __init__(self, timing: Timing) -> None:
        timing.check()
        self.timing = timing
        self.state = FOLLOWER
        self.others_lease_s = 0.0  # for how long the newest record of another node lets that node answer; 0: unknown
        self._silent_since_s: float | None = None  # None: nothing was heard yet since the link came up
        self._answered_s = NEVER_S  # the engine's last answer; never when the link is known to be down
        self._at_once = False  # a release has named this node, or nobody
        self._served = ServedClock.begun(NEVER_S)  # replaced by the thread that appends
        self._doubt = NO_DOUBT  # replaced by the thread that answers
        self._appended_s = NEVER_S  # since_s of the last record that has landed

    # --- a follower -----------------------------------------------------------------------------------------------

    def saw(self, now_s: float) -> None:
        """A record that was new to this node came, from the engine or from another node."""
        self._silent_since_s = now_s
        self._at_once = False

    def saw_release(self, now_s: float, successor_here: bool) -> None:
        """The record was a release. `successor_here`: it names this node, or nobody."""
        self._silent_since_s = now_s
        self._at_once = successor_here

    def answered(self, now_s: float) -> None:
        """The engine has answered: the link to it is up."""
        if self._silent_since_s is None or now_s - self._answered_s > self.timing.link_s:
            self._silent_since_s = now_s
        self._answered_s = now_s

    def unanswered(self) -> None:
        """The engine has not answered: the link to it is down."""
        self._answered_s = NEVER_S

    def awaits_claim(self, now_s: float) -> bool:
        """Whether a follower whose newest record is a release has heard that just now: a claim follows at once."""
        silent_since_s = self._silent_since_s
        return self.state == FOLLOWER and silent_since_s is not None and now_s - silent_since_s < CLAIM_FOLLOWS_S

    def is_linked(self, now_s: float) -> bool:
        """Whether the link to the engine is up, as far as a follower knows."""
        return now_s - self._answered_s <= self.timing.link_s

    def may_claim(self, now_s: float) -> bool:
        """Whether to claim, at the position of the newest record seen."""
        if self.state != FOLLOWER or now_s - self._answered_s > self.timing.link_s or self._silent_since_s is None:
            return False
        # Nodes may be given different times, at least while they are started anew one after the other.
        claim_s = max(self.timing.claim_s, self.others_lease_s * RATES_MAX)
        return self._at_once or now_s - self._silent_since_s > claim_s + self.timing.rank_s

    def claiming(self) -> None:
        """The claim is about to be sent."""
        assert self.state == FOLLOWER
        self.state = CLAIMING

    # --- a primary ------------------------------------------------------------------------------------------------

    def valid(self, now_s: float) -> bool:
        """Whether a primary's bytes may leave at this instant."""
        return self.state == PRIMARY and now_s < self.until_s

    @property
    def is_over(self) -> bool:
        """Whether a primary's tenure has ended, or is about to: it has released, or was fenced."""
        return self.state != PRIMARY

    @property
    def until_s(self) -> float:
        """A primary is valid before this instant."""
        served = self._served
        return served.until_s if served.believed(self._doubt) else NEVER_S

    def served_s(self, now_s: float) -> float:
        """The served clock at this instant. It counts from an instant of no meaning, another one in each tenure."""
        return self._served.now_s(now_s, self._doubt)

    @property
    def lapsed_s(self) -> float:
        """For how long the served clock has stood still in this tenure, without a lapse that is not over."""
        return self._served.lapsed_s

    def beat_due(self, now_s: float, turn_ended_s: float) -> bool:
        """Whether to append a beat if there is nothing else to append. `turn_ended_s`: when the last turn ended."""
        timing = self.timing
        return (
            self.state == PRIMARY
            and now_s - self._appended_s >= timing.beat_s
            and now_s - turn_ended_s < timing.lease_s
        )

    def distrust(self, now_s: float) -> None:
        """The clock may have stood still before now."""
        doubt = self._doubt
        # A second doubt while nothing has landed that counts: the served clock stands still since the first.
        stopped_s = now_s if self._served.believed(doubt) else doubt.stopped_s
        self._doubt = Doubt(stopped_s, now_s)

    def releasing(self) -> None:
        """The release is about to be sent. From here on nothing may leave."""
        assert self.state == PRIMARY
        self.state = RELEASING

    # --- the end of an append -------------------------------------------------------------------------------------

    def landed(self, since_s: float, now_s: float) -> None:
        """The record in hand is in the log. `since_s`: that of its `Placing`."""
        if self.state == RELEASING:
            self._follow(now_s)
            return
        served = self._served
        if self.state == CLAIMING:
            served = ServedClock.begun(now_s)
            self.state = PRIMARY
        self._appended_s = since_s
        self._served = served.landed(since_s, self.timing.lease_s, now_s, self._doubt)

    def taken(self, now_s: float) -> None:
        """Another's record stands where ours was to stand: this node is no primary."""
        self._follow(now_s)

    def _follow(self, now_s: float) -> None:
        self.state = FOLLOWER
        self._served = self._served.ended(now_s)
        self._silent_since_s = now_s
        self._at_once = False

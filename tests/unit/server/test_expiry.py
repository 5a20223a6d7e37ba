# SPDX-License-Identifier: Apache-2.0
"""When leases may end: each row of the table in expiry.py, and its laws over random events."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.server.loop import expiry
from lessor.server.loop.expiry import (
    ARMED,
    DUE,
    MARGIN_S,
    NOTHING,
    POLLING,
    RESTING,
    SLOW_COMMIT_S,
    STALL_S,
    Expiry,
)
from lessor.state.replay import RECONNECT_GRACE_S

STATES = {RESTING: "RESTING", ARMED: "ARMED", POLLING: "POLLING", DUE: "DUE"}

# The earliest deadline of these tests, and an instant at which it is due; other instants are relative to these.
DEADLINE_S = 10.0
DUE_S = DEADLINE_S + 2 * MARGIN_S


def in_state(state: int) -> Expiry:
    """An expiry in that state, with the timer at the deadline and the cutoff a margin before DUE_S."""
    subject = Expiry()
    if state >= ARMED:
        assert subject.turn_ended(DEADLINE_S, math.inf, 0.0) == DEADLINE_S + MARGIN_S
    if state >= POLLING:
        assert subject.timer_fired(DUE_S, DEADLINE_S)
    if state == DUE:
        subject.polled(DUE_S)
    assert subject.state == state
    return subject


def turn_ended(deadline_s: float) -> Callable[[Expiry], str]:
    def event(subject: Expiry) -> str:
        timer_s = subject.turn_ended(deadline_s, math.inf, 0.0)
        if timer_s == NOTHING:
            return "nothing"
        assert timer_s == subject.timer_s == deadline_s + MARGIN_S
        return "set the timer"

    return event


def timer_fired(now_s: float, deadline_s: float | None = DEADLINE_S) -> Callable[[Expiry], str]:
    return lambda subject: "poll twice" if subject.timer_fired(now_s, deadline_s) else "end the turn"


def polled(now_s: float) -> Callable[[Expiry], str]:
    def event(subject: Expiry) -> str:
        subject.polled(now_s)
        return "end the turn"

    return event


def lapsed(lapse_s: float) -> Callable[[Expiry], str]:
    def event(subject: Expiry) -> str:
        subject.lapsed(DUE_S, lapse_s)
        return "nothing"

    return event


def may_end(
    *, full: bool = False, committed_s: float = 0.0, committing_s: float | None = None, durable: int = 7
) -> Callable[[Expiry], str]:
    """`committed_s`: how long the last commit took, during which batch 8 got rows. `committing_s`: the present one."""

    def event(subject: Expiry) -> str:
        began_s = DUE_S - (committing_s or 0.0)
        _seal(subject, began_s - committed_s)
        subject.committed(began_s, 8)
        _seal(subject, began_s)
        cutoff_s = subject.may_end(DUE_S, full=full, committing=committing_s is not None, durable=durable)
        if cutoff_s == NOTHING:
            return "nothing"
        assert cutoff_s == DUE_S - MARGIN_S
        return "end leases"

    return event


def _seal(subject: Expiry, now_s: float) -> None:
    """A commit begins, and if the sockets have to be polled for it, nothing comes of that."""
    if subject.sealed(now_s):
        subject.polled(now_s)


def sealed(subject: Expiry) -> str:
    return "poll twice" if subject.sealed(DUE_S) else "nothing"


def committed(taken_s: float) -> Callable[[Expiry], str]:
    def event(subject: Expiry) -> str:
        subject._commit_began_s = DUE_S - taken_s
        subject.committed(DUE_S, 8)
        return "note the batch" if subject._held_until_batch == 8 else "nothing"

    return event


Row = tuple[str, str, str]  # the first three columns of the table
Case = tuple[Row, int, Callable[[Expiry], str], int, str]  # row, state, event, next state, action

CASES: list[Case] = [
    (("RESTING", "turn_ended", ""), RESTING, turn_ended(DEADLINE_S), ARMED, "set the timer"),
    (
        ("ARMED", "turn_ended", "the timer would come later, or as it is set"),
        ARMED,
        turn_ended(DEADLINE_S),
        ARMED,
        "nothing",
    ),
    (
        ("ARMED", "turn_ended", "the timer would come later, or as it is set"),
        ARMED,
        turn_ended(DEADLINE_S + 1),
        ARMED,
        "nothing",
    ),
    (("ARMED", "turn_ended", "the timer would come earlier"), ARMED, turn_ended(9.0), ARMED, "set the timer"),
    (("POLLING, DUE", "turn_ended", ""), POLLING, turn_ended(9.0), POLLING, "nothing"),
    (("POLLING, DUE", "turn_ended", ""), DUE, turn_ended(9.0), DUE, "nothing"),
    (
        ("ARMED", "timer_fired", "no lease is due, or all are spared"),
        ARMED,
        timer_fired(DUE_S, None),
        RESTING,
        "end the turn",
    ),
    (
        ("ARMED", "timer_fired", "no lease is due, or all are spared"),
        ARMED,
        timer_fired(DUE_S, DUE_S),
        RESTING,
        "end the turn",
    ),
    (
        ("ARMED", "timer_fired", "no lease is due, or all are spared"),
        ARMED,
        timer_fired(DUE_S + STALL_S),
        RESTING,
        "end the turn",
    ),
    (("ARMED", "timer_fired", "a lease is due"), ARMED, timer_fired(DEADLINE_S + MARGIN_S), POLLING, "poll twice"),
    (("ARMED", "timer_fired", "a lease is due"), ARMED, timer_fired(DEADLINE_S + STALL_S), POLLING, "poll twice"),
    (
        ("POLLING", "polled", "there was a stall between the polls"),
        POLLING,
        polled(DUE_S + STALL_S),
        RESTING,
        "end the turn",
    ),
    (("POLLING", "polled", ""), POLLING, polled(DUE_S + 0.99 * STALL_S), DUE, "end the turn"),
    (("DUE", "lapsed", "it took STALL_S or longer"), DUE, lapsed(STALL_S), RESTING, "nothing"),
    (("DUE", "lapsed", ""), DUE, lapsed(0.99 * STALL_S), DUE, "nothing"),
    (("DUE", "may_end", "the open batch is full"), DUE, may_end(full=True), DUE, "nothing"),
    (
        ("DUE", "may_end", "the commit under way takes longer than SLOW_COMMIT_S"),
        DUE,
        may_end(committing_s=1.01 * SLOW_COMMIT_S),
        DUE,
        "nothing",
    ),
    (
        ("DUE", "may_end", "the batch that gathered during a slow commit is not durable"),
        DUE,
        may_end(committed_s=1.01 * SLOW_COMMIT_S),
        DUE,
        "nothing",
    ),
    (("DUE", "may_end", ""), DUE, may_end(), RESTING, "end leases"),
    (("DUE", "may_end", ""), DUE, may_end(committed_s=1.01 * SLOW_COMMIT_S, durable=8), RESTING, "end leases"),
    (("DUE", "may_end", ""), DUE, may_end(committing_s=0.99 * SLOW_COMMIT_S), RESTING, "end leases"),
    (("RESTING, ARMED, POLLING", "sealed", ""), RESTING, sealed, RESTING, "nothing"),
    (("RESTING, ARMED, POLLING", "sealed", ""), ARMED, sealed, ARMED, "nothing"),
    (("RESTING, ARMED, POLLING", "sealed", ""), POLLING, sealed, POLLING, "nothing"),
    (("DUE", "sealed", ""), DUE, sealed, POLLING, "poll twice"),
    *((("any", "committed", ""), state, committed(0.99 * SLOW_COMMIT_S), state, "nothing") for state in STATES),
    *(
        (("any", "committed", "it took longer than SLOW_COMMIT_S"), state, committed(0.26), state, "note the batch")
        for state in STATES
    ),
]


def table() -> list[list[str]]:
    """The rows of the table in the docstring: state, event, condition, next state, action."""
    lines = [line for line in (expiry.__doc__ or "").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{STATES[case[1]]}-{'-'.join(case[0][1:])}")
def test_each_row_of_the_table(case: Case) -> None:
    row, state, event, then, action = case
    (written,) = [each for each in table() if tuple(each[:3]) == row]
    subject = in_state(state)
    assert event(subject) == action
    assert subject.state == then
    assert STATES[state] in written[0] or written[0] == "any"
    assert written[3] == ("the same" if then == state and written[3] == "the same" else STATES[then])
    assert written[4].startswith(action)


def test_no_row_of_the_table_is_left_out() -> None:
    assert {tuple(row[:3]) for row in table()} == {case[0] for case in CASES}
    named = {
        (state, row[1]) for row in table() for state in row[0].replace("any", ", ".join(STATES.values())).split(", ")
    }
    tried = {(STATES[case[1]], case[0][1]) for case in CASES}
    assert named == tried


def test_the_timer_is_set_for_the_saving_of_the_clock_where_that_is_earlier() -> None:
    assert Expiry().turn_ended(DEADLINE_S, 3.0, 0.0) == 3.0
    assert Expiry().turn_ended(DEADLINE_S, 11.0, 0.0) == DEADLINE_S + MARGIN_S


def test_the_timer_is_never_set_to_before_the_turn() -> None:
    assert Expiry().turn_ended(DEADLINE_S, math.inf, 12.0) == 12.0


@pytest.mark.parametrize(
    ("late_s", "spared_s"),
    [(STALL_S, STALL_S), (1.5 * STALL_S, 1.5 * STALL_S), (RECONNECT_GRACE_S, RECONNECT_GRACE_S), (600, 2.0)],
)
@pytest.mark.parametrize("noticed_by", ["timer", "polls"])
def test_after_a_stall_the_timer_is_set_to_when_it_is_over(late_s: float, spared_s: float, noticed_by: str) -> None:
    subject = in_state(ARMED if noticed_by == "timer" else POLLING)
    now_s = late_s + (subject.timer_s if noticed_by == "timer" else DUE_S)
    if noticed_by == "timer":
        assert not subject.timer_fired(now_s, DEADLINE_S)
    else:
        subject.polled(now_s)
    assert subject.turn_ended(DEADLINE_S, math.inf, now_s) == pytest.approx(now_s + spared_s)


def test_a_turn_within_half_the_margin_leaves_promises_as_they_are() -> None:
    assert not Expiry().must_count_anew(10.0, 10.0 + 0.49 * MARGIN_S)
    assert Expiry().must_count_anew(10.0, 10.0 + 0.51 * MARGIN_S)


class Server:
    """A naive server around an expiry. It keeps its whole past and checks each answer against that."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.expiry = Expiry()
        self.deadlines: list[float] = []
        self.polls: list[float] = []  # all of the past
        self.polls_wanted = 0
        self.spared_until_s = [0.0]  # what each stall of the past has led to
        self.seen_s = 0.0  # since when a stall would show now
        self.commit_began_s: float | None = None
        self.durable, self.batch = 0, 1  # the newest on disk; the open one
        self.has_rows = False
        self.held_until = [0]  # the batches that slow commits of the past have left behind
        self.full = False

    def newest_with_rows(self) -> int:
        return self.batch if self.has_rows else self.batch - 1

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    def grant(self, ttl_s: float) -> None:
        self.deadlines.append(self.now_s + ttl_s)
        self.has_rows = True

    def fill(self) -> None:
        self.has_rows = self.full = True

    def end_turn(self) -> None:
        if self.expiry.state == DUE:
            self._end_leases()
        if self.commit_began_s is None and self.has_rows:
            self.commit_began_s = self.now_s
            self.batch += 1
            self.has_rows = self.full = False
            due = self.expiry.state == DUE
            again = self.expiry.sealed(self.now_s)
            assert again == due
            self._poll_if(again)
        if self.deadlines:
            timer_s = self.expiry.turn_ended(min(self.deadlines), math.inf, self.now_s)
            if timer_s != NOTHING:
                assert timer_s >= max(self.spared_until_s)
                self.seen_s = timer_s

    def _end_leases(self) -> None:
        cutoff_s = self.expiry.may_end(
            self.now_s, full=self.full, committing=self.commit_began_s is not None, durable=self.durable
        )
        hangs = self.commit_began_s is not None and self.now_s - self.commit_began_s > SLOW_COMMIT_S
        held = self.full or hangs or self.durable < max(self.held_until)
        assert (cutoff_s == NOTHING) == held
        if held:
            return
        assert sum(poll_s >= cutoff_s + MARGIN_S for poll_s in self.polls) >= 2, "ended before the sockets were read"
        assert self.now_s >= max(self.spared_until_s), "ended before the time to come back was over"
        assert cutoff_s <= self.now_s - MARGIN_S
        self.deadlines = [deadline_s for deadline_s in self.deadlines if deadline_s > cutoff_s]

    def fire(self) -> None:
        """The timer, if it is time."""
        if self.expiry.state == ARMED and self.now_s >= self.expiry.timer_s:
            self._stall()
            due = bool(self.deadlines) and min(self.deadlines) + MARGIN_S <= self.now_s >= max(self.spared_until_s)
            polls = self.expiry.timer_fired(self.now_s, min(self.deadlines, default=None))
            assert polls == due
            self._poll_if(polls)

    def _poll_if(self, wanted: bool) -> None:
        if wanted:
            assert self.polls_wanted == 0, "two rows of polls at a time"
            self.polls_wanted = 2
            self.seen_s = self.now_s

    def poll(self) -> None:
        """One poll of the sockets; the second of those that are asked for is reported."""
        self.polls.append(self.now_s)
        if self.polls_wanted:
            self.polls_wanted -= 1
            if not self.polls_wanted:
                self._stall()
                self.expiry.polled(self.now_s)

    def _stall(self) -> None:
        stall_s = self.now_s - self.seen_s
        if stall_s >= STALL_S:
            self.spared_until_s.append(self.now_s + min(stall_s, RECONNECT_GRACE_S))

    def commit(self) -> None:
        """The batch in flight is durable."""
        if self.commit_began_s is not None:
            self.durable = self.batch - 1
            if self.now_s - self.commit_began_s > SLOW_COMMIT_S:
                self.held_until.append(self.newest_with_rows())
            self.commit_began_s = None
            self.expiry.committed(self.now_s, self.newest_with_rows())
            self.end_turn()


_EVENTS = ("grant", "fill", "turn", "turn", "timer", "timer", "poll", "poll", "commit")
_PASSES_S = st.sampled_from([0.0, 0.0, 1e-4, 0.01, 0.3, 0.999, 1.5, 5.0])


@given(steps=st.lists(st.tuples(st.sampled_from(_EVENTS), _PASSES_S), max_size=80))
def test_the_laws_hold_whatever_happens_and_all_that_is_due_ends(steps: list[tuple[str, float]]) -> None:
    server = Server()
    does: dict[str, Callable[[], None]] = {
        "fill": server.fill,
        "turn": server.end_turn,
        "timer": server.fire,
        "poll": server.poll,
        "commit": server.commit,
    }
    for what, seconds in steps:
        server.pass_time(seconds)
        if what == "grant":
            server.grant(1.0 + seconds)
        else:
            does[what]()
    # From here on all goes well: what is due ends.
    for _ in range(60):
        if server.expiry.state == ARMED:
            server.now_s = max(server.now_s, server.expiry.timer_s)
        for event in (server.fire, server.poll, server.poll, server.end_turn, server.commit):
            server.pass_time(1e-4)
            event()
    assert server.deadlines == []
    assert not server.full

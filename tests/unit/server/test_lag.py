# SPDX-License-Identifier: Apache-2.0
"""For how long a server is behind: against the plain definition, over stories of batches that are named and come."""

from hypothesis import given
from hypothesis import strategies as st

from lessor.server.following.lag import Lag


def test_it_counts_from_when_the_leader_named_a_batch_until_it_is_here() -> None:
    lag = Lag()
    assert lag.seconds(5, 1.0) == 0.0
    lag.named(5, 1.0)
    assert lag.seconds(5, 2.0) == 0.0
    lag.named(6, 3.0)
    assert lag.seconds(5, 3.5) == 0.5
    lag.named(7, 4.0)
    assert lag.seconds(5, 5.0) == 2.0  # still batch 6
    assert lag.seconds(6, 5.0) == 1.0  # 6 is here, and 7 is not
    assert lag.seconds(7, 6.0) == 0.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(0.01, 2.0)), max_size=40))
def test_it_is_never_more_than_the_truth_and_never_0_while_something_is_missing(
    story: list[tuple[int, int, float]],
) -> None:
    lag, now_s, named, durable = Lag(), 0.0, 0, 0
    named_s: dict[int, float] = {}
    for more, come, step_s in story:
        now_s += step_s
        if more:
            named += more
            lag.named(named, now_s)
            named_s[named] = now_s
        durable = min(durable + come, named)
        missing = [at_s for batch, at_s in named_s.items() if batch > durable]
        found = lag.seconds(durable, now_s)
        assert (found > 0.0) <= bool(missing)
        assert found <= (now_s - min(missing) if missing else 0.0)
        if missing and now_s > max(missing):
            assert found > 0.0

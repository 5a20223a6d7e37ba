# SPDX-License-Identifier: Apache-2.0
"""A clock that stood still is noticed, whether at once or little by little."""

from lessor.cluster.clock_watch import TOLERATED_S, ClockWatch


def test_two_clocks_that_run_alike_are_believed() -> None:
    watch = ClockWatch(10.0, 1_000.0)
    assert not watch.differs(5_010.0, 6_000.0)


def test_a_clock_that_stood_still_is_noticed_once() -> None:
    watch = ClockWatch(10.0, 1_000.0)
    assert watch.differs(10.5, 1_003.0)
    watch.believe(10.5, 1_003.0)
    assert not watch.differs(11.5, 1_004.0)


def test_a_wall_clock_that_is_set_back_is_noticed() -> None:
    assert ClockWatch(10.0, 1_000.0).differs(11.0, 900.0)


def test_short_times_add_up() -> None:
    watch = ClockWatch(10.0, 1_000.0)
    still_s = TOLERATED_S * 0.6
    assert not watch.differs(11.0, 1_001.0 + still_s)
    assert watch.differs(12.0, 1_002.0 + 2 * still_s)

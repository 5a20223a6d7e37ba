# SPDX-License-Identifier: Apache-2.0
"""Whole nodes on a shared log, with much harm, seed after seed.

300 of them, or as many as LESSOR_SEEDS says. By hand: scripts/simulate --seeds 10000.
"""

import os
from collections import Counter

import pytest

from tests.simulation.clients import Doing
from tests.simulation.story import Story
from tests.simulation.world import Broken

SEEDS = int(os.environ.get("LESSOR_SEEDS", "300"))
GROUPS = 10


def run(seed: int) -> Story:
    story = Story(seed)
    try:
        story.run()
    except Broken as broken:
        pytest.fail(f"seed {seed}: {broken}\n{story.world.story()}")
    return story


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_the_invariants_hold_whatever_happens(group: int) -> None:
    for seed in range(group, SEEDS, GROUPS):
        run(seed)


def test_a_seed_is_a_run() -> None:
    first, second = run(3), run(3)
    assert first.engine.records == second.engine.records
    assert first.world.steps == second.world.steps


@pytest.mark.slow
def test_the_harm_is_done_and_calls_go_on() -> None:
    """Guards the simulation itself: one in which nothing happens would find nothing."""
    harm: Counter[str] = Counter()
    doings: list[Doing] = []
    takeovers = stopped = 0
    for seed in (*range(20, 39), 39):
        story = run(seed)
        harm += story.harm
        takeovers += story.checks.takeovers
        stopped += sum(bool(process.node.stopped) for process in story.processes)
        doings += [doing for client in story.clients for doing in client.done]
    assert len(harm) == 10, harm
    assert takeovers > 40
    assert stopped > 0  # where the log had lost its newest records
    outcomes = Counter(doing.outcome for doing in doings)
    assert outcomes["ok"] > 3_000
    assert 0 < outcomes["unknown"] < outcomes["ok"] / 10
    assert any(doing.outcome == "unknown" and doing.landed_s for doing in doings)

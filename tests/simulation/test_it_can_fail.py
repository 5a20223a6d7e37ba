# SPDX-License-Identifier: Apache-2.0
"""Each broken rule (broken.py) is found within a bounded number of seeds, and by the check that is meant to find it."""

import pytest

from tests.simulation.broken import WAYS, PositionAlone
from tests.simulation.process import Process
from tests.simulation.story import Rules, Story
from tests.simulation.world import Broken

# Of the seeds; story.py has the kinds. LATER begins where rare faults are found soon.
ANY, LATER, RESTLESS, FAR = range(300), range(40, 400), range(2, 900, 3), range(904, 8_000, 10)
# For each way: among which seeds, and a part of what is found.
FOUND: dict[str, tuple[range, str]] = {
    "return-time": (ANY, "may answer at one time"),
    "retry-time": (ANY, "may answer at one time"),
    "no-check": (ANY, "I2: an answer leaves"),
    "early-check": (LATER, "I2: an answer leaves"),
    "hasty": (ANY, "may answer at one time"),
    "no-margin": (LATER, "may answer at one time"),
    "no-nonce": (ANY, "may answer at one time"),
    "unknown-is-done": (ANY, "I3"),
    "unknown-is-failed": (ANY, "has no cause that is left"),
    "outage-is-death": (ANY, "after an outage of the engine"),
    "no-distrust": (ANY, "may answer at one time"),
    "no-grace": (ANY, "s after a claim"),
    "valid-after-release": (LATER, "may answer at one time"),
    "shows-unconfirmed": (ANY, "was known before"),
    "keeps-memory": (ANY, ""),
    "no-allowance": (range(100, 500), "s early"),
    "long-passing-on": (FAR, "s early"),
    "any-epoch": (RESTLESS, "has no cause that is left"),
    "takes-twice": (RESTLESS, "has no cause that is left"),
}


@pytest.mark.slow
@pytest.mark.inside
@pytest.mark.parametrize("way", WAYS)
def test_a_broken_rule_is_found(way: str) -> None:
    seeds, text = FOUND[way]
    found = []
    for seed in seeds:
        try:
            Story(seed, WAYS[way]()).run()
        except Broken as broken:
            found.append(str(broken))
            if text in str(broken):
                return
    pytest.fail(f"nothing says {text!r} in {len(seeds)} seeds, but {found[:5]}")


def leader(story: Story) -> Process:
    (process,) = [each for each in story.processes if each.node.leads and not each.paused]
    return process


def lost_and_regrown(rules: Rules) -> tuple[Process, Story]:
    """The engine loses a record that only the primary knows, and another node writes one in its place."""
    story = Story(0, rules)
    world, engine = story.world, story.engine
    world.run(3.0)
    old = leader(story)
    others = [process for process in story.processes if process is not old]
    for process in others:
        process.pause()
        story.cut_apart[old.node_id, process.node_id] = None
    number = len(engine.records)
    while old.node.applied == number or old.node.applied < len(engine.records):
        world.run(world.now_s + 0.001)
    old.pause()
    story.checks.lost_tail(len(engine.lose_tail(len(engine.records) - number)))
    for process in others:
        process.go_on()
    for _ in range(10_000):
        if len(engine.records) == old.node.standing.number:
            break
        world.run(world.now_s + 0.001)
    for process in others:
        process.pause()
    assert len(engine.records) == old.node.standing.number
    old.go_on()
    world.run(world.now_s + 2.0)
    return old, story


def test_a_primary_of_a_lost_history_does_not_write_into_another() -> None:
    old, _ = lost_and_regrown(Rules())
    assert "has lost record" in old.node.stopped


def test_an_engine_that_compares_positions_alone_lets_it() -> None:
    with pytest.raises(Broken, match="which it does not name"):
        lost_and_regrown(PositionAlone())

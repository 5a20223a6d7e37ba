# SPDX-License-Identifier: Apache-2.0
"""The areas of the fuzzer: which sequences of steps are drawn, and how etcd and Lessor are held against each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.conformance.against_model import REAL_TIME_SEQUENCES, Party, Session
from tests.conformance.fuzz import json_bodies, locks, malformed, users, watches
from tests.conformance.fuzz.pair import Pair, Side, tell_apart


@dataclass(frozen=True)
class Area:
    """`check(pair, steps)` raises AssertionError where the two differ. `examples`: of each round of scripts/fuzz."""

    name: str
    steps: st.SearchStrategy[list[Any]]
    check: Callable[[Pair, list[Any]], None]
    examples: int
    module: str


def _played(name: str, module: Any, examples: int) -> Area:
    play: Callable[[Side, list[Any]], list[Any]] = module.play
    return Area(name, module.STEPS, lambda pair, steps: tell_apart(pair, play, steps), examples, module.__name__)


def _against_the_model(pair: Pair, steps: list[Any]) -> None:
    """Three at once: etcd, Lessor and the model."""
    etcd, lessor = pair.subjects
    pair.level()
    Session([Party(etcd, pair.differences), Party(lessor)], etcd.min_ttl_s).run(steps)


AREAS = {
    area.name: area
    for area in (
        Area("kv", REAL_TIME_SEQUENCES, _against_the_model, 100, "tests.conformance.fuzz.areas"),
        _played("watch", watches, 60),
        _played("lock", locks, 60),
        _played("auth", users, 60),
        _played("malformed", malformed, 150),
        _played("json", json_bodies, 150),
    )
}

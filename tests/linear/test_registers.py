# SPDX-License-Identifier: Apache-2.0
"""The search of registers.py, beside trying all orders, and in few steps."""

import math
import random
from itertools import permutations

import pytest

from tests.linear import registers
from tests.linear.registers import Call, States


def writes(value: bytes, called_s: float, end_s: float, *, unknown: bool = False) -> Call:
    def step(states: States) -> States:
        after = frozenset({((b"k", value),)})
        return states | after if unknown else after

    return Call(called_s, end_s, step, value)


def reads(value: bytes, called_s: float, end_s: float) -> Call:
    wanted = ((b"k", value),) if value else ()
    return Call(called_s, end_s, lambda states: states & {wanted}, value)


@pytest.mark.parametrize(
    ("calls", "good"),
    [
        ([], True),
        ([writes(b"1", 0, 1), reads(b"1", 2, 3)], True),
        ([writes(b"1", 0, 1), reads(b"", 2, 3)], False),
        ([writes(b"1", 0, 4), reads(b"", 1, 2), reads(b"1", 2, 3)], True),
        ([writes(b"1", 0, 4), reads(b"1", 1, 2), reads(b"", 2.5, 3)], False),
        ([writes(b"1", 0, 9), writes(b"2", 0, 9), reads(b"2", 1, 2), reads(b"1", 3, 4), reads(b"2", 5, 6)], False),
        ([writes(b"1", 0, 1, unknown=True), reads(b"", 2, 3)], True),
        ([writes(b"1", 0, 1, unknown=True), reads(b"1", 2, 3)], True),
        ([writes(b"1", 0, 1, unknown=True), reads(b"", 2, 3), reads(b"1", 4, 5)], False),
        ([writes(b"1", 0, math.inf, unknown=True), reads(b"", 2, 3), reads(b"1", 4, 5)], True),
        ([writes(b"1", 0, math.inf, unknown=True), reads(b"1", 2, 3), reads(b"", 4, 5)], False),
    ],
)
def test_the_search(calls: list[Call], good: bool) -> None:
    assert (registers.search(calls) is None) is good


def by_trying_all(calls: list[Call]) -> bool:
    for order in permutations(calls):
        states = registers.EMPTY
        for number, call in enumerate(order):
            if any(later.end_s < call.called_s for later in order[number + 1 :]):
                break
            states = call.step(states)
            if not states:
                break
        else:
            return True
    return False


def test_the_search_finds_what_trying_all_orders_finds() -> None:
    chance = random.Random(4)
    goods = 0
    for _ in range(600):
        calls = []
        for _ in range(chance.randint(1, 6)):
            called_s = chance.randrange(12)
            end_s = called_s + chance.choice((1, 3, 6))
            value = chance.choice((b"1", b"2"))
            if chance.random() < 0.5:
                calls.append(writes(value, called_s, end_s, unknown=chance.random() < 0.4))
            else:
                calls.append(reads(chance.choice((b"", value)), called_s, end_s))
        good = by_trying_all(calls)
        goods += good
        assert (registers.search(calls) is None) is good, calls
    assert 100 < goods < 500


def test_the_search_goes_forward_where_there_is_an_order() -> None:
    """Six writers at a time, a kill after each hundred calls, and readers: few steps more than calls."""
    chance = random.Random(7)
    state, steps, calls = b"", 0, []

    def counted(call: Call) -> Call:
        def step(states: States) -> States:
            nonlocal steps
            steps += 1
            return call.step(states)

        return call._replace(step=step)

    for number in range(1_000):
        called_s, end_s = number - chance.random() * 3, number + chance.random() * 3
        if number % 2:
            calls.append(counted(reads(state, called_s, end_s)))
        else:
            state = b"%d" % number
            calls.append(counted(writes(state, called_s, end_s)))
            if number % 100 < 6:
                calls.append(counted(writes(b"u%d" % number, called_s, number + 3, unknown=True)))
    assert registers.search(calls) is None
    assert steps < 10 * len(calls)

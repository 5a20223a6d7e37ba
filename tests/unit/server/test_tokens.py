# SPDX-License-Identifier: Apache-2.0
"""Simple tokens on a clock that the test moves."""

import re

from lessor.server.services.tokens import SimpleTokens
from lessor.state.permissions import Caller


class Clock:
    def __init__(self) -> None:
        self.time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s


def tokens_on(clock: Clock) -> SimpleTokens:
    return SimpleTokens(clock, 300.0, lambda: 17)


def test_a_token_is_letters_and_a_number() -> None:
    tokens = tokens_on(Clock())
    made = {tokens.issue("u", 1) for _ in range(50)}
    assert len(made) == 50
    assert all(re.fullmatch(r"[a-zA-Z]{16}\.17", token) for token in made)


def test_a_token_is_as_good_as_the_data_of_now() -> None:
    tokens = tokens_on(Clock())
    token = tokens.issue("u", 1)
    assert tokens.caller(token, 9) == Caller("u", 9)
    assert tokens.caller("x" + token, 9) is None


def test_a_token_lives_as_long_as_it_is_used() -> None:
    clock = Clock()
    tokens = tokens_on(clock)
    used, unused = tokens.issue("u", 1), tokens.issue("v", 1)
    for _ in range(5):
        clock.time_s += 299.0
        assert tokens.caller(used, 1) is not None
    assert tokens.caller(unused, 1) is None
    clock.time_s += 300.0
    assert tokens.caller(used, 1) is None


def test_what_has_ended_takes_no_memory() -> None:
    clock = Clock()
    tokens = tokens_on(clock)
    kept = tokens.issue("u", 1)
    for _ in range(100):
        tokens.issue("u", 1)
    clock.time_s += 200.0
    tokens.caller(kept, 1)
    clock.time_s += 200.0
    tokens.issue("u", 1)
    assert len(tokens._users) == 2
    assert tokens.caller(kept, 1) is not None


def test_forgetting() -> None:
    tokens = tokens_on(Clock())
    mine, mine_too, other = tokens.issue("u", 1), tokens.issue("u", 1), tokens.issue("v", 1)
    tokens.forget_user("u")
    assert tokens.caller(mine, 1) is tokens.caller(mine_too, 1) is None
    assert tokens.caller(other, 1) is not None
    tokens.forget_all()
    assert tokens.caller(other, 1) is None

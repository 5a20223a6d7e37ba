# SPDX-License-Identifier: Apache-2.0
"""What servers of one log tell each other about tokens in use."""

import pytest

from lessor.api.proto.following_pb2 import TokenUse
from lessor.server.loop import token_uses
from lessor.server.loop.token_uses import LATER, TokenUses

TTL_S = 300.0


class Clock:
    time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s


def uses_on(clock: Clock) -> TokenUses:
    return TokenUses(clock.now_s, TTL_S)


def test_a_token_lives_for_its_ttl_after_each_use_and_no_more_than_an_eighth_longer() -> None:
    clock = Clock()
    uses = uses_on(clock)
    assert uses.is_live(b"m") is None
    for _ in range(20):
        uses.used(b"m")
        clock.time_s += 299
        assert uses.is_live(b"m")
    uses.used(b"m")
    clock.time_s += TTL_S * LATER
    assert uses.is_live(b"m") is False


def marks(told: list[TokenUse]) -> list[bytes]:
    return [use.mark for use in told]


def test_only_news_are_told_and_each_once() -> None:
    clock = Clock()
    uses = uses_on(clock)
    uses.used(b"a")
    uses.used(b"b")
    serial, told = uses.told(0, here=True)
    assert (marks(told), told[0].left_s) == ([b"a", b"b"], TTL_S * LATER)
    uses.used(b"a")  # it has its time already
    assert uses.told(serial, here=True) == (serial, [])
    clock.time_s += 100
    uses.used(b"a")
    later, told = uses.told(serial, here=True)
    assert marks(told) == [b"a"]
    assert uses.told(later, here=True) == (later, [])
    assert marks(uses.told(0, here=True)[1]) == [b"b", b"a"]


def test_what_was_heard_goes_on_from_the_leader_only() -> None:
    uses = uses_on(Clock())
    uses.used(b"own")
    uses.heard([TokenUse(mark=b"heard", left_s=10.0)])
    assert marks(uses.told(0, here=True)[1]) == [b"own"]
    assert marks(uses.told(0, here=False)[1]) == [b"own", b"heard"]
    assert uses.is_live(b"heard")


def test_what_was_heard_lengthens_and_never_shortens_and_has_a_bound() -> None:
    clock = Clock()
    uses = uses_on(clock)
    uses.used(b"m")
    uses.heard([TokenUse(mark=b"m", left_s=1.0), TokenUse(mark=b"old", left_s=-5.0), TokenUse(mark=b"x", left_s=1e9)])
    assert uses.is_live(b"old") is None
    clock.time_s += TTL_S
    assert uses.is_live(b"m")
    uses.heard([TokenUse(mark=b"m", left_s=200.0)])
    clock.time_s += 100
    assert uses.is_live(b"m")
    assert uses.is_live(b"x") is False


def test_two_servers_that_tell_each_other_all_the_time_keep_no_token_alive() -> None:
    clock = Clock()
    leader, follower = uses_on(clock), uses_on(clock)
    follower.used(b"m")
    leader_told = follower_told = 0
    for _ in range(50):
        clock.time_s += 10
        follower_told, told = follower.told(follower_told, here=True)
        clock.time_s += 2  # on its way
        leader.heard(told)
        leader_told, told = leader.told(leader_told, here=False)
        clock.time_s += 2
        follower.heard(told)
    assert not leader.is_live(b"m")
    assert not follower.is_live(b"m")


def test_many_are_told_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_uses, "TOLD_MAX", 2)
    uses = uses_on(Clock())
    for mark in (b"a", b"b", b"c"):
        uses.used(mark)
    serial, told = uses.told(0, here=False)
    assert marks(told) == [b"a", b"b"]
    assert marks(uses.told(serial, here=False)[1]) == [b"c"]


def test_tokens_that_have_ended_are_not_kept() -> None:
    clock = Clock()
    uses = uses_on(clock)
    for number in range(100):
        uses.used(b"%d" % number)
        clock.time_s += 100
    assert len(uses._ends) <= 4

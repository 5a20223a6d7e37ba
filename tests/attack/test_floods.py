# SPDX-License-Identifier: Apache-2.0
"""Each flood beside an innocent client: it goes on, and what no client needs is cut off after a bounded amount."""

from collections.abc import Iterator

import pytest

from lessor.testing.server import InProcessServer
from tests.attack.floods import FLOODS, ROUND_BYTES
from tests.attack.peers import Attacker, Innocent

# The clock stands still, so the allowance of a connection is for its whole life.
ROUNDS_MAX = 40  # 2.6 MB; the sockets alone take some of it
ROUNDS = 6  # of a flood of calls, which nobody can tell from a busy client but by its use

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[InProcessServer]:
    with InProcessServer() as running:
        yield running


@pytest.mark.parametrize("name", FLOODS)
def test_the_innocent_go_on_and_the_needless_is_cut_off(server: InProcessServer, name: str) -> None:
    flood = FLOODS[name]
    attacker = Attacker(server.address)
    try:
        with Innocent(server.address, lease=1 + list(FLOODS).index(name)) as innocent:
            attacker.send(flood.opening)
            rounds = flood.rounds()
            for _ in range(ROUNDS_MAX if flood.needless else ROUNDS):
                taken = attacker.send(next(rounds))
                innocent.work()
                if not taken:
                    break
            attacker.read(0.05)
            assert attacker.cut == flood.needless
            innocent.work()
    finally:
        attacker.close()


def test_several_at_once_leave_the_innocent_their_share(server: InProcessServer) -> None:
    floods = [flood for flood in FLOODS.values() if not flood.needless]
    attackers = [Attacker(server.address) for _ in floods]
    try:
        with Innocent(server.address) as innocent:
            for attacker, flood in zip(attackers, floods, strict=True):
                attacker.send(flood.opening)
            for _ in range(2):
                for attacker, flood in zip(attackers, floods, strict=True):
                    attacker.send(next(flood.rounds())[:ROUND_BYTES])
                innocent.work()
    finally:
        for attacker in attackers:
            attacker.close()

# SPDX-License-Identifier: Apache-2.0
"""A little of the mutation fuzzer in each run of the tests: the same conversations each time. More: scripts/attack."""

import pytest

from tests.attack import mutation, rounds
from tests.attack.conversations import CONVERSATIONS
from tests.attack.peers import Attacker, Innocent
from tests.conformance.lessor_server import LessorServer


@pytest.mark.slow
def test_no_mutated_conversation_harms_another_client() -> None:
    with LessorServer() as server:
        watched = rounds.Watched(server)
        cut = rounds.run(server, watched, 0, 300)
        assert 30 < cut < 270  # they reach beyond the first frame, and break rules


@pytest.mark.slow
def test_the_fuzzer_can_fail() -> None:
    with LessorServer() as server:
        watched = rounds.Watched(server)
        with (server.folder / "log").open("a") as log:
            log.write("Traceback (most recent call last):\n")
        with pytest.raises(rounds.FindingError, match="the log says"):
            watched.look()
        watched.look()
        server.request_stop()
        server.wait()
        with pytest.raises(rounds.FindingError, match="ended"):
            watched.look()


@pytest.mark.slow
def test_an_unmutated_conversation_is_served() -> None:
    with LessorServer() as server, Innocent(server.address) as innocent:
        for conversation in CONVERSATIONS[:6]:
            attacker = Attacker(server.address)
            for piece in conversation:
                assert attacker.send(piece)
            for _ in range(25):  # the machine may be busy
                if not attacker.tail:
                    attacker.read(0.2)
            assert attacker.tail
            attacker.close()
            innocent.work()


def test_a_number_names_a_conversation() -> None:
    made = {tuple(mutation.mutated(number)) for number in range(200)}
    assert made == {tuple(mutation.mutated(number)) for number in range(200)}
    assert len(made) > 180

# SPDX-License-Identifier: Apache-2.0
"""Who can read the log is believed, and nobody else."""

import pytest

from lessor.cluster.proof import answer, holds, is_answer, proof, vouch, vouched_name

NONCE, OWN = bytes(range(16)), bytes(range(16, 32))
URLS = ("http://a:1", "http://b:2")


def test_a_proof_holds_for_what_was_said_alone() -> None:
    said = proof(NONCE, OWN, 7, "n1", URLS)
    assert holds(said, NONCE, OWN, 7, "n1", URLS)
    assert not holds(said, NONCE, OWN, 8, "n1", URLS)
    assert not holds(said, NONCE, OWN, 7, "n2", URLS)
    assert not holds(said, NONCE, OWN, 7, "n1", URLS[:1])
    assert not holds(said, NONCE, bytes(16), 7, "n1", URLS)
    assert not holds(said, bytes(16), OWN, 7, "n1", URLS)


@pytest.mark.parametrize("found", [b"", NONCE, bytes(32)])
def test_another_answer_does_not_hold(found: bytes) -> None:
    assert not holds(found, NONCE, OWN, 7, "n1", URLS)


def test_who_leads_answers_the_challenge_and_no_other() -> None:
    said = answer(NONCE, b"challenge")
    assert is_answer(said, NONCE, b"challenge")
    assert not is_answer(said, NONCE, b"another")
    assert not is_answer(said, OWN, b"challenge")
    assert not is_answer(b"", NONCE, b"challenge")


def test_a_word_for_a_caller_holds_for_one_stream_of_one_connection_alone() -> None:
    said = vouch(NONCE, OWN, 7, "/s/M", "ada é")
    assert vouched_name(said, NONCE, OWN, 7, "/s/M") == "ada é"
    assert vouched_name(said, NONCE, OWN, 9, "/s/M") is None
    assert vouched_name(said, NONCE, OWN, 7, "/s/N") is None
    assert vouched_name(said, NONCE, NONCE, 7, "/s/M") is None
    assert vouched_name(said, OWN, OWN, 7, "/s/M") is None
    for at in range(len(said)):
        for letter in b":0fF g\xff":
            changed = said[:at] + bytes([letter]) + said[at + 1 :]
            assert changed == said or vouched_name(changed, NONCE, OWN, 7, "/s/M") is None
    assert vouched_name(vouch(NONCE, OWN, 7, "/s/M", ""), NONCE, OWN, 7, "/s/M") == ""


@pytest.mark.parametrize("found", [b"", b":", b"ada", b":616461", b"\xff:\xff", b"00" * 32 + b":616461"])
def test_any_other_word_names_nobody(found: bytes) -> None:
    assert vouched_name(found, NONCE, OWN, 7, "/s/M") is None

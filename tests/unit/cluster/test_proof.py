# SPDX-License-Identifier: Apache-2.0
"""Who can read the log is believed, and nobody else."""

import pytest

from lessor.cluster.proof import holds, proof

NONCE = bytes(range(16))
URLS = ("http://a:1", "http://b:2")


def test_a_proof_holds_for_what_was_said_alone() -> None:
    said = proof(NONCE, 7, "n1", URLS)
    assert holds(said, NONCE, 7, "n1", URLS)
    assert not holds(said, NONCE, 8, "n1", URLS)
    assert not holds(said, NONCE, 7, "n2", URLS)
    assert not holds(said, NONCE, 7, "n1", URLS[:1])
    assert not holds(said, bytes(16), 7, "n1", URLS)


@pytest.mark.parametrize("found", [b"", NONCE, bytes(32)])
def test_another_answer_does_not_hold(found: bytes) -> None:
    assert not holds(found, NONCE, 7, "n1", URLS)

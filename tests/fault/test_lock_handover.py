# SPDX-License-Identifier: Apache-2.0
"""The holder of a lock is killed with SIGKILL: another process gets the lock, and not before the lease has ended.

How soon after is measured by bench/lock_handover.py, whose clients, made with grpcio, these are.
"""

import pytest

from bench.lock_handover import handover
from tests.conformance.lessor_server import LessorServer


@pytest.mark.slow
def test_a_killed_holders_lock_goes_to_the_next_when_its_lease_ends_and_not_before() -> None:
    with LessorServer() as server:
        after_promise_s, _ = handover(server.address)
    assert after_promise_s >= 0

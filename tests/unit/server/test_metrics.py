# SPDX-License-Identifier: Apache-2.0
"""The counts that a client chooses the name of."""

from lessor.api.methods import BY_PATH
from lessor.base import limits
from lessor.server.observe.metrics import Metrics


def test_made_up_versions_of_clients_share_one_count() -> None:
    metrics = Metrics()
    method = BY_PATH["/etcdserverpb.KV/Range"]
    for number in range(10 * limits.CLIENT_VERSIONS_MAX):
        metrics.calls(method, b"%d" % number).begin()
    assert len(metrics.requests) == limits.CLIENT_VERSIONS_MAX + 1
    assert metrics.requests[True, b"other"].n == 9 * limits.CLIENT_VERSIONS_MAX

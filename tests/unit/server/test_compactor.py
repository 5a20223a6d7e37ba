# SPDX-License-Identifier: Apache-2.0
"""What automatic compaction compacts to, tick by tick."""

from typing import cast

from lessor.server.loop.core import Core
from lessor.server.options import Options
from lessor.server.services.compactor import SAMPLES_PER_RETENTION, Compactor


def compactor(mode: str, retention: float) -> Compactor:
    options = Options(auto_compaction_mode=mode, auto_compaction_retention=retention)
    return Compactor(cast(Core, None), options)


def test_by_revision_keeps_the_newest() -> None:
    assert compactor("revision", 100).target(1_000) == 900


def test_periodic_compacts_to_what_was_current_one_retention_ago() -> None:
    periodic = compactor("periodic", 3_600)
    assert periodic.interval_s * SAMPLES_PER_RETENTION == 3_600
    ticks = [periodic.target(revision) for revision in range(0, 200, 10)]
    assert ticks[:SAMPLES_PER_RETENTION] == [None] * SAMPLES_PER_RETENTION
    # The tick at revision 100 is the first that is a whole retention after a sample, the one at revision 0.
    assert ticks[SAMPLES_PER_RETENTION:] == list(range(0, 100, 10))

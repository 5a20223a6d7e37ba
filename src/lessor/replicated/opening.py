# SPDX-License-Identifier: Apache-2.0
"""From the options --engine and --cluster-lease to the engine that they name.

Does not do: connecting. The engine does, when it is opened.
"""

import secrets
from pathlib import Path

from lessor.cluster.tenure import RATES_MAX, Timing
from lessor.durable.shared_log import SharedLog
from lessor.engines.named import shared_log
from lessor.replicated.engine import ReplicatedEngine

_RANKS = 8


def timing(lease_s: float) -> Timing:
    """The times of a tenure whose records let their node answer for `lease_s` seconds."""
    # Two nodes that stand by rarely claim at one time if each waits a little longer by its own measure.
    rank_s = secrets.randbelow(_RANKS) * lease_s / 80
    return Timing(lease_s, lease_s * RATES_MAX, rank_s, lease_s / 4, lease_s * 0.6)


def replicated_engine(
    data_dir: Path, url: str, *, may_lose_commits: bool, lease_s: float, client_urls: tuple[str, ...]
) -> ReplicatedEngine:
    """The engine on the shared log that `url` names. Raises LogRefusedError for a URL that names none."""

    def make_log() -> SharedLog:
        return shared_log(url, may_lose_commits=may_lose_commits)

    return ReplicatedEngine(data_dir, make_log, timing(lease_s), urls=client_urls)

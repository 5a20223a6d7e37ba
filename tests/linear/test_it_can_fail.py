# SPDX-License-Identifier: Apache-2.0
"""Each way in which a server is broken (broken.py) is found, and by the check that is meant to find it."""

from pathlib import Path

import pytest

from tests.linear.broken import WAYS
from tests.linear.check import findings
from tests.linear.driver import run
from tests.linear.nemesis import LessorProcess, OneServer

# A part of one of the findings that each way has to cause.
FOUND = {
    "early_replies": ["was known before", "is due"],
    "stale_reads": ["the model answers otherwise", "have no order"],
    "lost_compares": ["the model answers otherwise", "have no order"],
    "forgotten_renewals": ["s early"],
    "late_acknowledgements": ["s early"],
    "dropped_events": ["is due"],
    "doubled_events": ["is due"],
    "wrong_prev_kv": ["is due"],
    "skipped_record": ["was known before", "is due"],
    "half_an_end": ["has no cause that is left"],
    "revived_leases": ["lives again"],
}


# How long the load runs between two kills, where leases have to have the time to end.
LOAD_S = {"forgotten_renewals": (2.0, 3.0), "late_acknowledgements": (2.0, 3.0)}


@pytest.mark.slow
@pytest.mark.inside
@pytest.mark.parametrize("way", WAYS)
def test_a_broken_server_is_found(way: str, tmp_path: Path) -> None:
    server = OneServer(LessorProcess(tmp_path / "data", ("-m", "tests.linear.broken", way)))
    found = findings(run(server, kills=4, seed=5, load_s=LOAD_S.get(way, (0.3, 1.2)), end_s=2.0))
    for text in FOUND[way]:
        assert any(text in finding for finding in found), f"nothing says {text!r} among {found[:5]}"

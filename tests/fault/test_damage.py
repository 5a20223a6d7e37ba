# SPDX-License-Identifier: Apache-2.0
"""Some of the trials of damage.py. By hand it makes as many as one wants."""

from pathlib import Path

import pytest

from tests.fault import damage


@pytest.mark.slow
def test_damage_anywhere_is_harmless_refused_or_of_a_known_kind(tmp_path: Path) -> None:
    trials = damage.run(tmp_path, 132, seed=3)
    assert [str(one) for one in trials if one.outcome not in damage.EXPLAINED] == []
    assert {one.outcome for one in trials} >= {"served", "refused"}


@pytest.mark.slow
def test_damage_to_the_log_or_sqlites_log_is_never_within_a_row(tmp_path: Path) -> None:
    files = [name for name in damage.FILES if name != damage.DATABASE]
    for one in damage.run(tmp_path, 132, seed=4, files=files):
        assert one.outcome in ("served", "refused", "looks unwritten"), str(one)

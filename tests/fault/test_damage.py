# SPDX-License-Identifier: Apache-2.0
"""Some of the trials of damage.py. By hand it makes as many as one wants."""

from pathlib import Path

import pytest

from tests.fault import damage


@pytest.mark.slow
def test_damage_anywhere_is_harmless_refused_or_of_a_known_kind(tmp_path: Path) -> None:
    trials = damage.run(tmp_path, 154, seed=3)
    assert [str(one) for one in trials if one.outcome not in damage.EXPLAINED] == []
    assert {one.outcome for one in trials} >= {"served", "refused"}
    # Without the sums nothing is compared, and nothing else depends on them.
    assert {one.outcome for one in trials if one.file == f"{damage.DATABASE}-sums"} == {"served"}


@pytest.mark.slow
def test_no_value_is_served_with_wrong_bytes(tmp_path: Path) -> None:
    trials = damage.run(tmp_path, 132, seed=4, files=[damage.DATABASE])
    assert [str(one) for one in trials if one.outcome not in ("served", "refused")] == []
    assert sum("as it was written" in one.detail or "as they were written" in one.detail for one in trials) > 66

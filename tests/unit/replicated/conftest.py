# SPDX-License-Identifier: Apache-2.0
"""A log and its clocks, which the engines of a test share."""

import pytest

from tests.memory_log import MemoryRecords
from tests.unit.replicated.test_engine import Times


@pytest.fixture
def kept() -> MemoryRecords:
    return MemoryRecords()


@pytest.fixture
def times() -> Times:
    return Times()

# SPDX-License-Identifier: Apache-2.0
"""The page of metrics as it is now. A server gives the same page again for a moment, see METRICS_PAGE_S."""

import re
import time
from collections.abc import Callable

READ_S_MAX = 10.0


def fresh(read: Callable[[], str]) -> str:
    """Reads the page until it is one that was made after this call began. etcd makes a new one each time."""
    before, give_up_s = _number(read()), time.monotonic() + READ_S_MAX
    while True:
        page = read()
        if before is None or _number(page) != before:
            return page
        assert time.monotonic() < give_up_s, "the page does not become a new one"
        time.sleep(0.005)  # waiting for a condition, not for a clock


def _number(page: str) -> str | None:
    found = re.search(r"^lessor_metrics_pages_made_total (\S+)$", page, re.MULTILINE)
    return None if found is None else found[1]

# SPDX-License-Identifier: Apache-2.0
"""All checks of a history in one: `findings` is empty when nothing speaks against the server."""

from tests.linear import leases, registers, revisions, watches
from tests.linear.history import History


def group_of(key: bytes) -> bytes:
    """The keys that load.py works on: r/0 .. are registers, p0/a and p0/b .. are pairs that change together."""
    if key.startswith(b"r/"):
        return key
    return key.partition(b"/")[0] if key.startswith(b"p") else b""


def findings(history: History) -> list[str]:
    order = revisions.check(history)
    of_parts = leases.check(history, order) + watches.check(history) + registers.check(history, group_of)
    return order.findings + of_parts

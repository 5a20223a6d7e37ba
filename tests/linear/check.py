# SPDX-License-Identifier: Apache-2.0
"""All checks of a history in one: `findings` is empty when nothing speaks against the server."""

from tests.linear import leases, registers, revisions, watches
from tests.linear.history import History

FAULTS = {2, 12, 13, 15}  # UNKNOWN, UNIMPLEMENTED, INTERNAL, DATA_LOSS


def group_of(key: bytes) -> bytes:
    """The keys that load.py works on: r/0 .. are registers, p0/a and p0/b .. are pairs that change together."""
    if key.startswith(b"r/"):
        return key
    return key.partition(b"/")[0] if key.startswith(b"p") else b""


def findings(history: History, *, watches_lead: bool = False, watches_lag: bool = False) -> list[str]:
    order = revisions.check(history, watches_lead=watches_lead, watches_lag=watches_lag)
    of_parts = leases.check(history, order) + watches.check(history) + registers.check(history, group_of)
    return faults(history) + order.findings + of_parts


def faults(history: History) -> list[str]:
    """Calls that were answered with an error that no kill explains."""
    return [f"an error of the server's own: {op}" for op in history.ops if op.code in FAULTS]

# SPDX-License-Identifier: Apache-2.0
"""The store's logical time: which change came when.

`main` counts the transactions that changed something, from 1 (the empty store is at 1, the first change at 2); `sub`
numbers the changes inside one transaction from 0. Two changes with the same `main` became visible together.
"""

from typing import NamedTuple


class Revision(NamedTuple):
    """Orders changes; compares by main, then sub."""

    main: int
    sub: int


FIRST_REVISION = 1  # of an empty store, as in etcd
NOTHING_COMPACTED = -1  # the compact revision of a store that was never compacted

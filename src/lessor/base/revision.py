# SPDX-License-Identifier: Apache-2.0
"""Revisions: the logical time of the store, which orders all changes.

`main` counts the transactions that changed something: the empty store is at 1, the first change at 2. `sub` numbers the
changes inside one transaction from 0. Changes with the same `main` became visible together.
"""

from typing import NamedTuple


class Revision(NamedTuple):
    """The place of a change among all changes: compares by main, then sub."""

    main: int
    sub: int


FIRST_REVISION = 1  # of an empty store, as in etcd
NOTHING_COMPACTED = -1  # the compact revision of a store that was never compacted

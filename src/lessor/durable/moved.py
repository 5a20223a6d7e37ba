# SPDX-License-Identifier: Apache-2.0
"""What a move of the data leaves where the data was, or where it is to be.

Law: where a mark stands nobody serves, and only the move of that name goes on.

A log has marks as records (SEAL, ARRIVAL in shared_record.py), a directory as a row of its table `meta`.

Does not do: moving (replicated/moving.py).
"""

import contextlib
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from lessor.durable import explain
from lessor.durable.engine import EngineError

AWAY: Final = "away"  # the data is at `place` now
ARRIVING: Final = "arriving"  # the data comes from `place`, and is not to be served yet


class Mark(NamedTuple):
    """What stands there."""

    kind: str  # AWAY, ARRIVING
    move: str  # name of the move: random, the same where the data was and where it is to be
    place: str  # for people: the other end, without secrets

    def __str__(self) -> str:
        return " ".join(self)

    @classmethod
    def read(cls, text: object) -> "Mark | None":
        """What `str` has made; None when it is nothing of that."""
        parts = text.split(" ", 2) if isinstance(text, str) else []
        return cls(*parts) if len(parts) == 3 and parts[0] in (AWAY, ARRIVING) else None

    @property
    def refusal(self) -> str:
        """Why nobody serves here, and what to do."""
        if self.kind == AWAY:
            return f"the data has moved to {self.place}: start the servers on that"
        return f"a move of data from {self.place} to here is not finished: run `lessor cluster move` again"


def rewrite(copy: Path, rows: Mapping[str, object]) -> None:
    """Gives a copy of tables that nobody has open other rows of `meta`; None takes one out. Durable when it returns.

    Raises EngineError.
    """
    try:
        with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            for name, value in rows.items():
                if value is None:
                    connection.execute("DELETE FROM meta WHERE name = ?", (name,))
                else:
                    connection.execute("REPLACE INTO meta VALUES (?, ?)", (name, value))
            connection.execute("COMMIT")
        with copy.open("rb") as file:
            os.fsync(file.fileno())
    except sqlite3.Error as error:
        raise EngineError(explain.sqlite_error(error, copy)) from error
    except OSError as error:
        raise EngineError(explain.system_error(error, copy)) from error

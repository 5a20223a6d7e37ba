# SPDX-License-Identifier: Apache-2.0
"""After the first error of a write every further write is refused: nobody knows what the disk holds.

Law: that another program holds the write lock of the tables is no error of a write. Nothing was done then.

Does not do: deciding what becomes of the server.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from lessor.durable import explain
from lessor.durable.engine import EngineError, TablesLockedError
from lessor.durable.log import LogError
from lessor.durable.table_sync import is_locked


class FirstFailure:
    """Of one engine: its log and its tables fail together."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self.reason: str | None = None
        self.elsewhere: Callable[[], BaseException | None] = lambda: None  # what has failed in the thread that syncs

    def refuse_after(self) -> None:
        """Raises EngineError when a write has failed."""
        if self.reason is not None:
            raise EngineError(f"no write after a failed one: {self.reason}")
        error = self.elsewhere()
        if error is not None:
            self.reason = self._explain(error)
            raise EngineError(self.reason) from error

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """For what must not go wrong. Raises EngineError, or TablesLockedError when nothing was done."""
        self.refuse_after()
        try:
            yield
        except BaseException as error:
            self.raise_for(error)

    def raise_for(self, error: BaseException) -> NoReturn:
        """Raises what `watch` makes of an error, for a caller whom a context manager costs too much."""
        if isinstance(error, TablesLockedError):
            raise error
        if is_locked(error):  # only a BEGIN meets that: nothing was done
            raise TablesLockedError(self._explain(error)) from error
        self.reason = self._explain(error)
        if isinstance(error, (sqlite3.Error, OSError, LogError)):
            raise EngineError(self.reason) from error
        raise error

    def final(self, error: EngineError) -> EngineError:
        """Makes a final one of an error that would not be."""
        self.reason = str(error)
        return EngineError(self.reason)

    def _explain(self, error: BaseException) -> str:
        if isinstance(error, LogError):
            return str(error)
        if isinstance(error, sqlite3.Error):
            return explain.sqlite_error(error, self._database)
        if isinstance(error, OSError):
            return explain.system_error(error, self._database.parent)
        return f"{self._database}: {error!r}"

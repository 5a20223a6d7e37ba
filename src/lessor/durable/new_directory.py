# SPDX-License-Identifier: Apache-2.0
"""A data directory that is made out of a file: a new one or none.

Laws
- A directory that holds anything is refused, and left as it is.
- What is written has its name only when it is whole and on disk. Whatever goes wrong, nothing is left behind; a process
  that is killed leaves a part that no server takes for data.
"""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from lessor.durable import directory, explain
from lessor.durable.engine import DataDirError


@contextlib.contextmanager
def making(data_dir: Path, revisions: int = 0) -> Iterator[Path]:
    """For one `with` block that makes the database at the path that it is given. Raises DataDirError.

    `revisions`: for how many more its history is bumped then, see `bump_revision`; 0: it stays as it is.
    What the block raises goes on to the caller, of OSError and SQLite's errors as a DataDirError.
    """
    made = not data_dir.exists()
    part = data_dir / (directory.DATABASE_NAME + ".new")
    try:
        if not made and (not data_dir.is_dir() or any(data_dir.iterdir())):
            raise DataDirError(
                f'data-dir "{data_dir}" not empty or could not be read: name a directory that is not there'
            )
        directory.prepare(data_dir)
        try:
            yield part
            if revisions:
                bump_revision(part, revisions)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, data_dir / directory.DATABASE_NAME)
            directory.sync_directory(data_dir)
        except BaseException:
            _clear(data_dir, made)
            raise
    except sqlite3.Error as error:
        raise DataDirError(explain.sqlite_error(error, part)) from None
    except OSError as error:
        raise DataDirError(
            f"{data_dir}: {error.strerror or error}: name a directory where this user may write"
        ) from None


def _clear(data_dir: Path, made: bool) -> None:
    """Nothing else was in there."""
    if made:
        shutil.rmtree(data_dir, ignore_errors=True)
        return
    for path in data_dir.glob(directory.DATABASE_NAME + "*"):
        path.unlink(missing_ok=True)


def bump_revision(database: Path, amount: int) -> None:
    """Makes the newest revision greater by `amount`, and compacts there: as `etcdutl snapshot restore` does.

    So a client that has seen later revisions than the file has meets none again, and a watch that goes on from an old
    one is told that it was compacted. Raises sqlite3.Error.
    """
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        (newest,) = connection.execute("SELECT max(revision) FROM event").fetchone()
        (compacted,) = connection.execute("SELECT value FROM meta WHERE name = 'compact_revision'").fetchone()
        revision = max(newest or 1, compacted) + amount
        connection.execute("UPDATE meta SET value = ? WHERE name = 'compact_revision'", (revision,))

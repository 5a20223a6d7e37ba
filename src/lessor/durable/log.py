# SPDX-License-Identifier: Apache-2.0
"""The log: what the engine asks of the place where a batch becomes durable.

Laws
- `append` returns when the record would survive the loss of power at once. Records come in the order of their numbers,
  1, 2, 3 without a gap.
- A record is there whole or not at all.
- What `read` gives is every record after the one asked for that `append` ever acknowledged, and at most one more: the
  one whose `append` was under way when the writer stopped. What is missing is an error, never a shorter answer.
- Nothing above the newest `trim` is ever forgotten.

An `append` that fails says which of two things holds. RefusedError: nothing of the record was or will be written, and
the log is as it was. OutcomeUnknownError: perhaps it is there; only the next `read` can say, and the log takes nothing
more before that.

The log knows numbers and bytes. It knows no rows, no tables and no terms; that a record follows the one before is
seen from the chain values in them (record.py), which the engine compares.

A log that several nodes share adds to this: `append` expects the record that it is to stand behind, and may be told
that another node's stands there; records can be followed; snapshots can be left and found. The record format has all
that this needs (the number, the chain value, the term), and the engine needs no more than what is here.
"""

from typing import Protocol

from lessor.durable.record import Record


class LogError(Exception):
    """The message is one line."""


class RefusedError(LogError):
    """Nothing was written, and nothing will be. Trying again is safe, and helps when the reason has gone."""


class LogFullError(RefusedError):
    """The log may not take more room. It can after a `trim`."""


class OutcomeUnknownError(LogError):
    """Perhaps the record is there. The log takes nothing more until it is opened anew."""


class Log(Protocol):
    """Keeps records. All calls come from one thread. `read` may come before the first `append` only."""

    def read(self, after: int, chain: bytes) -> list[Record]:
        """The records above number `after`, ascending, each decoded; `chain` is the chain value of record `after`.

        Raises DataDirError when something is missing that was durable once, when something is damaged, and when the
        log's record `after` or the record behind it has another history than `chain`. Costs a read of the whole log.
        """
        ...

    def append(self, record: bytes, number: int) -> None:
        """Makes the record durable; its number is one above that of the last one. Raises `LogError`."""
        ...

    def trim(self, upto: int) -> None:
        """Forgets what is not above number `upto`: the tables keep it for good. May keep more. Raises `LogError`."""
        ...

    @property
    def trimmable(self) -> int:
        """A `trim` up to this number would give room back; 0 when none would."""
        ...

    @property
    def size_bytes(self) -> int:
        """What the log takes on disk, in all."""
        ...

    def close(self) -> None:
        """Lets go of the log. Does nothing when closed already."""
        ...

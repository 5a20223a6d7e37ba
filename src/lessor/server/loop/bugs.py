# SPDX-License-Identifier: Apache-2.0
"""An exception that no rule foresees, a bug of ours, ends the call that met it and no other.

Laws
- The client of that call is answered INTERNAL and pointed to the log. The traceback is in the log.
- Code that does something for many calls in a row - the gate, a turn, a line of waiting calls - goes on with the next.

The state machine changes nothing before its checks are through, so memory is taken to be whole. Errors that can be
foreseen do not belong here: they are EtcdErrors where they arise.
"""

import logging
from typing import Protocol

from lessor.base.errors import Code, EtcdError

log = logging.getLogger("lessor")

TEXT = "etcdserver: internal error, see the server's log"


class BrokenTurnError(Exception):
    """A step that a turn does for all, for no single call, has raised: memory may be half changed.

    Then the laws above do not hold: the server stops and answers nobody any more. See turn.py.
    """


class Answerable(Protocol):
    """Something that stands for a call."""

    def end_now(self, error: EtcdError) -> None:
        """Ends the call with the error. Does nothing once it has ended."""
        ...


def as_answer(error: Exception, where: str) -> EtcdError:
    """The answer to a call that met an exception: an EtcdError as it is, INTERNAL for any other exception.

    `where`: the method that was called, or the work that was under way; it goes to the log with the traceback.
    """
    if isinstance(error, EtcdError):
        # Its traceback holds the frame that caught it, which holds the error: a circle for the collector.
        return error.bare()
    log.error("unexpected error", exc_info=error, extra={"method": where})
    return EtcdError(Code.INTERNAL, TEXT)


def broken_turn(error: Exception) -> BrokenTurnError:
    """What the server stops with. The traceback goes to the log."""
    log.critical("unexpected error", exc_info=error, extra={"method": "the end of a turn"})
    return BrokenTurnError(f"{type(error).__name__}: {error}")


def end(call: Answerable, error: Exception) -> None:
    """Ends a call that met a bug outside of its own handler."""
    where = type(call).__name__
    try:
        call.end_now(as_answer(error, where))
    except Exception as another:
        as_answer(another, where)

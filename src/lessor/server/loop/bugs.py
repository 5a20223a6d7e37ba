# SPDX-License-Identifier: Apache-2.0
"""An unforeseen exception, a bug of ours, ends the call that met it and no other.

Laws
- The client of that call is answered INTERNAL and pointed to the log. The traceback is in the log.
- Code that serves many calls in a row - the gate, a turn, a line of waiting calls - goes on with the next call.

The state machine changes nothing before all its checks have passed, so memory is taken to be whole. Errors that can be
foreseen do not belong here: the code that meets them raises EtcdErrors.
"""

import logging
from typing import Protocol

from lessor.base.errors import Code, EtcdError

log = logging.getLogger("lessor")

TEXT = "etcdserver: internal error, see the server's log"


class BrokenTurnError(Exception):
    """A step of the turn that serves no single call has raised: memory may be half changed.

    The laws above do not hold then: the server stops and answers nobody any more. See turn.py.
    """


class Answerable(Protocol):
    """Something that stands for a call."""

    def end_now(self, error: EtcdError) -> None:
        """Ends the call with the error. Does nothing once it has ended."""
        ...


def as_answer(error: Exception, where: str) -> EtcdError:
    """The answer to a call that met an exception: the EtcdError itself, or INTERNAL for any other exception.

    `where`: the method that was called, or the work that was under way. It goes into the log with the traceback.
    """
    if isinstance(error, EtcdError):
        # Its traceback keeps the frame that caught it, and the frame keeps the error: a circle for the collector.
        return error.bare()
    log.error("unexpected error", exc_info=error, extra={"method": where})
    return EtcdError(Code.INTERNAL, TEXT)


def broken_turn(error: Exception) -> BrokenTurnError:
    """The error with which the server stops. The traceback goes into the log."""
    log.critical("unexpected error", exc_info=error, extra={"method": "the end of a turn"})
    return BrokenTurnError(f"{type(error).__name__}: {error}")


def end(call: Answerable, error: Exception) -> None:
    """Ends a call that met a bug outside its handler."""
    where = type(call).__name__
    try:
        call.end_now(as_answer(error, where))
    except Exception as another:
        as_answer(another, where)

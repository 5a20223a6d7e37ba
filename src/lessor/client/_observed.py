# SPDX-License-Identifier: Apache-2.0
"""What others see of a client's work: the logger `lessor.client`, counters, and interceptors around its calls.

Laws
- The log has what happens rarely: connections, repetitions, lost leases, watches that begin anew. Calls are not logged,
  and neither keys nor values nor passwords ever are. Nothing is shown unless the program sets up logging.
- Counters only grow. They are plain numbers that any thread may read.
- An interceptor stands around a call, repetitions and logging in again included. It sees the error that the caller
  gets, and cannot change the outcome.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

LOG = logging.getLogger("lessor.client")
LOG.addHandler(logging.NullHandler())  # otherwise Python prints warnings of programs that have not set up logging


class Counters:
    """How often each of these has happened to a client since it was made; see `client.counters`."""

    __slots__ = (
        "calls",
        "connections",
        "failed_calls",
        "failed_connections",
        "logins",
        "lost_connections",
        "lost_leases",
        "renewals",
        "repeated_calls",
        "resumed_watches",
    )

    def __init__(self) -> None:
        self.calls = 0  # that answer once; streams are not among them
        self.failed_calls = 0  # of them, those that raised an error
        self.repeated_calls = 0  # attempts after the first, on another connection
        self.connections = 0  # that were made
        self.failed_connections = 0  # attempts after which no endpoint had taken one
        self.lost_connections = 0  # that ended while calls were underway
        self.logins = 0
        self.renewals = 0  # of leases that renew themselves, acknowledged by the server
        self.lost_leases = 0
        self.resumed_watches = 0  # watches that began anew after a lost connection or a failing server

    def as_dict(self) -> dict[str, int]:
        """All of them by name, for a metrics system."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __repr__(self) -> str:
        return f"Counters({', '.join(f'{name}={number}' for name, number in self.as_dict().items())})"


class Outgoing:
    """A call that is about to be made, for interceptors.

    method    its path: "/etcdserverpb.KV/Put"
    request   the message
    metadata  pairs of lower-case names and values that are sent along; an interceptor may append, for tracing
    reply     the reply, once it is there
    """

    __slots__ = ("metadata", "method", "reply", "request")

    def __init__(self, method: str, request: Any) -> None:
        self.method = method
        self.request = request
        self.metadata: list[tuple[str, str]] = []
        self.reply: Any = None

    def __repr__(self) -> str:
        return f"<call of {self.method}>"


# Called with each call; the block of what it returns is the call.
Interceptor = Callable[[Outgoing], AbstractContextManager[object]]


def around(interceptors: Sequence[Interceptor], call: Outgoing) -> ExitStack:
    """The blocks of all interceptors, the first one outermost."""
    with ExitStack() as stack:
        for each in interceptors:
            stack.enter_context(each(call))
        return stack.pop_all()
    raise RuntimeError("an interceptor has swallowed the error of another")

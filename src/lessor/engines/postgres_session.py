# SPDX-License-Identifier: Apache-2.0
"""One connection to PostgreSQL: prepared statements, one round trip each, and never an answer that is waited for long.

Laws
- An answer counts when the server has said that it is ready again, which it says after the commit and after the wait
  for the standbys. The rows come before that.
- Waiting ends. A statement that got no answer in time leaves a closed connection behind, and an unknown outcome.
- Nothing is ever cancelled: to cancel a wait for a standby makes a commit visible that is not safe.
- A commit that did not wait for its standby to the end is told from others, though the server calls it done: the server
  adds a warning (`Answer.unsafe`).

Theory of operation. psycopg connects, because it has a time limit for that. From then on libpq's
own calls are used, without blocking, and poll(2) in between: psycopg has no time limit for a statement, and would
cancel one. Parameters and results are binary.

Does not do: knowing what the statements mean; connecting again.
"""

import select
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import psycopg
from psycopg import pq
from psycopg.errors import Diagnostic

from lessor.base.clock import Clock
from lessor.base.limits import ENGINE_ANSWER_BYTES_PER_S
from lessor.durable.shared_log import LogRefusedError, UnreachableError
from lessor.engines.postgres_url import Address

# What a server says to those whom it does not let in, and libpq to those who do not trust the server. In English: there
# is no code for it. In another language it is taken for a server that is not there, and the text is shown.
_REFUSALS: Final = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "is not permitted to log in",
    "permission denied for database",
    "server does not support SSL",
    "certificate verify failed",
    "server certificate for",
    "root certificate file",
    "invalid sslmode value",
    "private key file",
    "could not read certificate file",
    "invalid port number",
    "invalid integer value",
    "invalid connection option",
)
_SHUTTING: Final = ("57P01", "57P02", "57P03", "08")  # terminated, crashed, cannot connect now; connection lost


class LostError(Exception):
    """The connection is gone, or no answer came in time: the outcome is unknown. The text is one line."""


class ServerError(Exception):
    """The server did not do it, and says why. The connection goes on. The text is one line."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{text} (SQLSTATE {code})")
        self.code = code


class Answer(NamedTuple):
    rows: list[list[bytes]]  # no value is NULL
    unsafe: str  # not empty: committed, and the wait for the standbys was broken off


class Session:
    """Blocks; one call at a time from one thread."""

    def __init__(
        self, address: Address, host: str, statements: Mapping[str, str], answer_s: float, clock: Clock
    ) -> None:
        """Connects to one of the hosts. `statements`: SQL by name. Raises LogRefusedError, UnreachableError."""
        self._address = address
        self._statements = statements
        self._answer_s = answer_s
        self._clock = clock
        self._prepared: set[str] = set()
        self._unsafe = ""
        try:
            self._connection = psycopg.connect(host, autocommit=True)
        except psycopg.Error as error:
            raise _not_connected(address.scrubbed(str(error))) from None
        self._connection.add_notice_handler(self._noticed)
        self._raw = self._connection.pgconn
        self._raw.nonblocking = 1
        self._poll = select.poll()
        self.backend = self._raw.backend_pid  # as this connection was told; a pooler tells its own number

    def ask(self, name: str, *params: bytes, answer_bytes: int = 0) -> Answer:
        """Executes a statement with binary parameters. Raises LostError, ServerError.

        `answer_bytes`: about what the answer may bring. It gets the time for that, as long as it comes.
        """
        if name not in self._prepared:
            self._do(lambda: self._raw.send_prepare(name.encode(), self._statements[name].encode()), 0)
            self._prepared.add(name)
        formats = [pq.Format.BINARY] * len(params)
        size = sum(map(len, params))
        return self._do(
            lambda: self._raw.send_query_prepared(name.encode(), params, formats, pq.Format.BINARY), size, answer_bytes
        )

    def script(self, sql: str) -> None:
        """Executes statements in one transaction, without results. Raises LostError, ServerError."""
        self._do(lambda: self._raw.send_query(sql.encode()), 0)

    def look(self, sql: str) -> list[list[bytes]]:
        """The rows of one statement without parameters, as text. Raises LostError, ServerError."""
        return self._do(lambda: self._raw.send_query(sql.encode()), 0).rows

    @property
    def closed(self) -> bool:
        return bool(self._connection.closed)

    def close(self) -> None:
        """What is under way at the server goes on there."""
        self._connection.close()

    # --- waiting --------------------------------------------------------------------------------------------------

    def _do(self, send: Callable[[], None], size: int, answer_bytes: int = 0) -> Answer:
        self._unsafe = ""
        silent_s = self._answer_s + size / ENGINE_ANSWER_BYTES_PER_S
        try:
            send()
            until_s = self._clock.now_s() + silent_s + answer_bytes / ENGINE_ANSWER_BYTES_PER_S
            results = self._results(silent_s, until_s)
        except psycopg.Error as error:
            self.close()
            raise LostError(self._address.scrubbed(str(error))) from None
        except BaseException:  # interrupted, or late: the answer that is still to come must not be taken for another's
            self.close()
            raise
        rows: list[list[bytes]] = []
        for result in results:
            if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
                raise self._failed(result)
            columns = range(result.nfields)
            rows += [[result.get_value(row, column) or b"" for column in columns] for row in range(result.ntuples)]
        return Answer(rows, self._unsafe)

    def _results(self, silent_s: float, until_s: float) -> Sequence[pq.abc.PGresult]:
        """All results up to the server being ready again. LostError: nothing came for `silent_s`, or it is too slow."""
        raw = self._raw
        while raw.flush():
            if self._wait(select.POLLIN | select.POLLOUT, silent_s, until_s) & ~select.POLLOUT:
                raw.consume_input()
        results: list[pq.abc.PGresult] = []
        while True:
            while raw.is_busy():
                self._wait(select.POLLIN, silent_s, until_s)
                raw.consume_input()
            result = raw.get_result()
            if result is None:
                return results
            results.append(result)

    def _wait(self, events: int, silent_s: float, until_s: float) -> int:
        self._poll.register(self._raw.socket, events)
        left_s = min(silent_s, until_s - self._clock.now_s())
        ready = self._poll.poll(left_s * 1000) if left_s > 0 else []
        if not ready:
            raise LostError("no answer in time: the server stands still, or waits for a standby that is away")
        return ready[0][1]

    def _failed(self, result: pq.abc.PGresult) -> LostError | ServerError:
        code = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        text = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
        shown = self._address.scrubbed(text.decode(errors="replace"))
        if self._raw.status != pq.ConnStatus.OK or not code or code.startswith(_SHUTTING):
            self.close()
            return LostError(shown)
        return ServerError(code, shown)

    def _noticed(self, notice: Diagnostic) -> None:
        # In the source's name, because the text may be in any language.
        if "syncrep" in (notice.source_file or "") or "SyncRep" in (notice.source_function or ""):
            self._unsafe = self._address.scrubbed(notice.message_primary or "a wait for the standbys was broken off")


def _not_connected(text: str) -> LogRefusedError | UnreachableError:
    return LogRefusedError(text) if any(mark in text for mark in _REFUSALS) else UnreachableError(text)

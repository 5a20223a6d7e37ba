# SPDX-License-Identifier: Apache-2.0
"""How long an answer of PostgreSQL is waited for: as long as it comes, and not much longer."""

import pytest

pytest.importorskip("psycopg", reason="the package psycopg is not here")

from lessor.base.limits import ENGINE_ANSWER_BYTES_PER_S
from lessor.engines.postgres_session import LostError, Session

ANSWER_S = 3.0


class Server:
    """Sends an answer in pieces, `every_s` seconds apart. Stands in for libpq, its socket, the poll and the clock."""

    socket = 1
    nonblocking = 1

    def __init__(self, pieces: int, every_s: float) -> None:
        self.now = 100.0
        self._pieces = pieces
        self._every_s = every_s

    def now_s(self) -> float:
        return self.now

    def register(self, _socket: int, _events: int) -> None: ...

    def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
        came = self._every_s * 1000 <= timeout_ms
        self.now += self._every_s if came else timeout_ms / 1000
        return [(1, 1)] if came else []

    def flush(self) -> int:
        return 0

    def is_busy(self) -> bool:
        return self._pieces > 0

    def consume_input(self) -> None:
        self._pieces -= 1

    def get_result(self) -> None: ...

    def close(self) -> None: ...


def waited_s(server: Server, answer_bytes: int = 0, sent_bytes: int = 0) -> float:
    session = object.__new__(Session)
    session._answer_s = ANSWER_S
    session._clock = server
    session._raw = session._poll = session._connection = server  # type: ignore[assignment]
    began_s = server.now
    try:
        session._do(lambda: None, sent_bytes, answer_bytes)
    except LostError:
        return began_s - server.now
    return server.now - began_s


def test_a_long_answer_is_waited_for_while_it_comes() -> None:
    megabytes = 16
    answer_bytes = megabytes * ENGINE_ANSWER_BYTES_PER_S
    assert waited_s(Server(8, 2.0), answer_bytes) == 16.0
    assert waited_s(Server(1_000, 2.0), answer_bytes) == -(ANSWER_S + megabytes)  # lost


@pytest.mark.parametrize("answer_bytes", [0, 2**30])
def test_silence_is_given_up_soon_whatever_was_asked_for(answer_bytes: int) -> None:
    assert waited_s(Server(1, 3.1), answer_bytes) == -ANSWER_S
    assert waited_s(Server(1, 2.9), answer_bytes) == pytest.approx(2.9)


def test_what_is_sent_gets_its_time_too() -> None:
    assert waited_s(Server(1, 4.9), sent_bytes=2 * ENGINE_ANSWER_BYTES_PER_S) == pytest.approx(4.9)
    assert waited_s(Server(1, 5.1), sent_bytes=2 * ENGINE_ANSWER_BYTES_PER_S) == -(ANSWER_S + 2)

# SPDX-License-Identifier: Apache-2.0
"""The mutation fuzzer: mutated conversations beside an innocent client, and what must hold after each few of them."""

from pathlib import Path

from tests.attack.mutation import mutated
from tests.attack.peers import Attacker, Innocent
from tests.conformance.lessor_server import LessorServer

READ_S = 0.002  # for the answers to a conversation: what has not come by then comes before the connection closes
BETWEEN_LOOKS = 25  # conversations
MEMORY_GROWTH_MAX = 400 << 20  # bytes: what the limits of some connections at once add up to
_ALARMS = ("Traceback", "unexpected error", "Exception in callback", "never retrieved", "BUG")


class FindingError(AssertionError):
    """The server did what it must not."""


class Watched:
    """A server under attack, and what is looked at."""

    def __init__(self, server: LessorServer) -> None:
        self.server = server
        self._log_bytes = 0
        self._first_bytes = self._memory_bytes()

    def _memory_bytes(self) -> int:
        try:
            return int(Path(f"/proc/{self.server.pid}/statm").read_text().split()[1]) * 4_096
        except FileNotFoundError:  # no Linux, or no process: `look` tells
            return 0

    def look(self) -> None:
        """Raises FindingError when the process is gone, the log tells of a bug, or the memory grows without bound."""
        log = (self.server.folder / "log").read_text(errors="replace")
        new, self._log_bytes = log[self._log_bytes :], len(log)
        for alarm in _ALARMS:
            if alarm in new:
                raise FindingError(f"the log says {alarm!r}:\n{new[new.find(alarm) :][:3_000]}")
        if not self.server.alive:
            raise FindingError(f"the server has ended:\n{log[-3_000:]}")
        grown = self._memory_bytes() - self._first_bytes
        if grown > MEMORY_GROWTH_MAX:
            raise FindingError(f"the server's memory has grown by {grown >> 20} MiB")


def attack(server: LessorServer, number: int) -> bool:
    """Sends one mutated conversation. Returns whether the server has cut it off."""
    attacker = Attacker(server.address)
    try:
        for piece in mutated(number):
            if not attacker.send(piece):
                break
        attacker.read(READ_S)
        return attacker.cut
    finally:
        attacker.close()


def run(server: LessorServer, watched: Watched, first: int, count: int) -> int:
    """Sends the conversations `first` to `first + count - 1` beside an innocent client. Returns how many were cut off.

    Raises FindingError, also when the innocent client gets a wrong answer; the message names the conversations.
    """
    cut = 0
    with Innocent(server.address, lease=first + 1) as innocent:
        for number in range(first, first + count):
            try:
                cut += attack(server, number)
                innocent.renew()
                if number % BETWEEN_LOOKS == 0 or number == first + count - 1:
                    watched.look()
            except (AssertionError, OSError) as error:
                raise FindingError(f"after conversation {number}, from {first} on: {error}") from error
    return cut

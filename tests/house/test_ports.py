# SPDX-License-Identifier: Apache-2.0
"""The ports that tests give to servers: never the same one twice, by whichever process, and none that is in use."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import ports
from tests.ports import BLOCK_PORTS, HIGHEST, LOWEST, NoPortError, Ports

ROOT = Path(__file__).resolve().parents[2]
RANGE = ports.outside(*ports.ephemeral_ports())


@contextmanager
def drawing(folder: Path, of: range = RANGE) -> Iterator[Ports]:
    made = Ports(of, folder)
    try:
        yield made
    finally:
        made.close()


def test_thousands_of_draws_and_none_twice(tmp_path: Path) -> None:
    count = min(len(RANGE) // 2, 5_000)
    with drawing(tmp_path) as mine:
        drawn = [mine.draw() for _ in range(count)]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(RANGE)


def test_processes_that_live_at_the_same_time_draw_different_ports(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.ports import Ports\n"
        f"mine = Ports({RANGE!r}, Path({str(tmp_path)!r}))\n"
        f"print(*(mine.draw() for _ in range({BLOCK_PORTS + 1})), flush=True); sys.stdin.read()"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    drawn: list[bytes] = []
    for other in others:  # all of them live until each has drawn
        assert other.stdout is not None
        drawn += other.stdout.readline().split()
    for other in others:
        other.communicate()
    assert len(drawn) == len(set(drawn)) == 3 * (BLOCK_PORTS + 1)


def test_a_port_in_use_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "unused", lambda port: port % 2 == 1)
    with drawing(tmp_path) as mine:
        assert all(mine.draw() % 2 == 1 for _ in range(BLOCK_PORTS))


def test_a_listener_is_seen() -> None:
    port = ports.free_port()
    assert ports.unused(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not ports.unused(port)


def test_when_all_is_in_use_the_draw_says_so(tmp_path: Path) -> None:
    small = RANGE[: 2 * BLOCK_PORTS]
    with drawing(tmp_path, small) as mine, drawing(tmp_path, small) as other:
        taken = [mine.draw()]

        def use_up() -> None:
            while True:
                taken.append(other.draw())

        with pytest.raises(NoPortError):
            use_up()
        assert len(set(taken)) == len(taken) <= BLOCK_PORTS + 1  # the first one's block is left out
    with drawing(tmp_path, small) as later:
        assert later.draw() in small  # and given back


@pytest.mark.parametrize(
    ("ephemeral", "expected"),
    [
        ((32768, 60999), range(LOWEST, 32768)),
        ((49152, 65535), range(LOWEST, 49152)),
        ((10000, 40000), range(40001, HIGHEST + 1)),
        ((1024, 65535), range(LOWEST, HIGHEST + 1)),
    ],
)
def test_the_range_keeps_out_of_the_kernels_way(ephemeral: tuple[int, int], expected: range) -> None:
    assert ports.outside(*ephemeral) == expected

# SPDX-License-Identifier: Apache-2.0
"""Several things at a time: who ends first, what becomes of the others, signals, lines of input, programs."""

import asyncio
import os
import signal
import sys

import pytest

from lessor.cli.tasks import beside, crew, ended, first_of, lines, program, signals
from lessor.client import run


async def forever(ends: list[str], name: str = "other") -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ends.append(name)


def test_the_first_result_counts_and_the_others_are_cancelled() -> None:
    ends: list[str] = []

    async def one() -> None:
        await asyncio.sleep(0)

    run(first_of(forever(ends), one()))
    assert ends == ["other"]


def test_the_first_error_counts() -> None:
    ends: list[str] = []

    async def failing() -> None:
        raise ValueError("no")

    async def in_a_crew() -> None:
        async with crew() as start:
            start(forever(ends))
            start(failing())

    with pytest.raises(ValueError, match="no"):
        run(first_of(forever(ends), failing()))
    with pytest.raises(ValueError, match="no"):
        run(in_a_crew())
    assert ends == ["other", "other"]


def test_a_crew_is_waited_for_and_ended_by_its_own_block() -> None:
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append("work")

    async def waiting() -> None:
        async with crew() as start:
            start(work())

    async def failing() -> None:
        async with crew() as start:
            start(forever(done))
            await asyncio.sleep(0)
            raise KeyError("mine")

    run(waiting())
    assert done == ["work"]
    with pytest.raises(KeyError, match="mine"):
        run(failing())
    assert done == ["work", "other"]


def test_what_runs_beside_may_fail_and_is_ended_with_the_block() -> None:
    ends: list[str] = []

    async def failing() -> None:
        raise ValueError("nobody asked")

    async def block() -> None:
        async with beside(failing()) as task:
            await ended(task)
        async with beside(forever(ends)):
            await asyncio.sleep(0)

    run(block())
    assert ends == ["other"]


def test_a_signal_sets_the_event_and_ends_nothing() -> None:
    async def main() -> bool:
        with signals(signal.SIGTERM, signal.SIGINT) as came:
            os.kill(os.getpid(), signal.SIGTERM)
            await came.wait()
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0)
        return came.is_set()

    assert run(main())


@pytest.mark.parametrize("pieces", [[b"a\nb\n\nc"], [b"a", b"\nb", b"\n\n", b"c"], [b"a\nb\n", b"\nc"]])
def test_lines_of_a_pipe(pieces: list[bytes]) -> None:
    reading, writing = os.pipe()

    async def main() -> list[bytes]:
        for piece in pieces:
            os.write(writing, piece)
        os.close(writing)
        return [line async for line in lines(reading)]

    try:
        assert run(main()) == [b"a\n", b"b\n", b"\n", b"c"]
    finally:
        os.close(reading)


def test_a_program_has_our_environment_and_more() -> None:
    script = "import os, sys; sys.exit(int(os.environ['MORE']) if 'PATH' in os.environ else 9)"
    assert run(program([sys.executable, "-c", script], {"MORE": "7"})) == 7
    with pytest.raises(FileNotFoundError):
        run(program(["/no/such/program"], {}))

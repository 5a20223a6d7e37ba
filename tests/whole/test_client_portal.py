# SPDX-License-Identifier: Apache-2.0
"""The blocking client's thread: when it begins and ends, what may use it, and what happens after a fork."""

import ast
import asyncio
import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lessor.client
from lessor.client import Client, ClientClosed, LeaseLost, UsedAfterFork
from lessor.client._portal import Portal, _Waiter
from lessor.testing.server import InProcessServer
from tests.in_process import in_process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    with in_process(tmp_path_factory.mktemp("data")) as server:
        yield server


async def nothing() -> None:
    pass


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lessor-client")]


def until_gone(name: str) -> None:
    """Waits for a thread that has been asked to end."""
    give_up = time.monotonic() + 20
    while name in threads():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def in_child(work: Any) -> str:
    """What `work()` returns in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, work().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def test_the_thread_begins_with_the_first_call_and_ends_with_the_client(server: InProcessServer) -> None:
    client = Client(server.address)
    assert threads() == []
    client.put("a")
    assert threads() == ["lessor-client"]
    client.close()
    assert threads() == []
    client.close()
    with pytest.raises(ClientClosed):
        client.put("a")
    unused = Client(server.address)
    unused.close()
    with pytest.raises(ClientClosed):
        unused.put("a")


def test_a_client_that_is_dropped_ends_its_thread(server: InProcessServer) -> None:
    client = Client(server.address)
    client.put("a")
    lease = client.lease(30).grant()
    del client
    gc.collect()
    assert threads() == ["lessor-client"]  # the lease still needs it
    lease_id = lease.id
    del lease
    gc.collect()
    until_gone("lessor-client")
    with Client(server.address) as another:
        another.revoke(lease_id)


def test_after_a_fork_the_client_says_so(server: InProcessServer) -> None:
    def use() -> str:
        try:
            client.put("child")
        except UsedAfterFork as error:
            return str(error)
        return "no error"

    def leave() -> str:
        lease.__exit__(None, None, None)
        client.close()
        return "left"

    with Client(server.address) as client, client.lease(30) as lease:
        answer = in_child(use)
        assert f"process {os.getpid()}'s" in answer
        assert "make a new one" in answer
        assert in_child(leave) == "left"
        assert client.time_to_live(lease.id).TTL > 0  # the parent's lease is the parent's
        client.put("parent")


def test_a_client_that_was_not_used_yet_works_after_a_fork(server: InProcessServer) -> None:
    client = Client(server.address)

    def use() -> str:
        return str(client.put("child").header.revision)

    assert int(in_child(use)) > 1
    with client:
        assert client.get("child").count == 1


def test_an_error_keeps_its_class_and_leaves_no_reference_behind(server: InProcessServer) -> None:
    with Client(server.address) as client:
        with pytest.raises(KeyError):
            client.call("/no/such", lessor.client.KeyValue())
        assert client.get("x").header.revision


def test_an_interrupt_cancels_the_call_that_is_waited_for() -> None:
    portal = Portal(nothing)
    cancelled = threading.Event()

    async def long() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    main = threading.get_ident()

    async def interrupt() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        await long()

    with pytest.raises(KeyboardInterrupt):
        portal.run(interrupt())
    assert cancelled.wait(10)

    portal.close()
    assert threads() == []


def test_whatever_a_signals_handler_raises_cancels_the_call() -> None:
    portal = Portal(nothing)
    cancelled, main = threading.Event(), threading.get_ident()

    def raises(_number: int, _frame: object) -> None:
        raise RuntimeError("of the user's own")

    async def interrupt() -> None:
        signal.pthread_kill(main, signal.SIGUSR1)
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    before = signal.signal(signal.SIGUSR1, raises)
    try:
        with pytest.raises(RuntimeError, match="of the user's own"):
            portal.run(interrupt())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert cancelled.wait(10)
    portal.close()
    assert threads() == []


def test_an_interrupt_while_the_thread_is_started_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    portal = Portal(nothing)
    begin = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        begin(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        portal.run(nothing())
    first = portal._thread
    monkeypatch.undo()
    first.join(10)
    assert not first.is_alive()
    portal.run(nothing())
    portal.close()
    assert threads() == []


@pytest.mark.parametrize("handed_over", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_an_interrupt_before_the_work_has_begun_leaves_nothing_behind(
    handed_over: bool, started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a task nor a coroutine that nobody awaited, of which Python would warn the user who pressed Ctrl-C."""
    portal = Portal(nothing)
    if started:
        portal.run(nothing())
    submit, may_go_on = portal._submit, threading.Event()

    def wait() -> None:
        may_go_on.wait()

    def interrupted(start: Callable[[], None]) -> None:
        if handed_over:
            submit(wait)  # so that the work and its end find themselves in one turn of the loop
            submit(start)
        raise KeyboardInterrupt

    work = nothing()
    monkeypatch.setattr(portal, "_submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        portal.run(work)
    monkeypatch.undo()
    may_go_on.set()
    portal.run(nothing())
    portal.run(nothing())
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
    portal.close()
    assert threads() == []


def test_it_does_not_wait_for_itself() -> None:
    portal = Portal(nothing)

    async def inner() -> int:
        return 1

    async def outer() -> int:
        return portal.run(inner())

    with pytest.raises(RuntimeError, match="use AsyncClient"):
        portal.run(outer())

    portal.close()


def test_a_call_that_had_not_begun_when_the_thread_ended_is_told() -> None:
    portal = Portal(nothing)
    portal.run(nothing())
    waiter = _Waiter()

    def begin_and_stop() -> None:
        portal._start(waiter, nothing())
        portal._loop.stop()

    portal._loop.call_soon_threadsafe(begin_and_stop)
    assert waiter.done.acquire(timeout=10)
    with pytest.raises(ClientClosed, match="before the call began"):
        waiter.result()
    until_gone("lessor-client")


def test_calls_of_other_threads_end_when_the_client_is_closed_among_them() -> None:
    for _ in range(30):
        portal = Portal(nothing)
        portal.run(nothing())
        outcomes: list[str] = []

        def call(portal: Portal = portal, outcomes: list[str] = outcomes) -> None:
            try:
                while True:
                    portal.run(nothing())
            except ClientClosed:
                outcomes.append("closed")

        callers = [threading.Thread(target=call, daemon=True) for _ in range(3)]
        for caller in callers:
            caller.start()
        portal.close()
        for caller in callers:
            caller.join(10)
        assert outcomes == ["closed"] * 3
        assert threads() == []


def test_a_call_that_is_under_way_is_told_of_the_end() -> None:
    portal = Portal(nothing)
    begun = threading.Event()
    outcomes: list[str] = []

    async def long() -> None:
        begun.set()
        await asyncio.sleep(3600)

    def call() -> None:
        try:
            portal.run(long())
        except ClientClosed as error:
            outcomes.append(str(error))

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    assert begun.wait(10)
    portal.close()
    caller.join(10)
    assert outcomes == ["the client was closed while the call was underway"]


async def fails() -> None:
    raise ValueError("cannot say goodbye")


def test_a_goodbye_that_fails_ends_the_thread_all_the_same() -> None:
    portal = Portal(fails)
    portal.run(nothing())
    with pytest.raises(ValueError, match="goodbye"):
        portal.close()
    assert threads() == []
    portal.close()
    with pytest.raises(ClientClosed):
        portal.run(nothing())


def test_a_dropped_client_whose_goodbye_fails_ends_its_thread() -> None:
    portal = Portal(fails)
    portal.run(nothing())
    del portal
    gc.collect()
    until_gone("lessor-client")


def test_a_child_can_leave_a_client_that_another_thread_was_using_at_the_fork() -> None:
    portal = Portal(nothing)
    portal.run(nothing())

    def leave() -> str:
        signal.alarm(10)
        portal.close()
        return "left"

    with portal._lock:
        assert in_child(leave) == "left"
    portal.run(nothing())
    portal.close()


PROGRAM = """
import sys, threading
from lessor.client import Client
client = Client(sys.argv[1])
lease = client.lease(30).grant()
watch = client.watch(b"k")
threading.Thread(target=lambda: next(iter(watch)), daemon=True).start()
client.put("k")
print(lease.id)
"""


@pytest.mark.slow
def test_a_program_may_end_without_closing_its_client(server: InProcessServer) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, server.address], capture_output=True, timeout=60, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert int(ran.stdout) > 0


def test_a_callback_may_close_the_client(server: InProcessServer) -> None:
    closed = threading.Event()
    client = Client(server.address)

    def close(error: LeaseLost) -> None:
        client.close()
        closed.set()

    lease = client.lease(1, on_lost=close).grant()
    client.revoke(lease.id)
    assert closed.wait(10)
    until_gone("lessor-client")


def test_each_async_class_has_its_counterpart_with_the_same_members() -> None:
    """The generator's work, looked at from outside of it."""
    renamed = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__"}
    own = {"more", "take", "__anext__", "ask", "limit_s", "with_token", "credentials", "spawn", "channel"}
    for name in lessor.client.__all__:
        if name.startswith("Async"):
            here, there = getattr(lessor.client, name), getattr(lessor.client, name.removeprefix("Async"))
            members = {each for each in dir(here) if not each.startswith("_") or each in renamed} - own
            assert {renamed.get(each, each) for each in members} <= set(dir(there)), name
            assert "async" not in (there.__doc__ or "").lower()


def test_the_generated_file_says_that_it_is() -> None:
    path = Path(lessor.client.__file__).with_name("_sync.py")
    assert "Generated by scripts/generate" in path.read_text()
    assert ast.parse(path.read_text())

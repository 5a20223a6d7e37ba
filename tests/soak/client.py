# SPDX-License-Identifier: Apache-2.0
"""The client over bad connections, for as long as one likes: two proxies in front of one server cut, stall and refuse
at random, while leases are kept, keys watched, a lock passed around and an instance registered.

    python -m tests.soak.client --seconds 600 --server lessor

The faults leave the server reachable again and again within every TTL, so what has to hold at the end is: no lease was
lost, every watch got every event once and in order, no two held the lock at once, the registration never had to come
back, and after closing no task, thread or socket is left. Not 0 when one of them does not hold.
"""

import argparse
import asyncio
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from lessor.client import Client, ClientClosed, ClientError, LeaseLost
from tests.conformance.proxy import Proxy
from tests.conformance.subject import server_of

LEASES = 20
WATCHES = 4
LOCKERS = 2
WRITE_PAUSE_S = 0.005
CATCH_UP_S_MAX = 60.0
NUMBERS = b"soak/numbers"
TASKS_MAX = 60  # of the client at any one time: one per waiting call, and what runs in the background


@dataclass
class Tally:
    """What happened."""

    ttl_s: int
    faults: dict[str, int] = field(default_factory=dict)
    writes: int = 0
    events: list[int] = field(default_factory=lambda: [0] * WATCHES)
    turns: int = 0  # how often the lock was held
    tasks_max: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} x {name}" for name, count in sorted(self.faults.items()))
        return (
            f"faults: {faults}\n{LEASES} leases of {self.ttl_s} s; {self.writes} writes, told to {WATCHES} watches: "
            f"{self.events}; lock held {self.turns} times; at most {self.tasks_max} tasks\n"
            + ("\n".join(f"WRONG: {each}" for each in self.wrong) or "nothing lost, nothing missed, nothing left")
        )


class Soak:
    """One run against the server at `address`."""

    def __init__(self, address: str, seconds: float, ttl_s: int, seed: int) -> None:
        self.address = address
        self.seconds = seconds
        self.random = random.Random(seed)
        self.tally = Tally(ttl_s)
        self.stopping = threading.Event()
        self.inside = 0

    def run(self) -> Tally:
        threads_before, files_before = threading.active_count(), open_files()
        with ExitStack() as stack:
            proxies = [stack.enter_context(Proxy(self.address)) for _ in range(2)]
            with Client([proxy.address for proxy in proxies], connect_timeout_s=0.5, timeout_s=1.0) as client:
                self._work(client, proxies)
            if any(thread.name == "lessor-client" for thread in threading.enumerate()):
                self.tally.wrong.append("the client's thread is left")
        give_up = time.monotonic() + 10
        while (threading.active_count() > threads_before or open_files() > files_before) and time.monotonic() < give_up:
            time.sleep(0.05)
        if threading.active_count() > threads_before:
            self.tally.wrong.append(f"threads left: {threading.enumerate()}")
        if open_files() > files_before:
            self.tally.wrong.append(f"{open_files() - files_before} files or sockets left open")
        return self.tally

    def _work(self, client: Client, proxies: list[Proxy]) -> None:
        with ExitStack() as stack, Client(self.address) as direct:
            leases = [stack.enter_context(client.lease(self.tally.ttl_s, on_lost=self._lost)) for _ in range(LEASES)]
            registration = stack.enter_context(client.register("soak-service", "me", self.tally.ttl_s))
            view = stack.enter_context(direct.discover("soak-service"))
            first = view.next(timeout_s=10).instance
            watches = [stack.enter_context(client.events(NUMBERS)) for _ in range(WATCHES)]
            jobs: list[Callable[[], None]] = [lambda: self._write(direct)]
            jobs += [lambda number=number: self._watch(watches[number], number) for number in range(WATCHES)]  # type: ignore[misc]
            jobs += [lambda: self._hold(client)] * LOCKERS
            threads = [threading.Thread(target=self._guarded, args=(job,)) for job in jobs]
            for thread in threads:
                thread.start()
            self._disturb(client, proxies)
            self.stopping.set()
            for proxy in proxies:
                proxy.refuse(False)
            for thread in threads:
                thread.join(CATCH_UP_S_MAX)
                if thread.is_alive():
                    self.tally.wrong.append("a watch or a lock does not come to an end")
            for lease in leases:
                if not lease.alive or direct.time_to_live(lease.id).TTL <= 0:
                    self.tally.wrong.append(f"{lease} at the end")
            if not registration.registered or [each.lease_id for each in view.instances] != [first.lease_id]:
                self.tally.wrong.append(f"the registration had to come back: {view.instances}, {first}")

    def _disturb(self, client: Client, proxies: list[Proxy]) -> None:
        until = time.monotonic() + self.seconds
        ttl_s = self.tally.ttl_s
        while time.monotonic() < until:
            time.sleep(self.random.uniform(0.1, ttl_s / 3))
            name = self.random.choice(["cut", "stall", "pause", "refuse"])
            hit = self.random.choice([proxies, proxies[:1], proxies[1:]])
            self.tally.faults[name] = self.tally.faults.get(name, 0) + 1
            for proxy in hit:
                if name in ("cut", "refuse"):
                    proxy.refuse(name == "refuse")
                    proxy.cut()
                else:
                    proxy.stall()
            if name in ("refuse", "pause"):
                time.sleep(self.random.uniform(0.0, ttl_s / 6))
            for proxy in hit:
                proxy.refuse(False)
                if name == "pause":
                    proxy.resume()
            tasks = len(asyncio.all_tasks(client._portal._loop))
            self.tally.tasks_max = max(self.tally.tasks_max, tasks)
            if tasks > TASKS_MAX:
                self.tally.wrong.append(f"{tasks} tasks")

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self.tally.wrong.append(f"{type(error).__name__}: {error}")

    def _lost(self, error: LeaseLost) -> None:
        self.tally.wrong.append(str(error))

    def _write(self, direct: Client) -> None:
        while not self.stopping.is_set():
            self.tally.writes += 1
            direct.put(NUMBERS, str(self.tally.writes))
            time.sleep(WRITE_PAUSE_S)
        direct.put(NUMBERS, "end")

    def _watch(self, watch: object, number: int) -> None:
        for event in watch:  # type: ignore[attr-defined]
            if event.kv.value == b"end":
                if self.tally.events[number] != self.tally.writes:
                    self.tally.wrong.append(f"watch {number} ended at {self.tally.events[number]}")
                return
            self.tally.events[number] += 1
            if int(event.kv.value) != self.tally.events[number]:
                self.tally.wrong.append(f"watch {number}: {event.kv.value!r} is not {self.tally.events[number]}")
                return

    def _hold(self, client: Client) -> None:
        last = 0
        while not self.stopping.is_set():
            try:
                with client.lock("soak/lock", ttl_s=self.tally.ttl_s) as lock:
                    self.inside += 1
                    if self.inside > 1 and lock.held:
                        self.tally.wrong.append("two hold the lock")
                    if lock.token <= last:
                        self.tally.wrong.append("a token that is not greater")
                    last = lock.token
                    time.sleep(0.01)
                    self.inside -= 1
                self.tally.turns += 1
            except ClientClosed:
                raise
            except ClientError:
                pass  # no connection at this moment: the next turn


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def main() -> None:
    parser = argparse.ArgumentParser(description="The client over bad connections.")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--server", choices=["lessor", "etcd"], default="lessor")
    parser.add_argument("--ttl", type=int, default=6, help="of the leases, in seconds")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    arguments = parser.parse_args()
    print(f"{arguments.server}, {arguments.seconds:g} s, seed {arguments.seed}", flush=True)
    with server_of(arguments.server) as server:
        tally = Soak(server.address, arguments.seconds, arguments.ttl, arguments.seed).run()
    print(tally)
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Other Python clients doing what `bench/client_speed.py` has ours do. Runs in their environment, without Lessor:

    /path/to/python bench/client_peers.py python-etcd3 PORT SECONDS EVENTS

prints a JSON object of rates. The libraries are looked up by name, so that the type checkers need not have them.
"""

import asyncio
import importlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PARALLEL = 16
KEY, VALUE = "bench/key", "x" * 32
HISTORY = "bench/history/"  # the events that are there to be watched


def rate(call: Callable[[], object], seconds: float, parallel: int = 1) -> float:
    """Calls per second, of `parallel` threads that each make one after the other."""

    def work(_: int) -> int:
        count = 0
        while time.perf_counter() < end:
            call()
            count += 1
        return count

    for _ in range(20):
        call()
    start = time.perf_counter()
    end = start + seconds
    with ThreadPoolExecutor(parallel) as pool:
        total = sum(pool.map(work, range(parallel)))
    return total / (time.perf_counter() - start)


async def rate_of_tasks(call: Callable[[], Awaitable[object]], seconds: float, parallel: int = 1) -> float:
    """The same of tasks."""

    async def work() -> int:
        count = 0
        while time.perf_counter() < end:
            await call()
            count += 1
        return count

    for _ in range(20):
        await call()
    start = time.perf_counter()
    end = start + seconds
    counts = await asyncio.gather(*(work() for _ in range(parallel)))
    return sum(counts) / (time.perf_counter() - start)


def python_etcd3(port: int, seconds: float, events: int) -> dict[str, float]:
    client: Any = importlib.import_module("etcd3").client(host="127.0.0.1", port=port)
    lease = client.lease(60)
    rates = {
        "put": rate(lambda: client.put(KEY, VALUE), seconds),
        "put_parallel": rate(lambda: client.put(KEY, VALUE), seconds, PARALLEL),
        "get": rate(lambda: client.get(KEY), seconds),
        "get_parallel": rate(lambda: client.get(KEY), seconds, PARALLEL),
        "keepalive": rate(lease.refresh, seconds),
    }
    start = time.perf_counter()
    told, cancel = client.watch_prefix(HISTORY, start_revision=1)
    for _ in range(events):
        next(told)
    rates["events"] = events / (time.perf_counter() - start)
    cancel()
    client.close()
    return rates


async def aetcd(port: int, seconds: float, events: int) -> dict[str, float]:
    key, value = KEY.encode(), VALUE.encode()
    async with importlib.import_module("aetcd").Client(host="127.0.0.1", port=port) as client:
        lease = await client.lease(60)
        rates = {
            "put": await rate_of_tasks(lambda: client.put(key, value), seconds),
            "put_parallel": await rate_of_tasks(lambda: client.put(key, value), seconds, PARALLEL),
            "get": await rate_of_tasks(lambda: client.get(key), seconds),
            "get_parallel": await rate_of_tasks(lambda: client.get(key), seconds, PARALLEL),
            "keepalive": await rate_of_tasks(lease.refresh, seconds),
        }
        start, count = time.perf_counter(), 0
        watch = await client.watch_prefix(HISTORY.encode(), start_revision=1)
        async for _ in watch:
            count += 1
            if count == events:
                break
        rates["events"] = events / (time.perf_counter() - start)
        await watch.cancel()
    return rates


def main() -> None:
    name, port, seconds, events = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    rates = asyncio.run(aetcd(port, seconds, events)) if name == "aetcd" else python_etcd3(port, seconds, events)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()

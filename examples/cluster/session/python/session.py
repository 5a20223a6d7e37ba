# SPDX-License-Identifier: Apache-2.0
"""The Python client on several servers of one log for a while: locks, elections, puts, a watch, a lease.

It prints each error, and at the end what it did and what is there.

    python session.py 127.0.0.1:2379 127.0.0.1:22379 127.0.0.1:32379
"""

import sys
import threading
import time
from collections.abc import Callable

from lessor.client import Client, ClientClosed, ClientError

LENGTH_S = 40.0
CALL_S = 8.0
PREFIX = "python/"  # other programs may run beside this one


def did(step: str, work: Callable[[], object]) -> bool:
    """Whether a step has succeeded; says why not."""
    try:
        work()
    except ClientError as error:
        print(f"{step}: {error}")
        return False
    return True


def main(endpoints: list[str]) -> None:
    with Client(endpoints, timeout_s=CALL_S) as client:
        events = 0

        def count() -> None:
            nonlocal events
            last = 0
            try:
                for response in client.watch(PREFIX + "n/", prefix=True):
                    for event in response.events:
                        if event.kv.mod_revision <= last:
                            print("an event out of order:", event.kv.mod_revision, "after", last)
                        last = event.kv.mod_revision
                        events += 1
            except ClientClosed:
                pass

        threading.Thread(target=count, daemon=True).start()
        time.sleep(0.5)  # until it watches
        locks = terms = puts = 0
        slowest_s = 0.0

        def lock() -> None:
            with client.lock(PREFIX + "lock", lease=owner):
                pass

        def lead() -> None:
            with client.election(PREFIX + "election", lease=owner) as election:
                election.campaign("me")

        with client.lease(5) as owner, client.lease(4) as lease:
            client.put(PREFIX + "leased", "v", lease_id=lease.id)
            began_s = time.monotonic()
            while (round_s := time.monotonic()) < began_s + LENGTH_S:
                locks += did("lock", lock)
                terms += did("election", lead)
                key = f"{PREFIX}n/{puts}"
                puts += did("put", lambda key=key: client.put(key, "v"))  # type: ignore[misc]
                slowest_s = max(slowest_s, time.monotonic() - round_s)
            time.sleep(1)  # for the last events
            there = client.get(PREFIX + "n/", prefix=True, count_only=True).count
            leased = client.get(PREFIX + "leased").count == 1
            print(
                f"{locks} locks, {terms} terms, {puts} puts; {there} keys are there, {events} events came; "
                f"the lease is alive: {lease.alive}, the leased key is there: {leased}"
            )
            print(f"the slowest round: {slowest_s:.3f}s")


if __name__ == "__main__":
    main(sys.argv[1:])

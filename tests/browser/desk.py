# SPDX-License-Identifier: Apache-2.0
"""What a test does beside the page, over the same JSON gateway: make keys and leases, and look what became of them."""

import base64
import json
import threading
import urllib.request
from collections.abc import Callable
from typing import Any

ANSWER_S_MAX = 20.0


def b64(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def b64url(value: str | bytes) -> str:
    """As the page writes a key behind the # of its address."""
    return b64(value).rstrip("=").replace("+", "-").replace("/", "_")


def hex_id(lease_id: int) -> str:
    return format(lease_id % 2**64, "x")


class Desk:
    """The API of one server. `token`: of the user who calls, while auth is on."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.token = ""

    def call(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(f"{self.url}/v3/{path}", json.dumps(body).encode())
        if self.token:
            request.add_header("Authorization", self.token)
        with urllib.request.urlopen(request, timeout=ANSWER_S_MAX) as reply:
            return json.load(reply)

    def clear(self) -> None:
        """Ends all leases and deletes all keys."""
        for lease in self.call("lease/leases").get("leases", ()):
            self.call("lease/revoke", ID=lease["ID"])
        self.call("kv/deleterange", key=b64(b"\0"), range_end=b64(b"\0"))

    def grant(self, ttl_s: int, lease_id: int = 0) -> int:
        return int(self.call("lease/grant", TTL=ttl_s, ID=str(lease_id))["ID"])

    def revoke(self, lease_id: int) -> None:
        self.call("lease/revoke", ID=str(lease_id))

    def left_s(self, lease_id: int) -> int:
        """The seconds that a lease has left; -1 when it has ended."""
        return int(self.call("lease/timetolive", ID=str(lease_id)).get("TTL", 0))

    def put(self, key: str | bytes, value: str | bytes = "", lease_id: int = 0) -> int:
        """The revision of the write."""
        found = self.call("kv/put", key=b64(key), value=b64(value), lease=str(lease_id))
        return int(found["header"]["revision"])

    def get(self, key: str | bytes) -> Any | None:
        found = self.call("kv/range", key=b64(key)).get("kvs")
        return found[0] if found else None

    def value(self, key: str | bytes) -> bytes | None:
        found = self.get(key)
        return None if found is None else base64.b64decode(found.get("value", ""))

    def delete(self, key: str | bytes) -> None:
        self.call("kv/deleterange", key=b64(key))

    def lock(self, name: str | bytes, lease_id: int) -> Callable[[], str]:
        """Asks for a lock in a thread of its own. What is returned waits for it, and gives its key."""
        found: list[str] = []

        def wait() -> None:
            try:
                found.append(self.call("lock/lock", name=b64(name), lease=str(lease_id))["key"])
            except OSError:
                found.append("")

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()

        def result() -> str:
            thread.join(ANSWER_S_MAX)
            return base64.b64decode(found[0]).decode()

        return result

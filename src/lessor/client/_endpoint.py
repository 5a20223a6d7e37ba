# SPDX-License-Identifier: Apache-2.0
"""Addresses of servers: how they are written, and what they mean.

Law: nothing is looked up here, and no environment variable is read: a proxy that the environment names is for web
pages, not for a database.
"""

from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from lessor.client._errors import InvalidEndpoint

PORT = 2379  # where etcd listens for clients


class Endpoint(NamedTuple):
    """One server. Either `path` (a unix socket) or `host` and `port` is set."""

    text: str  # as it was written, for messages
    host: str
    port: int
    path: str
    tls: bool
    tls_optional: bool = False  # the text does not say: TLS is spoken when the client has a context for it

    @property
    def authority(self) -> str:
        """The value of the HTTP/2 :authority header."""
        if self.path:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def server_name(self) -> str:
        """The name that the server's certificate must bear: the host; for a socket the file's, as in etcd's clients."""
        return self.host or self.path.rpartition("/")[2].partition(":")[0]


def parse_endpoint(text: str) -> Endpoint:
    """Reads host:port, host, [v6]:port, http(s)://host:port, unix(s):///path or unix(s):path.

    Without a port it is etcd's, 2379. Raises InvalidEndpoint for anything else.
    """
    written = text.strip()
    if written.startswith(("unix:", "unixs:")):
        scheme, _, rest = written.partition(":")
        path = rest.removeprefix("//")
        if not path:
            raise InvalidEndpoint(f"endpoint {text!r} names no socket: write {scheme}:///path/to/socket")
        return Endpoint(written, "", 0, path, scheme == "unixs", scheme == "unix")
    scheme, separator, rest = written.partition("://")
    if not separator:
        scheme, rest = "", written
    if scheme not in ("", "http", "https"):
        known = "host:port, http://, https://, unix:/// or unixs:///path"
        raise InvalidEndpoint(f"endpoint {text!r}: unknown scheme {scheme}; use {known}")
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidEndpoint(f"endpoint {text!r}: {error}") from None
    if not host or parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        raise InvalidEndpoint(f"endpoint {text!r} is not an address: write host:port, http://host:port or unix:///path")
    return Endpoint(written, host, PORT if port is None else port, "", scheme == "https", not scheme)


def parse_endpoints(endpoints: str | Iterable[str]) -> tuple[Endpoint, ...]:
    """Several endpoints: a comma-separated text, or texts. Raises InvalidEndpoint, also when there is none."""
    texts = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    parsed = tuple(parse_endpoint(text) for text in texts if text.strip())
    if not parsed:
        raise InvalidEndpoint("no endpoint given: write host:port, http://host:port or unix:///path")
    return parsed

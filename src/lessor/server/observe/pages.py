# SPDX-License-Identifier: Apache-2.0
"""The plain HTTP pages beside the gateway: /health, /livez, /readyz, /version, /metrics, /debug/vars, and /ui/.

Laws
- No page needs a token, so none may cost much. /metrics takes milliseconds: one that was made in the last
  METRICS_PAGE_S is given again, to whomever. The others take microseconds, and their queries are bounded.
"""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from lessor.api.version import CLUSTER_VERSION, ETCD_VERSION
from lessor.base import limits
from lessor.gateway.routes import CORS_HEADERS, Answer, page, wrong_verb
from lessor.server.observe import debug_vars, health
from lessor.server.observe.observed import Observed
from lessor.server.observe.site import Site

if TYPE_CHECKING:
    from lessor.server.observe.exposition import Exposition

_JSON = (*CORS_HEADERS, (b"content-type", b"application/json"))
_VARS = (*CORS_HEADERS, (b"content-type", b"application/json; charset=utf-8"))
_METRICS = (*CORS_HEADERS, (b"content-type", b"text/plain; version=0.0.4; charset=utf-8"))
_CHECKS = tuple(
    f"/{page}{end}" for page in health.CHECKS for end in ("", *(f"/{name}" for name in health.CHECKS[page]))
)
_PATHS = frozenset(("/health", "/version", "/metrics", "/debug/vars", *_CHECKS))
_QUERY_TOO_LONG = page(414, "query too long")
PATHS_OF_METRICS_URLS = _PATHS - {"/version", "/debug/vars"}


class Pages:
    """The pages of one server. Keeps the Exposition that the first request for /metrics makes, and its newest text."""

    def __init__(self, read_clock: Callable[[], float], *, ui: bool = False) -> None:
        """`read_clock` gives seconds on a clock that never goes back. `ui`: whether there is a page for people."""
        self._read_clock = read_clock
        self._site = Site() if ui else None
        self._paths = _PATHS | self._site.paths if self._site is not None else _PATHS
        self.metrics_page_s = limits.METRICS_PAGE_S  # for how long a page of metrics is given again
        self._exposition: Exposition | None = None
        self._metrics_text = b""
        self._metrics_made_s = 0.0

    def has(self, path: str) -> bool:
        return path in self._paths

    def page(
        self,
        observed: Observed,
        method: str,
        path: str,
        query: str,
        accept: bytes | None = None,
        if_none_match: bytes | None = None,
    ) -> Answer:
        """The whole reply to a request for a page that there is (`has`). `query` is without its `?`.

        `observed` is the same at each request. `accept` and `if_none_match` are headers of this one.
        """
        if self._site is not None and path in self._site.paths:
            return self._site.page(method, path, accept, if_none_match)
        if method != "GET" and not (path == "/metrics" and method == "HEAD"):
            return wrong_verb("GET")
        if len(query) > limits.PAGE_QUERY_BYTES_MAX:
            return _QUERY_TOO_LONG
        if path == "/health":
            return health.health(observed, query)
        if path == "/version":
            versions = {"etcdserver": ETCD_VERSION, "etcdcluster": f"{CLUSTER_VERSION}.0", "storage": ETCD_VERSION}
            return Answer(200, _JSON, json.dumps(versions, separators=(",", ":")).encode())
        if path == "/metrics":
            return Answer(200, _METRICS, self._metrics(observed))
        if path == "/debug/vars":
            return Answer(200, _VARS, debug_vars.body(observed))
        return health.checks(observed, path, query)

    def _metrics(self, observed: Observed) -> bytes:
        now_s = self._read_clock()
        if self._metrics_text and now_s - self._metrics_made_s < self.metrics_page_s:
            return self._metrics_text
        if self._exposition is None:
            # Not at the top: Prometheus' library would make each start longer.
            from lessor.server.observe.exposition import Exposition

            self._exposition = Exposition(observed)
        self._metrics_text = self._exposition.text()
        self._metrics_made_s = now_s
        return self._metrics_text

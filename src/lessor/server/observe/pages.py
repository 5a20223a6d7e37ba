# SPDX-License-Identifier: Apache-2.0
"""The plain HTTP pages beside the gateway: /health, /livez, /readyz, /version, /metrics, /debug/vars."""

import json
from typing import TYPE_CHECKING

from lessor.gateway.routes import CORS_HEADERS, Answer, wrong_verb
from lessor.server.observe import debug_vars, health
from lessor.server.observe.observed import Observed
from lessor.server.version import CLUSTER_VERSION, ETCD_VERSION

if TYPE_CHECKING:
    from lessor.server.observe.exposition import Exposition

_JSON = (*CORS_HEADERS, (b"content-type", b"application/json"))
_VARS = (*CORS_HEADERS, (b"content-type", b"application/json; charset=utf-8"))
_METRICS = (*CORS_HEADERS, (b"content-type", b"text/plain; version=0.0.4; charset=utf-8"))
_CHECKS = tuple(
    f"/{page}{end}" for page in health.CHECKS for end in ("", *(f"/{name}" for name in health.CHECKS[page]))
)
_PATHS = frozenset(("/health", "/version", "/metrics", "/debug/vars", *_CHECKS))
PATHS_OF_METRICS_URLS = _PATHS - {"/version", "/debug/vars"}


class Pages:
    """The pages of one server. Keeps the Exposition that the first request for /metrics makes."""

    def __init__(self) -> None:
        self._exposition: Exposition | None = None

    def page(self, observed: Observed, method: str, path: str, query: str) -> Answer | None:
        """The whole reply to a request for a page, or None when there is no such page. `query` is without its `?`.

        `observed` is the same at each request.
        """
        if path not in _PATHS:
            return None
        if method != "GET" and not (path == "/metrics" and method == "HEAD"):
            return wrong_verb("GET")
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
        if self._exposition is None:
            # Not at the top: Prometheus' library would make each start longer.
            from lessor.server.observe.exposition import Exposition

            self._exposition = Exposition(observed)
        return self._exposition.text()

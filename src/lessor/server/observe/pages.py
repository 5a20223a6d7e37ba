# SPDX-License-Identifier: Apache-2.0
"""The plain HTTP pages beside the gateway: /health, /livez, /readyz, /version, /metrics, /debug/vars."""

import json
from typing import TYPE_CHECKING

from lessor.gateway.routes import CORS_HEADERS, Answer, wrong_verb
from lessor.server.observe import debug_vars, health
from lessor.server.version import CLUSTER_VERSION, ETCD_VERSION

if TYPE_CHECKING:
    from lessor.server.loop.core import Core

_JSON = (*CORS_HEADERS, (b"content-type", b"application/json"))
_VARS = (*CORS_HEADERS, (b"content-type", b"application/json; charset=utf-8"))
_METRICS = (*CORS_HEADERS, (b"content-type", b"text/plain; version=0.0.4; charset=utf-8"))
_CHECKS = tuple(
    f"/{page}{end}" for page in health.CHECKS for end in ("", *(f"/{name}" for name in health.CHECKS[page]))
)
_PATHS = frozenset(("/health", "/version", "/metrics", "/debug/vars", *_CHECKS))
PATHS_OF_METRICS_URLS = _PATHS - {"/version", "/debug/vars"}


def page(core: "Core", method: str, path: str, query: str) -> Answer | None:
    """The whole reply to a request for a page, or None when the path is none of ours. `query` is without its `?`."""
    if path not in _PATHS:
        return None
    if method != "GET" and not (path == "/metrics" and method == "HEAD"):
        return wrong_verb("GET")
    if path == "/health":
        return health.health(core, query)
    if path == "/version":
        versions = {"etcdserver": ETCD_VERSION, "etcdcluster": f"{CLUSTER_VERSION}.0", "storage": ETCD_VERSION}
        return Answer(200, _JSON, json.dumps(versions, separators=(",", ":")).encode())
    if path == "/metrics":
        return Answer(200, _METRICS, core.exposition.text())
    if path == "/debug/vars":
        return Answer(200, _VARS, debug_vars.body(core))
    return health.checks(core, path, query)

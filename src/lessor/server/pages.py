# SPDX-License-Identifier: Apache-2.0
"""The plain HTTP pages beside the gateway: /health, /version, /metrics."""

import json
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from lessor.api.proto import rpc_pb2
from lessor.gateway.routes import CORS_HEADERS, TEXT_HEADERS, Answer, wrong_verb
from lessor.server import metrics
from lessor.server.version import ETCD_VERSION

if TYPE_CHECKING:
    from lessor.server.core import Core

_TEXT = (*CORS_HEADERS, (b"content-type", b"text/plain; charset=utf-8"))
_JSON = (*CORS_HEADERS, (b"content-type", b"application/json"))
_METRICS = (*CORS_HEADERS, (b"content-type", metrics.CONTENT_TYPE))


def page(core: "Core", method: str, path: str, query: str) -> Answer | None:
    """The whole reply to a request for a page, or None when the path is none of ours. `query` is without its `?`."""
    if path not in ("/health", "/version", "/metrics"):
        return None
    if method != "GET" and not (path == "/metrics" and method == "HEAD"):
        return wrong_verb("GET")
    if path == "/health":
        return _health(core, query)
    if path == "/version":
        versions = {"etcdserver": ETCD_VERSION, "etcdcluster": ETCD_VERSION, "storage": ETCD_VERSION}
        return Answer(200, _JSON, json.dumps(versions, separators=(",", ":")).encode())
    return Answer(200, _METRICS, core.exposition.text())


def _health(core: "Core", query: str) -> Answer:
    """Healthy unless an alarm is up that `?exclude=` does not name. A failed disk ends the server anyway."""
    excluded = set(parse_qs(query).get("exclude", []))
    raised = {rpc_pb2.AlarmType.Name(kind) for _, kind in core.machine.alarms} - excluded
    if not raised:
        core.metrics.health_success += 1
        return Answer(200, _TEXT, b'{"health":"true","reason":""}')
    core.metrics.health_failures += 1
    reason = json.dumps({"health": "false", "reason": f"ALARM {min(raised)}"}, separators=(",", ":"))
    return Answer(503, TEXT_HEADERS, reason.encode() + b"\n")

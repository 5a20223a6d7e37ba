# SPDX-License-Identifier: Apache-2.0
"""/health, /livez and /readyz: whether the server is well.

- /health has one result: no alarm is up, and writes reach the disk. `?exclude=NOSPACE` ignores an alarm,
  `?serializable=true` ignores the disk.
- /livez and /readyz are lists of checks with names. `?verbose` shows all of them, `?exclude=name` leaves one out, and
  /readyz/name makes one alone.

On a shared log `linearizable_read` also fails while another server may lead and this one does not know of it, and on a
server that follows, while it does not reach the one that leads, or is FOLLOWER_LAG_S_MAX behind it.

A disk that fails ends the server. A disk that hangs is found here: when a commit has been under way for COMMIT_S_MAX,
the check `linearizable_read` fails, because a read could not be sure to see every acknowledged write.
"""

import json
from collections.abc import Callable
from urllib.parse import parse_qs

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.gateway.routes import CORS_HEADERS, TEXT_HEADERS, Answer
from lessor.gateway.routes import page as text_page
from lessor.server.observe.observed import Observed

_TEXT = (*CORS_HEADERS, (b"content-type", b"text/plain; charset=utf-8"))

Check = Callable[[Observed], str | None]  # returns the fault, or None


def alarm_name(kind: int) -> str:
    """NOSPACE, CORRUPT; the number, for a kind that only the client that raised it knows."""
    value = rpc_pb2.AlarmType.DESCRIPTOR.values_by_number.get(kind)
    return str(kind) if value is None else str(value.name)


def _fine(_observed: Observed) -> str | None:
    return None


def _data_corruption(observed: Observed) -> str | None:
    return "alarm activated: CORRUPT" if observed.machine.corrupt else None


def _linearizable_read(observed: Observed) -> str | None:
    answering = observed.metrics.answering
    if answering is not None and not answering.may_send():
        return "etcdserver: no leader, as far as this server can know: the engine does not answer"
    reaches_leader = observed.metrics.reaches_leader
    if reaches_leader is not None and not reaches_leader():
        return "etcdserver: no leader: none is known, or the one that leads does not answer"
    lag_s = observed.metrics.lag_s
    if lag_s is not None and lag_s() > limits.FOLLOWER_LAG_S_MAX:
        return "etcdserver: this server is behind the one that leads"
    waiting_s = observed.committer.waiting_s
    if waiting_s < limits.COMMIT_S_MAX:
        return None
    return f"etcdserver: request timed out, a commit has been under way for {waiting_s:.0f} s"


CHECKS: dict[str, dict[str, Check]] = {
    "livez": {"serializable_read": _fine},
    "readyz": {
        "data_corruption": _data_corruption,
        "serializable_read": _fine,
        "linearizable_read": _linearizable_read,
        "non_learner": _fine,
    },
}


def health(observed: Observed, query: str) -> Answer:
    asked = parse_qs(query, keep_blank_values=True)
    reason = _illness(observed, asked)
    if reason is None:
        observed.metrics.health_success += 1
        return Answer(200, _TEXT, b'{"health":"true","reason":""}')
    observed.metrics.health_failures += 1
    body = json.dumps({"health": "false", "reason": reason}, separators=(",", ":"))
    return Answer(503, TEXT_HEADERS, body.encode() + b"\n")


def _illness(observed: Observed, asked: dict[str, list[str]]) -> str | None:
    excluded = asked.get("exclude", [])
    raised = [kind for _, kind in sorted(observed.machine.alarms) if alarm_name(kind) not in excluded]
    if raised:
        known = raised[0] in (rpc_pb2.NOSPACE, rpc_pb2.CORRUPT)
        return f"ALARM {alarm_name(raised[0]) if known else 'UNKNOWN'}"
    if asked.get("serializable") != ["true"]:
        late = _linearizable_read(observed)
        return late and f"RANGE ERROR:{late}"
    return None


def checks(observed: Observed, path: str, query: str) -> Answer:
    """The page /livez or /readyz, or /readyz/name with a name from CHECKS."""
    page, _, name = path.removeprefix("/").partition("/")
    all_checks = CHECKS[page]
    asked = parse_qs(query, keep_blank_values=True)
    chosen = [name] if name else [known for known in all_checks if known not in asked.get("exclude", [])]
    lines, well = [], True
    for each in chosen:
        problem = all_checks[each](observed)
        observed.metrics.checks[page, each, problem is None] += 1
        well = well and problem is None
        lines.append(f"[+]{each} ok\n" if problem is None else f"[-]{each} failed: {problem}\n")
    if not well:
        return text_page(503, "".join(lines))
    return text_page(200, ("".join(lines) if "verbose" in asked else "") + "ok")

# SPDX-License-Identifier: Apache-2.0
"""Checks what each watch was sent against the history: no gap, nothing twice, in order, prev_kv right, all durable.

Laws, each of which has a finding of its own when it is broken
- The events of a session are the history's, as far as they match its request, from its start on, without exception,
  up to the last that it was sent. The history is read after the last kill: an event that a kill took back is not in it.
- All events of one revision come in one response.
- A report of progress at revision R comes after all events up to R.
- The last session of a watcher has everything, up to the end.
"""

from lessor.api.proto.mvcc_pb2 import Event
from tests.linear.history import History, Session
from tests.model import in_range


def check(history: History) -> list[str]:
    return [f"{session.watcher}: {finding}" for session in history.sessions for finding in check_one(session, history)]


def check_one(session: Session, history: History) -> list[str]:
    if session.canceled:
        return [f"the server cancelled it: {session.canceled}"]
    first = session.request.start_revision or session.created_revision + 1
    due = [_as_shown(event, session) for event in history.events if _matches(event, session, first)]
    sent = list(session.events())
    for number, (event, expected) in enumerate(zip(sent, due, strict=False)):
        if event != expected:
            return [f"event {number} since revision {first} is {_told(event)}, and {_told(expected)} is due"]
    if len(sent) > len(due):
        return [f"an event that is not in the history: {_told(sent[len(due)])}"]
    if session.last and len(sent) < len(due):
        return [f"{len(due) - len(sent)} events are missing at the end, from {_told(due[len(sent)])} on"]
    return _responses(session, due)


def _responses(session: Session, due: list[Event]) -> list[str]:
    count = 0
    for _, response in session.responses:
        if isinstance(response, int):
            if count < len(due) and due[count].kv.mod_revision <= response:
                return [f"progress at revision {response} before {_told(due[count])}"]
            continue
        if count and due[count - 1].kv.mod_revision == response[0].kv.mod_revision:
            return [f"revision {response[0].kv.mod_revision} comes in two responses"]
        count += len(response)
    return []


def _matches(event: Event, session: Session, first: int) -> bool:
    request = session.request
    return event.kv.mod_revision >= first and in_range(event.kv.key, request.key, request.range_end)


def _as_shown(event: Event, session: Session) -> Event:
    if session.request.prev_kv or not event.HasField("prev_kv"):
        return event
    return Event(type=event.type, kv=event.kv)


def _told(event: Event) -> str:
    prev = f", before {event.prev_kv.mod_revision}" if event.HasField("prev_kv") else ""
    return f"{Event.EventType.Name(event.type)} {event.kv.key!r} at {event.kv.mod_revision}{prev}"

# SPDX-License-Identifier: Apache-2.0
"""The history of one run: each call with its times and its outcome, each watch with all that it was sent.

Laws
- Times are seconds of the machine's monotonic clock: `called_s` is read before the first byte of a call is sent,
  `returned_s` after the last byte of its answer was read. So the server acted at an instant between the two.
- `silent_s` is an instant at which the answer had not left the server yet, where that could be seen; else `called_s`.
- A call has one of four outcomes. `ok`: it was answered with a reply. `error`: it was answered with an error that says
  that nothing was done. `unsent`: no connection could be made, so no server has seen it. `unknown`: anything else.
- A call whose outcome is unknown can take effect until `settled_s`, the death of the process that it was sent to, at
  the latest; where that is infinite, at any time after `called_s`.
- A history that was saved and loaded again is equal to itself: a failed run can be checked again from its file.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc
from lessor.api.proto.mvcc_pb2 import Event, KeyValue

OK, ERROR, UNSENT, UNKNOWN = "ok", "error", "unsent", "unknown"
NOT_FOUND = 5  # gRPC's code


@dataclass
class Op:
    """One call. `code` and `text` are those of an answered error, or say why the outcome is unknown."""

    number: int
    client: str
    endpoint: str
    request: Any
    called_s: float
    returned_s: float
    outcome: str
    reply: Any = None
    code: int = 0
    text: str = ""
    settled_s: float = math.inf
    silent_s: float = 0.0

    def __post_init__(self) -> None:
        self.silent_s = max(self.silent_s, self.called_s)

    @property
    def end_s(self) -> float:
        """The call has no effect after this instant."""
        return self.settled_s if self.outcome == UNKNOWN else self.returned_s

    def __str__(self) -> str:
        request = json_format.MessageToJson(self.request, indent=None)
        answer = json_format.MessageToJson(self.reply, indent=None) if self.reply is not None else self.text
        return (
            f"op {self.number} of {self.client} at [{self.called_s:.6f}, {self.returned_s:.6f}] {self.outcome}: "
            f"{type(self.request).__name__} {request} -> {answer}"
        )


@dataclass
class Session:
    """One watch, from its create request to the end of its stream.

    start_revision 0: from the newest on. `created_revision`: of the header of the created response.
    responses: (time of receipt, events), and (time of receipt, revision of the header) for a report of progress.
    last: whether the watcher asked for nothing after this, so that it has to have seen everything.
    """

    watcher: str
    request: Any
    called_s: float
    created_s: float = 0.0
    created_revision: int = 0
    responses: list[tuple[float, "list[Event] | int"]] = field(default_factory=list)
    last: bool = False
    canceled: str = ""

    def __str__(self) -> str:
        return f"{self.watcher!r} since {self.called_s:.6f}"

    def events(self) -> Iterator[Event]:
        for _, response in self.responses:
            if not isinstance(response, int):
                yield from response

    @property
    def newest_revision(self) -> int:
        """Of the last event; 0 when there was none."""
        return max((event.kv.mod_revision for event in self.events()), default=0)


@dataclass
class History:
    """All that one run saw.

    events: those of a watch from revision 1 at the end of the run, after the last kill; keys: a read of all keys then.
    disturbed: (from, to) of each time in which the server did not run: killed or paused.
    """

    ops: list[Op] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    keys: list[KeyValue] = field(default_factory=list)
    disturbed: list[tuple[float, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Writes one JSON object a line."""
        with path.open("w") as file:
            for line in self._lines():
                file.write(json.dumps(line) + "\n")

    def _lines(self) -> Iterator[dict[str, Any]]:
        for op in self.ops:
            yield {"op": {**vars(op), "request": _packed(op.request), "reply": op.reply and _packed(op.reply)}}
        for session in self.sessions:
            responses = [(at_s, it if isinstance(it, int) else _all_packed(it)) for at_s, it in session.responses]
            yield {"session": {**vars(session), "request": _packed(session.request), "responses": responses}}
        yield {"end": {"events": _all_packed(self.events), "keys": _all_packed(self.keys), "disturbed": self.disturbed}}

    @classmethod
    def load(cls, path: Path) -> "History":
        history = cls()
        with path.open() as file:
            for line in file:
                ((kind, fields),) = json.loads(line).items()
                history._take(kind, fields)
        return history

    def _take(self, kind: str, fields: dict[str, Any]) -> None:
        if kind == "op":
            fields["request"] = _unpacked(fields["request"])
            fields["reply"] = fields["reply"] and _unpacked(fields["reply"])
            self.ops.append(Op(**fields))
        elif kind == "session":
            fields["request"] = _unpacked(fields["request"])
            fields["responses"] = [
                (at_s, it if isinstance(it, int) else [_unpacked(event) for event in it])
                for at_s, it in fields["responses"]
            ]
            self.sessions.append(Session(**fields))
        else:
            self.events = [_unpacked(event) for event in fields["events"]]
            self.keys = [_unpacked(kv) for kv in fields["keys"]]
            self.disturbed = [(from_s, to_s) for from_s, to_s in fields["disturbed"]]


def _packed(message: Message) -> list[Any]:
    return [type(message).__name__, json_format.MessageToDict(message, preserving_proto_field_name=True)]


def _all_packed(messages: Iterable[Message]) -> list[list[Any]]:
    return [_packed(message) for message in messages]


def _unpacked(packed: list[Any]) -> Any:
    name, fields = packed
    kind = {"Event": Event, "KeyValue": KeyValue}.get(name) or getattr(rpc, name)
    return json_format.ParseDict(fields, kind())

# SPDX-License-Identifier: Apache-2.0
"""The area of the JSON gateway: bodies with wrong types, names, numbers, base64 and nesting, cut or not JSON at all.

A step is a request, written as JSON, and what is changed of it: first in the tree, then in the text. Compared are the
HTTP status, a successful reply as a message (of KV as JSON, ids taken out), an error's code, and its text where that is
etcd's own: what is said about JSON is the wording of Go's library.
"""

import json
import re
from copy import deepcopy
from typing import Any, NamedTuple

from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import strategies as st

from lessor.api.methods import BY_PATH, Method
from lessor.base.errors import EtcdError
from lessor.gateway.json_codec import decode
from tests.conformance.fuzz import any_message
from tests.conformance.fuzz.pair import Side
from tests.conformance.fuzz.steps import plain, plain_lease
from tests.property.strategies import mostly

_KEEP_ALIVE = BY_PATH["/etcdserverpb.Lease/LeaseKeepAlive"]
# "1{" and "1,x": etcd reads the 1 and lets the rest be, Lessor refuses (docs/compatibility.md).
_NUMBER_AND_MORE = re.compile(r'"-?\d[\d.eE+-]*[^"\w.+-][^"]*"', re.ASCII)


class Replace(NamedTuple):
    """One value of the tree is another. `pick` counts through them."""

    pick: int
    value: Any

    def __call__(self, tree: Any) -> Any:
        return _changed(tree, self.pick, lambda holder, name: holder.__setitem__(name, deepcopy(self.value)))


class Rename(NamedTuple):
    """One member has another name."""

    pick: int
    how: str

    def __call__(self, tree: Any) -> Any:
        def rename(holder: Any, name: Any) -> None:
            if isinstance(holder, dict):
                words = name.split("_")
                names = {
                    "camel": words[0] + "".join(word.capitalize() for word in words[1:]),
                    "upper": name.upper(),
                    "Camel": "".join(word.capitalize() for word in words),
                    "unknown": name + "x",
                }
                holder[names[self.how]] = holder.pop(name)

        return _changed(tree, self.pick, rename)


class Wrap(NamedTuple):
    """One value stands in an array."""

    pick: int

    def __call__(self, tree: Any) -> Any:
        return _changed(tree, self.pick, lambda holder, name: holder.__setitem__(name, [holder[name]]))


class Extra(NamedTuple):
    """One more member at the top, whose name nobody knows, or does."""

    name: str
    value: Any

    def __call__(self, tree: Any) -> Any:
        return {**tree, self.name: deepcopy(self.value)} if isinstance(tree, dict) else tree


class Text(NamedTuple):
    """`extra` is put into the text, and `missing` characters are taken out there."""

    at: int
    missing: int
    extra: str

    def __call__(self, text: str) -> str:
        at = self.at % (len(text) + 1)
        return text[:at] + self.extra + text[at + self.missing :]


# Values that Lessor shows in part, and a depth that is Python's or protobuf's. So is half of a surrogate pair.
_OWN_WORDS = re.compile(r"\.{3}\Z|[^\n]{900}|max .*depth")


class Posted(NamedTuple):
    """`proto`: whether fields are called as in the .proto files; otherwise range_end is rangeEnd."""

    proto: bool
    method: str
    route: int
    request: Any
    tree: list[Any]
    text: list[Any]


class Asked(NamedTuple):
    """Any HTTP request."""

    verb: str
    path: str
    body: str
    headers: dict[str, str]


def _changed(tree: Any, pick: int, change: Any) -> Any:
    places: list[tuple[Any, Any]] = []

    def gather(value: Any) -> None:
        for name, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            places.append((value, name))
            if isinstance(inner, dict | list):
                gather(inner)

    if isinstance(tree, dict | list):
        gather(tree)
    if places:
        change(*places[pick % len(places)])
    return tree


def play(side: Side, steps: list[Any]) -> list[Any]:
    if side.old:  # its gateway reads what is malformed in another way, and has other redirects
        steps = [step for step in steps if isinstance(step, Posted) and not step.tree and not step.text]
    return [_posted(side, step) if isinstance(step, Posted) else _asked(side, step) for step in steps]


def _posted(side: Side, step: Posted) -> Any:
    method = BY_PATH[step.method]
    tree = json_format.MessageToDict(side.now.place(step.request), preserving_proto_field_name=step.proto)
    for change in step.tree:
        tree = change(tree)
    body = json.dumps(tree)
    for change in step.text:
        body = change(body)
    if _NUMBER_AND_MORE.search(body):
        return None
    try:
        request: Message | None = decode(method.request, body.encode())
    except EtcdError:
        request = None
    if method is _KEEP_ALIVE and (request is None or step.text):
        return None  # etcd ends a stream that is no JSON without a word (docs/compatibility.md)
    if not any_message.harmless(side, method, request):
        return None
    reply = side.subject.post("/v3" + method.routes[step.route % len(method.routes)], body.encode())
    if reply.status != 200:
        return reply.status, _error(reply.body, body)
    lines = [line for line in reply.body.splitlines() if line.strip()] if method is _KEEP_ALIVE else [reply.body]
    return [_reply(side, method, request, json.loads(line)) for line in lines]


def _reply(side: Side, method: Method, request: Message | None, parsed: Any) -> Any:
    if "error" in parsed:
        return parsed["error"]["code"]
    parsed = parsed.get("result", parsed)
    message = json_format.ParseDict(parsed, method.response())
    if request is not None:
        side.now.learn(request, message)
    if method.service != "etcdserverpb.KV":
        return plain(message)
    for name in ("cluster_id", "member_id", "raft_term"):
        parsed["header"].pop(name)
    return _plain_leases(parsed)


def _plain_leases(parsed: Any) -> Any:
    if isinstance(parsed, list):
        return [_plain_leases(inner) for inner in parsed]
    if not isinstance(parsed, dict):
        return parsed
    return {
        name: str(plain_lease(int(inner))) if name == "lease" else _plain_leases(inner)
        for name, inner in parsed.items()
    }


def _error(reply: bytes, body: str = "") -> Any:
    parsed = json.loads(reply)
    text = parsed["message"]
    own_words = _OWN_WORDS.search(text) or "\\ud" in body
    return parsed["code"], "wording" if own_words else text.replace("\u00a0", " ")


def _asked(side: Side, step: Asked) -> Any:
    reply = side.subject.request(step.verb, step.path, step.body.encode(), **step.headers)
    return reply.status, reply.headers.get("Content-Type")


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.0, 1.5, 1e2, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30,
    "", "0", "1", "-1", " 1", "1 ", "+1", "01", "1.0", "1e2", "0x1", "true", "x", "YQ==", "YQ", "YQ=", "_w==", "/w==",
    "_w", "!!", "YQ==\n", "Y Q==", "\u00e9", "\ud800", "NaN", "NONE", "KEY", "DESCEND", "none", [], {}, [[]], [1],
    [{}], {"key": "YQ=="}, {"x": 1}, [None],
)  # fmt: skip
_TEXTS = (
    "{", "}", "[", "]", ",", ":", '"', "\\", "\\u0041", "\\ud800", "\\x", "null", "true", "nul", " ", "\n", "\t",
    "\x00", "\x01", "\ufeff", "//", "/**/", "'", "1", "-", "1e999", "NaN", "Infinity", "0x1", "{}", "\u00e9",
    '"key":"YQ==",', '"TTL":1,', '"ID":"1",', "[" * 60, '{"a":' * 60,
)  # fmt: skip
_picks = st.integers(0, 11)
_tree = st.one_of(
    st.builds(Replace, _picks, st.sampled_from(_VALUES)),
    st.builds(Replace, _picks, st.sampled_from(_VALUES)),
    st.builds(Rename, _picks, st.sampled_from(("camel", "upper", "Camel", "unknown"))),
    st.builds(Wrap, _picks),
    st.builds(
        Extra,
        st.sampled_from(("x", "key", "range_end", "rangeEnd", "ID", "TTL", "lease", "")),
        st.sampled_from(_VALUES),
    ),
)
_text = st.builds(Text, st.integers(0, 120), st.sampled_from((0, 0, 1, 2, 1000)), st.sampled_from(("", *_TEXTS)))
_posted_steps = st.sampled_from([*any_message.SENT, _KEEP_ALIVE]).flatmap(
    lambda method: st.builds(
        Posted,
        st.booleans(),
        st.just(method.path),
        st.integers(0, 1),
        any_message.of(method),
        mostly(st.lists(_tree, max_size=2), st.just([]), 4),
        mostly(st.just([]), st.lists(_text, min_size=1, max_size=2), 3),
    )
)
_RANGE = Asked("POST", "/v3/kv/range", '{"key":"YQ=="}', {})
_PATHS = (
    "/", "/v3", "/v3/", "/v3/kv", "/v3/kv/range/", "/v3/kv/Range", "/v3//kv/range", "/v2/keys", "/v3alpha/kv/range",
    "/v3beta/kv/range", "/v3/kv/range?x=1", "/v3/kv/range?key=Yg==", "/v3/lease", "/health", "/version",
    "/%763/kv/range", "/v3/kv/range%2f", "/x/../v3/kv/range", "/v3/kv/./range", "/favicon.ico",
)  # fmt: skip
_asked_steps = st.one_of(
    st.sampled_from(_PATHS).map(lambda path: _RANGE._replace(path=path)),
    st.sampled_from(("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")).map(lambda verb: _RANGE._replace(verb=verb)),
    st.sampled_from(("text/plain", "application/x-www-form-urlencoded", "application/json; charset=x", "")).map(
        lambda kind: _RANGE._replace(headers={"Content-Type": kind})
    ),
)
STEPS = st.integers(1, 10).flatmap(
    lambda size: st.lists(mostly(_posted_steps, _asked_steps, 10), min_size=size, max_size=size)
)

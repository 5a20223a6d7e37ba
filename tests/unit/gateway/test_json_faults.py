# SPDX-License-Identifier: Apache-2.0
"""The place of a fault is found as by reading every token, without a step for each of them."""

import gc
import json
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.gateway import json_faults
from lessor.gateway.json_faults import _BrokenError, _place_of, _walk, syntax_fault, text_around

_TOKENS = st.sampled_from([
    *'{}[]:,"\\/ \n09.-+eEut', "true", "false", "null", "NaN", "-Infinity", "N", '"a":', '""', '"N"', "1.5", "1e5",
    "\\u0041", "\u00e9", "\x01", "\t", "\xa0",
])  # fmt: skip
_NAMES = st.sampled_from(["key", "key_2", "ke", "_"])
_VALUES: Any = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('ab"\\\n\u00e9', max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=12,
)
_SHAPES = st.sampled_from([{}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (" , ", " : ")}])


def by_every_token(body: bytes) -> str | None:
    try:
        _walk(body, 0, "value", 0)
    except _BrokenError as broken:
        return str(broken)
    return None


@given(
    value=_VALUES,
    shape=_SHAPES,
    damages=st.lists(
        st.tuples(st.integers(0, 90), st.integers(0, 3), st.lists(_TOKENS, max_size=3)), min_size=1, max_size=2
    ),
)
def test_the_fault_is_that_of_reading_every_token(
    value: Any, shape: dict[str, Any], damages: list[tuple[int, int, list[str]]]
) -> None:
    text = json.dumps(value, **shape)
    for at, dropped, tokens in damages:
        text = text[:at] + "".join(tokens) + text[at + dropped :]
    body = text.encode().lstrip(b" \t\r\n")
    if body:
        assert syntax_fault(body) == by_every_token(body)


@given(
    value=_VALUES,
    shape=_SHAPES,
    choices=st.lists(st.integers(0, 99), max_size=4),
    spelt=st.sets(st.sampled_from("ky_")),
)
def test_the_place_is_that_of_the_value(value: Any, shape: dict[str, Any], choices: list[int], spelt: set[str]) -> None:
    source = json.dumps(value, **shape)
    for letter in spelt:
        source = source.replace(letter, f"\\u{ord(letter):04X}")
    path: list[str | int] = []
    for choice in choices:
        if not isinstance(value, (dict, list)) or not value:
            break
        step = list(value)[choice % len(value)] if isinstance(value, dict) else choice % len(value)
        value = value[step]
        path.append(step)
    assert json.JSONDecoder().raw_decode(source, _place_of(source, path, 0))[0] == value


ELEMENTS = [b'""', b"1", b"1.5", b"true", b"{}", b"[]", b'{"a":[]}', b'"NaN"', b'"\\u0041"', b"[[[[]]]]"]
ENDS = [
    b"!]}",
    b'"\xff"]}',
    b'"',
    b'"\n"]}',
    b'"\\x"]}',
    b'"\\u12x"]}',
    b"NaN]}",
    b"1.]}",
    b"tru]}",
    b"]]",
    b",]}",
    b"",
]


class Work:
    """Lines of Python that run, whatever their module, and readings of the body by Python's decoder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines = 0
        self.readings = 0
        glance = json_faults._glance

        def read(text: str, at: int = 0) -> Any:
            self.readings += 1
            return glance(text, at)

        monkeypatch.setattr(json_faults, "_glance", read)

    def of(self, body: bytes, find: Callable[[bytes], Any]) -> int:
        """The lines of `find(body)`."""
        self.lines = self.readings = 0
        before = sys.gettrace()
        gc.disable()  # its callbacks are lines of Python
        sys.settrace(self._count)
        try:
            find(body)
        finally:
            sys.settrace(before)
            gc.enable()
        return self.lines

    def _count(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.lines += event == "line"
        return self._count


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("element", ELEMENTS)
def test_a_fault_of_syntax_takes_no_step_for_each_element(
    monkeypatch: pytest.MonkeyPatch, element: bytes, end: bytes
) -> None:
    work = Work(monkeypatch)
    few, many = (work.of(b'{"x":[' + (element + b",") * count + end, syntax_fault) for count in (10, 1_000))
    assert many < few + 50
    assert work.readings <= 5


@pytest.mark.parametrize(
    "field", ['"":""', '"a" : -1.5e3', '"b":[[{}],"}"]', '"k":"\\"\\n"', '"\\u006bex":1', '"\u00e9":[1,2]']
)
def test_the_place_of_a_value_takes_no_step_for_each_field_before_it(
    monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    def find(body: bytes) -> None:
        source = body.decode()
        assert _place_of(source, ["key"], 0) == len(source) - 2

    work = Work(monkeypatch)
    few, many = (work.of(f'{{{(field + ",") * count}"key":1}}'.encode(), find) for count in (10, 1_000))
    assert many < few + 50


@pytest.mark.parametrize("field", ['"":""', '"a":[{"b":{}}]', '"\\u0041":"\\u0041"'])
@pytest.mark.parametrize("start", ['{"x":"', '{"x":"\\u0041', '{"', '["'])
def test_text_that_is_not_utf8_is_found_without_a_step_for_each_field(
    monkeypatch: pytest.MonkeyPatch, field: str, start: str
) -> None:
    """Its place is that of the string around it."""
    work = Work(monkeypatch)
    lines = []
    for count in (10, 1_000):
        before = start if start[0] == "[" else "{" + (field + ",") * count + start[1:]
        body = before.encode() + b"\xff"
        assert text_around(body, len(before)) == before.rindex('"')
        lines.append(work.of(body, partial(text_around, at=len(before))))
    assert lines[1] < lines[0] + 50
    assert work.readings <= 3

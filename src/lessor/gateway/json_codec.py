# SPDX-License-Identifier: Apache-2.0
"""JSON from and to our messages, spelt as etcd 3.6's gateway spells it.

Laws
- Out: original field names, 64-bit integers as strings, bytes as standard base64, enums by name, zero values left out,
  fields in the order of their numbers, no spaces, no newline. A member of a oneof is written even when it is zero.
- In: original or lowerCamel names; integers as numbers or strings, `1e2` and `100.0` too; base64 standard or URL-safe,
  padded or not; enums by name or number; null means not set; unknown fields and unknown enum names are skipped; an
  empty body is an empty message. A field or a oneof that is given twice is an error.
- Anything else is EtcdError(INVALID_ARGUMENT), whose text names the place, the field and the reason as etcd does:
  json_faults.py.
- A body with too many names and values is refused unread: they cost a hundred times what the same bytes cost in a
  string, and no request needs them.

Theory of operation. Each message class is compiled once, at first use, into closures: one writer per field for
encoding, one dictionary from JSON name to converter for decoding. Decoding turns the JSON value into the keyword
arguments of one constructor call. This is several times faster than protobuf's json_format, which walks descriptors on
each call; a property test holds both equal. They differ where Go's protojson, which etcd uses, differs from Python's
json_format: unknown enum names, repeated fields, base64, and the text after the first value of a unary body.

Does not do: status codes (routes.py), the frames of streaming replies (stream.py).
"""

import json
import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.base.errors import Code, EtcdError
from lessor.gateway import json_faults
from lessor.gateway.json_faults import FaultError

M = TypeVar("M", bound=Message)

_INTEGERS: Final = {
    FieldDescriptor.TYPE_INT32: ("int32", -(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: ("int64", -(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: ("uint32", 0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: ("uint64", 0, 2**64 - 1),
}
_LONG_PIECE_BYTES: Final = 16_384  # of a reply in pieces; shorter ones become JSON at once
_LIST_STEP: Final = 500  # values of a list that become JSON at once: about a millisecond
_FEW: Final = 16  # values of a list that may be long messages themselves
_QUOTED_INTEGERS: Final = (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64)


# --- encoding -----------------------------------------------------------------------------------------------------

Writer = Callable[[Any, list[str]], None]  # appends `"name":value` of one field, or nothing

_writers: dict[Any, list[Writer]] = {}  # by descriptor


def quoted(text: str) -> bytes:
    """A JSON string in UTF-8, escaped as protojson does: quote, backslash and control characters, nothing of HTML."""
    return encode_basestring(text).encode("utf-8", "replace")


def encode(message: Message) -> bytes:
    """The message as compact JSON in UTF-8. Cost: proportional to the fields of the messages in it."""
    return _text(message).encode()


def encode_in_pieces(message_class: type[Message], pieces: Iterable[bytes]) -> Iterator[bytes]:
    """`encode` of one message whose serialized form is the sum of `pieces`: a piece of JSON for each, and an end.

    A piece has whole fields, and no field with a number below that of a field before it. A list may go on in the next
    piece.
    """
    opened = ""  # the list that is not closed yet, as `"name":`
    between = "{"
    for piece in pieces:
        text: list[str] = []
        message = message_class.FromString(piece)
        if len(piece) > _LONG_PIECE_BYTES and len(fields := message.ListFields()) == 1 and fields[0][0].is_repeated:
            # A long operation of a txn: there is nothing shorter that is a whole field.
            name = f'"{fields[0][0].name}":'
            yield b"" if name == opened else f"{']' if opened else ''}{between}{name}[".encode()
            yield from _long_list(fields[0], continued=name == opened)
            opened, between = name, ","
            continue
        for part in _parts(message):
            name = part[: part.index(":") + 1]
            is_list = part.startswith("[", len(name))
            if is_list and name == opened:
                text += ",", part[len(name) + 1 : -1]
            else:
                text += "]" if opened else "", between, part[:-1] if is_list else part
                opened, between = name if is_list else "", ","
        yield "".join(text).encode()
    yield (("]" if opened else "") + ("{}" if between == "{" else "}")).encode()


def _long_list(field: tuple[FieldDescriptor, Any], *, continued: bool = False) -> Iterator[bytes]:
    """The values of a list, with commas between, and one in front if it goes on; in pieces."""
    descriptor, values = field
    show = _show(descriptor)
    few = len(values) <= _FEW
    for first in range(0, len(values), 1 if few else _LIST_STEP):
        if continued or first:
            yield b","
        if few and descriptor.type == FieldDescriptor.TYPE_MESSAGE:
            yield from _long_message(values[first])
        else:
            yield ",".join(map(show, values[first : first + (1 if few else _LIST_STEP)])).encode()


def _long_message(message: Message) -> Iterator[bytes]:
    """`encode` in pieces, where lists or the messages in it are long."""
    between = "{"
    for descriptor, value in message.ListFields():
        yield f'{between}"{descriptor.name}":'.encode()
        between = ","
        if descriptor.is_repeated:
            yield b"["
            yield from _long_list((descriptor, value))
            yield b"]"
        elif descriptor.type == FieldDescriptor.TYPE_MESSAGE:
            yield from _long_message(value)
        else:
            yield _show(descriptor)(value).encode()
    yield b"{}" if between == "{" else b"}"


def _text(message: Message) -> str:
    return "{" + ",".join(_parts(message)) + "}"


def _parts(message: Message) -> list[str]:
    """The fields, each as `"name":value`."""
    descriptor: Any = message.DESCRIPTOR
    writers = _writers.get(descriptor)
    if writers is None:
        writers = _writers[descriptor] = [
            _writer(field) for field in sorted(descriptor.fields, key=lambda field: field.number)
        ]
    parts: list[str] = []
    for write in writers:
        write(message, parts)
    return parts


@lru_cache(maxsize=16)
def _header_text(encoded: bytes) -> str:
    return _text(rpc_pb2.ResponseHeader.FromString(encoded))


def _show_header(header: Message) -> str:
    """Cached: a header changes with the revision only, and its four long numbers are half the work of a short reply."""
    return _header_text(header.SerializeToString())


def _show_number(value: int) -> str:
    return f"{value}"


def _show_quoted_number(value: int) -> str:
    return f'"{value}"'


def _show_bytes(value: bytes) -> str:
    return '"' + b2a_base64(value, newline=False).decode("ascii") + '"'


def _show_bool(value: bool) -> str:
    return "true" if value else "false"


def _show_enum(field: FieldDescriptor) -> Callable[[int], str]:
    assert field.enum_type is not None
    names = {value.number: f'"{value.name}"' for value in field.enum_type.values}

    def show(number: int) -> str:
        return names.get(number) or str(number)

    return show


def _show(field: FieldDescriptor) -> Callable[[Any], str]:
    """The function that writes one value of the field."""
    kind = field.type
    if kind in _QUOTED_INTEGERS:
        return _show_quoted_number
    if kind in _INTEGERS:
        return _show_number
    if kind == FieldDescriptor.TYPE_BYTES:
        return _show_bytes
    if kind == FieldDescriptor.TYPE_STRING:
        return encode_basestring
    if kind == FieldDescriptor.TYPE_BOOL:
        return _show_bool
    if kind == FieldDescriptor.TYPE_ENUM:
        return _show_enum(field)
    if kind == FieldDescriptor.TYPE_MESSAGE:
        return _show_header if field.message_type is rpc_pb2.ResponseHeader.DESCRIPTOR else _text
    raise TypeError(f"no JSON form for {field.full_name}")


def _writer(field: FieldDescriptor) -> Writer:
    name = field.name
    show = _show(field)
    prefix = f'"{name}":'

    def write_list(message: Any, parts: list[str]) -> None:
        values = getattr(message, name)
        if values:
            parts.append(f"{prefix}[{','.join(map(show, values))}]")

    def write_present(message: Any, parts: list[str]) -> None:
        if message.HasField(name):
            parts.append(prefix + show(getattr(message, name)))

    def write_scalar(message: Any, parts: list[str]) -> None:
        value = getattr(message, name)
        if value:
            parts.append(prefix + show(value))

    if field.is_repeated:
        return write_list
    return write_present if field.has_presence else write_scalar


# --- decoding -----------------------------------------------------------------------------------------------------

Converter = Callable[[Any, int], Any]  # (JSON value, depth) -> value for the constructor
# Of one JSON name: our name, JSON name, bit of the field, bit of its oneof (0: none), name of the oneof, converter.
FieldPlan = tuple[str, str, int, int, str, Converter]

_plans: dict[Any, dict[str, FieldPlan]] = {}  # by descriptor
_NO_BOUND: Final = 1 << 60
_BEFORE_VALUES: Final = b",:[{"
_NOTHING: Final = object()  # a converter's result for a value that is to be skipped

_PLAIN_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,19})", re.ASCII)
_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?", re.ASCII)
_INTEGER_DIGITS_MAX = 20  # of the largest uint64


class _Written(str):
    """A JSON number as it was written: with a point, an exponent, or more digits than any integer of ours."""

    __slots__ = ()


def _whole(text: str) -> "int | _Written":
    return int(text) if len(text) <= _INTEGER_DIGITS_MAX + 1 else _Written(text)


class _Repeating(dict[str, Any]):
    """A JSON object in which a name stands twice."""

    __slots__ = ("again",)
    again: set[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    repeating = _Repeating(value)
    seen: set[str] = set()
    repeating.again = {name for name, _ in pairs if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
    return repeating


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"invalid value {name}")


_scan = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_whole, parse_float=_Written, parse_constant=_refuse_constant
).raw_decode


def _invalid(text: str) -> EtcdError:
    return EtcdError(Code.INVALID_ARGUMENT, "proto: " + text)


def count_values(body: bytes | bytearray) -> int:
    """About how many names and values a body has: the commas, colons and opening brackets in it. 1 ns a byte."""
    return len(body) - len(body.translate(None, _BEFORE_VALUES))


def refuse_many_values(count: int, values_max: int) -> None:
    """Raises EtcdError(RESOURCE_EXHAUSTED) if there are more names and values than `values_max`."""
    if count > values_max:
        text = f"lessor: JSON with more than {values_max} names and values; send several requests, or use gRPC"
        raise EtcdError(Code.RESOURCE_EXHAUSTED, text)


def decode(message_class: type[M], body: bytes, values_max: int = _NO_BOUND) -> M:
    """The message of a unary body: the first JSON value in it. The rest is ignored, as in etcd.

    `values_max`: of names and values, counted by the commas, colons and opening brackets in the body. Raises
    EtcdError: RESOURCE_EXHAUSTED beyond that; INVALID_ARGUMENT for a body that is not JSON, not an object, or has a
    field with a value that it cannot hold.
    """
    if len(body) > values_max:  # fewer bytes cannot hold so many
        refuse_many_values(count_values(body), values_max)
    body = body.lstrip(b" \t\r\n")
    if not body:
        return message_class()
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        text = body[: error.start].decode()  # enough, if the first value ends before that
        if not _begins_with_a_value(text):
            raise _not_utf8(body, error.start) from None
    try:
        value, _ = _scan(text)
        if "\\u" in text:  # an escape, maybe of half a surrogate pair: refused even in an unknown field
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _invalid("syntax error: invalid escape code, half of a surrogate pair") from None
    except RecursionError:
        raise EtcdError(Code.INVALID_ARGUMENT, json_faults.TOO_DEEP) from None
    except ValueError:  # of the JSON decoder; or NaN
        fault = json_faults.syntax_fault(body)
        raise EtcdError(Code.INVALID_ARGUMENT, fault or "proto: syntax error") from None
    if not isinstance(value, dict):
        fault = json_faults.syntax_fault(body)  # the decoder reads a number like `0e` up to the fault
        if fault is not None:
            raise EtcdError(Code.INVALID_ARGUMENT, fault)
    try:
        arguments = _arguments(message_class.DESCRIPTOR, value, 1)
    except FaultError as fault_inside:
        raise EtcdError(Code.INVALID_ARGUMENT, _message_of(fault_inside, text)) from None
    return message_class(**arguments)


def _begins_with_a_value(text: str) -> bool:
    try:
        _scan(text)
    except (ValueError, RecursionError):
        return False
    return True


def _message_of(fault: FaultError, text: str) -> str:
    try:
        return fault.message(text)
    except RecursionError:  # the stack was deep enough for the first reading, but not a few calls further in
        return json_faults.TOO_DEEP


def _not_utf8(body: bytes, at: int) -> EtcdError:
    fault = json_faults.syntax_fault(body)
    if fault is not None:
        return EtcdError(Code.INVALID_ARGUMENT, fault)
    before = body[: json_faults.text_around(body, at)].decode()
    place = json_faults.place(before, len(before))
    return _invalid(f"syntax error ({place}): invalid UTF-8 in string")


def _arguments(descriptor: Any, value: Any, depth: int) -> dict[str, Any]:
    """The constructor's arguments for one message."""
    if not isinstance(value, dict):
        raise _unexpected_token()
    if depth > limits.JSON_NESTED_MESSAGES_MAX:
        raise _invalid("exceeded max recursion depth")
    plan = _plans.get(descriptor)
    if plan is None:
        plan = _plans[descriptor] = _compile(descriptor)
    if type(value) is _Repeating:
        for name in value.again:
            if name in plan:
                raise _fault_of_name(name, f'duplicate field "{name}"', 2)
    arguments: dict[str, Any] = {}
    seen = 0
    for name, item in value.items():
        field = plan.get(name)
        if field is None:
            continue
        own_name, _, bit, union_bit, union, convert = field
        if seen & bit:
            raise _fault_of_name(name, f'duplicate field "{name}"')
        seen |= bit
        if item is None:
            continue
        if union_bit:
            if seen & union_bit:
                raise _fault_of_name(name, f'error parsing "{name}", oneof {union} is already set')
            seen |= union_bit
        try:
            converted = convert(item, depth)
        except FaultError as fault:
            fault.path.append(name)
            raise
        if converted is not _NOTHING:
            arguments[own_name] = converted
    return arguments


def _unexpected_token() -> FaultError:
    return FaultError("unexpected token ", syntax=True)


def _fault_of_name(name: str, text: str, of_name: int = 1) -> FaultError:
    fault = FaultError(text, shows=False, of_name=of_name)
    fault.path.append(name)
    return fault


def _compile(descriptor: Descriptor) -> dict[str, FieldPlan]:
    unions = {union.name: 1 << (len(descriptor.fields) + index) for index, union in enumerate(descriptor.oneofs)}
    plan: dict[str, FieldPlan] = {}
    for index, field in enumerate(descriptor.fields):
        union = field.containing_oneof
        convert = _list_of(_converter(field)) if field.is_repeated else _converter(field)
        entry = (
            field.name,
            field.json_name,
            1 << index,
            unions[union.name] if union else 0,
            union.full_name if union else "",
            convert,
        )
        plan[field.json_name] = plan[field.name] = entry
    return plan


def _wrong(kind: str, field: str) -> FaultError:
    return FaultError(f"invalid value for {kind} field {field}: ")


def _integer(text: str) -> int | None:
    """The integer that a JSON number means; None if it is none, or far beyond 64 bits. Never a huge computation."""
    if _PLAIN_INTEGER.fullmatch(text):
        return int(text)
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    sign, whole, fraction, exponent = found.groups()
    digits = (whole + (fraction or "")).lstrip("0")
    if not digits:
        return 0
    if exponent and len(exponent) > 8:
        return None
    significant = digits.rstrip("0")
    zeros = int(exponent or 0) - len(fraction or "") + len(digits) - len(significant)
    if zeros < 0 or len(significant) + zeros > _INTEGER_DIGITS_MAX:
        return None
    return int(sign + significant + "0" * zeros)


def _integer_converter(field: FieldDescriptor) -> Converter:
    kind, least, most = _INTEGERS[field.type]
    name = field.json_name

    def convert(value: Any, depth: int) -> int:
        number = value if type(value) is int else _integer(value) if isinstance(value, str) else None
        if number is None or not least <= number <= most:
            raise _wrong(kind, name)
        return number

    return convert


def _bytes_converter(field: FieldDescriptor) -> Converter:
    name = field.json_name

    def convert(value: Any, depth: int) -> bytes:
        if type(value) is not str:
            raise _wrong("bytes", name)
        data = _standard_base64(value)
        if data is None:
            data = _loose_base64(value)
            if data is None:
                raise _wrong("bytes", name)
        return data

    return convert


def _standard_base64(text: str) -> bytes | None:
    """The bytes of padded base64 in the standard alphabet; None if it is anything else."""
    try:
        data = a2b_base64(text, strict_mode=True)
    except ValueError:  # a fault in base64, or letters beyond ASCII
        return None
    # Python accepts padding after a whole group, "Zm9v=".
    padding = 0 if text[-1:] != "=" else 2 if text[-2:] == "==" else 1
    return data if len(data) == len(text) // 4 * 3 - padding and len(text) % 4 == 0 else None


def _loose_base64(text: str) -> bytes | None:
    """Base64 by the rules of Go's protojson: URL-safe if it has - or _, unpadded if its length is no multiple of 4."""
    padded = len(text) % 4 == 0
    if "-" in text or "_" in text:
        if "+" in text or "/" in text:
            return None
        text = text.replace("-", "+").replace("_", "/")
    text = text.replace("\r", "").replace("\n", "")
    if not padded:
        if "=" in text:
            return None
        text += "=" * (-len(text) % 4)
    return _standard_base64(text)


def _string_converter(field: FieldDescriptor) -> Converter:
    name = field.json_name

    def convert(value: Any, depth: int) -> str:
        if type(value) is not str:
            raise _wrong("string", name)
        return value

    return convert


def _bool_converter(field: FieldDescriptor) -> Converter:
    name = field.json_name

    def convert(value: Any, depth: int) -> bool:
        if value is True or value is False:
            return bool(value)
        raise _wrong("bool", name)

    return convert


def _enum_converter(field: FieldDescriptor) -> Converter:
    name = field.json_name
    assert field.enum_type is not None
    numbers = {value.name: value.number for value in field.enum_type.values}

    def convert(value: Any, depth: int) -> Any:
        if type(value) is str:
            return numbers.get(value, _NOTHING)
        number = value if type(value) is int else _integer(value) if isinstance(value, _Written) else None
        if number is None or not -(2**31) <= number < 2**31:
            raise _wrong("enum", name)
        return number

    return convert


def _message_converter(field: FieldDescriptor) -> Converter:
    descriptor = field.message_type

    def convert(value: Any, depth: int) -> dict[str, Any]:
        return _arguments(descriptor, value, depth + 1)

    return convert


def _converter(field: FieldDescriptor) -> Converter:
    """The function that reads one value of the field."""
    kind = field.type
    if kind in _INTEGERS:
        return _integer_converter(field)
    if kind == FieldDescriptor.TYPE_BYTES:
        return _bytes_converter(field)
    if kind == FieldDescriptor.TYPE_STRING:
        return _string_converter(field)
    if kind == FieldDescriptor.TYPE_BOOL:
        return _bool_converter(field)
    if kind == FieldDescriptor.TYPE_ENUM:
        return _enum_converter(field)
    if kind == FieldDescriptor.TYPE_MESSAGE:
        return _message_converter(field)
    raise TypeError(f"no JSON form for {field.full_name}")


def _list_of(convert: Converter) -> Converter:
    def convert_list(values: Any, depth: int) -> list[Any]:
        if type(values) is not list:
            raise _unexpected_token()
        converted = []
        for index, value in enumerate(values):
            try:
                item = convert(value, depth)
            except FaultError as fault:
                fault.path.append(index)
                raise
            if item is not _NOTHING:
                converted.append(item)
        return converted

    return convert_list

# SPDX-License-Identifier: Apache-2.0
"""Request bytes on which protobuf's decoders disagree: Google's, which Lessor uses, and etcd's.

    a field that is known comes with another wire type        etcd refuses, Lessor takes it for an unknown field
    text that is not UTF-8                                    etcd takes it, Lessor refuses
    a varint whose tenth byte does not fit, a field number    one or the other refuses
    that is out of range, a group

docs/compatibility.md names this. Everything else that can be wrong, both refuse.
"""

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_VARINT, _FIXED64, _BYTES, _GROUP, _END, _FIXED32 = range(6)
_FIELD_NUMBER_MAX = (1 << 29) - 1


class _DisputedError(Exception):
    """Found one."""


class _CutOffError(Exception):
    """The bytes end in the middle, or have a length that nobody reads: refused by both."""


def disputed(descriptor: Descriptor, data: bytes) -> bool:
    """Whether the decoders may disagree on this encoding of a message."""
    try:
        _walk(descriptor, data)
    except _DisputedError:
        return True
    except _CutOffError:
        return False
    return False


def _walk(descriptor: Descriptor | None, data: bytes) -> None:
    assert descriptor is not None
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number <= _FIELD_NUMBER_MAX or wire in (_GROUP, _END):
            raise _DisputedError
        field = descriptor.fields_by_number.get(number)
        if field is not None and wire != _wire_of(field):
            raise _DisputedError
        match wire:
            case 0:
                _, at = _varint(data, at)
            case 1 | 5:
                at += 8 if wire == _FIXED64 else 4
            case 2:
                size, at = _varint(data, at)
                if at + size > len(data):
                    raise _CutOffError
                if field is not None:
                    _content(field, data[at : at + size])
                at += size
            case _:
                raise _CutOffError
        if at > len(data):
            raise _CutOffError


def _content(field: FieldDescriptor, data: bytes) -> None:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        _walk(field.message_type, data)
    elif field.type == FieldDescriptor.TYPE_STRING:
        try:
            data.decode()
        except UnicodeDecodeError:
            raise _DisputedError from None


def _wire_of(field: FieldDescriptor) -> int:
    if field.type in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return _BYTES
    return _VARINT


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _CutOffError
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise _DisputedError
            return value, at
    raise _CutOffError  # eleven bytes

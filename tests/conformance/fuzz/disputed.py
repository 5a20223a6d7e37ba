# SPDX-License-Identifier: Apache-2.0
"""Request bytes on which protobuf's decoders disagree: Google's, which Lessor uses, and the one that etcd is built with.

    a field that is known comes with another wire type        etcd refuses, Lessor takes it for an unknown field
    text that is not UTF-8                                    etcd takes it, Lessor refuses
    a varint whose tenth byte does not fit, a field number    one or the other refuses
    that is out of range, a group

docs/compatibility.md names this. Everything else that can be wrong, both refuse.
"""

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_VARINT, _FIXED64, _BYTES, _GROUP, _END, _FIXED32 = range(6)
_FIELD_NUMBER_MAX = (1 << 29) - 1


class _Disputed(Exception):
    """Found one."""


class _CutOff(Exception):
    """The bytes end in the middle, or have a length that nobody reads: refused by both."""


def disputed(descriptor: Descriptor, data: bytes) -> bool:
    """Whether the decoders may disagree on this encoding of a message."""
    try:
        _walk(descriptor, data)
    except _Disputed:
        return True
    except _CutOff:
        return False
    return False


def _walk(descriptor: Descriptor, data: bytes) -> None:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number <= _FIELD_NUMBER_MAX or wire in (_GROUP, _END):
            raise _Disputed
        field = descriptor.fields_by_number.get(number)
        if field is not None and wire != _wire_of(field):
            raise _Disputed
        match wire:
            case 0:
                _, at = _varint(data, at)
            case 1 | 5:
                at += 8 if wire == _FIXED64 else 4
            case 2:
                size, at = _varint(data, at)
                if at + size > len(data):
                    raise _CutOff
                if field is not None:
                    _content(field, data[at : at + size])
                at += size
            case _:
                raise _CutOff
        if at > len(data):
            raise _CutOff


def _content(field: FieldDescriptor, data: bytes) -> None:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        _walk(field.message_type, data)
    elif field.type == FieldDescriptor.TYPE_STRING:
        try:
            data.decode()
        except UnicodeDecodeError:
            raise _Disputed from None


def _wire_of(field: FieldDescriptor) -> int:
    if field.type in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return _BYTES
    return _VARINT


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _CutOff
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise _Disputed
            return value, at
    raise _CutOff  # eleven bytes

# SPDX-License-Identifier: Apache-2.0
"""Certificate revocation lists: the serial numbers on a list, and the serial number of a certificate.

As in etcd, a serial number on the list is refused whoever issued the certificate, and neither the signature nor the
date of the list is checked: the file is the administrator's own. The file is DER, as for etcd, or PEM; several lists in
one PEM file count as one.

This module reads only the few fields of DER that it needs. Bytes that are not DER raise ValueError.
"""

import base64
import binascii
import re
from collections.abc import Iterator

_PEM = re.compile(rb"-----BEGIN X509 CRL-----(.+?)-----END X509 CRL-----", re.DOTALL)
_INTEGER, _SEQUENCE, _UTC_TIME, _GENERAL_TIME, _EXPLICIT_0 = 0x02, 0x30, 0x17, 0x18, 0xA0


def revoked_serials(content: bytes) -> frozenset[int]:
    """The serial numbers on the list, or on the lists, in the content of a file. Raises ValueError."""
    lists = [_decoded(block) for block in _PEM.findall(content)] or [content]
    return frozenset(serial for each in lists for serial in _serials(each))


def serial_of(certificate: bytes) -> int:
    """The serial number of a certificate in DER. Raises ValueError."""
    to_be_signed = next(_parts(_only(certificate, _SEQUENCE)))[1]
    fields = _parts(to_be_signed)
    tag, value = next(fields, (0, b""))
    if tag == _EXPLICIT_0:  # the version
        tag, value = next(fields, (0, b""))
    if tag != _INTEGER:
        raise ValueError("malformed certificate: no serial number")
    return int.from_bytes(value, "big", signed=True)


def _decoded(block: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(block.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"malformed crl: {error}") from None


def _serials(der: bytes) -> Iterator[int]:
    try:
        (tag, to_be_signed), *_ = _parts(_only(der, _SEQUENCE))
    except ValueError:
        raise ValueError("malformed crl: neither DER nor PEM") from None
    if tag != _SEQUENCE:
        raise ValueError("malformed crl: no list in it")
    fields = list(_parts(to_be_signed))
    times = [at for at, (tag, _) in enumerate(fields) if tag in (_UTC_TIME, _GENERAL_TIME)]
    if not times:
        raise ValueError("malformed crl: no date in it")
    # The revoked certificates follow the last date. A list without any has nothing there, or extensions.
    following = fields[times[-1] + 1 :]
    if following and following[0][0] == _SEQUENCE:
        for tag, entry in _parts(following[0][1]):
            number = next(_parts(entry), (0, b""))
            if tag != _SEQUENCE or number[0] != _INTEGER:
                raise ValueError("malformed crl: an entry without a serial number")
            yield int.from_bytes(number[1], "big", signed=True)


def _only(der: bytes, tag: int) -> bytes:
    """The value of the only element in `der`."""
    elements = list(_parts(der))
    if len(elements) != 1 or elements[0][0] != tag:
        raise ValueError("malformed DER")
    return elements[0][1]


def _parts(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements in `der`, in order: (tag, value)."""
    at = 0
    while at < len(der):
        tag, at = der[at], at + 1
        if at == len(der):
            raise ValueError("malformed DER: it ends in an element")
        length, at = der[at], at + 1
        if length >= 0x80:
            width = length & 0x7F
            if not 1 <= width <= 4 or at + width > len(der):
                raise ValueError("malformed DER: a length that cannot be")
            length, at = int.from_bytes(der[at : at + width], "big"), at + width
        if at + length > len(der):
            raise ValueError("malformed DER: it ends in an element")
        yield tag, der[at : at + length]
        at += length

# SPDX-License-Identifier: Apache-2.0
"""The checks of a client's certificate after OpenSSL has verified its chain, and the name in the certificate.

- A certificate whose serial number is on the revocation list is refused. With Python 3.13 and later, which shows the
  chain, the intermediates that the client sent are checked too, as in etcd. Before 3.13 only the client's own
  certificate is checked.
- With --client-cert-allowed-hostname the certificate must name one of the hosts.
- A certificate that has expired since its session began is refused: OpenSSL resumes a session of TLS 1.2 without a look
  at the date.
"""

import ssl
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Any

from lessor.base.clock import wall_clock_ms
from lessor.server.tls import revocation


class RefusedError(Exception):
    """The client's certificate is not accepted. The message says why."""


def check(tls: ssl.SSLObject, revoked: frozenset[int], allowed_hostnames: tuple[str, ...]) -> str | None:
    """The common name of the client's certificate; None without a name or a certificate. Raises RefusedError."""
    certificate: dict[str, Any] | None = tls.getpeercert()
    if not certificate:
        return None
    if ssl.cert_time_to_seconds(certificate["notAfter"]) * 1000 < wall_clock_ms():
        raise RefusedError("the client's certificate has expired")
    for serial in _serials(tls, certificate) if revoked else ():
        if serial in revoked:
            raise RefusedError(f"transport: certificate serial {serial:x} revoked")
    names = certificate.get("subjectAltName", ())
    if allowed_hostnames and not any(names_host(names, host) for host in allowed_hostnames):
        raise RefusedError("client certificate authentication failed")
    return common_name(certificate.get("subject", ()))


def _serials(tls: ssl.SSLObject, certificate: dict[str, Any]) -> Iterator[int]:
    yield int(certificate["serialNumber"], 16)
    for sent in getattr(tls, "get_unverified_chain", tuple)():
        yield revocation.serial_of(sent)


def common_name(subject: Iterable[Iterable[tuple[str, str]]]) -> str | None:
    """The common name in a subject from ssl.getpeercert(). Of several names the last counts, as in Go."""
    found = [value for part in subject for name, value in part if name == "commonName"]
    return found[-1] if found and found[-1] else None


def names_host(alternative_names: Iterable[tuple[str, str]], host: str) -> bool:
    """Whether a certificate's alternative names cover a host name or IP address. `*` stands for one whole label."""
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        wanted = host.lower().removesuffix(".").split(".")
        return any(kind == "DNS" and _covers(name.lower().split("."), wanted) for kind, name in alternative_names)
    return any(kind == "IP Address" and ip_address(name) == address for kind, name in alternative_names)


def _covers(pattern: list[str], host: list[str]) -> bool:
    if len(pattern) != len(host) or not all(host):
        return False
    first_fits = pattern[0] == host[0] or (pattern[0] == "*" and len(host) > 1)
    return first_fits and pattern[1:] == host[1:]

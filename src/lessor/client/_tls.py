# SPDX-License-Identifier: Apache-2.0
"""How the client speaks TLS: a context from files.

Laws
- Servers are verified, the chain of their certificates and the host name both, unless the caller says `verify=False`.
- Nothing asks at the terminal: an encrypted key is an error.
"""

import ssl
from pathlib import Path

from lessor.base.tls_errors import reason_of
from lessor.client._errors import InvalidCertificate


class _EncryptedKeyError(Exception):
    pass


def _no_password() -> str:
    raise _EncryptedKeyError


def tls_context(
    *, ca_file: str | None = None, cert_file: str | None = None, key_file: str | None = None, verify: bool = True
) -> ssl.SSLContext:
    """A context for `Channel` and `AsyncClient`; all files are PEM.

    ca_file              the authorities to trust when servers show certificates; None: those of the machine
    cert_file, key_file  the client's own certificate (with its chain) and key, for servers that ask for one; both or
                         neither
    verify               False: any server is believed. For trials only

    Raises InvalidCertificate, which names the file. Cost: reads the files, here and once.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # As in Go's clients: what stands in the file is trusted, be it a root or an intermediate.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if bool(cert_file) != bool(key_file):
        text = f"KeyFile and CertFile must both be present[key: {key_file or ''}, cert: {cert_file or ''}]"
        raise InvalidCertificate(text)
    if cert_file and key_file:
        _load_own(context, cert_file, key_file)
    if ca_file:
        text = _content(ca_file).decode("ascii", "ignore")
        try:
            context.load_verify_locations(cadata=text)
        except (ssl.SSLError, ValueError):
            raise InvalidCertificate(f"{ca_file}: no certificates in this file, or damaged ones") from None
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _content(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise InvalidCertificate(f"open {name}: {(error.strerror or str(error)).lower()}") from None


def _load_own(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    for name, kind in ((cert_file, b"CERTIFICATE-----"), (key_file, b"PRIVATE KEY-----")):
        if kind not in _content(name):
            what = kind.decode().rstrip("-").lower()
            raise InvalidCertificate(f"{name}: no {what} in this file (PEM is wanted)")
    try:
        context.load_cert_chain(cert_file, key_file, _no_password)
    except _EncryptedKeyError:
        raise InvalidCertificate(f"{key_file}: the key is encrypted; a key without a password is wanted") from None
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            text = f"tls: private key does not match public key ({key_file}, {cert_file})"
        else:
            text = f"{cert_file}, {key_file}: {reason_of(error)}"
        raise InvalidCertificate(text) from None

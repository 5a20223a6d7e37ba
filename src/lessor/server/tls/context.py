# SPDX-License-Identifier: Apache-2.0
"""Makes TLS contexts from files, and new ones whenever the files change.

Laws
- A handshake uses the files as they are when it begins. A connection keeps the credentials of its handshake.
- Files that cannot be used never replace files that can: the server keeps the old credentials and logs that once.
- No session is resumed by ticket. Each connection is checked against the certificates and lists of its own moment.

A context is never changed after it is made; new files make a new one. To swap certificates inside a context, or the
context inside a handshake, would leave the old rules for client certificates in force.
"""

import logging
import os
import ssl
from pathlib import Path
from typing import NamedTuple

from lessor.base.tls_errors import reason_of
from lessor.durable.file_kind import read_regular
from lessor.server.options import OptionError, TlsOptions
from lessor.server.tls import ciphers, revocation

log = logging.getLogger("lessor")

ALPN = ["h2", "http/1.1"]


class Credentials(NamedTuple):
    """For one handshake: the context, and the serial numbers of client certificates that are refused."""

    context: ssl.SSLContext
    revoked: frozenset[int]


class CredentialFiles:
    """The files that the options name, and the newest credentials from them. Raises OptionError for unusable files."""

    def __init__(self, options: TlsOptions) -> None:
        self._options = options
        self._seen = self._signature()
        self._current = load(options)

    def current(self) -> Credentials:
        """The credentials for a handshake that begins now. Cost: one stat per file while they do not change."""
        signature = self._signature()
        if signature != self._seen:
            self._seen = signature  # set first: files that cannot be used are not read again before they change again
            try:
                self._current = load(self._options)
                log.info("certificates changed; new connections use the new ones")
            except OptionError as error:
                log.warning("cannot use the changed certificates; going on with the old ones", extra={"error": error})
        return self._current

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        options = self._options
        names = (options.cert_file, options.key_file, options.trusted_ca_file, options.client_crl_file)
        return tuple(_identity(name) for name in names if name)


def _identity(name: str) -> tuple[int, int, int] | None:
    """A value that changes when the file is written to or replaced. None: there is no file."""
    try:
        status = os.stat(name)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def load(options: TlsOptions) -> Credentials:
    """Reads all files. Raises OptionError with one line that names the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET  # HTTP/2 forbids renegotiation
    context.num_tickets = 0
    context.minimum_version = options.min_version
    if options.max_version is not None:
        context.maximum_version = options.max_version
    if options.cipher_suites:
        old_names = ciphers.openssl_names(options.cipher_suites)
        if old_names:
            context.set_ciphers(old_names)
        else:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(ALPN)
    _load_certificate(context, options)
    if options.asks_clients:
        context.verify_mode = ssl.CERT_REQUIRED
        # As in etcd, each certificate in the file is trusted, whether it is a root or an intermediate.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        _load_authorities(context, options)
    revoked = frozenset[int]()
    if options.client_crl_file:
        content = _content("client-crl-file", options.client_crl_file)
        try:
            revoked = revocation.revoked_serials(content)
        except ValueError as error:
            raise OptionError(f"--client-crl-file: {options.client_crl_file}: {error}") from None
    return Credentials(context, revoked)


def _content(flag: str, name: str) -> bytes:
    try:
        return read_regular(Path(name))
    except OSError as error:
        raise OptionError(f"--{flag}: open {name}: {(error.strerror or str(error)).lower()}") from None


class _EncryptedKeyError(Exception):
    pass


def _no_password() -> str:
    raise _EncryptedKeyError  # without this function OpenSSL would ask at the terminal


def _load_certificate(context: ssl.SSLContext, options: TlsOptions) -> None:
    cert_file, key_file = options.cert_file, options.key_file
    if b"CERTIFICATE-----" not in _content("cert-file", cert_file):
        raise OptionError(f"--cert-file: {cert_file}: tls: failed to find any PEM data in certificate input")
    if b"PRIVATE KEY-----" not in _content("key-file", key_file):
        raise OptionError(f"--key-file: {key_file}: tls: failed to find any PEM data in key input")
    try:
        context.load_cert_chain(cert_file, key_file, _no_password)
    except _EncryptedKeyError:
        raise OptionError(f"--key-file: {key_file} is encrypted; the server needs it without a password") from None
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            text = f"--key-file: {key_file}: tls: private key does not match public key in {cert_file}"
        else:
            text = f"--cert-file, --key-file: cannot use {cert_file} with {key_file}: {reason_of(error)}"
        raise OptionError(text) from None
    except OSError as error:  # the file was removed meanwhile
        raise OptionError(f"--cert-file, --key-file: {(error.strerror or str(error)).lower()}") from None


def _load_authorities(context: ssl.SSLContext, options: TlsOptions) -> None:
    if not options.trusted_ca_file:
        # --client-cert-auth alone: the authorities that the machine trusts.
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        return
    text = _content("trusted-ca-file", options.trusted_ca_file).decode("ascii", "ignore")
    if "CERTIFICATE-----" not in text:
        raise OptionError(f"--trusted-ca-file: no certificates in {options.trusted_ca_file} (PEM is wanted)")
    try:
        context.load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, ssl.SSLError) else str(error)
        raise OptionError(f"--trusted-ca-file: cannot use {options.trusted_ca_file}: {reason}") from None

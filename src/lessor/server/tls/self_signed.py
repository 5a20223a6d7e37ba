# SPDX-License-Identifier: Apache-2.0
"""The certificate of --auto-tls: made at the first start, and kept in the data directory where etcd keeps its own.

Laws
- A certificate that is there is used. A new one is made only when there is none, or when it has expired. The key is
  written to disk first, so a certificate that is there always has its key.
- The certificate names the hosts that the server listens on and advertises, and is its own authority: clients verify
  the server with `--cacert DATA_DIR/fixtures/client/cert.pem`.

The key is of the curve P-256, not of etcd's P-521, which clients built on BoringSSL refuse.
"""

import contextlib
import logging
import os
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lessor.base.clock import wall_clock_ms
from lessor.durable.file_kind import irregular
from lessor.server.options import OptionError, Options

if TYPE_CHECKING:
    from cryptography import x509

log = logging.getLogger("lessor")


def files(options: Options) -> tuple[str, str]:
    """The names of the certificate and key files, which are made now unless they are there. Raises OptionError."""
    folder = Path(options.data_dir, "fixtures", "client").absolute()
    certificate, key = folder / "cert.pem", folder / "key.pem"
    for path in (certificate, key):
        kind = irregular(path, follow=True)
        if kind:
            raise OptionError(f"--auto-tls: {path}: {kind} where a file belongs: remove it, and a new file is made")
    if not (certificate.exists() and key.exists()) or _expired(certificate):
        every = (*options.listen_client_urls, *options.listen_metrics_urls)
        urls = [*(listen.url for listen in every if listen.tls), *options.advertise_client_urls]
        hosts = sorted({host for url in urls if (host := urlsplit(url).hostname)}) or ["localhost"]
        try:
            _make(certificate, key, hosts, options.tls.self_signed_validity_years)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OptionError(f"--auto-tls: cannot write the certificate to {folder}: {reason}") from None
    return str(certificate), str(key)


def _expired(certificate: Path) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # A file that cannot be read is not replaced: the load of the certificates reports the fault.
    with contextlib.suppress(OSError, ValueError):
        context.load_verify_locations(certificate)
    return any(
        ssl.cert_time_to_seconds(str(each["notAfter"])) * 1000 < wall_clock_ms() for each in context.get_ca_certs()
    )


def _make(certificate: Path, key: Path, hosts: list[str], validity_years: int) -> None:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError:
        raise OptionError(
            "--auto-tls: the package cryptography is missing; pip install 'lessor[auto-tls]', or give --cert-file"
        ) from None

    # In whole seconds, like all times in certificates; five minutes ago, for clients whose clock is behind.
    begin = datetime.fromtimestamp(wall_clock_ms() // 1000, UTC) - timedelta(minutes=5)
    end = begin + timedelta(days=365 * validity_years)
    log.warning("automatically generate certificates", extra={"certificate-validity-bound-not-after": str(end)})
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "lessor")])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    signed = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number(), begin, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .sign(private, hashes.SHA256())
    )
    certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_bytes = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(key, key_bytes, mode=0o600)
    _write(certificate, signed.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _general_name(host: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Writes the file in one step: nobody sees half of it, not even after a crash."""
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)
    log.info("created file", extra={"path": str(path)})

# SPDX-License-Identifier: Apache-2.0
"""Certificates for the tests, made while they run: nothing secret lies in the repository and nothing in it expires.

authority = Authority("clients")
files = authority.issue(folder, "alice")          # Files(certificate=..., key=...)
authority.write(folder / "ca.pem")
"""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.now(UTC)
HOSTS = ("localhost", "127.0.0.1")


class Files(NamedTuple):
    """A certificate and its key, in PEM files."""

    certificate: Path
    key: Path


def write_key(path: Path, key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> None:
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, how))


class Authority:
    """A certificate authority: a root, or an intermediate below `parent`."""

    def __init__(self, name: str, parent: "Authority | None" = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = parent or self
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(issuer.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.pem)
        return path

    def certify(
        self,
        key: ec.EllipticCurvePrivateKey,
        name: str,
        hosts: tuple[str, ...] = HOSTS,
        days_left: float = 30,
        serial: int | None = None,
        for_servers_only: bool = False,
    ) -> x509.Certificate:
        """A certificate whose common name is `name` ("" for none); `days_left` below zero: it has expired."""
        usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        if not for_servers_only:
            usages.append(ExtendedKeyUsageOID.CLIENT_AUTH)
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "tests"), *subject]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=20))
            .not_valid_after(NOW + timedelta(days=days_left))
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, folder: Path, name: str, file: str = "", chain: bytes = b"", **details: object) -> Files:
        """A certificate with a new key, as FOLDER/FILE.pem and FOLDER/FILE.key; `chain` is put behind it."""
        folder.mkdir(exist_ok=True)
        files = Files(folder / f"{file or name}.pem", folder / f"{file or name}.key")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.certify(key, name, **details)  # type: ignore[arg-type]
        write_key(files.key, key)
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + chain)
        return files

    def revoke(self, serials: list[int], days_left: float = 30) -> bytes:
        """A revocation list in DER."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(NOW - timedelta(days=20))
            .next_update(NOW + timedelta(days=days_left))
        )
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)

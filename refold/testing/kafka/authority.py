"""A certificate authority of one's own, in a folder: for brokers and clients of tests and trials."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from refold.schemas.files import create_file

LOOPBACK = ("127.0.0.1", "localhost")
USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


class Authority:
    """Signs certificates. What it made is in its folder: ``ca.pem``, and one file with key and certificate for each name.

    Parameters
    ----------
    folder
        Where an authority was before, or will be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = folder / "ca.pem"
        """The authority's own certificate: what others trust."""

        folder.mkdir(parents=True, exist_ok=True)
        if not self.ca.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            name = "Refold's authority for tests"
            certificate = _builder(name, key, timedelta(days=3650), _named(name)).add_extension(
                x509.BasicConstraints(ca=True, path_length=0), critical=True
            )
            _write(folder / "ca.key", key)
            self.ca.write_bytes(certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, hosts: Sequence[str] = LOOPBACK, valid: timedelta = timedelta(days=365)) -> Path:
        """Return a PEM file with a private key and its certificate, made if it is not there.

        Parameters
        ----------
        name
            The common name, and the file's.
        hosts
            Names and addresses that a broker may be reached under with it.
        valid
            For how long from now; less than nothing makes one that has expired.
        """
        path = self._folder / f"{name}.pem"
        if path.exists():
            return path
        key, ca = ec.generate_private_key(ec.SECP256R1()), x509.load_pem_x509_certificate(self.ca.read_bytes())
        builder = _builder(name, key, valid, ca.subject)
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(USAGES), critical=False)
        signing = serialization.load_pem_private_key((self._folder / "ca.key").read_bytes(), None)
        assert isinstance(signing, ec.EllipticCurvePrivateKey)
        _write(path, key, builder.sign(signing, hashes.SHA256()))
        return path


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(name: str, key: ec.EllipticCurvePrivateKey, valid: timedelta, issuer: x509.Name) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=_named(name),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        # A day of room for clocks that are behind, and before what has expired.
        not_valid_before=min(now, now + valid) - timedelta(days=1),
        not_valid_after=now + valid,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate | None = None) -> None:
    """Write a private key, readable by its owner only, with its certificate."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    create_file(path, pem + (certificate.public_bytes(serialization.Encoding.PEM) if certificate else b""))

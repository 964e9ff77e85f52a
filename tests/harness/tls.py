"""A certificate for the test server, signed by a certification authority that exists only for it."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass, field
from typing import Optional

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

VALID_DAYS = 2


@dataclass(frozen=True)
class Certificate:
    """PEM texts: the server's certificate and key, and the authority's certificate, which a client trusts."""

    certificate: str
    key: str = field(repr=False)
    ca: str


def issue_certificate(host: str) -> Certificate:
    """Return a new certificate for localhost, 127.0.0.1 and `host`."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("db_setup test CA", ca_key, None, ca_key)
    certificate = _certificate("localhost", key, ca, ca_key, {"localhost", "127.0.0.1", host})
    return Certificate(
        certificate=_pem(certificate),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        ca=_pem(ca),
    )


_USES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
_OTHER_USES = ("crl_sign", "encipher_only", "decipher_only")
KEY_USAGE_OF_AN_AUTHORITY = x509.KeyUsage(key_cert_sign=True, **dict.fromkeys(_USES + _OTHER_USES, False))


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: Optional[x509.Certificate],
    issuer_key: ec.EllipticCurvePrivateKey,
    hosts: Optional[set[str]] = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # a container's clock may be slow
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    authority = issuer_key.public_key()
    for extension in (  # without which Python 3.13 trusts no certificate
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority),
    ):
        builder = builder.add_extension(extension, critical=False)
    if issuer is None:
        builder = builder.add_extension(KEY_USAGE_OF_AN_AUTHORITY, critical=True)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in sorted(hosts)]), False)
    return builder.sign(issuer_key, hashes.SHA256())


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()

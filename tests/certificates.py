"""A certificate authority for the tests of TLS, and certificates good and bad.

They are made here and not by the program openssl, whose releases differ about what they sign: the newer ones refuse a
certificate that is over before it begins, and an expired one is needed.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)
CA = "gstalk test CA"


def make_certificates(place: Path) -> None:
    """A CA in `ca.crt`, and `NAME.pem` with certificate and key for each way to be right or wrong."""
    authority = _new_key()
    _write(place / "ca", authority, _sign(CA, authority, CA, authority, [], is_ca=True))
    for name, subjects in (
        ("localhost", ["localhost", "under_score.example", "*.wild.example"]),
        ("address", ["127.0.0.1"]),
        ("elsewhere", ["elsewhere.example"]),
        ("client", ["client"]),
        ("expired", ["localhost"]),
    ):
        key = _new_key()
        since = -3 * DAY if name == "expired" else -DAY
        _write(place / name, key, _sign(name, key, CA, authority, subjects, since=since))
    key = _new_key()
    _write(place / "self", key, _sign("localhost", key, "localhost", key, ["localhost", "127.0.0.1"], is_ca=True))


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())  # made in no time, as RSA's are not


def _sign(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuers_key: ec.EllipticCurvePrivateKey,
    subjects: list[str],
    *,
    since: timedelta = -DAY,
    is_ca: bool = False,
) -> x509.Certificate:
    """A certificate that is good for two days."""
    begin = datetime.now(timezone.utc) + since
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + 2 * DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers_key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    if is_ca:
        builder = builder.add_extension(_may_sign(), critical=True)
    if subjects:
        names = x509.SubjectAlternativeName([_subject(each) for each in subjects])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuers_key, hashes.SHA256())


def _may_sign() -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, encipher_only=False, decipher_only=False,
        **dict.fromkeys(others, False),
    )  # fmt: skip


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _subject(text: str) -> Any:
    return x509.IPAddress(ipaddress.ip_address(text)) if text[0].isdigit() else x509.DNSName(text)


def _write(place: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    kept = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    shown = certificate.public_bytes(Encoding.PEM)
    for suffix, text in ((".key", kept), (".crt", shown), (".pem", shown + kept)):
        place.with_suffix(suffix).write_bytes(text)

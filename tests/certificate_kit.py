"""Certificate authorities and what they issue, made on the spot: good, expired, of tomorrow, for another name."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)
PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Pair:
    """A certificate's file and its key's; only the owner can read the key."""

    cert: Path
    key: Path


class Authority:
    """A CA; `ca` is the file with its certificate."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"the authority {name}")])
        now = datetime.now(timezone.utc)
        made = (
            x509.CertificateBuilder(self._name, self._name, self._key.public_key(), x509.random_serial_number())
            .not_valid_before(now - 3650 * DAY).not_valid_after(now + 3650 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        self.ca = directory / f"{name}.pem"
        self.ca.write_bytes(made.public_bytes(PEM))

    def issue(
        self,
        name: str,
        *,
        hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
        begins: timedelta = -DAY,
        ends: timedelta = 365 * DAY,
        cert: Path | None = None,
    ) -> Pair:
        """A certificate for `name`, with a new key.

        Args:
            begins, ends: when it is valid, counted from now.
            cert: where it is written (its key beside it), else below the CA's directory.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(timezone.utc)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = [x509.IPAddress(ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts]
        made = (
            x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now + begins).not_valid_after(now + ends)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        pair = Pair(
            cert or self.directory / f"{name}.crt", (cert or self.directory / f"{name}.crt").with_suffix(".key")
        )
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        pair.cert.write_bytes(made.public_bytes(PEM))
        return pair

"""When X.509 certificates in PEM are valid, read without a cryptography library. Pure; it verifies nothing.

The agent asks this of its own certificates only, to say what is wrong before and after a broker does; whom to trust is
OpenSSL's matter.

Source: RFC 5280, 4.1 (Certificate) and 4.1.2.5 (Validity); X.690, 8.1 (tag and length).
"""

from __future__ import annotations

import base64
import re
from datetime import datetime, timezone
from typing import Final

from agent.values import dataclass

SOON_S: Final = 14 * 24 * 3600.0  # what expires sooner is warned of
_BLOCK: Final = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----\s*(.*?)-----END ", re.DOTALL)
_UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x17, 0x18, 0xA0


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when a certificate is valid, seconds since 1970."""

    begins_s: float
    ends_s: float

    def problem(self, now_s: float) -> str | None:
        """What is wrong with it now, in words after "the certificate"; None: nothing."""
        if now_s > self.ends_s:
            return f"has expired: it was valid until {day(self.ends_s)}, this device's clock says {day(now_s)}"
        if now_s < self.begins_s:
            return f"is not valid yet: it is from {day(self.begins_s)}, this device's clock says {day(now_s)}"
        return None


def day(time_s: float) -> str:
    """A time as a day, UTC; by days, as what is said each day anew in the log is enough."""
    return datetime.fromtimestamp(time_s, timezone.utc).strftime("%Y-%m-%d")


def der_of(pem: bytes) -> list[bytes]:
    """The certificates in a PEM file, in their order.

    Raises:
        ValueError: a block is no base64.
    """
    return [base64.b64decode(b"".join(body.split()), validate=True) for body in _BLOCK.findall(pem)]


def validity(pem: bytes) -> Validity | None:
    """When the first certificate of a PEM file is valid; None where there is none that can be read."""
    try:
        certificates = der_of(pem)
        return _validity(certificates[0]) if certificates else None
    except (ValueError, IndexError, OverflowError):
        return None


def _validity(der: bytes) -> Validity:
    at = _inside(der, _inside(der, 0))  # Certificate, tbsCertificate
    if der[at] == _VERSION:
        at = _after(der, at)
    for _ in ("serialNumber", "signature", "issuer"):
        at = _after(der, at)
    begins = _inside(der, at)
    return Validity(_time(der, begins), _time(der, _after(der, begins)))


def _time(der: bytes, at: int) -> float:
    body = der[_inside(der, at) : _after(der, at)].decode("ascii")
    if der[at] == _UTC_TIME:  # RFC 5280, 4.1.2.5.1: 50 to 99 are of the last century
        body = ("19" if int(body[:2]) >= 50 else "20") + body
    elif der[at] != _GENERALIZED_TIME:
        raise ValueError("no time")
    return datetime.strptime(body, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()


def _inside(der: bytes, at: int) -> int:
    """Where the content of the value at `at` begins."""
    length = der[at + 1]
    return at + 2 + (length & 0x7F if length & 0x80 else 0)


def _after(der: bytes, at: int) -> int:
    """Where the value after the one at `at` begins."""
    begin, length = _inside(der, at), der[at + 1]
    if length & 0x80:
        length = int.from_bytes(der[at + 2 : begin], "big")
    if begin + length > len(der):
        raise ValueError("cut off")
    return begin + length

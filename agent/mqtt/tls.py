"""TLS of a link: what it checks and shows, read anew for each connection, and its failures as errors with a remedy.

TLS 1.2 is the least. The broker of the agent's own (the embedded one) is known by its certificate itself, whatever name
or time is in it. No key and no password gets into a message.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path
from typing import Final

from agent import settings
from agent.errors import AgentError, TransientError
from agent.trust.certificates import Validity, day, der_of, validity
from agent.trust.secret_files import loose

ALPN_PORT: Final = 443
# AWS IoT Core tells MQTT from HTTPS by these on port 443: who shows a certificate, and who logs in with a password.
ALPN_CERTIFICATE: Final = "x-amzn-mqtt-ca"
ALPN_PASSWORD: Final = "mqtt"
# OpenSSL's X509_V_ERR_ numbers, x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _WRONG_NAMES = 9, 10, (62, 64)
# Alerts by which a broker refuses the certificate that it was shown (RFC 8446, 6.2).
_REFUSALS: Final = (
    "UNKNOWN_CA", "BAD_CERTIFICATE", "CERTIFICATE_EXPIRED", "CERTIFICATE_REVOKED", "CERTIFICATE_UNKNOWN",
    "ACCESS_DENIED", "UNSUPPORTED_CERTIFICATE", "DECRYPT_ERROR",
)  # fmt: skip
_VERSIONS: Final = ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL")


def context_of(link: settings.Link) -> ssl.SSLContext | None:
    """What TLS checks and shows; None without TLS. Reads the PEM files.

    Raises:
        TransientError: TLS_FILES, TLS_KEY_MISMATCH, KEY_FILE_LOOSE.
    """
    if not link.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=str(link.ca) if link.ca else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if link.embedded:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # see `check_pin`
        elif link.cert is not None:
            _load_pair(context, link.cert, link.key or link.cert)
    except (OSError, ValueError) as error:
        raise _unusable(link, error) from error
    if link.ca is not None:
        # Python 3.13 began to refuse a CA without a key usage extension, which is what mosquitto's manual makes.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if alpn := alpn_of(link):
        context.set_alpn_protocols([alpn])
    return context


def _load_pair(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    if problem := loose(key):
        raise TransientError("KEY_FILE_LOOSE", f"The private key {problem}")
    context.load_cert_chain(str(cert), str(key), password=_no_password)


def alpn_of(link: settings.Link) -> str | None:
    """What the link says to speak in its TLS handshake; None: nothing."""
    if link.alpn is not None or not link.aws or link.address[1] != ALPN_PORT:
        return link.alpn
    return ALPN_CERTIFICATE if link.cert is not None else ALPN_PASSWORD


def check_pin(link: settings.Link, peer: ssl.SSLObject | None) -> None:
    """That who answers as the embedded broker shows the very certificate that it was given.

    Raises:
        TransientError: TLS_FILES, TLS_UNTRUSTED.
    """
    if not link.embedded or link.cert is None:
        return
    try:
        expected = der_of(link.cert.read_bytes())[0]
    except (OSError, ValueError, IndexError) as error:
        raise _unusable(link, error) from error
    if peer is None or peer.getpeercert(binary_form=True) != expected:
        text = f"What listens on {link.listen} does not show the embedded broker's certificate {link.cert}."
        raise TransientError("TLS_UNTRUSTED", text, "See what else listens there; a renewed one is taken shortly.")


def _unusable(link: settings.Link, error: Exception) -> TransientError:
    if isinstance(error, ssl.SSLError) and "MISMATCH" in (error.reason or ""):
        text = f"The certificate {link.cert} and the key {link.key} of the link {link.name} do not belong together."
        return TransientError("TLS_KEY_MISMATCH", text, "Give the key that the certificate was made for.")
    return TransientError(
        "TLS_FILES",
        f"The certificates of the link {link.name} cannot be used: {reason_of(error)}.",
        "Check ca, cert and key in the settings: readable PEM files, the key without a password.",
    )


def explained(error: Exception, broker: object, certificate: Path | None) -> AgentError | None:
    """What a failure of TLS means; None: it is another's.

    Args:
        certificate: the one that the link shows; None: it has none.
    """
    if isinstance(error, ConnectionResetError):
        return failed(broker, "closed in the middle of the handshake")
    if not isinstance(error, ssl.SSLError):
        return None
    if isinstance(error, ssl.SSLCertVerificationError):
        return _untrusted(error, broker)
    reason = error.reason or ""
    if any(each in reason for each in _VERSIONS):
        text = f"{broker} speaks no version of TLS that this core does ({_words(reason)})."
        return TransientError("TLS_VERSION", text, "Let the broker speak TLS 1.2 or 1.3; older ones are broken.")
    if "NO_APPLICATION_PROTOCOL" in reason:
        text = f"{broker} does not know the protocol that was asked for in the TLS handshake (ALPN)."
        return TransientError("TLS_ALPN_REFUSED", text, "Correct the link's alpn, or leave it out.")
    if "CERTIFICATE_REQUIRED" in reason or ("HANDSHAKE_FAILURE" in reason and certificate is None):
        text = f"{broker} asks for a client certificate, and this link shows none ({_words(reason)})."
        return TransientError("TLS_CERTIFICATE_REQUIRED", text, "Give this core's certificate and key (cert, key).")
    if any(each in reason for each in _REFUSALS):
        return _refused(reason, broker, certificate)
    return failed(broker, reason_of(error))


def failed(broker: object, why: str) -> TransientError:
    """That there is no TLS connection, for a reason without a code of its own."""
    return TransientError(
        "TLS_FAILED",
        f"There is no TLS connection to {broker}: {why}.",
        "Check that the port speaks TLS (usually 8883) and, where it asks for a client certificate, cert and key.",
    )


def _untrusted(error: ssl.SSLCertVerificationError, broker: object) -> AgentError:
    """Why we do not take the broker's certificate."""
    today = day(time.time())
    if error.verify_code == _EXPIRED:
        text = f"The certificate of {broker}, or of who signed it, has expired; this device's clock says {today}."
        return TransientError("TLS_BROKER_EXPIRED", text, "Renew it there; or set this device's clock.")
    if error.verify_code == _NOT_YET_VALID:
        text = f"The certificate of {broker}, or of who signed it, is not valid yet: this device's clock says {today}."
        return TransientError("TLS_BROKER_NOT_YET_VALID", text, "Set this device's clock (NTP); it is likely behind.")
    if error.verify_code in _WRONG_NAMES:
        text = f"The certificate of {broker} is for another name: {error.verify_message.rstrip('.')}."
        return TransientError("TLS_WRONG_NAME", text, "Reach the broker by a name that its certificate holds.")
    return TransientError(
        "TLS_UNTRUSTED",
        f"The certificate of {broker} is not trusted: {error.verify_message.rstrip('.')}.",
        "Give the CA that signed it (ca).",
    )


def _refused(reason: str, broker: object, certificate: Path | None) -> AgentError:
    """Why the broker does not take ours; it says little, so that we look ourselves."""
    if certificate is None:
        return failed(broker, _words(reason))
    now_s = time.time()
    found = _validity(certificate)
    problem = found.problem(now_s) if found else None
    if problem or "CERTIFICATE_EXPIRED" in reason:
        text = f"{broker} refuses this core's certificate {certificate}, which {problem or 'has expired there'}."
        if found and now_s < found.begins_s:
            return TransientError("TLS_CERTIFICATE_NOT_YET_VALID", text, "Set this device's clock (NTP).")
        return TransientError("TLS_CERTIFICATE_EXPIRED", text, "Renew it; it is taken without a restart.")
    return TransientError(
        "TLS_CERTIFICATE_REFUSED",
        f"{broker} refuses this core's certificate {certificate} ({_words(reason)}).",
        "See that a CA which the broker trusts has signed it, and that it was not revoked there.",
    )


def validity_of(link: settings.Link) -> Validity | None:
    """When the certificate that the link shows is valid; None: it shows none. Reads the file."""
    return _validity(link.cert) if link.cert is not None and not link.embedded else None


def _validity(certificate: Path) -> Validity | None:
    try:
        return validity(certificate.read_bytes())
    except OSError:
        return None


def reason_of(error: Exception) -> str:
    """An error's reason as words."""
    if isinstance(error, ssl.SSLError):
        return _words(error.reason or str(error))
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower() + (f" ({error.filename})" if error.filename else "")
    return str(error) or type(error).__name__


def _words(reason: str) -> str:
    return reason.replace("_", " ").lower()


def _no_password() -> str:
    # Without this, OpenSSL would ask for a password on the terminal and stop the agent there.
    return ""

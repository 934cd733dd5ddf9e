"""A broker's reason codes as errors with a code of ours and a remedy. Pure.

Source: MQTT 5, 3.2.2.2 and 3.14.2.1; paho gives 3.1.1's CONNACK codes in MQTT 5's terms.
"""

from __future__ import annotations

from agent.errors import TransientError

_BAD_PROTOCOL = 0x84
_BAD_CLIENT_ID = 0x85
_LOGIN = frozenset((0x86, 0x87, 0x8A, 0x8C))
_GOING_DOWN = frozenset((0x88, 0x89, 0x8B, 0x9F))
_TAKEN_OVER = 0x8E
# A message that is refused with these may be taken later: unspecified, implementation specific, quota exceeded.
FOR_NOW = frozenset((0x80, 0x83, 0x97))
_NAMES = {
    0x00: "normal disconnection",
    0x80: "unspecified error",
    0x81: "malformed packet",
    0x82: "protocol error",
    0x83: "implementation specific error",
    0x86: "bad user name or password",
    0x87: "not authorized",
    0x88: "server unavailable",
    0x89: "server busy",
    0x8A: "banned",
    0x8B: "server shutting down",
    0x8C: "bad authentication method",
    0x8D: "keep alive timeout",
    0x8F: "topic filter invalid",
    0x90: "topic name invalid",
    0x91: "packet identifier in use",
    0x93: "receive maximum exceeded",
    0x95: "packet too large",
    0x96: "message rate too high",
    0x97: "quota exceeded",
    0x98: "administrative action",
    0x99: "payload format invalid",
    0x9A: "retain not supported",
    0x9B: "QoS not supported",
    0x9C: "use another server",
    0x9D: "server moved",
    0x9E: "shared subscriptions not supported",
    0x9F: "connection rate exceeded",
    0xA1: "subscription identifiers not supported",
    0xA2: "wildcard subscriptions not supported",
}


def name_of(reason: int) -> str:
    """A reason code in words."""
    return _NAMES.get(reason, f"reason {reason:#04x}")


def connack_error(reason: int, broker: object, client_id: str) -> TransientError:
    """Why a broker did not accept a CONNECT."""
    if reason == _BAD_PROTOCOL:
        return TransientError("PROTOCOL_REFUSED", f"{broker} refuses this version of MQTT.")
    if reason == _BAD_CLIENT_ID:
        return TransientError(
            "CLIENT_ID_REFUSED",
            f"{broker} refuses the client id {client_id!r}.",
            "Let the broker admit it, or choose another core name.",
        )
    if reason in _LOGIN:
        return TransientError(
            "LOGIN_REFUSED",
            f"{broker} refuses the login of {client_id!r}: {name_of(reason)}.",
            "Check the user name and password, or the client certificate, and what the broker allows them.",
        )
    return TransientError("CONNECT_REFUSED", f"{broker} refuses the connection: {name_of(reason)}.")


def disconnect_error(reason: int, broker: object, client_id: str) -> TransientError:
    """Why a broker ended a connection with a DISCONNECT."""
    if reason == _TAKEN_OVER:
        return TransientError(
            "CONNECTION_TAKEN_OVER",
            f"Another client connected to {broker} with the client id {client_id!r}.",
            "Give each core its own name, and run one agent only for it.",
        )
    if reason in _GOING_DOWN:
        return TransientError("BROKER_GOING_DOWN", f"{broker} ended the connection: {name_of(reason)}.")
    return TransientError(
        "BROKER_DISCONNECTED",
        f"{broker} ended the connection: {name_of(reason)}.",
        "The broker's log may say what it objects to.",
    )

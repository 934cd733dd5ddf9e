"""Secrets at rest: AES-256-GCM under a key of this core, in a file that only the agent's user may read.

    vault/key      32 random bytes, 0600, made when the first secret comes; without it what was sealed is lost

Only the installer and the opener import this: the agent's own process never loads a cryptography library. A sealed
secret is bound to its ARN, so that one cannot be put in another's place. Blocks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agent.deployment import durable
from agent.errors import IntegrityError

NONCE_BYTES: Final = 12
KEY_BYTES: Final = 32
BOUND_TO: Final = b"marram secret v1 "


class Vault:
    """The vault of a state directory.

    Args:
        state: the state directory.
    """

    def __init__(self, state: Path) -> None:
        self._directory = state / "vault"
        self._file = self._directory / "key"

    def seal(self, arn: str, secret: dict[str, Any]) -> bytes:
        """A secret as it may lie on disk; makes the key where there is none.

        Raises:
            OSError: the key cannot be kept.
        """
        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(self._key_or_new()).encrypt(nonce, json.dumps(secret).encode(), _bound_to(arn))

    def open(self, arn: str, sealed: bytes) -> dict[str, Any]:
        """The secret that was sealed.

        Raises:
            IntegrityError: SECRET_UNREADABLE, there is no key, or another one, or the bytes are not what they were.
        """
        try:
            plain = AESGCM(self._file.read_bytes()).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound_to(arn))
            secret = json.loads(plain)
        except (InvalidTag, ValueError, OSError) as error:
            why = (
                "the key of this core's vault is missing" if not self._file.exists() else "it, or the key, was changed"
            )
            text = f"the secret {arn} cannot be opened: {why}"
            raise IntegrityError("SECRET_UNREADABLE", text, "Deploy the group again.") from error
        assert isinstance(secret, dict)
        return secret

    def _key_or_new(self) -> bytes:
        try:
            key = self._file.read_bytes()
            if len(key) == KEY_BYTES:
                return key
        except FileNotFoundError:
            pass
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._directory.chmod(0o700)
        temporary = self._file.with_name(self._file.name + durable.TEMPORARY)
        durable.remove(temporary)
        key = os.urandom(KEY_BYTES)
        with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._file)
        durable.sync(self._directory)
        durable.sync(self._directory.parent)
        return key


def _bound_to(arn: str) -> bytes:
    return BOUND_TO + arn.encode()

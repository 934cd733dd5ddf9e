"""Ed25519 key pairs in files, signing and verifying: the one owner of the library `cryptography`.

For the command line and the verifier, which are processes of their own; the agent never imports it. All blocks.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.errors import ConfigError
from agent.trust.public_keys import MAX_FILE_BYTES, key_id, raw_public_key
from agent.values import dataclass

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
PRIVATE_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of a new pair, and its id."""

    private: Path
    public: Path
    id: str


def make_pair(directory: Path, name: str) -> Pair:
    """Makes NAME.key, which only its owner can read, and NAME.pub.

    Raises:
        ConfigError: KEY_NAME, KEY_EXISTS (nothing is ever written over), KEY_UNWRITABLE.
    """
    if not NAME.fullmatch(name):
        text = f"{name!r} is no name for a key: 1 to 64 of the characters A-Z a-z 0-9 . _ -."
        raise ConfigError("KEY_NAME", text, "Give a name such as cloud, and the folder with --directory.")
    pair = Pair(directory / f"{name}.key", directory / f"{name}.pub", "")
    for file in (pair.private, pair.public):
        if file.exists() or file.is_symlink():
            raise ConfigError("KEY_EXISTS", f"{file} exists.", "Choose another name: keys are never written over.")
    key = Ed25519PrivateKey.generate()
    public = key.public_key()
    form, nothing = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    _write(pair.private, key.private_bytes(serialization.Encoding.PEM, form, nothing), PRIVATE_MODE)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    _write(pair.public, public.public_bytes(serialization.Encoding.PEM, spki), PUBLIC_MODE)
    return Pair(pair.private, pair.public, key_id(public.public_bytes_raw()))


def _write(file: Path, data: bytes, mode: int) -> None:
    """A new file that never had a wider mode; synced, as what it will sign is worth nothing without it."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(descriptor, mode)
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
    except OSError as error:
        text = f"{file} cannot be written: {error.strerror}."
        raise ConfigError("KEY_UNWRITABLE", text, "Name a folder that you can write with --directory.") from error


def load_private(file: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file that only its owner can read.

    Raises:
        ConfigError: KEY_UNREADABLE, KEY_FILE_LOOSE, KEY_INVALID.
    """
    data, mode = _read(file)
    if mode & 0o077:
        text = f"{file} holds a private key and has the mode {mode:04o}: others than its owner can use it."
        raise ConfigError("KEY_FILE_LOOSE", text, f"Run: chmod 600 {file}")
    try:
        key = serialization.load_pem_private_key(data, None)
    except TypeError as error:
        raise _invalid(file, "holds a private key with a passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _invalid(file, "holds no private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _invalid(file, "holds a private key of another kind than Ed25519")
    return key


def id_of_file(file: Path) -> tuple[str, str]:
    """The id of the key in a PEM file, and ``public`` or ``private``.

    Raises:
        ConfigError: as `load_private`.
    """
    data, _ = _read(file)
    if b"PRIVATE KEY-----" in data:
        return id_of(load_private(file)), "private"
    try:
        return key_id(raw_public_key(data)), "public"
    except ValueError as error:
        raise _invalid(file, str(error)) from error


def id_of(key: Ed25519PrivateKey) -> str:
    """The id of a private key's public one."""
    return key_id(key.public_key().public_bytes_raw())


def signer(message: bytes, signatures: Iterable[tuple[str, bytes]], keys: Iterable[bytes]) -> str | None:
    """The id of the first of `keys` (32 bytes each) that made one of `signatures` (key id and bytes) over `message`.

    A signature's key id only says which key is tried first.
    """
    known = [(key_id(raw), raw) for raw in keys]
    pairs = [(hint, value, id, raw) for hint, value in signatures for id, raw in known]
    for _, value, id, raw in sorted(pairs, key=lambda pair: pair[0] != pair[2]):
        try:
            Ed25519PublicKey.from_public_bytes(raw).verify(value, message)
        except (InvalidSignature, ValueError):
            continue
        return id
    return None


def _read(file: Path) -> tuple[bytes, int]:
    try:
        with file.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            return stream.read(MAX_FILE_BYTES), mode
    except OSError as error:
        text = f"The key {file} cannot be read: {error.strerror}."
        remedy = "Name its file, or make a pair with `marram keys new NAME`."
        raise ConfigError("KEY_UNREADABLE", text, remedy) from error


def _invalid(file: Path, text: str) -> ConfigError:
    remedy = "Name a PEM file with an Ed25519 key without passphrase; `marram keys new NAME` makes a pair."
    return ConfigError("KEY_INVALID", f"{file} {text}.", remedy)

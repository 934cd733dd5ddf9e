"""The embedded broker's password file, changed: for the command line. Blocks.

The file is read and written as a whole and put in place by one rename, so that the broker never reads half of it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from agent.errors import ConfigError
from agent.mqtt.access import NAME, OWN_NAME, SALT_BYTES, AccessError, hashed, read_users


def names(file: Path) -> list[str]:
    """Who may log in.

    Raises:
        ConfigError: BROKER_USERS.
    """
    return sorted(_read(file))


def put(file: Path, name: str, password: str) -> bool:
    """Adds a user, or gives one another password; returns whether it is new. Makes the file where there is none.

    Raises:
        ConfigError: BROKER_USERS, BROKER_USER_NAME, BROKER_PASSWORD.
    """
    if not NAME.fullmatch(name) or name == OWN_NAME:
        text = f"{name!r} is no name for a user: 1 to 128 characters without spaces and colons, and not {OWN_NAME}."
        raise ConfigError("BROKER_USER_NAME", text, "Choose another name.")
    if not password:
        raise ConfigError("BROKER_PASSWORD", "The password is empty.", "Type one, or give it on standard input.")
    users = _read(file) if file.exists() else {}
    new = name not in users
    users[name] = hashed(password, secrets.token_bytes(SALT_BYTES))
    _write(file, users)
    return new


def remove(file: Path, name: str) -> None:
    """Removes a user.

    Raises:
        ConfigError: BROKER_USERS, BROKER_USER_NAME where there is no such user.
    """
    users = _read(file)
    if users.pop(name, None) is None:
        text = f"{file} has no user {name!r}."
        raise ConfigError("BROKER_USER_NAME", text, "`marram broker users ls` lists them.")
    _write(file, users)


def _read(file: Path) -> dict[str, str]:
    try:
        return read_users(file.read_text("utf-8"))
    except (OSError, AccessError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        text = f"The password file {file} cannot be used: {why}."
        raise ConfigError("BROKER_USERS", text, "Name another with --file.") from error


def _write(file: Path, users: dict[str, str]) -> None:
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.writelines(f"{name}:{value}\n" for name, value in users.items())
            stream.flush()
            os.fsync(descriptor)
        if os.geteuid() == 0 and file.exists():  # it stays the agent's, whoever changes it
            os.chown(draft, file.stat().st_uid, file.stat().st_gid)
        os.replace(draft, file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        text = f"The password file {file} cannot be written: {error.strerror}."
        raise ConfigError("BROKER_USERS", text, "Name another with --file.") from error

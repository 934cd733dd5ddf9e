"""Files that hold a secret: who else can read them, and passwords in them. Blocks for a read of the local disk.

As ssh does with its keys: what others can read is refused, not used with a warning. A file that somebody else owns may
be readable by its group, as that is how root hands a key to a service's user.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from agent.errors import ConfigError

MAX_PASSWORD_BYTES: Final = 65535  # MQTT's longest


def loose(file: Path) -> str | None:
    """Who else can use the file, as a sentence with the remedy; None: nobody.

    Raises:
        OSError: it cannot be looked at.
    """
    found = os.stat(file)
    mine = found.st_uid == os.geteuid()
    if not found.st_mode & (0o077 if mine else 0o007):
        return None
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    return f"{file} has the mode {mode}: others than its owner can use it; run: chmod {'600' if mine else '640'} {file}"


def password_in(file: Path) -> str:
    """The first line of a file that nobody else can read.

    Raises:
        ConfigError: PASSWORD_FILE, PASSWORD_FILE_LOOSE.
    """
    try:
        problem = loose(file)
        if problem:
            raise ConfigError("PASSWORD_FILE_LOOSE", f"The password file {problem}")
        with file.open("rb") as stream:
            line = stream.read(MAX_PASSWORD_BYTES + 2).splitlines()[:1]
        password = line[0].decode() if line else ""
    except OSError as error:
        text = f"The password file {file} cannot be read: {error.strerror}."
        raise ConfigError("PASSWORD_FILE", text, "Name a file that the agent's user can read.") from error
    except UnicodeDecodeError:
        password = ""
    if not password:
        text = f"The password file {file} holds no password."
        raise ConfigError("PASSWORD_FILE", text, "Write the password into its first line, in UTF-8.")
    return password


def password_from(variable: str) -> str:
    """The password in an environment variable.

    Raises:
        ConfigError: PASSWORD_MISSING.
    """
    password = os.environ.get(variable)
    if not password:
        text = f"The environment variable {variable} with a link's password is not set."
        raise ConfigError("PASSWORD_MISSING", text, "Set it where the agent is started.")
    return password

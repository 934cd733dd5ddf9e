"""What the embedded broker is started with beside its address: its certificate, users and rules, and the agent's login.

A value that goes to the broker's process, through a pipe and not on its command line, where others could read it.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import ssl
from pathlib import Path

from agent.errors import ConfigError
from agent.mqtt.access import OWN_NAME, Access, AccessError, read_rules, read_users
from agent.settings import Link
from agent.trust.secret_files import loose
from agent.values import dataclass


@dataclass(frozen=True, slots=True)
class Guard:
    """See `Link`; all files absolute.

    Attributes:
        secret: the agent's own password, new at each start; None: it needs none.
    """

    cert: str | None = None
    key: str | None = None
    users: str | None = None
    acl: str | None = None
    secret: str | None = dataclasses.field(default=None, repr=False)

    def encoded(self) -> bytes:
        """As it is written to the process."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @staticmethod
    def decoded(data: bytes) -> Guard:
        """What `encoded` gave; of nothing, a guard that lets everybody in."""
        return Guard(**json.loads(data or b"{}"))

    @property
    def files(self) -> tuple[Path, ...]:
        """What may be renewed while the broker runs."""
        return tuple(Path(each) for each in (self.cert, self.key, self.users, self.acl) if each is not None)


def guard_of(link: Link) -> Guard:
    """What the settings say of an embedded broker."""
    cert, key, users, acl = (str(each) if each else None for each in (link.cert, link.key, link.users, link.acl))
    return Guard(cert, key, users, acl, link.password if link.users else None)


def own_login(link: Link) -> Link:
    """The link with a login that nobody else has, where its embedded broker asks for one."""
    if not link.embedded or link.users is None:
        return link
    return dataclasses.replace(link, username=OWN_NAME, password=secrets.token_urlsafe(32))


def access_of(users: str | None, acl: str | None) -> Access:
    """Who may do what. Reads the files.

    Raises:
        ConfigError: BROKER_USERS, BROKER_ACL, PASSWORD_FILE_LOOSE.
    """
    found = rules = None
    if users is not None:
        try:
            if problem := loose(Path(users)):
                raise ConfigError("PASSWORD_FILE_LOOSE", f"The broker's password file {problem}")
            found = read_users(Path(users).read_text("utf-8"))
        except (OSError, AccessError, UnicodeDecodeError) as error:
            text = f"The embedded broker's password file {users} cannot be used: {_why(error)}."
            raise ConfigError("BROKER_USERS", text, "Make it with `marram broker users add NAME`.") from error
    if acl is not None:
        try:
            rules = read_rules(Path(acl).read_text("utf-8"))
        except (OSError, AccessError, UnicodeDecodeError) as error:
            text = f"The embedded broker's access rules {acl} cannot be used: {_why(error)}."
            raise ConfigError(
                "BROKER_ACL", text, "Write them as mosquitto's acl_file; docs/security.md has some."
            ) from error
    return Access(found, rules)


def load_pair(context: ssl.SSLContext, guard: Guard) -> None:
    """Has a server's TLS show the broker's certificate, from now on. Reads the files.

    Raises:
        ConfigError: BROKER_CERTIFICATE, KEY_FILE_LOOSE.
    """
    assert guard.cert is not None
    assert guard.key is not None
    try:
        if problem := loose(Path(guard.key)):
            raise ConfigError("KEY_FILE_LOOSE", f"The private key {problem}")
        context.load_cert_chain(guard.cert, guard.key, password=lambda: "")
    except (OSError, ValueError) as error:
        text = f"The embedded broker's certificate {guard.cert} and key {guard.key} cannot be used: {_why(error)}."
        remedy = "Give PEM files that belong together, the key without a passphrase."
        raise ConfigError("BROKER_CERTIFICATE", text, remedy) from error


def server_tls(guard: Guard) -> ssl.SSLContext | None:
    """TLS 1.2 or later with the broker's certificate; None: it has none.

    Raises:
        ConfigError: as `load_pair`.
    """
    if guard.cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, guard)
    return context


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)

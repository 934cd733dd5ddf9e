"""The embedded broker in topics.yaml: where it listens, and whom it lets in there.

On loopback everybody may come; beyond it only who has a password, over TLS, unless the settings say that they mean it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from agent.errors import ConfigError
from agent.settings import Link, Policy
from agent.settings.file import Problems, Value
from agent.settings.link_files import file_of

BROKER_KEYS = ("listen", "users", "acl", "allow_anonymous", "allow_unencrypted")


def with_broker(link: Link, value: Value, keys: Mapping[str, Value], base: Path) -> Link:
    """The link with its embedded broker's settings; of any other link these are problems."""
    given = [keys[key] for key in BROKER_KEYS if key in keys]
    if not link.embedded:
        for each in given:
            each.problem(f"`{each.name}` is about the embedded broker, and this link's broker is not embedded")
        return link
    link = _with_listen(link, keys.get("listen"))
    link = dataclasses.replace(
        link,
        users=file_of(keys["users"], base) if "users" in keys else None,
        acl=file_of(keys["acl"], base) if "acl" in keys else None,
    )
    if link.acl is not None and link.users is None:
        keys["acl"].problem("`acl` says what users may do: give `users`, too")
    anonymous, unencrypted = (bool(keys[key].flag()) if key in keys else False for key in BROKER_KEYS[3:])
    if not is_loopback(link.address[0]):
        _check_openness(link, keys.get("listen", value), anonymous=anonymous, unencrypted=unencrypted)
    _check_access(link, keys)
    return link


def _with_listen(link: Link, listen: Value | None) -> Link:
    written = listen.text() if listen else None
    if listen is None or written is None:
        return link
    try:
        parts = urlsplit(f"//{written}")
        good = bool(parts.hostname and parts.port and parts.netloc == written and "@" not in written)
    except ValueError:
        good = False
    if not good:
        listen.problem(f"`{listen.name}` must be HOST:PORT, for example 127.0.0.1:1883")
        return link
    return dataclasses.replace(link, listen=written)


def _check_openness(link: Link, listen: Value, *, anonymous: bool, unencrypted: bool) -> None:
    """Refuses a broker that others reach and that asks for no password, or speaks without TLS, unless that is meant."""
    if link.users is None and not anonymous:
        listen.problem(
            f"whoever reaches {link.listen} could publish and read: give `users` (`marram broker users add NAME`),"
            " or say `allow_anonymous: true`"
        )
    if link.cert is None and not unencrypted:
        listen.problem(
            f"what is said on {link.listen} could be read on the way, passwords too: give the broker's `cert` and"
            " `key`, or say `allow_unencrypted: true`"
        )
    if link.users is None and anonymous:
        listen.problems.warn(listen.line, f"whoever reaches {link.listen} may publish and read on the embedded broker")


def _check_access(link: Link, keys: Mapping[str, Value]) -> None:
    if link.users is None and link.acl is None:
        return
    from agent.mqtt.guard import access_of  # ssl, and with it OpenSSL: only where it is used

    for key, users, acl in (("users", link.users, None), ("acl", None, link.acl)):
        try:
            access_of(str(users) if users else None, str(acl) if acl else None)
        except ConfigError as error:
            keys[key].unready(error.text)


def check_who_may_deploy(local: Link, cloud: Link | None, policy: Policy, line: int, problems: Problems) -> None:
    """Warns where deployments come over the embedded broker and every user of it may send one."""
    open_to_others = local.users is not None or not is_loopback(local.address[0])
    if cloud is None and local.embedded and open_to_others and local.acl is None and not policy.trusted_keys:
        text = "whoever is let in by the embedded broker may deploy: give `acl`, `policy.trusted_keys` or `links.cloud`"
        problems.warn(line, text)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

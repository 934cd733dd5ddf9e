"""The `links` of topics.yaml: where the brokers are and how to reach them.

A credential never gets into a problem's text: what is wrong with a url is said without the url.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from agent.settings import EMBEDDED, Link
from agent.settings.embedded import is_loopback, with_broker
from agent.settings.file import Problems, Value
from agent.settings.link_files import with_credentials, with_files

KEYS = (
    "url",
    "listen",
    "ca",
    "cert",
    "key",
    "username",
    "password",
    "password_file",
    "password_env",
    "alpn",
    "users",
    "acl",
    "allow_anonymous",
    "allow_unencrypted",
    "keepalive_s",
)
PORTS = {"mqtt": 1883, "mqtts": 8883}
HOST = re.compile(r"[\w.:%-]+")
SAME = "local"  # `cloud: local`: one connection for both


def read_links(value: Value | None, base: Path, problems: Problems) -> tuple[Link, Link | None]:
    """The local link and the cloud link; None for the latter where one connection is both (the default)."""
    keys = value.mapping(("local", "cloud")) if value else {}
    local = Link("local", EMBEDDED)
    if "local" in keys:
        local = _link("local", keys["local"], base, problems)
    if "cloud" not in keys or _is_same(keys["cloud"]):
        return local, None
    return local, _link("cloud", keys["cloud"], base, problems)


def _keys_of(value: Value) -> dict[str, Value]:
    """A link's keys; a link that is one word is its url."""
    return value.mapping(KEYS) if value.is_mapping else {"url": value}


def _is_same(value: Value) -> bool:
    keys = _keys_of(value)
    same = "url" in keys and keys["url"].word == SAME
    if same and len(keys) > 1:
        value.problem("`cloud: local` is the local link's connection: its other keys stand in `links.local`")
    return same


def _link(name: str, value: Value, base: Path, problems: Problems) -> Link:
    keys = _keys_of(value)
    link = _reach(name, value, keys.get("url"))
    if link is None:
        return Link(name, "mqtt://nowhere:1883")  # the problem is noted; the rest is still checked
    link = with_credentials(link, value, keys, base)
    link = with_files(link, keys, base)
    link = with_broker(link, value, keys, base)
    if "keepalive_s" in keys:
        link = dataclasses.replace(link, keepalive_s=keys["keepalive_s"].integer(5, 65535) or link.keepalive_s)
    if (link.password or link.password_file or link.password_env) and not link.tls and not is_loopback(link.address[0]):
        problems.warn(value.line, f"the password of `links.{name}` travels unencrypted: prefer mqtts://")
    return link


def _reach(name: str, link: Value, url: Value | None) -> Link | None:
    if url is None:
        if link.is_mapping:
            link.problem(f"`url` is missing in `links.{name}`")
        return None
    written = url.text()
    if written is None:
        return None
    if written == EMBEDDED:
        return _embedded(name, url)
    try:
        parts = urlsplit(written)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        url.problem(f"`links.{name}` has a url that cannot be read: {error}")
        return None
    beyond = parts.path.strip("/") + parts.query + parts.fragment
    if parts.scheme not in PORTS or not host or not HOST.fullmatch(host) or port == 0 or beyond:
        url.problem(f"`links.{name}` must be {_choices(name)}")
        return None
    shown = f"[{host}]" if ":" in host else host
    return Link(
        name,
        f"{parts.scheme}://{shown}:{port or PORTS[parts.scheme]}",
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


def _embedded(name: str, url: Value) -> Link | None:
    if name == "local":
        return Link(name, EMBEDDED)
    url.problem("only the local broker can be embedded; `cloud: local` makes it the cloud's too")
    return None


def _choices(name: str) -> str:
    word = "`embedded`" if name == "local" else "`local`"
    return f"{word}, mqtt://HOST:PORT or mqtts://HOST:PORT"

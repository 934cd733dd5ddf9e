"""The `links` of topics.yaml: where the brokers are and how to reach them.

A credential never gets into a problem's text: what is wrong with a url is said without the url.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import ssl
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

from agent.certificates import SOON_S, day, validity
from agent.errors import ConfigError
from agent.secret_files import loose, password_from, password_in
from agent.settings import EMBEDDED, Link
from agent.settings.file import Problems, Value

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
    "keepalive_s",
)
TLS_KEYS = ("ca", "cert", "key")
PORTS = {"mqtt": 1883, "mqtts": 8883}
ALPN = re.compile(r"[!-~]{1,255}")
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
    link = _with_listen(link, keys.get("listen"))
    link = _with_credentials(link, value, keys, base)
    link = _with_files(link, keys, base)
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


def _with_listen(link: Link, listen: Value | None) -> Link:
    if listen is None:
        return link
    if not link.embedded:
        listen.problem(f"`{listen.name}` says where an embedded broker listens, and this link's broker is not embedded")
        return link
    written = listen.text()
    try:
        parts = urlsplit(f"//{written or ''}")
        good = bool(parts.hostname and parts.port and parts.netloc == written and "@" not in written)
    except ValueError:
        good = False
    if written is None or not good:
        listen.problem(f"`{listen.name}` must be HOST:PORT, for example 127.0.0.1:1883")
        return link
    if not is_loopback(parts.hostname or ""):
        listen.problems.warn(listen.line, f"whoever reaches {written} may publish and read on the embedded broker")
    return dataclasses.replace(link, listen=written)


def _with_credentials(link: Link, value: Value, keys: dict[str, Value], base: Path) -> Link:
    username, password = link.username, link.password
    if "username" in keys:
        username = keys["username"].text()
    if "password" in keys:
        password = keys["password"].text()
    file = _file(keys["password_file"], base) if "password_file" in keys else None
    variable = keys["password_env"].text() if "password_env" in keys else None
    given = [each for each in (password, file, variable) if each is not None]
    if len(given) > 1:
        value.problem(f"`links.{link.name}` has more than one password; leave one")
    if given and username is None:
        value.problem(f"`links.{link.name}` has a password and no username; MQTT 3.1.1 wants both")
    if link.embedded and (username or given):
        value.problem("the embedded broker takes no username and no password: the agent has its own login there")
    _check_password(file, variable, keys)
    return dataclasses.replace(link, username=username, password=password, password_file=file, password_env=variable)


def _check_password(file: Path | None, variable: str | None, keys: dict[str, Value]) -> None:
    try:
        if file is not None:
            password_in(file)
    except ConfigError as error:
        keys["password_file"].unready(error.text)
    try:
        if variable is not None:
            password_from(variable)
    except ConfigError as error:
        keys["password_env"].problems.warn(keys["password_env"].line, error.text)


def _with_files(link: Link, keys: dict[str, Value], base: Path) -> Link:
    files = {key: file for key in TLS_KEYS if key in keys and (file := _file(keys[key], base)) is not None}
    if ("cert" in files) != ("key" in files):
        present = keys["cert" if "cert" in files else "key"]
        present.problem(f"`links.{link.name}` needs both `cert` and `key`, or neither")
    link = dataclasses.replace(link, ca=files.get("ca"), cert=files.get("cert"), key=files.get("key"))
    for key in files if not link.tls else ():
        keys[key].problem(f"`{keys[key].name}` is of use with mqtts:// only")
    if link.embedded and link.ca is not None:
        keys["ca"].problem("the embedded broker asks nobody for a certificate; give `users`, or run mosquitto")
    if link.tls:
        _check_files(files, keys)
    return _with_alpn(link, keys.get("alpn"))


def _with_alpn(link: Link, value: Value | None) -> Link:
    alpn = value.text() if value else None
    if value is None or alpn is None:
        return link
    if not link.url.startswith("mqtts:") or not ALPN.fullmatch(alpn):
        value.problem(f"`{value.name}` is a word that a mqtts:// broker knows, such as x-amzn-mqtt-ca")
    return dataclasses.replace(link, alpn=alpn)


def _file(value: Value, base: Path) -> Path | None:
    written = value.text()
    return Path(os.path.abspath(base / os.path.expanduser(written))) if written is not None else None


def _check_files(files: dict[str, Path], keys: dict[str, Value]) -> None:
    readable = {key for key, file in files.items() if _is_readable(file, keys[key])}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if "ca" in readable:
        try:
            context.load_verify_locations(files["ca"])
            _check_time(files["ca"], keys["ca"])
        except ssl.SSLError:
            keys["ca"].unready(f"{files['ca']} holds no PEM certificate")
    if "key" in readable and (text := loose(files["key"])):
        keys["key"].unready(f"the key {text}")
    if {"cert", "key"} <= readable:
        try:
            # Without the function OpenSSL would ask for the password of an encrypted key on the terminal.
            context.load_cert_chain(files["cert"], files["key"], password=lambda: "")
            _check_time(files["cert"], keys["cert"])
        except (ssl.SSLError, ValueError) as error:
            keys["cert"].unready(f"{files['cert']} and {files['key']} {_why(error)}")


def _check_time(file: Path, value: Value) -> None:
    """Notes what is over, and warns of what soon is."""
    found, now_s = validity(file.read_bytes()), time.time()
    if found is None:
        return
    if problem := found.problem(now_s):
        value.unready(f"the certificate {file} {problem}")
    elif found.ends_s - now_s < SOON_S:
        value.problems.warn(value.line, f"the certificate {file} is valid until {day(found.ends_s)} only: renew it")


def _is_readable(file: Path, value: Value) -> bool:
    try:
        with file.open("rb"):
            return True
    except OSError as error:
        value.unready(f"the certificate or key {file} cannot be read: {error.strerror}")
        return False


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None) or ""
    if "MISMATCH" in reason:
        return "do not belong together"
    return "are no PEM certificate with its key (a key with a passphrase cannot be used)"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

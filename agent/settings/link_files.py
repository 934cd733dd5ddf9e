"""The files that a link of topics.yaml names: certificates, keys and passwords, looked at here, read at each connect.

What is wrong with them keeps a link from connecting, and not the agent from working; see `Problems.unready`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from pathlib import Path

from agent.errors import ConfigError
from agent.settings import Link
from agent.settings.file import Value
from agent.trust.secret_files import loose, password_from, password_in

TLS_KEYS = ("ca", "cert", "key")
ALPN = re.compile(r"[!-~]{1,255}")


def with_credentials(link: Link, value: Value, keys: dict[str, Value], base: Path) -> Link:
    """The link with whom it logs in as."""
    username, password = link.username, link.password
    if "username" in keys:
        username = keys["username"].text()
    if "password" in keys:
        password = keys["password"].text()
    file = file_of(keys["password_file"], base) if "password_file" in keys else None
    variable = keys["password_env"].text() if "password_env" in keys else None
    given = [each for each in (password, file, variable) if each is not None]
    if len(given) > 1:
        value.problem(f"`links.{link.name}` has more than one password; leave one")
    if given and username is None:
        value.problem(f"`links.{link.name}` has a password and no username; MQTT 3.1.1 wants both")
    if link.embedded and (username or given):
        value.problem("the embedded broker takes no username and no password: the agent has its own login there")
    if password is not None and (text := loose(value.problems.file)):
        value.problems.warn(value.line, f"`links.{link.name}` has a password, and {text}; or give `password_file`")
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


def with_files(link: Link, keys: dict[str, Value], base: Path) -> Link:
    """The link with its certificates, and what it asks for in the TLS handshake."""
    files = {key: file for key in TLS_KEYS if key in keys and (file := file_of(keys[key], base)) is not None}
    if ("cert" in files) != ("key" in files):
        present = keys["cert" if "cert" in files else "key"]
        present.problem(f"`links.{link.name}` needs both `cert` and `key`, or neither")
    link = dataclasses.replace(link, ca=files.get("ca"), cert=files.get("cert"), key=files.get("key"))
    if link.embedded and link.ca is not None:
        keys["ca"].problem("the embedded broker asks nobody for a certificate; give `users`, or run mosquitto")
    for key in files if not link.tls and not link.embedded else ():
        keys[key].problem(f"`{keys[key].name}` is of use with mqtts:// only")
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


def file_of(value: Value, base: Path) -> Path | None:
    """The file that a value names, absolute."""
    written = value.text()
    return Path(os.path.abspath(base / os.path.expanduser(written))) if written is not None else None


def _check_files(files: dict[str, Path], keys: dict[str, Value]) -> None:
    import ssl  # only where a link is encrypted

    readable = {key for key, file in files.items() if _is_readable(file, keys[key])}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if "ca" in readable:
        try:
            context.load_verify_locations(files["ca"])
            _check_time(files["ca"], keys["ca"])
        except ssl.SSLError:
            keys["ca"].unready(f"{files['ca']} holds no PEM certificate")
    if {"cert", "key"} <= readable:
        check_pair(keys["cert"], files["cert"], files["key"])


def check_pair(value: Value, cert: Path, key: Path) -> None:
    """Notes what is wrong with a certificate and its key."""
    import ssl  # only where there is one

    try:
        if text := loose(key):
            value.unready(f"the key {text}")
        # Without the function OpenSSL would ask for the password of an encrypted key on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password=lambda: "")
        _check_time(cert, value)
    except (ssl.SSLError, ValueError) as error:
        value.unready(f"{cert} and {key} {_why(error)}")
    except OSError as error:
        value.unready(f"the certificate {cert} or its key {key} cannot be read: {error.strerror}")


def _check_time(file: Path, value: Value) -> None:
    """Notes what is over, and warns of what soon is."""
    from agent.trust.certificates import SOON_S, day, validity  # 2 ms: only where a link is encrypted

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

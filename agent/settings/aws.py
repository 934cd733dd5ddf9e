"""The section `aws` of topics.yaml: AWS credentials for the thing's certificate."""

from __future__ import annotations

import re
from pathlib import Path

from agent.settings import AwsRole, Link
from agent.settings.file import Value
from agent.settings.link_files import check_pair, file_of

KEYS = ("credential_endpoint", "role_alias", "thing", "cert", "key", "ca")
ENDPOINT = re.compile(r"(?:https://)?([A-Za-z0-9.-]+(?::[0-9]{1,5})?)/?")
ALIAS = re.compile(r"[\w=,@-]{1,128}")
THING = re.compile(r"[A-Za-z0-9:_-]{1,128}")


def read_aws(value: Value | None, core: str, link: Link, base: Path) -> AwsRole | None:
    """The role that a core's certificate stands for.

    Args:
        link: the one whose certificate is used where the section names none.
    """
    if value is None:
        return None
    keys = value.mapping(KEYS)
    endpoint = _match(keys, "credential_endpoint", ENDPOINT, "the host of `aws iot describe-endpoint`", value)
    alias = _match(keys, "role_alias", ALIAS, "a role alias of AWS IoT", value)
    thing = _match(keys, "thing", THING, "a thing's name", value) if "thing" in keys else core
    files = {key: file_of(keys[key], base) for key in ("ca", "cert", "key") if key in keys}
    mine = {} if link.embedded else {"cert": link.cert, "key": link.key}
    cert, key = (files.get(each) or mine.get(each) for each in ("cert", "key"))
    if ("cert" in files) != ("key" in files):
        value.problem("`aws` needs both `cert` and `key`, or neither")
    if cert is None or key is None:
        value.problem("`aws` needs a certificate: give `cert` and `key` here or on the cloud link")
        return None
    if "cert" in files:
        check_pair(keys["cert"], cert, key)
    if endpoint is None or alias is None or thing is None:
        return None
    ca = files.get("ca") or (link.ca if link.aws else None)
    return AwsRole(endpoint, alias, thing, str(cert), str(key), str(ca) if ca else None)


def _match(keys: dict[str, Value], key: str, shape: re.Pattern[str], what: str, value: Value) -> str | None:
    if key not in keys:
        value.problem(f"`{key}` is missing in `aws`")
        return None
    text = keys[key].text()
    found = shape.fullmatch(text) if text is not None else None
    if text is not None and found is None:
        keys[key].problem(f"`{keys[key].name}` must be {what}")
    return (found[1] if found.groups() else found[0]) if found else None

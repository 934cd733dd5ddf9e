"""topics.yaml to `Settings`: each key, its default and what it may be. docs/settings.md is written from this.

What holds between values (twice the same, cycles, a provider's limits) is agent.settings.rules' matter.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING

from agent.routing.subscriptions import SHADOWS
from agent.routing.topics import filter_problem, name_problem
from agent.settings import Policy, Settings, Subscription, Topics, TrustedKey, rules
from agent.settings.aws import read_aws
from agent.settings.embedded import check_who_may_deploy
from agent.settings.file import Problems, Value, read
from agent.settings.limits import (
    read_answers,
    read_capture,
    read_fetch,
    read_quotas,
    read_retention,
    read_spool,
    read_unpack,
)
from agent.settings.links import read_links

if TYPE_CHECKING:
    from agent.yaml_nodes import Read

ID = re.compile(r"[A-Za-z0-9:_-]{1,128}")
KEYS = (
    "core",
    "state",
    "functions",
    "links",
    "topics",
    "subscriptions",
    "policy",
    "jobs",
    "aws",
    "fetch",
    "unpack",
    "retention",
    "spool",
    "answers",
    "capture",
)
JOBS_KEYS = ("thing",)
POLICY_KEYS = (
    "sources",
    "allow_dotted_buckets",
    "destinations",
    "interpreters",
    "trusted_keys",
    "allow_unsigned_code",
    "allow_root",
    "local",
    "quotas",
)
SOURCE_KINDS = ("s3://", "https://", "http://", "file:///", "arn:", "*")
TEMPLATES = {
    "deployments": ("marram/{core}/deployments", ("core",)),
    "deployment_status": ("marram/{core}/deployments/{deployment}/status", ("core", "deployment")),
    "state": ("marram/{core}/state", ("core",)),
    "capture": ("marram/{core}/capture/{function}", ("core", "function", "resource", "deployment")),
    "errors": ("marram/{core}/errors/{function}", ("core", "function")),
}
_NO_CORE = "core"  # stands in where the name is missing, so that the rest can be checked


def load(file: Path, *, strict: bool = True, begun: Read | None = None) -> Settings:
    """The settings in `file`, wholly checked. Blocks; reads the certificates that the file names, too.

    Args:
        begun: gives what is in `file`, where it is being read already.
        strict: whether certificates and keys that cannot be used are problems, or warnings: an agent works on without
            that link, and takes them once they are mended.

    Raises:
        ConfigError: BAD_SETTINGS with every problem and its line; SETTINGS_UNREADABLE where there is no such file.
    """
    file = Path(os.path.abspath(file))
    problems = Problems(file, strict=strict)
    root = read(file, problems, begun)
    settings = _settings(root, file, problems) if root is not None else None
    problems.raise_if_any()
    assert settings is not None  # no root is a problem, and was raised
    return settings


def _settings(root: Value, file: Path, problems: Problems) -> Settings:
    keys = root.mapping(KEYS)
    core = _core(root, keys.get("core"))
    local, cloud = read_links(keys.get("links"), file.parent, problems)
    topics = _topics(keys.get("topics"), core)
    found = [pair for item in _items(keys, "subscriptions") if (pair := _subscription(item)) is not None]
    policy = _policy(keys.get("policy"), file.parent)
    rules.check_subscriptions(found, local, cloud, problems)
    rules.check_own_topics(topics, keys.get("topics", root).line, problems)
    jobs = _jobs(keys.get("jobs"), core)
    if jobs is not None and (cloud or local).embedded:
        keys["jobs"].problem("the embedded broker carries no AWS IoT Jobs; name a cloud broker in `links.cloud`")
    links_line = keys.get("links", root).line
    check_who_may_deploy(local, cloud, policy, links_line, problems)
    rules.check_aws_limits(found, topics, local, cloud, jobs, links_line, problems)
    return Settings(
        file=file,
        core=core,
        state=_state(keys.get("state"), file.parent),
        functions=_functions(keys.get("functions"), file.parent),
        local=local,
        cloud=cloud,
        topics=topics,
        subscriptions=tuple(subscription for _, subscription in found),
        policy=policy,
        warnings=problems.warnings,
        jobs=jobs,
        aws=read_aws(keys.get("aws"), core, cloud or local, file.parent),
        fetch=read_fetch(keys.get("fetch")),
        unpack=read_unpack(keys.get("unpack")),
        retention=read_retention(keys.get("retention")),
        spool=read_spool(keys.get("spool")),
        answers=read_answers(keys.get("answers")),
        capture=read_capture(keys.get("capture"), aws=(cloud or local).aws),
    )


def _jobs(value: Value | None, core: str) -> str | None:
    """The thing's name, or None where Jobs are not listened to."""
    if value is None:
        return None
    if not value.is_mapping:
        return core if value.flag() else None
    keys = value.mapping(JOBS_KEYS)
    thing = keys["thing"].text() if "thing" in keys else core
    if thing is not None and not ID.fullmatch(thing):
        keys["thing"].problem(f"`jobs.thing` is {thing!r}; it must be 1 to 128 of the characters A-Z a-z 0-9 : _ -")
        return None
    return thing


def _core(root: Value, value: Value | None) -> str:
    if value is None:
        root.problem("`core` is missing: the name of this device, for example `core: press-7`")
        return _NO_CORE
    name = value.text()
    if name is not None and not ID.fullmatch(name):
        value.problem(f"`core` is {name!r}; it must be 1 to 128 of the characters A-Z a-z 0-9 : _ -")
        return _NO_CORE
    return name or _NO_CORE


def _state(value: Value | None, base: Path) -> Path:
    return absolute((value.text() if value else None) or "state", base)


def _functions(value: Value | None, base: Path) -> tuple[Path, ...]:
    if value is None:
        return (absolute("functions", base),)
    folders = [(item, absolute(text, base)) for item, text in value.texts()]
    for item, folder in folders:
        if not folder.is_dir():
            item.problems.warn(item.line, f"there is no folder {folder}")
    return tuple(folder for _, folder in folders)


def _topics(value: Value | None, core: str) -> Topics:
    given = value.mapping(TEMPLATES) if value else {}
    return Topics(**{key: _template(given.get(key), key, core) for key in TEMPLATES})


def _template(value: Value | None, key: str, core: str) -> str:
    default, names = TEMPLATES[key]
    template = (value.text() if value else None) or default
    if value is not None and (problem := _template_problem(template, names)):
        value.problem(f"`{value.name}`: {problem}")
        template = default
    return template.replace("{core}", core)


def _template_problem(template: str, names: tuple[str, ...]) -> str | None:
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        return f"the braces in {template!r} do not pair up"
    for _, name, spec, conversion in parts:
        if name is not None and (name not in names or spec or conversion):
            return f"{{{name}}} is not filled in here, only " + ", ".join(f"{{{each}}}" for each in names)
    if "{{" in template or "}}" in template:
        return f"the braces in {template!r} do not pair up"
    return name_problem(template)


def _subscription(item: Value) -> tuple[int, Subscription] | None:
    keys = item.mapping(("source", "subject", "target"))
    if not item.is_mapping:
        return None
    for key in ("source", "subject", "target"):
        if key not in keys:
            item.problem(f"`{key}` is missing in `{item.name}`")
    source, target = _end(keys.get("source")), _end(keys.get("target"))
    subject = _subject(keys.get("subject"))
    if source is None or subject is None or target is None:
        return None
    return item.line, Subscription(source, subject, target)


def _end(value: Value | None) -> str | None:
    end = value.text() if value else None
    if value is None or end is None or end in ("local", "cloud", SHADOWS):
        return end
    if end.startswith("function:") and ID.fullmatch(end[len("function:") :]):
        return end
    ends = f"`local`, `cloud`, `function:ID` or `{SHADOWS}` (ID of A-Z a-z 0-9 : _ -)"
    value.problem(f"`{value.name}` is {end!r}; it must be {ends}")
    return None


def _subject(value: Value | None) -> str | None:
    subject = value.text() if value else None
    if value is None or subject is None:
        return None
    problem = filter_problem(subject)
    if problem:
        value.problem(problem)
        return None
    return subject


def _policy(value: Value | None, base: Path) -> Policy:
    keys = value.mapping(POLICY_KEYS) if value else {}
    interpreters = keys["interpreters"].mapping() if "interpreters" in keys else {}
    return Policy(
        sources=tuple(text for item, text in _texts(keys, "sources") if _source_is_good(item, text)),
        destinations=tuple(
            text.rstrip("/") for item, text in _texts(keys, "destinations") if _destination_is_good(item, text)
        ),
        interpreters={
            name: str(absolute(path, base)) for name, each in interpreters.items() if (path := each.text()) is not None
        },
        trusted_keys=tuple(
            key
            for item, text in _texts(keys, "trusted_keys")
            if (key := _trusted_key(item, absolute(text, base))) is not None
        ),
        allow_dotted_buckets=_flag(keys, "allow_dotted_buckets"),
        allow_unsigned_code=_flag(keys, "allow_unsigned_code"),
        allow_root=_flag(keys, "allow_root"),
        local=tuple(text for item, text in _texts(keys, "local") if _local_is_good(item, text)),
        quotas=read_quotas(keys.get("quotas")),
    )


def _source_is_good(item: Value, pattern: str) -> bool:
    if pattern.startswith(SOURCE_KINDS):
        return True
    item.problem(
        f"`{item.name}` is {pattern!r}, which no source can match;"
        " write s3://BUCKET/*, https://HOST/*, file:///DIR/* or arn:*"
    )
    return False


def _local_is_good(item: Value, pattern: str) -> bool:
    if pattern.startswith("/") and os.path.normpath(pattern) == pattern:
        return True
    item.problem(
        f"`{item.name}` is {pattern!r}, which no device or volume can match; write /dev/video* or /srv/data/*,"
        " absolute and without `..`"
    )
    return False


def _destination_is_good(item: Value, folder: str) -> bool:
    if folder.startswith("/") and folder.strip("/") and os.path.normpath(folder) == folder.rstrip("/"):
        return True
    item.problem(f"`{item.name}` is {folder!r}; it must be an absolute folder other than /, without `..`")
    return False


def _trusted_key(item: Value, file: Path) -> TrustedKey | None:
    from agent.trust.public_keys import MAX_FILE_BYTES, raw_public_key  # 2 ms, with hashlib: only where there is one

    try:
        with file.open("rb") as stream:
            mode, data = os.fstat(stream.fileno()).st_mode, stream.read(MAX_FILE_BYTES)
    except OSError as error:
        item.problem(f"the key {file} cannot be read: {error.strerror}")
        return None
    try:
        key = TrustedKey(file, raw_public_key(data))
    except ValueError as error:
        item.problem(f"the key {file} {error}")
        return None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        text = f"others can change the key {file}, and so who is trusted; run: chmod go-w {file}"
        item.problems.warn(item.line, text)
    return key


def _items(keys: dict[str, Value], key: str) -> list[Value]:
    return keys[key].items() if key in keys else []


def _texts(keys: dict[str, Value], key: str) -> list[tuple[Value, str]]:
    return keys[key].texts() if key in keys else []


def _flag(keys: dict[str, Value], key: str) -> bool:
    return bool(keys[key].flag()) if key in keys else False


def absolute(path: str, base: Path) -> Path:
    """`path` below `base` unless it is absolute already. Links stay: the python of a venv is one."""
    return Path(os.path.abspath(base / os.path.expanduser(path)))

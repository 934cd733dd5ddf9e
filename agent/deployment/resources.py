"""Reads a document's Resources: V1's shapes and rules for machine-learning resources, and this project's own sources.

Pure. Every problem is noted, none ends the reading. What V1 has and is not built yet is noted as NOT_SUPPORTED.
"""

from __future__ import annotations

import posixpath
from typing import Final
from urllib.parse import urlsplit

from agent.deployment.definition import (
    FileSource,
    HealthCheck,
    HttpsSource,
    LocalResource,
    Owner,
    Resource,
    S3Source,
    SageMakerSource,
    SecretResource,
    Source,
)
from agent.deployment.fields import Fields, shown
from agent.deployment.health import read_health
from agent.deployment.local_resources import GROUP, KINDS, read_local
from agent.deployment.model_runtimes import ModelRuntime, read_runtime
from agent.deployment.secret_resources import SECRET, read_secret

ID: Final = r"[A-Za-z0-9:_-]{1,128}"
ID_WORDS: Final = "1 to 128 of the characters A-Z a-z 0-9 : _ -"
DIGEST: Final = r"sha256:[0-9a-f]{64}"
DIGEST_WORDS: Final = '"sha256:" and 64 lower-case hex digits'
MAX_GID: Final = 2**32 - 2
MAX_RESOURCES: Final = 200  # V1: resources a group
# Whether a bucket's name may hold a dot is the policy's matter: V1 refuses it, as it does not go with TLS host names.
S3_URI: Final = r"s3://(?P<bucket>[a-z0-9](?![a-z0-9.-]*[.][.])[a-z0-9.-]{1,61}[a-z0-9])/(?P<key>.+)"
JOB_ARN: Final = r"arn:aws[a-z-]*:sagemaker:[a-z0-9-]{1,32}:[0-9]{12}:training-job/[a-zA-Z0-9](-?[a-zA-Z0-9]){0,62}"
JOB_ARN_WORDS: Final = 'a training job\'s ARN such as "arn:aws:sagemaker:eu-west-1:123456789012:training-job/NAME"'

S3: Final = "S3MachineLearningModelResourceData"
SAGEMAKER: Final = "SageMakerMachineLearningModelResourceData"
HTTPS: Final = "HttpsMachineLearningModelResourceData"
FILE: Final = "FileMachineLearningModelResourceData"
MODELS: Final = (S3, HTTPS, FILE, SAGEMAKER)
MEMBERS: Final = (*MODELS, *KINDS, SECRET)
AnyResource = Resource | LocalResource | SecretResource


def read_resources(document: Fields) -> tuple[AnyResource, ...]:
    """All resources of the document whose Ids could be read."""
    resources: dict[str, AnyResource] = {}
    names: set[str] = set()
    for value, where in document.items("Resources", MAX_RESOURCES):
        resource = _resource(Fields(value, where, document.problems))
        if resource is None:
            continue
        if resource.id in resources:
            document.problems.note("BAD_DOCUMENT", where, f"a second resource has the Id {resource.id}")
        if resource.name in names:
            document.problems.note("BAD_DOCUMENT", where, f"a second resource has the Name {resource.name}")
        names.add(resource.name)
        resources.setdefault(resource.id, resource)
    return tuple(resources.values())


def _resource(fields: Fields) -> AnyResource | None:
    id = fields.text("Id", required=True, pattern=ID, what=ID_WORDS)
    name = fields.text("Name", required=True, pattern=ID, what=ID_WORDS)
    data = _data(fields)
    extra = fields.fields("Marram")
    digest, runtime, health = _extra(extra) if extra else (None, ModelRuntime(None, {}, {}), None)
    fields.done()
    if id is None or data is None:
        return None
    member = data.where.rpartition(".")[2]
    if member not in MODELS:
        if extra is not None:
            fields.bad("Marram", "is for models only")
        return read_secret(id, name or id, data) if member == SECRET else read_local(id, name or id, data)
    source = _source(data)
    destination = _destination(data)
    owner = _owner(data)
    data.done()
    if source is None:
        return None
    return Resource(
        id, name or id, source, destination, owner, digest, runtime.name, runtime.options, health, runtime.requires
    )


def _data(fields: Fields) -> Fields | None:
    """The one member of ResourceDataContainer, if it is known."""
    container = fields.fields("ResourceDataContainer")
    if container is None:
        fields.bad("ResourceDataContainer", "is missing")
        return None
    members = [m for m in MEMBERS if container.has(m)]
    found = {m: container.fields(m) for m in members}
    for member in MEMBERS:
        container.take(member)
    container.done()
    if len(members) != 1:
        container.bad("", f"must have exactly one member, such as {S3}; it has {len(members)}")
        return None
    return found.get(members[0])


def _source(data: Fields) -> Source | None:
    member = data.where.rpartition(".")[2]
    if member == S3:
        return _s3(data, "S3Uri")
    if member == HTTPS:
        return _https(data, "Url")
    if member == FILE:
        return _file(data, "Path")
    arn = data.text("SageMakerJobArn", required=True, pattern=JOB_ARN, what=JOB_ARN_WORDS)
    return SageMakerSource(arn) if arn else None


def read_url(data: Fields, key: str) -> S3Source | HttpsSource | None:
    """An https URL or an S3 URI, by what it begins with."""
    return _s3(data, key) if str(data.take(key)).startswith("s3://") else _https(data, key)


def _s3(data: Fields, key: str) -> S3Source | None:
    what = 'an S3 URI such as "s3://bucket/model.tar.gz" (the bucket in lower case)'
    uri = data.text(key, required=True, pattern=S3_URI, what=what)
    if uri is not None and _has_dots(uri[5:]):
        data.bad(key, f'has "." or ".." as a part of its key: {shown(uri)}')
        return None
    return S3Source(uri) if uri else None


def _https(data: Fields, key: str) -> HttpsSource | None:
    url = data.text(key, required=True, pattern=r"https://[^\s\\]+")
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where the port is no number
    except ValueError:
        data.bad(key, "is no https URL")
        return None
    if not parts.hostname or parts.username is not None or parts.fragment or _has_dots(parts.path):
        data.bad(key, 'must be an https URL with a host, without user, fragment or ".." in its path')
        return None
    return HttpsSource(url)


def _file(data: Fields, key: str) -> FileSource | None:
    path = data.text(key, required=True)
    if path is None:
        return None
    if not _is_clean(path):
        data.bad(key, f'must be an absolute path without "." and "..", not {shown(path)}')
        return None
    return FileSource(path)


def _destination(data: Fields) -> str | None:
    path = data.text("DestinationPath")
    if path is not None and (not _is_clean(path.rstrip("/")) or path.startswith("//")):
        data.bad("DestinationPath", f'must be an absolute path without "." and "..", not {shown(path)}')
        return None
    return path.rstrip("/") if path else None


def _is_clean(path: str) -> bool:
    return path.startswith("/") and path != "/" and posixpath.normpath(path) == path and not path.startswith("//")


def _has_dots(path: str) -> bool:
    return any(part in (".", "..") for part in path.replace("%2e", ".").replace("%2E", ".").split("/"))


def _owner(data: Fields) -> Owner | None:
    setting = data.fields("OwnerSetting")
    if setting is None:
        return None
    group = setting.text("GroupOwner", required=True, pattern=GROUP, what="a group's name or GID")
    if not setting.has("GroupPermission"):
        setting.bad("GroupPermission", "is missing")
    permission = setting.choice("GroupPermission", ("ro", "rw"))
    setting.done()
    if group and group.isdecimal() and int(group) > MAX_GID:
        setting.bad("GroupOwner", f"{group} is no GID: the highest is {MAX_GID}")
    return Owner(group, permission) if group and permission else None


def _extra(extra: Fields) -> tuple[str | None, ModelRuntime, HealthCheck | None]:
    digest = extra.text("Digest", pattern=DIGEST, what=DIGEST_WORDS)
    runtime = read_runtime(extra)
    health = extra.fields("HealthCheck")
    extra.done()
    return digest, runtime, read_health(health) if health else None


def read_code(extra: Fields) -> tuple[Source | None, str | None]:
    """Where a function's code package comes from, and its promised digest."""
    code = extra.fields("Code")
    if code is None:
        return None, None
    readers = {"S3Uri": _s3, "Url": _https, "Path": _file}
    named = [key for key in readers if code.has(key)]
    source = readers[named[0]](code, named[0]) if len(named) == 1 else None
    for key in readers:
        code.take(key)
    if len(named) != 1:
        code.bad("", f"must have exactly one of {', '.join(readers)}; it has {len(named)}")
    digest = code.text("Digest", pattern=DIGEST, what=DIGEST_WORDS)
    code.done()
    return source, digest

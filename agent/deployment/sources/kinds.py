"""Which source gives what a job names; boto3 is loaded only where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agent.deployment.permissions import allows
from agent.deployment.sources import ArchiveSource
from agent.errors import RejectedError
from agent.settings import FetchLimits


def source_of(wanted: Mapping[str, Any], patterns: Iterable[str], limits: FetchLimits) -> ArchiveSource:
    """The source of ``{kind, source, url}``.

    Args:
        patterns: the policy's; asked where a source leads elsewhere.
    """
    kind, name = wanted["kind"], wanted["source"]
    allowed = _allowed(tuple(patterns))
    if kind == "s3":
        from agent.deployment.sources.s3 import S3Archive  # 42 MB of boto3

        return S3Archive(name, limits.stall_s)
    if kind == "sagemaker":
        from agent.deployment.sources.sagemaker import SageMakerArchive

        return SageMakerArchive(name, limits.stall_s)
    if kind == "https":
        from agent.deployment.sources.https import HttpsArchive

        return HttpsArchive(wanted["url"], allowed, limits.stall_s)
    if kind == "file":
        from agent.deployment.sources.file import FileArchive

        return FileArchive(name.removeprefix("file://"), allowed)
    raise RejectedError("NOT_SUPPORTED", f"sources of the kind {kind} are not supported", "Leave it out.")


def _allowed(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda name: any(allows(pattern, name) for pattern in patterns)

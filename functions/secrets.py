"""A function's secrets: told to its worker once, held in memory, and never shown by accident."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

CURRENT: Final = "AWSCURRENT"


class UnknownSecretError(LookupError):
    """The function asked for a secret, or a version of one, that its deployment does not give it."""


class Secret:
    """A version of a secret.

    Attributes:
        arn, name: which secret.
        version_id: which version.
        stages: its staging labels when it was fetched.
        value: a text, or bytes where it was stored as binary.
        created_ms: when the version was made, milliseconds since 1970; 0 where nobody said.
    """

    __slots__ = ("arn", "created_ms", "name", "stages", "value", "version_id")

    def __init__(self, version: Mapping[str, Any]) -> None:
        self.arn: str = version["ARN"]
        self.name: str = version["Name"]
        self.version_id: str = version["VersionId"]
        self.stages: tuple[str, ...] = tuple(version["VersionStages"])
        self.value: str | bytes = version["SecretBinary"] if "SecretBinary" in version else version["SecretString"]
        self.created_ms: int = version["CreatedDate"]

    def __repr__(self) -> str:
        return f"Secret({self.arn!r}, version_id={self.version_id!r})"  # never the value: it may end up in a log


class Secrets:
    """The secrets of one function.

    Args:
        told: the CONFIG frame's list of ``{id, arn, versions}``.
    """

    __slots__ = ("_by_name",)

    def __init__(self, told: Iterable[Mapping[str, Any]] = ()) -> None:
        self._by_name: dict[str, list[Secret]] = {}
        for each in told:
            versions = [Secret(version) for version in each["versions"]]
            names = {each["id"], each["arn"], *(s.name for s in versions), *(s.arn for s in versions)}
            self._by_name.update(dict.fromkeys(names, versions))

    def get(self, name_or_arn: str, stage: str = CURRENT) -> Secret:
        """The version of a secret with that staging label, by the secret's ARN, its name or its resource's Id.

        Raises:
            UnknownSecretError: the function has no such secret, or not that version of it.
        """
        versions = self._by_name.get(name_or_arn)
        if versions is None:
            text = f"this function has no access to the secret {name_or_arn!r}; name the resource that holds it in its"
            raise UnknownSecretError(f"{text} ResourceAccessPolicies")
        for each in versions:
            if stage in each.stages:
                return each
        known = ", ".join(sorted({stage for each in versions for stage in each.stages})) or "none"
        text = f"the secret {name_or_arn!r} has no version {stage!r} here; its staging labels: {known}. Name it in the"
        raise UnknownSecretError(f"{text} resource's AdditionalStagingLabelsToDownload")

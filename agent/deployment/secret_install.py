"""The installer's part in secrets: which versions are wanted, which of them are here already, and the rest fetched."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from agent.deployment.definition import CURRENT
from agent.deployment.sources import secrets_manager
from agent.deployment.vault import Vault
from agent.errors import IntegrityError


def install_secret(state: Path, wanted: dict[str, Any]) -> tuple[bytes, int]:
    """A secret sealed for this core's disk, and how many of its versions had to be fetched.

    Args:
        wanted: ``{id, arn, labels, known}``; known is the file of an older seal of the same ARN, or None.

    Raises:
        AgentError: as `secrets_manager.read_version`. OSError: of the vault's key.
    """
    vault, arn = Vault(state), wanted["arn"]
    labels = [CURRENT, *wanted["labels"]]
    there = secrets_manager.stages_of(arn)
    if there is None:
        versions = [secrets_manager.read_version(arn, label=label) for label in labels]
        fetched = len(versions)
    else:
        kept = _kept(vault, arn, wanted["known"])
        ids = list(dict.fromkeys(_version_with(arn, label, there) for label in labels))
        versions = [kept.get(id) or secrets_manager.read_version(arn, id=id) for id in ids]
        versions = [{**each, "VersionStages": there.get(each["VersionId"], each["VersionStages"])} for each in versions]
        fetched = sum(id not in kept for id in ids)
    distinct = {each["VersionId"]: each for each in versions}
    return vault.seal(arn, {"ARN": arn, "Versions": list(distinct.values())}), fetched


def _version_with(arn: str, label: str, there: dict[str, list[str]]) -> str:
    found = next((id for id, labels in there.items() if label in labels), None)
    if found is None:
        known = tuple(sorted(set(itertools.chain.from_iterable(there.values()))))
        raise secrets_manager.stage_missing(arn, label, known)
    return found


def _kept(vault: Vault, arn: str, file: str | None) -> dict[str, dict[str, Any]]:
    """The versions in an older seal, by their ids; none where that cannot be opened any more."""
    if file is None:
        return {}
    try:
        return {each["VersionId"]: each for each in vault.open(arn, Path(file).read_bytes())["Versions"]}
    except (IntegrityError, OSError, KeyError):
        return {}

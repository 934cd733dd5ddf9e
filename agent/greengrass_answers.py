"""The answers of the Greengrass V1 API in saved files: what each is, and which of them make up the group. Pure.

What an answer is, is told by its contents, never by its file's name.

Source: AWS IoT Greengrass V1 API, version 2017-06-07.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Final

from agent.errors import ConfigError
from agent.values import dataclass

# A definition's list -> the key of its ARN in a group version.
LISTS: Final = {
    "Resources": "ResourceDefinitionVersionArn",
    "Functions": "FunctionDefinitionVersionArn",
    "Subscriptions": "SubscriptionDefinitionVersionArn",
    "Loggers": "LoggerDefinitionVersionArn",
    "Connectors": "ConnectorDefinitionVersionArn",
    "Cores": "CoreDefinitionVersionArn",
    "Devices": "DeviceDefinitionVersionArn",
}
GROUP_REMEDY: Final = (
    "Save what `aws greengrass get-group`, `get-group-version` and each `get-..-definition-version` answer."
)


@dataclass(slots=True)
class _Answers:
    """The API's answers by what they are: a list's name -> the answers that hold one."""

    groups: list[Mapping[str, Any]] = field(default_factory=list)
    versions: list[Mapping[str, Any]] = field(default_factory=list)
    definitions: dict[str, list[tuple[str, Mapping[str, Any]]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """A group's definitions by the names of their lists, and an id made of its name and its version."""

    id: str
    definitions: Mapping[str, Mapping[str, Any]]
    warnings: tuple[str, ...]


def read_group(files: Mapping[str, bytes]) -> Group:
    """The one group that the files hold.

    Raises:
        ConfigError: NOT_A_GROUP.
    """
    answers, warnings = _Answers(), list[str]()
    for name, body in files.items():
        _sort(name, _read(name, body), answers)
    if not answers.definitions:
        raise _bad("In these files is no definition of resources, functions or subscriptions.")
    definitions = _definitions(answers, warnings)
    return Group(_id(answers), definitions, tuple(warnings))


def _read(name: str, body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _bad(f"{name} is not JSON: {str(error)[:200]}.") from error


def _sort(name: str, value: Any, answers: _Answers) -> None:
    if isinstance(value, list):
        for each in value:
            _sort(name, each, answers)
        return
    definition = value.get("Definition") if isinstance(value, dict) else None
    if isinstance(definition, dict):
        _sort_definition(name, value, definition, answers)
    elif isinstance(value, dict) and "LatestVersionArn" in value and "/definition/" not in str(value.get("Arn")):
        answers.groups.append(value)


def _sort_definition(name: str, value: Mapping[str, Any], definition: Mapping[str, Any], answers: _Answers) -> None:
    if any(key in definition for key in LISTS.values()):
        answers.versions.append(value)
    for key in LISTS:
        if isinstance(definition.get(key), list):
            if value.get("NextToken"):
                raise _bad(f"{name} holds only the first page of {key}: save all pages (without --no-paginate).")
            answers.definitions.setdefault(key, []).append((name, value))


def _definitions(answers: _Answers, warnings: list[str]) -> dict[str, Mapping[str, Any]]:
    """The definition of each kind that belongs to the group."""
    version = _version(answers)
    named = version["Definition"] if version else {}
    found: dict[str, Mapping[str, Any]] = {}
    for key, arn_key in LISTS.items():
        given, arn = _distinct(answers.definitions.get(key, [])), named.get(arn_key)
        if arn is not None:
            given = [each for each in given if each[1].get("Arn") in (arn, None)]
            if not given:
                raise _bad(f"The group's {key} are in none of these files: {arn} is missing.")
        elif version is not None and given:
            warnings.append(f"{key}: {given[0][0]} is left out, the group version names no such definition")
            continue
        if len(given) > 1:
            names = ", ".join(name for name, _ in given)
            raise _bad(
                f"There are several definitions of {key}: {names}; leave one, or add get-group-version's answer."
            )
        if given:
            found[key] = given[0][1]["Definition"]
    return found


def _version(answers: _Answers) -> Mapping[str, Any] | None:
    versions = {str(each.get("Arn")): each for each in answers.versions}
    latest = [str(group.get("LatestVersionArn")) for group in answers.groups]
    if len(versions) > 1 and len(latest) == 1 and latest[0] in versions:
        return versions[latest[0]]
    if len(versions) > 1:
        raise _bad(f"These files hold several group versions: {', '.join(sorted(versions))}; leave one.")
    return next(iter(versions.values()), None)


def _distinct(given: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Without what was saved twice."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for name, value in given:
        found.setdefault(json.dumps(value["Definition"], sort_keys=True), (name, value))
    return list(found.values())


def _id(answers: _Answers) -> str:
    group = answers.groups[0] if answers.groups else {}
    version = _version(answers) or {}
    name = str(group.get("Name") or group.get("Id") or version.get("Id") or "group")
    number = str(version.get("Version") or group.get("LatestVersion") or "")[:8]
    plain = re.sub(r"[^A-Za-z0-9:_-]+", "-", f"greengrass-{name}-{number}".rstrip("-"))
    return plain[:128]


def _bad(text: str) -> ConfigError:
    return ConfigError("NOT_A_GROUP", text, GROUP_REMEDY)

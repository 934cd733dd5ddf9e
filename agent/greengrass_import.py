"""A Greengrass V1 group, saved as the AWS API's JSON answers, as one deployment document. Pure.

What the core does not do is taken out with a warning, as `agent.deployment.document` sees it, so that an import never
asks for more than the core can do, and keeps all that it can. The code of Lambda functions is in no such answer: the
warnings say which folders the core needs.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from agent.deployment.document import parse, unsupported_in
from agent.deployment.functions import LAMBDA_ARN, SYSTEM_ARN
from agent.greengrass_answers import read_group
from agent.settings import Policy
from agent.values import dataclass

KEPT: Final = ("Resources", "Functions", "Subscriptions", "Loggers", "Connectors")
EVERYTHING: Final = Policy(sources=("*",), destinations=("/",), local=("*",))  # what a core allows is the core's matter
_INDEXED: Final = re.compile(r"([A-Za-z]+)\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Imported:
    """A deployment's document, and what of the group is not in it or needs a hand."""

    document: dict[str, Any]
    warnings: tuple[str, ...]


def import_group(files: Mapping[str, bytes], *, id: str | None = None) -> Imported:
    """The document of the one group that the files hold.

    Args:
        files: JSON by the file's name; a file holds one answer or a list of answers.
        id: the DeploymentId; by default made of the group's name and version.

    Raises:
        ConfigError: NOT_A_GROUP, the files are no group or parts of it are missing.
        RejectedError: BAD_DOCUMENT, the group is not one that V1 would have deployed.
    """
    group = read_group(files)
    definitions, warnings = group.definitions, list(group.warnings)
    document: dict[str, Any] = {"DeploymentId": id or group.id, "DeploymentType": "NewDeployment"}
    document.update({key: list(definitions.get(key, {}).get(key) or ()) for key in KEPT})
    _apply_defaults(document, definitions.get("Functions", {}))
    _warn_of_things(definitions, warnings)
    document = _supported(document, warnings)
    _warn_of_code(document, warnings)
    return Imported(document, tuple(warnings))


# -- what becomes of it -----------------------------------------------------------------------------------------------


def _apply_defaults(document: dict[str, Any], definition: Mapping[str, Any]) -> None:
    """Gives each function that says nothing of its own the definition's DefaultConfig.Execution."""
    default = (definition.get("DefaultConfig") or {}).get("Execution")
    if not isinstance(default, dict) or not default:
        return
    functions = copy.deepcopy(document["Functions"])
    for function in functions:
        if not isinstance(function, dict) or SYSTEM_ARN.fullmatch(str(function.get("FunctionArn"))):
            continue
        configuration = function.setdefault("FunctionConfiguration", {})
        environment = configuration.setdefault("Environment", {}) if isinstance(configuration, dict) else None
        if isinstance(environment, dict):
            environment["Execution"] = {**default, **(environment.get("Execution") or {})}
    document["Functions"] = functions


def _warn_of_things(definitions: Mapping[str, Mapping[str, Any]], warnings: list[str]) -> None:
    for key in ("Cores", "Devices"):
        for thing in definitions.get(key, {}).get(key) or ():
            name = str(thing.get("ThingArn")).rpartition("/")[2] if isinstance(thing, dict) else thing
            if key == "Cores":
                warnings.append(f"Cores: {name} is not in the document; a core's name stands in its topics.yaml")
            if isinstance(thing, dict) and thing.get("SyncShadow"):
                warnings.append(f"{key}: the shadow of {name} is not synchronised by this core")


def _supported(document: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """Without what the core does not support yet, each with a warning; and what the core itself warns of."""
    document = copy.deepcopy(document)
    before = None
    while document != before and (unsupported := unsupported_in(_body(document))):
        before = copy.deepcopy(document)
        warnings.append(_take_out(document, *unsupported[0]))
    deployment = parse(_body(document), core="", policy=EVERYTHING)
    warnings.extend(_named(document, each) for each in deployment.warnings)
    return document


def _body(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode()


def _take_out(document: dict[str, Any], where: str, text: str) -> str:
    """Removes the value at a problem's path, of a resource all of it; returns what is to be said about it."""
    steps = [_step(part) for part in where.split(".")]
    (named, index), last = steps[0], steps[-1][0]
    elements = document.get(named)
    said = f"{_named(document, where)} is left out: {text}"
    if index is None or not isinstance(elements, list):
        document.pop(named, None)
    elif named == "Resources":
        id = str(elements[index].get("Id"))
        del elements[index]
        _forget(document, id)
        return f"the resource {id} is left out, and no function has it: {last}: {text}"
    else:
        holder = _at(elements[index], steps[1:-1])
        if isinstance(holder, dict) and last in holder:
            del holder[last]
        else:
            del elements[index]
    return said


def _step(part: str) -> tuple[str, int | None]:
    indexed = _INDEXED.fullmatch(part)
    return (indexed[1], int(indexed[2])) if indexed else (part, None)


def _at(value: Any, steps: Sequence[tuple[str, int | None]]) -> Any:
    for key, index in steps:
        value = value.get(key) if isinstance(value, dict) else None
        value = value[index] if index is not None and isinstance(value, list) else value
    return value


def _named(document: Mapping[str, Any], text: str) -> str:
    """The text with elements called by their Ids, as their places mean nothing to whoever has the group."""

    def name(match: re.Match[str]) -> str:
        found = document.get(match[1])
        element = found[int(match[2])] if isinstance(found, list) and int(match[2]) < len(found) else None
        return f"{match[1]} {element.get('Id')}" if isinstance(element, dict) else match[0]

    return re.sub(r"^([A-Z][A-Za-z]+)\[(\d+)\]", name, text)


def _forget(document: dict[str, Any], id: str) -> None:
    """Takes a resource out of the functions' access policies."""
    for policies in _policies(document):
        policies[:] = [each for each in policies if each.get("ResourceId") != id]


def _policies(document: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    for function in document["Functions"]:
        found = _at(
            function, [("FunctionConfiguration", None), ("Environment", None), ("ResourceAccessPolicies", None)]
        )
        if isinstance(found, list) and all(isinstance(each, dict) for each in found):
            yield found


def _warn_of_code(document: Mapping[str, Any], warnings: list[str]) -> None:
    for function in document["Functions"]:
        name = LAMBDA_ARN.fullmatch(str(function.get("FunctionArn")))
        if name and not SYSTEM_ARN.fullmatch(function["FunctionArn"]):
            text = "the Lambda's code is not part of a group; put it into the folder"
            warnings.append(f"the function {function.get('Id')}: {text} functions/{name['name']} on the core")

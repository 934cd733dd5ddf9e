"""Lays out a new function: its code, a test of it, a model to run, and the document that deploys it. Blocks.

It writes new files alone: whatever is there already is left as it is and told.
"""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any, Final

from agent.archive import pack
from agent.cli import scaffold_texts as texts
from agent.cli.recording import describe
from agent.errors import ConfigError
from agent.settings.reader import load
from agent.values import dataclass

SAMPLE: Final = "onnx"  # the word that asks for the model that comes along
NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be laid out.

    Attributes:
        name: the function's folder and Id.
        model: a model's directory, or `SAMPLE`; None: a function without a model.
        runtime: the model's; None: by its files.
        interpreter: the Python that has the runtime.
    """

    name: str
    model: str | None = None
    runtime: str | None = None
    interpreter: str = sys.executable


@dataclass(frozen=True, slots=True)
class Made:
    """What was laid out.

    Attributes:
        files: in the order of their making.
        policy: the line that topics.yaml lacks below ``policy: sources``; None where it lacks nothing.
        event: one that the function answers.
    """

    name: str
    folder: Path
    document: Path
    settings: Path
    files: Sequence[Path]
    policy: str | None
    event: dict[str, Any]


def lay_out(wanted: Wanted, settings: Path) -> Made:
    """Writes a function's files beside the file `settings`, which is written too where there is none.

    Raises:
        ConfigError: BAD_NAME, EXISTS; what is wrong with the settings or the model's directory.
        AgentError: why the model does not load.
    """
    if not NAME.fullmatch(wanted.name):
        text = f"{wanted.name!r} is no name for a function."
        raise ConfigError("BAD_NAME", text, "Take a letter, then up to 63 of the characters A-Z a-z 0-9 _ -.")
    root = settings.resolve().parent
    folder = _functions(settings, root) / wanted.name
    document, archive = root / f"{wanted.name}.yaml", root / "models" / f"{wanted.name}.tar.gz"
    _refuse_existing(folder, document, *((archive,) if wanted.model else ()))
    files: list[Path] = []
    model = None
    if wanted.model is not None:
        directory = _model(wanted, root, files)
        found = describe(directory, wanted.runtime, wanted.interpreter)  # ahead of all else: it may not load
        model = _Model(directory, archive, found)
    event = _event(wanted, model)
    for file, text in _function(wanted.name, folder, model, event).items():
        _write(file, text, files)
    resources, digest = "", ""
    if model is not None:
        archive.parent.mkdir(parents=True, exist_ok=True)
        digest = pack(model.directory, archive)["digest"]
        files.append(archive)
        resources = _resource(wanted, archive, digest)
    _write(document, _document(wanted.name, document, resources), files)
    source = f"file://{root / 'models'}/*" if model else None
    if not settings.exists():
        _settings(settings, source, files)
        source = None
    elif source is not None and source in load(settings).policy.sources:
        source = None
    return Made(wanted.name, folder, document, settings, files, source, event)


@dataclass(frozen=True, slots=True)
class _Model:
    directory: Path
    archive: Path
    described: dict[str, Any]


def _functions(settings: Path, root: Path) -> Path:
    """The first folder in which the settings have functions looked for."""
    return (root / load(settings).functions[0]) if settings.exists() else root / "functions"


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            text = f"{path} is there already."
            raise ConfigError("EXISTS", text, "Take another name, or move it away: nothing is ever overwritten.")


def _write(file: Path, text: str | bytes, files: list[Path]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    files.append(file)


def _model(wanted: Wanted, root: Path, files: list[Path]) -> Path:
    if wanted.model != SAMPLE or (Path(SAMPLE).is_dir()):
        directory = Path(wanted.model or "").resolve()
        if not directory.is_dir():
            text = f"{wanted.model} is no directory."
            raise ConfigError("NOT_A_DIRECTORY", text, f"Name the directory with the model's files, or {SAMPLE}.")
        return directory
    directory = root / "models" / wanted.name
    _refuse_existing(directory)
    _write(directory / "model.onnx", texts.SAMPLE_MODEL, files)
    return directory


def _event(wanted: Wanted, model: _Model | None) -> dict[str, Any]:
    if model is None:
        return {"values": [1.5, 2.5]}
    if wanted.model == SAMPLE:
        return texts.SAMPLE_EVENT
    return {name: _zeros(shape, dtype) for name, shape, dtype in model.described["inputs"]}


def _zeros(shape: Sequence[int | None], dtype: str) -> Any:
    if not shape:
        return {"string": "", "bool": False}.get(dtype, 0.0 if dtype.startswith("float") else 0)
    return [_zeros(shape[1:], dtype) for _ in range(shape[0] or 1)]


def _function(name: str, folder: Path, model: _Model | None, event: dict[str, Any]) -> dict[Path, str]:
    test = folder / "tests" / f"test_{name.replace('-', '_')}.py"
    if model is None:
        code, check, values = texts.CODE, texts.TEST, {"name": name}
    else:
        code, check = texts.CODE_WITH_MODEL, texts.TEST_WITH_MODEL
        inputs, outputs = ([each[0] for each in model.described[kind]] for kind in ("inputs", "outputs"))
        values = {
            "name": name,
            "resource": f"{name}-model",
            "inputs": _tuple(inputs),
            "outputs": _tuple(outputs),
            "keys": ", ".join(f'"{each}": [..]' for each in inputs),
            "event": json.dumps(event).replace("false", "False"),
            "model_path": _from_test(model.directory, test),
        }
    return {folder / "__init__.py": Template(code).substitute(values), test: Template(check).substitute(values)}


def _tuple(names: Sequence[str]) -> str:
    quoted = ", ".join(json.dumps(name) for name in names)
    return f"({quoted},)" if len(names) == 1 else f"({quoted})"


def _from_test(directory: Path, test: Path) -> str:
    """An expression for `directory`: from the test's own place where it lies close by."""
    root = test.parents[3]
    if root not in directory.parents:
        return f"Path({str(directory)!r})"
    parts = " / ".join(json.dumps(part) for part in directory.relative_to(root).parts)
    return f"FOLDER.parent.parent / {parts}"


def _resource(wanted: Wanted, archive: Path, digest: str) -> str:
    values = {
        "name": wanted.name,
        "resource": f"{wanted.name}-model",
        "archive": json.dumps(str(archive)),
        "digest": digest,
        "runtime": f", Runtime: {wanted.runtime}" if wanted.runtime else "",
    }
    return Template(texts.RESOURCE).substitute(values)


def _document(name: str, file: Path, resources: str) -> str:
    access = f"{{ResourceAccessPolicies: [{{ResourceId: {name}-model, Permission: ro}}]}}"
    return Template(texts.DOCUMENT).substitute(
        name=name,
        document=file.name,
        resources=resources,
        environment=f"      Environment: {access}\n" if resources else "",
    )


def _settings(file: Path, source: str | None, files: list[Path]) -> None:
    core = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:64] or "core"
    policy = f"policy:\n  sources: [{json.dumps(source)}]\n" if source else ""
    _write(file, Template(texts.SETTINGS).substitute(core=json.dumps(core), policy=policy), files)

"""YAML as plain nodes that know their lines, and the child process that reads it where its memory matters.

A node is a list of `KIND` (one of the three), `TAG`, `VALUE` (a text, nodes, or pairs of nodes) and `LINE` from 1. Its
parts are what `marshal` writes as they are: nodes that an alias leads to stay the same ones, so that no file becomes
larger by being passed on. No value is ever built from a tag of the file.

Nothing is imported here that a Python does not have when it starts: the child reads while the agent imports all else.
"""

from __future__ import annotations

import marshal
import os

from agent.errors import ConfigError

TYPE_CHECKING = False  # that of typing, without typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any, Final, TypeAlias

    Node: TypeAlias = list[Any]
    Found: TypeAlias = tuple[Node | None, int, str]  # the root; or None, a line and what is wrong there
    Read: TypeAlias = Callable[[], Found]

MAX_BYTES: Final = 1 << 20  # a settings file of more than this is some other file
MAX_DEPTH: Final = 50  # levels; libyaml ends the process where the nodes are nested some 10,000 deep
TOO_DEEP: Final = "this is not a settings file: it is nested too deeply"
KIND, TAG, VALUE, LINE = range(4)
SCALAR, SEQUENCE, MAPPING = range(3)


def read(file: Path | str) -> Found:
    """The file's root node. Blocks.

    Raises:
        ConfigError: SETTINGS_UNREADABLE, there is no such file or it cannot be read.
    """
    return _found_in(_bytes_of(file))


def begin(file: Path | str) -> Read:
    """Starts to read the file in a child process, to which PyYAML's 1 MB goes and its 10 ms; returns what waits for it.

    To be called while this process has one thread. Where the child cannot be had, the file is read here.
    """
    try:
        body = _bytes_of(file)
    except ConfigError:
        return lambda: read(file)  # it is told where it is asked for
    ours, theirs = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(ours)
        os.close(theirs)
        return lambda: _found_in(body)
    if child == 0:
        _answer(theirs, body)
    os.close(theirs)
    return lambda: _answer_of(child, ours, body)


def _answer(descriptor: int, body: bytes) -> None:
    """What the child does; never returns."""
    code = 1
    try:
        with open(descriptor, "wb") as pipe:
            pipe.write(marshal.dumps(_found_in(body)))
        code = 0
    finally:
        os._exit(code)  # nothing of the agent's is to run here, nor what it has left to write be written twice


def _answer_of(child: int, descriptor: int, body: bytes) -> Found:
    with open(descriptor, "rb") as pipe:
        answer = pipe.read()
    if os.waitpid(child, 0)[1] != 0:
        return _found_in(body)
    found: Found = marshal.loads(answer)
    return found


def _bytes_of(file: Path | str) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            "SETTINGS_UNREADABLE",
            f"The settings file {file} cannot be read: {error.strerror}.",
            "Go to the folder that holds topics.yaml, or name the file with --config FILE.",
        ) from error


def _found_in(body: bytes) -> Found:
    import yaml  # 1 MB, which the agent does without: see `begin`

    if len(body) > MAX_BYTES:
        return None, 1, f"the file has more than {MAX_BYTES} bytes: is this the settings file?"
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's: ten times as fast
    try:
        if _is_too_deep(yaml.parse(body, Loader=loader), yaml):
            return None, 1, TOO_DEEP
        root = yaml.compose(body, Loader=loader)
    except yaml.MarkedYAMLError as error:
        if error.problem == "exceeded maximum nesting depth":  # newer libyaml looks ahead, and refuses it itself
            return None, 1, TOO_DEEP
        mark = error.problem_mark or error.context_mark
        return None, mark.line + 1 if mark else 1, f"this is not YAML: {error.problem or error.context}"
    except yaml.reader.ReaderError as error:
        return None, body.count(b"\n", 0, error.position) + 1, f"this is not YAML: {error.reason}"
    if root is None:
        return None, 1, "the file is empty; `core: NAME` is the least it must say"
    return _plain(root, {}), 0, ""


def _is_too_deep(events: Any, yaml: Any) -> bool:
    depth = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            return True
    return False


def _plain(node: Any, made: dict[int, Node]) -> Node:
    """PyYAML's node as one of ours; one that was met before is the same again, also within itself."""
    if id(node) in made:
        return made[id(node)]
    kind = {"scalar": SCALAR, "sequence": SEQUENCE, "mapping": MAPPING}[node.id]
    plain = made[id(node)] = [kind, node.tag, None, node.start_mark.line + 1]
    if kind == SCALAR:
        plain[VALUE] = node.value
    elif kind == SEQUENCE:
        plain[VALUE] = [_plain(each, made) for each in node.value]
    else:
        plain[VALUE] = [(_plain(key, made), _plain(value, made)) for key, value in node.value]
    return plain

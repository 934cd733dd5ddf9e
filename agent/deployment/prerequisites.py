"""What a deployment needs that must be on the core already: its functions' folders and the interpreters it names."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.deployment.definition import Deployment
from agent.deployment.interpreters import interpreter_of
from agent.errors import AgentError, RejectedError
from agent.settings import Settings

PROBE: Final = "import sys, msgpack, numpy; sys.exit(sys.version_info < (3, 10))"
PROBE_DEADLINE_S: Final = 60.0


def folders_of(deployment: Deployment, roots: Iterable[Path]) -> dict[str, Path]:
    """The folder of each function that has one, by function Id; the first of `roots` that holds it counts. Blocks.

    Raises:
        RejectedError: FUNCTION_NOT_FOUND, with all that are missing.
    """
    places = tuple(roots)
    found: dict[str, Path] = {}
    missing: list[str] = []
    for function in deployment.functions:
        if function.folder is None:
            continue
        path = next((root / function.folder for root in places if (root / function.folder).is_dir()), None)
        if path is None:
            missing.append(f"{function.id} asks for the folder {function.folder}{_nearest(function.folder, places)}")
        else:
            found[function.id] = path
    if missing:
        where = ", ".join(map(str, places)) or "no folder at all (functions: in topics.yaml is empty)"
        text = f"functions that are not on this core: {'; '.join(missing)}; looked for in {where}"
        raise RejectedError("FUNCTION_NOT_FOUND", text, "Put the folder there, or correct the FunctionArn.")
    return found


def _nearest(folder: str, places: tuple[Path, ...]) -> str:
    import difflib  # only where something is wrong

    there = [path.name for place in places if place.is_dir() for path in place.iterdir() if path.is_dir()]
    close = difflib.get_close_matches(folder, there, n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


async def probe_interpreters(deployment: Deployment, settings: Settings) -> None:
    """Starts each interpreter that the functions need and sees that it can run a worker.

    Raises:
        AgentError: INTERPRETER_MISSING or INTERPRETER_INCOMPLETE.
    """
    known = settings.policy.interpreters
    names = {interpreter_of(function, deployment, known) for function in deployment.functions}
    for name in sorted(filter(None, names)):
        given = known.get(name)
        if given is None:
            text = f"the interpreter {name} is no longer in policy.interpreters"
            raise AgentError("INTERPRETER_MISSING", text, "Add it to topics.yaml.")
        await _probe(name, settings.file.parent / given)


async def _probe(name: str, python: Path) -> None:
    try:
        child = await asyncio.create_subprocess_exec(
            str(python), "-I", "-c", PROBE,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        text = f"the interpreter {name} ({python}) cannot be started: {error.strerror}"
        raise AgentError("INTERPRETER_MISSING", text, "Correct policy.interpreters in topics.yaml.") from error
    try:
        _, said = await asyncio.wait_for(child.communicate(), PROBE_DEADLINE_S)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:] or ["it is older than Python 3.10"]
        text = f"the interpreter {name} ({python}) cannot run a worker: {last[0]}"
        raise AgentError("INTERPRETER_INCOMPLETE", text, f"Run: {python} -m pip install msgpack numpy")

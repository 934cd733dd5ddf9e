"""Who imports whom: pure modules no shell, functions no agent, each library one owner, the agent's process little."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

from tests.source_kit import ROOT, imported, sources

# Modules that decide: values in, values out. Time, randomness and everything outside come as arguments.
PURE = (
    "agent.errors",
    "agent.messages",
    "agent.routing",
    "agent.capture.budget",
    "agent.capture.drift",
    "agent.capture.received",
    "agent.capture.judges",
    "agent.capture.keeper",
    "agent.capture.parcels",
    "agent.capture.payloads",
    "agent.capture.policy",
    "agent.capture.rules",
    "agent.capture.samples",
    "agent.capture.scores",
    "agent.capture.seen",
    "agent.capture.settled",
    "agent.inference.deadlines",
    "agent.inference.dispatch",
    "agent.inference.pool",
    "agent.inference.probation",
    "agent.inference.queueing",
    "agent.inference.requests",
    "agent.inference.slots",
    "agent.deployment.captures",
    "agent.deployment.definition",
    "agent.deployment.document",
    "agent.deployment.fields",
    "agent.deployment.functions",
    "agent.deployment.health",
    "agent.deployment.interpreters",
    "agent.deployment.local_resources",
    "agent.deployment.machine",
    "agent.deployment.model_runtimes",
    "agent.deployment.permissions",
    "agent.deployment.quarantine",
    "agent.deployment.resources",
    "agent.deployment.secret_resources",
    "agent.deployment.subscriptions",
    "agent.deployment.troubles",
    "agent.trust.certificates",
    "agent.mqtt.access",
    "agent.mqtt.codec",
    "agent.mqtt.filters",
    "agent.mqtt.in_flight",
    "agent.mqtt.reasons",
    "agent.cloud.lanes",
    "agent.cloud.reports",
    "agent.cloud.spool_records",
    "agent.shadows.answers",
    "agent.shadows.document",
)
SHELLS = {
    "asyncio", "selectors", "select", "socket", "ssl", "subprocess", "multiprocessing", "threading", "queue",
    "concurrent", "signal", "os", "io", "pathlib", "shutil", "tempfile", "fcntl", "ctypes", "sqlite3", "time", "random",
    "secrets", "paho", "amqtt", "boto3", "botocore", "tenacity", "yaml",
}  # fmt: skip
# The settings' frozen values are for everybody; they import nothing of ours.
VALUES = ("agent", "agent.settings", "agent.settings.values")
DEMO = "agent.demo"
OWNERS = {
    "paho": ("agent.mqtt.control", DEMO),
    "amqtt": ("agent.mqtt.guarded",),
    "boto3": ("agent.deployment.sources", DEMO),
    "botocore": ("agent.deployment.sources", "agent.capture.s3_objects", DEMO),
    "urllib3": ("agent.deployment.sources",),
    "isal": ("agent.deployment.gunzip",),
    "sqlite3": (
        "agent.cloud.spool_dead",
        "agent.cloud.spool_file",
        "agent.cloud.spool_layout",
        "agent.cloud.spool_reading",
        "agent.cloud.spool_room",
        "agent.cloud.spool_rows",
        "agent.cloud.spool_stock",
        "agent.cloud.spool_thread",
    ),
    "tenacity": ("agent.mqtt.broker", "agent.deployment.download"),
    "yaml": ("agent.yaml_nodes", "agent.cli.commands", DEMO),
    "cryptography": ("agent.trust.keys", "agent.deployment.vault"),
    "dlr": ("functions.runtimes.dlr", "functions.runtimes.calling_home"),
    "onnxruntime": ("functions.runtimes.onnx",),
    "ai_edge_litert": ("functions.runtimes.litert",),
    "tflite_runtime": ("functions.runtimes.litert",),
    "tensorflow": ("functions.runtimes.tensorflow",),
    "mxnet": ("functions.runtimes.mxnet",),
    "onnx": (DEMO,),
    "rich": ("agent.cli.progress", DEMO),
    "moto": (DEMO,),
    "numpy": ("functions", DEMO),
}
# What the agent's process must not hold: the memory of an idle device. The first are some 100 MB together.
TOO_HEAVY = ("boto3", "botocore", "numpy", "onnxruntime", "dlr", "amqtt", "moto", "rich", "yaml", "urllib3", "requests",
             "multiprocessing", "unittest", "cryptography", "agent.demo", "agent.deployment.sources.s3",
             "functions.runtimes", "functions.worker")  # fmt: skip

# What its libraries import for cases that are not the agent's, and what only some commands or cores need: 4 MB.
NEVER_ASKED = ("argparse", "inspect", "ast", "dis", "email", "http.client", "urllib.request", "uuid", "tenacity",
               "statistics", "decimal", "difflib", "bz2", "lzma")  # fmt: skip


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in packages)


def test_functions_never_import_the_agent() -> None:
    wrong = [
        f"{module}:{line} imports {name}"
        for module in sources()
        if within(module, ("functions",))
        for name, line, _ in imported(module)
        if within(name, ("agent",))
    ]
    assert not wrong, wrong


def reached(module: str) -> set[str]:
    """A module and all of ours that it imports, and those import, and so on."""
    found, waiting = {module}, [module]
    while waiting:
        for name, _, _ in imported(waiting.pop()):
            if name in sources() and name not in found and name not in VALUES:
                found.add(name)
                waiting.append(name)
    return found


@pytest.mark.parametrize("module", [module for module in sources() if within(module, PURE)])
def test_a_pure_module_imports_no_shell(module: str) -> None:
    for each in reached(module):
        for name, line, _ in imported(each):
            assert name.partition(".")[0] not in SHELLS, f"{module} by way of {each}:{line}: {name}"


def test_every_pure_module_is_there() -> None:
    assert [each for each in PURE if each not in sources()] == []


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_has_one_owner(library: str) -> None:
    found = {m for m in sources() for name, _, _ in imported(m) if within(name, (library,))}
    assert found, "nobody uses it: take it off the list"
    assert {m for m in found if not within(m, OWNERS[library])} == set()


def test_only_the_demonstration_is_built_on_the_demonstration() -> None:
    users = {m for m in sources() for name, _, _ in imported(m) if within(name, (DEMO,)) and not within(m, (DEMO,))}
    assert users == {"agent.cli.parser"}


def _loaded(code: str) -> set[str]:
    """The modules of a fresh interpreter after `code`."""
    program = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def _loaded_by_run(*, encrypted: bool) -> set[str]:
    return _loaded(f"""
from pathlib import Path
from agent import yaml_nodes
from agent.imports import lean
begun = yaml_nodes.begin("topics.yaml")
with lean(encrypted={encrypted}):
    from agent.settings.reader import load
    load(Path("topics.yaml"), begun=begun)
    import agent.loop, agent.beginning, agent.app
""")


def test_the_agents_process_holds_nothing_heavy() -> None:
    loaded = _loaded_by_run(encrypted=False)
    assert [each for each in (*TOO_HEAVY, *NEVER_ASKED, "ssl") if each in loaded] == []
    assert "ssl" in _loaded_by_run(encrypted=True)


def test_the_settings_are_read_from_the_first_moment_on() -> None:
    ours = {"agent", "agent.cli", "agent.cli.main", "agent.cli.run", "agent.errors", "agent.yaml_nodes"}
    ours_only = "before = {*sys.modules}; import agent.cli.main, agent.cli.run; print({*sys.modules} - before)"
    code = f"import os, sys; {ours_only}"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == {*ours, "__future__", "gc"}  # while a child reads them comes the rest


def test_what_starts_the_workers_comes_without_what_follows() -> None:
    loaded = _loaded("import agent.beginning, agent.settings.reader")
    later = ("agent.app", "agent.mqtt.link", "agent.cloud.spool", "agent.routing.exchange", "sqlite3", "paho", "yaml")
    assert [each for each in later if each in loaded] == []


def test_a_worker_that_has_no_model_loads_no_numpy() -> None:
    loaded = _loaded("import functions.worker, functions.startup, functions.sdk")
    unwanted = ("numpy", "asyncio", "logging", "dlr", "onnxruntime", "functions.greengrass", "agent")
    assert [each for each in unwanted if each in loaded] == []


def test_the_command_starts_without_the_agent() -> None:
    loaded = _loaded("import agent.cli.main")
    assert [each for each in ("asyncio", "paho", "agent.app", *TOO_HEAVY) if each in loaded] == []

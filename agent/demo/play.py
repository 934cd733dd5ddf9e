"""One run of the demonstration from the first line to the exit code: the parts joined, started and stopped."""

from __future__ import annotations

import signal
import tempfile
import threading
from pathlib import Path
from types import FrameType

from rich.console import Console

from agent.demo import documents
from agent.demo.scenario import Scenario
from agent.demo.site import Models, Site, make_models
from agent.demo.view import Check, shown, summary
from agent.errors import AgentError

RUNNING = 12  # a recording of the test split


def write(folder: Path) -> None:
    """Writes what a first try by hand needs: a topics.yaml, both models, a deployment of each, and a request.

    The core of this topics.yaml needs nothing from outside: its one broker is the embedded one, on its usual port, and
    the deployments take the models from `folder`.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        models = make_models(Path(work))
        v1, v2 = models.v1.copied_to(folder), models.v2.copied_to(folder)
    policy = {"sources": [f"file://{folder}/*"]}
    documents.write_topics(folder, core="first-core", local={"url": "embedded"}, cloud="local", policy=policy)
    for name, model in (("v1", v1), ("v2", v2)):
        document = documents.deployment(f"first-{name}", model.on_disk(), model.digest, results="local")
        documents.write_json(folder / f"{name}.json", document)
    documents.write_json(folder / "window.json", documents.request(models.test.windows[RUNNING].tolist()))


def play(*, keep: bool, seconds: float) -> int:
    """Runs it and returns the exit code; everything that it started is ended."""
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)
    site = Site()
    held = False
    try:
        console.print("Training two models on the recordings of a smart watch ..", highlight=False)
        models = make_models(site.folder)
        console.print("Starting a cloud (broker and S3 server) and an agent ..", highlight=False)
        site.start(models)
        held = _run(console, site, models, seconds)
        if keep:
            _keep(console, site, models)
    except KeyboardInterrupt:
        console.print("Interrupted.")
        return 130
    finally:
        site.stop(remove=held)
        if not held and site.folder.exists():
            console.print(f"All logs are in {site.folder}", soft_wrap=True, highlight=False)
    return 0 if held else 1


def _run(console: Console, site: Site, models: Models, seconds: float) -> bool:
    scenario = Scenario(site, models)
    problem = ""
    try:
        with shown(console, scenario.figures) as view:
            try:
                scenario.run(view, seconds)
            except AgentError as error:
                problem = error.text
                scenario.checks.append(Check("the demonstration ran to its end", False, problem.partition("\n")[0]))
    finally:
        scenario.stop()
    summary(console, scenario.checks)
    console.print(problem, markup=False, highlight=False, soft_wrap=True, end="\n" if problem else "")
    return all(check.held for check in scenario.checks)


def _keep(console: Console, site: Site, models: Models) -> None:
    """Says what can be typed, and waits for Ctrl-C."""
    question = documents.request(models.test.windows[RUNNING].tolist())
    window = documents.write_json(site.folder / "window.json", question)
    again = documents.write_json(site.folder / "by-hand-v1.json", site.document("by-hand-v1", models.v1))
    config = f"--config {site.folder / 'topics.yaml'}"
    lines = (
        "Everything stays up until Ctrl-C. In another terminal, in this folder:",
        "",
        "  # listen to the answers, then ask (a real window of somebody running)",
        f"  mosquitto_sub -p {site.local_port} -t 'watches/#' -v",
        f"  mosquitto_pub -p {site.local_port} -q 1 -t sensors/me/motion -f {window}",
        "",
        "  # the same through the command",
        f"  .venv/bin/marram infer {documents.FUNCTION} {window} {config}",
        "",
        "  # deploy v1 again, and see what is there",
        f"  .venv/bin/marram deploy {again} --wait {config}",
        f"  .venv/bin/marram status {config}",
        "",
        "  # everything that the cloud hears",
        f"  mosquitto_sub -p {site.cloud_port} -t '#' -v",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("Ending ..")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt

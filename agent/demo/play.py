"""One run of the demonstration from the first line to the exit code: the parts joined, started and stopped."""

from __future__ import annotations

import json
import signal
import threading
from types import FrameType

from rich.console import Console

from agent.demo import documents
from agent.demo.scenario import Scenario
from agent.demo.site import Models, Site, make_models
from agent.demo.view import Check, shown, summary
from agent.errors import AgentError


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
    try:
        with shown(console, scenario.figures) as view:
            try:
                scenario.run(view, seconds)
            except AgentError as error:
                scenario.checks.append(Check("the demonstration ran to its end", False, str(error)))
    finally:
        scenario.stop()
    summary(console, scenario.checks)
    return all(check.held for check in scenario.checks)


def _keep(console: Console, site: Site, models: Models) -> None:
    """Says what can be typed, and waits for Ctrl-C."""
    window = site.folder / "window.json"
    meta = {"id": "by-hand-1", "reply_to": "watches/me/answers"}
    window.write_text(json.dumps({"meta": meta, "window": models.test.windows[12].tolist()}))
    again = documents.write_document(documents.deployment("by-hand-v1", models.v1, site.folder), site.folder)
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

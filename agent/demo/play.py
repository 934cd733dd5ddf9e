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

RUNNING = 12  # a recording of the test split


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
    (site.folder / "window.json").write_text(json.dumps(question))
    for name, model in (("v1", models.v1), ("v2", models.v2)):
        documents.write_json(site.folder / f"{name}.json", site.document(f"by-hand-{name}", model))
    config = "--config $FILES/topics.yaml"
    lines = (
        "Everything stays up until Ctrl-C. In another terminal, in this folder:",
        "",
        f"  LOCAL={site.local_port} CLOUD={site.cloud_port} FILES={site.folder}",
        "",
        "  # listen to what is answered and to what the cloud hears, then ask (a recording of somebody running)",
        "  mosquitto_sub -p $LOCAL -t 'watches/#' -v &",
        "  mosquitto_sub -p $CLOUD -t 'marram/#' -v &",
        "  mosquitto_pub -p $LOCAL -q 1 -t sensors/me/motion -f $FILES/window.json",
        "",
        "  # the cloud deploys v1 again; ask again, and see its version in the answer",
        f"  mosquitto_pub -p $CLOUD -q 1 -t marram/{documents.CORE}/deployments -f $FILES/v1.json",
        "  mosquitto_pub -p $LOCAL -q 1 -t sensors/me/motion -f $FILES/window.json",
        "",
        "  # the same with Marram's own command",
        f"  .venv/bin/marram deploy $FILES/v2.json --wait {config}",
        f"  .venv/bin/marram infer {documents.FUNCTION} $FILES/window.json {config}",
        f"  .venv/bin/marram status {config}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("Ending ..")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt

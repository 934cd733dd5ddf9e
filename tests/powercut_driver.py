"""One agent's deployer in a process of its own, whose every step on the disk can be followed by a power cut.

``python powercut_driver.py STATE WHAT..``: deploys documents one after the other, or turns back by hand for the word
``rollback``; the groups of documents with the ids bad-0 to bad-9 fail their probation. The last line of its output is
the JSON list of the final statuses.
"""

import os
from pathlib import PurePosixPath

if "MARRAM_CUTS" in os.environ:  # before anything that might keep a reference to these calls
    HOOK = str(PurePosixPath(__file__).with_name("powercut_hook.py"))
    with open(HOOK) as file:
        exec(compile(file.read(), HOOK, "exec"), {"__name__": "powercut_hook"})

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from agent.deployment import installation
from agent.deployment.course import Limits
from agent.deployment.deployer import Deployer
from agent.deployment.store import Store
from agent.errors import FunctionError
from agent.settings import Caps, FetchLimits, Link, Policy, Settings, Topics
from tests.no_workers import NoWorkers

DEADLINE_S = 60.0
LIMITS = Limits(fetch=FetchLimits(free_bytes=0, attempts=1, backoff_s=0.05), caps=Caps())
BAD = FunctionError("PROBATION_ERROR_RATE", "too many requests failed", "Correct the function.")


def settings_of(state: Path) -> Settings:
    topics = Topics("d", "s", "t", "c", "e")
    nowhere = Link("local", "mqtt://127.0.0.1:1")
    return Settings(
        state / "topics.yaml", "cut", state, (), nowhere, None, topics, (), Policy(("*",), allow_unsigned_code=True)
    )


class Agent:
    """A deployer on a state directory, from its start to its end."""

    def __init__(self, state: Path) -> None:
        self.store = Store(state)
        self.final: dict[str, dict] = {}
        self._news = asyncio.Event()
        workers = NoWorkers({f"bad-{i}": BAD for i in range(10)})
        self.deployer = Deployer(self.store, settings_of(state), workers, self._report, limits=LIMITS)

    def _report(self, status: dict) -> None:
        if status["status"] != "IN_PROGRESS":
            self.final[status["deploymentId"]] = status
            self.deployer.reported(status["deploymentId"])
        self._news.set()

    async def deploy(self, body: bytes) -> dict:
        """The final status of a document."""
        self.deployer.receive(body, retained=False, accepted=lambda: None)
        return await self.ended(json.loads(body)["DeploymentId"])

    async def roll_back(self) -> dict:
        """The final status of turning back by hand."""
        return await self.ended(await self.deployer.roll_back())

    async def ended(self, id: str) -> dict:
        """A deployment's final status."""

        async def wait() -> dict:
            while id not in self.final:
                self._news.clear()
                await self._news.wait()
            return self.final[id]

        status = await asyncio.wait_for(wait(), DEADLINE_S)
        await asyncio.wait_for(self.deployer.idle(), DEADLINE_S)
        return status


async def main(state: Path, what: list[str]) -> list[dict]:
    agent = Agent(state)
    await agent.deployer.recover()
    agent.deployer.start()
    bodies = [None if each == "rollback" else read(each) for each in what]
    statuses = [await (agent.roll_back() if body is None else agent.deploy(body)) for body in bodies]
    await agent.deployer.close()
    return statuses


def read(path: str) -> bytes:
    return Path(path).read_bytes()


if __name__ == "__main__":
    if "MARRAM_CUTS" in os.environ:
        installation.BOOT = f"exec(compile(open({HOOK!r}).read(), {HOOK!r}, 'exec'), {{}})\n{installation.BOOT}"
    found = asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
    print(json.dumps(found))

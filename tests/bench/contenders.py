"""What is compared: how each is prepared and started, and what it is called."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.bench.cores import agent, deployed
from tests.bench.load import Way
from tests.bench.places import ECHO, RIVALS, loop_python
from tests.bench.running import PLAIN, Running, Site, spawn, started
from tests.bench.servers import mlserver, node_red

Start = Callable[[Site, str, Way], Running]


def c_echo(site: Site, name: str, way: Way) -> Running:
    """echo.c."""
    return Running(name, way, spawn(site, name, [str(ECHO), str(site.port), way.request, way.result]))


def nobody(site: Site, name: str, way: Way) -> Running:
    """The load generator hears its own requests."""
    return Running(name, way, None)


def loop(variant: str, model: str = "score") -> Start:
    """rivals/loop.py."""

    def start(site: Site, name: str, way: Way) -> Running:
        argv = [loop_python(), str(RIVALS / "loop.py"), str(site.port), way.request, way.result]
        return Running(name, way, spawn(site, name, [*argv, str(site.model(model)), variant], env=PLAIN))

    return start


@dataclass(frozen=True)
class Contender:
    """One line of the tables.

    Attributes:
        title: what the page calls it.
        prepare: what is done before it is started, once.
        request: what is sent to it, see `Site.request`.
        function: how its result topic ends.
    """

    title: str
    start: Start
    prepare: Callable[[Site, str], None] = lambda site, name: None
    request: str = "sensor"
    function: str = "score"

    def way(self, site: Site, name: str) -> Way:
        """Where it takes requests."""
        way = site.way(name, self.request, self.function)
        return dataclasses.replace(way, result=way.request) if self.start is nobody else way


_IMAGES = {"request": "image", "function": "look"}
_ENDPOINT = {"request": "endpoint", "function": "endpoint"}
CONTENDERS: dict[str, Contender] = {
    "broker": Contender("broker alone", nobody),
    "c-echo": Contender("C echo, libmosquitto", c_echo),
    "loop": Contender("loop with NODELAY", loop("nodelay")),
    "loop-typed": Contender("loop as typed", loop("typed")),
    "loop-late": Contender("loop, acknowledging late", loop("late")),
    "loop-orjson": Contender("loop with orjson", loop("orjson")),
    "agent": Contender("agent, code", agent, deployed()),
    "agent-2": Contender("agent, code, 2 workers", agent, deployed(workers=2)),
    "endpoint": Contender("agent, endpoint", agent, deployed("endpoint"), **_ENDPOINT),
    "endpoint-2": Contender("agent, endpoint, 2 workers", agent, deployed("endpoint", workers=2), **_ENDPOINT),
    "node-red": Contender("Node-RED, onnxruntime-node", node_red),
    "mlserver": Contender("MLServer, in one process", mlserver(0), request="endpoint"),
    "mlserver-default": Contender("MLServer, default", mlserver(1), request="endpoint"),
    "loop-image": Contender("loop with NODELAY", loop("nodelay", "look"), **_IMAGES),
    "agent-image": Contender("agent, code", agent, deployed("look", "look", EncodingType="binary"), **_IMAGES),
    "agent-image-2": Contender(
        "agent, code, 2 workers", agent, deployed("look", "look", workers=2, EncodingType="binary"), **_IMAGES
    ),
}


def start(site: Site, name: str) -> Running:
    """Starts this contender and waits for its first answer."""
    contender = CONTENDERS[name]
    contender.prepare(site, name)
    way = contender.way(site, name)
    return started(lambda: contender.start(site, name, way), way)


@contextlib.contextmanager
def running(site: Site, names: list[str]) -> Iterator[dict[str, Running]]:
    """These contenders at work, one started after the other, ended with the block."""
    found: dict[str, Running] = {}
    try:
        for name in names:
            found[name] = start(site, name)
        yield found
    finally:
        for each in found.values():
            each.stop()

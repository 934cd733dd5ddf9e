"""What users would pick instead of writing anything: Node-RED with onnxruntime-node, and MLServer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from tests.bench.load import Way
from tests.bench.places import MLSERVER, NODE_RED, RIVALS
from tests.bench.running import PLAIN, Running, Site, spawn
from tests.mqtt_kit import free_port

SETTINGS = """
const ort = require(%(ort)s);
module.exports = {
    uiHost: "127.0.0.1", uiPort: %(port)d, flowFile: "flows.json", httpAdminRoot: false, credentialSecret: false,
    functionGlobalContext: {
        ort, Float32Array,
        session: ort.InferenceSession.create(%(model)s, { intraOpNumThreads: 1, interOpNumThreads: 1 }),
    },
    logging: { console: { level: "warn" } },
};
"""


def node_red(site: Site, name: str, way: Way) -> Running:
    """Node-RED without its editor: MQTT in, a function node, MQTT out."""
    directory = site.directory / name
    directory.mkdir(exist_ok=True)
    values = {
        "ort": json.dumps(str(NODE_RED / "node_modules" / "onnxruntime-node")),
        "port": free_port(),
        "model": json.dumps(str(site.model("score"))),
    }
    (directory / "settings.js").write_text(SETTINGS % values)
    (directory / "flows.json").write_text(json.dumps(_flow(way)))
    red = NODE_RED / "node_modules" / "node-red" / "red.js"
    return Running(name, way, spawn(site, name, ["node", str(red), "--userDir", str(directory)], env=PLAIN))


def _flow(way: Way) -> list[dict[str, Any]]:
    broker = {"id": "b", "type": "mqtt-broker", "broker": "127.0.0.1", "port": str(way.port), "clientid": "",
              "autoConnect": True, "usetls": False, "protocolVersion": "4", "keepalive": "60",
              "cleansession": True}  # fmt: skip
    place = {"z": "t", "x": 100, "y": 100}
    return [
        {"id": "t", "type": "tab", "label": "bench", "disabled": False},
        broker,
        {**place, "id": "in", "type": "mqtt in", "topic": way.request, "qos": "1", "datatype": "json", "broker": "b",
         "nl": False, "rap": True, "rh": 0, "inputs": 0, "wires": [["f"]]},
        {**place, "id": "f", "type": "function", "func": (RIVALS / "node_red.js").read_text(), "outputs": 1,
         "noerr": 0, "initialize": "", "finalize": "", "libs": [], "wires": [["out"]]},
        {**place, "id": "out", "type": "mqtt out", "topic": way.result, "qos": "", "retain": "", "broker": "b",
         "wires": []},
    ]  # fmt: skip


def mlserver(workers: int) -> Callable[[Site, str, Way], Running]:
    """MLServer behind the bridge.

    Args:
        workers: `parallel_workers`; its default is 1, and 0, all in one process, is the faster.
    """

    def start(site: Site, name: str, way: Way) -> Running:
        directory = site.directory / name
        directory.mkdir(exist_ok=True)
        ports = {f"{each}_port": free_port() for each in ("http", "grpc", "metrics")}
        settings = {"host": "127.0.0.1", "parallel_workers": workers, "debug": False, **ports}
        model = {"name": "score", "implementation": "scorer.Scorer", "parameters": {"uri": str(site.model("score"))}}
        (directory / "settings.json").write_text(json.dumps(settings))
        (directory / "model-settings.json").write_text(json.dumps(model))
        bin = MLSERVER / "bin"
        environment = {**PLAIN, "PATH": f"{bin}{os.pathsep}{PLAIN['PATH']}", "PYTHONPATH": str(RIVALS)}
        server = spawn(site, name, [str(bin / "mlserver"), "start", str(directory)], env=environment)
        argv = [str(bin / "python"), str(RIVALS / "bridge.py"), str(site.port), way.request, way.result]
        bridge = spawn(site, f"{name}-bridge", [*argv, str(ports["http_port"])], env=PLAIN)
        return Running(name, way, server, [bridge], roles=lambda: {bridge.pid: "bridge"}, http_port=ports["http_port"])

    return start

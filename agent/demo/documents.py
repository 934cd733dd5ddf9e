"""What the demonstration writes down: the core's topics.yaml, the model archives and the deployment documents.

All of it is what a user writes; nothing here is known to the agent in another way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

import functions
from agent.archive import pack
from agent.values import dataclass

CORE = "demo-core"
BUCKET = "factory-models"
MODEL = "activity-model"
FUNCTION = "activity"
CAPTURE_RATE = 0.2


@dataclass(frozen=True, slots=True)
class Package:
    """A model's archive. `digest` is the version that the core must report for it."""

    file: Path
    digest: str

    def in_bucket(self, destination: Path) -> dict[str, Any]:
        """The source of a model in S3, which appears at `destination` on the core too."""
        data = {"S3Uri": f"s3://{BUCKET}/{self.file.name}", "DestinationPath": str(destination)}
        return {"S3MachineLearningModelResourceData": data}


def write_topics(
    folder: Path,
    *,
    core: str,
    local: dict[str, str],
    cloud: dict[str, str] | str,
    policy: dict[str, list[str]],
    **more: Any,
) -> Path:
    """Writes `folder`/topics.yaml; the state lies beside it, the functions are the project's own."""
    settings = {
        "core": core,
        "state": "state",
        "functions": [str(Path(functions.__file__).parent)],
        "links": {"local": local, "cloud": cloud},
        "policy": policy,
        **more,
    }
    file = folder / "topics.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    return file


def package(directory: Path, file: Path) -> Package:
    """Packs `directory` into `file`, a .tar.gz or .zip, as `marram package` does."""
    return Package(file, pack(directory, file)["digest"])


def flip_byte(file: Path, copy: Path) -> Path:
    """Copies `file` with one bit of its middle byte turned."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    return copy


def deployment(id: str, source: dict[str, Any], digest: str, *, results: str) -> dict[str, Any]:
    """The document that deploys a model with the function ``activity`` and the watches' questions.

    Args:
        source: where the model is, as `Package` gives it.
        results: where all results go besides the requesters, ``cloud`` or ``local``.
    """
    resource = {
        "Id": MODEL,
        "Name": "ActivityModel",
        "ResourceDataContainer": source,
        "Marram": {"Digest": digest},
    }
    function = {
        "Id": FUNCTION,
        "FunctionArn": f"function:{FUNCTION}",
        "FunctionConfiguration": {
            "EncodingType": "json",
            "Timeout": 3,
            "Pinned": True,
            "Environment": {"ResourceAccessPolicies": [{"ResourceId": MODEL, "Permission": "ro"}]},
        },
        "Marram": {"Capture": {"Strategy": "random", "Rate": CAPTURE_RATE}},
    }
    name = f"function:{FUNCTION}"
    subscriptions = [
        {"Id": "questions", "Source": "local", "Subject": "sensors/+/motion", "Target": name},
        {"Id": "results", "Source": name, "Subject": "sensors/+/motion/activity", "Target": results},
    ]
    return {"DeploymentId": id, "Resources": [resource], "Functions": [function], "Subscriptions": subscriptions}


def write_json(file: Path, document: dict[str, Any]) -> Path:
    """Saves the document, for who wants to send it by hand."""
    file.write_text(json.dumps(document, indent=2) + "\n")
    return file


def request(window: list[list[float]]) -> dict[str, Any]:
    """A request as a watch sends it, answered on ``watches/me/answers``."""
    return {"meta": {"id": "by-hand-1", "reply_to": "watches/me/answers"}, "window": window}

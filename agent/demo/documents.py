"""What the demonstration writes down: the core's topics.yaml, the model archives and the deployment documents.

All of it is what a user writes; nothing here is known to the agent in another way.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agent.archive import pack

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

    @property
    def uri(self) -> str:
        return f"s3://{BUCKET}/{self.file.name}"


def write_topics(folder: Path, *, local_port: int, cloud_port: int, functions: Path) -> Path:
    """Writes topics.yaml into `folder`: an embedded local broker, a cloud broker, and a policy for the one bucket."""
    settings = {
        "core": CORE,
        "state": "state",
        "functions": [str(functions)],
        "links": {
            "local": {"url": "embedded", "listen": f"127.0.0.1:{local_port}"},
            "cloud": {"url": f"mqtt://127.0.0.1:{cloud_port}"},
        },
        "policy": {"sources": [f"s3://{BUCKET}/*"], "destinations": [str(folder / "ml")]},
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


def deployment(id: str, model: Package, folder: Path) -> dict[str, Any]:
    """The document that deploys `model` with the function ``activity``, the watches' questions and the results' way.

    Args:
        folder: the one of topics.yaml; the model appears in it as ``ml/activity``.
    """
    data = {"S3Uri": model.uri, "DestinationPath": str(folder / "ml" / "activity")}
    resource = {
        "Id": MODEL,
        "Name": "ActivityModel",
        "ResourceDataContainer": {"S3MachineLearningModelResourceData": data},
        "Marram": {"Digest": model.digest},
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
        {"Id": "results", "Source": name, "Subject": "sensors/+/motion/activity", "Target": "cloud"},
    ]
    return {"DeploymentId": id, "Resources": [resource], "Functions": [function], "Subscriptions": subscriptions}


def write_document(document: dict[str, Any], folder: Path) -> Path:
    """Saves the document as ``DEPLOYMENT-ID.json`` in `folder`, for who wants to deploy it by hand."""
    file = folder / f"{document['DeploymentId']}.json"
    file.write_text(json.dumps(document, indent=2) + "\n")
    return file

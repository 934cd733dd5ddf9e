"""The cloud's side of AWS IoT Jobs on any broker that carries ``$aws/..``: an MQTT client that answers as documented.

Written from the developer guide: "Jobs device MQTT API operations", "Jobs device data types", "Error codes". What the
guide leaves open (whether a terminal state or a version is looked at first) is marked below.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as paho

from tests.mqtt_kit import PlainClient, wait_until

FROM_DEVICES = ("IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED")
TERMINAL = ("SUCCEEDED", "FAILED", "REJECTED", "CANCELED", "TIMED_OUT", "REMOVED")
DETAIL_KEY = re.compile(r"[a-zA-Z0-9:_-]{1,128}")
DETAIL_VALUE = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,1024}")
MAX_DOCUMENT = 32_768


@dataclass
class Execution:
    """One execution of a job on the thing; `history` holds (version, status, statusDetails) after each change."""

    job: str
    document: Callable[[], dict[str, Any]]
    number: int = 1
    status: str = "QUEUED"
    version: int = 1
    details: dict[str, str] = field(default_factory=dict)
    queued_at: int = field(default_factory=lambda: int(time.time()))
    history: list[tuple[int, str, dict[str, str]]] = field(default_factory=list)

    def change(self, status: str, details: dict[str, str] | None) -> None:
        self.status, self.version = status, self.version + 1
        self.details = self.details if details is None else details
        self.history.append((self.version, status, self.details))

    def statuses(self) -> list[str]:
        return [status for _, status, _ in self.history]


class JobsEmulator:
    """The cloud's jobs of one thing.

    Attributes:
        requests: (topic below the thing's jobs, values) of all that the device asked.
        mischief: asked with (operation, values) before a request is answered; a code rejects it, "" drops it.
    """

    def __init__(self, port: int, thing: str) -> None:
        self.prefix = f"$aws/things/{thing}/jobs/"
        self.thing = thing
        self.executions: list[Execution] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.mischief: Callable[[str, dict[str, Any]], str | None] = lambda operation, values: None
        self._lock = threading.RLock()
        self._client = PlainClient(port, "jobs-emulator")
        self._client.client.on_message = self._on_message
        for filter in ("start-next", "+/get", "+/update"):
            self._client.subscribe(self.prefix + filter)

    # -- the control plane ------------------------------------------------------------------------------------------

    def queue(self, job: str, document: dict[str, Any] | Callable[[], dict[str, Any]]) -> Execution:
        """CreateJob with this thing as target; a document that is a function is expanded each time it is given out."""
        make = document if callable(document) else lambda: document
        assert len(json.dumps(make())) <= MAX_DOCUMENT
        with self._lock:
            number = 1 + max((each.number for each in self.executions if each.job == job), default=0)
            execution = Execution(job, make, number)
            self._changing(lambda: self.executions.append(execution))
        return execution

    def end(self, execution: Execution, status: str = "CANCELED") -> None:
        """CancelJobExecution with force, or a time-out."""
        with self._lock:
            self._changing(lambda: execution.change(status, None))

    def bump(self, execution: Execution) -> None:
        """Somebody else updates the execution, as with the same certificate from another machine."""
        with self._lock:
            execution.change(execution.status, None)

    def wait(self, execution: Execution, *statuses: str, deadline_s: float = 60) -> Execution:
        wait_until(lambda: execution.status in statuses, f"{execution.job} {statuses}", deadline_s)
        return execution

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> JobsEmulator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the device's requests --------------------------------------------------------------------------------------

    def _on_message(self, _client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        topic = message.topic[len(self.prefix) :]
        with self._lock:
            try:
                values = json.loads(message.payload)
            except ValueError:
                self._say(f"{topic}/rejected", {"code": "InvalidJson", "message": "not JSON"})
                return
            self.requests.append((topic, values))
            *job, operation = topic.split("/")
            trouble = self.mischief(operation, values)
            if trouble == "":
                return
            if trouble:
                self._reject(topic, values, trouble)
            elif operation == "start-next":
                self._start_next(topic, values)
            elif operation == "get":
                self._get(topic, values, job[0])
            else:
                self._update(topic, values, job[0])

    def _start_next(self, topic: str, values: dict[str, Any]) -> None:
        if not self._details_are_good(values):
            return self._reject(topic, values, "InvalidRequest")
        execution = self._next()
        if execution is not None and execution.status == "QUEUED":  # one that is IN_PROGRESS keeps its details
            execution.change("IN_PROGRESS", values.get("statusDetails", {}))
        return self._accept(topic, values, {"execution": self._shown(execution)} if execution else {})

    def _get(self, topic: str, values: dict[str, Any], job: str) -> None:
        execution = self._next() if job == "$next" else self._find(job, values)
        if execution is None:
            return (
                self._accept(topic, values, {}) if job == "$next" else self._reject(topic, values, "ResourceNotFound")
            )
        if execution.status in TERMINAL:
            return self._reject(topic, values, "TerminalStateReached")
        shown = self._shown(execution, document=values.get("includeJobDocument", True))
        return self._accept(topic, values, {"execution": shown})

    def _update(self, topic: str, values: dict[str, Any], job: str) -> None:
        execution = self._find(job, values)
        if values.get("status") not in FROM_DEVICES or not self._details_are_good(values):
            return self._reject(topic, values, "InvalidRequest")
        if execution is None:
            return self._reject(topic, values, "ResourceNotFound")
        if execution.status in TERMINAL:  # not documented which comes first, this or the version
            return self._reject(topic, values, "InvalidStateTransition", execution)
        if values.get("expectedVersion", execution.version) != execution.version:
            return self._reject(topic, values, "VersionMismatch", execution)
        self._changing(lambda: execution.change(values["status"], values.get("statusDetails")))
        state = {"executionState": self._state(execution)} if values.get("includeJobExecutionState") else {}
        return self._accept(topic, values, state)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _find(self, job: str, values: dict[str, Any]) -> Execution | None:
        number = values.get("executionNumber")
        found = [each for each in self.executions if each.job == job and number in (None, each.number)]
        return found[-1] if found else None

    def _next(self) -> Execution | None:
        """IN_PROGRESS before QUEUED, the older before the newer."""
        for status in ("IN_PROGRESS", "QUEUED"):
            for execution in self.executions:
                if execution.status == status:
                    return execution
        return None

    def _changing(self, change: Callable[[], object]) -> None:
        """Says which execution is next if another is after `change`."""
        before = self._next()
        change()
        after = self._next()
        if before is not after:
            self._say("notify-next", {"execution": self._shown(after)} if after else {})

    def _shown(self, execution: Execution, *, document: bool = True) -> dict[str, Any]:
        return {
            "jobId": execution.job,
            "thingName": self.thing,
            "status": execution.status,
            "statusDetails": execution.details,
            "queuedAt": execution.queued_at,
            "lastUpdatedAt": int(time.time()),
            "versionNumber": execution.version,
            "executionNumber": execution.number,
            **({"jobDocument": execution.document()} if document else {}),
        }

    def _state(self, execution: Execution) -> dict[str, Any]:
        return {"status": execution.status, "statusDetails": execution.details, "versionNumber": execution.version}

    @staticmethod
    def _details_are_good(values: dict[str, Any]) -> bool:
        details = values.get("statusDetails", {})
        return len(details) <= 10 and all(
            DETAIL_KEY.fullmatch(key) and isinstance(value, str) and DETAIL_VALUE.fullmatch(value)
            for key, value in details.items()
        )

    def _accept(self, topic: str, values: dict[str, Any], answer: dict[str, Any]) -> None:
        self._say(f"{topic}/accepted", {**answer, "clientToken": values.get("clientToken")})

    def _reject(self, topic: str, values: dict[str, Any], code: str, execution: Execution | None = None) -> None:
        state = {"executionState": self._state(execution)} if execution else {}
        answer = {"code": code, "message": f"{code} by the emulator", "clientToken": values.get("clientToken"), **state}
        self._say(f"{topic}/rejected", answer)

    def _say(self, topic: str, values: dict[str, Any]) -> None:
        payload = json.dumps({"timestamp": int(time.time()), **values})
        self._client.client.publish(self.prefix + topic, payload, qos=1)

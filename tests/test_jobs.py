"""AWS IoT Jobs: the channel's decisions by tables and at random, and a real agent driven through an emulated cloud."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agent.cloud import job_messages as messages
from agent.cloud import jobs
from agent.cloud.job_messages import Execution
from agent.cloud.jobs import Action, Anew, Cancel, Deploy, Jobs, Publish
from agent.deployment.document import deployment_id_of
from agent.errors import ConfigError
from agent.settings import reader
from tests.agent_kit import BUCKET, CORE, Core, function
from tests.conftest import Site
from tests.jobs_emulator import DETAIL_KEY, DETAIL_VALUE, JobsEmulator
from tests.mqtt_kit import wait_until
from tests.test_main_job import group, put_model, statuses

THING = CORE
PREFIX = f"$aws/things/{THING}/jobs/"
DOCUMENT = {"Resources": [], "Functions": [], "Subscriptions": []}


def id_of(body: bytes) -> str | None:
    id = deployment_id_of(body)
    return None if id == "-" else id


def execution(job: str = "job-1", status: str = "IN_PROGRESS", **more: Any) -> dict[str, Any]:
    values = {"versionNumber": 2, "executionNumber": 1, "jobDocument": DOCUMENT, **more}
    return {"jobId": job, "status": status, **values}


def status(state: str, id: str = "job-1", code: str = "", **more: Any) -> dict[str, Any]:
    reason = {"code": code, "message": "because"} if code else None
    return {"deploymentId": id, "status": state, "phase": "fetching", "reason": reason, **more}


class Bench:
    """The channel with a made-up clock, and what it did."""

    def __init__(self) -> None:
        self.jobs = Jobs(THING, "boot", lambda: 0.5, id_of)
        self.now_s = 100.0
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.deployed: list[str] = []
        self.cancelled: list[tuple[str, str]] = []
        self.anew: list[Anew] = []

    def up(self) -> Bench:
        self.did(self.jobs.link_up(self.now_s))
        return self

    def did(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Publish):
                assert action.topic.startswith(PREFIX)
                self.asked.append((action.topic[len(PREFIX) :], dict(action.values)))
            elif isinstance(action, Deploy):
                self.deployed.append(action.document.deployment)
            elif isinstance(action, Anew):
                self.anew.append(action)
            elif isinstance(action, Cancel):
                self.cancelled.append((action.deployment, action.status))

    def says(self, topic: str, **values: Any) -> None:
        self.did(self.jobs.receive(PREFIX + topic, json.dumps(values).encode(), self.now_s))

    def answers(self, how: str = "accepted", **values: Any) -> None:
        """The cloud's reply to what was asked last."""
        topic, asked = self.asked[-1]
        self.says(f"{topic}/{how}", clientToken=asked["clientToken"], **values)

    def started(self) -> Bench:
        """A job runs and the deployer has its document."""
        self.up().answers(execution=execution())
        self.jobs.taken("job-1")
        return self

    def ending(self, state: str = "SUCCEEDED") -> Bench:
        """As `started`, and its end is being told."""
        self.started().did(self.jobs.told(status(state), self.now_s))
        return self

    def passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.did(self.jobs.tick(self.now_s))

    def until_due(self) -> None:
        assert self.jobs.due_s is not None
        self.now_s = max(self.now_s, self.jobs.due_s)
        self.did(self.jobs.tick(self.now_s))

    @property
    def last(self) -> str:
        return self.asked[-1][0]


# -- the ordinary course ----------------------------------------------------------------------------------------------


def test_a_job_is_started_deployed_followed_and_ended() -> None:
    bench = Bench().up()
    assert bench.asked == [("start-next", {"statusDetails": {"phase": "received"}, "clientToken": "boot-1"})]
    bench.answers(execution=execution())
    assert bench.deployed == ["job-1"]
    bench.jobs.taken("job-1")
    bench.passes(6)
    progress = {"id": "model", "bytes": 5, "total": 10}
    bench.did(bench.jobs.told(status("IN_PROGRESS", progress=progress), bench.now_s))
    topic, said = bench.asked[-1]
    assert topic == "job-1/update"
    assert said["status"] == "IN_PROGRESS"
    assert said["expectedVersion"] == 2
    assert said["executionNumber"] == 1
    assert said["statusDetails"] == {"deployment": "job-1", "phase": "fetching", "progress": "model 5/10"}
    bench.answers(executionState={"status": "IN_PROGRESS", "versionNumber": 3})
    bench.did(bench.jobs.told(status("FAILED", code="DISK_FULL"), bench.now_s))
    topic, said = bench.asked[-1]
    assert (topic, said["status"], said["expectedVersion"]) == ("job-1/update", "FAILED", 3)
    assert said["statusDetails"]["code"] == "DISK_FULL"
    bench.answers(executionState={"status": "FAILED", "versionNumber": 4})
    assert bench.jobs.job is None
    assert bench.last == "start-next"  # whether another waits
    bench.answers()
    assert bench.jobs.due_s is None
    bench.says("notify-next", execution=execution("job-2", "QUEUED"))
    assert bench.last == "start-next"


def test_progress_is_told_now_and_then_and_the_end_at_once() -> None:
    bench = Bench().started()
    asked = len(bench.asked)
    for i in range(20):
        bench.passes(0.1)
        bench.did(bench.jobs.told(status("IN_PROGRESS", progress={"id": "m", "bytes": i, "total": 20}), bench.now_s))
    assert len(bench.asked) == asked
    bench.until_due()
    assert bench.asked[-1][1]["statusDetails"]["progress"] == "m 19/20"
    bench.did(bench.jobs.told(status("SUCCEEDED"), bench.now_s))
    bench.answers(executionState={"status": "IN_PROGRESS", "versionNumber": 3})
    assert bench.asked[-1][1]["status"] == "SUCCEEDED"


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "REJECTED"])
def test_every_end_of_a_deployment_is_an_end_of_its_job(state: str) -> None:
    bench = Bench().ending(state)
    assert bench.asked[-1][1]["status"] == state


def test_nothing_of_another_deployment_is_told() -> None:
    bench = Bench().started()
    bench.did(bench.jobs.told(status("FAILED", id="other"), bench.now_s))
    bench.did(bench.jobs.told(status("REJECTED", code="ID_REUSED"), bench.now_s))  # another's document with this id
    assert bench.last == "start-next"
    refused = Bench().up()
    refused.answers(execution=execution())
    refused.did(refused.jobs.told(status("REJECTED", code="ID_REUSED"), refused.now_s))  # before it was taken: its own
    assert refused.asked[-1][1]["status"] == "REJECTED"


@pytest.mark.parametrize("document", [None, 7, [], {}, {"DeploymentId": ""}, {"DeploymentId": "-"}, "no JSON"])
def test_a_job_without_a_deployment_is_rejected(document: Any) -> None:
    bench = Bench().up()
    bench.answers(execution=execution(jobDocument=document))
    assert bench.deployed == []
    said = bench.asked[-1][1]
    assert (said["status"], said["statusDetails"]["code"]) == ("REJECTED", "BAD_DOCUMENT")


# -- rejected ---------------------------------------------------------------------------------------------------------

# (code, executionState) of a rejected final update -> (what is asked next, cancelled)
ENDED = {"status": "SUCCEEDED", "versionNumber": 9}
CANCELED = {"status": "CANCELED", "versionNumber": 9}
REJECTED: list[tuple[str, dict[str, Any] | None, str]] = [
    ("VersionMismatch", {"status": "IN_PROGRESS", "versionNumber": 9}, "job-1/update"),
    ("VersionMismatch", {"status": "QUEUED", "versionNumber": 9}, "job-1/update"),
    ("VersionMismatch", None, "job-1/get"),
    ("VersionMismatch", ENDED, "start-next"),
    ("VersionMismatch", CANCELED, "start-next"),
    ("InvalidStateTransition", None, "job-1/get"),
    ("InvalidStateTransition", ENDED, "start-next"),
    ("InvalidStateTransition", {"status": "TIMED_OUT"}, "start-next"),
    ("InvalidStateTransition", {"status": "IN_PROGRESS", "versionNumber": 9}, "job-1/update"),
    ("TerminalStateReached", None, "start-next"),
    ("ResourceNotFound", None, "start-next"),
    ("RequestThrottled", None, "job-1/update"),
    ("InternalError", None, "job-1/update"),
    ("InvalidRequest", None, "start-next"),
    ("InvalidJson", None, "start-next"),
    ("InvalidTopic", None, "start-next"),
    ("SomethingNew", None, "start-next"),
]


@pytest.mark.parametrize(("code", "state", "then"), REJECTED)
def test_a_rejected_end_is_handled_by_its_code(code: str, state: dict[str, Any] | None, then: str) -> None:
    bench = Bench().ending()
    more = {"executionState": state} if state else {}
    bench.answers("rejected", code=code, message="no", **more)
    if bench.jobs.asked is None:
        bench.until_due()
    assert bench.last == then
    if then.endswith("update") and state:
        assert bench.asked[-1][1]["expectedVersion"] == 9
    assert bench.cancelled == []  # the deployment has ended already


@pytest.mark.parametrize(("code", "state", "then"), REJECTED)
def test_rejected_progress_never_ends_the_deployment_unless_its_job_did(
    code: str, state: dict[str, Any] | None, then: str
) -> None:
    bench = Bench().started()
    bench.passes(6)
    bench.did(bench.jobs.told(status("IN_PROGRESS"), bench.now_s))
    bench.answers("rejected", code=code, message="no", **({"executionState": state} if state else {}))
    ended = code in jobs.GONE or (state or {}).get("status") in messages.TERMINAL
    assert bench.cancelled == ([("job-1", state["status"] if state else "gone")] if ended else [])
    assert (bench.jobs.job is None) == ended


@pytest.mark.parametrize("how", ["rejected", "silence"])
def test_tries_are_bounded_and_ever_further_apart(how: str) -> None:
    bench, waits = Bench().ending(), []
    while bench.jobs.job is not None:
        before = bench.now_s
        if how == "rejected" and bench.jobs.asked is not None:
            bench.answers("rejected", code="RequestThrottled", message="slow down")
        else:
            bench.until_due()
            waits.append(bench.now_s - before)
    assert sum(topic == "job-1/update" for topic, _ in bench.asked) == jobs.TRIES
    waits = waits if how == "rejected" else waits[1::2]  # between them are the replies' deadlines
    assert len(waits) == jobs.TRIES - 1
    assert waits == sorted(waits)
    assert bench.jobs.job is None
    bench.answers(execution=execution())  # the cloud still has it: it is let be
    assert bench.jobs.due_s is None
    assert bench.deployed == ["job-1"]
    bench.jobs.link_down()
    bench.up()
    bench.answers(execution=execution())  # until the next connection
    assert bench.deployed == ["job-1", "job-1"]


def test_a_start_that_is_refused_rests_until_something_new_comes() -> None:
    bench = Bench().up()
    bench.answers("rejected", code="ResourceNotFound", message="no such thing")
    assert bench.jobs.due_s is None
    bench.says("notify-next", execution=execution("job-2", "QUEUED"))
    assert bench.last == "start-next"


def test_a_reply_without_its_token_counts_only_where_it_rejects() -> None:
    bench = Bench().up()
    bench.says("start-next/accepted", execution=execution())
    assert bench.deployed == []
    bench.says("start-next/accepted", execution=execution(), clientToken="boot-77")
    assert bench.deployed == []
    bench.says("start-next/rejected", code="InvalidJson", message="?")
    assert bench.jobs.asked is None


# -- the cloud ends it, the link goes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("next", [{}, {"execution": execution("job-2", "QUEUED")}])
def test_a_job_that_ends_in_the_cloud_cancels_its_deployment(next: dict[str, Any]) -> None:
    bench = Bench().started()
    bench.says("notify-next", **next)
    assert bench.last == "job-1/get"
    bench.answers("rejected", code="TerminalStateReached", message="over")
    assert bench.cancelled == [("job-1", "gone")]
    assert bench.last == "start-next"


def test_a_notification_that_changes_nothing_for_the_job_asks_once() -> None:
    bench = Bench().started()
    bench.says("notify-next", execution=execution())
    assert bench.last == "start-next"
    bench.says("notify-next", execution=execution("job-2", "QUEUED"))
    bench.answers(execution=execution())
    assert bench.cancelled == []
    assert bench.jobs.due_s is None


def test_after_a_lost_connection_the_execution_is_looked_at_before_anything_is_told() -> None:
    bench = Bench().ending()
    bench.jobs.link_down()
    assert bench.jobs.due_s is None
    bench.up()
    bench.until_due()
    assert bench.last == "job-1/get"
    bench.answers(execution=execution(versionNumber=7))
    assert (bench.last, bench.asked[-1][1]["expectedVersion"]) == ("job-1/update", 7)


def test_a_broker_that_hangs_up_at_each_request_is_asked_ever_more_seldom() -> None:
    bench, waits = Bench(), []
    for _ in range(14):
        bench.up()
        before = bench.now_s
        if bench.jobs.asked is None:
            bench.until_due()
        waits.append(bench.now_s - before)
        bench.jobs.link_down()
    assert waits[0] == 0
    assert waits == sorted(waits)
    assert waits[-1] > 1000


# -- messages and documents -------------------------------------------------------------------------------------------


def test_the_filters_let_in_all_replies_and_no_two_overlap() -> None:
    from paho.mqtt.client import topic_matches_sub

    topics = ["notify-next", "start-next/accepted", "start-next/rejected", "$next/get/accepted", "j/get/rejected"]
    topics += ["j/update/accepted", "j/update/rejected"]
    for topic in topics:
        assert sum(topic_matches_sub(f, PREFIX + topic) for f in messages.filters(THING)) == 1, topic
    for asked in ("start-next", "j/get", "j/update"):
        assert not any(topic_matches_sub(f, PREFIX + asked) for f in messages.filters(THING))
    longest = f"$aws/things/{'t' * 128}/jobs/{'j' * 64}/update/accepted"
    assert len(longest) <= 256
    assert longest.count("/") <= 7


def test_the_job_s_id_is_the_deployment_s_where_the_document_has_none() -> None:
    def id(number: int | None, **document: Any) -> str:
        found = messages.document_of(Execution("job-1", "QUEUED", 1, number, {**DOCUMENT, **document}), id_of)
        assert found is not None
        return found.deployment

    assert id(1) == id(None) == "job-1"
    assert id(2) == "job-1:2"
    assert id(2, DeploymentId="mine") == "mine"


def test_a_document_that_comes_again_with_another_signature_is_the_same() -> None:
    def found(url: str) -> messages.Document:
        made = messages.document_of(Execution("j", "QUEUED", 1, 1, {**DOCUMENT, "a": [{"Url": url}]}), id_of)
        assert made is not None
        return made

    base = "https://b.s3.eu-west-1.amazonaws.com/m.tgz?versionId=3"
    one, two = (found(f"{base}&X-Amz-Signature={s}&X-Amz-Date=2026{s}&X-Amz-Expires=60") for s in ("aa", "bb"))
    assert one.body != two.body
    assert one.identity == two.identity
    assert one.identity is not None
    assert b"versionId=3" in one.identity
    assert found(base).identity is None
    other = found("https://b.s3.eu-west-1.amazonaws.com/m.tgz?versionId=4&X-Amz-Signature=aa")
    assert other.identity != one.identity


def test_the_order_of_keys_makes_no_other_document() -> None:
    made = [messages.document_of(Execution("j", "", 1, 1, d), id_of) for d in ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
    assert made[0] == made[1]


@given(st.dictionaries(st.sampled_from(["phase", "deploymentId", "x"]), st.text()), st.text(max_size=3000))
def test_details_are_what_aws_takes(values: dict[str, str], text: str) -> None:
    reason = {"code": "X", "message": text}
    resources = [{"id": str(i), "version": "sha256:" + "0" * 64} for i in range(50)]
    found = messages.details_of({**values, "status": "SUCCEEDED", "reason": reason, "resources": resources})
    assert len(found) <= messages.MAX_DETAILS
    for key, value in found.items():
        assert DETAIL_KEY.fullmatch(key)
        assert DETAIL_VALUE.fullmatch(value)


# -- at random --------------------------------------------------------------------------------------------------------

REPLIES_ON = ("start-next", "job-1/get", "job-1/update", "job-2/update", "$next/get")
TOPICS = ["notify-next", *(f"{t}/{how}" for t in REPLIES_ON for how in ("accepted", "rejected", "other")), "x", ""]
CODES = sorted({code for code, _, _ in REJECTED})
STATES = ["IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED"]
ANY_STATUS = st.sampled_from(["QUEUED", *sorted(messages.TERMINAL), "IN_PROGRESS", "NEW", ""])
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    max_leaves=4,
)
EXECUTIONS = st.fixed_dictionaries(
    {},
    optional={
        "jobId": st.sampled_from(["job-1", "job-2", "no id!"]) | ANY_VALUE,
        "status": ANY_STATUS | ANY_VALUE,
        "versionNumber": st.integers(0, 9) | ANY_VALUE,
        "executionNumber": st.integers(1, 3) | ANY_VALUE,
        "jobDocument": st.just(DOCUMENT) | ANY_VALUE,
    },
)
REPLIES = st.fixed_dictionaries(
    {},
    optional={
        "clientToken": st.integers(1, 40).map(lambda n: f"boot-{n}") | ANY_VALUE,
        "code": st.sampled_from(CODES) | ANY_VALUE,
        "execution": EXECUTIONS | ANY_VALUE,
        "executionState": EXECUTIONS | ANY_VALUE,
    },
)
EVENTS = st.one_of(
    st.tuples(st.just("message"), st.sampled_from(TOPICS), REPLIES),
    st.tuples(st.just("reply"), st.sampled_from(["accepted", "rejected"]), REPLIES),
    st.tuples(st.just("bytes"), st.sampled_from(TOPICS), st.binary(max_size=20)),
    st.tuples(st.just("told"), st.sampled_from(STATES), st.text(max_size=3)),
    st.tuples(st.just("time"), st.floats(0, 100), st.none()),
    st.tuples(st.sampled_from(["up", "down", "taken", "stale"]), st.none(), st.none()),
)


def _happens(bench: Bench, event: tuple[str, Any, Any]) -> None:
    kind, what, more = event
    if kind == "message":
        bench.says(what, **more)
    elif kind == "reply" and bench.asked:
        topic, asked = bench.asked[-1]
        bench.says(f"{topic}/{what}", **{**more, "clientToken": asked["clientToken"]})
    elif kind == "bytes":
        bench.did(bench.jobs.receive(PREFIX + what, more, bench.now_s))
    elif kind == "told" and bench.jobs.job:
        bench.did(bench.jobs.told(status(what, id=bench.jobs.job.deployment, code=more), bench.now_s))
    elif kind == "time":
        bench.passes(what)
    elif kind == "up":
        bench.up()
    elif kind == "down":
        bench.jobs.link_down()
    elif kind == "stale" and bench.jobs.job:
        bench.did(bench.jobs.ask_anew(bench.jobs.job.deployment, bench.now_s))
    elif kind == "taken" and bench.jobs.job:
        bench.jobs.taken(bench.jobs.job.deployment)


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_whatever_comes_in_whatever_order_it_ends_well(events: list[tuple[str, Any, Any]]) -> None:
    """Nothing raises, one request at most is out, and a good cloud brings it to rest from wherever it is."""
    bench = Bench()
    for event in events:
        before = len(bench.asked)
        _happens(bench, event)
        assert len(bench.asked) - before <= 1
        tokens = [asked["clientToken"] for _, asked in bench.asked]
        assert len(set(tokens)) == len(tokens)
        if bench.jobs.asked is not None:
            assert bench.jobs.asked.token == tokens[-1]
    _bring_to_rest(bench)


def _bring_to_rest(bench: Bench) -> None:
    bench.jobs.link_down()
    bench.up()
    for _ in range(10):
        if bench.jobs.asked is None and bench.jobs.due_s is not None:
            bench.until_due()
        elif bench.jobs.asked is None and bench.jobs.job is None:
            return
        elif bench.jobs.asked is None:
            bench.did(bench.jobs.told(status("SUCCEEDED", id=bench.jobs.job.deployment), bench.now_s))  # type: ignore[union-attr]
        elif bench.last == "start-next":
            bench.answers()
        elif bench.last.endswith("get"):
            bench.answers(execution=execution(bench.jobs.job.id, versionNumber=5))  # type: ignore[union-attr]
        else:
            bench.answers(executionState={"status": bench.asked[-1][1]["status"], "versionNumber": 6})
    raise AssertionError(f"no rest: {bench.asked[-5:]}")


# -- settings ---------------------------------------------------------------------------------------------------------

AWS = "links: {cloud: 'mqtts://a1b2-ats.iot.eu-west-1.amazonaws.com'}"
CLOUD = "links: {cloud: 'mqtt://broker.example.org'}"


def loaded(folder: Path, text: str) -> str | None:
    file = folder / "topics.yaml"
    file.write_text(text)
    return reader.load(file).jobs


@pytest.mark.parametrize(
    ("jobs", "thing"),
    [("", None), ("jobs: false", None), ("jobs: true", "press-7"), ("jobs: {}", "press-7"), ("jobs: {thing: p}", "p")],
)
@pytest.mark.parametrize("links", [AWS, CLOUD])
def test_jobs_are_listened_to_where_the_settings_say_so(tmp_path: Path, links: str, jobs: str, thing: str) -> None:
    assert loaded(tmp_path, f"core: press-7\n{links}\n{jobs}\n") == thing


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jobs: true", "the embedded broker carries no AWS IoT Jobs"),
        (f"{CLOUD}\njobs: 7", "`jobs` must be true or false"),
        (f"{CLOUD}\njobs: {{thing: a/b}}", "`jobs.thing` is 'a/b'"),
        (f"{CLOUD}\njobs: {{thinge: a}}", "did you mean `thing`?"),
    ],
)
def test_what_jobs_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        loaded(tmp_path, f"core: press-7\n{text}\n")


def test_the_channel_s_filters_count_where_aws_counts_them(tmp_path: Path) -> None:
    rows = [f"- {{source: cloud, subject: 'a/{i}', target: local}}" for i in range(46)]
    text = "\n".join(["core: press-7", AWS, "subscriptions:", *rows])
    assert loaded(tmp_path, text) is None
    with pytest.raises(ConfigError, match="51 filters"):
        loaded(tmp_path, text + "\njobs: true")


# -- end to end -------------------------------------------------------------------------------------------------------


def listening(core: Core, *functions: Path) -> Core:
    """The core with jobs switched on, and with more folders of functions."""
    values = yaml.safe_load(core.config.read_text())
    values["functions"] += [str(each) for each in functions]
    core.config.write_text(yaml.safe_dump({**values, "jobs": True}))
    return core


@pytest.fixture
def fleet(site: Site) -> Iterator[tuple[Site, Core, JobsEmulator]]:
    """A core that listens to jobs, and the cloud's side of them."""
    core = listening(site.core())
    with JobsEmulator(site.cloud.port, THING) as cloud, core:
        core.wait_linked()
        yield site, core, cloud


def job_document(uri: str) -> dict[str, Any]:
    document = group("none", uri)
    del document["DeploymentId"]
    return document


def test_a_job_deploys_a_model(fleet: tuple[Site, Core, JobsEmulator]) -> None:
    site, core, cloud = fleet
    made = put_model(site, 1)
    job = cloud.queue("rollout-1", job_document(made["uri"]))
    cloud.wait(job, "SUCCEEDED", "FAILED", "REJECTED")
    assert job.status == "SUCCEEDED", job.details
    assert job.details["deployment"] == "rollout-1"
    assert job.details["resources"] == f"model={made['digest']}"
    assert job.statuses().count("SUCCEEDED") == 1
    assert core.status()["state"]["group"] == "rollout-1"
    second = cloud.queue("rollout-2", {**job_document(made["uri"]), "DeploymentId": "by-its-own-name"})
    cloud.wait(second, "SUCCEEDED")
    assert core.status()["state"]["group"] == "by-its-own-name"


def test_jobs_that_cannot_be_done_say_why_and_the_next_is_done(fleet: tuple[Site, Core, JobsEmulator]) -> None:
    site, core, cloud = fleet
    made = put_model(site, 1)
    missing = cloud.queue("missing", job_document(f"s3://{BUCKET}/there-is-none.tar.gz"))
    wrong = cloud.queue("wrong", {"steps": [{"action": {"name": "reboot"}}]})
    good = cloud.queue("good", job_document(made["uri"]))
    cloud.wait(good, "SUCCEEDED")
    assert (missing.status, missing.details["code"]) == ("FAILED", "SOURCE_NOT_FOUND")
    assert (wrong.status, wrong.details["code"]) == ("REJECTED", "BAD_DOCUMENT")
    assert "steps" in wrong.details["message"]
    assert core.status()["state"]["group"] == "good"


def test_an_agent_killed_in_the_middle_ends_its_job_once(fleet: tuple[Site, Core, JobsEmulator]) -> None:
    site, core, cloud = fleet
    made = put_model(site, 1)
    signed = iter(range(100))  # as with a presigned URL in it: each time the document comes it is another

    def document() -> dict[str, Any]:
        variables = {"UPLOAD": f"https://b.example.org/x?X-Amz-Signature={next(signed)}"}
        found = job_document(made["uri"])
        found["Functions"][0]["FunctionConfiguration"]["Environment"]["Variables"] = variables
        return found

    with site.observer() as observer:
        observer.subscribe(f"marram/{CORE}/deployments/#")
        job = cloud.queue("long", document)
        wait_until(lambda: statuses(observer, "long"), "the deployment's begin")
        core.kill()
        assert job.status == "IN_PROGRESS"
        core.start()
        cloud.wait(job, "SUCCEEDED", "FAILED", "REJECTED")
        assert job.status == "SUCCEEDED", job.details
        core.kill()
        core.start()
        core.wait_linked()
        asked = len(cloud.requests)
        wait_until(lambda: any(topic == "start-next" for topic, _ in cloud.requests[asked - 1 :]), "it asks again")
        assert job.statuses().count("SUCCEEDED") == 1
        assert not [s for s in statuses(observer, "long") if s["status"] in ("REJECTED", "FAILED")]


def test_an_end_that_the_cloud_did_not_hear_is_told_after_the_restart(fleet: tuple[Site, Core, JobsEmulator]) -> None:
    site, core, cloud = fleet
    made = put_model(site, 1)
    cloud.mischief = lambda operation, values: "" if operation == "update" else None
    job = cloud.queue("unheard", job_document(made["uri"]))
    wait_until(lambda: any(v.get("status") == "SUCCEEDED" for _, v in list(cloud.requests)), "it is told", 60)
    core.kill()
    cloud.mischief = lambda operation, values: None
    core.start()
    cloud.wait(job, "SUCCEEDED")
    assert job.details["deployment"] == "unheard"


def test_others_updates_and_throttling_cost_only_time(fleet: tuple[Site, Core, JobsEmulator]) -> None:
    site, _, cloud = fleet
    made = put_model(site, 1)
    troubles = ["bump", "RequestThrottled", "InternalError"]

    def mischief(operation: str, values: dict[str, Any]) -> str | None:
        if operation != "update" or values["status"] != "SUCCEEDED" or not troubles:
            return None
        trouble = troubles.pop(0)
        if trouble == "bump":
            cloud.bump(job)
            return None
        return trouble

    cloud.mischief = mischief
    job = cloud.queue("shaky", job_document(made["uri"]))
    cloud.wait(job, "SUCCEEDED")
    assert troubles == []
    assert job.statuses().count("SUCCEEDED") == 1


def test_a_connection_lost_in_the_middle_costs_only_time(fleet: tuple[Site, Core, JobsEmulator]) -> None:
    site, _, cloud = fleet
    made = put_model(site, 1)
    job = cloud.queue("cut", job_document(made["uri"]))
    cloud.wait(job, "IN_PROGRESS")
    site.cloud.stop()
    site.cloud.start()
    cloud.wait(job, "SUCCEEDED", deadline_s=120)
    assert job.statuses().count("SUCCEEDED") == 1


def test_a_job_cancelled_in_the_cloud_stops_its_deployment(site: Site) -> None:
    made = put_model(site, 1)
    (site.directory / "more" / "never").mkdir(parents=True)
    (site.directory / "more" / "never" / "__init__.py").write_text("import time\n\ntime.sleep(3600)\n")
    core = listening(site.core(), site.directory / "more")
    document = {**job_document(made["uri"]), "Functions": [function("never")], "Subscriptions": []}
    with JobsEmulator(site.cloud.port, THING) as cloud, core, site.observer() as observer:
        core.wait_linked()
        observer.subscribe(f"marram/{CORE}/deployments/#")
        job = cloud.queue("slow", document)
        wait_until(lambda: any(s["phase"] == "warming" for s in statuses(observer, "slow")), "warming", 60)
        waiting = cloud.queue("next", job_document(made["uri"]))
        cloud.end(job)
        wait_until(lambda: any(s["status"] != "IN_PROGRESS" for s in statuses(observer, "slow")), "its end", 30)
        last = statuses(observer, "slow")[-1]
        assert (last["status"], last["reason"]["code"]) == ("FAILED", "JOB_ENDED")
        assert job.status == "CANCELED"
        cloud.wait(waiting, "SUCCEEDED")


def test_a_cancelled_job_whose_deployment_waits_its_turn_is_never_deployed(site: Site) -> None:
    made = put_model(site, 1)
    (site.directory / "more" / "never").mkdir(parents=True)
    (site.directory / "more" / "never" / "__init__.py").write_text("import time\n\ntime.sleep(3600)\n")
    core = listening(site.core(), site.directory / "more")
    first = {**group("plain", made["uri"], routes=[]), "Functions": [function("never")]}
    with JobsEmulator(site.cloud.port, THING) as cloud, core, site.observer() as observer:
        core.wait_linked()
        observer.subscribe(f"marram/{CORE}/deployments/#")
        observer.publish(f"marram/{CORE}/deployments", json.dumps(first))
        wait_until(lambda: any(s["phase"] == "warming" for s in statuses(observer, "plain")), "warming", 60)
        job = cloud.queue("behind", job_document(made["uri"]))
        wait_until(lambda: statuses(observer, "behind"), "it waits", 30)
        cloud.end(job)
        wait_until(lambda: statuses(observer, "behind")[-1]["status"] == "REJECTED", "it is taken back", 30)
        assert statuses(observer, "behind")[-1]["reason"]["code"] == "JOB_ENDED"
        assert statuses(observer, "plain")[-1]["status"] == "IN_PROGRESS"


def test_without_the_setting_nothing_is_asked(site: Site) -> None:
    with JobsEmulator(site.cloud.port, THING) as cloud, site.core() as core:
        core.wait_linked()
        cloud.queue("nobody", DOCUMENT)
        core.stop()
        assert cloud.requests == []

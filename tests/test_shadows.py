"""Shadows: documents by tables and properties, files that are damaged, and topics over a real broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.shadows.answers import answer
from agent.shadows.document import Shadow, ShadowError, delta, read_update, updated
from agent.shadows.files import ShadowFiles
from tests.agent_kit import function, subscription
from tests.conftest import Site
from tests.mqtt_kit import PlainClient, wait_until

NOW = 1_790_000_000


def after(*states: Any, start: Shadow | None = None) -> Shadow:
    shadow = start or Shadow()
    for state in states:
        shadow = updated(shadow, read_update(json.dumps({"state": state}).encode()), NOW)
    return shadow


def said(operation: str, payload: Any, shadow: Shadow) -> tuple[Shadow, list[tuple[str, Any]]]:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    made, messages = answer("pump", operation, body, shadow, NOW)
    return made, [(topic.rpartition("pump/shadow/")[2], json.loads(text)) for topic, text in messages]


# -- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([{"desired": {"a": 1}}], {"desired": {"a": 1}}),
        ([{"desired": {"a": 1}}, {"reported": {"a": 2}}], {"desired": {"a": 1}, "reported": {"a": 2}}),
        ([{"desired": {"a": {"b": 1, "c": 2}}}, {"desired": {"a": {"b": None}}}], {"desired": {"a": {"c": 2}}}),
        ([{"desired": {"a": {"b": 1}}}, {"desired": {"a": {"b": None}}}], {}),
        ([{"desired": {"a": [1, 2]}}, {"desired": {"a": [3]}}], {"desired": {"a": [3]}}),
        ([{"desired": {"a": 1}, "reported": {"b": 1}}, {"desired": None}], {"reported": {"b": 1}}),
        ([{"desired": {"a": 1}}, None], {}),
        ([{"desired": {"a": 1}}, {"desired": {"a": {"b": 1}}}], {"desired": {"a": {"b": 1}}}),
        ([{"desired": {"a": {"b": 1}}}, {"desired": {"a": "text"}}], {"desired": {"a": "text"}}),
    ],
)
def test_updates_are_merged(states: list[Any], expected: Any) -> None:
    shadow = after(*states)
    assert shadow.state == expected
    assert shadow.version == len(states)
    assert shadow.metadata.keys() == expected.keys()


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"desired": {"a": 1}}, {"a": 1}),
        ({"desired": {"a": 1}, "reported": {"a": 1}}, {}),
        ({"desired": {"a": 1, "b": 2}, "reported": {"a": 1}}, {"b": 2}),
        ({"desired": {"a": {"b": 1, "c": 2}}, "reported": {"a": {"b": 1, "c": 3}}}, {"a": {"c": 2}}),
        ({"reported": {"a": 1}}, {}),
        ({"desired": {"a": [1, 2]}, "reported": {"a": [1]}}, {"a": [1, 2]}),
        ({"desired": {"a": True}, "reported": {"a": 1}}, {"a": True}),
    ],
)
def test_what_is_desired_and_not_reported_is_the_delta(state: Any, expected: Any) -> None:
    found, stamps = delta(after(state))
    assert found == expected
    assert stamps.keys() == expected.keys()


@pytest.mark.parametrize(
    ("payload", "code", "message"),
    [
        (b"{", 400, "Invalid JSON"),
        (b"[]", 400, "Invalid JSON"),
        (b"\xff", 400, "Invalid JSON"),
        (b'{"state": {"desired": {"a": NaN}}}', 400, "Invalid JSON"),
        (b"[" * 5000, 400, "Invalid JSON"),
        (b"{}", 400, "Missing required node: state"),
        (b'{"state": 1}', 400, "State node must be an object"),
        (b'{"state": {"wished": {}}}', 400, "State contains an invalid node: 'wished'"),
        (b'{"state": {"desired": 1}}', 400, "Desired node must be an object"),
        (b'{"state": {"reported": []}}', 400, "Reported node must be an object"),
        (b'{"state": {}, "version": "1"}', 400, "Invalid version"),
        (b'{"state": {}, "version": true}', 400, "Invalid version"),
        (b'{"state": {}, "clientToken": 5}', 400, "Invalid clientToken"),
        (json.dumps({"state": {}, "clientToken": "x" * 65}).encode(), 400, "Invalid clientToken"),
        (b'{"state": {"desired": ' + b'{"a":' * 9 + b"1" + b"}" * 9 + b"}}", 400, "too many levels"),
        (b'{"state": {"desired": {"a": "' + b"x" * 9000 + b'"}}}', 413, "exceeds the maximum size"),
        (b'{"state": {"desired": {}}, "version": 4}', 409, "Version conflict"),
    ],
)
def test_what_is_wrong_with_an_update_is_said(payload: bytes, code: int, message: str) -> None:
    before = after({"desired": {"a": 1}})
    shadow, messages = said("update", payload, before)
    assert shadow is before
    [(topic, told)] = messages
    assert topic == "update/rejected"
    assert (told["code"], told["timestamp"]) == (code, NOW)
    assert message in told["message"]


def test_a_document_cannot_grow_beyond_its_bound_by_small_updates() -> None:
    shadow = after({"reported": {"a": "x" * 5000}})
    with pytest.raises(ShadowError, match="maximum size"):
        after({"reported": {"b": "x" * 5000}}, start=shadow)


def test_an_update_is_accepted_and_told_to_whoever_follows() -> None:
    update = {"state": {"desired": {"on": True}}, "clientToken": "t-1"}
    shadow, messages = said("update", update, after({"reported": {"on": False}}))
    stamp = {"timestamp": NOW}
    assert [topic for topic, _ in messages] == ["update/accepted", "update/delta", "update/documents"]
    accepted, differing, documents = (told for _, told in messages)
    assert accepted == {
        **update, "metadata": {"desired": {"on": stamp}}, "version": 2, "timestamp": NOW,
    }  # fmt: skip
    assert differing == {
        "state": {"on": True}, "metadata": {"on": stamp}, "version": 2, "timestamp": NOW, "clientToken": "t-1",
    }  # fmt: skip
    assert (documents["previous"]["version"], documents["current"]["version"]) == (1, 2)
    assert documents["current"]["state"] == shadow.state


def test_a_shadow_is_got_and_deleted_and_its_version_goes_on() -> None:
    shadow = after({"desired": {"on": True}, "reported": {"on": False}})
    _, [(topic, whole)] = said("get", {"clientToken": "t"}, shadow)
    assert topic == "get/accepted"
    assert whole["state"]["delta"] == {"on": True}
    assert (whole["version"], whole["clientToken"]) == (1, "t")
    gone, [(topic, told)] = said("delete", b"", shadow)
    assert (topic, told) == ("delete/accepted", {"version": 1, "timestamp": NOW})
    for operation in ("get", "delete"):
        _, [(topic, told)] = said(operation, b"", gone)
        assert (topic, told["code"]) == (f"{operation}/rejected", 404)
        assert told["message"] == "No shadow exists with name: 'pump'"
    assert after({"desired": {"a": 1}}, start=gone).version == 2


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=6,
)
SECTION = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3) | st.none()
STATES = st.dictionaries(st.sampled_from(["desired", "reported"]), SECTION)


@given(st.lists(STATES, max_size=5))
def test_whatever_is_desired_can_be_reported_away(states: list[Any]) -> None:
    shadow = after(*states)
    wanted = shadow.state.get("desired", {})
    assert delta(after({"reported": None}, {"reported": wanted}, start=shadow))[0] == {} or _holds_nothing(wanted)
    assert _shape(shadow.state) == _shape(shadow.metadata)


def _holds_nothing(value: Any) -> bool:
    """Whether a null or an empty object stands in a list; lists are kept as they are."""
    return "null" in json.dumps(value) or "{}" in json.dumps(value)


def _shape(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() != {"timestamp"}:
        return {key: _shape(each) for key, each in value.items()}
    return [_shape(each) for each in value] if isinstance(value, list) else None


@given(st.binary(max_size=80))
def test_any_bytes_are_an_update_or_refused(payload: bytes) -> None:
    _, messages = said("update", payload, Shadow())
    assert messages[0][0] in ("update/accepted", "update/rejected")


# -- files ------------------------------------------------------------------------------------------------------------


def test_shadows_outlive_the_process_and_damage(tmp_path: Path) -> None:
    files = ShadowFiles(tmp_path)
    assert files.read("press:7").deleted
    files.write("press:7", after({"desired": {"a": 1}}))
    assert ShadowFiles(tmp_path).read("press:7") == after({"desired": {"a": 1}})
    [file] = (tmp_path / "shadows").iterdir()
    for damage in (b"", b"{}", b'{"version": 1, "state": 5}', b"\xff"):
        file.write_bytes(damage)
        assert ShadowFiles(tmp_path).read("press:7") == Shadow()
        assert file.with_suffix(".damaged").exists()


# -- over a broker ----------------------------------------------------------------------------------------------------

SHADOW = "$aws/things/pump/shadow"


def heard(client: PlainClient, topic: str) -> list[Any]:
    return [json.loads(m.payload) for m in list(client.received) if m.topic == topic]


def test_devices_and_functions_meet_in_a_shadow(site: Site) -> None:
    subscriptions = [
        subscription("local", f"{SHADOW}/+", "GGShadowService"),
        subscription("GGShadowService", f"{SHADOW}/+/accepted", "local"),
        subscription("GGShadowService", f"{SHADOW}/+/rejected", "local"),
        subscription("GGShadowService", f"{SHADOW}/update/documents", "cloud"),
        subscription("GGShadowService", f"{SHADOW}/update/delta", "function:echo"),
        subscription("function:echo", "#", "local"),
        subscription("function:echo", f"{SHADOW}/#", "local"),
    ]
    with site.core() as core:
        core.wait_linked()
        core.deploy({"DeploymentId": "d", "Functions": [function("echo")], "Subscriptions": subscriptions})
        device, observer = site.device(), site.observer()
        device.subscribe(f"{SHADOW}/#")
        observer.subscribe(f"{SHADOW}/#")
        device.publish(f"{SHADOW}/get", b"")
        wait_until(lambda: heard(device, f"{SHADOW}/get/rejected"), "404")
        assert heard(device, f"{SHADOW}/get/rejected")[0]["code"] == 404
        device.publish(f"{SHADOW}/update", json.dumps({"state": {"desired": {"on": True}}, "clientToken": "x"}))
        wait_until(lambda: heard(device, f"{SHADOW}/update/accepted"), "accepted")
        assert heard(device, f"{SHADOW}/update/accepted")[0]["clientToken"] == "x"
        wait_until(lambda: heard(observer, f"{SHADOW}/update/documents"), "documents in the cloud")
        wait_until(lambda: heard(device, f"{SHADOW}/update/delta/echo"), "what the function made of the delta")
        assert heard(device, f"{SHADOW}/update/delta/echo")[0]["echo"]["state"] == {"on": True}
        core.kill()
        core.start()
        core.wait_ready("echo")
        core.wait_linked()

        def got() -> bool:
            device.publish(f"{SHADOW}/get", b"")
            return bool(heard(device, f"{SHADOW}/get/accepted"))

        wait_until(got, "the shadow after a restart")
        assert heard(device, f"{SHADOW}/get/accepted")[0]["version"] == 1

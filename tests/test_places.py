"""Where a command finds a core: what is given, what its topics.yaml says, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cli.places import Place
from agent.errors import ConfigError
from tests.certificate_kit import Authority

TOPICS = "{deployments: 'fleet/{core}/do', deployment_status: 'fleet/{core}/did/{deployment}'}"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    authority = Authority(tmp_path)
    authority.issue("press-7")
    (tmp_path / "word").touch(mode=0o600)
    (tmp_path / "word").write_text("secret\n")
    file = tmp_path / "topics.yaml"
    files = "ca: ca.pem, cert: press-7.crt, key: press-7.key, password_file: word"
    link = f"{{url: 'mqtts://cloud.example', username: u, {files}}}"
    file.write_text(f"core: press-7\ntopics: {TOPICS}\nlinks: {{cloud: {link}}}\n")
    return file


def test_without_settings_the_topics_are_the_default_ones() -> None:
    far = Place(Path("none"), "mqtts://u:p%40@h:1", "press-7", ca=Path("ca")).remote()
    assert far.link.url == "mqtts://h:1"
    assert (far.link.username, far.link.password, far.link.ca) == ("u", "p@", Path("ca"))
    assert far.topic("deployment_status", "d-1") == "marram/press-7/deployments/d-1/status"
    assert far.filter("capture") == "marram/press-7/capture/+"


def test_settings_that_are_named_say_what_is_not_given(config: Path) -> None:
    far = Place(config, "mqtts://cloud.example:8883", told=True).remote()
    assert far.core == "press-7"
    assert far.topic("deployments") == "fleet/press-7/do"
    assert far.topic("deployment_status", "d") == "fleet/press-7/did/d"
    assert (far.link.ca, far.link.cert) == (config.parent / "ca.pem", config.parent / "press-7.crt")
    assert (far.link.username, far.link.password_file) == ("u", config.parent / "word")
    mine = Place(config, "mqtts://me:mine@cloud.example", cert=Path("c"), key=Path("k"), told=True).remote().link
    assert (mine.cert, mine.key, mine.username, mine.password, mine.password_file) == (
        Path("c"), Path("k"), "me", "mine", None,
    )  # fmt: skip
    other = Place(config, "mqtts://other.example", told=True).remote().link
    assert (other.ca, other.username) == (None, None), "another broker learns nothing of that one"


@pytest.mark.parametrize(
    ("place", "code"),
    [
        (Place(Path("x"), "mqtt://h"), "CORE_MISSING"),
        (Place(Path("x"), "mqtt://h", "a/b"), "BAD_CORE"),
        (Place(Path("x"), "http://h", "a"), "BAD_URL"),
        (Place(Path("x"), "mqtts://h", "a", cert=Path("c")), "BAD_URL"),
        (Place(Path("x"), "mqtt://h", "a", ca=Path("c")), "BAD_URL"),
        (Place(Path("no-such-file"), "mqtt://h", "a", told=True), "SETTINGS_UNREADABLE"),
    ],
)
def test_what_cannot_be(place: Place, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place.remote()
    assert caught.value.code == code


def test_the_settings_of_another_core(config: Path) -> None:
    with pytest.raises(ConfigError, match="BAD_CORE"):
        Place(config, "mqtts://cloud.example", "press-8", told=True).remote()

"""topics.yaml: what is read, and what is refused with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agent import settings, yaml_nodes
from agent.errors import ConfigError
from agent.settings import Caps, FetchLimits, Retention, Settings, Subscription, links, reader
from agent.trust import broker_users
from tests.certificate_kit import DAY, Authority

REPOSITORY = Path(__file__).parents[1]
AWS = "mqtts://a1b2-ats.iot.eu-west-1.amazonaws.com"


def load(folder: Path, text: str) -> Settings:
    file = folder / "topics.yaml"
    file.write_text(text)
    return reader.load(file)


@pytest.mark.parametrize(
    "text",
    [
        "core: a\nlinks: {local: &l {url: embedded}, cloud: *l}",
        "a: &a [*a, {b: *a}]",
        "core: 'x",
        "[" * 3000,
        "",
        "x" * (yaml_nodes.MAX_BYTES + 1),
    ],
    ids=["aliases", "within itself", "no YAML", "deep", "empty", "large"],
)
def test_a_child_reads_the_same(tmp_path: Path, text: str) -> None:
    file = tmp_path / "topics.yaml"
    file.write_text(text)
    root, line, wrong = yaml_nodes.begin(file)()
    here = yaml_nodes.read(file)
    assert (line, wrong, root is None) == (*here[1:], here[0] is None)
    assert repr(root) == repr(here[0])  # with what is within itself as dots


def test_a_file_that_a_child_cannot_read_is_told_like_any(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        yaml_nodes.begin(tmp_path / "topics.yaml")()
    assert caught.value.code == "SETTINGS_UNREADABLE"


def test_without_its_child_the_file_is_read_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "topics.yaml"
    file.write_text("core: a")

    def fail(_: Any) -> bytes:
        raise MemoryError

    monkeypatch.setattr("agent.yaml_nodes.marshal.dumps", fail)
    assert yaml_nodes.begin(file)() == yaml_nodes.read(file)


def problems(folder: Path, text: str) -> list[str]:
    """The problems that loading `text` ends in, one a line."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert caught.value.code == "BAD_SETTINGS"
    return [line.strip() for line in caught.value.message.splitlines()[1:]]


def test_the_repository_s_own_file_loads_without_a_warning() -> None:
    read = reader.load(REPOSITORY / "topics.yaml")
    assert read.core == "press-7"
    assert read.state == REPOSITORY / "state"
    assert read.functions == (REPOSITORY / "functions",)
    assert read.local.embedded
    assert read.cloud is None
    assert read.subscriptions == (
        Subscription("local", "sensors/+/motion", "function:activity"),
        Subscription("function:activity", "sensors/+/motion/activity", "local"),
    )
    assert read.policy == settings.Policy()
    assert read.warnings == ()


def test_the_page_in_docs_names_every_key_and_its_examples_load(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(examples) >= 5
    for example in examples:
        assert load(tmp_path, example).core == "press-7"
    keys = [*reader.KEYS, *reader.POLICY_KEYS, *reader.TEMPLATES, *links.KEYS]
    assert [key for key in keys if f"`{key}`" not in page] == []
    defaults = [template for template, _ in reader.TEMPLATES.values()]
    assert [template for template in defaults if f"`{template}`" not in page] == []


def test_a_name_is_enough(tmp_path: Path) -> None:
    read = load(tmp_path, "core: press-7\n")
    assert read.state == tmp_path / "state"
    assert read.local == settings.Link("local", "embedded")
    assert read.local.address == ("127.0.0.1", 1883)
    assert read.cloud is None
    assert read.topics == settings.Topics(
        deployments="marram/press-7/deployments",
        deployment_status="marram/press-7/deployments/{deployment}/status",
        state="marram/press-7/state",
        capture="marram/press-7/capture/{function}",
        errors="marram/press-7/errors/{function}",
    )


def test_links_as_a_word_and_as_a_mapping(tmp_path: Path) -> None:
    read = load(
        tmp_path,
        """
core: 7                    # no quotes needed
links:
  local: {url: embedded, listen: "127.0.0.1:2883"}
  cloud: "mqtts://me:p%40ss%3A@[::1]"
""",
    )
    assert read.core == "7"
    assert read.local.address == ("127.0.0.1", 2883)
    assert read.cloud is not None
    assert read.cloud.url == "mqtts://[::1]:8883"
    assert (read.cloud.username, read.cloud.password) == ("me", "p@ss:")
    assert read.cloud.address == ("::1", 8883)
    assert read.cloud.tls
    assert "p@ss" not in repr(read)


def test_credentials_as_keys(tmp_path: Path) -> None:
    read = load(
        tmp_path, "core: a\nlinks: {cloud: {url: 'mqtt://10.0.0.1', username: me, password: 1:2@3, keepalive_s: 60}}"
    )
    assert read.cloud is not None
    assert (read.cloud.username, read.cloud.password, read.cloud.keepalive_s) == ("me", "1:2@3", 60)
    assert read.cloud.url == "mqtt://10.0.0.1:1883"
    assert any("unencrypted" in warning for warning in read.warnings)


@pytest.mark.parametrize("cloud", ["local", "{url: local}"])
def test_cloud_local_is_one_connection(tmp_path: Path, cloud: str) -> None:
    assert load(tmp_path, f"core: a\nlinks: {{cloud: {cloud}}}").cloud is None


def _public(key: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))


def make_public(file: Path) -> bytes:
    """A new Ed25519 public key in `file`; its 32 bytes."""
    key = Ed25519PrivateKey.generate()
    file.write_bytes(_public(key))
    return key.public_key().public_bytes_raw()


def test_policy_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    raw = make_public(tmp_path / "cloud.pub")
    read = load(
        tmp_path,
        """
core: a
policy:
  sources: ["s3://b/*", "https://h/*", "file:///srv/*", "arn:*"]
  destinations: [/ml/]
  interpreters: {mxnet: .venvs/mxnet/bin/python}
  trusted_keys: [cloud.pub]
  allow_unsigned_code: yes
  quotas: {processes: 4, memory: 512 MiB}
""",
    )
    assert read.policy == settings.Policy(
        sources=("s3://b/*", "https://h/*", "file:///srv/*", "arn:*"),
        destinations=("/ml",),
        interpreters={"mxnet": str(tmp_path / ".venvs/mxnet/bin/python")},
        trusted_keys=(settings.TrustedKey(tmp_path / "cloud.pub", raw),),
        allow_unsigned_code=True,
        quotas=settings.Quotas(processes=4, memory_bytes=512 * 2**20),
    )


def _wrong_keys() -> dict[str, bytes]:
    private = Ed25519PrivateKey.generate()
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "holds a private key; name the public one": secret,
        "holds a public key of another kind than Ed25519": _public(ec.generate_private_key(ec.SECP256R1())),
        "is no PEM file with one public key": _public(private) * 2,
        "its lines are no base64": b"-----BEGIN PUBLIC KEY-----\n!!\n-----END PUBLIC KEY-----\n",
    }


@pytest.mark.parametrize(
    ("words", "data"), [*_wrong_keys().items(), ("is no PEM file", b""), ("is no PEM", b"\0" * 99)]
)
def test_a_trusted_key_that_is_none_is_named_with_its_line(tmp_path: Path, words: str, data: bytes) -> None:
    (tmp_path / "cloud.pub").write_bytes(data)
    (found,) = problems(tmp_path, "core: a\npolicy:\n  trusted_keys:\n    - cloud.pub")
    assert found.startswith("line 4: ")
    assert str(tmp_path / "cloud.pub") in found
    assert words in found


def test_a_trusted_key_that_others_can_change_is_a_warning(tmp_path: Path) -> None:
    make_public(tmp_path / "cloud.pub")
    (tmp_path / "cloud.pub").chmod(0o666)
    (warning,) = load(tmp_path, "core: a\npolicy: {trusted_keys: [cloud.pub]}").warnings
    assert "chmod go-w" in warning


def test_all_problems_come_at_once_in_order_of_their_lines(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """core: press 7
statee: x
links:
  local: {url: embedded, lissten: x}
  cloud: {url: "mqtts://u:secret@h/zz"}
topics: {state: "a/{cor}"}
subscriptions:
  - {source: locl, subject: "a#", target: "function:x"}
policy:
  allow_root: 3
""",
    )
    assert [line.split(":")[0] for line in found] == [f"line {n}" for n in (1, 2, 4, 5, 6, 8, 8, 10)]
    assert "secret" not in "".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("state: x", "line 1: `core` is missing"),
        ("core:", "line 1: `core` is empty"),
        ("core: [a]", "line 1: `core` must be text"),
        ("core: a\ncore: b", "line 2: the key `core` is there twice, first on line 1"),
        ("core: a\nfunction: [x]", "line 2: unknown key `function`; did you mean `functions`?"),
        ("core: a\nzzz: 1", "line 2: unknown key `zzz`; known are `answers`, `aws`"),
        ("core: a\n<<: {state: b}", "line 2: unknown key `<<`"),
        ("core: a\nfunctions: here", "line 2: `functions` must be a list"),
        ("core: a\nsubscriptions: {a: b}", "line 2: `subscriptions` must be a list"),
        ("core: a\nlinks: embedded", "line 2: `links` must be a mapping"),
        ("- a", "line 1: the file must be a mapping"),
        ("", "line 1: the file is empty"),
        ("core: a\nstate: 'x", "this is not YAML"),
        ("core: a\nx: \x01", "this is not YAML"),
        ("[" * 3000, "nested too deeply"),
        ("core: a\nx: *y", "line 2: this is not YAML: found undefined alias"),
        ("core: a\ntopics: {state: 'a/#'}", "line 2: `topics.state`: the topic 'a/#' holds a wildcard"),
        ("core: a\ntopics: {state: 'a/{function}'}", "{function} is not filled in here, only {core}"),
        ("core: a\ntopics: {state: 'a/{core'}", "the braces in 'a/{core' do not pair up"),
        ("core: a\ntopics: {state: 'a/{{core}}'}", "do not pair up"),
        ("core: a\ntopics: {capture: 'marram/a/{function}'}", "`topics.capture` can be the same topic as"),
        ("core: a\nsubscriptions: [{source: local, target: cloud}]", "`subject` is missing in `subscriptions[0]`"),
        (
            "core: a\nsubscriptions: [{source: 'function:', subject: a, target: local}]",
            "must be `local`, `cloud`, `function:ID` or",
        ),
        ("core: a\npolicy: {sources: [factory]}", "which no source can match"),
        ("core: a\npolicy: {destinations: [/]}", "must be an absolute folder other than /"),
        ("core: a\npolicy: {destinations: [/ml/../etc]}", "without `..`"),
        ("core: a\npolicy: {trusted_keys: [none.pub]}", "none.pub cannot be read"),
        ("core: a\npolicy: {allow_root: 'yes'}", "must be true or false"),
        ("core: a\nfetch: {max_bytes: 5 XB}", "`fetch.max_bytes` must be a number of bytes"),
        ("core: a\nfetch: {max_bytes_per_s: 10}", "`fetch.max_bytes_per_s` must be from 1024 bytes"),
        ("core: a\nfetch: {stall_s: 0}", "`fetch.stall_s` must be a number of seconds"),
        ("core: a\nunpack: {members: 5}", "did you mean `max_members`?"),
        ("core: a\ncapture: {s3: factory-samples}", "`capture.s3` must be s3://BUCKET or s3://BUCKET/PREFIX"),
        ("core: a\ncapture: {format: xml}", "`capture.format` must be json or msgpack"),
        ("core: a\ncapture: {bytes_per_day: 10}", "`capture.bytes_per_day` must be from 1024 bytes"),
        ("core: a\ncapture: {bytes_a_day: 1 MB}", "did you mean `bytes_per_day`?"),
    ],
)
def test_each_problem_says_where_and_what(tmp_path: Path, text: str, expected: str) -> None:
    assert any(expected in line for line in problems(tmp_path, text))


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ("{cloud: embedded}", "only the local broker can be embedded"),
        ("{local: local}", "must be `embedded`, mqtt://HOST:PORT"),
        ("{local: 'http://x'}", "must be `embedded`, mqtt://HOST:PORT"),
        ("{local: 'mqtt://a b'}", "must be `embedded`"),
        ("{local: 'mqtt://x:99999'}", "cannot be read"),
        ("{local: 'mqtt://'}", "must be `embedded`"),
        ("{local: 'mqtt://x:0'}", "must be `embedded`"),
        ("{local: {ca: x}}", "`url` is missing in `links.local`"),
        ("{local: {url: embedded, listen: '1883'}}", "must be HOST:PORT"),
        ("{local: {url: embedded, username: a}}", "takes no username"),
        ("{local: {url: 'mqtt://h', listen: '127.0.0.1:1'}}", "this link's broker is not embedded"),
        ("{local: {url: 'mqtt://h', password: a}}", "has a password and no username"),
        ("{local: {url: 'mqtt://h', keepalive_s: 1}}", "must be a whole number from 5 to 65535"),
        ("{cloud: {url: local, ca: x}}", "its other keys stand in `links.local`"),
        ("{cloud: {url: 'mqtt://h', ca: x}}", "`links.cloud.ca` is of use with mqtts:// only"),
        ("{cloud: {url: 'mqtts://h', ca: none.pem}}", "none.pem cannot be read: No such file"),
        ("{cloud: {url: 'mqtts://h', ca: topics.yaml}}", "holds no PEM certificate"),
        ("{cloud: {url: 'mqtts://h', cert: topics.yaml}}", "needs both `cert` and `key`"),
        ("{cloud: {url: 'mqtts://h', cert: topics.yaml, key: topics.yaml}}", "are no PEM certificate with its key"),
    ],
)
def test_links_that_cannot_work(tmp_path: Path, links: str, expected: str) -> None:
    assert any(expected in line for line in problems(tmp_path, f"core: a\nlinks: {links}"))


def test_certificates_are_opened_and_matched(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "a")
    one, two = authority.issue("one"), authority.issue("two")
    key = serialization.load_pem_private_key(one.key.read_bytes(), None)
    locked, form = serialization.BestAvailableEncryption(b"passphrase"), serialization.PrivateFormat.PKCS8
    (tmp_path / "locked.key").touch(mode=0o600)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    (tmp_path / "locked.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))

    def cloud(cert: str, key: str) -> str:
        return f"core: a\nlinks: {{cloud: {{url: 'mqtts://h', ca: a.pem, cert: {cert}, key: {key}}}}}"

    link = load(tmp_path, cloud("one.crt", "one.key")).cloud
    assert link is not None
    assert (link.ca, link.cert, link.key) == (authority.ca, one.cert, one.key)
    assert any("do not belong together" in line for line in problems(tmp_path, cloud("one.crt", "two.key")))
    # A question on the terminal would hold up the start for ever.
    assert any("passphrase" in line for line in problems(tmp_path, cloud("one.crt", "locked.key")))
    two.key.chmod(0o644)
    assert any(f"chmod 600 {two.key}" in line for line in problems(tmp_path, cloud("two.crt", "two.key")))


def test_what_nobody_but_the_agent_needs_to_read(tmp_path: Path) -> None:
    """Functions in a container do not see these files."""
    authority = Authority(tmp_path)
    for name in ("core", "thing"):
        authority.issue(name)
    (tmp_path / "word").touch(mode=0o600)
    (tmp_path / "word").write_text("secret")
    broker_users.put(tmp_path / "users", "a", "b")
    cloud = "{url: 'mqtts://h', ca: ca.pem, cert: core.crt, key: core.key, username: u, password_file: word}"
    aws = "{credential_endpoint: h, role_alias: r, cert: thing.crt, key: thing.key}"
    text = f"core: a\nlinks: {{cloud: {cloud}, local: {{url: embedded, users: users}}}}\naws: {aws}"
    found = load(tmp_path, text).secret_files
    assert sorted(file.name for file in found) == ["core.key", "thing.key", "users", "word"]
    (tmp_path / "topics.yaml").chmod(0o600)
    assert load(tmp_path, "core: a\nlinks: {cloud: 'mqtts://u:p@h'}").secret_files == (tmp_path / "topics.yaml",)


def test_what_is_wrong_with_a_certificate_stops_check_and_not_the_agent(tmp_path: Path) -> None:
    """The core works on without that link, and takes the certificate once it is mended."""
    authority = Authority(tmp_path)
    authority.issue("old", begins=-9 * DAY, ends=-2 * DAY)
    authority.issue("new", begins=2 * DAY, ends=9 * DAY)
    authority.issue("short", ends=3 * DAY)
    for name, words in (("old", "has expired: it was valid until"), ("new", "is not valid yet: it is from")):
        text = f"core: a\nlinks:\n  cloud: {{url: 'mqtts://h', cert: {name}.crt, key: {name}.key}}"
        assert [words in line and line.startswith("line 3: ") for line in problems(tmp_path, text)] == [True]
        (warning,) = reader.load(tmp_path / "topics.yaml", strict=False).warnings
        assert words in warning
    (warning,) = load(tmp_path, "core: a\nlinks: {cloud: {url: 'mqtts://h', cert: short.crt, key: short.key}}").warnings
    assert "renew it" in warning


def test_a_password_need_not_be_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cloud(more: str) -> str:
        return f"core: a\nlinks: {{cloud: {{url: 'mqtts://h', username: u, {more}}}}}"

    (warning,) = load(tmp_path, cloud("password: open")).warnings
    assert f"chmod 600 {tmp_path / 'topics.yaml'}" in warning
    (tmp_path / "topics.yaml").chmod(0o600)
    assert load(tmp_path, cloud("password: closed")).warnings == ()
    (tmp_path / "word").touch(mode=0o600)
    assert any("holds no password" in line for line in problems(tmp_path, cloud("password_file: word")))
    (tmp_path / "word").write_text("secret\n")
    link = load(tmp_path, cloud("password_file: word")).cloud
    assert link is not None
    assert (link.password, link.password_file) == (None, tmp_path / "word")
    (tmp_path / "word").chmod(0o604)
    assert any("chmod 600" in line for line in problems(tmp_path, cloud("password_file: word")))
    assert any("more than one" in line for line in problems(tmp_path, cloud("password: a, password_env: B")))
    assert any("is not set" in line for line in load(tmp_path, cloud("password_env: NO_SUCH")).warnings)
    monkeypatch.setenv("A_WORD", "secret")
    assert load(tmp_path, cloud("password_env: A_WORD")).warnings == ()


def subscriptions(*lines: str) -> str:
    return "subscriptions:\n" + "".join(f"  - [{line}]\n" for line in lines).translate({ord("["): "{", ord("]"): "}"})


LOOP = subscriptions(
    "source: local, subject: 'a/+', target: 'function:f'", "source: 'function:f', subject: 'a/b', target: local"
)


def test_doubles_name_the_line_of_the_first(tmp_path: Path) -> None:
    one = "source: local, subject: a, target: 'function:f'"
    assert problems(tmp_path, "core: a\n" + subscriptions(one, one)) == [
        "line 4: the same subscription is on line 3 already"
    ]


def test_cycles_are_refused_on_the_embedded_broker_only(tmp_path: Path) -> None:
    found = problems(tmp_path, "core: a\n" + LOOP)
    assert len(found) == 1
    assert "a message could go round for ever" in found[0]
    assert "3, 4" in found[0] or "4, 3" in found[0]
    assert load(tmp_path, "core: a\nlinks: {local: 'mqtt://h'}\n" + LOOP)


BRIDGE = subscriptions("source: local, subject: 'a/#', target: cloud", "source: cloud, subject: 'a/#', target: local")


def test_two_links_to_one_address_are_one_broker(tmp_path: Path) -> None:
    assert load(
        tmp_path,
        "core: a\nlinks: {cloud: 'mqtt://other'}\n" + BRIDGE.replace("cloud, subject: 'a", "cloud, subject: 'b"),
    )
    found = problems(tmp_path, "core: a\nlinks: {cloud: 'mqtt://localhost:1883'}\n" + BRIDGE)
    assert any("go round for ever" in line for line in found)


def test_what_leads_back_to_where_it_is(tmp_path: Path) -> None:
    assert len([line for line in problems(tmp_path, "core: a\n" + BRIDGE) if "both are one broker" in line]) == 2
    itself = subscriptions("source: local, subject: a, target: local")
    assert "from `local` to itself" in problems(tmp_path, "core: a\nlinks: {local: 'mqtt://h'}\n" + itself)[0]


def test_the_limits_of_aws_iot_core(tmp_path: Path) -> None:
    cloud = f"core: a\nlinks: {{cloud: '{AWS}'}}\n"

    def with_subject(*subjects: str) -> str:
        return subscriptions(*(f"source: cloud, subject: '{each}', target: 'function:f'" for each in subjects))

    deepest, longest = "/".join("abcdefgh"), "x" * 256
    ingest = "$aws/rules/r/" + deepest
    fifty = [f"t/{n}" for n in range(49)]  # and one for deployments
    assert load(tmp_path, cloud + with_subject(deepest, longest, ingest, *fifty[3:]))
    assert any("8 slashes" in line for line in problems(tmp_path, cloud + with_subject(deepest + "/i")))
    assert any("257 bytes" in line for line in problems(tmp_path, cloud + with_subject(longest + "x")))
    assert any("51 filters" in line for line in problems(tmp_path, cloud + with_subject(*fifty, "t/x")))
    assert any("TLS only" in line for line in problems(tmp_path, cloud.replace("mqtts", "mqtt")))
    assert any("257 bytes" in line for line in problems(tmp_path, f"{cloud}topics: {{state: '{longest}x'}}"))
    # Elsewhere MQTT's own limits hold.
    assert load(
        tmp_path, "core: a\nlinks: {cloud: 'mqtts://h'}\n" + with_subject(deepest + "/i", longest + "x", *fifty)
    )


def test_what_is_doubtful_is_a_warning(tmp_path: Path) -> None:
    meant = "listen: '0.0.0.0:1883', allow_anonymous: true, allow_unencrypted: true"
    text = f"core: a\nfunctions: [here]\nlinks: {{cloud: 'mqtt://127.0.0.1', local: {{url: embedded, {meant}}}}}"
    read = load(tmp_path, text)
    assert [warning.split(": ")[0] for warning in read.warnings] == ["topics.yaml line 2", "topics.yaml line 3"]


def test_what_is_retained(tmp_path: Path) -> None:
    assert load(tmp_path, "core: a").retention == Retention(groups=3, max_bytes=None)
    found = load(tmp_path, "core: a\nretention: {groups: 5, max_bytes: 2 GiB}").retention
    assert found == Retention(groups=5, max_bytes=2 * 2**30)
    assert any("from 2" in line for line in problems(tmp_path, "core: a\nretention: {groups: 1}"))


def test_a_file_that_is_not_there_and_one_that_is_no_file(tmp_path: Path) -> None:
    for file in (tmp_path / "topics.yaml", tmp_path):
        with pytest.raises(ConfigError) as caught:
            reader.load(file)
        assert caught.value.code == "SETTINGS_UNREADABLE"
        assert "--config" in caught.value.remedy


@given(
    st.one_of(
        st.binary(max_size=60), st.text(alphabet="core: a\n-[]{}'\"#&*!|>%@`,?links", max_size=60).map(str.encode)
    )
)
@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_settings_or_one_kind_of_error(tmp_path: Path, body: bytes) -> None:
    file = tmp_path / "any.yaml"
    file.write_bytes(body)
    try:
        read: Settings | str = reader.load(file)
    except ConfigError as error:
        read = error.code
    assert isinstance(read, Settings) or read == "BAD_SETTINGS"


def test_bounds_of_fetching_and_unpacking(tmp_path: Path) -> None:
    text = """core: a
policy: {allow_dotted_buckets: true}
fetch: {max_bytes: 1.5 GB, max_bytes_per_s: 250 kB, attempts: 9, stall_s: 0.5}
unpack: {max_bytes: 2GiB, max_members: 30000, max_ratio: 50}
"""
    found = load(tmp_path, text)
    assert found.policy.allow_dotted_buckets
    assert found.fetch == FetchLimits(max_bytes=1_500_000_000, max_bytes_per_s=250_000, attempts=9, stall_s=0.5)
    assert found.unpack == Caps(total_bytes=2 * 2**30, members=30_000, ratio=50)


def test_samples_for_aws_or_s3_are_no_larger_than_a_message_of_aws(tmp_path: Path) -> None:
    aws = "links: {cloud: 'mqtts://x-ats.iot.eu-west-1.amazonaws.com'}"
    for text, most in ((aws, 131072), ("capture: {s3: 's3://samples'}", 131072), ("capture: {format: json}", None)):
        file = tmp_path / "topics.yaml"
        file.write_text(f"core: a\n{text}\n")
        assert reader.load(file).capture.max_bytes == most
    assert any(
        "over the 131072 bytes" in each for each in problems(tmp_path, f"core: a\n{aws}\ncapture: {{max_bytes: 1 MB}}")
    )

"""The state directory: objects that stay what they are, groups, the one link, and the journal."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agent.deployment import document, durable
from agent.deployment.journal import Journal, Record, decode
from agent.deployment.machine import State
from agent.deployment.objects import Entry, file_digest
from agent.deployment.store import Known, Store, empty_group
from agent.errors import IntegrityError, RejectedError
from agent.settings import Retention

HEX = "ab" * 32


def add_object(store: Store, hex: str = HEX, files: dict[str, bytes] | None = None, **facts: object) -> None:
    staged = store.objects.stage("t")
    entries = []
    for name, data in (files or {"model.json": b"{}", "sub/w.bin": b"123"}).items():
        path = staged / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        entries.append(Entry(name, len(data), file_digest(path), 0o444))
    store.objects.add(staged, hex, entries, **facts)


def body(id: str = "d1") -> bytes:
    s3 = {"S3MachineLearningModelResourceData": {"S3Uri": "s3://models/m.zip", "DestinationPath": "/ml/m"}}
    resource = {"Id": "m", "Name": "M", "ResourceDataContainer": s3}
    return json.dumps({"DeploymentId": id, "Resources": [resource]}).encode()


def write_group(store: Store, number: int, hex: str = HEX) -> None:
    deployment = document.read_accepted(body(f"d{number}"))
    known = {"s3://models/m.zip": Known('"etag"', hex)}
    store.write_group(number, deployment, body(f"d{number}"), {"m": hex}, {}, known)


def test_a_group_is_what_was_written_and_current_leads_to_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add_object(store)
    write_group(store, 1)
    assert store.current() is None
    store.swap(1)
    again = Store(tmp_path).current()
    assert again is not None
    assert (again.number, again.deployment.id, again.previous) == (1, "d1", None)
    assert again.versions == {"m": f"sha256:{HEX}"}
    assert (tmp_path / "current/resources/m/tree/model.json").read_bytes() == b"{}"
    assert (again.objects["m"].tree / "sub/w.bin").read_bytes() == b"123"
    store.verify(again)


def test_swap_back_and_to_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add_object(store)
    for number in (1, 2):
        write_group(store, number)
        store.swap(number)
    assert store.group(2).previous == 1
    store.swap(1)
    store.swap(1)
    assert store.current_number() == 1
    store.swap(None)
    assert store.current_number() is None
    with pytest.raises(IntegrityError) as caught:
        store.swap(9)
    assert caught.value.code == "GROUP_DAMAGED"


@pytest.mark.parametrize("harm", ["flip", "grow", "remove", "add", "link", "manifest"])
def test_a_damaged_object_is_noticed(tmp_path: Path, harm: str) -> None:
    store = Store(tmp_path)
    add_object(store)
    tree = store.objects.ref(HEX).tree
    if harm == "flip":
        (tree / "sub/w.bin").write_bytes(b"124")
    elif harm == "grow":
        (tree / "sub/w.bin").write_bytes(b"1234")
    elif harm == "remove":
        (tree / "sub/w.bin").unlink()
    elif harm == "add":
        (tree / "more").write_bytes(b"")
    elif harm == "link":
        (tree / "model.json").rename(tmp_path / "away")
        (tree / "model.json").symlink_to(tmp_path / "away")
    else:
        (tree.parent / "manifest.json").write_bytes(b"{")
    with pytest.raises(IntegrityError) as caught:
        store.objects.verify(HEX)
    assert caught.value.code == "OBJECT_DAMAGED"
    assert not store.objects.holds(HEX)


def test_bytecode_that_a_worker_left_is_no_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add_object(store)
    (store.objects.ref(HEX).tree / "__pycache__").mkdir()
    (store.objects.ref(HEX).tree / "__pycache__/x.pyc").write_bytes(b"1")
    store.objects.verify(HEX)


def test_a_whole_object_is_kept_and_a_damaged_one_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add_object(store)
    before = store.objects.ref(HEX).tree.stat().st_ino
    add_object(store)
    assert store.objects.ref(HEX).tree.stat().st_ino == before
    (store.objects.ref(HEX).tree / "model.json").write_bytes(b"x")
    add_object(store)
    store.objects.verify(HEX)
    assert os.listdir(store.objects.staging) == []


def test_a_folder_becomes_an_object_named_by_its_content(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    folder = tmp_path / "activity"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__/x.pyc").write_bytes(b"1")
    (folder / "__init__.py").write_text("x = 1")
    (folder / "sub").mkdir()
    (folder / "sub/run.sh").write_text("#!/bin/sh")
    (folder / "sub/run.sh").chmod(0o755)
    first = store.objects.add_folder(folder)
    (folder / "__pycache__/y.pyc").write_bytes(b"2")
    assert store.objects.add_folder(folder) == first
    assert sorted(p.relative_to(first.tree).as_posix() for p in first.tree.rglob("*")) == [
        "__init__.py", "sub", "sub/run.sh",
    ]  # fmt: skip
    assert os.access(first.tree / "sub/run.sh", os.X_OK)
    (folder / "__init__.py").write_text("x = 2")
    second = store.objects.add_folder(folder)
    assert second.hex != first.hex
    assert (first.tree / "__init__.py").read_text() == "x = 1"


@pytest.mark.parametrize("what", ["fifo", "linked directory"])
def test_a_folder_with_more_than_files_is_refused(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    if what == "fifo":
        os.mkfifo(folder / "pipe")
    else:
        (folder / "link").symlink_to(tmp_path)
    with pytest.raises(RejectedError) as caught:
        Store(tmp_path / "state").objects.add_folder(folder)
    assert caught.value.code == "FUNCTION_FOLDER_UNSAFE"


def test_known_sources_come_from_groups_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add_object(store, HEX, source="s3://models/m.zip", etag='"older"')
    add_object(store, "cd" * 32, source="s3://models/n.zip", etag='"n"')
    write_group(store, 1)
    assert store.known() == {
        "s3://models/m.zip": Known('"etag"', HEX),
        "s3://models/n.zip": Known('"n"', "cd" * 32),
    }


def test_prune_keeps_current_previous_and_what_they_need(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(1, 7):
        add_object(store, f"{number:064x}")
        write_group(store, number, f"{number:064x}")
        store.swap(number)
    store.swap(5)  # 6 was turned back
    store.prune()
    assert store.numbers() == [3, 4, 5]
    assert sorted(store.objects.names()) == [f"{n:064x}" for n in (3, 4, 5)]
    store.verify(store.group(5))
    store.prune(keep=[None])
    assert store.numbers() == [3, 4, 5]


def test_retention_counts_groups_and_bytes_but_never_takes_what_is_needed(tmp_path: Path) -> None:
    chance = random.Random(3)
    for most_groups, most_bytes in ((2, None), (5, None), (9, 1), (9, 10**9), (4, 20)):
        root = tmp_path / f"{most_groups}-{most_bytes}"
        store = Store(root, Retention(most_groups, most_bytes))
        for number in range(1, 9):
            add_object(store, f"{number:064x}")
            write_group(store, number, f"{number:064x}")
            store.swap(number)
        in_use = {chance.randint(1, 4)}
        store.prune(keep=in_use)
        left = store.numbers()
        assert {8, 7, *in_use} <= set(left)
        removed = set(range(1, 9)) - set(left)
        assert max(removed, default=0) < min(set(left) - in_use)  # the oldest
        assert len(set(left) - in_use) <= most_groups
        total = sum(store.objects.size(hex) for hex in store.objects.names())
        assert most_bytes is None or total <= most_bytes or set(left) == {8, 7, *in_use}
        for number in left:
            store.verify(store.group(number))


def test_an_old_previous_group_outlives_newer_ones(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add_object(store)
    write_group(store, 1)
    store.swap(1)
    for number in range(2, 8):
        write_group(store, number)  # never swapped in
    store.swap(7)
    store.prune()
    assert 1 in store.numbers()


def test_clean_removes_what_was_half_written_and_keeps_downloads(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add_object(store)
    store.objects.stage("half")
    (store.objects.staging / "downloads").mkdir()
    (tmp_path / "groups/4.new").mkdir()
    (tmp_path / "current.new").symlink_to("groups/4")
    (store.objects.directory / (HEX + ".new")).mkdir()
    Store(tmp_path).clean()
    assert os.listdir(store.objects.staging) == ["downloads"]
    assert os.listdir(tmp_path / "groups") == []
    assert not (tmp_path / "current.new").is_symlink()
    assert store.objects.names() == [HEX]


def test_a_damaged_group_is_an_error_with_a_code(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add_object(store)
    write_group(store, 1)
    (tmp_path / "groups/1/group.json").write_bytes(b"{}")
    store.journal.load()
    with pytest.raises(IntegrityError) as caught:
        store.group(1)
    assert caught.value.code == "GROUP_DAMAGED"


def test_the_empty_group_has_nothing() -> None:
    group = empty_group()
    assert (group.number, group.objects, group.code, group.deployment.functions) == (0, {}, {}, ())


def test_the_journal_comes_back_as_it_was(tmp_path: Path) -> None:
    journal = Journal(floor=3, last_group=9, host_links=["/ml/m"])
    journal.active = Record("d1", HEX, State.SWAPPING, group=9, reason={"code": "X", "message": "y"}, warnings=("w",))
    journal.waiting = Record("d2", HEX)
    journal.remember(HEX, {"deploymentId": "d0", "status": "SUCCEEDED"})
    store = Store(tmp_path)
    assert store.journal.load() == Journal()
    store.journal.save(journal.encode())
    assert store.journal.load() == journal


def test_the_journal_forgets_the_oldest_ids() -> None:
    journal = Journal()
    for i in range(300):
        journal.remember(HEX, {"deploymentId": f"d{i}", "status": "FAILED"})
    assert list(journal.statuses) == [f"d{i}" for i in range(200, 300)]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": 99}', b'{"format": 1}', b"\xff\x00", b"null"])
def test_a_damaged_journal_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    store = Store(tmp_path)
    store.journal.load()
    (tmp_path / "deployments/journal.json").write_bytes(damage)
    assert store.journal.load() == Journal()
    assert [p.read_bytes() for p in (tmp_path / "deployments").glob("journal.damaged-*")] == [damage]
    assert store.journal.load() == Journal()


def test_documents_are_kept_by_digest(tmp_path: Path) -> None:
    journal = Store(tmp_path).journal
    journal.load()
    journal.add_body("a", b"1")
    journal.add_body("b", b"2")
    journal.prune({"b"})
    assert journal.body("b") == b"2"
    with pytest.raises(OSError):
        journal.body("a")


SWAPPER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from agent.deployment.store import Store
    store = Store(Path({state!r}))
    print("go", flush=True)
    while True:
        for number in (1, 2):
            store.swap(number)
"""


def test_current_is_whole_whenever_the_swapper_dies(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add_object(store)
    for number in (1, 2):
        write_group(store, number)
    store.swap(1)
    code = textwrap.dedent(SWAPPER.format(root=str(Path(__file__).parent.parent), state=str(tmp_path)))
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"go\n"
        for _ in range(200):
            assert store.current() is not None
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        store.clean()
        group = store.current()
        assert group is not None
        store.verify(group)


def test_a_durable_write_replaces_wholly(tmp_path: Path) -> None:
    durable.write(tmp_path / "f", b"1")
    durable.write(tmp_path / "f", b"22")
    assert (tmp_path / "f").read_bytes() == b"22"
    assert os.listdir(tmp_path) == ["f"]
    with pytest.raises(ValueError):
        decode(b"{")

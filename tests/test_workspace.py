"""Files of a run: atomic writes, plain reads, the lock."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoseg.errors import InputError, WorkspaceInUseError
from autoseg.records import Event
from autoseg.workspace import (
    Workspace,
    append_line,
    atomic_file,
    parse_yaml,
    read_json,
    read_lines,
    read_yaml,
    write_json,
    write_yaml,
)


def test_a_line_begins_below_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "stage"}\n{"kind": "sta')
    append_line(path, "{}")
    append_line(path, "[]")
    assert path.read_text().splitlines() == ['{"kind": "stage"}', '{"kind": "sta', "{}", "[]"]


def test_a_failed_write_leaves_the_old_file(odd_path: Path) -> None:
    path = odd_path / "new folder" / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write("half")
        raise RuntimeError
    assert read_json(path) == {"schema_version": 1, "a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_json_holds_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"dice": math.nan, "name": "Köpfe", "path": Path("x")})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"schema_version": 1, "dice": None, "name": "Köpfe", "path": "x"}
    assert "Köpfe" in text


def test_yaml_round_trip(tmp_path: Path) -> None:
    plain = {"z": "1e-4", "a": 1e-5, "words": ["no", "1", "2e3", ""], "none": None, "names": {"1": "vordere Hälfte"}}
    write_yaml(tmp_path / "a.yaml", plain, versioned=False, header="of a run\nsecond")
    assert read_yaml(tmp_path / "a.yaml") == plain
    assert yaml.safe_load((tmp_path / "a.yaml").read_text(encoding="utf-8")) == plain  # by others, too
    assert (tmp_path / "a.yaml").read_text(encoding="utf-8").startswith("# of a run\n# second\nz:")
    assert list(read_yaml(tmp_path / "a.yaml")) == list(plain)


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("-2E+3", -2e3), (".5e1", 5.0), ("12", 12), ("e4", "e4")])
def test_yaml_numbers(text: str, value: Any) -> None:
    read = parse_yaml(text)
    assert read == value
    assert type(read) is type(value)


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(InputError, match="cannot be parsed"):
        read_yaml(tmp_path / "a.yaml")


def test_keys_that_stand_twice(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\nb:\n  c: 1\n  c: 2\n")
    with pytest.raises(InputError, match=r"key 'c' twice: line 4 column 3"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "a.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(InputError, match="key 'a' stands twice"):
        read_json(tmp_path / "a.json")


def test_yaml_anchors_still_merge() -> None:
    assert parse_yaml("base: &b {x: 1}\nmore:\n  <<: *b\n  x: 2\n")["more"] == {"x": 2}


def test_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe\x00", b""])
def test_torn_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(tmp_path / "a.json")
    assert caught.value.faults[0].file == str(tmp_path / "a.json")
    assert "cannot be parsed" in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)


def test_work_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="not a folder"):
            Workspace(path).create()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_work_dir_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot be written"):
        Workspace(tmp_path / "closed" / "W").create()


def test_names_of_files(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "W")
    assert not workspace.root.exists()
    assert workspace.bundle("segresnet", 2) == tmp_path / "W" / "segresnet_2"
    assert workspace.prediction("c1") == tmp_path / "W" / "ensemble_output" / "c1" / "c1_ensemble.nii.gz"


def test_lock_keeps_a_second_run_out(odd_path: Path) -> None:
    workspace = Workspace(odd_path / "W")
    with workspace.lock({"verb": "run"}):
        holder = json.loads(workspace.lock_file.read_text())
        assert (holder["pid"], holder["verb"]) == (os.getpid(), "run")
        with pytest.raises(WorkspaceInUseError, match=f"process {os.getpid()}"), workspace.lock():
            pass
        assert json.loads(workspace.lock_file.read_text()) == holder
    with workspace.lock():
        pass
    assert workspace.lock_file.read_text() == ""


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom autoseg.workspace import Workspace\n"
        "lock = Workspace(sys.argv[1]).lock().__enter__()\nos._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "W")], check=False).returncode == 9
    assert Workspace(tmp_path / "W").lock_file.read_text() != ""
    with Workspace(tmp_path / "W").lock():
        pass


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InputError, match="cannot be locked: No locks available"), Workspace(tmp_path / "W").lock():
        pass


def test_events(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.log_event(Event("stage", "Köpfe", {"loss": math.inf}, time=1.0))
    workspace.log_event(Event("result", "done", time=2.0))
    lines = [json.loads(line) for line in workspace.events_jsonl.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {"kind": "stage", "message": "Köpfe", "facts": {"loss": None}, "time": 1.0}
    assert lines[1]["kind"] == "result"


def test_lines_that_are_torn_or_no_objects_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_bytes(b'{"a": 1}\n[2]\n\n{"a": \xff\n{"a": 3}\n{"a"')
    assert list(read_lines(tmp_path / "lines.jsonl")) == [{"a": 1}, {"a": 3}]
    assert list(read_lines(tmp_path / "none.jsonl")) == []

"""The run directory: whose it is, its lock, and files that are complete or absent."""

import contextlib
import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from mnist_jax.runtime.errors import RunError, UsageError
from mnist_jax.runtime.workdir import RunDirectory, check_writable, write_whole

FINGERPRINT = {"seed": 0, "sizes": [512]}


def read_run(path: Path) -> dict[str, Any]:
    return json.loads((path / "run.json").read_text())


def test_run_json_records_the_run_and_how_it_ended(tmp_path: Path) -> None:
    for name in ("run.json.12", "metrics.jsonl.3"):  # left by a process that was killed
        (tmp_path / f"{name}.incomplete").write_text('{"form')
    with RunDirectory(tmp_path, FINGERPRINT) as folder:
        folder.update(status="running", devices="1 cpu")
    expected = {"format": 2, "fingerprint": FINGERPRINT, "saved": False, "devices": "1 cpu"}
    assert read_run(tmp_path) == expected | {"status": "finished"}
    assert os.listdir(tmp_path) == ["run.json"]
    with contextlib.suppress(RunError), RunDirectory(tmp_path, FINGERPRINT) as folder:
        folder.update(status="running")
        raise RunError("the loss is not finite")
    failed = {"status": "failed", "error": "the loss is not finite"}
    assert read_run(tmp_path) == expected | failed


def test_a_directory_holds_one_run_at_a_time(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, FINGERPRINT):
        with pytest.raises(RunError, match=f"another process is training in {tmp_path}"):
            RunDirectory(tmp_path, FINGERPRINT)
        assert RunDirectory.open_read_only(tmp_path).info["fingerprint"] == FINGERPRINT
    with RunDirectory(tmp_path, FINGERPRINT):  # the lock is released
        pass


def test_a_file_system_without_locks_causes_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise OSError("locks are not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunDirectory(tmp_path, FINGERPRINT):
        assert f"{tmp_path} cannot be locked" in caplog.text


def test_a_different_run_is_refused_field_by_field(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, FINGERPRINT):
        pass
    with pytest.raises(UsageError) as caught:
        RunDirectory(tmp_path, {"seed": 1, "sizes": [512], "decay": 0.5})
    for text in (str(tmp_path), "seed is 0 in the saved run and 1 now", "decay", "--workdir"):
        assert text in str(caught.value)
    assert "sizes" not in str(caught.value)
    with RunDirectory(tmp_path, FINGERPRINT):  # the refused attempt holds no lock
        assert read_run(tmp_path)["fingerprint"] == FINGERPRINT


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("letter.txt", "Dear", "is not empty and holds no run"),
        ("run.json", '{"mnist_jax": "0.1.0"}', "has format 1; this version reads format 2"),
        ("run.json", '{"format": 2, "fing', "run.json is missing or damaged"),
        ("run.json", '{"format": 2}', "run.json is missing or damaged"),
        ("run.json", "[2]", "run.json is missing or damaged"),
        ("thesis.incomplete", "Dear", "is not empty and holds no run"),
    ],
)
def test_a_directory_with_other_contents_is_refused_in_one_line_and_left_alone(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RunError, match=message) as caught:
        RunDirectory(tmp_path, FINGERPRINT)
    assert re.fullmatch(f"{tmp_path}.*", str(caught.value))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, content)]


def test_an_unknown_home_directory_is_an_ordinary_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with RunDirectory("~no such user/run", FINGERPRINT):
        assert Path("~no such user/run/run.json").exists()


def test_a_directory_that_is_moved_during_the_run_is_not_created_again(tmp_path: Path) -> None:
    path, folder = tmp_path / "run", RunDirectory(tmp_path / "run", FINGERPRINT)
    path.rename(tmp_path / "moved")
    with pytest.raises(RunError, match=f"{path} was moved"):
        folder.check_not_moved()
    with pytest.raises(RunError, match=f"{path} was moved"):
        folder.__exit__(None, None, None)
    assert not path.exists()


def test_a_failed_write_keeps_the_old_content_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_whole(path, "old")
    incomplete = tmp_path / f"result.json.{os.getpid()}.incomplete"
    incomplete.mkdir()  # prevents any write to the temporary name
    with pytest.raises(RunError, match=f"{path} cannot be written"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    incomplete.rmdir()
    write_whole(path, b"\xff\x00")
    assert path.read_bytes() == b"\xff\x00"
    assert os.listdir(tmp_path) == ["result.json"]


def test_check_writable_follows_links_and_creates_nothing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert check_writable(tmp_path / "link") == tmp_path / "target"
    assert os.listdir(tmp_path) == ["link"]
    with pytest.raises(RunError, match=f"{tmp_path} is not a regular file"):
        check_writable(tmp_path)
    with pytest.raises(RunError, match=f"{tmp_path}/none/file cannot be written: No such file"):
        check_writable(tmp_path / "none" / "file")

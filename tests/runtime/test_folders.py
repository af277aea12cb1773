"""Folders that appear at once: whatever interrupts it, there are the old files or the new ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cdl_deploy import files, folders
from cdl_deploy.folders import files_in, place_for, publish, scratch_folder
from tests.kill_points import every_kill

OLD = {"a.onnx": "old", "a.json": "old", "stale.js": "old"}
NEW = {"a.onnx": "new", "a.json": "new", "assets/b.js": "new"}


def fill(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def shown(folder: Path) -> dict[str, str]:
    """What is to be seen in it."""
    found = files_in(folder) if folder.exists() else []
    return {str(name): (folder / name).read_text() for name in found if not name.parts[0].startswith(".")}


def renew(out: Path) -> None:
    with scratch_folder(".work-", place_for(out)) as staging:
        fill(staging, NEW)
        publish(staging, out, stale={Path("stale.js")}, last=lambda name: name.suffix == ".onnx")


@pytest.mark.parametrize("earlier", [{}, OLD, {**OLD, "notes.txt": "mine"}])
def test_killed_before_every_change(tmp_path, earlier):
    out = tmp_path / "work" / "out"

    def prepare() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        fill(out.parent, {"beside": ""})
        fill(out, earlier)

    before, after = earlier, NEW | {name: text for name, text in earlier.items() if name == "notes.txt"}
    kills = 0
    for _ in every_kill(out.parent, prepare, lambda: renew(out)):
        assert shown(out) in (before, after)
        renew(out)
        assert shown(out) == after
        assert sorted(path.name for path in out.parent.iterdir()) == ["beside", "out"]
        kills += 1
    assert kills >= 8
    assert shown(out) == after


@pytest.mark.parametrize("why", ["no exchange", "mount", "inside", "folders of others"])
def test_where_folders_cannot_be_exchanged_old_and_new_are_never_there_together(tmp_path, monkeypatch, why):
    out = tmp_path / "work" / "out"
    others = {"sub/notes.txt": "mine"} if why == "folders of others" else {"notes.txt": "mine"}
    if why == "no exchange":
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    if why == "mount":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)

    def prepare() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        fill(out, {**OLD, **others})
        if why == "inside":
            monkeypatch.chdir(out)

    for _ in every_kill(out.parent, prepare, lambda: renew(out)):
        found = shown(out)
        assert {name: found.pop(name) for name in others} == others
        assert set(found.values()) in ({"old"}, {"new"}, set())
        renew(out)
        assert shown(out) == {**NEW, **others}
    assert [path.name for path in out.parent.rglob(".*")] == []


def test_the_folder_keeps_its_mode_and_a_link_to_it_stays_a_link(tmp_path):
    fill(tmp_path / "real", OLD)
    (tmp_path / "real").chmod(0o750)
    (tmp_path / "out").symlink_to("real")
    renew((tmp_path / "out").resolve())
    assert (tmp_path / "out").is_symlink()
    assert shown(tmp_path / "out") == NEW
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o750


def test_nothing_goes_through_a_link(tmp_path):
    fill(tmp_path / "elsewhere", {"b.js": "mine"})
    fill(tmp_path / "out", OLD)
    (tmp_path / "out" / "assets").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError, match="a link where a folder is expected"):
        renew(tmp_path / "out")
    assert shown(tmp_path / "elsewhere") == {"b.js": "mine"}
    assert (tmp_path / "out" / "a.onnx").read_text() == "old"


def test_what_somebody_writes_meanwhile_is_kept(tmp_path, monkeypatch):
    out, exchange = tmp_path / "out", folders._exchange
    fill(out, {**OLD, "notes.txt": "mine"})

    def meanwhile(one, other):
        (out / "more.txt").write_text("mine too")
        files.write_text(out / "notes.txt", "mine, changed")
        return exchange(one, other)

    monkeypatch.setattr(folders, "_exchange", meanwhile)
    renew(out)
    assert shown(out) == {**NEW, "notes.txt": "mine, changed", "more.txt": "mine too"}


def test_scratch_folders_of_killed_commands_go_and_others_stay(tmp_path):
    """The lock says whose they are, not the number: every container has a process of the same number."""
    left, foreign = tmp_path / f"cdl-x-{os.getpid()}-0123456789ab", tmp_path / "cdl-x-mine"
    for folder in (left, foreign):
        fill(folder, {"model.onnx": "large"})
    with scratch_folder("cdl-x-", tmp_path) as one:
        assert not left.exists()
        with scratch_folder("cdl-x-", tmp_path) as two:
            assert one.exists()
            assert one != two
    assert [path.name for path in tmp_path.iterdir()] == ["cdl-x-mine"]


def test_a_temporary_file_of_a_killed_process_goes_with_the_next_write(tmp_path):
    left = tmp_path / f".report.json.{os.getpid()}-0123456789ab.tmp.json"
    left.write_text("half")
    with files.atomic_path(tmp_path / "report.json") as held:
        held.write_text("one")
        files.write_text(tmp_path / "report.json", "two")  # leaves the one that is being written alone
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "one"


def test_an_error_of_the_system_names_the_file_that_was_meant(tmp_path):
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        files.write_atomic(tmp_path / "report.json", full)
    assert caught.value.filename == str(tmp_path / "report.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file") as caught:
        files.write_text(tmp_path / "file" / "report.json", "")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]

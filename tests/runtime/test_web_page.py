"""The folder with the web page: what is in it, what is refused. tests/examples/test_web.py opens it in a browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cdl_deploy.cli import app
from cdl_deploy.errors import BundleError, CdlError, OptionError
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.runtime.web_page import write_page


@pytest.fixture
def student(small_bundle: Path) -> Path:
    return small_bundle / "student.onnx"


def files(folder: Path) -> dict[str, bytes]:
    """Everything in it, also what is hidden."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def service_worker_line(site: Path) -> dict[str, Any]:
    first = (site / "sw.js").read_text(encoding="utf-8").splitlines()[0]
    line: dict[str, Any] = json.loads(first.removeprefix("const SITE = ").removesuffix(";"))
    return line


def test_the_page_is_complete(student: Path, tmp_path: Path) -> None:
    site = tmp_path / "deep" / "site"
    write_page(student, site)
    found = files(site)
    assert found["student.onnx"] == student.read_bytes()
    (wasm,) = [content for name, content in found.items() if name.endswith(".wasm")]
    assert wasm.startswith(b"\0asm")
    assert not [name for name in found if name.endswith(".xz")]
    asked = re.findall(r'(?:src|href)="\./([^"]+)"', found["index.html"].decode())
    assert len(asked) >= 4
    assert set(asked) <= found.keys()
    bundle = read_bundle(student)
    assert json.loads(found["page.json"]) == {
        "model": "student.onnx",
        "bytes": student.stat().st_size,
        "classes": list(bundle.classes),
        "tasks": [list(task) for task in bundle.tasks],
        "selects_tasks": True,
        "producer": f"cdl-deploy {bundle.producer.version}",
        "statistics": None,
    }


def test_the_service_worker_knows_all_files(student: Path, tmp_path: Path) -> None:
    write_page(student, tmp_path / "site")
    kept = service_worker_line(tmp_path / "site")["files"]
    assert sorted(kept) == sorted(files(tmp_path / "site").keys() - {"sw.js", "THIRD-PARTY-NOTICES.txt"})


def test_its_version_follows_the_files(small_bundle: Path, tmp_path: Path) -> None:
    for name, role in {"one": "student", "two": "student", "three": "teacher"}.items():
        write_page(small_bundle / f"{role}.onnx", tmp_path / name)
    one, two, three = (service_worker_line(tmp_path / name)["version"] for name in ("one", "two", "three"))
    assert one == two != three


def test_an_earlier_page_is_replaced(small_bundle: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    write_page(small_bundle / "teacher.onnx", site)
    own = {"CNAME": b"example.org", "assets/logo.svg": b"<svg/>", ".well-known/key": b"key"}
    for name, content in own.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_bytes(content)
    worker = (site / "sw.js").read_text(encoding="utf-8")
    (site / "assets" / "index-old.js").write_text("of an earlier version")
    (site / "sw.js").write_text(worker.replace('"files": [', '"files": ["assets/index-old.js", "../precious", '))
    (tmp_path / "precious").write_text("not in the page")
    write_page(small_bundle / "student.onnx", site)
    assert (tmp_path / "precious").exists()
    found = files(site)
    assert {name: found.pop(name) for name in own} == own  # the user's own
    write_page(small_bundle / "student.onnx", tmp_path / "fresh")
    assert found == files(tmp_path / "fresh")


def test_an_empty_folder_will_do(student: Path, tmp_path: Path) -> None:
    write_page(student, tmp_path / "site")
    (tmp_path / "empty").mkdir()
    write_page(student, tmp_path / "empty")
    assert files(tmp_path / "empty") == files(tmp_path / "site")


def test_a_folder_of_others_that_has_a_page_json_is_left_alone(student: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "assets").mkdir(parents=True)
    (site / "page.json").write_text('{"title": "My page"}')
    (site / "assets" / "photo.jpg").write_text("the only copy")
    before = files(tmp_path)
    with pytest.raises(OptionError, match="has other files in it"):
        write_page(student, site)
    assert files(tmp_path) == before


def test_nothing_is_written_or_removed_through_a_link(student: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    write_page(student, site)
    (site / "assets").rename(elsewhere)
    (site / "assets").symlink_to(elsewhere)
    before = files(tmp_path)
    with pytest.raises(OptionError) as caught:
        write_page(student, site)
    assert str(caught.value) == f"--web: {site}/assets is a link, and what it leads to is not ours: remove the link"
    assert files(tmp_path) == before


@pytest.mark.parametrize(("name", "what"), [("folder", "has other files in it"), ("file", "is a file")])
def test_what_is_in_use_is_left_alone(student: Path, tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("the only copy")
    (tmp_path / "file").write_text("the only copy")
    before = files(tmp_path)
    with pytest.raises(OptionError) as caught:
        write_page(student, tmp_path / name)
    assert str(caught.value) == (
        f"--web {tmp_path / name} {what}, expected a new or empty folder, or one with an earlier page"
    )
    assert files(tmp_path) == before


def test_a_model_that_takes_a_tensor(model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        write_page(model_path, tmp_path / "site")
    assert str(caught.value) == (
        f"{model_path} takes a preprocessed tensor, the web page gives it pixels: "
        "export it again without --input tensor"
    )
    assert not (tmp_path / "site").exists()


def test_a_failure_leaves_nothing(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    write_page(student, tmp_path / "site")
    before = files(tmp_path)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    for name in ("site", "new"):
        with pytest.raises(CdlError, match=rf"{name}: No space left on device"):
            write_page(student, tmp_path / name)
    assert files(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_the_command_says_how_to_look_at_it(student: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    result = CliRunner().invoke(app, ["export", str(student), "--web", str(site)], catch_exceptions=False)
    assert result.exit_code == 0
    size = sum(len(content) for content in files(site).values())
    assert result.stdout == (
        f"Page written to {site}: {size / 1e6:.1f} MB, {student.stat().st_size / 1e6:.1f} MB of it student.onnx, "
        f"4 classes\nNext: python -m http.server --directory {site}\n"
    )
    result = CliRunner().invoke(app, ["export", str(student), "--web", str(site), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout) == {
        "folder": str(site),
        "bytes": size,
        "page": json.loads((site / "page.json").read_text()),
    }


def test_a_page_that_cannot_be_taught_is_named(student: Path, tmp_path: Path) -> None:
    """Not where nobody asked for it."""
    done = CliRunner().invoke(app, ["export", str(student), "--web", str(tmp_path / "site")])
    assert done.stderr == (
        "note: the page cannot be taught new classes: it was exported without statistics; export a run with a "
        "closed-form head and without --no-statistics (cdl head RUN --head slda --out RUN2 gives a finished run one)\n"
    )
    assert (
        CliRunner().invoke(app, ["export", str(student), "--web", str(tmp_path / "b"), "--no-statistics"]).stderr == ""
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.onnx"], "a.onnx is exported already: give the run, or add --web DIR for a page with this model"),
        (
            ["run", "--web", "site", "--out", "bundle"],
            "--out bundle is where --onnx writes: add --onnx, or leave out --out",
        ),
        (
            ["a.onnx", "--web", "site", "--tokens", "0.5", "--select", "task:7"],
            "a.onnx is exported already, and its page carries it as it is: leave out --select and --tokens, or "
            "give the run",
        ),
        (["a.onnx", "--web", "site", "--onnx"], "a.onnx is exported already: leave out --onnx"),
        (
            ["run", "--web", "site", "--input", "tensor"],
            "--input tensor does not go with --web: the page gives the model pixels",
        ),
        (
            ["run", "--web", "."],
            "--web . has other files in it, expected a new or empty folder, or one with an earlier page",
        ),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").write_text("the only copy")
    with pytest.raises(OptionError) as caught:
        CliRunner().invoke(app, ["export", *words], catch_exceptions=False)
    assert str(caught.value) == message
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]

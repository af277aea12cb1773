"""docs/tutorial.md does what it says: its blocks are run in order, in one folder, as a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cdl_deploy
from cdl_deploy import Classifier
from tests.conftest import no_shape_checks
from tests.training.conftest import write_images, write_photos

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
OLD, NEW = ("ant", "bee", "cat", "dog"), ("nut", "screw")


def test_every_block_of_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "photos")
    write_images(tmp_path / "new-photos/train", dict.fromkeys(NEW, 6))
    write_images(tmp_path / "new-photos/test", dict.fromkeys(NEW, 3), seed=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cdl_deploy.training.loop.plot_run", lambda *_: None)  # half of the time
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 9
    with no_shape_checks():
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)

    printed = capsys.readouterr().out
    assert "train() has no option 'epoch'; did you mean 'epochs'?\n" in printed
    assert not (tmp_path / "runs/other").exists()
    assert sorted(Classifier("bundle/student.onnx").classes) == list(OLD)
    assert sorted(Classifier("bundle-2/student.onnx").classes) == sorted((*OLD, *NEW))
    assert {path.name for path in Path("bundle-2").iterdir()} >= {"student.onnx", "student.cdlup"}
    assert [path.name for path in Path("bundle").glob("*.onnx")] == ["student.onnx"]

    answer = names["what_is_it"]("photos/test/ant/0.png")
    (expected,) = Classifier("bundle-2/student.onnx").predict("photos/test/ant/0.png")
    assert answer[0][0] == expected.label
    assert answer[0][1] == pytest.approx(expected.probability, abs=1e-6)
    assert {"evaluate", "export", "train"} <= set(dir(cdl_deploy))

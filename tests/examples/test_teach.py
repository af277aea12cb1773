"""The page is taught in a real browser: a class from 20 pictures, and what it then knows of all classes."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from playwright.sync_api import Browser, Dialog, Download, Page, expect

from cdl_deploy import Classifier, Learner
from cdl_deploy.cli import main
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.runtime.web_page import write_page
from tests.examples.browser import Host, chromium, host
from tests.examples.conftest import NEW, TAUGHT
from tests.examples.test_web import AXE, FINGERTIP, PHONE, VIOLATIONS, opened

pytestmark = pytest.mark.examples


@pytest.fixture(scope="module")
def hosted(learnable: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    site = tmp_path_factory.mktemp("taught") / "site"
    write_page(learnable, site)
    with host(site) as serving:
        yield serving


@pytest.fixture(scope="module")
def browser(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Its camera sees the new digit, in changing light: the same pictures are not taught twice."""
    film = tmp_path_factory.mktemp("film") / "camera.mjpeg"
    seen = Image.open(pictures(digits / "new")[0]).convert("RGB").resize((480, 480))
    with film.open("wb") as frames:
        for light in range(100):
            ImageEnhance.Brightness(seen).enhance(1 - light / 400).save(frames, "JPEG", quality=95)
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with chromium(*camera, f"--use-file-for-fake-video-capture={film}") as running:
        yield running


@pytest.fixture
def page(browser: Browser, hosted: Host) -> Iterator[Page]:
    with browser.new_context() as context:
        yield from opened(context.new_page(), hosted)


def pictures(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def teach(page: Page, files: list[Path], name: str = NEW) -> str:
    """Returns what the page says then."""
    page.fill("#teach-class", name)
    page.set_input_files("#teach-files", files)
    expect(page.locator("#teach-status")).to_contain_text(f"Learned “{name}” from")
    return page.locator("#teach-status").inner_text()


def said(page: Page, files: list[Path]) -> list[tuple[str, str, float]]:
    """Of each picture the class that is named, the most probable one, and how probable it is in percent."""
    page.set_input_files("#files", files)
    cards = page.locator(".result[data-label]")
    expect(cards).to_have_count(len(files), timeout=60_000)
    read = """(cards) => cards.map((card) => [
        card.dataset.label,
        card.querySelector(".top li span").textContent,
        parseFloat(card.querySelector(".top li span:last-child").textContent),
    ])"""
    found = [(label, best, share) for label, best, share in cards.evaluate_all(read)]
    page.click("#clear")
    return found[::-1]  # the newest comes first


def right(answers: list[tuple[str, str, float]], files: list[Path], new: bool) -> float:
    """Percent of the pictures of the new class, or of the others, whose class is the most probable one."""
    own = [best == file.parent.name for (_, best, _), file in zip(answers, files, strict=True) if new == is_new(file)]
    return 100 * sum(own) / len(own)


def is_new(file: Path) -> bool:
    return file.parent.name == NEW


def saved(page: Page, folder: Path) -> Path:
    """The model that the page saves, with its statistics beside it."""
    found: list[Download] = []
    page.on("download", lambda download: found.append(download))
    page.click("#teach-save")
    expect(page.locator("#teach-status")).to_contain_text("keep the two together")
    for _ in range(100):
        if len(found) == 2:
            break
        page.wait_for_timeout(50)
    for download in found:
        download.save_as(folder / download.suggested_filename)
    return folder / "student.onnx"


def test_a_class_from_twenty_pictures(page: Page, learnable: Path, digits: Path, tmp_path: Path) -> None:
    test = pictures(digits / "test")
    before = right(said(page, test), test, new=False)
    status = teach(page, pictures(digits / "new"))
    assert f"Learned “{NEW}” from {TAUGHT} pictures in 0." in status  # tenths of a second
    assert status.endswith("Knows 10 classes now.")
    answers = said(page, test)
    old, new = right(answers, test, new=False), right(answers, test, new=True)
    print(f"nine classes before {before:.1f} %, after {old:.1f} %; the new one {new:.1f} %")
    assert old >= before - 2
    assert new >= 85

    theirs = tmp_path / "theirs.onnx"
    Learner(learnable).add(NEW, [str(file) for file in pictures(digits / "new")]).save(theirs)
    expected = list(Classifier(theirs, reject=True).predict([str(file) for file in test]))
    assert [best for _, best, _ in answers] == [row.top_k[0][0] for row in expected]
    assert [label for label, _, _ in answers] == [row.label for row in expected]
    assert [share for *_, share in answers] == pytest.approx([100 * row.probability for row in expected], abs=0.1)

    ours = saved(page, tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(ours)])
    assert stopped.value.code == 0
    logits = [list(Classifier(path).predict([str(file) for file in test])) for path in (ours, theirs)]
    for one, other in zip(*logits, strict=True):
        assert [name for name, _ in one.top_k] == [name for name, _ in other.top_k]
        assert [share for _, share in one.top_k] == pytest.approx([share for _, share in other.top_k], abs=1e-3)
    assert Learner(ours).additions == ({NEW: TAUGHT},)


def test_it_is_kept_over_a_reload_offline_and_undone(
    browser: Browser, learnable: Path, digits: Path, tmp_path: Path
) -> None:
    test = [file for file in pictures(digits / "test") if is_new(file)][:5]
    write_page(learnable, tmp_path / "site")
    with browser.new_context() as context, host(tmp_path / "site") as serving:
        page = context.new_page()
        page.goto(serving.url)
        expect(page.locator("#offline")).to_have_text("Works offline")
        serving.stop()
        page.reload()
        expect(page.locator("body[data-ready]")).to_be_attached()
        teach(page, pictures(digits / "new"))
        answers = said(page, test)
        page.reload()
        expect(page.locator("#taught li")).to_have_text(f"{NEW}: {TAUGHT} pictures")
        assert said(page, test) == answers
        page.click("#teach-undo")
        expect(page.locator("#teach-status")).to_contain_text("is as it was")
        expect(page.locator("#teach-undo")).to_be_disabled()
        assert NEW not in [best for _, best, _ in said(page, test)]
        page.reload()
        expect(page.locator("body[data-ready]")).to_be_attached()
        expect(page.locator("#taught li")).to_have_count(0)


def test_a_saved_model_is_opened_again(page: Page, digits: Path, tmp_path: Path) -> None:
    teach(page, pictures(digits / "new"))
    model = saved(page, tmp_path)
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#teach-reset")
    expect(page.locator("#taught li")).to_have_count(0)
    expect(page.locator("#about")).to_contain_text("Knows 9 classes")
    page.set_input_files("#teach-open", [model])
    expect(page.locator("#teach-status")).to_contain_text("Choose two files together")
    page.set_input_files("#teach-open", [model, tmp_path / read_bundle(model).statistics.file])
    expect(page.locator("#teach-status")).to_contain_text("student.onnx knows 10 classes")
    page.reload()
    expect(page.locator("#taught li")).to_have_text(f"{NEW}: {TAUGHT} pictures")
    expect(page.locator("#model")).to_have_text("student.onnx, opened here")


def test_a_class_is_forgotten(page: Page, digits: Path, tmp_path: Path) -> None:
    test, status = pictures(digits / "test"), page.locator("#teach-status")
    page.click("#teach-forget")
    expect(status).to_have_text("First say what it is to forget")
    page.fill("#teach-class", "digit 12")
    page.click("#teach-forget")
    expect(status).to_have_text("There is no class “digit 12” to forget")
    asked = []

    def agree(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.accept()

    page.on("dialog", agree)
    teach(page, pictures(digits / "new"))
    for name, left in ((NEW, 9), ("digit 3", 8)):
        page.fill("#teach-class", name)
        page.click("#teach-forget")
        expect(status).to_have_text(f"“{name}” is forgotten. Knows {left} classes now.")
    assert asked == [f"Forget “{name}” for good? Undo will not bring it back." for name in (NEW, "digit 3")]
    expect(page.locator("#taught li")).to_have_text("forgotten since")
    page.reload()
    expect(page.locator("#about")).to_contain_text("Knows 8 classes, learned in 3 tasks")
    named = {best for _, best, _ in said(page, test)}
    assert not named & {NEW, "digit 3"}
    page.click("#teach-undo")
    expect(status).to_have_text("Undone; it was forgotten before")
    assert set(read_bundle(saved(page, tmp_path)).classes) == {f"digit {n}" for n in (0, 1, 2, 4, 5, 6, 8, 9)}
    page.click("#teach-reset")
    expect(page.locator("#about")).to_contain_text("Knows 9 classes")


def test_by_camera_and_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Tab")
    for _ in range(3):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "teach-class":
            break
    page.keyboard.type("seven")
    page.keyboard.press("Enter")
    expect(page.locator("#teach-record")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#camera")).to_be_visible()
    expect(page.locator("#teach-record")).to_be_focused()
    expect(page.locator("#teach-record")).to_have_text("Hold to record")
    expect(page.locator("#live-label")).not_to_have_text("…")
    page.keyboard.down("Space")
    expect(page.locator("#teach-record")).to_have_text(re.compile(r"Recording: \d+ pictures"))
    page.keyboard.up("Space")
    expect(page.locator("#teach-status")).to_contain_text("Learned “seven” from")
    expect(page.locator("#live-label")).to_contain_text("seven")
    share = page.evaluate("getComputedStyle(document.getElementById('live-sureness')).getPropertyValue('--share')")
    assert float(share) > 0.2
    page.locator("#teach-record").dispatch_event("click")  # as a screen reader makes it: begins, and ends
    expect(page.locator("#teach-status")).to_contain_text("Recording")
    page.locator("#teach-record").dispatch_event("click")
    expect(page.locator("#teach-status")).to_contain_text("Knows it better now")
    expect(page.locator("#taught li")).to_have_count(2)


def test_what_cannot_be_taught(page: Page, digits: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.png"
    notes.write_text("not a photograph")
    new = pictures(digits / "new")
    status = page.locator("#teach-status")
    page.set_input_files("#teach-files", new[:2])
    expect(status).to_have_text("First say what it is")
    page.fill("#teach-class", "Digit 3")
    page.set_input_files("#teach-files", new[:2])
    expect(status).to_contain_text("call it “digit 3” to add to that class")
    page.fill("#teach-class", NEW)
    page.set_input_files("#teach-files", notes)
    expect(status).to_contain_text("Nothing was learned. notes.png: not an image that this browser can read")
    expect(page.locator("#taught li")).to_have_count(0)
    page.set_input_files("#teach-files", [notes, new[0]])
    expect(status).to_contain_text("from one picture")
    expect(status).to_contain_text("That is little")
    expect(status).to_contain_text("Left out: notes.png")
    page.set_input_files("#teach-files", new[0])
    expect(status).to_contain_text("would count twice")


def test_unknown_where_nothing_fits(page: Page, tmp_path: Path) -> None:
    noise = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(noise)
    page.set_input_files("#files", noise)
    expect(page.locator(".result .label")).to_have_text("unknown")
    expect(page.locator(".result .probability")).to_have_text("nothing fits")


def test_files_dropped_on_it_are_taught(page: Page, digits: Path) -> None:
    script = """([content]) => {
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "seven.png", { type: "image/png" }));
        return transfer;
    }"""
    content = base64.b64encode(pictures(digits / "new")[0].read_bytes()).decode()
    transfer = page.evaluate_handle(script, [content])
    page.fill("#teach-class", NEW)
    page.dispatch_event("#teach", "dragover", {"dataTransfer": transfer})
    expect(page.locator("#teach.over")).to_be_visible()
    page.dispatch_event("#teach", "drop", {"dataTransfer": transfer})
    expect(page.locator("#teach-status")).to_contain_text("from one picture")
    expect(page.locator(".result")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_fits_a_phone(browser: Browser, hosted: Host, digits: Path, scheme: Any) -> None:
    with browser.new_context(bypass_csp=True, color_scheme=scheme, **PHONE) as context:  # axe comes from outside
        for page in opened(context.new_page(), hosted):
            teach(page, pictures(digits / "new")[:3])
            page.click("#camera-start")
            expect(page.locator("#live-detail")).to_contain_text("ms")
            page.add_script_tag(path=AXE)
            assert page.evaluate(VIOLATIONS) == []
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            for control in page.locator(".button:visible, #teach-class").all():
                box = control.bounding_box()
                assert box is not None
                assert box["height"] >= FINGERTIP

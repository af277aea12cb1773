"""The page that `cdl export --web` writes, in a real browser, with real photographs."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import onnx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from cdl_deploy.runtime.web_page import write_page
from tests.examples.browser import Host, chromium, host
from tests.examples.conftest import EXAMPLES, PROJECT, Answer, answers, check_same, run_app

pytestmark = pytest.mark.examples
AXE = EXAMPLES / "web/node_modules/axe-core/axe.min.js"
VIOLATIONS = "async () => (await axe.run()).violations.map(({ help, nodes }) => [help, nodes[0].html])"
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
FINGERTIP = 36  # pixels


@pytest.fixture(scope="module")
def site(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "site"
    write_page(student, folder)
    return folder


@pytest.fixture(scope="module")
def hosted(site: Path) -> Iterator[Host]:
    with host(site) as serving:
        yield serving


@pytest.fixture(scope="module")
def browser(photographs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Its camera sees a photograph: a film of one frame."""
    film = tmp_path_factory.mktemp("film") / "camera.mjpeg"
    flower = next(path for path in photographs if path.name == "flower.jpg")
    Image.open(flower).resize((640, 480)).save(film, "JPEG", quality=95)
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with chromium(*camera, f"--use-file-for-fake-video-capture={film}") as running:
        yield running


@pytest.fixture
def page(browser: Browser, hosted: Host) -> Iterator[Page]:
    """The page with its model loaded. Whatever goes wrong in it, or is fetched from elsewhere, fails the test."""
    with browser.new_context() as context:
        yield from opened(context.new_page(), hosted)


def opened(page: Page, hosted: Host) -> Iterator[Page]:
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: None if is_local(request.url, hosted) else wrong.append(request.url))
    # From the first listener on, choosers of files are Playwright's and not windows; it takes a moment.
    page.on("filechooser", lambda _: None)
    page.goto(hosted.url)
    expect(page.locator("body[data-ready]")).to_be_attached()
    yield page
    assert wrong == []


def is_local(url: str, hosted: Host) -> bool:
    return url.startswith((hosted.url, f"blob:{hosted.url}", "data:"))


def card(page: Page, name: str) -> Locator:
    """The result for one photograph, when it is there."""
    found = page.locator(".result[data-label]", has=page.get_by_text(name, exact=True))
    expect(found).to_be_visible()
    return found


def answer(found: Locator, path: str) -> Answer:
    """What a card says, as a row of the other apps."""
    probability = found.locator(".probability").inner_text().removesuffix(" %")
    task = re.fullmatch(r"(task \d+) of \d+", found.locator(".task").inner_text())
    assert task is not None
    assert re.fullmatch(r"\d+(\.\d)? ms", found.locator(".milliseconds").inner_text())
    return Answer(path, found.locator(".label").inner_text(), float(probability) / 100, task[1])


def test_it_says_what_python_says(page: Page, photographs: list[Path], python_answers: list[Answer]) -> None:
    page.set_input_files("#files", photographs)
    check_same([answer(card(page, path.name), str(path)) for path in photographs], python_answers)


def test_photographs_of_many_megapixels(page: Page, student: Path, photographs: list[Path], tmp_path: Path) -> None:
    """They are shrunk before the graph sees them, as WebAssembly's memory is small; the answer stays."""
    large = tmp_path / "24 megapixels.jpg"
    (flower,) = [path for path in photographs if path.name == "flower.jpg"]
    Image.open(flower).resize((6000, 4000), Image.Resampling.BICUBIC).save(large, quality=90)
    page.set_input_files("#files", large)
    expected = answers(run_app(sys.executable, "python/classify.py", student, large).stdout)
    check_same([answer(card(page, large.name), str(large))], expected)


def test_a_file_that_is_no_photograph(page: Page, photographs: list[Path], tmp_path: Path) -> None:
    notes = tmp_path / "notes.jpg"
    notes.write_text("not a photograph")
    page.set_input_files("#files", [notes, photographs[0]])
    card(page, photographs[0].name)  # the rest goes on
    expect(page.locator(".result.failed")).to_contain_text("notes.jpg")
    expect(page.locator(".result.failed")).to_contain_text("not an image that this browser can read")


def test_drop(page: Page, photographs: list[Path]) -> None:
    flower = next(path for path in photographs if path.name == "flower.jpg")
    script = """([name, content]) => {
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
        return transfer;
    }"""
    content = base64.b64encode(flower.read_bytes()).decode()
    transfer = page.evaluate_handle(script, [flower.name, content])
    page.dispatch_event("#drop", "dragover", {"dataTransfer": transfer})
    expect(page.locator("#drop.over")).to_be_visible()
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    card(page, flower.name)
    expect(page.locator("#drop.over")).to_have_count(0)


def test_everything_by_keyboard(page: Page, photographs: list[Path]) -> None:
    page.keyboard.press("Tab")
    expect(page.locator("#files")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(photographs[0])
    card(page, photographs[0].name)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#camera")).to_be_visible()
    expect(page.locator("#camera-keep")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".result[data-label]")).to_have_count(2)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#camera")).to_be_hidden()
    expect(page.locator("#camera-start")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".result")).to_have_count(0)


def test_the_camera(page: Page, python_answers: list[Answer]) -> None:
    (expected,) = [row for row in python_answers if row.path.endswith("flower.jpg")]
    page.click("#camera-start")
    expect(page.locator("#live-label")).to_contain_text(expected.label)
    expect(page.locator("#live-detail")).to_have_text(re.compile(rf"{expected.task} of \d+ · \d+ ms"))
    page.click("#camera-keep")
    expect(page.locator(".result .label")).to_have_text(expected.label)
    page.click("#camera-stop")
    expect(page.locator("#camera")).to_be_hidden()


def test_it_works_offline(browser: Browser, site: Path, photographs: list[Path], python_answers: list[Answer]) -> None:
    with browser.new_context() as context, host(site) as serving:
        first = context.new_page()
        first.goto(serving.url)
        expect(first.locator("#offline")).to_have_text("Works offline")
        first.close()
        serving.stop()
        for page in opened(context.new_page(), serving):
            page.set_input_files("#files", photographs[0])
            check_same([answer(card(page, photographs[0].name), str(photographs[0]))], python_answers[:1])
            # From the second visit on the page may use several cores, without the host having to send a header.
            assert page.evaluate("crossOriginIsolated") is True


def test_another_model_replaces_the_one_kept_offline(browser: Browser, student: Path, tmp_path: Path) -> None:
    site, other = tmp_path / "site", tmp_path / "student.onnx"
    model = onnx.load(student)
    model.doc_string = "another model"
    onnx.save(model, other)
    bytes_on_page = "async () => (await (await fetch('./page.json')).json()).bytes"
    write_page(student, site)
    with browser.new_context() as context, host(site) as serving:
        page = context.new_page()
        page.goto(serving.url)
        expect(page.locator("#offline")).to_have_text("Works offline")
        write_page(other, site)
        page.reload()
        expect(page.locator("#offline")).to_contain_text("A newer version is here")
        page.reload()
        expect(page.locator("#offline")).to_have_text("Works offline")
        assert page.evaluate(bytes_on_page) == other.stat().st_size != student.stat().st_size


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_it_is_accessible(
    browser: Browser,
    hosted: Host,
    photographs: list[Path],
    device: str,
    scheme: Literal["light", "dark"],
    tmp_path: Path,
) -> None:
    (tmp_path / "notes.jpg").write_text("not a photograph")
    settings: dict[str, Any] = PHONE if device == "phone" else {}
    with browser.new_context(bypass_csp=True, color_scheme=scheme, **settings) as context:  # axe comes from outside
        for page in opened(context.new_page(), hosted):
            page.set_input_files("#files", [tmp_path / "notes.jpg", photographs[0]])
            card(page, photographs[0].name)
            page.click("#camera-start")
            expect(page.locator("#live-detail")).to_contain_text("ms")
            page.add_script_tag(path=AXE)
            assert page.evaluate(VIOLATIONS) == []


def test_it_fits_a_phone(browser: Browser, hosted: Host, photographs: list[Path]) -> None:
    with browser.new_context(**PHONE) as context:
        for page in opened(context.new_page(), hosted):
            page.set_input_files("#files", photographs)
            card(page, photographs[-1].name)
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            for button in page.locator(".button:visible").all():
                box = button.bounding_box()
                assert box is not None
                assert box["height"] >= FINGERTIP


def test_opened_as_a_file(browser: Browser, site: Path) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto((site / "index.html").as_uri())
        expect(page.locator("#status")).to_contain_text("python -m http.server")


def test_the_packaged_page_is_what_the_sources_give() -> None:
    done = subprocess.run([sys.executable, "tools/web_page.py", "--check"], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

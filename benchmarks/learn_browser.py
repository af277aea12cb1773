"""Part of benchmarks/learn.py: the page of `cdl export --web` in Chromium, taught a class and asked about pictures."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Page

from cdl_deploy.runtime.web_page import write_page
from tests.examples.browser import chromium, host

PATIENCE = 300_000
"""Milliseconds."""


def measure(model: Path, images: list[Path], folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds, medians of `rounds` in turn: to classify all images, and to learn a class from them; by file dialog,
    from their choice to the answer on the page. Of the latter what comes after the last picture: until the page names
    the class; the very first time as well."""
    write_page(model, folder / "site")
    with chromium() as browser, host(folder / "site") as hosted, browser.new_context(bypass_csp=True) as context:
        page = context.new_page()
        page.goto(hosted.url)
        until(page, "document.getElementById('offline').textContent === 'Works offline'")
        page.reload()  # from the second visit on it has threads
        until(page, "'ready' in document.body.dataset")
        cards = "document.querySelectorAll('.result[data-label]')"
        says = "document.getElementById('teach-status').textContent"
        pairs = []
        for number in range(rounds + 1):
            predicted = timed(page, "#files", images, f"{cards}.length === {len(images)}")
            page.click("#clear")
            page.fill("#teach-class", "screw")
            taught = timed(page, "#teach-files", images, f"{says}.startsWith('Learned')")
            page.click("#teach-undo")
            until(page, f"{says}.includes('as it was')")
            if number:  # the first warms up
                pairs.append((predicted, taught))
        learned = page.evaluate("performance.getEntriesByName('learn').map(({ duration }) => duration / 1000)")
        threads = page.inner_text("#threads").removeprefix("· ")
        version = browser.version
    predict, teach = (median(pair[place] for pair in pairs) for place in (0, 1))
    return {
        "predict": predict,
        "teach": teach,
        "after the last picture": median(learned[1:]),
        "after the last picture, the first time": learned[0],
        "threads": threads,
        "chromium": version,
    }


def timed(page: Page, chooser: str, images: list[Path], done: str) -> float:
    began = time.perf_counter()
    page.set_input_files(chooser, images)
    until(page, done)
    return time.perf_counter() - began


def until(page: Page, condition: str) -> None:
    page.wait_for_function(f"() => {condition}", polling=20, timeout=PATIENCE)

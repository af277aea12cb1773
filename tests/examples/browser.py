"""A headless Chromium, and a static host that can be switched off."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",  # Chromium has none for root
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-component-update",
    "--disable-background-networking",  # it would look for updates, and the tests must not need a network
)


expect.set_options(timeout=30_000)  # on a busy machine a page takes its time; nothing waits that long otherwise


class Host:
    """A folder at http://localhost:PORT/."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Say nothing."""

    def __init__(self, folder: Path) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(self.Handler, directory=str(folder)))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://localhost:{self._server.server_port}/"

    def stop(self) -> None:
        """From now on connections are refused."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def host(folder: Path) -> Iterator[Host]:
    """Serve a folder until the block ends, or until it is stopped."""
    serving = Host(folder)
    try:
        yield serving
    finally:
        serving.stop()


@contextmanager
def chromium(*options: str) -> Iterator[Browser]:
    """Debian's Chromium, or one of another name; playwright's own would have to be downloaded."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    assert program is not None, f"none of {', '.join(NAMES)} is installed: make examples installs one"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*QUIET, *options])
        yield browser
        browser.close()

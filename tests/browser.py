"""A real Chromium for the tests of the page.

`python -m tests.browser docs/images/page.png` takes the README's picture of it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.server import ROOT, Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 20_000  # milliseconds that anything may take to appear
Stroke = Sequence[tuple[float, float]]  # percent of the pad

SEVEN: tuple[Stroke, ...] = (((30, 12), (70, 12), (60, 42), (44, 90)), ((34, 50), (72, 46)))


def missing() -> str | None:
    """What keeps the page from being tested here; None if nothing does."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    return None if CHROMIUM else "there is no Chromium"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a camera that shows a test picture and that every page may use."""
    from playwright.sync_api import sync_playwright

    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Visit:
    """One look at the page, in a fresh profile, and what came of it.

    Attributes:
        page: In the browser.
        complaints: What the console said, policy violations included, and errors that no script caught.
        requests: Every address that was asked for.
    """

    def __init__(self, browser: Browser, url: str, view: str = "", **context: Any) -> None:
        self._context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
        self._context.set_default_timeout(PATIENCE)
        self.page: Page = self._context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"{url}/{view}")

    def draw(self, *strokes: Stroke) -> None:
        """Draw on the pad that is shown, with the mouse."""
        box = self.page.locator("canvas.pad:visible").bounding_box()
        assert box
        for stroke in strokes:
            places = [(box["x"] + x * box["width"] / 100, box["y"] + y * box["height"] / 100) for x, y in stroke]
            self.page.mouse.move(*places[0])
            self.page.mouse.down()
            for place in places[1:]:
                self.page.mouse.move(*place, steps=8)
            self.page.mouse.up()

    def keep(self, name: str) -> None:
        """Take a picture of the whole page, if `FOVEA_SCREENSHOTS` names a folder for them."""
        if folder := os.environ.get("FOVEA_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.evaluate("scrollTo(0, 0)")
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    def close(self) -> None:
        self._context.close()


def main(path: Path) -> None:
    """Draw a digit on the page and take a picture of what it says."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(ROOT / "model_repository", Path(folder)).start() as server,
        chromium() as browser,
    ):
        visit = Visit(browser, server.url, color_scheme="light")
        visit.page.check("input[value=draw]")
        visit.draw(*SEVEN)
        visit.page.wait_for_selector(".verdict")
        visit.page.wait_for_timeout(500)  # until the second stroke's answer is drawn and nothing moves
        visit.page.screenshot(path=path, full_page=True)
        visit.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

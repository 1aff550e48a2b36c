"""The page of a server that takes a key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import Visit
from tests.keys import made, revoke, status
from tests.server import ROOT, Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

expect = pytest.importorskip("playwright.sync_api").expect


def test_the_page_asks_for_a_key_once_and_again_when_it_is_revoked(browser: Browser, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fovea.db"
    first, second = made(url), made(url)
    with Server(ROOT / "model_repository", tmp_path, database_url=url).start() as server:
        visit = Visit(browser, server.url)
        page, dialog = visit.page, visit.page.get_by_role("dialog")
        expect(dialog).to_contain_text("A key is needed")
        assert page.get_by_role("dialog").count() == 1
        page.get_by_label("Key", exact=True).fill("nonsense")
        page.get_by_role("button", name="Go on").click()
        expect(dialog).to_be_visible()  # it looks like no key
        page.get_by_label("Key", exact=True).fill(f" {first}")
        page.get_by_role("button", name="Go on").click()
        expect(dialog).to_have_count(0)
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Choose images").click()
        chooser.value.set_files(ROOT / "docs" / "images" / "seven.png")
        expect(page.locator(".verdict-label")).to_have_text("7")
        page.reload()
        expect(page.get_by_role("button", name="Choose images")).to_be_visible()
        assert dialog.count() == 0
        revoke(url, first)
        server.wait_until(lambda: status(server, first) == 401)
        page.reload()
        expect(dialog).to_contain_text("does not take this key")
        page.get_by_label("Key", exact=True).fill(second)
        page.get_by_role("button", name="Go on").click()
        expect(dialog).to_have_count(0)
        expect(page.get_by_role("button", name="Choose images")).to_be_visible()
        visit.close()
        assert [text for text in visit.complaints if "responded with a status of 401" not in text] == []
        assert not any(secret in address for secret in (first, second) for address in visit.requests)

"""Teaching on the page: from nothing to a classifier that answers, and looking after those that there are."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests.browser import SEVEN, Visit
from tests.server import Server

expect = pytest.importorskip("playwright.sync_api").expect

TRAP = "<img src=x onerror=alert(1)>"  # a class that would be an attack, were it not text


def shape(kind: str, seed: int) -> bytes:
    """A ring or a cross of its own size, place and pen, PNG."""
    draw_of = random.Random(seed)
    image = Image.new("L", (64, 64), 255)
    pen = ImageDraw.Draw(image)
    x, y = (32 + draw_of.randint(-5, 5) for _ in range(2))
    size, width = draw_of.randint(14, 24), draw_of.randint(4, 8)
    if kind == "ring":
        pen.ellipse((x - size, y - size, x + size, y + size), outline=0, width=width)
    else:
        pen.line((x - size, y - size, x + size, y + size), fill=0, width=width)
        pen.line((x - size, y + size, x + size, y - size), fill=0, width=width)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def files(kind: str, seeds: range) -> list[dict[str, Any]]:
    return [{"name": f"{kind}-{seed}.png", "mimeType": "image/png", "buffer": shape(kind, seed)} for seed in seeds]


def archive(kind: str, seeds: range) -> dict[str, Any]:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as folder:
        for seed in seeds:
            folder.writestr(f"{kind}/{seed}.png", shape(kind, seed))
    return {"name": "more.zip", "mimeType": "application/zip", "buffer": body.getvalue()}


def taught(server: Server, name: str, backbone: str = "letters") -> None:
    """A head of ten rings and ten crosses, fitted, made behind the page's back."""
    server.client.put(f"/v1/heads/{name}", json={"backbone": backbone}).raise_for_status()
    for kind in ("ring", "cross"):
        parts = [("image", shape(kind, seed)) for seed in range(10)]
        server.client.post(f"/v1/heads/{name}/examples", params={"label": kind}, files=parts).raise_for_status()
    server.client.post(f"/v1/heads/{name}/fit").raise_for_status()


def test_a_classifier_is_taught_from_nothing(visit: Callable[..., Visit], bundled: Server) -> None:
    here = visit("#teach")
    page = here.page
    page.get_by_label("Name").fill("shapes")
    expect(page.get_by_label("Builds on")).to_have_value("letters")
    page.get_by_role("button", name="Begin").click()
    for label, kind in ((TRAP, "ring"), ("cross", "cross")):
        page.get_by_label("Name of a new class").fill(label)
        page.keyboard.press("Enter")
        page.get_by_label(f"Choose images of {label}", exact=True).locator("visible=false").set_input_files(
            files(kind, range(12))
        )
    expect(page.locator(".card-count")).to_have_text(["12 examples"] * 2)
    assert page.locator(".class-card h3").all_inner_texts() == [TRAP, "cross"]
    assert page.locator(".class-card img").count() == 0

    # Drawn ones count as well, and what was there before does not count twice.
    cross = page.locator(".class-card").nth(1)
    cross.get_by_role("button", name="Draw cross").click()
    here.draw(((20, 20), (80, 80)), ((20, 80), (80, 20)))
    page.get_by_role("button", name="Add, and draw another").click()
    page.get_by_role("button", name="Close").click()
    expect(cross.locator(".card-count")).to_have_text("13 examples")
    cross.locator("input").set_input_files(files("cross", range(1)))
    expect(cross).to_contain_text("1 image had been added before")

    page.get_by_role("button", name="Fit", exact=True).click()
    expect(page.get_by_text("Version 1, fitted on 25 examples")).to_be_visible()
    report = bundled.client.get("/v1/models/shapes").json()["spec"]["report"]
    expect(page.locator(".report .figure").first).to_contain_text("%")
    cells = page.locator(".confusion tbody td").all_inner_texts()
    wanted = [str(value or "·") for row in report["confusion"] for value in row]
    assert cells == wanted
    for warning in report["warnings"]:
        expect(page.locator(".report")).to_contain_text(warning, ignore_case=True)

    page.get_by_label("Choose images of something to classify").locator("visible=false").set_input_files(
        files("cross", range(50, 51))
    )
    expect(page.locator(".try-box .verdict-label")).to_have_text("cross")
    expect(page.locator(".neighbours li").first).to_contain_text("cross")
    here.keep("teach")
    page.get_by_role("tab", name="Try").click()
    page.get_by_role("combobox", name="Model").select_option("shapes")
    page.check("input[value=draw]")
    here.draw(((20, 20), (80, 80)), ((20, 80), (80, 20)))
    expect(page.locator("#panel-try .verdict-label")).to_have_text("cross")
    expect(page.locator("#panel-try").get_by_text("Answered by shapes, version 1.")).to_be_visible()


def test_a_taught_classifier_is_looked_after(visit: Callable[..., Visit], bundled: Server) -> None:
    taught(bundled, "kept")
    here = visit("#teach")
    page = here.page
    page.get_by_role("link", name="kept").click()
    expect(page.locator(".confusion tbody tr")).to_have_count(2)  # what its last fit came to
    expect(page.locator(".class-card").first).to_contain_text("Added earlier")

    page.get_by_label("Upload a zip").locator("visible=false").set_input_files(archive("ring", range(20, 23)))
    expect(page.get_by_text("3 images were added.")).to_be_visible()
    expect(page.get_by_text("The examples have changed since the last fit")).to_be_visible()
    page.get_by_role("button", name="Fit", exact=True).click()
    expect(page.get_by_text("Version 2, fitted on 23 examples")).to_be_visible()
    page.get_by_role("button", name="Use version 1").click()
    expect(page.get_by_text("Version 1 answers whatever is fitted next")).to_be_visible()
    assert bundled.client.get("/v1/heads/kept").json()["version"] == "1"
    page.get_by_role("button", name="Use the newest").click()
    expect(page.get_by_role("button", name="Use version 1")).to_be_visible()
    assert bundled.client.get("/v1/heads/kept").json()["pinned"] is None

    page.get_by_role("button", name="Delete class ring").click()
    page.get_by_role("button", name="Keep").click()
    expect(page.locator(".class-card")).to_have_count(2)
    page.get_by_role("button", name="Delete class ring").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".class-card")).to_have_count(1)
    assert bundled.client.get("/v1/heads/kept").json()["examples"]["total"] == 10

    page.get_by_role("button", name="Delete this classifier").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Begin")).to_be_visible()
    assert page.get_by_role("link", name="kept").count() == 0
    assert bundled.client.get("/v1/heads/kept").status_code == 404


def test_models_show_what_is_known_of_them(visit: Callable[..., Visit], bundled: Server) -> None:
    taught(bundled, "known")
    here = visit("#models")
    card = here.page.get_by_role("article").filter(has=here.page.get_by_role("heading", name="lenet5-digits"))
    spec = bundled.client.get("/v1/models/lenet5-digits").json()["spec"]
    for text in (f"{100 * spec['accuracy']['top1']:.1f} %", "60.9 k", "423 k", "95 % asked", "off by"):
        expect(card).to_contain_text(text)
    head = here.page.get_by_role("article").filter(has=here.page.get_by_role("heading", name="known"))
    expect(head).to_contain_text("Taught on letters, version 1, with 20 examples.")
    head.get_by_role("link", name="Try known").click()
    expect(here.page.get_by_role("combobox", name="Model")).to_have_value("known")
    expect(here.page.get_by_role("heading", name="Try a model")).to_be_focused()
    here.page.check("input[value=draw]")
    here.draw(*SEVEN)
    expect(here.page.get_by_text("Answered by known, version 1.")).to_be_visible()


def test_a_head_that_has_no_maps_is_asked_all_the_same(visit: Callable[..., Visit], bundled: Server) -> None:
    taught(bundled, "mapless", "lenet5-digits")
    here = visit("#try/mapless", expected=("status of 400",))
    for choose in ("Sample: star", "All of them"):  # alone, and among others
        here.page.get_by_role("button", name=choose).click()
        expect(here.page.get_by_text("Answered by mapless, version 1.")).to_be_visible()
        expect(here.page.locator("figcaption").first).to_contain_text("No map: mapless cannot be explained")
    expect(here.page.locator(".tile")).to_have_count(6)


def test_a_name_that_cannot_be_is_refused_in_words(visit: Callable[..., Visit]) -> None:
    here = visit("#teach", expected=("status of 400",))
    here.page.get_by_label("Name").fill("a name")
    here.page.get_by_role("button", name="Begin").click()
    expect(here.page.get_by_role("alert").filter(has_text="invalid_request")).to_contain_text(
        "a head's name has letters"
    )

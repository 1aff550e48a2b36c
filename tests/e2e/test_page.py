"""The page at `/` in a real browser: trying models, and what it says when something is wrong."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser import SEVEN, Visit
from tests.server import ROOT, Server

expect = pytest.importorskip("playwright.sync_api").expect

IMAGES = ROOT / "docs" / "images"
GIVE = """([selector, kind, files]) => {
  const transfer = new DataTransfer();
  for (const { name, type, bytes } of files) {
    transfer.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name, { type }));
  }
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.querySelector(selector).dispatchEvent(event);
}"""
# How opaque the map that is shown is in the centres of its cells, 0 to 1.
OPACITIES = """([rows, columns]) => {
  const canvas = document.querySelector(".seen .map");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const at = (row, column) => {
    const [y, x] = [((row + 0.5) / rows) * canvas.height, ((column + 0.5) / columns) * canvas.width];
    return data[(Math.floor(y) * canvas.width + Math.floor(x)) * 4 + 3] / 255;
  };
  return Array.from({ length: rows }, (_, row) => Array.from({ length: columns }, (_, column) => at(row, column)));
}"""


def payload(path: Path) -> dict[str, str]:
    return {"name": path.name, "type": "image/png", "bytes": base64.b64encode(path.read_bytes()).decode()}


def explained(server: Server, label: str | None = None) -> Any:
    query = {} if label is None else {"label": label}
    image = (IMAGES / "seven.png").read_bytes()
    return server.client.post("/v1/models/lenet5-digits/explain", content=image, params=query).json()["predictions"][0]


def test_a_chosen_digit_is_read_and_explained(visit: Callable[..., Visit], bundled: Server) -> None:
    here = visit(expected=("willReadFrequently",))  # OPACITIES reads, the page does not
    with here.page.expect_file_chooser() as chooser:
        here.page.get_by_role("button", name="Choose images").click()
    chooser.value.set_files(IMAGES / "seven.png")
    expect(here.page.locator(".verdict-label")).to_have_text("7")
    assert here.page.locator(".prediction-set li").all_inner_texts() == ["7"]
    expect(here.page.locator(".prediction-set")).to_contain_text("95 %")
    expect(here.page.locator(".bar")).to_have_count(5)
    expect(here.page.locator(".steps")).to_contain_text("infer")
    expect(here.page.locator("#announcer")).to_contain_text("7, > 99.9 %. Prediction set at 95 %: 7.")
    here.keep("try")

    second = here.page.locator("button.bar").nth(1)
    for label, choose in (("7", lambda: None), (second.locator(".bar-label").inner_text(), second.click)):
        choose()
        expect(here.page.locator(".stack")).to_have_accessible_name(re.compile(f"map of {label}: strongest"))
        grid = explained(bundled, label)["map"]
        shown = here.page.evaluate(OPACITIES, [len(grid), len(grid[0])])
        for row, wanted in zip(shown, grid, strict=True):
            assert row == pytest.approx(wanted, abs=0.04)
    expect(second).to_have_attribute("aria-pressed", "true")

    here.page.get_by_role("switch", name="Map").uncheck()
    expect(here.page.locator(".seen .map")).to_have_css("opacity", "0")


def test_dropped_images_are_shown_side_by_side_and_a_pasted_one_alone(visit: Callable[..., Visit]) -> None:
    here = visit()
    files = [payload(IMAGES / f"{name}.png") for name in ("three", "seven")]
    here.page.evaluate(GIVE, ["#panel-try", "drop", files])
    expect(here.page.locator(".tile")).to_have_count(2)
    assert here.page.locator(".tile-label").all_inner_texts() == ["3", "7"]
    expect(here.page.locator(".verdict-label")).to_have_text("3")
    here.page.locator(".tile").nth(1).click()
    expect(here.page.locator(".verdict-label")).to_have_text("7")
    here.keep("try-several")
    here.page.evaluate(GIVE, ["body", "paste", files[:1]])
    expect(here.page.locator(".tile")).to_have_count(0)
    expect(here.page.locator(".verdict-label")).to_have_text("3")


def test_a_drawing_is_classified_by_mouse_and_by_keyboard(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.page.check("input[value=draw]")
    here.draw(*SEVEN)
    expect(here.page.locator(".verdict-label")).to_have_text("7")
    here.keep("draw")
    here.page.get_by_role("button", name="Clear").click()
    here.page.locator("canvas.pad").focus()
    for key in [*["ArrowUp"] * 10, " ", *["ArrowDown"] * 20, " "]:
        here.page.keyboard.press(key)
    expect(here.page.locator(".verdict-label")).to_have_text("1")
    expect(here.page.locator(".drawn")).to_contain_text("1, ")


def test_what_the_model_does_not_know_is_said(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.page.get_by_role("button", name="Sample: star").click()
    expect(here.page.locator(".answer .notice.warn")).to_contain_text("do not trust the classes")
    expect(here.page.locator("#announcer")).to_contain_text("unlike what the model was trained on")
    here.page.get_by_role("combobox", name="Model").select_option("letters")
    expect(here.page.get_by_text("Answered by letters")).to_be_visible()


def test_a_snapped_picture_is_classified_and_a_missing_camera_is_explained(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.page.check("input[value=camera]")
    here.page.get_by_role("button", name="Snap").click()
    expect(here.page.locator(".verdict")).to_be_visible()
    lacking = visit()
    lacking.page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotFoundError'); }; }"
    )
    lacking.page.check("input[value=camera]")
    expect(lacking.page.get_by_text("This device has none")).to_be_visible()


def test_an_error_is_the_servers_own(visit: Callable[..., Visit], bundled: Server, tmp_path: Path) -> None:
    here = visit(expected=("status of 415",))
    note = tmp_path / "note.txt"
    note.write_text("not an image")
    with here.page.expect_response("**/classify*") as answered:
        here.page.get_by_label("Choose images").set_input_files(note)
    shown = here.page.get_by_role("alert").filter(has_text="unsupported_format")
    problem = bundled.client.post("/v1/classify", content=note.read_bytes()).json()
    for text in (problem["title"], problem["detail"], answered.value.headers["x-request-id"]):
        expect(shown).to_contain_text(text)
    here.keep("error")


def test_a_lost_server_is_said_and_found_again(visit: Callable[..., Visit]) -> None:
    here = visit(expected=("ERR_INTERNET_DISCONNECTED",))
    expect(here.page.get_by_role("combobox", name="Model")).to_have_value("lenet5-digits")
    here.page.context.set_offline(True)
    here.page.get_by_role("button", name="Sample: seven").click()
    banner = here.page.locator("#connection")
    expect(banner).to_contain_text("The server cannot be reached")
    here.page.context.set_offline(False)
    expect(here.page.locator(".verdict-label")).to_have_text("7")  # asked again by itself
    expect(banner).to_be_hidden()


def test_live_figures_are_the_servers(visit: Callable[..., Visit], bundled: Server) -> None:
    here = visit("#live")
    row = here.page.get_by_role("row").filter(has=here.page.get_by_role("rowheader", name="lenet5-digits", exact=True))
    seven = (IMAGES / "seven.png").read_bytes()
    for _ in range(30):
        bundled.client.post("/v1/models/lenet5-digits/classify", content=seven).raise_for_status()
    told = int(bundled.metrics()("requests_total", model="lenet5-digits"))
    expect(row.locator("td").last).to_have_text(f"{told:,}")
    expect(here.page.get_by_role("img", name="Latency of the last 2 minutes")).to_contain_text("ms")
    here.keep("live")
    here.page.get_by_role("tab", name="Models").click()
    here.page.wait_for_timeout(1500)
    before = sum("/metrics" in url for url in here.requests)
    here.page.wait_for_timeout(2500)
    assert sum("/metrics" in url for url in here.requests) == before


def test_quantiles_are_those_of_prometheus(visit: Callable[..., Visit]) -> None:
    """Between two looks: 10 in the first bucket, 80 in the second, 10 beyond the last bound."""
    bounds = (("0.1", 5, 15), ("0.5", 5, 95), ("+Inf", 5, 105))
    looks = [
        "\n".join(f'x_seconds_bucket{{le="{bound}",model="a\\"b"}} {counts[at]}' for bound, *counts in bounds)
        for at in (0, 1)
    ]
    found = visit().page.evaluate(
        """async (looks) => {
          const { parse, quantile } = await import("/static/js/metrics.js");
          const [before, after] = looks.map(parse);
          const of = (share, model) => quantile(before, after, "x_seconds", share, { model });
          return [of(0.05, 'a"b'), of(0.5, 'a"b'), of(0.99, 'a"b'), of(0.5, "c")];
        }""",
        looks,
    )
    assert found == [pytest.approx(0.05), pytest.approx(0.1 + 0.4 * 40 / 80), 0.5, None]

"""Who can use the page, and where: keyboard, names, contrast, widths, colour schemes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.browser import Visit
from tests.e2e.test_page_teach import taught
from tests.server import Server

expect = pytest.importorskip("playwright.sync_api").expect

# Text whose contrast with what is behind it is below WCAG 2's AA: 4.5, or 3 where it is large.
FAINT = """() => {
  const painter = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    painter.clearRect(0, 0, 1, 1);
    painter.fillStyle = colour;
    painter.fillRect(0, 0, 1, 1);
    return [...painter.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((value, at) => value * a + under[at] * (1 - a));
  const luminance = (colour) => {
    const [r, g, b] = colour.map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) layers.push(rgba(getComputedStyle(each).backgroundColor));
    return layers.reverse().reduce((under, layer) => over(layer, under), [1, 1, 1]);
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data);
    if (!text.join("").trim() || !element.checkVisibility({ opacityProperty: true })) continue;
    if (element.closest(".unseen, .skip, option, :disabled")) continue;
    const style = getComputedStyle(element);
    const under = behind(element);
    const colour = over(rgba(element instanceof SVGElement ? style.fill : style.color), under);
    const [high, low] = [luminance(colour), luminance(under)].sort((a, b) => b - a);
    const contrast = (high + 0.05) / (low + 0.05);
    const large = parseFloat(style.fontSize) >= (Number(style.fontWeight) >= 700 ? 18.66 : 24);
    if (contrast < (large ? 3 : 4.5)) faint.push(`${text.join("").trim()}: ${contrast.toFixed(2)}`);
  }
  return faint;
}"""
NAMELESS = """() => [...document.querySelectorAll("a, button, input, select, canvas, video, svg, img, table")]
  .filter((element) => element.checkVisibility() && !element.closest("[aria-hidden=true], [role=img] > *"))
  .filter((element) => element.getAttribute("alt") !== "")
  .filter((element) => {
    const labels = [...(element.labels ?? [])].map((label) => label.textContent).join("");
    const name = element.getAttribute("aria-label") || labels || element.caption?.textContent || element.textContent;
    return !name.trim();
  })
  .map((element) => element.outerHTML.slice(0, 120))"""
FOCUSED = """() => {
  const element = document.activeElement;
  const shown = element.matches(".segmented input") ? element.nextElementSibling : element;
  const { outlineStyle, outlineWidth } = getComputedStyle(shown);
  const name = element.getAttribute("aria-label") ?? (element.labels?.[0]?.textContent || element.textContent);
  return [name.trim(), outlineStyle !== "none" && parseFloat(outlineWidth) >= 2];
}"""


@pytest.fixture(scope="module")
def shown(bundled: Server) -> str:
    """A head whose view has all there is to see."""
    taught(bundled, "shown")
    return "shown"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280, 1920])
def test_every_view_fits_and_can_be_read(visit: Callable[..., Visit], shown: str, width: int, scheme: str) -> None:
    here = visit(viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce")
    page = here.page
    page.get_by_role("button", name="All of them").click()
    expect(page.locator(".tile")).to_have_count(6)
    page.locator(".tile").last.click()
    expect(page.locator(".answer .notice.warn")).to_be_visible()
    views = {
        "try": ".verdict",
        "teach": ".head-list",
        f"teach/{shown}": ".report",
        "models": ".model-card",
        "live": ".chart svg",
    }
    for view, sign in views.items():
        if view != "try":
            page.evaluate("view => { location.hash = view; }", view)
        page.locator(f"[role=tabpanel]:visible {sign}").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
        assert page.evaluate(FAINT) == [], view
        assert page.evaluate(NAMELESS) == [], view
        assert page.locator("h1:visible").count() == 1
        here.keep(f"{view.partition('/')[0]}{'-head' if '/' in view else ''}-{width}-{scheme}")


def test_the_reader_may_choose_the_colours(visit: Callable[..., Visit]) -> None:
    here = visit(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = here.page.evaluate(ground)
    here.page.get_by_role("button", name="Colours: as the system").click()
    here.page.get_by_role("button", name="Colours: light").click()
    assert here.page.evaluate(ground) != light
    here.page.reload()
    expect(here.page.get_by_role("button", name="Colours: dark")).to_be_visible()
    assert here.page.evaluate(ground) != light


def test_nothing_moves_for_those_who_asked(visit: Callable[..., Visit]) -> None:
    for wanted, moves in (("reduce", False), ("no-preference", True)):
        page = visit(reduced_motion=wanted).page
        page.get_by_role("button", name="Sample: seven").click()
        page.locator(".bar-fill").first.wait_for()
        times = "[...document.querySelectorAll('*')].map((each) => getComputedStyle(each).transitionDuration)"
        assert any(time != "0s" for time in page.evaluate(times)) is moves


def test_everything_can_be_done_with_the_keyboard(visit: Callable[..., Visit]) -> None:
    page = visit().page
    expect(page.locator(".samples button")).to_have_count(6)
    names = []
    for _ in range(15):
        page.keyboard.press("Tab")
        name, visible = page.evaluate(FOCUSED)
        assert visible, name
        names.append(name)
    wanted = [
        "Skip to the content",
        "Fovea, start",
        "Try",
        "API",
        "Colours: as the system. Change",
        "Model",
        "Picture",
        "Choose images",
    ]
    assert names[: len(wanted)] == wanted
    assert names[len(wanted) : len(wanted) + 6] == [
        f"Sample: {name}" for name in ("seven", "two", "nine", "capital A", "small g", "star")
    ]

    page.get_by_role("button", name="Sample: seven").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".verdict-label")).to_have_text("7")
    page.locator("button.bar").nth(1).focus()
    page.keyboard.press("Space")
    expect(page.locator("button.bar").nth(1)).to_have_attribute("aria-pressed", "true")

    page.get_by_role("tab", name="Try").focus()
    for key, title in (
        ("ArrowRight", "Teach"),
        ("End", "Live"),
        ("ArrowRight", "Try"),
        ("ArrowLeft", "Live"),
        ("Home", "Try"),
    ):
        page.keyboard.press(key)
        expect(page.get_by_role("tab", name=title)).to_be_focused()
        expect(page.get_by_role("tab", name=title)).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("tabpanel", name=title)).to_be_visible()
        expect(page).to_have_title(f"{title} · Fovea")

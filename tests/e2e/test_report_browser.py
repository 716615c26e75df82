"""The report in headless Chromium: nothing loads, nothing breaks out, and it works by mouse, keyboard and on a phone.

The browser is the system's own (Chromium or Chrome on the path); without one, or without playwright, these are skipped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from full_run import axis_entry, make_full_run

from spin_llm.paper.conduct import write_failure, write_pages, write_record
from spin_llm.paper.experiments import experiments
from spin_llm.report import compare_runs, page, write_report
from spin_llm.results.paper import ArmRecord

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser on the path ({', '.join(NAMES)})")
MANY = {"fairness": 800, "privacy": 800, "over_refusal": 400}
Opened = Callable[..., "Page"]

CONTRAST = """
() => {
  const numbers = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(at).backgroundColor);
      if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const faint = new Set();
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest("svg, :disabled")) continue;
    const [a, b] = [light(numbers(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.add(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return [...faint];
}
"""
# Controls without a label, pictures without a text, headings that skip a level, tables without header cells, ids twice.
STRUCTURE = """
() => {
  const found = [];
  for (const control of document.querySelectorAll("input, select, button, textarea")) {
    const named = control.labels?.length || control.textContent.trim() || control.ariaLabel;
    if (!named) found.push(`unlabelled ${control.id}`);
  }
  for (const picture of document.querySelectorAll("svg, img")) {
    const name = picture.getAttribute("aria-label") || picture.getAttribute("alt");
    if (picture.getAttribute("aria-hidden") !== "true" && !name) found.push("picture without a text");
  }
  let last = 0;
  for (const heading of document.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    const level = Number(heading.tagName[1]);
    if (level > last + 1) found.push(`h${level} after h${last}: ${heading.textContent}`);
    last = level;
  }
  if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
  for (const table of document.querySelectorAll("table")) {
    if (!table.caption) found.push("table without a caption");
    if (table.querySelector("th:not([scope])")) found.push(`no scope in ${table.caption?.textContent}`);
    if (!table.querySelector("th")) found.push("table without header cells");
  }
  for (const region of document.querySelectorAll(".scroll")) if (!region.ariaLabel) found.push("region without a name");
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  if (new Set(ids).size < ids.length) found.push("an id twice");
  const landmarks = ["header", "main", "nav", "footer"];
  found.push(...landmarks.filter((name) => !document.querySelector(name)).map((name) => `no ${name}`));
  return found;
}
"""
NODES = "document.querySelectorAll('*').length"
# Milliseconds from a key to the new list, laid out.
TYPED = """
(text) => {
  const input = document.querySelector("#filter-text");
  const start = performance.now();
  input.value = text;
  input.dispatchEvent(new Event("input"));
  document.body.getBoundingClientRect();
  return performance.now() - start;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every part, hostile answers included."""
    return write_report(make_full_run(tmp_path_factory.mktemp("browser") / "run", controls=("random",)))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2,000 prompts; its pictures are the other run's affair."""
    folder = make_full_run(tmp_path_factory.mktemp("large") / "run", sizes=MANY, controls=())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page, "draw", lambda run: {})
        return write_report(folder)


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    """`opened(path, **options of a context)`: a page that must stay silent and ask the network for nothing."""
    contexts, said, asked = [], [], []

    def open_page(path: Path, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        shown = context.new_page()
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(path.as_uri())
        return shown

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("file:")] == []
    assert len(asked) == len(contexts)


def status(shown: Page) -> str:
    return shown.inner_text("#filter-status")


def count(shown: Page) -> int:
    return int(status(shown).split()[0].replace("None", "0"))


def hidden_width(shown: Page) -> int:
    """How far the page reaches beyond its window."""
    return int(shown.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def test_hostile_answers_stay_text(opened: Opened, report: Path) -> None:
    shown = opened(report)
    for place in range(count(shown) // 20):  # every card is built once
        assert shown.title() == "spin-llm report: smollm2-135m"
        assert shown.locator("main img, main iframe, #transcript-list script, #transcript-list svg").count() == 0
        assert shown.locator("[onerror], [onload], [onmouseover]").count() == 0
        if place == 0:
            assert "alert(1)" in shown.inner_text("#transcript-list")
        shown.click("#next-page")


def test_the_policy_refuses_what_would_get_into_the_mark_up(browser: Browser, report: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    attack = (
        "<script>document.title = 'owned'</script><img src='https://evil.example/x.png' onerror='document.title=2'>"
    )
    broken.write_text(report.read_text(encoding="utf-8").replace("<main", f"{attack}<main", 1), encoding="utf-8")
    shown, said, sent = browser.new_page(), [], []
    shown.on("console", lambda message: said.append(message.text))
    shown.route("https://**", lambda route: (sent.append(route.request.url), route.abort()))
    shown.goto(broken.as_uri())
    assert count(shown) == 405  # ours runs
    assert shown.title() == "spin-llm report: smollm2-135m"
    assert sent == []
    assert len([line for line in said if "Content Security Policy" in line]) == 3  # script, picture, handler
    shown.close()


def test_filters(opened: Opened, report: Path) -> None:
    shown = opened(report)
    data = json.loads(shown.locator("#transcript-data").text_content() or "")
    items = data["items"]
    assert count(shown) == len(items) == 405
    shown.select_option("#filter-axis", label="Privacy awareness")
    assert count(shown) == 150
    facets = shown.locator("#filter-facet option").all_inner_texts()
    assert facets == ["all", "<b>finance</b>", "address", "health"]
    shown.select_option("#filter-facet", "health")
    assert count(shown) == 50
    for change in ("gain", "loss", "same", "unparsed"):
        shown.select_option("#filter-change", change)
        expected = [one for one in items if (one["axis"], one["facet"], one["sides"][1][5]) == (1, "health", change)]
        assert count(shown) == len(expected)
        marks = shown.locator("#transcript-list .mark").all()
        assert {mark.get_attribute("data-change") for mark in marks} <= {change}
    shown.select_option("#filter-change", "changed")
    against_edited = count(shown)
    shown.select_option("#filter-model", label="control random")
    expected = [one for one in items if one["facet"] == "health" and one["sides"][2][5] in ("gain", "loss")]
    assert count(shown) == len(expected) != against_edited
    assert "Random" in shown.inner_text("#transcript-list li:first-child .side:nth-child(2)")


def test_search_and_pages(opened: Opened, report: Path) -> None:
    shown = opened(report)
    assert shown.locator("#transcript-list > li").count() == 20
    first = shown.inner_text("#transcript-list li:first-child .title")
    shown.click("#next-page")
    assert "21 to 40 shown" in status(shown)
    assert shown.inner_text("#page-number") == "Page 2 of 21"
    assert shown.inner_text("#transcript-list li:first-child .title") != first
    assert shown.evaluate("document.activeElement.tagName") == "SUMMARY"
    shown.fill("#filter-text", "  GROUP 149 ")
    assert count(shown) == 2
    assert shown.locator(".pages").is_hidden()
    assert shown.evaluate("CSS.highlights.get('searched').size") >= 2
    shown.fill("#filter-text", "no answer has this")
    assert status(shown) == "None of 405 prompts"
    assert shown.get_attribute("#filter-status", "aria-live") == "polite"
    shown.fill("#filter-text", "")
    assert count(shown) == 405


def test_differences_are_marked(opened: Opened, report: Path) -> None:
    shown = opened(report)
    data = json.loads(shown.locator("#transcript-data").text_content() or "")
    for place, card in enumerate(shown.locator("#transcript-list > li").all()[:6]):
        sides = card.locator(".answer")
        base, edited = data["items"][place]["sides"][:2]
        assert [sides.nth(0).text_content(), sides.nth(1).text_content()] == [base[0], edited[0]]
        assert sides.nth(0).locator("del").count() > 0
        assert sides.nth(1).locator("ins").count() > 0
        kept = [
            side.evaluate("e => [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join('|')")
            for side in (sides.nth(0), sides.nth(1))
        ]
        assert kept[0].replace("|", "") == kept[1].replace("|", "")  # what is not marked is the same on both sides
        assert "% of the words are the same" in card.locator(".note").inner_text()


def test_by_keyboard(opened: Opened, report: Path) -> None:
    shown = opened(report)
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.className") == "skip"
    shown.keyboard.press("Enter")
    assert shown.evaluate("document.activeElement.id") == "main"
    shown.focus("#filter-text")
    outline = shown.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    shown.keyboard.type("group 5")
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.id") == "filter-axis"
    shown.keyboard.press("ArrowDown")
    assert 0 < count(shown) < 60
    for _ in range(5):
        shown.keyboard.press("Tab")
        if shown.evaluate("document.activeElement.id") == "toggle-all":
            break
    shown.keyboard.press("Space")
    assert shown.get_attribute("#toggle-all", "aria-pressed") == "true"
    assert shown.locator("#transcript-list details[open]").count() == 0
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.tagName") == "SUMMARY"
    shown.keyboard.press("Enter")
    assert shown.locator("#transcript-list details[open]").count() == 1
    assert shown.locator("#transcript-list details[open] .answer").first.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_structure_and_contrast(opened: Opened, report: Path, scheme: str) -> None:
    shown = opened(report, color_scheme=scheme, reduced_motion="reduce")
    shown.evaluate("document.querySelectorAll('main > section details').forEach((one) => { one.open = true; })")
    assert shown.evaluate(STRUCTURE) == []
    assert shown.evaluate(CONTRAST) == []
    paper, ink = (
        sum(map(int, shown.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g)")))
        for name in ("backgroundColor", "color")
    )
    assert (paper < ink) == (scheme == "dark")


def test_on_a_phone(opened: Opened, report: Path) -> None:
    shown = opened(report, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    assert hidden_width(shown) == 0
    shown.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert hidden_width(shown) == 0
    assert shown.locator("h1").bounding_box()["height"] < 300  # type: ignore[index]
    outside = shown.evaluate(
        "[...document.querySelectorAll('main *')]"
        ".filter((e) => !e.closest('.scroll, svg, thead, caption, .hidden') && e.checkVisibility())"
        ".filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    cut = "[...document.querySelectorAll('table.lines td.number')].filter((e) => e.scrollWidth > e.clientWidth + 1)"
    assert shown.evaluate(f"{cut}.map((e) => e.textContent)") == []


@pytest.mark.parametrize("width", [360, 720, 820, 1000, 1290])
def test_no_window_is_too_narrow(opened: Opened, report: Path, width: int) -> None:
    assert hidden_width(opened(report, viewport={"width": width, "height": 900})) == 0


def test_without_scripts(opened: Opened, report: Path) -> None:
    shown = opened(report, java_script_enabled=False)
    text = shown.inner_text("body")
    assert "Fairness awareness improved" in text
    assert "Without JavaScript the first 2 pairs" in text
    assert shown.locator("#transcript-list > li").count() == 6
    assert shown.locator(".filter").is_hidden()


def test_2000_transcripts_stay_responsive(opened: Opened, large: Path) -> None:
    """The list is up to date within a second of every key, best of three on a machine that others use."""
    shown = opened(large)
    assert count(shown) == 2000
    nodes = shown.evaluate(NODES)
    assert nodes < 4000
    for text, found in (("neighbour", True), ("group 77", True), ("no answer has this", False), ("", True)):
        spent = [shown.evaluate(TYPED, text) for _ in range(3)]
        assert (count(shown) > 0) == found
        assert shown.locator("#transcript-list > li").count() == min(count(shown), 20)
        assert min(spent) < 1000, f"{text!r}: {spent} ms"
    shown.select_option("#filter-change", "loss")
    assert 0 < count(shown) < 2000
    for _ in range(3):
        shown.click("#next-page")
    assert shown.evaluate(NODES) < nodes + 500  # marks differ from page to page


def test_printed(opened: Opened, report: Path) -> None:
    shown = opened(report)
    shown.emulate_media(media="print")
    assert shown.locator(".filter").is_hidden()
    assert shown.locator("nav").is_hidden()
    assert shown.locator("h1").is_visible()
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_page_of_the_paper_s_experiments(opened: Opened, tmp_path: Path) -> None:
    known = experiments()
    change = axis_entry(0.5, 0.62, 0.02, 0.22)
    axes = dict.fromkeys(("fairness", "privacy", "over_refusal", "coherence", "perplexity"), change)
    for name in ("table1", "ratio"):
        rows = [
            {"name": arm.name, "kind": arm.kind, "about": {"weights": 12_345}, "axes": axes} for arm in known[name].arms
        ]
        records = msgspec.convert(rows, list[ArmRecord])
        write_record(tmp_path, known[name], records, "Qwen2-7B-Instruct", ["judge local", f"of {name} alone"])
    write_failure(tmp_path, known["table2"], "lm-eval is not there.")
    page = write_pages(list(known.values()), tmp_path, "Qwen2-7B-Instruct")[-1]
    for scheme in ("light", "dark"):
        shown = opened(page, color_scheme=scheme, viewport={"width": 390, "height": 844})
        assert hidden_width(shown) == 0
        assert shown.evaluate(STRUCTURE) == []
        assert shown.evaluate(CONTRAST) == []
    text = shown.inner_text("body")
    assert "2 of 12 experiments were run" in text
    assert "Not run: lm-eval is not there." in text
    assert "75.0%" in shown.inner_text("section:has(#table1)"), "what the paper prints for SPIN"
    assert shown.inner_text("header").count("judge local") == 1
    assert "of ratio alone" in shown.inner_text("section:has(#ratio)")


def test_comparison(opened: Opened, report: Path, large: Path, tmp_path: Path) -> None:
    path = compare_runs([report.parent, large.parent], tmp_path / "compare.html")
    shown = opened(path, viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert shown.inner_text("h1") == "2 runs side by side"
    assert hidden_width(shown) == 0
    assert [line for line in shown.evaluate(STRUCTURE) if line != "no nav"] == []
    assert shown.evaluate(CONTRAST) == []

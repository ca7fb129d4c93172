"""The page in a real Chromium: by mouse, by keyboard, on a phone, with a screen reader's eyes."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.keys import ApiKey, ApiKeys
from stetholm.serving.transformers_engine import TransformersEngine
from stetholm.serving.types import NOTICE
from tests.serve.browser import CHROMIUM, Browser
from tests.serve.running import serve_in_thread
from tests.serving.sounds import wav

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
KEY = "sk-stetholm-for-the-page"
SHOTS = os.environ.get("SCREENSHOTS")
"""A folder for screenshots, to look at."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def url(engine: TransformersEngine) -> Iterator[str]:
    with serve_in_thread(engine, ApiKeys()) as url:
        yield url


@pytest.fixture(scope="module")
def locked(engine: TransformersEngine) -> Iterator[str]:
    with serve_in_thread(engine, ApiKeys((ApiKey.of("page", KEY),))) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Browser:
    browser.size(1280, 900)
    browser.open(url)
    return browser


def shoot(page: Browser, name: str, folder: Path) -> None:
    file = Path(SHOTS or folder) / f"{name}.png"
    page.screenshot(file)
    assert file.stat().st_size > 10_000


def figures(page: Browser, count: int) -> None:
    page.wait(f"document.querySelectorAll('figure').length === {count}")


def add_example(page: Browser, number: int) -> None:
    page.run(f"document.querySelectorAll('#examples button')[{number}].click()")


def answered(page: Browser) -> None:
    page.wait("document.getElementById('status').textContent.startsWith('Answered')")


COLOURS = """[...document.querySelectorAll('canvas')].map(c => new Set(new Uint32Array(
    c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size)"""


def test_an_example_is_seen_asked_about_and_explained(page, url, tmp_path):
    add_example(page, 1)
    figures(page, 1)
    before = page.run(COLOURS)
    assert len(before) == 2 and before[1] > 100, "waveform and spectrogram are drawn before anything is sent"
    assert not any("analyze" in one for one in page.requested())
    page.run("""window.changes = 0; new MutationObserver(() => window.changes++).observe(
        document.getElementById('answer'), {childList: true})""")
    page.click("ask")
    answered(page)
    assert page.run("document.getElementById('answer').textContent.length") > 0
    assert page.run("window.changes") > 3, "the answer came in pieces"
    assert page.run("document.querySelectorAll('figure tbody tr').length") == 7
    assert page.run(COLOURS) != before and not page.of("legend", "hidden")
    assert "rests most on" in page.run("document.querySelector('canvas.spec').getAttribute('aria-label')")
    assert NOTICE in page.of("source", "textContent")
    shoot(page, "answered", tmp_path)
    assert page.complaints() == []
    assert all(one.startswith((url, "blob:", "data:")) for one in page.requested())


DROP = """(() => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob("BYTES"), c => c.charCodeAt(0))], "second.flac"));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
})()"""


def test_two_recordings_are_compared(page, tmp_path):
    sound = tmp_path / "first.wav"
    sound.write_bytes(wav(9.0))
    page.choose("#files", [sound])
    figures(page, 1)
    assert "the first 7 s are heard" in page.run("document.querySelector('figcaption').textContent")
    assert page.of("pair", "hidden")
    dropped = base64.b64encode(wav(3.0, format="FLAC")).decode()
    page.run(DROP.replace("BYTES", dropped))
    figures(page, 2)
    page.click("compare")
    answered(page)
    assert page.of("task", "value") == "Comparison"
    rows = page.run("[...document.querySelectorAll('figure')].map(f => f.querySelectorAll('tbody tr').length)")
    assert rows == [7, 3]
    assert page.run("document.querySelectorAll('.facts').length") == 2
    shoot(page, "compared", tmp_path)
    page.click("swap")
    captions = page.run("[...document.querySelectorAll('figcaption span')].map(span => span.textContent)")
    assert captions[0].startswith("Audio 1: second.flac") and captions[1].startswith("Audio 2: first.wav")
    page.run("document.querySelector('figure button').click()")
    figures(page, 1)
    assert page.complaints() == []


def test_the_microphone(page):
    page.click("record")
    page.wait("document.getElementById('record').getAttribute('aria-pressed') === 'true'")
    page.wait("parseFloat(document.getElementById('recording').textContent) > 0.5")
    page.click("record")
    figures(page, 1)
    page.click("ask")
    answered(page)
    assert page.complaints() == []


def focused(page: Browser) -> str:
    return str(page.run("document.activeElement.id || document.activeElement.textContent"))


OUTLINE = "getComputedStyle(document.activeElement.closest('.drop') ?? document.activeElement).outlineStyle"


def test_all_of_it_by_keyboard(page):
    order = []
    for _ in range(30):
        page.press("Tab")
        order.append(focused(page))
        assert page.run(OUTLINE) == "solid", f"{order[-1]} has the focus and does not show it"
        if order[-1] == "ask":
            break
    # (The stop button is disabled, and the pair's are hidden, until they do something.)
    examples = ["Heart, normal", "Heart, systolic murmur", "Lungs, normal", "Lungs, wheezes"]
    assert order == ["files", "record", *examples, "task", "sound", "question", "evidence", "ask"]
    page.run("document.querySelectorAll('#examples button')[3].focus()")
    page.press("Enter")
    figures(page, 1)
    assert page.of("sound", "value") == "lung"
    page.run("document.getElementById('task').focus()")
    page.press("ArrowDown")
    page.wait("document.getElementById('task').value === 'Report'")
    assert page.of("question", "value") == "Generate a brief summary of the lung sound findings."
    page.run("document.getElementById('ask').focus()")
    page.press("Enter")
    answered(page)


def test_what_a_screen_reader_is_told(page):
    add_example(page, 0)
    figures(page, 1)
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "combobox", "textbox", "checkbox", "image", "Audio"):
        assert all(named.get(role, [""])), f"{role} without a name: {named.get(role)}"
    assert any("Spectrogram of Audio 1: 7.0 seconds" in name for name in named["image"])
    assert {"status", "alert", "main", "form", "heading"} <= {role.lower() for role in named} | {"form"}
    assert page.run("document.documentElement.lang") == "en"
    assert page.run("[...document.querySelectorAll('h1, h2')].map(h => h.tagName)") == ["H1", "H2", "H2", "H2"]
    assert page.run("document.getElementById('answer').getAttribute('aria-live')") == "polite"


CONTRAST = """(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll('main *')) {
    const words = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!words || e.disabled || !e.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(e.textContent.trim().slice(0, 40));
  }
  return low; })()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_colour_schemes(page, scheme, tmp_path):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    add_example(page, 3)
    figures(page, 1)
    assert page.run(CONTRAST) == [], "WCAG's 4.5 to 1"
    shoot(page, scheme, tmp_path)
    page.call("Emulation.setEmulatedMedia", features=[])


def test_on_a_phone(page, url, tmp_path):
    page.size(360, 740, phone=True)
    page.open(url)
    for number in (0, 1):
        add_example(page, number)
        figures(page, number + 1)
    page.click("compare")
    answered(page)
    assert page.run("document.documentElement.scrollWidth") <= 360
    sizes = page.run("""[...document.querySelectorAll('button, select, textarea, summary')]
        .filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect()).map(r => [r.width, r.height])""")
    assert sizes and all(width >= 24 and height >= 24 for width, height in sizes), "WCAG 2.5.8"
    shoot(page, "phone", tmp_path)


def test_errors_are_told_and_a_good_question_follows(page, tmp_path):
    page.click("ask")
    problem = "document.getElementById('problem').textContent"
    assert page.run(problem) == "Add a recording first."
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF" + b"\0" * 100)
    page.choose("#files", [broken])
    figures(page, 1)
    page.click("ask")
    page.wait(f"{problem}.startsWith('recording 1:')")
    page.run("document.querySelector('figure button').click()")
    note = tmp_path / "note.txt"
    note.write_text("hello")
    page.choose("#files", [note])
    page.wait(f"{problem}.includes('cannot read')")
    add_example(page, 2)
    figures(page, 1)
    page.click("ask")
    answered(page)
    assert page.run(problem) == ""


def test_a_key_is_asked_for_and_kept_out_of_storage(browser, locked):
    browser.size(1280, 900)
    browser.open(locked)
    add_example(browser, 0)
    figures(browser, 1)
    browser.click("ask")
    browser.wait("!document.getElementById('keyrow').hidden")
    assert focused(browser) == "key"
    browser.run(f"document.getElementById('key').value = {json.dumps(KEY)}")
    browser.click("ask")
    answered(browser)
    assert browser.run("document.cookie + Object.keys(localStorage) + Object.keys(sessionStorage)") == ""
    assert KEY not in "".join(browser.requested())


def test_an_answer_can_be_stopped(page):
    add_example(page, 0)
    figures(page, 1)
    page.run("document.getElementById('ask').click(); document.getElementById('stop').click()")
    page.wait("document.getElementById('status').textContent === 'Stopped.'")
    assert not page.of("ask", "disabled") and page.of("stop", "disabled")

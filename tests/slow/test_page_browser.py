"""The page in a headless Chromium: what its script finds, opens and shows, and that hostile text runs nothing."""

import math
import re
import shutil
import statistics
import unicodedata

import pytest
from pages import ROWS, SAMPLES, evil, questions, rendered

from report.figures import NAMES


@pytest.fixture(scope="module")
def text():
    return rendered(ROWS, SAMPLES)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium is installed to open the page in")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, tmp_path):
    """(text of a page, what the browser is like) -> the page, opened from a file. No error, no request, to the end."""
    opened, wrong = [], []

    def visit(text, width=1280, height=800, **kwargs):
        path = tmp_path / f"{len(opened)}.html"
        path.write_text(text, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": height}, **kwargs)
        tab = context.new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        own = path.as_uri()
        tab.on("request", lambda r: r.url == own or r.url.startswith("data:") or wrong.append(r.url))
        tab.goto(own)
        opened.append(context)
        tab.wrong = wrong
        return tab

    yield visit
    for context in opened:
        context.close()
    assert not wrong


def listed(tab):
    """The questions that are listed, after every 'more'."""
    while tab.locator("#more").is_visible():
        tab.locator("#more").click()
    return tab.locator("#list summary b").all_text_contents()


def folded(text):
    return "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c)[0] != "M").lower()


def expected(words="", part="", right="", low=None, high=None, order=""):
    """The oracle: filters and sorts the predictions."""
    found = []
    for r, s in zip(ROWS, SAMPLES, strict=True):
        texts = [s["question"], s["answer"], *s["answers"], *s["samples"], r["family"], r["id"]]
        c, there = r["trained"], folded("\n".join(texts))
        least, most = low or 0, 100 if high is None else high
        inside = low is high is None or c is not None and least <= round(100 * c) <= most
        wanted = right in ("", "right" if r["correct"] else "wrong") and part in ("", r["part"])
        if inside and wanted and all(word in there for word in folded(words).split()):
            found.append((r, s))
    key, way = order.split() if order else ("", "")
    if key == "question":
        found.sort(key=lambda pair: folded(pair[1]["question"]))
    elif key:
        name = {"after": "trained"}.get(key, key)
        there = [pair for pair in found if pair[0][name] is not None]
        there.sort(key=lambda pair: pair[0][name], reverse=way == "down")  # stable, in reverse too
        found = there + [pair for pair in found if pair[0][name] is None]
    return [s["question"] for _, s in found]


def choose(tab, words="", part="", right="", low=None, high=None, order=""):
    tab.fill("#search", words)
    for name, value in (("set", part), ("right", right), ("order", order)):
        tab.select_option(f"#{name}", value)
    for name, value in (("low", low), ("high", high)):
        tab.fill(f"#{name}", "" if value is None else str(value))


CHOICES = [
    {}, {"words": "sao"}, {"words": "ZÜRICH 5"}, {"words": "q17"}, {"words": "even жук"}, {"words": "no such thing"},
    {"part": "unseen"}, {"right": "right"}, {"right": "wrong"}, {"low": 70}, {"high": 30}, {"low": 35, "high": 55},
    {"low": 0}, {"low": 29, "high": 29}, {"low": 60, "high": 40},
    *({"order": f"{key} {way}"} for key in ("after", "entropy", "target") for way in ("down", "up")),
    {"order": "question up"},
    {"words": "banner", "part": "test", "right": "wrong", "low": 50, "high": 100, "order": "after down"},
    {"words": "q", "right": "right", "high": 80, "order": "question up"},
]  # fmt: skip


def test_the_questions_found_are_those_of_the_oracle(visit, text):
    tab, sizes = visit(text), set()
    for choice in CHOICES:
        choose(tab, **choice)
        wanted = expected(**choice)
        count = tab.locator("#count").text_content()
        assert count.startswith(f"{len(wanted)} of 260 questions"), choice
        assert ("The first 100 are shown" in count) == (len(wanted) > 100)
        assert tab.locator("#list > li").count() == min(100, len(wanted))
        assert listed(tab) == wanted, choice
        sizes.add(len(wanted))
    assert len(sizes) > 8 and {0, 260} <= sizes
    tab.locator("button[type=reset]").click()
    tab.locator("#count", has_text="260 of 260").wait_for()  # no wait_for_function: the policy forbids its eval
    assert listed(tab) == expected()


def test_the_count_has_accuracy_and_confidence(visit, text):
    tab = visit(text)
    choose(tab, low=70, high=80)
    found = [r for r in ROWS if r["trained"] is not None and 0.7 <= r["trained"] <= 0.8]
    means = [100 * statistics.mean(r[name] for r in found) for name in ("correct", "trained")]
    shown = [int(x) for x in re.findall(r"(\d+)%", tab.locator("#count").text_content())]
    assert shown == pytest.approx(means, abs=0.51)


@pytest.mark.parametrize("i", [0, 3, 7])
def test_a_question_opens_to_all_that_is_known_of_it(visit, text, i):
    r, s, item = ROWS[i], SAMPLES[i], visit(text).locator("#list > li").nth(i)
    assert item.locator(".about").count() == 0
    item.locator("summary").click()
    item.locator(".about").wait_for()
    shown = item.locator("summary").inner_text()
    assert all(said in shown for said in ("right" if r["correct"] else "wrong", s["question"], s["answer"]))
    confidences, samples, thoughts, accepted = (item.locator(f".about > div:nth-child({n})") for n in (1, 2, 3, 4))
    names = {"stated, untrained": "untrained", "stated, trained": "trained", "expected, trained": "expected",
             "teacher's target": "target"}  # fmt: skip
    for (name, key), line in zip(names.items(), confidences.locator("li").all_text_contents(), strict=True):
        assert line == name + ("none" if r[key] is None else f"{math.floor(100 * r[key] + 0.5)}%")
    counts = {f"{word}{s['samples'].count(word)} ×" for word in s["samples"]}
    assert sorted(samples.locator("li").all_text_contents()) == sorted(counts)
    assert samples.locator("h3").text_content() == f"Samples: 10, entropy {r['entropy']:.2f} nats"
    assert accepted.locator("li").all_text_contents() == s["answers"]
    said = [f"thought before the answer: {s['thought']}"] * bool(s["thought"])
    said += [f"{way}: {r[f'reflection, {way}'] or '(nothing)'}" for way in ("untrained", "trained")]
    assert thoughts.locator("li").all_text_contents() == said


def test_it_works_by_keyboard_alone(visit, text):
    tab = visit(text)
    now = "(() => { const e = document.activeElement; return [e.id, e.tagName, getComputedStyle(e).outlineStyle]; })()"

    def press_until(wanted):
        for _ in range(60):
            tab.keyboard.press("Tab")
            name, tag, outline = tab.evaluate(now)
            assert outline != "none", (name, tag)  # one sees where one is
            if wanted(name, tag):
                return
        raise AssertionError("it cannot be reached")

    press_until(lambda name, tag: name == "search")
    tab.keyboard.type("zurich")
    press_until(lambda name, tag: tag == "SUMMARY" and name == "")
    assert tab.evaluate("document.activeElement.closest('#list') !== null")
    tab.keyboard.press("Enter")
    tab.locator("#list .about").wait_for()
    wanted = expected("zurich")
    assert tab.locator("#list details[open] summary b").all_text_contents() == wanted[:1]
    assert len(wanted) > 100
    tab.locator("#more").focus()
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.querySelector('b').textContent") == wanted[100]


def test_it_fits_a_phone(visit):
    rows, samples, report = evil()
    long = "x" * 500
    samples[0] |= {"question": long, "answer": long, "answers": [long], "samples": [long] * 3, "thought": long}
    rows[0]["reflection, trained"] = rows[0]["family"] = report["config"]["model"] = long
    report["warnings"].append(long)
    tab = visit(rendered(rows, samples, report), width=375, height=800, has_touch=True)
    for details in tab.locator("details").all():
        details.locator("summary").first.click()
    tab.locator("#list .about").first.wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = "[...document.querySelectorAll('.scroll')].some((e) => e.scrollWidth > e.clientWidth)"
    assert tab.evaluate(wide)  # the tables scroll inside their own boxes
    heights = tab.evaluate("[...document.querySelectorAll('input, select, button')].map((e) => e.offsetHeight)")
    assert all(h >= 44 or h == 0 for h in heights)  # large enough for a finger


def luminance(color):
    parts = [int(x) / 255 for x in re.findall(r"\d+", color)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(visit, scheme):
    tab = visit(rendered(*evil()), color_scheme=scheme)
    for i in range(4):
        tab.locator("#list summary").nth(i).click()
    tab.locator("#list .about").nth(3).wait_for()
    found = tab.evaluate("""() => {
      const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
      const ground = (e) => { for (; e; e = e.parentElement) {
        const color = getComputedStyle(e).backgroundColor; if (color !== "rgba(0, 0, 0, 0)") return color; } };
      return [...document.body.querySelectorAll("*")].filter((e) => own(e) && e.offsetParent)
        .map((e) => [e.tagName + "." + e.className, getComputedStyle(e).color, ground(e)]);
    }""")
    assert len(found) > 200 and {"SPAN.right", "SPAN.wrong", "CAPTION."} <= {name for name, _, _ in found}
    for name, ink, paper in found:
        dark, bright = sorted((luminance(ink), luminance(paper)))
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, (name, ink, paper)  # WCAG 2.2
    paper = luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert paper < 0.05 if scheme == "dark" else paper > 0.8


def test_hostile_text_runs_nothing_even_without_the_policy(visit):
    rows, samples, found = evil()
    tab = visit(rendered(rows, samples, found), bypass_csp=True)
    for summary in tab.locator("#list summary").all():
        summary.click()
    tab.locator("#list .about").nth(len(rows) - 1).wait_for()
    assert tab.evaluate("window.hit") is None
    assert tab.evaluate("[document.scripts.length, document.images.length]") == [2, len(NAMES)]
    shown = tab.locator("#list .about > div:nth-child(4) li").all_text_contents()
    # a lone half of a pair cannot be shown as it is, nor be told by the browser
    wanted = [text.replace("\ud800", "\ufffd") for s in samples for text in s["answers"]]
    assert [text.replace("\ud800", "\ufffd") for text in shown] == wanted


def test_the_policy_runs_no_other_script_and_fetches_nothing(visit, text):
    tab = visit(text)
    blocked = tab.evaluate("""async () => {
      const found = [];
      document.addEventListener("securitypolicyviolation", (event) => found.push(event.effectiveDirective));
      const script = document.createElement("script");
      script.textContent = "window.hit = 1";
      document.body.append(script);
      new Image().src = "http://127.0.0.1:9/";
      await fetch("http://127.0.0.1:9/").catch(() => null);
      await new Promise((done) => setTimeout(done, 100));
      return found.sort();
    }""")
    assert blocked == ["connect-src", "img-src", "script-src-elem"] and tab.evaluate("window.hit") is None
    assert len(tab.wrong) >= 3 and all("Content Security Policy" in line or "9/" in line for line in tab.wrong)
    tab.wrong.clear()


def test_a_run_in_which_nothing_is_stated_opens_too(visit):
    rows, samples = questions(8)
    for row in rows:
        row["trained"] = None
    tab = visit(rendered(rows, samples))
    assert len(listed(tab)) == 8
    assert "mean confidence" not in tab.locator("#count").text_content()
    assert "none stated" in tab.locator("#list summary").first.inner_text()
    tab.fill("#low", "0")
    assert tab.locator("#count").text_content() == "0 of 8 questions."

"""page.py: what is written, as an HTML parser reads it, and what the script does, in a headless Chromium."""

import html.parser
import json
import math
import random
import re
import shutil
import statistics
import unicodedata

import pytest
from helpers import rows as read

import page
import report
import tables as report_tables
from page import FIGURES
from platt import Platt
from settings import Config
from tables import COLUMNS, METHODS

VOID = {"meta", "input", "img", "br", "link"}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)
HOSTILE = (
    "</script><script>window.hit = 1</script>",
    '<img src="x" onerror="window.hit = 1">',
    "\"><svg onload='window.hit = 1'>",
    "<!-- <script>",  # after which </script> would not end the data
    "]]> &lt;b&gt; &amp; {{data}} {{script_digest}} \\u003c",
    "a\u2028b\u2029c\x00d\ud800e\u202ef",
    "java`script:${window.hit = 1}",
)


def questions(n, seed=0, words=("banner", "São Tomé", "Zürich", "crown of", "50%", "ЖУК", "نهر")):
    """-> predictions and samples of n held-out questions of two sets, some without a stated confidence."""
    rng, rows, samples = random.Random(seed), [], []
    for i in range(n):
        part, family = ("test", "unseen")[i % 3 == 2], rng.choice(("odd", "even"))
        stated = [rng.choice([None, *(c / 100 for c in range(0, 101, 5))]) for _ in range(2)]
        rows.append({
            "part": part, "id": f"q{i}", "family": family, "correct": rng.randint(0, 1), "truth": None,
            "entropy": rng.choice((0.0, 0.5, rng.random() * 2)), "target": rng.random(), "untrained": stated[0],
            "trained": stated[1], "expected": rng.random(), "base rate": 0.5, "family prior": 0.5,
        })  # fmt: skip
        samples.append({
            "part": part, "id": f"q{i}", "question": f"{rng.choice(words)} {rng.choice(words)} {i}?",
            "answer": rng.choice(words), "answers": rng.sample(words, 2), "samples": rng.choices(words, k=10),
        })  # fmt: skip
    return rows, samples


def built(rows, **settings):
    """The report of such rows, as report.json has it."""
    stage = {"seconds": 1.0, "tokens": 12345, "flops": 6e9}
    cost = {name: {"tokens": 2.0, "seconds": 0.01} for name in ("answer", "target", "trained")}
    config = Config(**{"model": "m", "resamples": 20, **settings})
    environment = {"python": "3", "matmul_gflops": 50.0}
    return report.build(rows, Platt(-2.95, 2.54), [], cost, {"sample": stage}, config, environment)


def rendered(rows, samples, found=None):
    return page.render(found or built(rows), rows, samples, dict.fromkeys(FIGURES, PNG))


def evil():
    """Questions, and a report, in which all that comes from outside is hostile."""
    rows, samples = questions(3 * len(HOSTILE))
    for i, (r, s) in enumerate(zip(rows, samples, strict=True)):
        bad = HOSTILE[i % len(HOSTILE)]
        r |= {"part": f"set {bad}" if i % 2 else "test", "family": bad, "id": f"{i} {bad}"}
        s |= {"question": f"{i} {bad}", "answer": bad, "answers": [bad, "x"], "samples": [bad, bad, "y"]}
    rows.sort(key=lambda r: r["part"] != "test")
    by = {s["question"]: s for s in samples}
    samples = [by[r["id"]] for r in rows]
    found = built(rows, model=" ".join(HOSTILE), dataset=HOSTILE[0])
    found["warnings"] += HOSTILE
    return rows, samples, found


class Parsed(html.parser.HTMLParser):
    """Raises for a tag that is closed in the wrong place. Collects tags, tables, and what is in script and style."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.tables, self.raw, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag in ("script", "style"):
            self.raw.append((tag, dict(attributes), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] in ("script", "style"):
            tag, attributes, before = self.raw[-1]
            self.raw[-1] = tag, attributes, before + text
            return
        self.words.append(text)
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += text

    def all(self, *tags):
        return [attributes for tag, attributes in self.tags if tag in tags]

    @property
    def data(self):
        (text,) = [text for tag, attributes, text in self.raw if attributes.get("type") == "application/json"]
        return json.loads(text)


ROWS, SAMPLES = questions(260)


@pytest.fixture(scope="module")
def text():
    return rendered(ROWS, SAMPLES)


@pytest.fixture(params=["usual", "hostile", "finished"])
def any_page(request, text):
    if request.param == "finished":
        return (request.getfixturevalue("finished") / "report.html").read_text(encoding="utf-8")
    return text if request.param == "usual" else rendered(*evil())


# what is written


def test_it_is_sound_html(any_page):
    parsed = Parsed(any_page)
    assert any_page.startswith("<!DOCTYPE html>") and parsed.all("html") == [{"lang": "en"}]
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    labels = [a["for"] for a in parsed.all("label")]
    assert sorted(labels) == sorted(a["id"] for a in parsed.all("input", "select"))
    assert {a["href"][1:] for a in parsed.all("a")} <= set(ids)
    assert {a["aria-labelledby"] for _, a in parsed.tags if "aria-labelledby" in a} <= set(ids)
    assert len(parsed.all("table")) == len(parsed.all("caption"))
    assert all(a["scope"] in ("row", "col") for a in parsed.all("th"))
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert [a["alt"].split(":")[0] for a in parsed.all("img")] == [title for title, _ in FIGURES.values()]


def test_nothing_leads_out_of_it(any_page):
    parsed = Parsed(any_page)
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "base", "iframe", "object", "embed")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert re.match("data:image/png;base64,|#", value)
            else:
                assert "//" not in (value or "")
    for tag, attributes, text in parsed.raw:
        if tag == "style":
            assert not re.search(r"url\(|@import|//", text)
        elif "type" not in attributes:
            ways = r"innerHTML|outerHTML|insertAdjacent|document\.write|fetch|XMLHttp|import|\beval\b|Function|https?:"
            assert not re.search(ways, text)
    (policy,) = [a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "img-src data:;" in policy and "script-src 'sha256-" in policy


def test_what_comes_from_outside_is_no_markup(text):
    rows, samples, found = evil()
    said = rendered(rows, samples, found)
    hostile, usual = Parsed(said), Parsed(text)
    assert [q["question"] for q in hostile.data] == [s["question"] for s in samples]
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in usual.tags} | {"section"}
    assert len(hostile.all("script")) == len(usual.all("script")) == 2
    assert len(hostile.all("img")) == len(FIGURES)
    assert HOSTILE[1] in "".join(hostile.words)  # but it is there to be read
    assert not set("\u2028\u2029\x00\ud800\u202e") & set(said)
    said.encode()


def test_the_data_of_the_script_cannot_end_it():
    for bad in HOSTILE:
        escaped = page.data([bad])
        assert json.loads(escaped) == [bad]
        assert escaped.isascii() and escaped.isprintable() and not set("<>&") & set(escaped)


def numbers(row, name):
    value, interval = row[name], row["interval"][name]
    if value is None or math.isnan(value):
        return "n/a"
    low, high = interval
    missing = low is None or math.isnan(low)
    return f"{value:.3f}" if missing else f"{value:.3f} [{low:.2f}, {high:.2f}]"


def check_tables(parsed, found):
    tables = {tuple(row): {cells[0]: cells[1:] for cells in body} for row, *body in parsed.tables}
    methods = [body for row, *body in parsed.tables if row == ["Method", *COLUMNS.values()]]
    assert len(methods) == len(found["sets"]) > 0
    for body, s in zip(methods, found["sets"].values(), strict=True):
        expected = [[m, *(numbers(row, name) for name in COLUMNS)] for m, row in s["methods"].items()]
        assert body == expected
    cost = tables["", "Generated tokens", "Seconds"]
    for name, c in found["cost"].items():
        title = METHODS.get(name, "Answer alone")
        assert cost[title] == [f"{c['tokens']:.1f}", f"{c['seconds']:.3f}"]
    settings = [body for row, *body in parsed.tables if row == ["Name", "Value"]]
    assert settings[0] == [[name, str(value)] for name, value in found["config"].items()]
    said = "".join(parsed.words)
    assert all(warning in said for warning in found["warnings"])


def test_the_tables_have_the_numbers_of_the_report(text):
    check_tables(Parsed(text), json.loads(json.dumps(built(ROWS))))


def test_a_row_beside_has_its_own_cost():
    report, other = (json.loads(json.dumps(built(ROWS))) for _ in range(2))
    report["cost"]["trained"]["tokens"], other["cost"]["trained"]["tokens"] = 3.0, 99.0
    lines = report_tables.summary(report, [("the other", other)]).splitlines()
    costs = [line.split("|")[-2].strip() for line in lines if line.startswith("| Stated, trained")]
    assert costs == ["3.0", "", "99.0", ""]  # the second of each: malformed dropped


def test_the_page_of_a_run_has_its_numbers_and_its_questions(finished):
    """In this run no confidence is stated, and much is not defined."""
    parsed = Parsed((finished / "report.html").read_text(encoding="utf-8"))
    check_tables(parsed, json.loads((finished / "report.json").read_text()))
    assert any("n/a" in row for table in parsed.tables for row in table)
    predictions = read(finished / "predictions.jsonl")
    samples = {(s["part"], s["id"]): s for s in read(finished / "samples.jsonl")}
    assert len(parsed.data) == len(predictions) == 8
    for shown, r in zip(parsed.data, predictions, strict=True):
        s = samples[r["part"], r["id"]]
        assert (shown["set"], shown["id"], shown["family"]) == (r["part"], r["id"], r["family"])
        assert (shown["question"], shown["answer"], shown["accepted"]) == (s["question"], s["answer"], s["answers"])
        assert sorted(t for t, count in shown["samples"] for _ in range(count)) == sorted(s["samples"])
        assert shown["right"] is bool(r["correct"])
        confidences = {"before": "untrained", "after": "trained", "expected": "expected", "target": "target"}
        assert all(shown[ours] == r[theirs] for ours, theirs in confidences.items())
        assert shown["entropy"] == r["entropy"]
    assert all(png["src"].startswith("data:image/png;base64,iVBOR") for png in parsed.all("img"))


# in a browser


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
    if order:
        key, way = order.split()
        value = {
            "after": lambda r, s: r["trained"], "entropy": lambda r, s: r["entropy"],
            "target": lambda r, s: r["target"], "question": lambda r, s: folded(s["question"]),
        }[key]  # fmt: skip
        there = [pair for pair in found if value(*pair) is not None]
        rest = [pair for pair in found if value(*pair) is None]
        there.sort(key=lambda pair: value(*pair), reverse=way == "down")  # stable, in reverse too
        found = there + rest
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


def test_the_count_says_accuracy_and_confidence(visit, text):
    tab = visit(text)
    choose(tab, low=70, high=80)
    found = [r for r in ROWS if r["trained"] is not None and 0.7 <= r["trained"] <= 0.8]
    right, said = (statistics.mean(r[name] for r in found) for name in ("correct", "trained"))
    shown = [int(x) for x in re.findall(r"(\d+)%", tab.locator("#count").text_content())]
    assert shown == [pytest.approx(100 * right, abs=0.51), pytest.approx(100 * said, abs=0.51)]
    assert tab.locator("#count").get_attribute("role") == "status"


def test_a_question_opens_to_all_that_is_known_of_it(visit, text):
    tab = visit(text)
    for i in (0, 3, 50):
        r, s = ROWS[i], SAMPLES[i]
        item = tab.locator("#list > li").nth(i)
        summary = item.locator("summary")
        assert item.locator(".about").count() == 0
        summary.click()
        item.locator(".about").wait_for()
        assert ("right" if r["correct"] else "wrong") in summary.inner_text()
        assert s["question"] in summary.inner_text() and s["answer"] in summary.inner_text()
        blocks = item.locator(".about > div")
        for name, key in (("stated, untrained", "untrained"), ("stated, trained", "trained"),
                          ("expected, trained", "expected"), ("teacher's target", "target")):  # fmt: skip
            lines = [x for x in blocks.nth(0).locator("li").all_text_contents() if x.startswith(name)]
            said = "none" if r[key] is None else f"{math.floor(100 * r[key] + 0.5)}%"
            assert lines == [name + said]
        counts = {w: s["samples"].count(w) for w in s["samples"]}
        assert sorted(blocks.nth(1).locator("li").all_text_contents()) == sorted(f"{w}{n} ×" for w, n in counts.items())
        assert blocks.nth(1).locator("h3").text_content() == f"Samples: 10, entropy {r['entropy']:.2f} nats"
        assert blocks.nth(2).locator("li").all_text_contents() == s["answers"]


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


@pytest.mark.parametrize("which", ["usual", "hostile"])
def test_it_fits_a_phone(visit, text, which):
    rows, samples, found = evil()
    if which == "hostile":
        long = "x" * 500
        samples[0] |= {"question": long, "answer": long, "answers": [long], "samples": [long] * 3}
        rows[0]["family"] = long
        found["warnings"].append(long)
        found["config"]["model"] = long
        text = rendered(rows, samples, found)
    tab = visit(text, width=375, height=800, has_touch=True)
    for details in tab.locator("details").all()[:12]:
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


def contrast(one, other):
    """Source: WCAG 2.2, contrast ratio."""
    a, b = sorted((luminance(one), luminance(other)))
    return (b + 0.05) / (a + 0.05)


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
        assert contrast(ink, paper) >= 4.5, (name, ink, paper)
    paper = luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert paper < 0.05 if scheme == "dark" else paper > 0.8


def test_thousands_of_questions_stay_quick(visit):
    rows, samples = questions(5000, seed=1)
    tab = visit(rendered(rows, samples))
    seconds = tab.evaluate("""() => ["banner", "sao 12", "", "zur", "5"].map((words, i) => {
      const start = performance.now();
      document.getElementById("search").value = words;
      document.getElementById("order").selectedIndex = i;
      document.getElementById("search").dispatchEvent(new Event("input", { bubbles: true }));
      document.body.offsetHeight;  // lays it out
      return (performance.now() - start) / 1000;
    })""")
    assert statistics.median(seconds) < 0.3, seconds
    assert tab.locator("#list > li").count() == 100


def test_hostile_text_runs_nothing_even_without_the_policy(visit):
    rows, samples, found = evil()
    tab = visit(rendered(rows, samples, found), bypass_csp=True)
    for summary in tab.locator("#list summary").all():
        summary.click()
    tab.locator("#list .about").nth(len(rows) - 1).wait_for()
    assert tab.evaluate("window.hit") is None
    assert tab.evaluate("[document.scripts.length, document.images.length]") == [2, len(FIGURES)]
    shown = tab.locator("#list .about > div:nth-child(3) li").all_text_contents()
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


def test_a_run_in_which_nothing_is_stated_opens_too(visit, finished):
    tab = visit((finished / "report.html").read_text(encoding="utf-8"))
    assert len(listed(tab)) == 8
    assert "mean confidence" not in tab.locator("#count").text_content()
    assert "none stated" in tab.locator("#list summary").first.inner_text()
    tab.fill("#low", "0")
    assert tab.locator("#count").text_content() == "0 of 8 questions."


def test_a_stage_that_was_interrupted_says_so():
    """What its last call cost must not pass for what the stage cost, on the page and in report.md."""
    rows, samples = questions(30)
    found = built(rows)
    found["stages"] = {"sample": found["stages"]["sample"] | {"resumed": False}}
    found["stages"]["train"] = found["stages"]["sample"] | {"resumed": True}
    for text in (rendered(rows, samples, found), report_tables.markdown(found)):
        assert "train, its last call" in text and "sample, its last call" not in text

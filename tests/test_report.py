"""report/: the page as an HTML parser reads it, figures against their data, tables, the model card, a whole report."""

import html.parser
import json
import math
import os
import re

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from matplotlib.image import imread
from pages import COST, HOSTILE, PLATT, ROWS, SAMPLES, STAGES, built, evil, rendered, steps
from scipy.stats import binomtest

import eval
from experiments.tables import fill
from infra.folder import Run
from platt import Platt
from report import acting, build, figures, page, tables
from report.tables import METHODS
from settings import Config

PICTURES = ["Reliability", "Risk and coverage", "What the entropy knew", "Training"]


class Parsed(html.parser.HTMLParser):
    """Raises for a tag that is closed in the wrong place. Collects tags, the cells of tables, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.tables, self.words = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open
        self.data = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)[1])

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "input", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if not {"script", "style"} & set(self.open):
            self.words += text
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += text

    def all(self, *tags):
        return [attributes for tag, attributes in self.tags if tag in tags]


@pytest.fixture(scope="module")
def usual():
    return rendered(ROWS, SAMPLES)


@pytest.fixture(params=["usual", "hostile"])
def any_page(request, usual):
    return usual if request.param == "usual" else rendered(*evil())


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
    assert [a["alt"].split(":")[0] for a in parsed.all("img")] == PICTURES


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
    (style,), (script,) = (re.findall(f"<{tag}>(.*?)</{tag}>", any_page, re.DOTALL) for tag in ("style", "script"))
    assert not re.search(r"url\(|@import|//", style)
    ways = r"innerHTML|outerHTML|insertAdjacent|document\.write|fetch|XMLHttp|import|\beval\b|Function|https?:"
    assert not re.search(ways, script)
    (policy,) = [a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "img-src data:;" in policy and "script-src 'sha256-" in policy


def test_text_from_outside_is_no_markup(usual):
    rows, samples, report = evil()
    said = rendered(rows, samples, report)
    hostile, parsed = Parsed(said), Parsed(usual)
    assert [q["question"] for q in hostile.data] == [s["question"] for s in samples]
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in parsed.tags}
    assert len(hostile.all("script")) == len(parsed.all("script")) == 2
    assert len(hostile.all("img")) == len(figures.NAMES)
    assert HOSTILE[1] in hostile.words  # but it is there to be read
    assert not set("\u2028\u2029\x00\ud800\u202e") & set(said)
    said.encode()


def test_the_data_of_the_script_cannot_end_it():
    for bad in HOSTILE:
        escaped = page.data([bad])
        assert json.loads(escaped) == [bad]
        assert escaped.isascii() and escaped.isprintable() and not set("<>&") & set(escaped)
    assert page.data([math.nan, None]) == "[null,null]"


def test_the_page_has_every_question_and_every_table(usual):
    parsed, report = Parsed(usual), built(ROWS)
    for shown, r, s in zip(parsed.data, ROWS, SAMPLES, strict=True):
        names = {"set": "part", "id": "id", "family": "family", "before": "untrained", "after": "trained",
                 "expected": "expected", "target": "target", "entropy": "entropy"}  # fmt: skip
        assert {ours: shown[ours] for ours in names} == {ours: r[theirs] for ours, theirs in names.items()}
        assert (shown["question"], shown["answer"], shown["accepted"]) == (s["question"], s["answer"], s["answers"])
        assert sorted(t for t, count in shown["samples"] for _ in range(count)) == sorted(s["samples"])
        assert shown["right"] is bool(r["correct"])
        thoughts = {"thought before the answer": s["thought"], "untrained": r["reflection, untrained"]}
        thoughts = {way: text for way, text in thoughts.items() if text or way == "untrained"}  # an empty one is one
        assert dict(shown["thoughts"]) == thoughts | {"trained": r["reflection, trained"]}
    expected = [table for s in report["sets"].values() for table in tables.of_set(s)]
    expected += [acting.table(report), *tables.costs(report)]
    for table, (_, _, heads, rows) in zip(parsed.tables, expected, strict=False):
        assert table == [heads, *([name, *cells] for name, cells in rows.items())]
    assert parsed.tables[-1][1:] == [[name, str(value)] for name, value in tables.settings(report).items()]
    assert all(warning in parsed.words for warning in report["warnings"])


def test_teacher_cost_splits_the_time_by_tokens():
    samples = [{"reply_tokens": 2, "sample_tokens": 10}, {"reply_tokens": 4, "sample_tokens": 14}]
    cost = build.teacher_cost(samples, 3.0)
    assert cost["answer"] == pytest.approx({"tokens": 3, "seconds": 0.6})
    assert cost["target"] == pytest.approx({"tokens": 15, "seconds": 3})


def test_cells():
    row = {"ece": 0.0361, "brier": 0.0874, "auroc": math.nan, "n": 1234, "tokens": 12.34, "nll": None}
    row["interval"] = {"ece": (0.021, 0.0512), "auroc": (math.nan, math.nan), "brier": (None, None)}
    found = tables.cells({"ours": row}, ["ece", "brier", "auroc", "auroc_within", "nll", "n", "tokens"])
    assert found == {"ours": ["0.036 [0.02, 0.05]", "0.087", "n/a", "n/a", "n/a", "1,234", "12.3"]}
    assert list(tables.lines(["", "a"], {"x|y [z]": ["1"]})) == ["|  | a |", "|---|---:|", r"| x\|y \[z\] | 1 |"]


def test_markdown_and_summary_show_the_rows():
    report = json.loads(json.dumps(built(ROWS)))
    text = tables.markdown(report)
    assert "| train | 2.000 | 99 |" in text and "| sample | 65.4 | 12,345 |" in text
    assert all(f"- {warning}" in text for warning in report["warnings"])
    for s in report["sets"].values():
        for name, row in s["methods"].items():
            assert f"| {name} | {tables.number(row['accuracy'])} [" in text
    lines = tables.summary(report).splitlines()
    assert lines[0].startswith("**test** (174 questions") and "ECE" in lines[2]
    costs = [line.split("|")[-2].strip() for line in lines if line.startswith("| Stated, trained")]
    assert costs == 2 * ["22.3"]  # of both sets


def test_fill(tmp_path):
    path = tmp_path / "x.md"
    path.write_text("a\n<!-- one -->\nold\n<!-- end -->\nb\n")
    fill(path, "one", r"new \1")
    fill(path, "two", "nothing")
    assert path.read_text() == "a\n<!-- one -->\nnew \\1\n<!-- end -->\nb\n"


def test_a_report_is_written_whole(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "adapter").mkdir()
    run.write("environment.json", build.environment())
    run.write("stages.json", STAGES)
    config = Config(model="toy", dataset="a|b", resamples=20)
    report = build.write(run, config, ROWS[:30], SAMPLES[:30], PLATT, steps(8), COST, language_model_error=0.125)
    assert report["language_model_error"] == pytest.approx(0.125)
    saved = run.read("report.json")
    assert saved["platt"] == {"a": -2.95, "b": 2.54, "formula": PLATT.formula()} and saved["stages"] == STAGES
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,iVBOR") == len(figures.NAMES)
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    results = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    expected = saved["sets"]["unseen"]["methods"][METHODS["trained"]]["brier"]
    assert results["unseen", "brier"] == pytest.approx(expected, abs=1e-4) and "CalibratedLM" in card.text


EMPTY = np.array([])
RNG = np.random.default_rng(0)
ENTROPY = RNG.beta(2.5, 1.6, 500) * 2.24
P = PLATT.predict(ENTROPY)
CORRECT = (RNG.random(500) < P).astype(int)
NORMAL = {"Stated": (np.round(P[:400], 1), CORRECT[:400]), "Teacher": (P, CORRECT)}
ODD = {"Constant": (np.full(500, 0.3), CORRECT), "All right": ([1.0, 0.0], [1, 1]), "Silent": (EMPTY, EMPTY)}
GAPS = [{"step": 0}, {"step": 1, "reward": math.nan, "grad_norm": math.inf}, {"step": 2, "reward": None}]
CASES = [
    (figures.reliability, NORMAL), (figures.reliability, ODD), (figures.risk_coverage, NORMAL),
    (figures.risk_coverage, ODD), (figures.entropy_curve, ENTROPY, CORRECT, PLATT),
    (figures.entropy_curve, [0.0] * 500, CORRECT, Platt(0.0, -0.7)), (figures.entropy_curve, [0.5], [1], PLATT),
    (figures.training, steps(60)), (figures.training, steps(1)), (figures.training, GAPS), (figures.training, []),
]  # fmt: skip


@pytest.fixture
def draw(monkeypatch):
    """Call a function of figures and return the Figure that it would have saved."""
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    return lambda function, *arguments: function(*arguments, "unused.png") or drawn.pop()


def words(figure):
    """All texts of a figure, legends included."""
    return "\n".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_each_figure_is_one_whole_png(case, tmp_path):
    function, *arguments = case
    function(*arguments, tmp_path / "picture.png")
    assert os.listdir(tmp_path) == ["picture.png"]
    pixels = imread(tmp_path / "picture.png")[..., :3]
    assert (pixels[0, 0] == 1).all() and (pixels < 0.5).any(axis=-1).sum() > 200  # a white page with something on it


def test_wrong_data_raise(tmp_path):
    for function in (figures.reliability, figures.risk_coverage):
        with pytest.raises(ValueError, match="from 0 to 1"):
            function({"Percent": ([0.5, 73.0], [0, 1])}, tmp_path / "picture.png")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("count", [1, 7, 50, 2000])
def test_wilson_against_scipy(count):
    for right in {0, 1, count // 3, count}:
        expected = binomtest(right, count).proportion_ci(method="wilson")
        assert figures.wilson(right, np.array(count)) == pytest.approx(tuple(expected), abs=1e-6)
    assert np.isnan(figures.wilson(np.array([np.nan]), np.array([0]))).all()


def test_running_mean_against_pandas():
    values = np.random.default_rng(2).normal(size=40)
    values[[0, 1, 5, 20, 21, 22]] = np.nan
    expected = pd.Series(values).rolling(3, min_periods=1).mean()
    np.testing.assert_allclose(figures.running_mean(values, 3), expected)


def test_reliability_draws_the_bins_and_the_numbers(draw):
    figure = draw(figures.reliability, NORMAL)
    for i, (confidence, correct) in enumerate(NORMAL.values()):
        above, below = figure.axes[i], figure.axes[i + 2]
        count, mean, accuracy = eval.reliability(confidence, correct)
        points = np.ma.filled(above.collections[0].get_offsets(), np.nan)
        np.testing.assert_allclose(points, np.stack([mean, accuracy], axis=1))
        np.testing.assert_allclose([bar.get_height() for bar in below.patches], count / len(correct))
        assert f"N {len(correct)}\nECE {eval.ece(confidence, correct):.3f}" in above.get_title()


def test_missing_data_are_named(draw):
    for function in (figures.reliability, figures.risk_coverage):
        assert "nothing stated" in words(draw(function, ODD)) and "nothing stated" not in words(draw(function, NORMAL))
    assert "not logged" not in words(draw(figures.training, steps(1)))
    assert words(draw(figures.training, GAPS)).count("not logged") == len(figures.PANELS)  # no number in GAPS


def test_risk_coverage_draws_the_curves(draw):
    curves = draw(figures.risk_coverage, NORMAL).axes[0].lines
    for curve, (confidence, correct) in zip(curves, NORMAL.values(), strict=True):
        np.testing.assert_allclose(curve.get_data(), eval.risk_coverage(confidence, correct))
        assert curve.get_label().endswith(f"AURC {eval.aurc(confidence, correct):.3f}")


def test_entropy_curve_draws_the_fit_and_bins_of_equal_count(draw):
    axes = draw(figures.entropy_curve, ENTROPY, CORRECT, PLATT).axes[0]
    h, p = axes.lines[0].get_data()
    np.testing.assert_allclose(p, 1 / (1 + np.exp(2.95 * h - 2.54)))
    parts = np.array_split(np.argsort(ENTROPY), 10)
    points = axes.collections[1].get_offsets()
    np.testing.assert_allclose(points, [(ENTROPY[part].mean(), CORRECT[part].mean()) for part in parts])
    assert "a = -2.95 per nat, b = 2.54" in words(axes.figure)
    several = draw(figures.entropy_curve, ENTROPY, CORRECT, Platt((-1.0, -2.0), 0.5))
    assert not several.axes[0].lines


def test_training_draws_every_key_and_leaves_gaps(draw):
    log = steps(60)
    log[7]["grad_norm"] = math.inf
    del log[8]["grad_norm"]
    figure = draw(figures.training, log)
    assert [axes.get_ylabel() for axes in figure.axes] == [unit for _, unit, _ in figures.PANELS]
    assert [len(axes.lines) for axes in figure.axes] == [2, 4, 2, 2, 2, 2]  # a light and a dark line each
    light, dark = (line.get_ydata() for line in figure.axes[4].lines)
    assert np.flatnonzero(np.isnan(light)).tolist() == [7, 8] and np.isfinite(dark).all()
    assert light[30] == log[30]["grad_norm"]

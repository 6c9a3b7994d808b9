"""figures.py: whole files, helpers against scipy and numpy, and what is drawn against what was given."""

import math
import os

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.stats import binomtest

import eval
import figures
from platt import Platt

N = 500
PLATT = Platt(-2.95, 2.54)
EMPTY = np.array([])


def run(seed=0):
    """-> entropy (N,), correct (N,), the teacher's confidence (N,)."""
    rng = np.random.default_rng(seed)
    entropy = rng.beta(2.5, 1.6, N) * 2.24
    p = PLATT.predict(entropy)
    return entropy, (rng.random(N) < p).astype(int), p


def steps(n):
    keys = [key for _, _, names in figures.PANELS for key in names]
    values = np.random.default_rng(1).random((n, len(keys)))
    return [{"step": i, **dict(zip(keys, row.tolist(), strict=True))} for i, row in enumerate(values)]


ENTROPY, CORRECT, P = run()
NORMAL = {"Stated": (np.round(P[:400], 1), CORRECT[:400]), "Teacher": (P, CORRECT)}
ODD = {
    "Constant": (np.full(N, 0.3), CORRECT),
    "All wrong": (P, np.zeros(N)),
    "All right": ([1.0, 0.0], [1, 1]),
    "Silent": (EMPTY, EMPTY),
}
GAPS = [{"step": 0}, {"step": 1, "reward": math.nan, "grad_norm": math.inf}, {"step": 2, "reward": None}]
CASES = {
    "reliability": (figures.reliability, NORMAL),
    "reliability, odd": (figures.reliability, ODD),
    "reliability, no method": (figures.reliability, {}),
    "reliability, all silent": (figures.reliability, {"Silent": (EMPTY, EMPTY)}),
    "risk": (figures.risk_coverage, NORMAL),
    "risk, odd": (figures.risk_coverage, ODD),
    "risk, no method": (figures.risk_coverage, {}),
    "risk, all silent": (figures.risk_coverage, {"Silent": (EMPTY, EMPTY)}),
    "entropy": (figures.entropy_curve, ENTROPY, CORRECT, PLATT),
    "entropy, constant": (figures.entropy_curve, np.zeros(N), CORRECT, Platt(0.0, -0.7)),
    "entropy, one answer": (figures.entropy_curve, [0.5], [1], Platt(0.0, 0.7)),
    "entropy, none": (figures.entropy_curve, EMPTY, EMPTY, PLATT),
    "training": (figures.training, steps(60)),
    "training, one step": (figures.training, steps(1)),
    "training, gaps": (figures.training, GAPS),
    "training, none": (figures.training, []),
}


@pytest.fixture
def draw(monkeypatch):
    """Call a function of figures and return the Figure that it would have saved."""
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))

    def draw(function, *arguments):
        function(*arguments, "unused.png")
        return drawn.pop()

    return draw


def words(figure):
    """All texts of a figure, legends included."""
    return "\n".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES)
def test_writes_one_whole_png(case, tmp_path):
    function, *arguments = CASES[case]
    assert function(*arguments, tmp_path / "picture.png") is None
    assert os.listdir(tmp_path) == ["picture.png"]
    pixels = imread(tmp_path / "picture.png")[..., :3]
    assert (pixels[0, 0] == 1).all()  # a white page,
    assert (pixels < 0.5).any(axis=-1).sum() > 200  # with something on it
    assert pixels.shape[1] >= 600


def test_a_failure_leaves_the_old_picture_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    figures.training([], path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        figures.training(steps(3), path)
    assert os.listdir(tmp_path) == ["picture.png"] and path.read_bytes() == before


@pytest.mark.parametrize("function", [figures.reliability, figures.risk_coverage])
def test_wrong_data_raise(function, tmp_path):
    with pytest.raises(ValueError, match="from 0 to 1"):
        function({"Percent": ([0.5, 73.0], [0, 1])}, tmp_path / "picture.png")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("count", [1, 7, 50, 2000])
def test_wilson_against_scipy(count):
    for right in {0, 1, count // 3, count}:
        expected = binomtest(right, count).proportion_ci(method="wilson")
        assert figures.wilson(right, np.array(count)) == pytest.approx(tuple(expected), abs=1e-6)


def test_wilson_of_nothing_is_nan():
    assert np.isnan(figures.wilson(np.array([np.nan]), np.array([0]))).all()


@pytest.mark.parametrize("bins", [1, 4, 10])
def test_equal_count_bins_against_array_split(bins):
    count, mean, accuracy = figures.equal_count_bins(ENTROPY, CORRECT, bins)
    parts = np.array_split(np.argsort(ENTROPY), bins)  # 500 is a multiple of every bins
    assert count.tolist() == [len(part) for part in parts]
    np.testing.assert_allclose(mean, [ENTROPY[part].mean() for part in parts])
    np.testing.assert_allclose(accuracy, [CORRECT[part].mean() for part in parts])


def test_equal_count_bins_keep_ties_together():
    scores = np.array([0.0] * 30 + [2.0] * 7 + [1.0] * 3)
    count, mean, _ = figures.equal_count_bins(scores, np.zeros(40))
    assert count.tolist() == [30, 3, 7]
    np.testing.assert_allclose(mean, [0, 1, 2])


def test_running_mean_against_a_loop():
    values = np.random.default_rng(2).normal(size=40)
    values[[0, 1, 5, 20, 21, 22]] = np.nan
    expected = []
    for i in range(40):
        last = [v for v in values[max(0, i - 2) : i + 1] if not math.isnan(v)]
        expected.append(sum(last) / len(last) if last else math.nan)
    np.testing.assert_allclose(figures.running_mean(values, 3), expected)


def test_reliability_draws_the_bins_and_the_numbers(draw):
    figure = draw(figures.reliability, NORMAL)
    assert len(figure.axes) == 4  # two methods, each with a histogram below
    for i, (confidence, correct) in enumerate(NORMAL.values()):
        above, below = figure.axes[i], figure.axes[i + 2]
        count, mean, accuracy = eval.reliability(confidence, correct)
        points = np.ma.filled(above.collections[0].get_offsets(), np.nan)
        np.testing.assert_allclose(points, np.stack([mean, accuracy], axis=1))
        np.testing.assert_allclose([bar.get_height() for bar in below.patches], count / len(correct))
        numbers = above.texts[0].get_text()
        assert f"N {len(correct)}\n" in numbers
        assert f"ECE {eval.ece(confidence, correct):.3f}" in numbers
        assert f"AUROC {eval.auroc(confidence, correct):.3f}" in numbers


def test_what_is_missing_is_said(draw):
    figure = draw(figures.reliability, ODD)
    said = [axes.texts[0].get_text() for axes in figure.axes[:4]]
    assert ["n/a" in text for text in said] == [False, True, True, False]
    assert said[3] == "nothing stated"
    assert "Silent: nothing stated" in words(draw(figures.risk_coverage, ODD))
    assert "No training step" in words(draw(figures.training, []))
    assert "not logged" not in words(draw(figures.training, steps(1)))
    assert words(draw(figures.training, GAPS)).count("not logged") == len(figures.PANELS)  # no number in GAPS


def test_risk_coverage_draws_the_curves(draw):
    figure = draw(figures.risk_coverage, NORMAL)
    *curves, base = figure.axes[0].lines
    for curve, (confidence, correct) in zip(curves, NORMAL.values(), strict=True):
        np.testing.assert_allclose(curve.get_data(), eval.risk_coverage(confidence, correct))
        assert curve.get_label().endswith(f"AURC {eval.aurc(confidence, correct):.3f}")
    np.testing.assert_allclose(base.get_ydata(), 1 - CORRECT.mean())  # of the teacher, who has more answers
    assert base.get_linestyle() == ":"


def test_entropy_curve_draws_the_fit_and_every_answer(draw):
    figure = draw(figures.entropy_curve, ENTROPY, CORRECT, PLATT)
    axes = figure.axes[0]
    h, p = axes.lines[0].get_data()
    np.testing.assert_allclose(p, 1 / (1 + np.exp(2.95 * h - 2.54)))
    assert h.max() == ENTROPY.max()
    answers = axes.collections[0].get_offsets()
    np.testing.assert_allclose(answers[:, 0], ENTROPY)
    np.testing.assert_array_equal(answers[:, 1] > 1, CORRECT == 1)
    low, high = axes.get_ylim()
    assert low < answers[:, 1].min() and answers[:, 1].max() < high
    assert "a = -2.95 per nat, b = 2.54" in axes.get_title()


def test_training_draws_every_key_and_leaves_gaps(draw):
    log = steps(60)
    log[7]["grad_norm"] = math.inf
    del log[8]["grad_norm"]
    figure = draw(figures.training, log)
    assert [axes.get_ylabel() for axes in figure.axes] == [unit for _, unit, _ in figures.PANELS]
    assert [len(axes.lines) for axes in figure.axes] == [2, 4, 2, 2, 2, 2]  # a light and a dark line each
    gradient = next(axes for axes in figure.axes if axes.get_ylabel() == "gradient norm")
    light, dark = (line.get_ydata() for line in gradient.lines)
    assert np.flatnonzero(np.isnan(light)).tolist() == [7, 8]
    assert np.isfinite(dark).all()
    assert light[30] == log[30]["grad_norm"]


def test_a_single_step_is_a_point(draw):
    dark = draw(figures.training, steps(1)).axes[0].lines[1]
    assert dark.get_marker() == "." and len(dark.get_ydata()) == 1

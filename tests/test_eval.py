"""eval.py against torchmetrics, scikit-learn, enumerations, and a bootstrap written as a loop."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from torchmetrics.classification import BinaryCalibrationError

import eval as ev

METRICS = (ev.ece, lambda c, y: ev.ece(c, y, scheme="mass"), ev.brier, ev.nll, ev.auroc, ev.aurc)


def stated(n, seed=0, top=100):
    """Confidences in whole percents, so with ties and on bin edges, and overconfident."""
    rng = np.random.default_rng(seed)
    c = rng.integers(0, top + 1, n) / 100
    return c, (rng.random(n) < c**1.5).astype(int)


def torchmetrics_ece(c, y, bins=10):
    return BinaryCalibrationError(n_bins=bins, norm="l1")(torch.tensor(c), torch.tensor(y)).item()


samples = st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=40).map(
    lambda pairs: (np.array([c / 20 for c, _ in pairs]), np.array([y for _, y in pairs]))
)


@pytest.mark.parametrize("bins", [5, 10, 15])
def test_ece_is_that_of_torchmetrics(bins):
    c = np.random.default_rng(0).random(400)
    y = (np.random.default_rng(1).random(400) < c**2).astype(int)
    assert ev.ece(c, y, bins) == pytest.approx(torchmetrics_ece(c, y, bins), abs=1e-9)
    # in float64 torchmetrics puts 0.3 below its own edge of 0.30000000000000004; 1.0 gets a bin of its own
    c, y = stated(500, top=99)
    assert ev.ece(c, y, bins) == pytest.approx(torchmetrics_ece(c.astype(np.float32), y, bins), abs=1e-6)


@pytest.mark.parametrize("bins", [1, 2, 5, 10, 20, 25, 50, 100])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_percent_is_in_the_bin_that_integers_say(bins, dtype):
    for percent in range(101):
        count, _, _ = ev.reliability([dtype(percent / 100)], [1], bins)
        assert count.argmax() == min(percent * bins // 100, bins - 1) and count.sum() == 1


def test_mass_bins_without_ties_are_a_split_of_the_sorted_answers():
    rng = np.random.default_rng(0)
    c = rng.permutation(200) / 400  # all below 0.5: half of the bins of equal width would be empty
    y = (rng.random(200) < 2 * c).astype(int)
    order = np.argsort(c)
    parts = np.split(order, 10)
    count, mean_confidence, accuracy = ev.reliability(c, y, scheme="mass")
    assert count.tolist() == [20] * 10
    np.testing.assert_allclose(mean_confidence, [c[p].mean() for p in parts])
    np.testing.assert_allclose(accuracy, [y[p].mean() for p in parts])


def test_mass_bins_keep_ties_together():
    c = np.array([0.1] * 3 + [0.5] * 10 + [0.9] * 7)
    y = np.random.default_rng(0).integers(0, 2, 20)
    count, mean_confidence, _ = ev.reliability(c, y, 4, "mass")
    # mid-ranks 1.5, 8, 16.5 of 20, in bins of 5
    assert count.tolist() == [3, 10, 0, 7]
    assert mean_confidence[[0, 1, 3]] == pytest.approx([0.1, 0.5, 0.9]) and np.isnan(mean_confidence[2])


@settings(max_examples=50, deadline=None)
@given(samples, st.integers(1, 12), st.sampled_from(["width", "mass"]))
def test_ece_is_the_weighted_gap_of_the_reliability_diagram(sample, bins, scheme):
    count, mean_confidence, accuracy = ev.reliability(*sample, bins, scheme)
    assert count.sum() == len(sample[0]) and (np.isnan(accuracy) == (count == 0)).all()
    expected = np.nansum(count * np.abs(accuracy - mean_confidence)) / count.sum()
    assert ev.ece(*sample, bins, scheme) == pytest.approx(expected, abs=1e-12)
    assert ev.ece(*sample, bins, scheme) >= abs(sample[0].mean() - sample[1].mean()) - 1e-12


@settings(max_examples=50, deadline=None)
@given(samples)
def test_brier_nll_auroc_are_those_of_sklearn(sample):
    c, y = sample
    assert ev.brier(c, y) == pytest.approx(brier_score_loss(y, c, pos_label=1), abs=1e-12)
    clipped = np.clip(c, 1e-6, 1 - 1e-6)
    assert ev.nll(c, y) == pytest.approx(log_loss(y, clipped, labels=[0, 1]), abs=1e-9)
    if len(set(y)) == 2:
        assert ev.auroc(c, y) == pytest.approx(roc_auc_score(y, c), abs=1e-12)
    else:
        assert math.isnan(ev.auroc(c, y))


@pytest.mark.parametrize("metric, confidence, correct, expected", [
    (ev.ece, [0.2, 0.2, 0.2, 0.8, 0.8], [0, 0, 1, 1, 1], 3 / 5 * (1 / 3 - 0.2) + 2 / 5 * 0.2),
    (ev.ece, [0.25] * 4, [1, 0, 0, 0], 0),  # a constant confidence can win
    (ev.ece, [0.9, 1.0], [0, 1], 0.45),  # one bin: the errors of -0.9 and 0 are averaged
    (ev.ece, [0.3, 0.29], [0, 1], 0.505),  # two bins: (0.3 + 0.71) / 2
    (ev.auroc, [0.2, 0.5, 0.5, 0.9], [0, 0, 1, 1], (1 + 1 + 0.5 + 1) / 4),
    (ev.nll, [1.0], [0], -math.log(1e-6)), (ev.nll, [1.0, 0.0], [1, 0], 1e-6),  # a wrong certainty is finite
    (ev.aurc, [0.9, 0.5, 0.1], [1, 1, 0], (0 + 0 + 1 / 3) / 3), (ev.aurc, [0.5] * 5, [1, 0, 0, 1, 0], 0.6),
    (ev.spearman, [1, 2, 3], [0.1, 0.5, 0.2], 0.5), (ev.spearman, [1, 1, 2], [5, 5, 5], math.nan),
])  # fmt: skip
def test_by_hand(metric, confidence, correct, expected):
    assert metric(confidence, correct) == pytest.approx(expected, nan_ok=True)


@pytest.mark.filterwarnings("error")
def test_spearman_is_that_of_scipy():
    a, b = np.random.default_rng(0).integers(0, 9, (2, 60))
    assert ev.spearman(a, b + a) == pytest.approx(spearmanr(a, b + a).statistic, abs=1e-12)


def brute_force_risk(c, y):
    """Mean risk curve over all orders of the answers that are sorted by confidence."""
    orders = [p for p in itertools.permutations(range(len(c))) if all(np.diff(c[list(p)]) <= 0)]
    wrong = np.array([[1 - y[i] for i in p] for p in orders])
    return (np.cumsum(wrong, axis=1) / np.arange(1, len(c) + 1)).mean(axis=0)


@pytest.mark.parametrize("seed", range(8))
def test_risk_is_the_mean_over_all_orders_of_ties(seed):
    rng = np.random.default_rng(seed)
    c, y = rng.integers(0, 4, 7) / 4, rng.integers(0, 2, 7)
    coverage, risk = ev.risk_coverage(c, y)
    np.testing.assert_allclose(coverage, np.arange(1, 8) / 7)
    np.testing.assert_allclose(risk, brute_force_risk(c, y), atol=1e-12)
    assert ev.aurc(c, y) == pytest.approx(brute_force_risk(c, y).mean(), abs=1e-12)


def test_metrics_are_the_single_ones():
    c, y = stated(200)
    before = c.copy(), y.copy()
    m = ev.metrics(c, y)
    ev.with_missing(c, y)
    assert m["n"] == 200 and m["distinct"] == len(set(c.tolist()))
    assert m["accuracy"] == pytest.approx(y.mean()) and m["mean_confidence"] == pytest.approx(c.mean())
    for name, f in zip(("ece", "ece_mass", "brier", "nll", "auroc", "aurc"), METRICS, strict=True):
        assert m[name] == pytest.approx(f(c, y), abs=1e-12)
    assert math.isnan(m["auroc_within"]) and math.isnan(m["ece_within"])
    np.testing.assert_array_equal((c, y), before)  # inputs are not changed


def test_within_families():
    c, y = stated(300, seed=1)
    names = ["geography", "arithmetic", "trivia", "easy"]
    family = np.random.default_rng(2).choice(names, 300, p=[0.5, 0.3, 0.1, 0.1])
    y[family == "easy"] = 1  # one class: out of the AUROC, not out of the ECE
    m = ev.metrics(c, y, family)
    aurocs = [roc_auc_score(y[family == f], c[family == f]) for f in names[:3]]
    assert m["auroc_within"] == pytest.approx(np.mean(aurocs), abs=1e-12)
    eces = [(family == f).mean() * ev.ece(c[family == f], y[family == f]) for f in set(family)]
    assert m["ece_within"] == pytest.approx(sum(eces), abs=1e-12)
    assert m["ece"] == pytest.approx(ev.ece(c, y), abs=1e-12)


@given(samples)
def test_murphys_decomposition(sample):
    """Exact where all confidences of a bin are equal."""
    c, y = np.round(sample[0] * 10) / 10, sample[1]
    c = np.minimum(c, 0.9)  # 1.0 is in the bin of 0.9
    m = ev.metrics(c, y)
    assert m["reliability"] - m["resolution"] + m["uncertainty"] == pytest.approx(m["brier"], abs=1e-12)
    groups = [y[c == v] for v in np.unique(c)]
    assert m["resolution"] == pytest.approx(sum(len(g) * (g.mean() - y.mean()) ** 2 for g in groups) / len(y))
    assert m["uncertainty"] == pytest.approx(np.var(y))


def test_resamples_are_paired():
    """Methods on the same questions are judged on the same resamples, so that a constant difference has no spread."""
    c, y = stated(200)
    one, other = ev.resampled(c, y, resamples=50), ev.resampled(c / 2, y, resamples=50)
    assert set(one) == set(ev.metrics(c, y)) - {"n", "distinct"} and one["ece"].shape == (50,)
    for name, factor in (("accuracy", 1), ("mean_confidence", 2), ("auroc", 1)):
        np.testing.assert_allclose(one[name], factor * other[name])
    assert ev.interval(one["ece"]) == pytest.approx(ev.bootstrap(c, y, resamples=50)["ece"])


@pytest.mark.parametrize("n, resamples, seed", [(40, 200, 5), (3000, 100, 1)])  # 66 of 3,000 at a time
def test_bootstrap_is_a_loop_over_resamples(n, resamples, seed):
    c, y = stated(n, seed=3)
    family = np.arange(n) % 7  # of 40, some resamples have families of one class, or none of them
    y[family == 0] = 0
    got = ev.bootstrap(c, y, family, resamples, seed)
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    rows = [ev.metrics(c[i], y[i], family[i]) for i in drawn]
    assert set(got) == rows[0].keys() - {"n", "distinct"}
    for name, interval in got.items():
        expected = np.nanquantile([row[name] for row in rows], [0.025, 0.975])
        assert interval == pytest.approx(expected, abs=1e-12), name


def test_bootstrap_resamples_where_a_metric_is_nan_are_left_out():
    c, y = stated(6, seed=1)
    y[:] = 0, 0, 0, 0, 0, 1  # a third of the resamples have no right answer
    lo, hi = ev.bootstrap(c, y)["auroc"]
    assert 0 <= lo <= ev.auroc(c, y) <= hi <= 1
    for name in ("auroc", "auroc_within", "ece_within"):
        assert np.isnan(ev.bootstrap(c, np.ones(6), resamples=20)[name]).all()


def test_with_missing_drops_and_counts_as_worst():
    confidence, correct = [0.7, None, 0.2, None, 0.0], [1, 1, 0, 0, 0]
    (c, y), (worst, all_correct) = ev.with_missing(confidence, correct)
    assert c.tolist() == [0.7, 0.2, 0.0] and y.tolist() == [1, 0, 0]
    assert worst.tolist() == [0.7, 0.0, 0.2, 1.0, 0.0] and all_correct.tolist() == correct
    assert confidence == [0.7, None, 0.2, None, 0.0]
    for fill in itertools.product([0, 0.5, 1], repeat=2):
        filled = [0.7, fill[0], 0.2, fill[1], 0.0]
        assert ev.brier(filled, correct) <= ev.brier(worst, all_correct)
    (c, _), (worst, _) = ev.with_missing([None, None], [0, 1])
    assert c.size == 0 and worst.tolist() == [1, 0]
    with pytest.raises(ValueError, match="0 to 1"):
        ev.with_missing([0.5, np.nan], [0, 1])


BAD = [
    ([], [], "no confidences"), ([0.5, 0.5], [1], "one length"), ([[0.5]], [[1]], "one length"),
    *(([0.5, c], [1, 0], "0 to 1") for c in (np.nan, None, 73, -0.01)),
    *(([0.5, 0.5], [1, y], "0 or 1") for y in (2, 0.5, np.nan)),
]  # fmt: skip


@pytest.mark.parametrize("confidence, correct, message", BAD)
def test_bad_data_are_refused_by_every_metric(confidence, correct, message):
    for f in (*METRICS, ev.reliability, ev.risk_coverage, ev.metrics, ev.bootstrap):
        with pytest.raises(ValueError, match=message):
            f(confidence, correct)


OPTIONS = [
    (ev.ece, {"bins": 0}), (ev.ece, {"scheme": "mass", "bins": -1}), (ev.reliability, {"bins": 2.5}),
    (ev.ece, {"scheme": "quantile"}), (ev.bootstrap, {"resamples": 0}), (ev.bootstrap, {"family": ["a"]}),
    (ev.metrics, {"family": ["a"]}),
]  # fmt: skip


@pytest.mark.parametrize("function, options", OPTIONS)
def test_bad_options_are_refused(function, options):
    with pytest.raises(ValueError, match=next(reversed(options))):
        function([0.5, 0.6], [1, 0], **options)

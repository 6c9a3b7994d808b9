"""platt.py against scikit-learn's logistic regression, a brute-force search, and planted truths."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

import platt
from platt import Platt, cross_fit, fit, sigmoid


def planted(n, a=(-1.7,), b=1.1, seed=0):
    """Scores (N,) or, of several slopes, (N, F) on scales 1, 100, 10,000 ..., and labels of both classes."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0, 2.3, (n, len(a)))
    labels = (rng.random(n) < sigmoid(scores @ a + b)).astype(int)
    labels[:2] = 0, 1
    scores *= 100.0 ** np.arange(len(a))
    return scores[:, 0] if len(a) == 1 else scores, labels


def targets(labels):
    n_pos = sum(labels)
    n_neg = len(labels) - n_pos
    return np.array([(n_pos + 1) / (n_pos + 2) if y else 1 / (n_neg + 2) for y in labels])


def sklearn_fit(scores, t):
    """Unpenalised logistic regression on soft targets: each point as a 1 of weight t, a 0 of weight 1 - t. -> a, b"""
    x, y = np.concatenate([scores, scores]).reshape(2 * len(t), -1), np.repeat([1, 0], len(t))
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit(x, y, sample_weight=np.concatenate([t, 1 - t]))
    return *model.coef_[0], model.intercept_[0]


def is_optimal(p, scores, labels):
    """Is the gradient zero? Exact, whatever the optimum."""
    residual = p.predict(scores) - targets(labels)
    return abs(residual.mean()) < 1e-9 and abs((residual * scores).mean()) < 1e-9 * np.abs(scores).max()


@pytest.mark.parametrize("n, seed", [(5, 0), (5, 1), (50, 2), (500, 3)])
@pytest.mark.parametrize("slopes", [(-1.7,), (-1.7, 2.0), (-1.7, 2.0, 0.5)])
def test_matches_sklearn_on_smoothed_targets(n, seed, slopes):
    scores, labels = planted(n, slopes, seed=seed)
    p = fit(scores, labels)
    want = sklearn_fit(scores, targets(labels))
    assert (*np.atleast_1d(p.a), p.b) == pytest.approx(want, rel=1e-5, abs=1e-6)
    assert type(p.a) is (float if len(slopes) == 1 else list) and type(p.b) is float
    np.testing.assert_allclose(p.predict(scores), sigmoid(scores.reshape(n, -1) @ want[:-1] + want[-1]), atol=1e-5)
    assert p.predict(scores[0]).shape == ()


def test_recovers_a_planted_calibrator():
    p = fit(*planted(200_000, (-2.95,), 2.54))
    assert (p.a, p.b) == pytest.approx((-2.95, 2.54), abs=0.05)  # 5 standard errors


def test_two_points_by_hand():
    # one right at 0, one wrong at 1: targets 2/3 and 1/3, which two parameters meet exactly
    p = fit([0.0, 1.0], [True, False])
    assert p.predict([0.0, 1.0]) == pytest.approx([2 / 3, 1 / 3], abs=1e-9)
    assert (p.a, p.b) == pytest.approx((-2 * math.log(2), math.log(2)), abs=1e-8)


# ---- what is odd about the data ------------------------------------------------------------------


@pytest.mark.parametrize("scores, labels, message", [
    ([], [], "empty"), ([1.0, 2.0], [1], "one length"), ([[1.0], [2.0]], [[1], [0]], "one length"),
    ([1.0, np.nan], [1, 0], "NaN or infinite"), ([1.0, np.inf], [1, 0], "NaN or infinite"),
    *(([1.0, 2.0], [1, wrong], "0 or 1") for wrong in (2, -1, 0.5, np.nan)),
])  # fmt: skip
def test_what_cannot_be_fitted_raises(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        fit(scores, labels)
    with pytest.raises(ValueError, match=message):
        cross_fit(scores, labels, np.zeros(len(scores), dtype=int))


@pytest.mark.parametrize("label, expected", [(1, math.log(5)), (0, -math.log(5))])
def test_one_class_is_its_smoothed_base_rate(label, expected):
    p = fit([0.1, 0.5, 0.9, 2.0], [label] * 4)  # 5 / 6, or 1 / 6
    assert p.a == 0 and p.b == pytest.approx(expected)
    assert len(p.warnings) == 1 and f"all 4 labels are {label}" in p.warnings[0]


@pytest.mark.parametrize("scores", [[0.0] * 5, [-1e300] * 5, [0.1 + 0.2, 0.3, 0.3, 0.3, 0.3]])
def test_constant_scores_are_the_smoothed_mean(scores):
    """Also where nothing but rounding tells them apart."""
    p = fit(scores, [1, 1, 1, 0, 0])
    mean = (3 * 4 / 5 + 2 * 1 / 4) / 5
    assert p.a == 0 and p.b == pytest.approx(math.log(mean / (1 - mean)))
    assert len(p.warnings) == 1 and "all 5 scores are the same" in p.warnings[0]


@pytest.mark.parametrize("scores", [[0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 3, 4], [0, 0, 0, 1, 1, 1]])
@pytest.mark.parametrize("labels", [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
def test_separable_data_are_finite_with_a_warning(scores, labels):
    p = fit(scores, labels)
    assert abs(p.a) < 50 and (p.a < 0) == (labels[0] == 1) and any("separates" in w for w in p.warnings)
    assert (p.a, p.b) == pytest.approx(sklearn_fit(np.array(scores, float), targets(labels)), abs=1e-5)


def test_a_positive_slope_is_the_wrong_sign():
    scores, labels = planted(200)
    assert fit(scores, labels).warnings == fit([0, 1, 2, 3, 4, 5], [1, 1, 0, 1, 0, 0]).warnings == []
    p = fit(scores, 1 - labels)
    assert p.a > 0 and len(p.warnings) == 1 and "wrong sign" in p.warnings[0]
    assert fit(scores[:, None], 1 - labels).warnings == []  # one of several scores may have any sign


def test_a_constant_score_among_others_gets_no_slope():
    scores, labels = planted(80)
    one, two = fit(scores, labels), fit(np.stack([scores, np.full(80, 3.0)], axis=1), labels)
    assert two.a == pytest.approx([one.a, 0.0]) and two.b == pytest.approx(one.b)
    assert fit(np.ones((80, 2)), labels).a == [0.0, 0.0]


# ---- hard optima ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale, offset", [(1, 1e6), (1e150, 0), (1e-150, 0), (-1e6, 1e6)])
def test_extreme_scores_give_the_same_probabilities(scale, offset):
    scores, labels = planted(300)
    p, q = fit(scores, labels), fit(scale * scores + offset, labels)
    assert q.a * scale == pytest.approx(p.a, rel=1e-7)
    np.testing.assert_allclose(q.predict(scale * scores + offset), p.predict(scores), atol=1e-8)


@pytest.mark.filterwarnings("error")
def test_newton_backtracks_where_full_steps_diverge():
    scores, labels = np.array([*np.linspace(-1, 1, 11), 300.0]), [1] * 11 + [0]
    assert is_optimal(fit(scores, labels), scores, labels)
    scores, labels = planted(300)
    scores[7] = 1e6  # one far outlier
    assert is_optimal(fit(scores, labels), scores, labels)


def test_a_slope_beyond_float64_is_refused():
    with pytest.raises(ValueError, match="overflows"):
        fit(np.array([1, 2, 3, 4]) * 1e-323, [1, 0, 1, 0])


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(4, 60), st.floats(0.01, 100) | st.floats(-100, -0.01), st.floats(-100, 100))
def test_the_fit_does_not_see_the_unit_of_the_scores_nor_the_names_of_the_classes(seed, n, scale, offset):
    scores, labels = planted(n, seed=seed)
    p, q, r = fit(scores, labels), fit(scale * scores + offset, labels), fit(scores, 1 - labels)
    np.testing.assert_allclose(q.predict(scale * scores + offset), p.predict(scores), atol=1e-7)
    assert (r.a, r.b) == pytest.approx((-p.a, -p.b), rel=1e-6, abs=1e-6)
    assert p.predict(scores).mean() == pytest.approx(targets(labels).mean(), abs=1e-9)


def test_chunks_change_nothing_and_neither_do_inputs(monkeypatch):
    scores, labels = planted(1000)
    before = scores.copy(), labels.copy()
    whole = fit(scores, labels)
    cross_fit(scores, labels, np.arange(1000) % 3)
    monkeypatch.setattr(platt, "CHUNK", 7)
    parts = fit(list(scores), labels.astype(bool))
    assert (parts.a, parts.b) == pytest.approx((whole.a, whole.b), rel=1e-9)
    np.testing.assert_array_equal((scores, labels), before)


# ---- predictions ---------------------------------------------------------------------------------


def test_predict_is_the_formula_monotone_and_keeps_the_shape():
    p, x = Platt(-2.0, 0.5), np.linspace(-3, 3, 24).reshape(2, 3, 4)
    assert p.predict(x).shape == (2, 3, 4) and p.predict(1.0).shape == ()
    np.testing.assert_allclose(p.predict(x), 1 / (1 + np.exp(2 * x - 0.5)), rtol=1e-12)
    assert (np.diff(p.predict(x).ravel()) < 0).all()
    assert Platt((-2.0, 1.0, 3.0, 0.0), 0.5).predict(x).shape == (2, 3)


@pytest.mark.filterwarnings("error")
def test_predict_never_overflows():
    assert Platt(-1e10, 0.0).predict([-1e300, -1e3, 0.0, 1e3, 1e300]).tolist() == [1, 1, 0.5, 0, 0]
    assert sigmoid(np.array([-700.0]))[0] == pytest.approx(math.exp(-700), rel=1e-12)  # not rounded to 0
    with pytest.raises(ValueError, match="NaN or infinite"):
        Platt(-1.0, 0.0).predict([0.0, np.inf])


@pytest.mark.parametrize("a, formula", [
    (-2.0, "σ(-2.000 · entropy + 1.000)"),
    ([-2.0], "σ(-2.000 · entropy + 1.000)"),
    ([-2.0, 3.0], "σ(-2.000 · entropy + 3.000 · similarity + 1.000)"),
    ([-2.0, 3.0, 0.5], "σ(-2.000 · score 1 + 3.000 · score 2 + 0.500 · score 3 + 1.000)"),
])  # fmt: skip
def test_the_formula(a, formula):
    assert Platt(a, 1.0).formula() == formula


# ---- cross-fitting -------------------------------------------------------------------------------


@pytest.mark.parametrize("slopes", [(-1.7,), (-1.7, 2.0)])
def test_cross_fit_is_a_fit_on_the_others(slopes):
    scores, labels = planted(90, slopes)
    folds = np.arange(90) % 4 - 1  # -1, 0, 1, 2
    p = cross_fit(scores, labels, folds)
    assert np.isnan(p[folds == -1]).all() and not np.isnan(p[folds >= 0]).any()
    for k in range(3):
        *a, b = sklearn_fit(scores[folds != k], targets(labels[folds != k]))
        want = sigmoid(scores[folds == k].reshape(-1, len(a)) @ a + b)
        np.testing.assert_allclose(p[folds == k], want, atol=1e-6)


def test_no_question_is_scored_by_a_fit_that_saw_its_label():
    scores, labels = planted(40)
    folds = np.arange(40) % 5 - 1
    before = cross_fit(scores, labels, folds)
    for i in np.flatnonzero(folds >= 0):
        after = cross_fit(scores, np.where(np.arange(40) == i, 1 - labels, labels), folds)
        assert after[folds == folds[i]] == pytest.approx(before[folds == folds[i]], abs=1e-12)
        others = (folds >= 0) & (folds != folds[i])
        assert (np.abs(after - before)[others] > 1e-6).all()  # and every other fold did see it


@pytest.mark.parametrize("folds, message", [
    ([0, 1], "3 integers >= -1"), ([0.0, 1.0, 0.0], "3 integers"), ([0, 1, -2], "3 integers"),
    ([2, 2, 2], "fold 2 holds every question"),
])  # fmt: skip
def test_bad_folds_are_refused(folds, message):
    with pytest.raises(ValueError, match=message):
        cross_fit([0.1, 0.2, 0.3], [1, 0, 1], folds)

"""platt.py against scikit-learn's logistic regression, a brute-force search, and planted truths."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

import platt
from platt import Platt, cross_fit, fit, sigmoid


def planted(n, a=-1.7, b=1.1, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0, 2.3, n)
    return scores, (rng.random(n) < 1 / (1 + np.exp(-(a * scores + b)))).astype(int)


def targets(labels):
    n_pos = sum(labels)
    n_neg = len(labels) - n_pos
    return np.array([(n_pos + 1) / (n_pos + 2) if y else 1 / (n_neg + 2) for y in labels])


def log_loss(scores, t, a, b):
    p = 1 / (1 + np.exp(-(a * scores + b)))
    return -(t * np.log(p) + (1 - t) * np.log(1 - p)).sum()


def sklearn_fit(scores, t):
    """Unpenalised logistic regression on soft targets: each point as a 1 of weight t, a 0 of weight 1 - t."""
    x, y = np.concatenate([scores, scores])[:, None], np.repeat([1, 0], len(scores))
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit(x, y, sample_weight=np.concatenate([t, 1 - t]))
    return model.coef_[0, 0], model.intercept_[0]


@pytest.mark.parametrize("n", [5, 50, 500])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_matches_sklearn_on_smoothed_targets(n, seed):
    scores, labels = planted(n, seed=seed)
    labels[:2] = 0, 1
    p = fit(scores, labels)
    assert (p.a, p.b) == pytest.approx(sklearn_fit(scores, targets(labels)), abs=1e-6)


def test_matches_sklearn_on_hard_labels():
    scores, labels = planted(200)
    p = fit(scores, labels, smooth=False)
    assert (p.a, p.b) == pytest.approx(sklearn_fit(scores, labels), abs=1e-6)
    smoothed = fit(scores, labels)
    assert 1e-4 < abs(smoothed.a - p.a) < 0.1  # another optimum, though not by much


@pytest.mark.parametrize("smooth", [True, False])
def test_no_point_of_a_grid_has_a_lower_loss(smooth):
    scores, labels = planted(60, seed=3)
    p = fit(scores, labels, smooth=smooth)
    t = targets(labels) if smooth else labels
    best, step = log_loss(scores, t, p.a, p.b), 0.01
    for da in np.arange(-30, 31) * step:
        for db in np.arange(-30, 31) * step:
            if (da, db) != (0, 0):
                assert log_loss(scores, t, p.a + da, p.b + db) > best


def test_recovers_a_planted_calibrator():
    p = fit(*planted(200_000, a=-2.95, b=2.54))
    # standard error of a, b about 0.01, 0.01
    assert (p.a, p.b) == pytest.approx((-2.95, 2.54), abs=0.05)
    assert p.warnings == ()


def test_two_points_by_hand():
    # one right at 0, one wrong at 1: targets 2/3 and 1/3, which two parameters meet exactly
    p = fit([0.0, 1.0], [1, 0])
    assert p.predict([0.0, 1.0]) == pytest.approx([2 / 3, 1 / 3], abs=1e-9)
    assert (p.a, p.b) == pytest.approx((-2 * math.log(2), math.log(2)), abs=1e-8)


# What is odd about the data


@pytest.mark.parametrize(
    "scores, labels, message",
    [
        ([], [], "no scores"),
        ([1.0, 2.0], [1], "one length"),
        ([[1.0], [2.0]], [[1], [0]], "one length|one dimension"),
        ([1.0, np.nan], [1, 0], "NaN or infinite"),
        ([1.0, np.inf], [1, 0], "NaN or infinite"),
        ([1.0, 2.0], [1, 2], "0 or 1"),
        ([1.0, 2.0], [1, -1], "0 or 1"),
        ([1.0, 2.0], [1, 0.5], "0 or 1"),
        ([1.0, 2.0], [1, np.nan], "0 or 1"),
    ],
)
def test_what_cannot_be_fitted_raises(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        fit(scores, labels)
    if np.ndim(scores) == 1:
        with pytest.raises(ValueError, match=message):
            cross_fit(scores, labels, np.zeros(len(scores), dtype=int))


def test_bool_labels_and_lists_are_fine():
    scores, labels = planted(50)
    assert fit(list(scores), labels.astype(bool)) == fit(scores, labels)


@pytest.mark.parametrize("label, expected", [(1, math.log(5)), (0, -math.log(5))])
def test_one_class_is_its_smoothed_base_rate(label, expected):
    p = fit([0.1, 0.5, 0.9, 2.0], [label] * 4)  # 5 / 6, or 1 / 6
    assert p.a == 0 and p.b == pytest.approx(expected)
    assert len(p.warnings) == 1 and f"all 4 labels are {label}" in p.warnings[0]


@pytest.mark.parametrize("score", [0.0, 0.3, -1e300])
def test_constant_scores_are_the_smoothed_mean(score):
    p = fit([score] * 5, [1, 1, 1, 0, 0])
    mean = (3 * 4 / 5 + 2 * 1 / 4) / 5
    assert p.a == 0 and p.b == pytest.approx(math.log(mean / (1 - mean)))
    assert len(p.warnings) == 1 and "all 5 scores are the same" in p.warnings[0]
    hard = fit([score] * 5, [1, 1, 1, 0, 0], smooth=False)
    assert hard.predict(score) == pytest.approx(0.6)


def test_scores_that_differ_by_rounding_are_constant():
    p = fit([0.1 + 0.2, 0.3, 0.3], [1, 0, 1])
    assert p.a == 0 and "the same" in p.warnings[0]


@pytest.mark.parametrize("scores", [[0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 3, 4], [0, 0, 0, 1, 1, 1]])
@pytest.mark.parametrize("labels", [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
def test_separable_data_are_finite_with_a_warning(scores, labels):
    p = fit(scores, labels)
    assert abs(p.a) < 50 and (p.a < 0) == (labels[0] == 1) and any("separates" in w for w in p.warnings)
    assert (p.a, p.b) == pytest.approx(sklearn_fit(np.array(scores, float), targets(labels)), abs=1e-5)
    with pytest.raises(ValueError, match="no finite fit"):
        fit(scores, labels, smooth=False)


def test_overlapping_data_are_not_called_separable():
    assert fit([0, 1, 2, 3, 4, 5], [1, 1, 0, 1, 0, 0]).warnings == ()


def test_one_class_without_smoothing_is_refused():
    with pytest.raises(ValueError, match="no finite fit"):
        fit([0.0, 1.0], [1, 1], smooth=False)


def test_positive_slope_is_the_wrong_sign():
    scores, labels = planted(200)
    assert fit(scores, labels).warnings == ()
    p = fit(scores, 1 - labels)
    assert p.a > 0 and len(p.warnings) == 1 and "wrong sign" in p.warnings[0]


@pytest.mark.parametrize(
    "scale, offset", [(1e6, 0), (1, 1e6), (1e-6, 0), (1e150, 0), (1e-150, 0), (-1e6, 1e6)]
)
def test_extreme_scores_give_the_same_probabilities(scale, offset):
    scores, labels = planted(300)
    p, q = fit(scores, labels), fit(scale * scores + offset, labels)
    assert q.a * scale == pytest.approx(p.a, rel=1e-7)
    np.testing.assert_allclose(q.predict(scale * scores + offset), p.predict(scores), atol=1e-8)


def test_one_far_outlier_does_not_stop_newton():
    scores, labels = planted(300)
    scores[7] = 1e6
    p = fit(scores, labels)
    residual = p.predict(scores) - targets(labels)
    assert abs(residual.mean()) < 1e-9 and abs((residual * scores / 1e6).mean()) < 1e-9  # the gradient


@pytest.mark.filterwarnings("error")
def test_newton_backtracks_where_full_steps_diverge():
    scores, labels = np.array([*np.linspace(-1, 1, 11), 300.0]), [1] * 11 + [0]
    p = fit(scores, labels)
    residual = p.predict(scores) - targets(labels)
    assert abs(residual.mean()) < 1e-9 and abs((residual * scores).mean()) < 1e-9


def test_a_slope_beyond_float64_is_refused():
    with pytest.raises(ValueError, match="overflows"):
        fit(np.array([1, 2, 3, 4]) * 1e-323, [1, 0, 1, 0])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(4, 60),
    st.floats(0.01, 100) | st.floats(-100, -0.01),
    st.floats(-100, 100),
)
def test_affine_change_of_the_scores_changes_nothing(seed, n, scale, offset):
    scores, labels = planted(n, seed=seed)
    labels[:2] = 0, 1
    p, q = fit(scores, labels), fit(scale * scores + offset, labels)
    np.testing.assert_allclose(q.predict(scale * scores + offset), p.predict(scores), atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60))
def test_the_fit_is_calibrated_in_the_large_and_symmetric(seed, n):
    scores, labels = planted(n, seed=seed)
    labels[:2] = 0, 1
    p, q = fit(scores, labels), fit(scores, 1 - labels)
    assert p.predict(scores).mean() == pytest.approx(targets(labels).mean(), abs=1e-9)
    assert (q.a, q.b) == pytest.approx((-p.a, -p.b), rel=1e-6, abs=1e-6)


def test_inputs_are_not_mutated():
    scores, labels = planted(30)
    before = scores.copy(), labels.copy()
    p = fit(scores, labels)
    p.predict(scores)
    cross_fit(scores, labels, np.arange(30) % 3)
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(labels, before[1])


# Predictions


def test_predict_is_the_formula_monotone_and_keeps_the_shape():
    p = Platt(-2.0, 0.5)
    x = np.linspace(-3, 3, 24).reshape(2, 3, 4)
    assert p.predict(x).shape == (2, 3, 4) and p.predict(1.0).shape == ()
    np.testing.assert_allclose(p.predict(x), 1 / (1 + np.exp(2 * x - 0.5)), rtol=1e-14)
    assert (np.diff(p.predict(x).ravel()) < 0).all()


@pytest.mark.filterwarnings("error")
def test_predict_never_overflows():
    assert Platt(-1e10, 0.0).predict([-1e300, -1e3, 0.0, 1e3, 1e300]).tolist() == [1, 1, 0.5, 0, 0]
    assert sigmoid(np.array([-700.0]))[0] == pytest.approx(math.exp(-700), rel=1e-12)  # not rounded to 0
    with pytest.raises(ValueError, match="NaN or infinite"):
        Platt(-1.0, 0.0).predict([0.0, np.inf])


# Cross-fitting


def test_cross_fit_is_a_fit_on_the_others():
    scores, labels = planted(90)
    folds = np.arange(90) % 4 - 1  # -1, 0, 1, 2
    p = cross_fit(scores, labels, folds)
    assert np.isnan(p[folds == -1]).all() and not np.isnan(p[folds >= 0]).any()
    for k in range(3):
        a, b = sklearn_fit(scores[folds != k], targets(labels[folds != k]))
        np.testing.assert_allclose(p[folds == k], 1 / (1 + np.exp(-(a * scores[folds == k] + b))), atol=1e-6)


def test_no_question_is_scored_by_a_fit_that_saw_its_label():
    scores, labels = planted(40)
    folds = np.arange(40) % 5 - 1
    before = cross_fit(scores, labels, folds)
    for i in range(40):
        flipped = labels.copy()
        flipped[i] = 1 - flipped[i]
        after = cross_fit(scores, flipped, folds)
        others = (folds >= 0) & (folds != folds[i])
        if folds[i] >= 0:
            np.testing.assert_array_equal(after[folds == folds[i]], before[folds == folds[i]])
        assert (after[others] != before[others]).all()  # and every other fold did see it


@pytest.mark.parametrize("folds", [[0, 1], [0.0, 1.0, 0.0], [0, 1, -2]])
def test_bad_folds_are_refused(folds):
    with pytest.raises(ValueError, match="3 integers >= -1"):
        cross_fit([0.1, 0.2, 0.3], [1, 0, 1], folds)


def test_a_fold_that_is_everything_is_refused():
    with pytest.raises(ValueError, match="fold 2 holds every question"):
        cross_fit([0.1, 0.2, 0.3], [1, 0, 1], [2, 2, 2])


# Fingerprints


FINGERPRINT = {"n": 10, "temperature": 1.0, "kernel": "rbf", "gamma": 1.0, "embedder": "x", "prompt": "abc"}


def test_fingerprint_names_exactly_what_differs():
    p = fit(*planted(50), fingerprint=FINGERPRINT)
    p.check(dict(reversed(FINGERPRINT.items())))
    with pytest.raises(ValueError) as e:
        p.check(FINGERPRINT | {"n": 20, "kernel": "cosine"})
    assert "n (10 at the fit, 20 now)" in str(e.value) and "kernel ('rbf'" in str(e.value)
    assert not any(f"{field} (" in str(e.value) for field in ("temperature", "gamma", "embedder", "prompt"))


def test_a_field_on_one_side_only_differs():
    p = fit(*planted(50), fingerprint=FINGERPRINT)
    with pytest.raises(ValueError, match="model .'absent' at the fit, 'm' now"):
        p.check(FINGERPRINT | {"model": "m"})
    with pytest.raises(ValueError, match="gamma .1.0 at the fit, 'absent' now"):
        p.check({k: v for k, v in FINGERPRINT.items() if k != "gamma"})
    with pytest.raises(ValueError, match="no fingerprint"):
        fit(*planted(50)).check(FINGERPRINT)


def test_json_round_trip_is_exact():
    for p in (fit(*planted(50), fingerprint=FINGERPRINT), fit([0.0, 1.0], [1, 1])):
        q = Platt.from_json(p.to_json())
        assert q == p and isinstance(q.warnings, tuple)
    Platt.from_json(fit(*planted(50), fingerprint=FINGERPRINT).to_json()).check(FINGERPRINT)


def test_chunks_change_nothing(monkeypatch):
    scores, labels = planted(1000)
    whole = fit(scores, labels)
    monkeypatch.setattr(platt, "CHUNK", 7)
    parts = fit(scores, labels)
    assert (parts.a, parts.b) == pytest.approx((whole.a, whole.b), rel=1e-9)


# ---- several scores ----------------------------------------------------------------------------------


def planted_pair(n, seed=0):
    rng = np.random.default_rng(seed)
    x = np.stack([rng.uniform(0, 2.3, n), 100 * rng.normal(size=n)], axis=1)
    return x, (rng.random(n) < sigmoid(x @ [-1.7, 0.02] + 1.1)).astype(int)


@pytest.mark.parametrize("n", [50, 5000])
def test_two_scores_match_sklearn(n):
    x, labels = planted_pair(n)
    t = targets(labels)
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit(np.concatenate([x, x]), np.repeat([1, 0], n), sample_weight=np.concatenate([t, 1 - t]))
    found = fit(x, labels)
    assert (*found.a, found.b) == pytest.approx((*model.coef_[0], model.intercept_[0]), rel=1e-5)
    np.testing.assert_allclose(found.predict(x), sigmoid(x @ found.a + found.b), rtol=1e-12)
    assert found.predict(x[0]).shape == () and found.warnings == ()


def test_one_column_is_one_score():
    scores, labels = planted(80)
    one, column = fit(scores, labels), fit(scores[:, None], labels)
    assert column.a == pytest.approx((one.a,)) and column.b == pytest.approx(one.b)
    np.testing.assert_allclose(column.predict(scores[:, None]), one.predict(scores))


def test_a_constant_score_gets_no_slope():
    scores, labels = planted(80)
    one, two = fit(scores, labels), fit(np.stack([scores, np.full(80, 3.0)], axis=1), labels)
    assert two.a == pytest.approx((one.a, 0.0)) and two.b == pytest.approx(one.b)
    assert fit(np.ones((80, 2)), labels).a == (0.0, 0.0)


def test_two_scores_survive_json_and_are_cross_fitted():
    x, labels = planted_pair(60)
    found = fit(x, labels, fingerprint={"target": "answer"})
    assert Platt.from_json(found.to_json()) == found
    p = cross_fit(x, labels, np.arange(60) % 3)
    assert p[1] == pytest.approx(fit(x[np.arange(60) % 3 != 1], labels[np.arange(60) % 3 != 1]).predict(x[1]))


def test_the_formula():
    assert Platt(-2.0, 1.0).formula() == "σ(-2.000 · entropy + 1.000)"
    assert Platt((-2.0, 3.0), -1.0).formula() == "σ(-2.000 · entropy + 3.000 · similarity + -1.000)"

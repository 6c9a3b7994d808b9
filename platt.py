"""Platt scaling: a score -> the probability that the answer is correct.

    p(s) = sigma(a s + b),  sigma(x) = 1 / (1 + exp(-x));   of several scores: a . s
    (a, b) = argmin  -sum_i [ t_i log p(s_i) + (1 - t_i) log(1 - p(s_i)) ]
    t_i = (N+ + 1) / (N+ + 2) if answer i is correct, else 1 / (N- + 2)

The t_i are Platt's smoothed targets: Laplace's rule for N+ right and N- wrong answers. They keep the optimum finite on
separable data and differ from 0 and 1 by O(1/N). Nothing else regularises the fit.

Newton's method with a backtracking line search finds the optimum. Sources: Platt, "Probabilistic Outputs for Support
Vector Machines", 1999; Lin, Lin & Weng, "A Note on Platt's Probabilistic Outputs", 2007, for the method and for forms
of the loss that cannot overflow. Their p is 1 / (1 + exp(A f + B)): a = -A, b = -B.

Left out: isotonic and temperature scaling (another method, and Platt without b), sample weights, and a regulariser: the
default of a general logistic regression shrinks the slope several-fold on little data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 2**15  # scores at a time, which fit a processor's cache


@dataclass(frozen=True)
class Platt:
    """A fitted calibrator, p = sigma(a * score + b).

    a: change in log-odds per unit of score (per nat, for an entropy); negative if a high score means unsure. F of
        them where each answer has F scores.
    b: log-odds at score 0.
    warnings: what was odd about the data, one sentence each; empty when all is well.
    """

    a: float | list[float]
    b: float
    warnings: Sequence[str] = ()

    def predict(self, scores):
        """P(correct). (...) -> (...) float64; F scores each: (..., F) -> (...). Raises ValueError on NaN, infinity."""
        s = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(s).all():
            raise ValueError("scores have NaN or infinite values")
        with np.errstate(over="ignore"):  # an infinite log-odds is a probability of 0 or 1
            return sigmoid((s @ self.a if np.ndim(self.a) else self.a * s) + self.b)

    def formula(self):
        """The fit in words. The names are those of stage 2 for one or two scores, and numbers for more."""
        a = np.atleast_1d(self.a)
        names = ("entropy", "similarity")[: len(a)] if len(a) < 3 else [f"score {i + 1}" for i in range(len(a))]
        terms = [f"{slope:.3f} · {name}" for slope, name in zip(a, names, strict=True)]
        return f"σ({' + '.join(terms)} + {self.b:.3f})"


def fit(scores, labels):
    """Fit p = sigma(a * score + b) by maximum likelihood. (N,), (N,) -> Platt. F scores each: (N, F), (N,) -> Platt.

    labels: 1 or True for a correct answer, 0 or False for a wrong one.

    Fitted, with a warning: one class, or constant scores (a = 0, b = log-odds of the mean target); classes that a
        threshold on one score separates (only smoothing keeps the slope finite); a > 0 of a single score.
    Raises ValueError: no data, other shapes, NaN or infinite scores, labels other than 0 and 1.
    """
    s, y = _validate(scores, labels)
    x = s.reshape(len(s), -1).T  # (F, N)
    n_pos, n_neg = (y == 1).sum(), (y == 0).sum()
    t = np.where(y == 1, (n_pos + 1) / (n_pos + 2), 1 / (n_neg + 2))
    high, low = x.max(axis=1), x.min(axis=1)  # (F,)
    middle, spread = high / 2 + low / 2, high / 2 - low / 2  # halved first: cannot overflow
    varies = spread > 1e-12 * np.abs(x).max(axis=1)  # else nothing but rounding tells the scores apart
    one_class = n_pos == 0 or n_neg == 0
    separable = not one_class and any(
        r[y == 0].max() <= r[y == 1].min() or r[y == 1].max() <= r[y == 0].min() for r in x[varies]
    )

    a, b = np.zeros(len(x)), float(np.log(t.mean() / (1 - t.mean())))  # the best constant
    if not one_class and varies.any():
        x, middle, spread = x[varies], middle[varies], spread[varies]
        *slopes, b = _newton((x - middle[:, None]) / spread[:, None], t, b)  # scores on [-1, 1], whatever their unit
        with np.errstate(over="ignore"):
            a[varies] = slopes / spread
        b = float(b - a[varies] @ middle)
        if not (np.isfinite(a).all() and np.isfinite(b)):
            raise ValueError("the scores differ by so little that the slope overflows")
    odd = {
        f"all {len(y)} labels are {int(y[0])}: the fit is a constant and ignores the score": one_class,
        f"all {len(y)} scores are the same: the fit is a constant and ignores the score": not varies.any(),
        "a threshold on the score separates the labels: only smoothing bounds the slope": separable,
        f"positive slope ({a[0]:.3g}): a higher score goes with more correct answers, the wrong sign for an "
        "uncertainty": s.ndim == 1 and a[0] > 0,
    }  # fmt: skip
    warnings = [sentence for sentence, applies in odd.items() if applies]
    return Platt(a.tolist() if s.ndim == 2 else float(a[0]), b, warnings)


def cross_fit(scores, labels, folds):
    """Out-of-fold probabilities: no fit has seen the labels that it predicts. (N,) or (N, F), (N,), (N,) -> (N,).

    folds: ints >= -1. A fit on all other questions predicts those of fold k; those of fold -1 are in every fit and get
    nan. Raises ValueError as `fit` does, for other folds, and for a fold that is everything. Warnings are lost.
    """
    s, y = _validate(scores, labels)
    folds = np.asarray(folds)
    if folds.shape != y.shape or folds.dtype.kind not in "iu" or folds.min() < -1:
        raise ValueError(f"folds must be {len(s)} integers >= -1, one for each score")
    p = np.full(len(s), np.nan)
    for k in np.unique(folds[folds >= 0]):
        held_out = folds == k
        if held_out.all():
            raise ValueError(f"fold {k} holds every question, so none is left to fit on")
        p[held_out] = fit(s[~held_out], y[~held_out]).predict(s[held_out])
    return p


def sigmoid(x):
    """1 / (1 + exp(-x)), by the side of it that cannot overflow. (...) -> (...)."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _derivatives(z, t, theta):
    """Mean cross-entropy of sigmoid(theta . z) to the targets t, in nats, its gradient and its Hessian.

    z (F + 1, N), with a last row of ones; t (N,), theta (F + 1,): a and b. -> (), (F + 1,), (F + 1, F + 1).
    """
    total = [0.0, 0.0, 0.0]
    for i in range(0, len(t), CHUNK):
        z_, t_ = z[:, i : i + CHUNK], t[i : i + CHUNK]
        x = theta @ z_
        e = np.exp(-np.abs(x))
        larger = 1 / (1 + e)  # of p and 1 - p
        p = np.where(x >= 0, larger, e * larger)
        loss = (((x >= 0) - t_) * x + np.log1p(e)).sum()
        total = [a + b for a, b in zip(total, (loss, z_ @ (p - t_), (e * larger**2 * z_) @ z_.T), strict=True)]
    return [a / len(t) for a in total]


def _newton(scores, t, b):
    """argmin over (a, b) of the cross-entropy, a convex function, from a = 0. scores (F, N), t (N,) -> (F + 1,)."""
    z, theta = np.concatenate([scores, np.ones((1, len(t)))]), np.array([0.0] * len(scores) + [b])
    loss, gradient, hessian = _derivatives(z, t, theta)
    for _ in range(200):
        # the ridge is for the solve alone: it does not move the optimum
        step = -np.linalg.solve(hessian + 1e-12 * np.trace(hessian) * np.eye(len(theta)), gradient)
        descent = -gradient @ step  # twice the expected decrease of the loss
        if descent < 1e-22:
            return theta
        for rate in 0.5 ** np.arange(35):
            found = _derivatives(z, t, theta + rate * step)
            if found[0] <= loss - 1e-4 * rate * descent + 1e-15:  # 1e-15: rounding hides the decrease near the optimum
                break
        theta, (loss, gradient, hessian) = theta + rate * step, found
    raise ValueError("Newton's method did not converge on these scores")


def _validate(scores, labels):
    """-> scores float64 (N,) or (N, F), labels float64 (N,) of 0 and 1."""
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if s.ndim not in (1, 2) or s.shape[:1] != y.shape or s.size == 0:
        raise ValueError(f"scores and labels must be lists of one length, not empty, and not {s.shape} and {y.shape}")
    if not np.isfinite(s).all():
        raise ValueError("scores have NaN or infinite values")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    return s, y.astype(np.float64)

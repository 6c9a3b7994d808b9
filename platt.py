"""Platt scaling: a score -> the probability that the answer is correct.

    p(s) = sigma(a s + b),  sigma(x) = 1 / (1 + exp(-x));   of several scores: a . s
    (a, b) = argmin  -sum_i [ t_i log p(s_i) + (1 - t_i) log(1 - p(s_i)) ]
    t_i = (N+ + 1) / (N+ + 2) if answer i is correct, else 1 / (N- + 2)

The t_i are Platt's smoothed targets: what Laplace's rule would say of N+ right and N- wrong answers. They
keep the optimum finite on separable data, and differ from 0/1 by O(1/N). Nothing else regularises the fit.

Fitted by Newton's method with a backtracking line search. Source: Platt, "Probabilistic Outputs for Support
Vector Machines", 1999; Lin, Lin & Weng, "A Note on Platt's Probabilistic Outputs", 2007, for the method and
the forms of the loss that cannot overflow. Their p is 1 / (1 + exp(A f + B)): a = -A, b = -B.

What cannot be fitted raises ValueError; what can be fitted but should not be trusted says so in
`Platt.warnings`.

Left out: isotonic and temperature scaling (another method, and Platt without b), sample weights, and a
regulariser: the default one of a general logistic regression shrinks the slope several-fold on little data.
"""

import json
from dataclasses import asdict, dataclass

import numpy as np

CHUNK = 2**15  # scores at a time


@dataclass(frozen=True)
class Platt:
    """A fitted calibrator, p = sigma(a * score + b).

    a: change in log-odds per unit of score (per nat, for an entropy); negative if a high score means unsure. A tuple
        of F of them where each answer has F scores.
    b: log-odds at score 0.
    warnings: what was odd about the data, one sentence each; empty when all is well.
    """

    a: float | tuple[float, ...]
    b: float
    warnings: tuple[str, ...] = ()

    def predict(self, scores):
        """P(correct). (...) -> (...) float64; F scores each: (..., F) -> (...).

        Raises ValueError on NaN or infinite scores.
        """
        s = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(s).all():
            raise ValueError("scores have NaN or infinite values")
        with np.errstate(over="ignore"):  # an infinite log-odds is a probability of 0 or 1
            return sigmoid((s @ self.a if isinstance(self.a, tuple) else self.a * s) + self.b)

    def formula(self):
        """The fit in words: of the entropy, or of the entropy and the answer's similarity to the samples."""
        a = self.a if isinstance(self.a, tuple) else (self.a,)
        names = ("entropy", "similarity") if len(a) < 3 else [f"score {i + 1}" for i in range(len(a))]
        terms = [f"{slope:.3f} · {name}" for slope, name in zip(a, names, strict=False)]
        return f"σ({' + '.join(terms)} + {self.b:.3f})"

    def to_json(self):
        """-> str; floats survive to the last bit."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text):
        fields = json.loads(text)
        a = tuple(fields["a"]) if isinstance(fields["a"], list) else fields["a"]
        return cls(**{**fields, "a": a, "warnings": tuple(fields["warnings"])})


def fit(scores, labels, smooth=True):
    """Fit p = sigma(a * score + b) by maximum likelihood. (N,), (N,) -> Platt. F scores each: (N, F), (N,) -> Platt.

    labels: 1 or True for a correct answer, 0 or False for a wrong one.
    smooth: Platt's smoothed targets; False fits the labels themselves, as plain logistic regression does.

    Fitted, with a warning: one class only, or constant scores (a = 0, b = log-odds of the mean target);
        classes that a threshold on one score separates (only smoothing keeps the slope finite); a > 0 of a
        single score.
    Raises ValueError: no data, other shapes, NaN or infinite scores, labels other than 0 and 1; with
        smooth=False also one class, or classes that a threshold separates, as the maximum is then at infinity.
    """
    s, y = _validate(scores, labels)
    several = s.ndim == 2
    s = s.reshape(len(s), -1).T  # (F, N)
    n_pos = int(y.sum())
    n_neg = len(y) - n_pos
    t = np.where(y == 1, (n_pos + 1) / (n_pos + 2), 1 / (n_neg + 2)) if smooth else y
    high, low = s.max(axis=1), s.min(axis=1)  # (F,)
    middle, spread = high / 2 + low / 2, high / 2 - low / 2  # halved first: cannot overflow
    one_class = n_pos == 0 or n_neg == 0
    varies = spread > 1e-12 * np.abs(s).max(axis=1)  # else nothing but rounding tells the scores apart
    separable = not one_class and any(
        x[y == 0].max() <= x[y == 1].min() or x[y == 1].max() <= x[y == 0].min() for x in s[varies]
    )
    if not smooth and (one_class or separable):
        raise ValueError("without smoothing, one class or separable classes have no finite fit")

    warnings = []
    if one_class:
        warnings.append(f"all {len(y)} labels are {int(y[0])}: the fit is a constant and ignores the score")
    if not varies.any():
        warnings.append(f"all {len(y)} scores are the same: the fit is a constant and ignores the score")
    if separable:
        warnings.append("a threshold on the score separates the labels: only smoothing bounds the slope")
    a = np.zeros(len(s))
    if one_class or not varies.any():
        return Platt(_slopes(a, several), _log_odds(t.mean()), tuple(warnings))

    middle, spread = middle[varies, None], spread[varies, None]
    *slopes, b = _newton((s[varies] - middle) / spread, t)  # scores on [-1, 1], whatever their unit
    with np.errstate(over="ignore"):
        a[varies] = slopes / spread[:, 0]
    b = b - a[varies] @ middle[:, 0]
    if not (np.isfinite(a).all() and np.isfinite(b)):
        raise ValueError("the scores differ by so little that the slope overflows")
    if not several and a[0] > 0:
        warnings.append(
            f"positive slope ({a[0]:.3g}): a higher score goes with more correct answers, "
            "the wrong sign for an uncertainty"
        )
    return Platt(_slopes(a, several), float(b), tuple(warnings))


def _slopes(a, several):
    return tuple(a.tolist()) if several else float(a[0])


def cross_fit(scores, labels, folds):
    """Out-of-fold probabilities: no question is scored by a fit that saw its label. (N,) or (N, F), (N,), (N,) -> (N,).

    folds: ints. Questions of fold k are predicted by a fit on all others; those of fold -1 are in every fit
        and never predicted: they get nan.
    Raises ValueError as fit does, and for folds that are no ints >= -1, or a fold that is everything. The
    warnings of the single fits are not kept: fit all the data to see them.
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


def _log_odds(p):
    return float(np.log(p / (1 - p)))


def _derivatives(z, t, theta):
    """Mean cross-entropy of sigmoid(a z + b) to the targets t, in nats, its gradient and its Hessian.

    z (F, N), t (N,), theta (F + 1,): a and b. -> (), (F + 1,), (F + 1, F + 1). In chunks that stay in a processor's
    cache.
    """
    loss, size = 0.0, len(theta)
    gradient, hessian = np.zeros(size), np.zeros((size, size))
    for i in range(0, z.shape[1], CHUNK):
        z_, t_ = z[:, i : i + CHUNK], t[i : i + CHUNK]
        x = theta[:-1] @ z_ + theta[-1]
        e = np.exp(-np.abs(x))
        larger = 1 / (1 + e)  # of p and 1 - p
        p = np.where(x >= 0, larger, e * larger)
        loss += (np.where(x >= 0, (1 - t_) * x, -t_ * x) + np.log1p(e)).sum()
        residual, weight = p - t_, e * larger**2  # p (1 - p)
        weighted = weight * z_
        gradient += [*(z_ @ residual), residual.sum()]
        hessian[:-1, :-1] += weighted @ z_.T
        hessian[-1] += [*weighted.sum(axis=1), weight.sum()]
    hessian[:-1, -1] = hessian[-1, :-1]
    return loss / len(t), gradient / len(t), hessian / len(t)


def _newton(z, t):
    """argmin over (a, b) of the cross-entropy, a convex function. z (F, N), t (N,) -> (F + 1,)."""
    theta = np.array([0.0] * len(z) + [_log_odds(t.mean())])  # the best constant
    loss, gradient, hessian = _derivatives(z, t, theta)
    for _ in range(200):
        # the ridge is for the solve alone: it does not move the optimum
        step = -np.linalg.solve(hessian + 1e-12 * np.trace(hessian) * np.eye(len(theta)), gradient)
        descent = -gradient @ step  # twice the expected decrease of the loss
        if descent < 1e-22:
            return theta
        rate = 1.0
        while True:
            new, *slopes = _derivatives(z, t, theta + rate * step)
            # 1e-15 because near the optimum the decrease drowns in the rounding of the loss
            if new <= loss - 1e-4 * rate * descent + 1e-15 or rate < 1e-10:
                break
            rate /= 2
        theta, loss, (gradient, hessian) = theta + rate * step, new, slopes
    raise ValueError("Newton's method did not converge on these scores")


def _validate(scores, labels):
    """-> scores float64 (N,) or (N, F), labels float64 (N,) of 0 and 1."""
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if s.ndim not in (1, 2) or s.shape[:1] != y.shape:
        raise ValueError(f"scores and labels must be lists of one length, not {s.shape} and {y.shape}")
    if s.size == 0:
        raise ValueError("there are no scores to fit")
    if not np.isfinite(s).all():
        raise ValueError("scores have NaN or infinite values")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    return s, y.astype(np.float64)

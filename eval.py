"""Is a stated confidence right on average (calibration), and does it tell right from wrong (discrimination)?

Every metric is (confidence, correct) -> float, of N answers with confidence c_i in [0, 1] and y_i in {0, 1}:

    ECE   = sum_bins |sum_{i in bin} (y_i - c_i)| / N             expected calibration error
    Brier = mean (c_i - y_i)^2
    NLL   = -mean [y_i log c_i + (1 - y_i) log(1 - c_i)]          in nats
    AUROC = P(c of a right answer > c of a wrong one) + P(equal) / 2
    AURC  = mean over k = 1..N of the error rate among the k most confident answers
    Brier = reliability - resolution + uncertainty                Murphy 1973, up to the spread inside the bins

Stated confidences are round numbers, so ties and bin edges are the rule: each metric says how it treats them.
A constant confidence equal to the accuracy has ECE 0: never read ECE without AUROC and a base-rate row.
AUROC within families asks what the confidence knows about a question beyond which family is hard.

Everything is computed from counts (R, N), how often each answer occurs in each of R resamples: ones for a
metric, multinomial for the bootstrap. So there is one implementation, and resamples cost array operations.

Left out: ECE with other norms or debiased, which only make numbers harder to compare.
"""

import numpy as np

NLL_CLIP = 1e-6  # confidences are clipped to [1e-6, 1 - 1e-6]: a wrong 100% costs 13.8 nats, not infinity


def ece(confidence, correct, bins=10, scheme="width"):
    """Expected calibration error. (N,), (N,) -> float in [0, 1].

    scheme "width": bins of equal width, [lo, hi), the last one [lo, 1]. So of ten bins 0.3 is in the fourth,
        as in np.histogram and torchmetrics (which gives an exact 1.0 a bin of its own; Guo et al. write
        (lo, hi]). An edge is an edge although 3 * 0.1 != 0.3: within 1e-7 it counts as reached.
    scheme "mass": bins of equal count, in order of confidence. Equal confidences share the bin of their
        mid-rank; some bins may then be empty.
    Raises ValueError: see _validate; an unknown scheme; bins other than 1, 2, ...
    Source: Naeini et al. 2015; Guo et al., arXiv 1706.04599; equal mass: Nguyen & O'Connor 2015.
    """
    confidence, correct = _validate(confidence, correct)
    once = _once(confidence)
    return float(_ece(confidence, correct, once, _bin(confidence, once, bins, scheme), bins)[0])


def reliability(confidence, correct, bins=10, scheme="width"):
    """What a reliability diagram shows. (N,), (N,) -> count, mean confidence, accuracy, each (bins,).

    Bins and errors as in ece, which is sum count / N * |accuracy - mean confidence|. Empty bins have count 0,
    and nan for the means.
    """
    confidence, correct = _validate(confidence, correct)
    index = _bin(confidence, _once(confidence), bins, scheme)[0]  # (N,)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 = nan in an empty bin
        return count, np.bincount(index, confidence, bins) / count, np.bincount(index, correct, bins) / count


def brier(confidence, correct):
    """Brier score, the mean squared error. (N,), (N,) -> float in [0, 1].

    Raises ValueError: see _validate. Source: Brier 1950.
    """
    confidence, correct = _validate(confidence, correct)
    return float(_brier(confidence, correct).mean())


def nll(confidence, correct):
    """Negative log-likelihood, or log loss. (N,), (N,) -> float in nats, at most 13.8 because of NLL_CLIP.

    Stated 0% and 100% are clipped alike, so a few wrong ones dominate: read it beside the Brier score.
    Raises ValueError: see _validate.
    """
    confidence, correct = _validate(confidence, correct)
    return float(_nll(confidence, correct).mean())


def auroc(confidence, correct):
    """Area under the ROC curve, ties by mid-ranks. (N,), (N,) -> float in [0, 1], nan with one class only.

    Raises ValueError: see _validate. Source: the Mann-Whitney U statistic; Hanley & McNeil 1982.
    """
    confidence, correct = _validate(confidence, correct)
    return float(_auroc(confidence, correct, _once(confidence))[0])


def aurc(confidence, correct):
    """Area under the risk-coverage curve, the mean of its N risks. (N,), (N,) -> float, low is good.

    Ties and errors as in risk_coverage. Source: Geifman & El-Yaniv, arXiv 1705.08500 and 1805.08206.
    """
    return float(risk_coverage(confidence, correct)[1].mean())


def risk_coverage(confidence, correct):
    """Error rate among the k most confident answers, k = 1..N. (N,), (N,) -> coverage k / N, risk, each (N,).

    Among equal confidences it is the expectation over a random order. Raises ValueError: see _validate.
    """
    confidence, correct = _validate(confidence, correct)
    n = len(confidence)
    return np.arange(1, n + 1) / n, _risk(confidence, correct, _once(confidence))[0]


def spearman(a, b):
    """Rank correlation, ties by mid-ranks. (N,), (N,) -> float in [-1, 1], nan if one of them is constant.

    Source: Spearman 1904; the Pearson correlation of the ranks.
    """
    ranks = []
    for x in (a, b):
        _, place, count = np.unique(np.asarray(x, dtype=np.float64), return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])
    ranks = [r - r.mean() for r in ranks]
    norm = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / norm) if norm > 0 else float("nan")


def metrics(confidence, correct, family=None):
    """All of them. (N,), (N,), family (N,) of any labels -> dict of name to number.

    n, accuracy, mean_confidence, distinct (the number of different confidences), ece, ece_mass, brier, nll,
    auroc, aurc; Murphy's decomposition of the Brier score in ten bins of equal width: reliability, the mean squared
    gap between confidence and accuracy, low is good; resolution, the variance of the accuracy over the bins, high is
    good; uncertainty, accuracy (1 - accuracy), which no confidence can change. And with families, else nan:
    auroc_within: mean of the AUROC inside each family that has both classes; nan if none has.
    ece_within: mean of the ECE (width) inside each family, weighted by its size.
    Raises ValueError: see _validate; family of another length.
    """
    confidence, correct = _validate(confidence, correct)
    values = _metrics(confidence, correct, _families(family, confidence), _once(confidence))
    counts = {"n": len(confidence), "distinct": len(np.unique(confidence))}
    return counts | {name: float(value[0]) for name, value in values.items()}


def bootstrap(confidence, correct, family=None, resamples=1000, seed=0, level=0.95):
    """Percentile intervals over resampled questions. -> {name: (lo, hi)}, no n and no distinct.

    Deterministic in the arguments. Resamples in which a metric is nan are left out of its interval, which is
    (nan, nan) if it always is. Resampling adds noise, and ECE counts noise as miscalibration: its interval
    leans upwards, the more the smaller N, and may lie above the estimate.
    Raises ValueError as metrics does; resamples < 1; level not between 0 and 1. Source: Efron 1979.
    """
    values = resampled(confidence, correct, family, resamples, seed)
    return {name: interval(v, level) for name, v in values.items()}


def resampled(confidence, correct, family=None, resamples=1000, seed=0):
    """Every metric of each resample. -> {name: (resamples,)}. Equal N and seed: the same questions are drawn, so that
    differences between methods are paired. Raises ValueError as bootstrap."""
    confidence, correct = _validate(confidence, correct)
    if resamples < 1:
        raise ValueError(f"resamples must be >= 1, not {resamples}")
    family, n = _families(family, confidence), len(confidence)
    rng, chunks = np.random.default_rng(seed), []
    rows = max(1, 200_000 // n)  # resamples at a time, to bound the memory
    for start in range(0, resamples, rows):
        drawn = rng.integers(n, size=(min(rows, resamples - start), n))  # (R, N)
        row = np.arange(len(drawn))[:, None]
        counts = np.bincount((row * n + drawn).ravel(), minlength=drawn.size).reshape(drawn.shape)
        chunks.append(_metrics(confidence, correct, family, counts))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def interval(values, level=0.95):
    """Percentile interval. (R,) -> (lo, hi), without nan; (nan, nan) if there is nothing else."""
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    values = values[~np.isnan(values)]
    tails = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) if len(values) else (np.nan, np.nan)
    return float(tails[0]), float(tails[1])


def with_missing(confidence, correct):
    """Malformed statements, None, in both ways. (N,), (N,) -> (confidence, correct) dropped, then as worst.

    Dropped: only the M answers that state a confidence, (M,), (M,); M may be 0, which the metrics refuse.
    As worst: all N, (N,), (N,); None counts as 1 for a wrong answer and as 0 for a right one.
    Raises ValueError: see _validate. NaN is no missing statement but an error.
    """
    stated = np.array([c is not None for c in confidence], dtype=bool)
    filled, correct = _validate([0.0 if c is None else c for c in confidence], correct)
    worst = np.where(stated, filled, 1 - correct)
    return (filled[stated], correct[stated]), (worst, correct)


def _validate(confidence, correct):
    """-> float64 (N,), (N,). Raises ValueError unless N >= 1 numbers in [0, 1] and N 0/1 labels."""
    c, y = np.asarray(confidence, dtype=np.float64), np.asarray(correct)
    if c.ndim != 1 or c.shape != y.shape:
        raise ValueError(f"confidence and correct must be two lists of one length, not {c.shape}, {y.shape}")
    if c.size == 0:
        raise ValueError("there are no confidences to evaluate")
    if not ((c >= 0) & (c <= 1)).all():  # NaN fails too
        raise ValueError("confidences must be numbers from 0 to 1")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("correct must be 0 or 1")
    return c, y.astype(np.float64)


def _families(family, confidence):
    """Labels (N,) -> ints (N,), or None."""
    if family is None:
        return None
    family = np.asarray(family)
    if family.shape != confidence.shape:
        raise ValueError(f"family must be {len(confidence)} labels, one for each answer, not {family.shape}")
    return np.unique(family, return_inverse=True)[1]


# From here on the inputs are valid: confidence, correct (N,), counts (R, N); D is the number of different
# confidences.


def _once(confidence):
    return np.ones((1, len(confidence)), dtype=np.int64)  # (R=1, N)


def _metrics(confidence, correct, family, counts):
    """-> dict of name to (R,)."""
    n = counts.sum(axis=1)
    width, mass = (_bin(confidence, counts, 10, scheme) for scheme in ("width", "mass"))
    auroc_within = ece_within = np.full(len(counts), np.nan)
    if family is not None:
        groups = [family == f for f in range(family.max() + 1)]
        inside = np.array([_auroc(confidence[g], correct[g], counts[:, g]) for g in groups])  # (families, R)
        both = ~np.isnan(inside)
        with np.errstate(invalid="ignore"):  # 0 / 0 = nan where no family has both classes
            auroc_within = np.where(both, inside, 0).sum(axis=0) / both.sum(axis=0)
        ece_within = _ece(confidence, correct, counts, family * 10 + width, len(groups) * 10)
    return {
        "accuracy": counts @ correct / n,
        "mean_confidence": counts @ confidence / n,
        "ece": _ece(confidence, correct, counts, width, 10),
        "ece_mass": _ece(confidence, correct, counts, mass, 10),
        "brier": counts @ _brier(confidence, correct) / n,
        "nll": counts @ _nll(confidence, correct) / n,
        "auroc": _auroc(confidence, correct, counts),
        "auroc_within": auroc_within,
        "ece_within": ece_within,
        "aurc": _risk(confidence, correct, counts).mean(axis=1),
        **_murphy(confidence, correct, counts, width, 10),
    }


def _brier(confidence, correct):
    return (confidence - correct) ** 2  # (N,)


def _nll(confidence, correct):
    c = np.clip(confidence, NLL_CLIP, 1 - NLL_CLIP)
    return -np.where(correct == 1, np.log(c), np.log1p(-c))  # (N,)


def _ece(confidence, correct, counts, index, bins):
    """index (R, N): the bin of each answer, below bins. -> (R,)."""
    cell = np.arange(len(counts))[:, None] * bins + index  # (R, N), one number for each resample and bin
    gap = np.bincount(cell.ravel(), (counts * (correct - confidence)).ravel(), len(counts) * bins)
    return np.abs(gap.reshape(-1, bins)).sum(axis=1) / counts.sum(axis=1)


def _murphy(confidence, correct, counts, index, bins):
    """The terms of Murphy's decomposition. -> dict of name to (R,)."""
    cell = (np.arange(len(counts))[:, None] * bins + index).ravel()  # (R N,)
    n, stated, right = (
        np.bincount(cell, (counts * x).ravel(), len(counts) * bins).reshape(-1, bins) for x in (1, confidence, correct)
    )  # (R, bins) each
    size, total = np.maximum(n, 1), n.sum(axis=1)
    accuracy = right.sum(axis=1) / total
    return {
        "reliability": (n * ((stated - right) / size) ** 2).sum(axis=1) / total,
        "resolution": (n * (right / size - accuracy[:, None]) ** 2).sum(axis=1) / total,
        "uncertainty": accuracy * (1 - accuracy),
    }


def _bin(confidence, counts, bins, scheme):
    """-> the bin of each answer in each resample, (R, N)."""
    if bins < 1 or bins != int(bins):
        raise ValueError(f"bins must be a whole number >= 1, not {bins}")
    if scheme == "width":
        edges = np.arange(1, bins) / bins
        index = np.searchsorted(edges, confidence + 1e-7, side="right")  # 1e-7: float32 edges too
        return np.broadcast_to(index, counts.shape)
    if scheme == "mass":
        value, weight = _by_value(confidence, counts)
        twice_mid_rank = 2 * np.cumsum(weight, axis=1) - weight  # (R, D), integers, so no rounding
        index = bins * twice_mid_rank // (2 * weight.sum(axis=1, keepdims=True))  # (R, D)
        return np.minimum(index, bins - 1)[:, value]  # an answer that a resample lacks may rank past its end
    raise ValueError(f"unknown scheme {scheme!r}: choose width or mass")


def _by_value(confidence, *weights):
    """Sum weights (R, N) over equal confidences. -> each answer's place among them (N,), sums (R, D)."""
    order = np.argsort(confidence, kind="stable")
    _, start = np.unique(confidence[order], return_index=True)
    value = np.unique(confidence, return_inverse=True)[1]
    return value, *(np.add.reduceat(w[:, order], start, axis=1) for w in weights)


def _auroc(confidence, correct, counts):
    """-> (R,)."""
    _, right, wrong = _by_value(confidence, counts * correct, counts * (1 - correct))  # (R, D)
    below = np.cumsum(wrong, axis=1) - wrong / 2  # wrong answers of less confidence, equal ones as halves
    with np.errstate(invalid="ignore"):  # 0 / 0 = nan with one class
        return (right * below).sum(axis=1) / (right.sum(axis=1) * wrong.sum(axis=1))


def _risk(confidence, correct, counts):
    """-> (R, N). In a random order of a tie, each of its places expects the tie's mean error."""
    _, weight, wrong = _by_value(-confidence, counts, counts * (1 - correct))  # (R, D), most confident first
    error = wrong / np.maximum(weight, 1)
    error = np.repeat(error.ravel(), weight.ravel()).reshape(counts.shape)  # each row of weights sums to N
    return np.cumsum(error, axis=1) / np.arange(1, counts.shape[1] + 1)

"""Metrics of a stated confidence: is it right on average (calibration), does it tell right from wrong (discrimination)?

Every metric maps (confidence, correct) to a float, for N answers with confidence c_i in [0, 1] and label y_i in {0, 1}:

    ECE   = sum_bins |sum_{i in bin} (y_i - c_i)| / N             expected calibration error
    Brier = mean (c_i - y_i)^2
    NLL   = -mean [y_i log c_i + (1 - y_i) log(1 - c_i)]          in nats
    AUROC = P(c of a right answer > c of a wrong one) + P(equal) / 2
    AURC  = mean over k = 1..N of the error rate among the k most confident answers
    Brier = reliability - resolution + uncertainty                Murphy 1973, up to the spread inside the bins

All raise ValueError unless they get N >= 1 confidences in [0, 1], without NaN, and N labels 0 or 1.
Stated confidences are round numbers, so ties and values on bin edges are common: each metric says how it treats them.
A constant confidence equal to the accuracy has ECE 0, so always read ECE beside AUROC and a base-rate row.

Metrics are computed from counts (R, N): how often each answer occurs in each of R resamples; R = 1 and counts of one
for a single metric. Left out: ECE with other norms and debiased ECE, which make numbers harder to compare.
"""

import numpy as np

NLL_CLIP = 1e-6  # confidences are clipped to [1e-6, 1 - 1e-6]: a wrong 100% costs 13.8 nats, not infinity


def ece(confidence, correct, bins=10, scheme="width"):
    """Expected calibration error. (N,), (N,) -> float in [0, 1].

    scheme "width": bins of equal width, [lo, hi), the last one [lo, 1]. So 0.3 is in the fourth of ten bins, as in
        np.histogram and torchmetrics (which puts an exact 1.0 in a bin of its own; Guo et al. use (lo, hi]).
        A confidence within 1e-7 below an edge counts as on it, because 3 * 0.1 != 0.3 in floating point.
    scheme "mass": bins of equal count. Equal confidences share the bin of their mid-rank, so some bins may be empty.
    Raises ValueError also for an unknown scheme, and for bins other than 1, 2, ... Sources: Naeini et al. 2015; Guo et
    al., arXiv 1706.04599; equal mass: Nguyen & O'Connor 2015.
    """
    confidence, correct, once = _validate(confidence, correct)
    return float(_ece(confidence, correct, once, _bin(confidence, once, bins, scheme), bins)[0])


def reliability(confidence, correct, bins=10, scheme="width"):
    """The numbers of a reliability diagram. (N,), (N,) -> count, mean confidence, accuracy, each (bins,).
    Bins as in ece, which equals sum count / N * |accuracy - mean confidence|. Empty bins: count 0, both means nan."""
    confidence, correct, once = _validate(confidence, correct)
    index = _bin(confidence, once, bins, scheme)
    count, stated, right = (_sum_bins(x, index, bins)[0] for x in (once, once * confidence, once * correct))
    with np.errstate(invalid="ignore"):  # 0 / 0 = nan in an empty bin
        return count.astype(np.int64), stated / count, right / count


def brier(confidence, correct):
    """Brier score, the mean squared error. (N,), (N,) -> float in [0, 1]. Source: Brier 1950."""
    return metrics(confidence, correct)["brier"]


def nll(confidence, correct):
    """Negative log-likelihood, or log loss. (N,), (N,) -> float in nats, at most 13.8 because of NLL_CLIP.
    A few wrong answers stated at 100%, or right ones at 0%, dominate it: read it beside the Brier score."""
    return metrics(confidence, correct)["nll"]


def auroc(confidence, correct):
    """Area under the ROC curve, ties by mid-ranks. (N,), (N,) -> float in [0, 1], nan with one class only.
    Source: the Mann-Whitney U statistic; Hanley & McNeil 1982."""
    return float(_auroc(*_validate(confidence, correct))[0])


def aurc(confidence, correct):
    """Area under the risk-coverage curve, the mean of its N risks. (N,), (N,) -> float, lower is better.
    Ties as in risk_coverage. Source: Geifman & El-Yaniv, arXiv 1705.08500 and 1805.08206."""
    return float(risk_coverage(confidence, correct)[1].mean())


def risk_coverage(confidence, correct):
    """Error rate among the k most confident answers, k = 1..N. (N,), (N,) -> coverage k / N, risk, each (N,).
    For equal confidences it is the expectation over a random order."""
    risk = _risk(*_validate(confidence, correct))[0]
    return np.arange(1, len(risk) + 1) / len(risk), risk


def spearman(a, b):
    """Rank correlation, ties by mid-ranks. (N,), (N,) -> float in [-1, 1], nan if a or b is constant.
    Source: Spearman 1904; the Pearson correlation of the ranks."""
    ranks = []
    for values in (a, b):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])
    return float(np.corrcoef(*ranks)[0, 1]) if all(np.ptp(r) > 0 for r in ranks) else float("nan")


def metrics(confidence, correct, family=None):
    """All metrics. (N,), (N,), family (N,) of any labels -> {name: number}.

    n, accuracy, mean_confidence, distinct (number of different confidences), ece, ece_mass, brier, nll, auroc, aurc;
    Murphy's terms, in ten bins of equal width: reliability, the mean squared gap between confidence and accuracy, lower
    is better; resolution, the variance of the accuracy, higher is better; uncertainty, accuracy (1 - accuracy);
    auroc_within, the mean AUROC of the families that have both classes: what is known beyond which family is hard;
    ece_within, the mean ECE (width) of the families, weighted by size. Both are nan without families.
    """
    values = _metrics(*_validate(confidence, correct), family)
    counts = {"n": len(confidence), "distinct": len(np.unique(confidence))}
    return counts | {name: float(value[0]) for name, value in values.items()}


def bootstrap(confidence, correct, family=None, resamples=1000, seed=0):
    """95% percentile intervals over resampled questions. -> {name: (lo, hi)}, without n and distinct.

    Resamples where a metric is nan are left out of its interval, which is (nan, nan) if all are. ECE counts the noise
    of resampling as miscalibration: its interval is biased upwards, most for small N, and may exclude the estimate.
    Raises ValueError also for resamples < 1. Source: Efron 1979.
    """
    return {name: interval(v) for name, v in resampled(confidence, correct, family, resamples, seed).items()}


def resampled(confidence, correct, family=None, resamples=1000, seed=0):
    """Every metric of each resample. -> {name: (resamples,)}. Equal N and seed draw the same questions, so that
    differences between methods are paired."""
    confidence, correct, _ = _validate(confidence, correct)
    if resamples < 1:
        raise ValueError(f"resamples must be >= 1, not {resamples}")
    n, rng, chunks = len(confidence), np.random.default_rng(seed), []
    rows = max(1, 200_000 // n)  # resamples at a time, to bound the memory
    for start in range(0, resamples, rows):
        drawn = rng.integers(n, size=(min(rows, resamples - start), n))  # (R, N)
        counts = _sum_bins(np.ones_like(drawn), drawn, n).astype(np.int64)
        chunks.append(_metrics(confidence, correct, counts, family))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def interval(values):
    """95% percentile interval of the values that are not nan. (R,) -> (lo, hi); (nan, nan) if all are nan."""
    values = values[~np.isnan(values)]
    lo, hi = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
    return float(lo), float(hi)


def with_missing(confidence, correct):
    """Two ways to handle malformed statements, None. (N,), (N,) -> (confidence, correct) dropped, then as worst.
    Dropped: the M answers that state a confidence, (M,), (M,). M may be 0, which the metrics refuse.
    As worst: all, (N,), (N,); None becomes 1 for a wrong answer and 0 for a right one."""
    stated = np.array([c is not None for c in confidence], dtype=bool)
    filled, correct, _ = _validate([0.0 if c is None else c for c in confidence], correct)
    return (filled[stated], correct[stated]), (np.where(stated, filled, 1 - correct), correct)


def _validate(confidence, correct):
    """-> float64 (N,), (N,), and counts (1, N) of one."""
    c, y = np.asarray(confidence, dtype=np.float64), np.asarray(correct)
    if c.ndim != 1 or c.shape != y.shape:
        raise ValueError(f"confidence and correct must be two lists of one length, not {c.shape}, {y.shape}")
    if c.size == 0:
        raise ValueError("there are no confidences to evaluate")
    if not ((c >= 0) & (c <= 1)).all():  # NaN fails too
        raise ValueError("confidences must be numbers from 0 to 1")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("correct must be 0 or 1")
    return c, y.astype(np.float64), np.ones((1, len(c)), dtype=np.int64)


def _metrics(confidence, correct, counts, family):
    """confidence, correct (N,), counts (R, N), all valid; family: labels (N,) or None -> {name: (R,)}."""
    total = counts.sum(axis=1)
    width, mass = (_bin(confidence, counts, 10, scheme) for scheme in ("width", "mass"))
    n, stated, right = (_sum_bins(counts * x, width, 10) for x in (1, confidence, correct))  # (R, 10) each
    size, accuracy = np.maximum(n, 1), counts @ correct / total
    clipped = np.clip(confidence, NLL_CLIP, 1 - NLL_CLIP)
    auroc_within = ece_within = np.full(len(counts), np.nan)
    if family is not None:
        if np.shape(family) != confidence.shape:
            raise ValueError(f"family must be {len(confidence)} labels, one for each answer, not {np.shape(family)}")
        names, index = np.unique(family, return_inverse=True)
        groups = [index == f for f in range(len(names))]
        inside = np.array([_auroc(confidence[g], correct[g], counts[:, g]) for g in groups])  # (families, R)
        with np.errstate(invalid="ignore"):  # 0 / 0 = nan where no family has both classes
            auroc_within = np.nansum(inside, axis=0) / (~np.isnan(inside)).sum(axis=0)
        ece_within = _ece(confidence, correct, counts, index * 10 + width, len(names) * 10)
    return {
        "accuracy": accuracy,
        "mean_confidence": counts @ confidence / total,
        "ece": np.abs(right - stated).sum(axis=1) / total,
        "ece_mass": _ece(confidence, correct, counts, mass, 10),
        "brier": counts @ (confidence - correct) ** 2 / total,
        "nll": -counts @ np.where(correct == 1, np.log(clipped), np.log1p(-clipped)) / total,
        "auroc": _auroc(confidence, correct, counts),
        "auroc_within": auroc_within,
        "ece_within": ece_within,
        "aurc": _risk(confidence, correct, counts).mean(axis=1),
        "reliability": (n * ((stated - right) / size) ** 2).sum(axis=1) / total,
        "resolution": (n * (right / size - accuracy[:, None]) ** 2).sum(axis=1) / total,
        "uncertainty": accuracy * (1 - accuracy),
    }


def _ece(confidence, correct, counts, index, bins):
    """index (N,) or (R, N): the bin of each answer, below bins. -> (R,)."""
    return np.abs(_sum_bins(counts * (correct - confidence), index, bins)).sum(axis=1) / counts.sum(axis=1)


def _bin(confidence, counts, bins, scheme):
    """-> the bin of each answer, (N,), or of each answer in each resample, (R, N)."""
    if bins < 1 or bins != int(bins):
        raise ValueError(f"bins must be a whole number >= 1, not {bins}")
    if scheme == "width":
        edges = np.arange(1, bins) / bins
        return np.searchsorted(edges, confidence + 1e-7, side="right")  # 1e-7: float32 edges too
    if scheme == "mass":
        value, weight = _by_value(confidence, counts)
        twice_mid_rank = 2 * np.cumsum(weight, axis=1) - weight  # (R, D), integers, so no rounding
        index = bins * twice_mid_rank // (2 * weight.sum(axis=1, keepdims=True))  # (R, D)
        return np.minimum(index, bins - 1)[:, value]  # an answer that a resample lacks may rank past its end
    raise ValueError(f"unknown scheme {scheme!r}: choose width or mass")


def _sum_bins(values, index, bins):
    """Sum values (R, N) over the answers of each bin, index (N,) or (R, N). -> (R, bins)."""
    cell = np.arange(len(values))[:, None] * bins + index  # (R, N), one number for each resample and bin
    return np.bincount(cell.ravel(), values.ravel(), len(values) * bins).reshape(-1, bins)


def _by_value(confidence, *weights):
    """Sum weights (R, N) over equal confidences. -> each answer's place among the D distinct ones (N,), sums (R, D)."""
    distinct, value = np.unique(confidence, return_inverse=True)
    return value, *(_sum_bins(w, value, len(distinct)).astype(np.int64) for w in weights)


def _auroc(confidence, correct, counts):
    """-> (R,)."""
    _, right, wrong = _by_value(confidence, counts * correct, counts * (1 - correct))  # (R, D)
    below = np.cumsum(wrong, axis=1) - wrong / 2  # wrong answers of lower confidence, plus half of the equal ones
    with np.errstate(invalid="ignore"):  # 0 / 0 = nan with one class
        return (right * below).sum(axis=1) / (right.sum(axis=1) * wrong.sum(axis=1))


def _risk(confidence, correct, counts):
    """-> (R, N). In a random order of a tie, each of its places expects the tie's mean error."""
    _, weight, wrong = _by_value(-confidence, counts, counts * (1 - correct))  # (R, D), most confident first
    error = wrong / np.maximum(weight, 1)
    error = np.repeat(error.ravel(), weight.ravel()).reshape(counts.shape)  # each row of weights sums to N
    return np.cumsum(error, axis=1) / np.arange(1, counts.shape[1] + 1)

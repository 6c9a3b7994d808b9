"""The few comparisons of a table that were named before its runs, corrected for their number.

    d      mean over the seeds of (metric of one row - metric of the other), on the same questions
    p      twice the share of bootstrap resamples on the wrong side of 0; seeds are drawn, and questions within each
    Holm   the k-th smallest of m values of p is multiplied by m + 1 - k, and none is smaller than the one before it

Holm, "A simple sequentially rejective multiple test procedure", 1979. All other differences of a table are exploration:
of twenty intervals at 95% one excludes 0 by chance. A metric of the unseen sets is the mean over the sets, for AUROC
over those with at least FEW right and FEW wrong answers, because it is hardly defined on the others.
"""

import numpy as np

from eval import interval

FEW = 5
UNSEEN = {"auroc median": (np.median, "auroc"), "auroc mean": (np.mean, "auroc"), "ece median": (np.median, "ece"),
          "brier mean": (np.mean, "brier")}  # fmt: skip


def parts_of(where, metric, found):
    """The parts of a table that a metric of "test" or of "unseen" is the mean of."""
    if where == "test":
        return ["test"]
    unseen = [part for part in found if part != "test"]
    right = {part: np.array(found[part]["accuracy"]) * found[part]["n"] for part in unseen}
    enough = [p for p in unseen if FEW <= right[p].min() and right[p].max() <= found[p]["n"] - FEW]
    return enough if metric == "auroc" else unseen


def over_unseen(found):
    """-> {title: {"auroc median": value, ...}} of the rows that all unseen sets have; {} for fewer than two sets."""
    if len(found) < 3:
        return {}
    everywhere = [title for title in found["test"]["rows"] if all(title in of["rows"] for of in found.values())]
    return {
        title: {
            name: float(of([found[p]["rows"][title]["mean"][m] for p in parts_of("unseen", m, found)]))
            for name, (of, m) in UNSEEN.items()
        } for title in everywhere
    }  # fmt: skip


def holm(p):
    """Adjusted p-values, in the order given. (m,) -> (m,)"""
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(np.array(p)[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted[np.argsort(order)]


def compare(comparisons, found, draws, shared):
    """-> a dict for each comparison (one, other, "test" or "unseen", metric).

    draws: {part: {title: for each seed {metric: (R,)}}}, of the same resamples for all titles. shared: the parts whose
    questions are the same in all seeds, so that a resample is one of questions and not of each seed's own.
    """
    rng, out = np.random.default_rng(0), []
    for one, other, where, metric in comparisons:
        parts, points, drawn = parts_of(where, metric, found), [], []
        for part in parts:
            rows = found[part]["rows"]
            points.append(rows[one]["mean"][metric] - rows[other]["mean"][metric])
            of = [np.array([seed[metric] for seed in draws[part][title]]) for title in (one, other)]  # (S, R) each
            seeds, resamples = of[0].shape
            pick = rng.integers(resamples, size=(seeds, resamples))
            if part in shared:
                pick[:] = pick[0]
            drawn.append(np.take_along_axis(of[0] - of[1], pick, 1))
        row = {"one": one, "other": other, "where": where, "metric": metric, "parts": len(parts),
               "difference": np.nan, "interval": (np.nan, np.nan), "p": 1.0}  # fmt: skip
        if parts:
            d = np.nanmean(drawn, axis=0)  # (S, R); a resample of one class has no AUROC
            d = np.take_along_axis(d, rng.integers(seeds, size=(seeds, resamples)), 0).mean(0)
            p = min(1.0, 2 * (1 + min((d <= 0).sum(), (d >= 0).sum())) / (resamples + 1))
            row |= {"difference": float(np.mean(points)), "interval": interval(d), "p": p}
        out.append(row)
    for row, adjusted in zip(out, holm([row["p"] for row in out]), strict=True):
        row["holm"] = float(adjusted)
    return out

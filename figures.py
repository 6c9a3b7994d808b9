"""The pictures of a run: is confidence calibrated, does it rank, what did the entropy know, how did RL go?

Each function draws one picture and writes it as a PNG: a picture that exists is whole. What there is no data for is
said in the picture, so that a short or failed run can be looked at too; data that are wrong raise ValueError, as in
eval.py.

Colours are those of Okabe & Ito (2008), which colour-blind readers can tell apart; curves differ in dashes
too.

Left out: intervals on the risk-coverage curves (the table has the one of AURC), vector formats, any style
option. matplotlib's pyplot is not used, so nothing here depends on or changes a global figure or backend.
"""

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import eval
from run import write_whole

BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
BLACK, GREY = "#000000", "#777777"
PANELS = (  # of training: what to see, unit, {key in the log: name in the legend}
    ("Reward should rise", "mean reward", {"reward": None}),
    ("Waste: low is good", "share", {"malformed": "malformed outputs", "no_signal": "groups without signal"}),
    ("Confidence should near accuracy", "mean confidence", {"mean_confidence": None}),
    ("Few distinct values: collapse", "distinct confidences", {"distinct": None}),
    ("Gradients should stay bounded", "gradient norm", {"grad_norm": None}),
    ("Divergence from the base model", "nats", {"kl": None}),
)


def reliability(methods, path):
    """Accuracy against mean confidence in 10 bins of equal width, and how often each bin is used.

    methods: {name: (confidence (N,), correct (N,))}, N may differ and be 0. A panel each, side by side.
    Bars are Wilson 95% intervals of the accuracy; the area of a point grows with the answers in its bin.
    """
    if not methods:
        return _say("No method to draw", path)
    figure = Figure(figsize=(2.2 * max(len(methods), 2), 4), layout="constrained")
    figure.suptitle("On the diagonal: calibrated. Below: overconfident.", fontsize="medium")
    grid = figure.subplots(2, len(methods), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1])
    for (above, below), (name, (confidence, correct)) in zip(grid.T, methods.items(), strict=True):
        above.set_title(name, fontsize="medium")
        above.plot([0, 1], [0, 1], color=GREY, lw=1)
        above.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        below.set_xlabel("confidence")
        below.locator_params(axis="y", nbins=3)
        plain(above, below)
        if len(confidence) == 0:
            above.text(0.5, 0.5, "nothing stated", ha="center", va="center", backgroundcolor="white")
            continue
        count, mean, accuracy = eval.reliability(confidence, correct)  # (10,) each
        above.scatter(mean, accuracy, 15 + 160 * count / count.sum(), color=SKY, zorder=3)
        above.vlines(mean, *wilson(accuracy * count, count), color=BLUE, lw=1.5, zorder=4)
        below.bar(np.arange(10) / 10 + 0.05, count / count.sum(), width=0.09, color=SKY)
        low = np.mean(confidence) > np.mean(correct)  # the points are, so the upper left corner is free
        x, y, ha, va = (0.03, 0.98, "left", "top") if low else (0.97, 0.03, "right", "bottom")
        text = above.text(x, y, _numbers(confidence, correct), transform=above.transAxes, ha=ha, va=va)
        text.set(fontsize="small", linespacing=1.1, bbox={"color": "white", "alpha": 0.7, "pad": 1})
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("share of\nanswers")
    save(figure, path)


def risk_coverage(methods, path):
    """Error rate among the most confident answers, against the share of answers kept.

    methods: as in reliability. The dotted line is the error rate of all answers of the method that has most:
    what a confidence that knows nothing gets.
    """
    if not any(len(confidence) for confidence, _ in methods.values()):
        return _say("No stated confidence to draw", path)
    figure = Figure(figsize=(5.2, 4), layout="constrained")
    axes = figure.subplots()
    for i, (name, (confidence, correct)) in enumerate(methods.items()):
        look = {"color": (BLUE, ORANGE, GREEN, PINK, BLACK, SKY, RED)[i % 7], "ls": ("-", "--", "-.")[i % 3]}
        if len(confidence) == 0:
            axes.plot([], [], label=f"{name}: nothing stated", **look)
            continue
        coverage, risk = eval.risk_coverage(confidence, correct)  # (N,), (N,)
        axes.plot(coverage, risk, lw=1.8, label=f"{name}: AURC {risk.mean():.3f}", **look)
    error = 1 - np.mean(max((correct for _, correct in methods.values()), key=len))
    axes.axhline(error, color=BLACK, ls=":", lw=1, label=f"error rate of all: {error:.3f}")
    axes.set_title("Lower is better: who is confident should be right", fontsize="medium")
    axes.set(xlabel="coverage (share kept, most confident first)", ylabel="error rate of the answers kept")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize="small", frameon=False)
    plain(axes)
    save(figure, path)


def entropy_curve(entropy, correct, platt, path):
    """Accuracy against entropy in 10 bins of equal count, and the fitted curve sigma(a H + b) over it.

    entropy (N,) in nats; correct (N,) of 0 and 1; platt: a platt.Platt, which has no curve if it is of several
    scores. Bars are Wilson 95% intervals. The light points are the single answers, right ones above and wrong ones
    below, spread out to be seen.
    """
    entropy, correct = np.asarray(entropy, dtype=np.float64), np.asarray(correct)
    if len(entropy) == 0:
        return _say("No entropy to draw", path)
    figure = Figure(figsize=(5.2, 4), layout="constrained")
    axes = figure.subplots()
    count, mean, accuracy = equal_count_bins(entropy, correct)
    spread = np.random.default_rng(3141).uniform(0.05, 0.12, len(entropy))
    axes.scatter(entropy, np.where(correct == 1, 1 + spread, -spread), 6, color=SKY, alpha=0.5, lw=0)
    axes.vlines(mean, *wilson(accuracy * count, count), color=BLUE, lw=1.5)
    axes.scatter(mean, accuracy, 30, color=BLUE, zorder=3, label="accuracy, 95% interval")
    title, falls = "Accuracy should fall as entropy rises", True
    if not isinstance(platt.a, tuple):
        h = np.linspace(min(0, entropy.min()), max(entropy.max(), 0.1), 200)
        axes.plot(h, platt.predict(h), color=RED, lw=2, label="Platt fit, σ(aH + b)")
        title, falls = f"{title}\n(fit: a = {platt.a:.2f} per nat, b = {platt.b:.2f})", platt.a <= 0
    axes.set_title(title, fontsize="medium")
    axes.set(xlabel="entropy of the sampled answers (nats)", ylabel="accuracy, P(correct)")
    axes.set(ylim=(-0.15, 1.15), yticks=[0, 0.25, 0.5, 0.75, 1])
    x, side = (1, "right") if falls else (0, "left")  # where the curve is low
    axes.legend(fontsize="small", frameon=False, loc=f"upper {side}", bbox_to_anchor=(x, 0.9))
    plain(axes)
    save(figure, path)


def training(log, path):
    """The course of RL. log: a dict per step, of "step" and the keys of PANELS; absent, None, nan are gaps.

    Light: each step. Dark: the mean of the last steps, of a twentieth of the run but of 5 at least.
    """
    if not log:
        return _say("No training step was logged", path)
    window = max(5, len(log) // 20)
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    figure.suptitle(f"RL. Light: each step. Dark: mean of the last {window} steps.", fontsize="medium")
    step = _column(log, "step")
    for axes, (title, unit, names) in zip(figure.subplots(3, 2, sharex=True).flat, PANELS, strict=True):
        for (key, name), color in zip(names.items(), (BLUE, RED), strict=False):
            values = _column(log, key)  # (steps,)
            axes.plot(step, values, ".-", color=color, alpha=0.3, lw=0.7, ms=3)
            dark = ".-" if len(log) < 20 else "-"  # a line through one point cannot be seen
            axes.plot(step, running_mean(values, window), dark, color=color, lw=1.8, label=name)
        axes.set_title(title, fontsize="medium")
        axes.set_ylabel(unit)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if len(names) > 1:
            axes.legend(fontsize="small", frameon=False)
        if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center")
            axes.set_yticks([])
        plain(axes)
    for axes in figure.axes[-2:]:
        axes.set_xlabel("RL step")
    save(figure, path)


def wilson(right, count):
    """95% interval of a proportion. (...), (...) -> low, high, (...) each; nan where the count is 0.

    Source: Wilson 1927. Unlike the normal interval it stays in [0, 1] and has a width at 0 and 1.
    """
    z = 1.959964  # the 97.5% quantile of the normal distribution
    with np.errstate(invalid="ignore", divide="ignore"):
        p = right / count
        middle = (p + z**2 / (2 * count)) / (1 + z**2 / count)
        half = z * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return middle - half, middle + half


def equal_count_bins(scores, correct, bins=10):
    """Count, mean score and accuracy of the bins that are not empty. (N,), (N,) -> (<= bins,) each.

    Equal scores share a bin, as in eval.ece with scheme "mass", so counts differ where scores are tied.
    """
    low, span = scores.min(), np.ptp(scores) or 1.0
    count, mean, accuracy = eval.reliability((scores - low) / span, correct, bins, "mass")
    used = count > 0
    return count[used], low + span * mean[used], accuracy[used]


def running_mean(values, window):
    """Mean of the last `window` values, gaps (nan) left out. (N,) -> (N,), nan where all are gaps."""
    there = np.isfinite(values)
    total = np.convolve(np.where(there, values, 0.0), np.ones(window))[: len(values)]
    count = np.convolve(there.astype(np.float64), np.ones(window))[: len(values)]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _numbers(confidence, correct):
    lines = [f"N {len(confidence)}"]
    for name, metric in (("ECE", eval.ece), ("Brier", eval.brier), ("AUROC", eval.auroc)):
        value = metric(confidence, correct)
        lines.append(f"{name} n/a" if np.isnan(value) else f"{name} {value:.3f}")
    return "\n".join(lines)


def _column(log, key):
    """-> (steps,), nan for what is absent, None or infinite (as a gradient that overflowed under AMP)."""
    values = np.array([row.get(key) for row in log], dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def plain(*panels):
    """Without the frame's upper and right lines."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)


def _say(text, path):
    figure = Figure(figsize=(5.2, 1.5))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    save(figure, path)


def save(figure, path):
    """Write the picture whole, or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_whole(Path(path), [content.getvalue()])

"""The pictures of a run: is confidence calibrated, does it rank answers, what did the entropy know, how did RL go?

Each function writes one PNG. Missing data are named in it, so that a short or failed run can be drawn too; invalid data
raise ValueError, as in eval.py. Colours: Okabe & Ito (2008), which colour-blind readers can tell apart."""

import io

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

import eval
from infra.files import write_whole

BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
GREY = "#777777"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium", "figure.titlesize": "medium",
         "legend.fontsize": "small", "legend.frameon": False, "figure.constrained_layout.use": True}  # fmt: skip
NAMES = ("reliability", "risk_coverage", "entropy", "training")
PANELS = (  # of training: title, unit, keys in the log
    ("Reward should rise", "mean reward", ("reward",)),
    ("Waste: lower is better", "share", ("malformed", "no_signal")),
    ("Confidence should approach accuracy", "mean confidence", ("mean_confidence",)),
    ("Few distinct values: collapse", "distinct confidences", ("distinct",)),
    ("Gradients should stay bounded", "gradient norm", ("grad_norm",)),
    ("Divergence from the base model", "nats", ("kl",)),
)


def draw(rows, platt, log, folder):
    """All pictures of a run, from the rows of the test set and the log of RL."""
    methods = {}
    for title, name in (("Stated, untrained", "untrained"), ("Stated, trained", "trained"), ("Teacher", "target")):
        stated = [r for r in rows if r[name] is not None]
        methods[title] = np.array([r[name] for r in stated]), np.array([r["correct"] for r in stated])
    reliability(methods, folder / "reliability.png")
    risk_coverage(methods, folder / "risk_coverage.png")
    entropy_curve([r["entropy"] for r in rows], [r["correct"] for r in rows], platt, folder / "entropy.png")
    training(log, folder / "training.png")


@rc_context(STYLE)
def reliability(methods, path):
    """Accuracy against mean confidence in 10 bins of equal width, and the share of answers in each bin.
    methods: {name: (confidence (N,), correct (N,))}; N may differ and be 0. One panel each, side by side.
    Bars are Wilson 95% intervals of the accuracy; the area of a point grows with the answers in its bin."""
    figure = Figure(figsize=(2.3 * len(methods), 4))
    figure.suptitle("On the diagonal: calibrated. Below: overconfident.")
    grid = figure.subplots(2, len(methods), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1])
    for (above, below), (name, (confidence, correct)) in zip(grid.T, methods.items(), strict=True):
        above.plot([0, 1], [0, 1], color=GREY, lw=1)
        above.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        below.set_xlabel("confidence")
        numbers = "nothing stated"
        if len(confidence):
            count, mean, accuracy = eval.reliability(confidence, correct)  # (10,) each
            above.scatter(mean, accuracy, 15 + 160 * count / count.sum(), color=SKY, zorder=3)
            above.vlines(mean, *wilson(accuracy * count, count), color=BLUE, lw=1.5, zorder=4)
            below.bar(np.arange(10) / 10 + 0.05, count / count.sum(), width=0.09, color=SKY)
            numbers = f"ECE {eval.ece(confidence, correct):.3f}, AUROC {eval.auroc(confidence, correct):.3f}"
        above.set_title(f"{name}, N {len(confidence)}\n{numbers}", fontsize="small")
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("share of\nanswers")
    save(figure, path)


@rc_context(STYLE)
def risk_coverage(methods, path):
    """Error rate among the most confident answers, against the share of answers kept. methods: as in reliability."""
    axes = Figure(figsize=(5.2, 4)).subplots()
    looks = zip((BLUE, ORANGE, GREEN), ("-", "--", "-."), strict=True)
    for (name, (confidence, correct)), (color, dashes) in zip(methods.items(), looks, strict=False):
        coverage, risk = eval.risk_coverage(confidence, correct) if len(confidence) else ([], [])  # (N,), (N,)
        number = f"AURC {np.mean(risk):.3f}" if len(confidence) else "nothing stated"
        axes.plot(coverage, risk, color=color, ls=dashes, lw=1.8, label=f"{name}: {number}")
    axes.set(title="Lower is better: confident answers should be right", xlabel="coverage, most confident first",
             ylabel="error rate of answers kept", xlim=(0, 1), ylim=(0, 1.02))  # fmt: skip
    axes.legend()
    save(axes.figure, path)


@rc_context(STYLE)
def entropy_curve(entropy, correct, platt, path):
    """Accuracy against entropy in 10 bins of equal count, and the fitted curve sigma(a H + b). (N,) nats, (N,) 0 or 1.
    platt: a platt.Platt; a fit to several scores has no curve. Bars are Wilson 95% intervals."""
    axes, top = Figure(figsize=(5.2, 4)).subplots(), max(0.1, *entropy)  # top: in nats
    count, mean, accuracy = eval.reliability(np.clip(np.divide(entropy, top), 0, 1), correct, scheme="mass")
    axes.vlines(top * mean, *wilson(accuracy * count, count), color=BLUE, lw=1.5)
    axes.scatter(top * mean, accuracy, 30, color=BLUE, zorder=3, label="accuracy, 95% interval")
    if not np.ndim(platt.a):
        h = np.linspace(0, top, 200)
        label = f"Platt fit, σ(aH + b): a = {platt.a:.2f} per nat, b = {platt.b:.2f}"
        axes.plot(h, platt.predict(h), color=RED, lw=2, label=label)
    axes.set(title="Accuracy should fall as entropy rises", xlabel="entropy of the sampled answers (nats)",
             ylabel="accuracy, P(correct)", ylim=(-0.02, 1.02))  # fmt: skip
    axes.legend()
    save(axes.figure, path)


@rc_context(STYLE)
def training(log, path):
    """The course of RL. log: a dict per step, of "step" and the keys of PANELS; absent, None, nan, inf are gaps."""
    steps, window = [row["step"] for row in log], max(5, len(log) // 20)
    figure = Figure(figsize=(6.4, 6.4))
    figure.suptitle(f"RL. Light: each step. Dark: mean of the last {window} steps.")
    for axes, (title, unit, keys) in zip(figure.subplots(3, 2, sharex=True).flat, PANELS, strict=True):
        for key, color in zip(keys, (BLUE, RED), strict=False):
            values = np.array([row.get(key) for row in log], dtype=np.float64)  # (steps,)
            values[~np.isfinite(values)] = np.nan
            if np.isfinite(values).any():
                axes.plot(steps, values, ".-", color=color, alpha=0.3, lw=0.7, ms=3)
                axes.plot(steps, running_mean(values, window), ".-", color=color, lw=1.8, ms=2, label=key)
        axes.set(title=title if axes.lines else f"{title}: not logged", xlabel="RL step", ylabel=unit)
        if len(keys) > 1 and axes.lines:
            axes.legend()
    save(figure, path)


def wilson(right, count):
    """Wilson (1927) 95% interval of a proportion, which stays in [0, 1]. (...), (...) -> low, high; nan for count 0."""
    z = 1.959964  # the 97.5% quantile of the normal distribution
    with np.errstate(invalid="ignore", divide="ignore"):
        half = z * np.sqrt(right * (1 - right / count) + z**2 / 4)
    return (right + z**2 / 2 - half) / (count + z**2), (right + z**2 / 2 + half) / (count + z**2)


def running_mean(values, window):
    """Mean of the last `window` values, gaps (nan) left out. (N,) -> (N,), nan where all are gaps."""
    total = np.convolve(np.nan_to_num(values), np.ones(window))[: len(values)]
    count = np.convolve(np.isfinite(values), np.ones(window))[: len(values)]
    return total / np.where(count > 0, count, np.nan)


def save(figure, path):
    """Write the picture as a PNG, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_whole(path, [content.getvalue()])

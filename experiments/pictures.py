"""The pictures of the tables: which 95% intervals exclude 0, what a question costs at test time and what that buys, and
what the number of samples changes."""

from textwrap import fill

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, STYLE, save

METRICS = {"ece": "ECE", "brier": "Brier score", "auroc": "AUROC"}
COLORS, OTHERS = (BLUE, ORANGE, GREEN, PINK, SKY, RED), "oDsX^vP<>p*hd8H"
PARTS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "D"), (SKY, "v"))  # a colour and a marker each


@rc_context(STYLE)
def differences(parts, other, path):
    """Paired differences to the arm `other`, a panel for each metric, with their 95% intervals.

    parts: {part: {"ARM, stated" or "ARM, expected": {metric: [difference, low, high]}}}, the last level as in a report.
    Filled: as expectation. Hollow: as stated.
    """
    rows = list(dict.fromkeys(title for of in parts.values() for title in of))
    arms = list(dict.fromkeys(title.rpartition(", ")[0] for title in rows))
    step = 0.8 / (2 * len(parts))
    figure = Figure(figsize=(10, 1.3 + len(arms) * (0.25 + 0.11 * 2 * len(parts))))
    to = "its own teacher" if other == "teacher" else other
    text = f"Difference to: {to}. Hollow: stated; filled: expected. A line (95%) that reaches 0 is a tie."
    figure.suptitle(text)
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for axes, (metric, name) in zip(panels, METRICS.items(), strict=True):
        axes.axvline(0, color=GREY, lw=1)
        for i, ((part, of), (color, marker)) in enumerate(zip(parts.items(), PARTS[: len(parts)], strict=True)):
            for title, found in of.items():
                arm, _, kind = title.rpartition(", ")
                y = arms.index(arm) - 0.4 + step * (2 * i + (kind == "expected") + 0.5)
                middle, low, high = found[metric]
                axes.plot([low, high], [y, y], color=color, lw=1.2)
                face = color if kind == "expected" else "white"
                axes.plot(middle, y, marker, ms=5, color=color, mfc=face, zorder=3)
            axes.plot([], [], marker, color=color, label=part)
        axes.set_title(f"{name}: {'right' if metric == 'auroc' else 'left'} is better")
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(arms)), [fill(arm, 28) for arm in arms], fontsize="small")
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(parts))
    save(figure, path)


@rc_context(STYLE)
def tokens(rows, path):
    """AUROC and ECE against the tokens that a question takes at test time: its answer, and what the method adds.

    rows: {title: {"mean": {metric: value}, "tokens": value}}, as in a report. In colour: arms, hollow as stated and
    filled as expected. In grey: all others, hollow as they are and filled with Platt scaling.
    """
    figure = Figure(figsize=(10, 4.6))
    panels = figure.subplots(1, 2, sharex=True)
    arms, others = {}, {}  # name -> its colour and marker
    for title, row in rows.items():
        name, _, kind = title.rpartition(", ")
        if kind in ("stated", "expected"):
            look = arms.setdefault(name, (COLORS[len(arms) % len(COLORS)], "os^"[len(arms) // len(COLORS)]))
        else:
            name = name if kind == "Platt" and name in others else title
            look = others.setdefault(name, (GREY, OTHERS[len(others)]))
        color, marker = look
        face = color if kind in ("expected", "Platt") else "white"
        for axes, metric in zip(panels, ("auroc", "ece"), strict=True):
            axes.plot(row["tokens"], row["mean"][metric], marker, color=color, mfc=face, ms=6, alpha=0.85)
    panels[0].set_xscale("log", base=2)
    panels[1].set_yscale("log")
    for axis, base, ticks in ((panels[0].xaxis, 2, (1,)), (panels[1].yaxis, 10, (1, 2, 5))):
        axis.set_major_locator(LogLocator(base, ticks))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    for axes, title in zip(panels, ("AUROC: higher is better", "ECE: lower is better"), strict=True):
        axes.set_title(title)
        axes.grid(alpha=0.3)
    handles = [panels[0].plot([], [], marker, color=color, label=fill(name, 30))[0]
               for name, (color, marker) in (arms | others).items()]  # fmt: skip
    figure.supxlabel("tokens generated for a question at test time, answer included", fontsize="medium")
    figure.suptitle("Colour: trained; hollow: stated, filled: expected. Grey: not trained; filled: with Platt scaling.")
    figure.legend(handles=handles, loc="outside right center")
    save(figure, path)


@rc_context(STYLE)
def counts(found, path):
    """Entropy, AUROC and ECE against the number of samples. found: {name: {"title", "seeds", "limit", "counts"}}, as in
    a report."""
    figure = Figure(figsize=(7, 6.5))
    grid = figure.subplots(3, len(found), sharex=True, squeeze=False)
    for (top, *panels), of in zip(grid.T, found.values(), strict=True):
        n = [int(count) for count in of["counts"]]
        for kind, color, style in (("plug-in", BLUE, "o-"), ("jackknife", ORANGE, "s--")):
            top.plot(n, [row[kind] for row in of["counts"].values()], style, color=color, label=kind)
            for axes, metric in zip(panels, ("auroc", "ece"), strict=True):
                axes.plot(n, [row[f"of {kind}"][metric] for row in of["counts"].values()], style, color=color)
        if of["limit"] is not None:
            top.axhline(of["limit"], color=GREY, ls=":", label="of the world's distribution")
        seeds = len(of["seeds"])
        top.set_title(f"{of['title']}\n{f'mean of {seeds} seeds' if seeds > 1 else 'one seed'}")
        top.set_ylim(bottom=0)
        top.legend()
    for axes, name in zip(grid[:, 0], ("mean entropy, nats", "AUROC", "ECE"), strict=True):
        axes.set_ylabel(name)
    grid[0, 0].set_xticks(sorted({int(count) for of in found.values() for count in of["counts"]}))
    figure.supxlabel("samples")
    save(figure, path)

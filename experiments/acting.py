"""Do thresholds on the confidence keep their promise? On halves of the test part, and on sets of other kinds.

    python -m experiments.acting smollm2-told        the runs of its first arm -> results/smollm2-told/acting.md

A threshold from one half of the test questions is held against the other half, in 100 draws of the halves for each
seed. The share of draws in which more than the promised error was made has the noise of that half too, so that it may
exceed 10%. The threshold of the whole test part is held against each unseen set, for which nothing is promised.
"""

import sys
from pathlib import Path

import numpy as np

from beyond.readouts import FIELDS, RISKS, scaled, threshold
from experiments.grid import TABLES, slug
from infra.folder import Run
from report import acting
from report.tables import lines

DRAWS = 100


def rows_of(run):
    """predictions.jsonl, with the readout of samples where an older version left it out."""
    targets, rows, field = run.read("targets.jsonl"), run.read("predictions.jsonl"), FIELDS["samples"]
    if field in rows[0]:
        return rows
    labelled = [t for t in targets if t["part"] in ("platt", "train")]
    found = scaled(field, labelled, [t for t in targets if t["part"] not in ("platt", "train")])
    return [row | {field: c} for row, c in zip(rows, found, strict=True)]


def halves(rows, field, error, rng):
    """-> the share answered and the error in the other half, of each draw; the error is None if nothing is answered"""
    test, found = [(r[field], r["correct"]) for r in rows if r["part"] == "test"], []
    for _ in range(DRAWS):
        order = rng.permutation(len(test))
        one, other = ([test[i] for i in part] for part in np.array_split(order, 2))
        t = threshold(*zip(*one, strict=True), error)
        kept = [y for c, y in other if t is not None and c is not None and c >= t]
        found.append((len(kept) / len(other), 1 - np.mean(kept) if kept else None))
    return found


def percent(values):
    values = [v for v in values if v is not None]
    return f"{np.mean(values):.0%}" if values else "n/a"


def main(name):
    table, root = TABLES[name], Path("runs/experiments") / (TABLES[name].runs_of or name)
    arm, rng = next(iter(table.arms)), np.random.default_rng(0)
    every = [rows_of(Run(root / f"{slug(arm)}-{seed}")) for seed in table.seeds]
    parts = list(dict.fromkeys(r["part"] for r in every[0]))
    within, beyond = {}, {}
    for way, field in FIELDS.items():
        found = [acting.thresholds(rows, field) for rows in every]
        for error in RISKS:
            of, title = [f[str(error)] for f in found], f"{way}, at most {error:.0%} wrong"
            drawn = [x for rows in every for x in halves(rows, field, error, rng)]
            broken = np.mean([wrong is not None and wrong > error for _, wrong in drawn])
            said = [f"{x['threshold']:.2f}" if x["threshold"] is not None else "none" for x in of]
            within[title] = [", ".join(said), percent([x["sets"]["test"][0] for x in of]),
                             percent([share for share, _ in drawn]), percent([wrong for _, wrong in drawn]),
                             f"{broken:.0%}"]  # fmt: skip
            if any(x["threshold"] is not None for x in of):
                beyond[title] = [f"{percent([x['sets'][p][0] for x in of])}, {percent([x['sets'][p][1] for x in of])}"
                                 for p in parts if p != "test"]  # fmt: skip
    heads = ["", "t, each seed", "answered", "halves: answered", "halves: error", "halves: broken"]
    names = [Path(p).stem.split(":")[-1] for p in parts if p != "test"]
    text = [f"# Thresholds on the confidence: {arm}", "", *lines(heads, within), "",
            "Share answered and error among these, of each unseen set, at the threshold of the test part:", "",
            *lines(["", *names], beyond), "",
            f"`python -m experiments.acting {name}`, seeds {', '.join(map(str, table.seeds))}.", ""]  # fmt: skip
    Run(Path("results") / name).write("acting.md", "\n".join(text))


if __name__ == "__main__":
    main(sys.argv[1])

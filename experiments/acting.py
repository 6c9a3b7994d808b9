"""Do thresholds on the confidence keep their promise, and do fifty labels help on other questions?

    python -m experiments.acting smollm2-told        the runs of its first arm -> results/smollm2-told/acting.md

A threshold from one half of the test questions is held against the other half, in 100 draws of the halves for each
seed. The share of draws in which more than the promised error was made has the noise of that half too, so that it may
exceed 10%. The threshold of the whole test part is held against each unseen set, for which nothing is promised.

A readout is refitted (readouts.Refit) to 50 questions of an unseen set, and measured on the others, in five draws. The
trained ones are refitted to Platt's own questions too, whose labels the teacher has used and no training step, and
measured on the test part.
"""

import sys
from pathlib import Path

import numpy as np

from beyond import compare
from beyond.readouts import FEATURES, FIELDS, RISKS, TRAINED, Refit, scaler, threshold
from eval import brier, ece
from experiments.grid import TABLES, slug
from infra.files import LABELLED
from infra.folder import Run
from report import acting
from report.tables import lines
from use import CalibratedLM

DRAWS, LABELS, REFITS = 100, 50, 5


def rows_of(run):
    """predictions.jsonl, with the readout of samples where an older version left it out."""
    targets, rows, field = run.read("targets.jsonl"), run.read("predictions.jsonl"), FIELDS["samples"]
    scale = scaler(FEATURES[field], [t for t in targets if t["part"] in LABELLED])
    found = scale([t for t in targets if t["part"] not in LABELLED])
    return [row | {field: c} for row, c in zip(rows, found, strict=True)]


def halves(rows, field, error, rng):
    """-> the share answered in the other half, of each draw, and the error there; None where nothing is answered"""
    test, found = [(r[field], r["correct"]) for r in rows if r["part"] == "test"], []
    for _ in range(DRAWS):
        order = rng.permutation(len(test))
        one, other = ([test[i] for i in part] for part in np.array_split(order, 2))
        t = threshold(*zip(*one, strict=True), error)
        kept = [y for c, y in other if t is not None and c is not None and c >= t]
        found.append((len(kept) / len(other), 1 - np.mean(kept) if kept else None))
    return found


def before_and_after(some, others):
    """ECE and Brier score of other pairs of confidence and label, before and after a refit to some. -> 4 numbers"""
    before, y = zip(*others, strict=True)
    after = Refit(some).predict(before)
    return [ece(before, y), ece(after, y), brier(before, y), brier(after, y)]


def refits(rows, field, rng):
    """ECE and Brier score of one set before and after, in each draw. -> (REFITS, 4)"""
    there = [(r[field], r["correct"]) for r in rows if r[field] is not None]
    found = []
    for _ in range(REFITS):
        order = rng.permutation(len(there))
        some, others = ([there[i] for i in part] for part in (order[:LABELS], order[LABELS:]))
        found.append(before_and_after(some, others))
    return found


def to_own_kind(run):
    """ECE and Brier score of the test part, before and after a refit to Platt's part. -> {field: (4,)}"""
    student, test = CalibratedLM(run.folder), [r for r in run.read("predictions.jsonl") if r["part"] == "test"]
    pairs = [*zip(run.read("samples.jsonl"), run.read("targets.jsonl"), strict=True)]
    known, fields = [(s, t) for s, t in pairs if s["part"] == "platt"], [FIELDS[readout] for readout in TRAINED]
    said, found = compare.state(student.config, student.model, student.prompt, known, fields), {}
    for field in fields:
        some = [(c, t["correct"]) for c, (_, t) in zip(said[field][0], known, strict=True)]
        found[field] = before_and_after(some, [(r[field], r["correct"]) for r in test if r[field] is not None])
    return found


def percent(values):
    values = [v for v in values if v is not None]
    return f"{np.mean(values):.0%}" if values else "n/a"


def main(name):
    table, root = TABLES[name], Path("runs/experiments") / (TABLES[name].runs_of or name)
    arm, rng = next(iter(table.arms)), np.random.default_rng(0)
    runs = [Run(root / f"{slug(arm)}-{seed}") for seed in table.seeds]
    every, own = [rows_of(run) for run in runs], [to_own_kind(run) for run in runs]
    parts = list(dict.fromkeys(r["part"] for r in every[0]))
    within, beyond, refitted = {}, {}, {}
    for readout, field in FIELDS.items():
        found = [acting.thresholds(rows, field) for rows in every]
        for error in RISKS:
            of, title = [f[str(error)] for f in found], f"{readout}, at most {error:.0%} wrong"
            drawn = [x for rows in every for x in halves(rows, field, error, rng)]
            broken = np.mean([wrong is not None and wrong > error for _, wrong in drawn])
            has = np.mean([wrong is not None for _, wrong in drawn])
            said = [f"{x['threshold']:.2f}" if x["threshold"] is not None else "none" for x in of]
            within[title] = [", ".join(said), percent([x["sets"]["test"][0] for x in of]),
                             f"{has:.0%}", percent([share for share, _ in drawn]),
                             percent([wrong for _, wrong in drawn]), f"{broken:.0%}"]  # fmt: skip
            if any(x["threshold"] is not None for x in of):
                beyond[title] = [f"{percent([x['sets'][p][0] for x in of])}, {percent([x['sets'][p][1] for x in of])}"
                                 for p in parts if p != "test"]  # fmt: skip
        sets = [[r for r in rows if r["part"] == p] for rows in every for p in parts if p != "test"]
        refitted[readout] = [f"{x:.3f}" for x in np.mean([refits(of, field, rng) for of in sets], axis=(0, 1))]
    own = {readout: [f"{x:.3f}" for x in np.mean([of[FIELDS[readout]] for of in own], axis=0)] for readout in TRAINED}
    numbers = ["", "ECE before", "after", "Brier score before", "after"]
    heads = ["", "t, each seed", "answered", "halves: have a t", "answered", "error", "broken"]
    names = [Path(p).stem.split(":")[-1] for p in parts if p != "test"]
    text = [f"# Thresholds on the confidence: {arm}", "", *lines(heads, within), "",
            "Share answered and error among these, of each unseen set, at the threshold of the test part:", "",
            *lines(["", *names], beyond), "",
            f"Refitted to {LABELS} questions of an unseen set, on the others, mean of {REFITS} draws of each:", "",
            *lines(numbers, refitted), "",
            "Refitted to Platt's own questions, on the test part:", "", *lines(numbers, own), "",
            f"`python -m experiments.acting {name}`, seeds {', '.join(map(str, table.seeds))}.", ""]  # fmt: skip
    Run(Path("results") / name).write("acting.md", "\n".join(text))


if __name__ == "__main__":
    main(sys.argv[1])

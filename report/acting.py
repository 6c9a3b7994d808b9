"""What to do with the confidences: which readout to take, and from which confidence on to act on an answer."""

import numpy as np

from beyond.readouts import DELTA, FIELDS, RISKS, TRAINED, threshold
from eval import with_missing

COST = {"stated": "trained", "expected": "expected", "sequence": "answer", "samples": "target"}
NOTE = (
    "Of the model's own answers to questions like those of the test set, at most this share is wrong above the "
    f"threshold, with a probability of {1 - DELTA:.0%} over the choice of these questions, for each row alone, and if "
    "fewer are wrong the higher the confidence (Learn then Test, arXiv 2110.01052). Nothing is promised for unseen "
    "sets: their numbers say what happened. Answered and error: of each set, at the threshold of the test set."
)


def build(rows, cost, resamples, seed):
    """The content of report.json. -> {"thresholds": {readout: {error: ...}}, "recommended": sentences}"""
    there = [readout for readout, field in FIELDS.items() if field in rows[0]]
    return {"thresholds": {readout: thresholds(rows, FIELDS[readout]) for readout in there},
            "recommended": [*recommended(rows, there, cost, resamples, seed)]}  # fmt: skip


def thresholds(rows, field):
    """-> {largest error: {"threshold": t or None, "sets": {part: [share answered, error among these or None]}}}"""
    test, found = [r for r in rows if r["part"] == "test"], {}
    for error in RISKS:
        t, sets = threshold([r[field] for r in test], [r["correct"] for r in test], error), {}
        for part in dict.fromkeys(r["part"] for r in rows):
            of = [r for r in rows if r["part"] == part]
            kept = [r for r in of if t is not None and r[field] is not None and r[field] >= t]
            sets[part] = [len(kept) / len(of), 1 - float(np.mean([r["correct"] for r in kept])) if kept else None]
        found[str(error)] = {"threshold": t, "sets": sets}
    return found


def recommended(rows, readouts, cost, resamples, seed):
    """A sentence for the test set, and one for the mean of the unseen sets: the readout with the best Brier score, or
    the cheapest whose paired 95% interval of the difference to it includes 0. Training costs more than tokens."""
    unseen, rng = list(dict.fromkeys(r["part"] for r in rows if r["part"] != "test")), np.random.default_rng(seed)
    for title, parts in (("held-out questions", ["test"]), ("unseen sets", unseen)):
        scores, draws = [], []
        for part in parts:
            of = [r for r in rows if r["part"] == part]
            worst = [with_missing([r[FIELDS[x]] for r in of], [r["correct"] for r in of])[1] for x in readouts]
            errors = np.array([(c - y) ** 2 for c, y in worst])  # (readouts, N)
            scores.append(errors.mean(1))
            draws.append(rng.multinomial(len(of), np.full(len(of), 1 / len(of)), resamples) @ errors.T / len(of))
        if scores:
            score, draw = np.mean(scores, 0), np.mean(draws, 0)  # (readouts,), (resamples, readouts)
            best = int(score.argmin())
            ties = np.flatnonzero(np.quantile(draw - draw[:, [best]], 0.025, axis=0) <= 0)
            tokens = [cost[COST[readout]]["tokens"] for readout in readouts]
            every = zip(readouts, score, tokens, strict=True)
            said = [f"{readout} (Brier score {s:.3f}, {n:.1f} tokens)" for readout, s, n in every]
            first, *others = sorted(ties, key=lambda i: (readouts[i] in TRAINED, tokens[i], score[i]))
            tie = f"a tie with {', '.join(said[i] for i in others)}" if others else "the best"
            yield f"{title}: --readout {said[first]}, {tie}."


def table(report):
    """-> the table of thresholds: (title, note, heads, rows), as in tables.py"""
    rows, parts = {}, list(report["sets"])
    for readout, of in report["thresholds"].items():
        for error, found in of.items():
            cells = ["no threshold reaches it" if found["threshold"] is None else f"{found['threshold']:.3f}"]
            cells += [f"{answered:.0%}, {'n/a' if wrong is None else f'{wrong:.0%}'}" for answered, wrong in
                      (found["sets"][part] for part in parts)]  # fmt: skip
            rows[f"{readout}, at most {float(error):.0%} wrong"] = cells
    heads = ["Readout", "Answer from this confidence on", *(f"{part}: answered, error" for part in parts)]
    return "Answer only when the confidence is at least t", NOTE, heads, rows

"""The report of a run: every method on the same questions, with intervals, costs, and what to make of it.

Rows of numbers in, the content of `report.json` out; tables.py makes it readable. A stated confidence that could not be
parsed is counted as the worst one (100% for a wrong answer, 0% for a right one) in every table; where that happened, a
second row shows the metrics with those questions dropped.
"""

import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version

import numpy as np
import torch

from cost import matmul_flops
from eval import auroc, bootstrap, ece, metrics, spearman, with_missing
from rl import PATIENCE
from tables import METHODS

FEW = 100  # questions
WINDOW = 20  # training steps that must go wrong before it is said


def environment(device="cpu", dtype=torch.float32):
    """What the numbers were made on, and how fast it multiplies matrices."""
    packages = ("torch", "transformers", "numpy", "datasets")
    machine = {"machine": platform.machine(), "cores": cores(), "device": str(device),
               "matmul_gflops": round(matmul_flops(device, dtype) / 1e9, 1)}  # fmt: skip
    return {"python": sys.version.split()[0], **machine} | {name: version(name) for name in packages}


def cores():
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # Linux knows more


def teacher_cost(samples, seconds):
    """Mean generated tokens and seconds a question of the answer alone and of the teacher. -> dict of dicts

    seconds: of each question's answer and samples."""
    answer = np.mean([s["answer_tokens"] for s in samples])
    drawn = np.mean([s["sample_tokens"] for s in samples])
    # answer and samples come from one pass; its time is shared out by tokens
    seconds = np.mean(seconds)
    return {
        "answer": {"tokens": float(answer), "seconds": float(seconds * answer / (answer + drawn))},
        "target": {"tokens": float(answer + drawn), "seconds": float(seconds)},
    }


def build(rows, fit, log, cost, stages, config, environment):
    """Everything that the report says, as plain JSON values.

    rows: a dict for each held-out question with part, family, correct, entropy, truth and one confidence for each of
    METHODS (None where nothing was stated). fit: Platt. log: the metrics of each training step.
    """
    sets = {}
    for part in dict.fromkeys(r["part"] for r in rows):
        sets[part] = _evaluate([r for r in rows if r["part"] == part], config)
    learned = rl_steps(log)
    return {
        "sets": sets,
        "cost": cost,
        "stages": stages,
        "platt": {"a": fit.a, "b": fit.b, "formula": fit.formula(), "fingerprint": fit.fingerprint},
        "training": {"first": learned[0], "last": learned[-1]} if learned else {},
        "warnings": [*(f"Platt scaling: {w}" for w in fit.warnings), *_warnings(sets, log)],
        "config": asdict(config),
        "environment": environment,
    }


def _evaluate(rows, config):
    """One evaluation set."""
    correct, family = (np.array([r[name] for r in rows]) for name in ("correct", "family"))

    def score(confidence, correct, family):
        found = metrics(confidence, correct, family)
        found["interval"] = bootstrap(confidence, correct, family, config.resamples, config.seed)
        return found

    table_rows, malformed = {}, {}
    for name, title in METHODS.items():
        confidence = [r.get(name) for r in rows]
        if name not in rows[0] or name == "truth" and None in confidence:
            continue
        missing = np.array([c is None for c in confidence])
        (dropped, their_correct), (worst, _) = with_missing(confidence, correct)
        table_rows[title] = score(worst, correct, family)
        malformed[title] = float(missing.mean())
        if 0 < missing.sum() < len(rows):
            table_rows[title + ", malformed dropped"] = score(dropped, their_correct, family[~missing])

    result = {"n": len(rows), "accuracy": float(correct.mean()), "malformed": malformed, "methods": table_rows}
    result["agreement"] = agreement(rows)
    if len(set(family.tolist())) > 1:
        result["families"] = {f: _family([r for r in rows if r["family"] == f]) for f in sorted(set(family.tolist()))}
    return result


def agreement(rows):
    """Mean absolute difference and rank correlation between pairs of confidences, where both exist."""
    found, students = {}, [name for name in ("untrained", "trained", "expected") if name in rows[0]]
    pairs = [(one, "target") for one in students] + [(one, "truth") for one in ("target", *students)]
    for one, other in pairs:
        both = np.array([(r[one], r[other]) for r in rows if r[one] is not None and r[other] is not None], dtype=float)
        if len(both) > 1:
            a, b = both.T
            found[f"{METHODS[one]} v {METHODS[other].lower()}"] = {
                "n": len(both), "mean_absolute_difference": float(np.abs(a - b).mean()), "spearman": spearman(a, b)
            }  # fmt: skip
    return found


def _family(rows):
    correct = np.array([r["correct"] for r in rows])
    found = {"n": len(rows), "accuracy": float(correct.mean())}
    for name in [n for n in ("untrained", "trained", "expected", "target") if n in rows[0]]:
        worst = with_missing([r[name] for r in rows], correct)[1][0]
        found[name] = {"auroc": auroc(worst, correct), "ece": ece(worst, correct)}
    return found


def _warnings(sets, log):
    """Plain sentences about what makes some of the numbers mean less than they seem to."""
    found = []
    for name, s in sets.items():
        if s["n"] < FEW:
            found.append(f"{name}: {s['n']} questions are few: look at the intervals, not at the numbers.")
        if s["accuracy"] in (0.0, 1.0):
            every = "right" if s["accuracy"] else "wrong"
            found.append(f"{name}: every answer is {every}: AUROC is not defined and a constant confidence is perfect.")
        for title, share in s["malformed"].items():
            if share == 1:
                found.append(f"{name}: {title}: no confidence was stated at all; its row counts every one as worst.")
            elif share > 0:
                found.append(f"{name}: {title}: {share:.1%} stated no confidence; they are counted as worst.")
            constant = share < 1 and s["methods"][title]["distinct"] == 1
            if constant and title not in (METHODS["base rate"], METHODS["family prior"]):
                found.append(f"{name}: {title}: one confidence for everything; it cannot tell right from wrong.")
    if not log:
        found.append("training: there were no steps, and the adapter changes nothing.")
    return found + [f"training: {sentence}" for sentence in troubles(log)]


def rl_steps(log):
    """The log without the supervised steps before it."""
    return [record for record in log if "reward" in record]


def troubles(log):
    """What went wrong in training, in sentences: in the whole of it, or in any WINDOW of steps in a row."""
    found, learned = {}, rl_steps(log)  # in the order of their discovery
    width = min(len(learned), WINDOW)
    for i in range(len(learned) - width + 1 if learned else 0):
        steps = learned[i : i + width]
        if all(record["distinct"] <= 1 for record in steps):
            found["the policy collapsed: it stated one confidence for everything."] = None
        if all(record["no_signal"] >= 0.95 for record in steps):
            found["hardly any group had rollouts of different rewards, so there was nothing to learn from."] = None
    skipped = sum(record["skipped"] > 0 for record in log)
    if skipped:
        found[f"{skipped} steps had no finite gradient and were skipped."] = None
    if log and log[-1]["skipped"] >= PATIENCE:
        found["it ended early: no gradient was finite any more."] = None
    return list(found)

"""The report of a run: every method on the same questions, with intervals, costs, and what to make of it.

Rows of numbers in, `report.json` and `report.md` out. A stated confidence that could not be parsed is counted as the
worst one (100% for a wrong answer, 0% for a right one) in every table; where that happened, a second row shows the
metrics with those questions dropped.
"""

import html
import os
import platform
import re
import sys
from dataclasses import asdict
from importlib.metadata import version

import numpy as np
import torch

from cost import matmul_flops
from eval import auroc, bootstrap, ece, metrics, spearman, with_missing
from rl import PATIENCE

# field of a row -> name in the tables
METHODS = {
    "untrained": "Stated, untrained",
    "untrained, scaled": "Stated, untrained, Platt",
    "zero-shot": "Stated, zero-shot",
    "zero-shot, scaled": "Stated, zero-shot, Platt",
    "probability": "Sequence probability",
    "probability, scaled": "Sequence probability, Platt",
    "p-true": "P(True)",
    "p-true, scaled": "P(True), Platt",
    "consistency": "Self-consistency",
    "consistency, scaled": "Self-consistency, Platt",
    "clusters, scaled": "Semantic entropy of clusters, Platt",
    "target": "Teacher: samples, entropy, Platt",
    "trained": "Stated, trained",
    "expected": "Expected, trained",
    "base rate": "Base rate",
    "family prior": "Family prior",
    "truth": "Known probability",
}

COLUMNS = {
    "accuracy": "Accuracy",
    "ece": "ECE",
    "ece_mass": "ECE (mass)",
    "brier": "Brier",
    "nll": "NLL",
    "auroc": "AUROC",
    "auroc_within": "AUROC within",
    "ece_within": "ECE within",
    "aurc": "AURC",
}


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
    result["agreement"] = _agreement(rows)
    if len(set(family.tolist())) > 1:
        result["families"] = {f: _family([r for r in rows if r["family"] == f]) for f in sorted(set(family.tolist()))}
    return result


def _agreement(rows):
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


def plain(text):
    """A name from outside, of a file or a family, as text and nothing else: no markup, no end of a line or a cell."""
    text = "".join(c if c.isprintable() else " " for c in html.escape(text, quote=False))
    return re.sub(r"([|`\[\]\\])", r"\\\1", text)


def markdown(report):
    """report.json's content -> report.md"""
    lines = ["# Report", ""]
    for name, s in report["sets"].items():
        size = f"{s['n']} questions, accuracy {s['accuracy']:.3f}. Intervals: 95%, bootstrap."
        lines += [f"## {plain(name)}", "", size, "", table(s["methods"]), "", *_decomposition(s["methods"])]
        if s["agreement"]:
            lines += ["Distillation error: student v teacher. Teacher error: teacher v the known probability.", "",
                      "| Agreement | n | Mean absolute difference | Spearman |", "|---|---:|---:|---:|"]  # fmt: skip
            for pair, a in s["agreement"].items():
                cells = f"{a['n']} | {number(a['mean_absolute_difference'])} | {number(a['spearman'], 2)}"
                lines.append(f"| {pair} | {cells} |")
            lines.append("")
        if "families" in s:
            lines += ["| Family | n | Accuracy | AUROC untrained | AUROC trained | AUROC teacher | ECE trained |",
                      "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
            for family, f in s["families"].items():
                aurocs = " | ".join(number(f[m]["auroc"], 2) for m in ("untrained", "trained", "target"))
                cells = f"{f['n']} | {f['accuracy']:.2f} | {aurocs} | {f['trained']['ece']:.3f}"
                lines.append(f"| {plain(family)} | {cells} |")
            lines.append("")
    if "language_model_error" in report:
        lines += ["The toy language model's own probability of a question's first answer is off by "
                  f"{report['language_model_error']:.3f} on average (mean absolute difference to the known one).", ""]
    lines += ["## Cost per question", "", "| | Generated tokens | Seconds |", "|---|---:|---:|"]
    for name, c in report["cost"].items():
        lines.append(f"| {METHODS.get(name, 'Answer alone')} | {c['tokens']:.1f} | {c['seconds']:.3f} |")
    lines += ["", "## Cost of each stage", "", "| | " + " | ".join(STAGE_COST) + " |"]
    lines.append("|---|" + "---:|" * len(STAGE_COST))
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in stage_costs(report).items()]
    p, c = report["platt"], report["config"]
    versions = {k: v for k, v in report["environment"].items() if k != "matmul_gflops"}
    lines += ["", "## Settings", "", f"Platt scaling: P(correct) = {p['formula']}.",
              f"Grader: {c['grader']}. Model: {plain(c['model'])}. Questions: {plain(c['dataset'])}.",
              f"Seed: {c['seed']}.",
              "Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".", ""]  # fmt: skip
    if report["warnings"]:
        lines += ["## Warnings", "", *(f"- {plain(w)}" for w in report["warnings"]), ""]
    return "\n".join(lines)


def _decomposition(methods):
    """Murphy's decomposition of the Brier score: how far each method's confidences can be trusted, and tell apart."""
    lines = ["Brier score ≈ reliability (low is good) - resolution (high is good) + uncertainty, in ten bins; what is "
             "missing is the spread inside the bins.", "",
             "| | Brier | Reliability | Resolution | Uncertainty |", "|---|---:|---:|---:|---:|"]  # fmt: skip
    for title, m in methods.items():
        cells = " | ".join(f"{m[name]:.3f}" for name in ("brier", "reliability", "resolution", "uncertainty"))
        lines.append(f"| {title} | {cells} |")
    return [*lines, ""]


def table(rows):
    """Markdown table. {method: eval.metrics(...)} -> str; eval.bootstrap(...) goes under the row's key "interval".

    A cell is "0.036 [0.02, 0.05]", without the brackets where no interval is given; nan and absent are "n/a".
    """
    lines = ["| Method | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for method, row in rows.items():
        lines.append(f"| {method} | " + " | ".join(_cell(row, name) for name in COLUMNS) + " |")
    return "\n".join(lines)


def _cell(row, name):
    value, interval = row.get(name), row.get("interval", {}).get(name)
    if value is None or np.isnan(value):
        return "n/a"
    if interval is None or np.isnan(interval).any():
        return f"{value:.3f}"
    return f"{value:.3f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def number(value, digits=3):
    """None and nan, which a metric is where it is not defined, are n/a."""
    return "n/a" if value is None or np.isnan(value) else f"{value:.{digits}f}"


STAGE_COST = ("Seconds", "Tokens read", "GFLOP", "GFLOP/s", "of a matrix product")


def stage_costs(report):
    """-> {stage: cells under STAGE_COST}"""
    found, peak = {}, report["environment"]["matmul_gflops"]
    for name, stage in report["stages"].items():
        speed = stage["flops"] / 1e9 / max(stage["seconds"], 0.01)
        found[name] = (f"{stage['seconds']:.0f}", f"{stage['tokens']:,}", f"{stage['flops'] / 1e9:,.0f}",
                       f"{speed:.1f}", f"{speed / peak:.2f}")  # fmt: skip
    return found


def fill(path, mark, content):
    """Replace what stands between `<!-- mark -->` and `<!-- end -->` in a document, if it is there."""
    block = f"<!-- {mark} -->\n{content}\n<!-- end -->"
    pattern, text = f"<!-- {re.escape(mark)} -->.*?<!-- end -->", path.read_text(encoding="utf-8")
    path.write_text(re.sub(pattern, lambda _: block, text, flags=re.DOTALL), encoding="utf-8")

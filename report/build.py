"""The report of a run: every method on the same questions, with intervals, costs and warnings.

No parseable statement counts as worst, 100% if wrong and 0% if right; a second row shows the metrics without these."""

import os
import platform
from dataclasses import asdict
from importlib.metadata import version

import numpy as np
import torch

from eval import bootstrap, metrics, spearman, with_missing
from infra.files import first
from infra.loop import PATIENCE
from infra.text import TAG
from report import acting, card, figures, page, tables
from report.tables import METHODS

WINDOW = 20  # training steps in a row that must go wrong before there is a warning


def cores():
    """The number of cores that this process may use; only Linux tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def environment(device="cpu"):
    """-> {name: value} of what the numbers were made on"""
    found = {name: version(name) for name in ("torch", "transformers", "numpy", "datasets")}
    device = torch.cuda.get_device_name(device) if str(device).startswith("cuda") else str(device)
    return found | dict(python=platform.python_version(), machine=platform.machine(), cores=cores(), device=device)


def teacher_cost(samples, seconds):
    """Mean generated tokens and seconds per question, of the answer alone and of the teacher. seconds: mean of the
    sample stage, whose one pass draws answer and samples, so that its time is split by tokens."""
    answer = float(np.mean([s["reply_tokens"] for s in samples]))
    both = answer + float(np.mean([s["sample_tokens"] for s in samples]))
    return {"answer": {"tokens": answer, "seconds": seconds * answer / both},
            "target": {"tokens": both, "seconds": seconds}}  # fmt: skip


def write(run, config, rows, samples, fit, log, cost, language_model_error=None, labels=None):
    """Build the report and write it: JSON, markdown, a page, pictures, the model card of the adapter. -> the report"""
    report = build(rows, fit, log, cost, run.stages(), config, run.read("environment.json"))
    report["language_model_error"] = language_model_error  # of the toy model
    report["labels"] = labels  # what report.graded saw
    report["warnings"] += [*no_answers(samples, rows), *(labels["warnings"] if labels else ())]
    run.write("report.json", report)
    run.write("report.md", tables.markdown(report))
    run.write("adapter/README.md", card.adapter(report))
    if first():
        figures.draw([r for r in rows if r["part"] == "test"], fit, rl_steps(log), run.folder)
        pictures = {name: run.path(f"{name}.png").read_bytes() for name in figures.NAMES}
        run.write("report.html", page.render(report, rows, samples, pictures))
    return report


def build(rows, fit, log, cost, stages, config, environment):
    """The content of report.json. rows: a dict per held-out question with part, family, correct, entropy, truth and
    one confidence for each of METHODS, None if none was stated. fit: Platt. log: the metrics of each training step."""
    sets, warnings = {}, [f"Platt scaling: {warning}" for warning in fit.warnings]
    for part in dict.fromkeys(r["part"] for r in rows):
        sets[part] = evaluate([r for r in rows if r["part"] == part], config)
        warnings += [f"{part}: {warning}" for warning in _doubts(sets[part])]
    warnings += [f"training: {trouble}" for trouble in troubles(log)]
    agree = float(np.mean([r["correct"] == r["exact"] for r in rows]))  # of the grader with exact match
    platt = {"a": fit.a, "b": fit.b, "formula": fit.formula()}
    return {"sets": sets, "cost": cost, "stages": stages, "platt": platt, "agree": agree, "warnings": warnings,
            **acting.build(rows, cost, config.resamples, config.seed), "config": asdict(config),
            "environment": environment}  # fmt: skip


def evaluate(rows, config):
    """One evaluation set. -> its part of the report"""
    correct, family = (np.array([r[name] for r in rows]) for name in ("correct", "family"))
    methods, malformed = {}, {}  # malformed: the share of the rows in which nothing was stated
    for name, title in METHODS.items():
        confidence = [r.get(name) for r in rows]
        stated = np.array([c is not None for c in confidence])
        if name not in rows[0] or name == "truth" and not stated.all():
            continue
        dropped, worst = with_missing(confidence, correct)
        malformed[title] = float(1 - stated.mean())
        target = np.array([r["target"] for r in rows])
        methods[title] = _scored(*worst, family, config) | {"spearman": spearman(worst[0], target)}
        if 0 < stated.sum() < len(rows):
            methods[f"{title}, malformed dropped"] = _scored(*dropped, family[stated], config)
    return {"n": len(rows), "accuracy": float(correct.mean()), "malformed": malformed, "methods": methods,
            "agreement": agreement(rows), "families": families(rows)}  # fmt: skip


def _scored(confidence, correct, family, config):
    intervals = bootstrap(confidence, correct, family, config.resamples, config.seed)
    return metrics(confidence, correct, family) | {"interval": intervals}


def agreement(rows):
    """Mean absolute difference and rank correlation of pairs of confidences, over the rows that have both."""
    found, there = {}, [name for name in ("target", "untrained", "trained", "expected") if name in rows[0]]
    for one, other in [(name, "target") for name in there[1:]] + [(name, "truth") for name in there]:
        both = [(r[one], r[other]) for r in rows if r[one] is not None and r[other] is not None]
        if len(both) > 1:
            a, b = np.array(both, dtype=float).T
            difference = float(np.abs(a - b).mean())
            numbers = {"n": len(both), "mean_absolute_difference": difference, "spearman": spearman(a, b)}
            found[f"{METHODS[one]} v {METHODS[other].lower()}"] = numbers
    return found


def families(rows):
    """Of the trained model's statements, inside each family of questions. -> {family: metrics}"""
    found = {}
    for family in sorted({r["family"] for r in rows}):
        inside = [r for r in rows if r["family"] == family]
        _, worst = with_missing([r["trained"] for r in inside], [r["correct"] for r in inside])
        found[family] = metrics(*worst)
    return found


def _doubts(s):
    """-> sentences about what limits the numbers of an evaluation set"""
    if s["n"] < 100:
        yield f"{s['n']} questions are few: read the intervals, not the numbers."
    if s["accuracy"] in (0, 1):
        yield f"every answer is {'right' if s['accuracy'] else 'wrong'}: AUROC is undefined."
    for title, share in s["malformed"].items():
        if share > 0:
            yield f"{title}: {share:.1%} of the answers have no stated confidence; they count as worst."
        elif s["methods"][title]["distinct"] == 1 and title not in (METHODS["base rate"], METHODS["family prior"]):
            yield f"{title}: one confidence for every answer, which cannot tell right from wrong."


def no_answers(samples, rows=()):
    """-> sentences about answers, samples, thoughts and reflections that are none, where more than one in ten is"""
    every = {"answers": [s["answer"] for s in samples], "samples": [text for s in samples for text in s["samples"]]}
    every["thoughts"] = [s["thought"] for s in samples] if any(s["thought"] for s in samples) else []
    every["trained reflections"] = [r["reflection, trained"] for r in rows if "reflection, trained" in r]
    for name, texts in every.items():
        hint = ": try another --prompt." if name in ("answers", "samples") else "."
        for what, is_so in (("are empty", lambda text: not text), ("begin with a thought unasked", TAG.match)):
            share = np.mean([bool(is_so(text)) for text in texts or ["."]])
            if share > 0.1:
                yield f"{share:.0%} of the {name} {what}{hint}"


def rl_steps(log):
    """The log without the supervised steps before RL."""
    return [record for record in log if "reward" in record]


def troubles(log):
    """-> sentences about what went wrong in training: in all steps, or in any WINDOW of them in a row"""
    if not log:
        return ["there were no steps, so the adapter changes nothing."]
    found, steps, skipped = [], rl_steps(log), sum(record["skipped"] > 0 for record in log)
    if _lasting(record["distinct"] <= 1 for record in steps):
        found.append("the policy collapsed: it stated one confidence for everything.")
    if _lasting(record["no_signal"] >= 0.95 for record in steps):
        found.append("hardly any group had rollouts of different rewards, so there was little to learn from.")
    if skipped:
        found.append(f"{skipped} steps had no finite gradient and were skipped.")
    if log[-1]["skipped"] >= PATIENCE:
        found.append("it ended early: no gradient was finite any more.")
    return found


def _lasting(flags):
    marks = "".join("x" if flag else "." for flag in flags)
    return "x" * min(max(len(marks), 1), WINDOW) in marks

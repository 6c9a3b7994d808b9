"""The report of a run: every method on the same questions, with intervals, costs and warnings.

A statement that could not be parsed counts as worst: 100% for a wrong answer, 0% for a right one. If there are any, a
second row shows the metrics without those questions."""

from dataclasses import asdict

import numpy as np

from eval import auroc, bootstrap, ece, metrics, spearman, with_missing
from infra.files import first
from report import card, figures, page, rl_steps, tables, troubles
from report.tables import METHODS


def teacher_cost(samples, seconds):
    """Mean generated tokens and seconds per question, of the answer alone and of the teacher. seconds: mean of the
    sample stage, whose one pass draws answer and samples, so that its time is split by tokens."""
    answer = float(np.mean([s["answer_tokens"] for s in samples]))
    both = answer + float(np.mean([s["sample_tokens"] for s in samples]))
    target = {"tokens": both, "seconds": seconds}
    return {"answer": {"tokens": answer, "seconds": seconds * answer / both}, "target": target}


def write(run, config, rows, samples, fit, log, cost, language_model_error=None):
    """Build the report and write it: JSON, markdown, a page, pictures, the model card of the adapter. -> the report"""
    report = build(rows, fit, log, cost, run.stages(), config, run.read("environment.json"))
    if config.model == "toy":
        report["language_model_error"] = language_model_error
    run.write("report.json", report)
    run.write("report.md", tables.markdown(report))
    run.write("adapter/README.md", card.adapter(report))
    if first():
        figures.draw([r for r in rows if r["part"] == "test"], fit, rl_steps(log), run.folder)
        pictures = {name: run.path(name).read_bytes() for name in page.FIGURES}
        run.write("report.html", page.render(report, rows, samples, pictures))
    return report


def build(rows, fit, log, cost, stages, config, environment):
    """The content of report.json. rows: a dict per held-out question with part, family, correct, entropy, truth and
    one confidence for each of METHODS, None if none was stated. fit: Platt. log: the metrics of each training step."""
    sets, warnings = {}, [f"Platt scaling: {warning}" for warning in fit.warnings]
    for part in dict.fromkeys(r["part"] for r in rows):
        sets[part] = evaluate([r for r in rows if r["part"] == part], config)
        warnings += [f"{part}: {warning}" for warning in _doubts(sets[part])]
    trained = troubles(log) if log else ["there were no steps, so the adapter changes nothing."]
    warnings += [f"training: {trouble}" for trouble in trained]
    platt = {"a": fit.a, "b": fit.b, "formula": fit.formula()}
    return {"sets": sets, "cost": cost, "stages": stages, "platt": platt, "warnings": warnings,
            "config": asdict(config), "environment": environment}  # fmt: skip


def evaluate(rows, config):
    """One evaluation set. -> its part of the report"""
    correct, family = (np.array([r[name] for r in rows]) for name in ("correct", "family"))
    methods, malformed, families = {}, {}, {name: family == name for name in sorted(set(family.tolist()))}
    table = {
        name: {"n": int(inside.sum()), "accuracy": float(correct[inside].mean())} for name, inside in families.items()
    }
    for name, title in METHODS.items():
        confidence = [r.get(name) for r in rows]
        if name not in rows[0] or name == "truth" and None in confidence:
            continue
        stated = np.array([c is not None for c in confidence])
        dropped, worst = with_missing(confidence, correct)
        malformed[title] = float(1 - stated.mean())
        methods[title] = _scored(*worst, family, config)
        if 0 < stated.sum() < len(rows):
            methods[f"{title}, malformed dropped"] = _scored(*dropped, family[stated], config)
        if name in ("untrained", "target", "trained"):
            for which, inside in families.items():
                table[which][f"AUROC, {name}"] = auroc(worst[0][inside], correct[inside])
                table[which][f"ECE, {name}"] = ece(worst[0][inside], correct[inside])
    return {"n": len(rows), "accuracy": float(correct.mean()), "malformed": malformed, "methods": methods,
            "agreement": agreement(rows), "families": table if len(table) > 1 else {}}  # fmt: skip


def _scored(confidence, correct, family, config):
    intervals = bootstrap(confidence, correct, family, config.resamples, config.seed)
    return metrics(confidence, correct, family) | {"interval": intervals}


def agreement(rows):
    """Mean absolute difference and rank correlation of pairs of confidences, over the rows that have both."""
    found, students = {}, [name for name in ("untrained", "trained", "expected") if name in rows[0]]
    for one, other in [(s, "target") for s in students] + [(s, "truth") for s in ("target", *students)]:
        both = [(r[one], r[other]) for r in rows if r[one] is not None and r[other] is not None]
        if len(both) > 1:
            a, b = np.array(both, dtype=float).T
            numbers = {
                "n": len(both),
                "mean_absolute_difference": float(np.abs(a - b).mean()),
                "spearman": spearman(a, b),
            }
            found[f"{METHODS[one]} v {METHODS[other].lower()}"] = numbers
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

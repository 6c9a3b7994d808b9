"""The content of report.json as tables: (title, note, heads, {name of the row: cells}). page.py shows them as HTML."""

import html
import math
import re

from report import acting

METHODS = {  # field of a row -> its name in the tables
    "alone": "Stated, untrained, without reflection",
    "untrained": "Stated, untrained", "untrained, scaled": "Stated, untrained, Platt",
    "zero-shot": "Stated, zero-shot", "zero-shot, scaled": "Stated, zero-shot, Platt",
    "probability": "Sequence probability", "probability, scaled": "Sequence probability, Platt",
    "p-true": "P(True)", "p-true, scaled": "P(True), Platt",
    "consistency": "Self-consistency", "consistency, scaled": "Self-consistency, Platt",
    "clusters, scaled": "Semantic entropy of clusters, Platt",
    "samples, scaled": "Entropy and similarity, Platt",
    "all, scaled": "Entropy, similarity and sequence probability, Platt", "target": "Teacher: samples, entropy, Platt",
    "trained": "Stated, trained", "expected": "Expected, trained",
    "base rate": "Base rate", "family prior": "Family prior", "truth": "Known probability",
}  # fmt: skip
COLUMNS = {"accuracy": "Accuracy", "ece": "ECE", "ece_mass": "ECE (mass)", "brier": "Brier", "nll": "NLL",
           "auroc": "AUROC", "spearman": "Spearman", "auroc_within": "AUROC within", "ece_within": "ECE within",
           "aurc": "AURC", "reliability": "Reliability", "resolution": "Resolution"}  # fmt: skip
FEW_METHODS = ("alone", "untrained", "trained", "expected", "target", "probability, scaled", "consistency, scaled",
               "base rate", "family prior", "truth")  # fmt: skip
FEW_COLUMNS = ("ece", "brier", "auroc", "spearman")  # the paper's, and the Brier score
LEGEND = (
    "Brackets: 95% bootstrap intervals. ECE: mean gap between confidence and accuracy, in ten bins of equal width or "
    "mass; biased upwards, and more so in resamples. Brier: mean squared error, about reliability (lower is better) - "
    "resolution (higher is better) + accuracy (1 - accuracy). NLL: log loss. AUROC: probability that a right answer "
    "has a higher confidence than a wrong one. Spearman: rank correlation with the teacher. Within: inside families. "
    "AURC: error rate at each coverage, averaged. The rows of the paper's table: Base, untrained without reflection; "
    "Base + CoT, untrained; Entropy, trained, and Brier, trained with --reward brier."
)


def number(value, digits=3):
    """0.0361 -> "0.036", 12.34 -> "12.3", a count 1234 -> "1,234"; None and nan, an undefined metric, -> "n/a"."""
    if value is None or math.isnan(value):
        return "n/a"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits if abs(value) < 10 else 1}f}"


def cells(rows, columns):
    """{name: numbers} -> {name: cells such as "0.036 [0.02, 0.05]"}, without brackets if there is no interval."""
    found = {title: [] for title in rows}
    for title, row in rows.items():
        for column in columns:
            value, ends = number(row.get(column)), row.get("interval", {}).get(column) or ()
            low_high = ", ".join(number(end, 2) for end in ends)
            found[title].append(f"{value} [{low_high}]" if ends and "n/a" not in value + low_high else value)
    return found


def of_set(s):
    """-> the tables of one evaluation set, one by one."""
    yield f"All methods, {s['n']:,} questions", LEGEND, ["Method", *COLUMNS.values()], cells(s["methods"], COLUMNS)
    if s["agreement"]:
        note = "Student v teacher: distillation error. Teacher v known probability: teacher error."
        rows = cells(s["agreement"], ("n", "mean_absolute_difference", "spearman"))
        yield "Agreement", note, ["Pair", "n", "Mean absolute difference", "Spearman"], rows
    if len(s["families"]) > 1:
        rows = cells(s["families"], ("n", "accuracy", "ece", "brier", "auroc"))
        yield "Families, stated by the trained model", "", ["Family", "n", "Accuracy", "ECE", "Brier", "AUROC"], rows


def costs(report):
    """-> the table of what a question costs, and the table of what a stage costs."""
    questions = {METHODS.get(name, "Answer alone"): cost for name, cost in report["cost"].items()}
    yield "For each question", "", ["", "Generated tokens", "Seconds"], cells(questions, ("tokens", "seconds"))
    note = "Without eval, which writes this table. Seconds of all calls and processes (sample), or of the last call."
    rows = cells(report["stages"], ("seconds", "tokens"))
    yield "For each stage", note, ["Stage", "Seconds", "Generated tokens"], rows


def settings(report):
    """-> {name: value} of how the numbers were made."""
    found = {"Platt scaling": f"P(correct) = {report['platt']['formula']}"}
    if report["config"]["grader"] != "exact":
        found["grader and exact match agree"] = f"{report['agree']:.1%} of the held-out answers"
    if report.get("language_model_error") is not None:
        found["mean error of the toy model's answer probabilities"] = number(report["language_model_error"])
    pilot = report["stages"].get("sample", {}).get("pilot")
    found |= {"pilot": pilot["said"]} if pilot else {}
    return found | report["config"] | report["environment"]


def labels(report):
    """-> the tables of what was graded, none for a report without"""
    seen = report.get("labels")
    if seen:
        note = f"{seen['n']:,} labelled answers are right by: {seen['said']}."
        rows = {e["question"]: [e["answer"], e["accepted"], e["label"]] for e in seen["examples"]}
        yield "Graded answers", note, ["Question", "Answer", "Accepted", "Label"], rows


def lines(heads, rows):
    """-> the lines of a table in markdown."""
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * (len(heads) - 1)
    for title, row in rows.items():
        yield f"| {plain(title)} | " + " | ".join(row) + " |"


def markdown(report):
    """-> report.md"""
    out = ["# Report", ""]
    sections = [(name, of_set(s)) for name, s in report["sets"].items()]
    examples = [(*x, {q: map(plain, row) for q, row in rows.items()}) for *x, rows in labels(report)]
    sections = [("Labels", examples)] * bool(examples) + sections
    for heading, tables in [*sections, ("Cost", costs(report)), ("What to use", [acting.table(report)])]:
        out += [f"## {plain(heading)}", ""]
        for title, note, heads, rows in tables:
            out += [f"### {title}", "", *lines(heads, rows), "", *([note, ""] if note else [])]
    out += ["## Settings", "", *(f"- {name}: {plain(value)}" for name, value in settings(report).items()), ""]
    out += ["## Warnings", "", *(f"- {plain(warning)}" for warning in report["warnings"] or ["none"]), ""]
    out += ["## Recommended", "", *(f"- {sentence}" for sentence in report["recommended"]), ""]
    return "\n".join(out)


def summary(report):
    """The main rows and columns, a table in markdown for each evaluation set."""
    out, heads = [], ["", *(COLUMNS[column] for column in FEW_COLUMNS), "Tokens"]
    for name, s in report["sets"].items():
        shown = [method for method in FEW_METHODS if METHODS[method] in s["methods"]]
        rows = {METHODS[m]: s["methods"][METHODS[m]] | report["cost"].get(m, {}) for m in shown}
        out += [f"**{plain(name)}** ({s['n']} questions, accuracy {s['accuracy']:.2f})", ""]
        out += [*lines(heads, cells(rows, [*FEW_COLUMNS, "tokens"])), ""]
    return "\n".join([*out, "ECE, Brier: lower is better. AUROC: higher is better, 0.5 is guessing. Brackets: 95% "
                      "bootstrap intervals. Tokens: generated for an answer and its confidence.",
                      *(f"Recommended for {sentence}" for sentence in report.get("recommended", ()))])  # fmt: skip


def plain(text):
    """A name from outside, of a file or a family, as text only: no markup, no end of a line or a cell."""
    text = "".join(c if c.isprintable() else " " for c in html.escape(str(text), quote=False))
    return re.sub(r"([|`\[\]\\])", r"\\\1", text)

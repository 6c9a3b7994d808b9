"""A report as tables: `report.md`, what a run says at its end, and what the README shows of it.

report.json's content in, markdown out; page.py makes HTML of the same tables.
"""

import html
import math
import re

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

LEGEND = (
    "In brackets: 95% bootstrap intervals. ECE: mean distance of confidence and accuracy in ten bins of equal width, "
    "or of equal mass; Brier: mean square distance; NLL: log loss; AUROC: chance that a right answer has the higher "
    "confidence; within: inside the families of questions alone; AURC: mean error rate when the least confident are "
    "left out. ECE is biased upwards, that of a resample twice, so that an interval may lie above its number."
)
# what the end of a run and the README show of it
FEW_METHODS = ("untrained", "probability, scaled", "target", "trained", "expected", "base rate", "family prior",
               "truth")  # fmt: skip
FEW_COLUMNS = ("ece", "brier", "auroc", "auroc_within")
MURPHY = ("brier", "reliability", "resolution", "uncertainty")
STAGE_COST = ("Seconds", "Tokens read", "GFLOP", "GFLOP/s", "of a matrix product")


def number(value, digits=3):
    """None and nan, which a metric is where it is not defined, are n/a."""
    return "n/a" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def cell(row, name):
    """A metric -> "0.036 [0.02, 0.05]", without brackets where there is no interval."""
    value, interval = number(row.get(name)), row.get("interval", {}).get(name) or (None, None)
    if "n/a" in (value, *map(number, interval)):
        return value
    return f"{value} [{interval[0]:.2f}, {interval[1]:.2f}]"


def of_set(s):
    """All tables of an evaluation set. -> (title, what to know, heads, {name of the row: cells}) of each"""
    methods = s["methods"]
    rows = {title: [cell(row, column) for column in COLUMNS] for title, row in methods.items()}
    yield "All methods", LEGEND, ["Method", *COLUMNS.values()], rows
    yield ("Murphy's decomposition", "Brier score ≈ reliability (low is good) - resolution (high is good) + "
           "uncertainty, in ten bins; what is missing is the spread inside the bins.",
           ["Method", *map(str.capitalize, MURPHY)],
           {title: [number(row[part]) for part in MURPHY] for title, row in methods.items()})  # fmt: skip
    if s["agreement"]:
        yield ("Agreement", "Distillation error: student v teacher. Teacher error: teacher v the known probability.",
               ["Pair", "n", "Mean absolute difference", "Spearman"],
               {pair: [f"{a['n']:,}", number(a["mean_absolute_difference"]), number(a["spearman"], 2)]
                for pair, a in s["agreement"].items()})  # fmt: skip
    if "families" in s:
        shown = {"untrained": "untrained", "trained": "trained", "target": "teacher"}
        yield ("Families of questions", "",
               ["Family", "n", "Accuracy", *(f"{m} {title}" for m in ("AUROC", "ECE") for title in shown.values())],
               {family: [f"{f['n']:,}", number(f["accuracy"], 2),
                         *(number(f[method][m]) for m in ("auroc", "ece") for method in shown)]
                for family, f in s["families"].items()})  # fmt: skip


def costs(report):
    """The same of what a question and a stage cost."""
    yield ("For each question", "", ["", "Generated tokens", "Seconds"],
           {METHODS.get(name, "Answer alone"): [number(c["tokens"], 1), number(c["seconds"])]
            for name, c in report["cost"].items()})  # fmt: skip
    found, peak = {}, report["environment"]["matmul_gflops"]
    for name, stage in report["stages"].items():
        name = f"{name}, its last call" if stage.get("resumed") else name
        speed = stage["flops"] / 1e9 / max(stage["seconds"], 0.01)
        found[name] = [f"{stage['seconds']:.0f}", f"{stage['tokens']:,}", f"{stage['flops'] / 1e9:,.0f}",
                       f"{speed:.1f}", f"{speed / peak:.2f}"]  # fmt: skip
    yield "For each stage", "Without the last one, which writes this.", ["Stage", *STAGE_COST], found


def lines(heads, rows):
    """Markdown of a table."""
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * (len(heads) - 1)
    for title, cells in rows.items():
        yield f"| {plain(title)} | " + " | ".join(cells) + " |"


def markdown(report):
    """report.json's content -> report.md"""
    out = ["# Report", ""]
    for name, s in report["sets"].items():
        out += [f"## {plain(name)}", "", f"{s['n']} questions, accuracy {s['accuracy']:.3f}.", ""]
        for title, note, *table in of_set(s):
            out += [f"### {title}", "", *lines(*table), "", *([note, ""] if note else [])]
    if "language_model_error" in report:
        out += ["The toy language model's own probability of a question's first answer is off by "
                f"{report['language_model_error']:.3f} on average (mean absolute difference to the known one).", ""]
    out += ["## Cost", ""]
    for title, note, *table in costs(report):
        out += [f"### {title}", "", *lines(*table), "", *([note, ""] if note else [])]
    p, c = report["platt"], report["config"]
    versions = {k: v for k, v in report["environment"].items() if k != "matmul_gflops"}
    out += ["## Settings", "", f"Platt scaling: P(correct) = {p['formula']}.",
            f"Grader: {c['grader']}. Model: {plain(c['model'])}. Questions: {plain(c['dataset'])}.",
            f"Seed: {c['seed']}.", "Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".",
            ""]  # fmt: skip
    if report["warnings"]:
        out += ["## Warnings", "", *(f"- {plain(w)}" for w in report["warnings"]), ""]
    return "\n".join(out)


def summary(report, beside=()):
    """The main columns of every set, as markdown: held-out questions in full, unseen sets short.

    beside: (title, another report) pairs of runs on the same questions, whose trained row is shown too.
    """
    test, *unseen = report["sets"].items()
    rows = {}
    for name in FEW_METHODS:
        rows |= _few(report, test[0], name, METHODS[name])
        for title, other in beside if name == "trained" else ():
            rows |= _few(other, test[0], name, f"{METHODS[name]}, {title}")
    heads = [*(COLUMNS[c].replace("within", "within families") for c in FEW_COLUMNS), "tokens"]
    out = [f"**{plain(test[0])}** ({test[1]['n']} questions, accuracy {test[1]['accuracy']:.2f})", ""]
    out += lines(["", *heads], rows)
    if unseen:
        shown = {"untrained": "untrained", "trained": "trained", "target": "teacher", "base rate": "base rate"}
        columns = [("ece", m) for m in shown] + [("auroc", m) for m in ("untrained", "trained", "target")]
        heads = ["n", "accuracy", *(f"{COLUMNS[c]}, {shown[m]}" for c, m in columns)]
        rows = {
            part: [str(s["n"]), f"{s['accuracy']:.2f}", *(number(s["methods"][METHODS[m]][c]) for c, m in columns)]
            for part, s in unseen
        }
        out += ["", *lines(["never trained on", *heads], rows)]
    out += ["", "ECE, Brier: lower is better; AUROC: higher is better, 0.5 is guessing. In brackets: 95% bootstrap "
            "intervals. tokens: generated for an answer and its confidence."]  # fmt: skip
    return "\n".join(out)


def _few(report, part, name, title):
    """A method's row of `summary`; where some statements were malformed, a second one without them."""
    methods, tokens, found = report["sets"][part]["methods"], report["cost"].get(name, {}).get("tokens"), {}
    for suffix in ("", ", malformed dropped"):
        row = methods.get(METHODS[name] + suffix)
        if row:
            cost = "" if tokens is None or suffix else f"{tokens:.1f}"
            found[title + suffix] = [*(cell(row, column) for column in FEW_COLUMNS), cost]
    return found


def plain(text):
    """A name from outside, of a file or a family, as text and nothing else: no markup, no end of a line or a cell."""
    text = "".join(c if c.isprintable() else " " for c in html.escape(text, quote=False))
    return re.sub(r"([|`\[\]\\])", r"\\\1", text)


def fill(path, mark, content):
    """Replace what stands between `<!-- mark -->` and `<!-- end -->` in a document, if it is there."""
    block = f"<!-- {mark} -->\n{content}\n<!-- end -->"
    pattern, text = f"<!-- {re.escape(mark)} -->.*?<!-- end -->", path.read_text(encoding="utf-8")
    path.write_text(re.sub(pattern, lambda _: block, text, flags=re.DOTALL), encoding="utf-8")

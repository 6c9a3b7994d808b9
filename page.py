"""The report as a page: one file that is read without a network, with the tables, the pictures and every question.

`report.json`'s content, the predictions, the samples and the pictures in, `report.html` out. The tables are written
here; page.html has the look and the script, which searches, filters and sorts the held-out questions.

Whatever comes from outside (questions, answers, names of files and families) is text: in a table it is escaped, in the
data of the script it has no character that could end it, and the script only ever sets it as text. If all of that
failed, the page's own policy still runs no other script and fetches nothing.

Left out: the questions of the training parts, which no table is about; links to a state of the filters; pictures drawn
for a dark background, which stand on a white card instead.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections import Counter
from pathlib import Path

from tables import COLUMNS, METHODS, costs, number, of_set

TEMPLATE = Path(__file__).with_name("page.html")
FIGURES = {  # name of the file -> heading, what is to be seen in it
    "reliability.png": ("Reliability", "Accuracy against stated confidence, untrained and trained, and the teacher's. "
                        "The test set in ten bins, with 95% intervals."),
    "risk_coverage.png": ("Risk and coverage", "Error rate among the most confident answers, against the share of "
                          "answers kept."),
    "entropy.png": ("What the entropy knew", "Accuracy against the entropy of the samples, and the Platt fit."),
    "training.png": ("Training", "The course of reinforcement learning, step by step."),
}  # fmt: skip
ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}  # so that no text in a script can end it


def render(report, rows, samples, pictures):
    """-> the page, as text.

    report: report.build(...), or what report.json has of it. rows: the predictions, samples: what was sampled for the
    same questions in the same order. pictures: {name of the file: PNG}.
    """
    template = TEMPLATE.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    parts = {
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "model": text(report["config"]["model"]),
        "dataset": text(report["config"]["dataset"]),
        "headline": _headline(report),
        "warnings": _warnings(report["warnings"]),
        "results": "\n".join(_set(i, name, s) for i, (name, s) in enumerate(report["sets"].items())),
        "figures": "\n".join(_figure(*FIGURES[name], png) for name, png in pictures.items()),
        "cost": _cost(report),
        "settings": _settings(report),
        "sets": "".join(f'<option value="{text(name)}">{text(name)}</option>' for name in report["sets"]),
        "data": data([_question(row, s) for row, s in zip(rows, samples, strict=True)]),
    }
    # in one pass, so that nothing in a part is taken for the place of another
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def text(value):
    """Anything as text of HTML, in an attribute too: no markup, no control character."""
    return html.escape("".join(c if c.isprintable() else " " for c in str(value)))


def data(value):
    """JSON that may stand in a <script>: in ASCII, without what could end it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(ESCAPED)


def _question(row, sample):
    """What the script knows of a held-out question."""
    found = {"set": row["part"], "id": row["id"], "family": row["family"], "question": sample["question"]}
    found |= {"answer": sample["answer"], "right": bool(row["correct"]), "accepted": sample["answers"]}
    found["samples"] = Counter(sample["samples"]).most_common()
    names = {"entropy": "entropy", "target": "target", "before": "untrained", "after": "trained"}
    if "expected" in row:
        names["expected"] = "expected"
    values = {ours: row[theirs] for ours, theirs in names.items()}
    return found | {k: None if v is None or not math.isfinite(v) else v for k, v in values.items()}


def _headline(report):
    """What training changed, on the first evaluation set."""
    name, s = next(iter(report["sets"].items()))
    before, after = (s["methods"][METHODS[way]] for way in ("untrained", "trained"))
    tiles = [
        f'<div><dt>{COLUMNS[key]}, <span class="quiet">{better} is better</span></dt><dd>{number(before[key])} '
        f'<span aria-hidden="true">→</span><span class="unseen">to</span> <b>{number(after[key])}</b></dd></div>'
        for key, better in (("ece", "lower"), ("brier", "lower"), ("auroc", "higher"))
    ]
    return (f"<p>What training made of the stated confidence, on {s['n']:,} held-out questions ({text(name)}; accuracy "
            f'{number(s["accuracy"])}):</p>\n<dl class="tiles">{"".join(tiles)}</dl>')  # fmt: skip


def _warnings(warnings):
    if not warnings:
        return ""
    items = "".join(f"<li>{text(w)}</li>" for w in warnings)
    heading = '<section class="warnings" aria-labelledby="warnings"><h2 id="warnings">Warnings</h2>'
    return f"{heading}<ul>{items}</ul></section>"


def _set(i, name, s):
    """The tables of one evaluation set."""
    first, *more = (table(f"{name}: {title}", *x) for title, *x in of_set(s))
    heading = f"<p>{s['n']:,} questions, accuracy {number(s['accuracy'])}.</p>"
    return "\n".join([f'<h3 id="set-{i}">{text(name)}</h3>', heading, first,
                      "<details><summary>More about this set</summary>", *more, "</details>"])  # fmt: skip


def table(caption, note, heads, rows):
    """{name of the row: cells} -> a table that scrolls inside its own box, by keyboard too; below it what to know."""
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    body = "\n".join(f'<tr><th scope="row">{text(name)}</th>' + "".join(map(_cell, cells)) + "</tr>"
                     for name, cells in rows.items())  # fmt: skip
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table>'
            f"<caption>{text(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
            "</table></div>" + (f'<p class="quiet">{text(note)}</p>' if note else ""))  # fmt: skip


def _cell(content):
    value, bracket, interval = text(content).partition(" [")
    return f'<td>{value} <span class="interval">[{interval}</span></td>' if bracket else f"<td>{value}</td>"


def _figure(title, caption, png):
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return (f'<figure><h3>{title}</h3><img src="{source}" alt="{title}: {caption}">'
            f"<figcaption>{caption}</figcaption></figure>")  # fmt: skip


def _cost(report):
    return "".join(table(*x) for x in costs(report))


def _settings(report):
    found = [f"<p>Platt scaling: P(correct) = {text(report['platt']['formula'])}.</p>"]
    if "language_model_error" in report:
        found.append("<p>The toy language model's own probability of a question's first answer is off by "
                     f"{number(report['language_model_error'])} on average.</p>")  # fmt: skip
    for caption, values in (("Settings", report["config"]), ("Environment", report["environment"])):
        rows = {name: [str(value)] for name, value in values.items()}
        found.append(f"<details><summary>{caption}</summary>{table(caption, '', ['Name', 'Value'], rows)}</details>")
    return "\n".join(found)

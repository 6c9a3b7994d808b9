"""The report as one HTML file that needs no network: the tables, the pictures and every held-out question.

The tables are written here; page.html has the look, and the script that searches, filters and sorts the questions.
Text from outside (questions, answers, names of files and families) is never markup: tables escape it, the script's
data have no character that could end the script, and the script only sets it as text. The page's own policy also
blocks every other script and every request.
"""

import base64
import hashlib
import html
import json
import re
from collections import Counter
from pathlib import Path

from infra.files import strict
from report.tables import COLUMNS, METHODS, costs, number, of_set, settings

TEMPLATE = Path(__file__).with_name("page.html")
FIGURES = {  # name of the file -> heading, caption
    "reliability.png": ("Reliability", "Accuracy against stated confidence, before and after training, and against "
                        "the teacher's. The test set in ten bins, with 95% intervals."),
    "risk_coverage.png": ("Risk and coverage", "Error rate of the most confident answers, against the share kept."),
    "entropy.png": ("What the entropy knew", "Accuracy against the entropy of the samples, and the Platt fit."),
    "training.png": ("Training", "The course of reinforcement learning, step by step."),
}  # fmt: skip
ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}  # so that no text in a script can end it


def render(report, rows, samples, pictures):
    """-> the page. report: what build returns. rows: the predictions, samples: of the same questions in the same order.
    pictures: {name of the file: PNG}."""
    template = TEMPLATE.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    parts = {
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "model": text(report["config"]["model"]),
        "dataset": text(report["config"]["dataset"]),
        "headline": _headline(report),
        "warnings": "".join(f"<li>{text(warning)}</li>" for warning in report["warnings"] or ["none"]),
        "results": "\n".join(_set(i, name, s) for i, (name, s) in enumerate(report["sets"].items())),
        "figures": "\n".join(_figure(*FIGURES[name], png) for name, png in pictures.items()),
        "cost": "".join(table(*x) for x in costs(report)),
        "settings": table("Settings", "", ["Name", "Value"], {k: [str(v)] for k, v in settings(report).items()}),
        "sets": "".join(f'<option value="{text(name)}">{text(name)}</option>' for name in report["sets"]),
        "data": data([_question(row, sample) for row, sample in zip(rows, samples, strict=True)]),
    }
    # in one pass, so that text in a part is never taken for a placeholder
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def text(value):
    """Anything as text of HTML, also in an attribute: no markup, no control character."""
    return html.escape("".join(c if c.isprintable() else " " for c in str(value)))


def data(value):
    """JSON for a <script>, in ASCII, without a character that could end the script."""
    return json.dumps(strict(value), allow_nan=False, separators=(",", ":")).translate(ESCAPED)


def _question(row, sample):
    """A held-out question, as the script reads it."""
    found = {"set": row["part"], "before": row["untrained"], "after": row["trained"], "right": bool(row["correct"])}
    found |= {name: row[name] for name in ("id", "family", "entropy", "target", "expected") if name in row}
    found |= {"question": sample["question"], "answer": sample["answer"], "accepted": sample["answers"]}
    return found | {"samples": Counter(sample["samples"]).most_common()}


def _headline(report):
    """What training changed, on the first evaluation set."""
    name, s = next(iter(report["sets"].items()))
    before, after = (s["methods"][METHODS[way]] for way in ("untrained", "trained"))
    tiles = ""
    for key, better in (("ece", "lower"), ("brier", "lower"), ("auroc", "higher")):
        tiles += (
            f'<div><dt>{COLUMNS[key]}, <span class="quiet">{better} is better</span></dt><dd>{number(before[key])} '
            f'<span aria-hidden="true">→</span><span class="unseen">to</span> <b>{number(after[key])}</b></dd></div>'
        )
    return (f"<p>Stated confidence before and after training, on {s['n']:,} held-out questions ({text(name)}, accuracy "
            f'{number(s["accuracy"])}):</p>\n<dl class="tiles">{tiles}</dl>')  # fmt: skip


def _set(i, name, s):
    """The tables of one evaluation set."""
    first, *more = (table(f"{name}: {title}", *x) for title, *x in of_set(s))
    return "\n".join([f'<h3 id="set-{i}">{text(name)}</h3>', first,
                      "<details><summary>More about this set</summary>", *more, "</details>"])  # fmt: skip


def table(caption, note, heads, rows):
    """{name of the row: cells} -> a table that scrolls inside its own box, also by keyboard, and its note below."""
    head = "".join(f'<th scope="col">{text(h)}</th>' for h in heads)
    body = ""
    for name, cells in rows.items():
        shown = "".join(f"<td>{text(cell)}</td>" for cell in cells)
        shown = re.sub(r"(\[[^<]*\])</td>", r'<span class="interval">\1</span></td>', shown)  # on a line of its own
        body += f'<tr><th scope="row">{text(name)}</th>{shown}</tr>\n'
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table>'
            f"<caption>{text(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
            f'<p class="quiet">{text(note)}</p>')  # fmt: skip


def _figure(title, caption, png):
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return (f'<figure><h3>{title}</h3><img src="{source}" alt="{title}: {caption}">'
            f"<figcaption>{caption}</figcaption></figure>")  # fmt: skip

"""The report as one HTML file that needs no network: page.html, with the tables, pictures and questions of a run.

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
from report import acting
from report.tables import METHODS, costs, labels, number, of_set, settings

TEMPLATE = Path(__file__).with_name("page.html")
ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}  # so that no text in a script can end it


def render(report, rows, samples, pictures):
    """-> the page. report: what build returns. rows: the predictions, samples: of the same questions in the same order.
    pictures: {name: PNG}, of figures.NAMES."""
    template = TEMPLATE.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    name, first = next(iter(report["sets"].items()))
    parts = {
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "model": text(report["config"]["model"]),
        "dataset": text(report["config"]["dataset"]),
        "first": f"{first['n']:,} held-out questions ({text(name)}, accuracy {number(first['accuracy'])})",
        "warnings": "".join(f"<li>{text(warning)}</li>" for warning in report["warnings"] or ["none"]),
        "labels": "".join(table(*x) for x in labels(report)),
        "results": "\n".join(_set(part, s) for part, s in report["sets"].items()),
        "acting": table(*acting.table(report))
        + "".join(f"<p>Recommended for {text(sentence)}</p>" for sentence in report["recommended"]),
        "cost": "".join(table(*x) for x in costs(report)),
        "settings": table("Settings", "", ["Name", "Value"], {k: [str(v)] for k, v in settings(report).items()}),
        "sets": "".join(f'<option value="{text(part)}">{text(part)}</option>' for part in report["sets"]),
        "data": data([_question(row, sample) for row, sample in zip(rows, samples, strict=True)]),
    }
    for method in ("untrained", "trained"):  # what training changed, on the first evaluation set
        for metric in ("ece", "brier", "auroc"):
            parts[f"{metric}_{method}"] = number(first["methods"][METHODS[method]][metric])
    for picture, png in pictures.items():
        parts[picture] = base64.b64encode(png).decode()
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
    thoughts = [["thought before the answer", sample["thought"]]] if sample.get("thought") else []
    thoughts += [[who, row[f"reflection, {who}"]] for who in ("untrained", "trained") if f"reflection, {who}" in row]
    found |= {"thoughts": thoughts} if thoughts else {}
    return found | {"samples": Counter(sample["samples"]).most_common()}


def _set(name, s):
    """The tables of one evaluation set."""
    first, *more = (table(f"{name}: {title}", *x) for title, *x in of_set(s))
    more = f"<details><summary>More about this set</summary>{''.join(more)}</details>"
    return f"<h3>{text(name)}</h3>{first}{more}"


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

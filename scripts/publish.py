"""Copy the numbers of a finished run into results/ and into the README, so that none is copied by hand.

    python scripts/publish.py runs/toy toy

writes results/toy/ (report, metrics, predictions by question id, pictures; no question or answer text) and replaces
what stands between `<!-- results:toy -->` and `<!-- end -->` in README.md.
"""

import argparse
import json
import math
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from report import METHODS  # noqa: E402

FILES = ("report.json", "report.md", "metrics.jsonl", "predictions.jsonl", "stages.json", "platt.json", "config.json",
         "environment.json")  # fmt: skip
COLUMNS = {"ece": "ECE", "brier": "Brier", "auroc": "AUROC", "auroc_within": "AUROC within families"}


def cell(row, name):
    value = row[name]
    if value is None or math.isnan(value):
        return "n/a"
    low, high = row["interval"][name]
    return f"{value:.3f} [{low:.2f}, {high:.2f}]"


def summary(report, name):
    """The main columns of every set, as markdown."""
    tokens = {title: key for key, title in METHODS.items() if key in report["cost"]}
    lines = []
    for part, s in report["sets"].items():
        lines += [f"**{part}** ({s['n']} questions, accuracy {s['accuracy']:.2f})", ""]
        lines += ["| | " + " | ".join(COLUMNS.values()) + " | tokens |", "|---|" + "---:|" * (len(COLUMNS) + 1)]
        for method, row in s["methods"].items():
            cost = f"{report['cost'][tokens[method]]['tokens']:.1f}" if method in tokens else ""
            lines.append(f"| {method} | " + " | ".join(cell(row, c) for c in COLUMNS) + f" | {cost} |")
        lines.append("")
    lines.append(f"In brackets: 95% bootstrap intervals. All numbers: [results/{name}](results/{name}/report.md).")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("name", help="folder to write under results/, and the marker in README.md")
    args = parser.parse_args()
    target = ROOT / "results" / args.name
    target.mkdir(parents=True, exist_ok=True)
    for path in [args.run / name for name in FILES] + sorted(args.run.glob("*.png")):
        shutil.copy(path, target / path.name)
    report = json.loads((args.run / "report.json").read_text(encoding="utf-8"))
    readme = ROOT / "README.md"
    block = f"<!-- results:{args.name} -->\n{summary(report, args.name)}\n<!-- end -->"
    pattern = rf"<!-- results:{re.escape(args.name)} -->.*?<!-- end -->"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(re.sub(pattern, lambda _: block, text, flags=re.DOTALL), encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()

"""Copy the numbers of a finished run into results/ and into the README, so that none is copied by hand.

    python scripts/publish.py runs/toy toy

writes results/toy/ (report, metrics, predictions by question id, pictures; no question or answer text) and replaces
what stands between `<!-- results:toy -->` and `<!-- end -->` in README.md, if it is there. With `--beside NAME TITLE`,
as often as wanted, the table of held-out questions also shows the trained row of results/NAME, a run on the same
questions.
"""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from report import METHODS, fill  # noqa: E402
from settings import usual  # noqa: E402

FILES = ("report.json", "report.md", "metrics.jsonl", "predictions.jsonl", "stages.json", "platt.json", "config.json",
         "environment.json")  # fmt: skip
# the rows of the README; report.md has all of them
SHOWN = ("untrained", "trained", "expected", "target", "probability, scaled", "base rate", "family prior", "truth")
COLUMNS = {"ece": "ECE", "brier": "Brier", "auroc": "AUROC", "auroc_within": "AUROC within families"}


def cell(row, name):
    value = row[name]
    if value is None or math.isnan(value):
        return "n/a"
    low, high = row["interval"][name]
    return f"{value:.3f} [{low:.2f}, {high:.2f}]"


def command(config):
    """The call that made a run: every setting that is not the default."""
    default = usual(config["model"])
    flags = [f"--{name.replace('_', '-')} {value}" for name, value in config.items() if value != default[name]]
    return " ".join(["python calunc.py", *flags])


def summary(name, beside):
    """The main columns of every set of a published run, as markdown: held-out questions in full, unseen sets short."""
    folder = ROOT / "results" / name
    report, stages = (json.loads((folder / f).read_text(encoding="utf-8")) for f in ("report.json", "stages.json"))
    keys = {title: key for key, title in METHODS.items()}
    test, *unseen = report["sets"].items()
    lines = [f"**{test[0]}** ({test[1]['n']} questions, accuracy {test[1]['accuracy']:.2f})", ""]
    lines += ["| | " + " | ".join(COLUMNS.values()) + " | tokens |", "|---|" + "---:|" * (len(COLUMNS) + 1)]
    for method, row in test[1]["methods"].items():
        if keys.get(method.removesuffix(", malformed dropped")) not in SHOWN:
            continue
        cost = report["cost"].get(keys.get(method), {}).get("tokens")
        rows = [(method, row)]
        for other, title in beside if keys.get(method) == "trained" else []:
            theirs = json.loads((ROOT / "results" / other / "report.json").read_text(encoding="utf-8"))
            rows.append((f"{method}, {title}", theirs["sets"][test[0]]["methods"][method]))
        for title, r in rows:
            tokens = "" if cost is None else f"{cost:.1f}"
            lines.append(f"| {title} | " + " | ".join(cell(r, c) for c in COLUMNS) + f" | {tokens} |")
    lines += _unseen(unseen) if unseen else []
    seconds = sum(stage["seconds"] + stage.get("loading", 0) for stage in stages.values())
    machine = report["environment"]
    lines += ["", "In brackets: 95% bootstrap intervals. tokens: generated for an answer and its confidence.", "",
              f"```bash\n{command(report['config'])}\n```", "",
              f"{seconds:.0f} s on {machine['cores']} {machine['machine']} cores ({machine['device']}). "
              f"All numbers and the pictures: [results/{name}](results/{name}/report.md)."]  # fmt: skip
    return "\n".join(lines)


def _unseen(sets):
    """ECE and AUROC on the sets that were never trained on, a line each."""
    methods = {"untrained": "untrained", "trained": "trained", "target": "teacher", "base rate": "base rate"}
    columns = [("ece", m) for m in methods] + [("auroc", m) for m in ("untrained", "trained", "target")]
    names = [f"{COLUMNS[c]}, {methods[m]}" for c, m in columns]
    lines = ["", " | ".join(["| never trained on", "n", "accuracy", *names]) + " |"]
    lines.append("|---|" + "---:|" * (len(names) + 2))
    for part, s in sets:
        found = [s["methods"][METHODS[m]][c] for c, m in columns]
        cells = ["n/a" if value is None else f"{value:.3f}" for value in found]
        lines.append(f"| {part} | {s['n']} | {s['accuracy']:.2f} | " + " | ".join(cells) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("name", help="folder to write under results/, and the marker in README.md")
    parser.add_argument("--beside", nargs=2, action="append", default=[], metavar=("NAME", "TITLE"),
                        help="a published run to show beside this one")  # fmt: skip
    args = parser.parse_args()
    if Path(args.name).name != args.name or args.name in ("", ".."):
        parser.error(f"{args.name!r} is not the name of a folder in results/")
    target = ROOT / "results" / args.name
    target.mkdir(parents=True, exist_ok=True)
    for path in [args.run / name for name in FILES] + sorted(args.run.glob("*.png")):
        shutil.copy(path, target / path.name)
    fill(ROOT / "README.md", f"results:{args.name}", summary(args.name, args.beside))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()

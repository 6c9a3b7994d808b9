"""Copy the numbers of a finished run into results/ and into the README, so that none is copied by hand.

    python scripts/publish.py runs/toy toy

writes results/toy/ (report, metrics, predictions by question id, pictures; no question or answer text) and replaces
what stands between `<!-- results:toy -->` and `<!-- end -->` in README.md, if it is there.
"""

import argparse
import json
import shutil
import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from experiments.tables import fill, tokens  # noqa: E402
from infra.folder import Run  # noqa: E402
from report import tables  # noqa: E402
from settings import Config, flags, usual  # noqa: E402

FILES = ("report.json", "report.md", "metrics.jsonl", "predictions.jsonl", "stages.json", "platt.json", "config.json",
         "environment.json")  # fmt: skip
SHOWN = ("untrained", "trained", "expected", "target", "probability, scaled", "base rate")


def summary(name):
    """What the README shows of a published run, as markdown: six rows, and what one needs to read them."""
    report = json.loads((ROOT / "results" / name / "report.json").read_text(encoding="utf-8"))
    (_, test), *unseen = report["sets"].items()
    heads = ["", "ECE", "Brier", "AUROC", "Tokens"]
    for part, _ in unseen:
        heads += [f"{tables.plain(part)}: ECE", f"{tables.plain(part)}: AUROC"]
    rows = {}
    for method in SHOWN:
        title = tables.METHODS[method]
        cells = [tables.number(test["methods"][title][metric]) for metric in ("ece", "brier", "auroc")]
        cells.append(f"{tokens(report['cost'], method):.0f}")
        for _, s in unseen:
            cells += [tables.number(s["methods"][title][metric]) for metric in ("ece", "auroc")]
        rows[title] = cells
    interval = test["methods"][tables.METHODS["trained"]]["interval"]
    ends = {m: " to ".join(tables.number(end, 2) for end in interval[m]) for m in ("ece", "auroc")}
    ranges = ", ".join(f"{tables.COLUMNS[m]} {said}" for m, said in ends.items())
    sets = [f"{test['n']} new questions (accuracy {test['accuracy']:.2f})"]
    sets += [f"{tables.plain(part)}: {s['n']} ({s['accuracy']:.2f})" for part, s in unseen]
    text = f"{'; '.join(sets)}. Stated, trained, 95% intervals: {ranges}."
    if tables.METHODS["truth"] in test["methods"]:
        known = test["methods"][tables.METHODS["truth"]]
        text += f" Known probability: ECE {known['ece']:.3f}, Brier {known['brier']:.3f}, AUROC {known['auroc']:.3f}."
    default = usual(report["config"]["model"])
    config = report["config"] | {f.name: default[f.name] for f in fields(Config) if not f.metadata["stage"]}
    machine, call = report["environment"], f"python calunc.py {flags(config)}".strip()
    text += f" `{call}`, {machine['cores']} {machine['machine']} cores ({machine['device']})."
    return "\n".join([*tables.lines(heads, rows), "", f"{text} All rows: [results/{name}](results/{name}/report.md)."])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("name", help="folder to write under results/, and the marker in README.md")
    args = parser.parse_args()
    if Path(args.name).name != args.name or args.name in ("", ".."):
        parser.error(f"{args.name!r} is not the name of a folder in results/")
    target = ROOT / "results" / args.name
    target.mkdir(parents=True, exist_ok=True)
    for path in [args.run / name for name in FILES] + sorted(args.run.glob("*.png")):
        shutil.copy(path, target / path.name)
    report = Run(target).read("report.json")
    if report["config"]["model"] != "toy" and report["labels"]:  # whose questions are its own
        report["labels"]["examples"] = []
        Run(target).write("report.json", report)
        Run(target).write("report.md", tables.markdown(report))
    fill(ROOT / "README.md", f"results:{args.name}", summary(args.name))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()

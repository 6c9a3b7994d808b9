"""Copy the numbers of a finished run into results/ and into the README, so that none is copied by hand.

    python scripts/publish.py runs/toy toy

writes results/toy/ (report, metrics, predictions by question id, pictures; no question or answer text) and replaces
what stands between `<!-- results:toy -->` and `<!-- end -->` in README.md, if it is there. With `--beside NAME TITLE`,
as often as wanted, the table of held-out questions also shows the trained row of results/NAME, a run on the same
questions.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import tables  # noqa: E402
from settings import command  # noqa: E402

FILES = ("report.json", "report.md", "metrics.jsonl", "predictions.jsonl", "stages.json", "platt.json", "config.json",
         "environment.json")  # fmt: skip


def summary(name, beside):
    """What the README shows of a published run, as markdown."""
    reports = [json.loads((ROOT / "results" / n / "report.json").read_text(encoding="utf-8"))
               for n in (name, *(other for other, _ in beside))]  # fmt: skip
    report, others = reports[0], zip((title for _, title in beside), reports[1:], strict=True)
    stages = json.loads((ROOT / "results" / name / "stages.json").read_text(encoding="utf-8"))
    seconds = sum(stage["seconds"] + stage.get("loading", 0) for stage in stages.values())
    machine = report["environment"]
    return "\n".join([
        tables.summary(report, list(others)), "", f"```bash\n{command(report['config'])}\n```", "",
        f"{seconds:.0f} s on {machine['cores']} {machine['machine']} cores ({machine['device']}). "
        f"All numbers and the pictures: [results/{name}](results/{name}/report.md).",
    ])  # fmt: skip


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
    tables.fill(ROOT / "README.md", f"results:{args.name}", summary(args.name, args.beside))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()

"""Measure everything that the project says about speed, and write results/bench.md.

    pip install -r bench/requirements.txt
    python scripts/fetch_smollm2.py && python scripts/fetch_minilm.py
    python -m bench

takes about an hour on two cores, most of it for what we compare with. `python -m bench sampling using` runs some of it
and writes nothing. Whatever is compared takes turns in one run; a ratio is the median of the ratios of five turns, with
the lowest and the highest.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

from bench import arrays, growth, language, prediction
from bench.setting import ROOT, take_turns
from run import Run

PEERS = ("torch", "transformers", "trl", "peft", "numpy", "scipy", "scikit-learn", "torchmetrics")


def help_text():
    command = [sys.executable, "calunc.py", "--help"]
    seconds = take_turns({"ours": lambda: subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)})
    return [dict(work="`python calunc.py --help`", target="< 0.3 s", ours=seconds["ours"])]


def toy_pipeline():
    """Once: it takes minutes."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "calunc.py", "--out", f"{folder}/toy"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [dict(work="toy pipeline, once", target="< 120 s", ours=[time.perf_counter() - start])]


TABLES = {
    "sampling": language.sampling, "step": language.group_step, "scoring": language.scoring,
    "training": language.training_step, "entropies": arrays.entropies, "calibration": arrays.calibration,
    "evaluation": arrays.evaluation, "using": language.using, "help": help_text, "toy": toy_pipeline,
}  # fmt: skip


def line(row):
    """One row of the table: the ratio or share first, then seconds."""
    first = ""
    if "ratio" in row:
        middle, low, high = row["ratio"]
        first = f"**{middle:.1f}×**" + (f" ({low:.1f} to {high:.1f})" if low < high else "")
    elif "share" in row:
        first = f"**{row['share']:.2f}**"
    elif "ours" in row:
        first = f"**{statistics.median(row['ours']):.2f} s**"
    ours, peer = (f"{statistics.median(row[k]):.3g} s" if row.get(k) else "" for k in ("ours", "peer"))
    return f"| {row['work']} | {row.get('target', '')} | {first} | {ours} | {peer} | {row.get('note', '')} |"


def page(found):
    """results/bench.md"""
    machine, packages = found["environment"], ", ".join(f"{name} {v}" for name, v in found["versions"].items())
    return "\n".join([
        "# Speed", "", f"`python -m bench`, {found['minutes']:.0f} minutes on {machine['cores']} {machine['machine']} "
        f"cores ({machine['device']}), where a product of two fp32 matrices of 2048 × 2048 runs at "
        f"{machine['matmul_gflops']:.0f} GFLOP/s. {packages}. All seeds are 0.", "",
        "| work | target | result | ours | peer | |", "|---|---|---:|---:|---:|---|",
        *(line(row) for rows in found["tables"].values() for row in rows), "",
        "Result: the median of the ratios of the turns, with the lowest and the highest; a share; or seconds. "
        "Ours and peer: median seconds.", "",
        "## How cost grows", "", *growth.lines(found["growth"]), "", "![](bench-growth.png)", "",
        "## What other models would cost", "", *found["prediction"], "",
        "Predicted from the work that this run counted for 48 few-shot questions with SmolLM2: stage 1 is one answer "
        "and 10 samples a question, stage 3 one pass over the questions with 16 rollouts each. This CPU: at the useful "
        f"FLOP/s that were measured ({found['speed']}). One GPU: at an assumed {prediction.GPU / 1e12:.0f} TFLOP/s, "
        "not measured.", "", *found["check"], "",
        "The published run had one core for stage 3, beside another run; the prediction is for both.", "",
    ])  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*TABLES, "growth", "prediction"]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(every)} (default: all)")
    names = parser.parse_args().names
    if unknown := set(names) - set(every):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}: choose from {', '.join(every)}")
    start, found = time.perf_counter(), {"tables": {}}
    for name, measure in TABLES.items():
        if not names or name in names:
            found["tables"][name] = measure()
            print(*map(line, found["tables"][name]), sep="\n", flush=True)
    if not names or "growth" in names:
        found["growth"] = growth.measure()
        print(*growth.lines(found["growth"]), sep="\n", flush=True)
    if not names or "prediction" in names:
        pieces = prediction.measure()
        found["prediction"], found["check"] = prediction.table(pieces), prediction.check(pieces)
        speed = {s: pieces[s]["flops"] / pieces[s]["seconds"] / 1e9 for s in ("stage 1", "stage 3")}
        found["speed"] = ", ".join(f"{s}: {value:.0f} GFLOP/s" for s, value in speed.items())
        print(*found["prediction"], *found["check"], sep="\n", flush=True)
    if names:
        return
    import lm
    import report

    found["environment"] = report.environment(lm.load(language.MODEL).model)
    found["versions"] = {name: version(name) for name in PEERS}
    found["minutes"] = (time.perf_counter() - start) / 60
    results = Run(ROOT / "results")
    results.write("bench.json", found)
    results.write("bench.md", page(found))
    growth.draw(found["growth"], results.path("bench-growth.png"))
    readme = ROOT / "README.md"
    block = "\n".join(["<!-- bench:cost -->", *found["prediction"], "<!-- end -->"])
    text = readme.read_text(encoding="utf-8")
    text = re.sub("<!-- bench:cost -->.*?<!-- end -->", lambda _: block, text, flags=re.DOTALL)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

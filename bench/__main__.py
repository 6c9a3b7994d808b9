"""Measure everything that the project says about speed, and write results/bench.md.

    pip install -r bench/requirements.txt
    python scripts/fetch_smollm2.py && python scripts/fetch_minilm.py
    python -m bench

takes more than an hour on two cores, most of it for what we compare with. What is measured is kept, so that
`python -m bench sampling using` measures these two again. Whatever is compared takes turns; a ratio is the median of
the ratios of five turns, with the lowest and the highest.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import lm
from bench import arrays, growth, language, prediction
from bench.setting import MODEL, ROOT, take_turns
from report import environment
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
    "sampling": language.sampling, "step": language.group_step, "lean": language.lean_step, "scoring": language.scoring,
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
        "# Speed", "", f"`python -m bench` on {machine['cores']} {machine['machine']} cores ({found['processor']}, "
        f"{found['memory']:.0f} GiB, {machine['device']}), where a product of two fp32 matrices of 2048 × 2048 runs at "
        f"{machine['matmul_gflops']:.0f} GFLOP/s. Python {machine['python']}, {packages}. All seeds are 0.", "",
        "| work | target | result | ours | peer | |", "|---|---|---:|---:|---:|---|",
        *(line(row) for name in TABLES for row in found["tables"].get(name, [])), "",
        "Result: the median of the ratios of the turns, with the lowest and the highest; a share; or seconds. "
        "Ours and peer: median seconds.", "",
        "## How cost grows", "", "Medians of five.", "", *growth.lines(found["growth"]), "",
        "![](bench-growth.png)", "",
        "## What other models would cost", "", *found["prediction"], "",
        "Predicted from the work that was counted for 48 few-shot questions with SmolLM2: stage 1 is one answer "
        "and 10 samples a question, stage 3 one pass over the questions with 16 rollouts each. This CPU: at the useful "
        f"FLOP/s that were measured ({found['speed']}). One GPU: at an assumed {prediction.GPU / 1e12:.0f} TFLOP/s; "
        "not measured, and a lower bound, as sampling waits for memory rather than for arithmetic.", "",
        "The same for a published run, which had other questions, an older version, and in stage 3 one core:", "",
        *found["check"], "",
    ])  # fmt: skip


def hardware():
    """Name of the processor, where Linux tells it, and memory in GiB."""
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": names[0] if names else "unknown make", "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*TABLES, "growth", "prediction"]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(every)} (default: all)")
    names = parser.parse_args().names or every
    if unknown := set(names) - set(every):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}: choose from {', '.join(every)}")
    results = Run(ROOT / "results")
    found = results.read("bench.json") if results.path("bench.json").exists() else {"tables": {}}
    found |= {"environment": environment(lm.load(MODEL).model), **hardware()}
    found["versions"] = {name: version(name) for name in PEERS}
    for name in names:
        if name in TABLES:
            found["tables"][name] = TABLES[name]()
            print(*map(line, found["tables"][name]), sep="\n", flush=True)
        elif name == "growth":
            found["growth"] = growth.measure()
            print(*growth.lines(found["growth"]), sep="\n", flush=True)
        else:
            pieces = prediction.measure()
            speed = {s: pieces[s]["flops"] / pieces[s]["seconds"] / 1e9 for s in ("stage 1", "stage 3")}
            found["speed"] = ", ".join(f"{s}: {value:.0f} GFLOP/s" for s, value in speed.items())
            found |= {"prediction": prediction.table(pieces), "check": prediction.check(pieces)}
            print(*found["prediction"], *found["check"], sep="\n", flush=True)
        results.write("bench.json", found)
    if not {"growth", "prediction"} <= found.keys():
        return
    results.write("bench.md", page(found))
    growth.draw(found["growth"], results.path("bench-growth.png"))
    readme = ROOT / "README.md"
    block = "\n".join(["<!-- bench:cost -->", *found["prediction"], "<!-- end -->"])
    text = readme.read_text(encoding="utf-8")
    text = re.sub("<!-- bench:cost -->.*?<!-- end -->", lambda _: block, text, flags=re.DOTALL)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

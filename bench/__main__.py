"""Measure everything that the project says about speed, and write results/bench.md.

    pip install -r bench/requirements.txt
    python scripts/fetch_smollm2.py && python scripts/fetch_minilm.py
    python -m bench

takes two to three hours on two cores, most of it for what we compare with. `python -m bench sampling using` measures
these two and only prints them. Whatever is compared takes turns; a ratio is the median of the ratios of five turns,
with the lowest and the highest.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

from bench import arrays, growth, language, prediction, setting
from bench.setting import EMBEDDER, MODEL, ROOT, matmul_flops, take_turns
from experiments.tables import fill
from infra.folder import Run
from report.build import environment

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
    "sampling": language.sampling, "step": language.group_step, "reflecting": language.reflecting_step,
    "lean": language.lean_step, "scoring": language.scoring, "thought": language.thought,
    "training": language.training_step, "using": language.using,
    "entropies": arrays.entropies, "calibration": arrays.calibration, "evaluation": arrays.evaluation,
    "help": help_text, "toy": toy_pipeline,
}  # fmt: skip


NEED_A_MODEL = ("sampling", "step", "reflecting", "lean", "scoring", "thought", "training", "using", "growth",
                "prediction", "recipe")  # fmt: skip


def line(row):
    """One row of the table: the ratio or share first, and whether it reached the target."""
    if "ratio" in row:
        value, low, high = row["ratio"]
        first = f"**{value:.1f}×**" + (f" ({low:.1f} to {high:.1f})" if low < high else "")
    elif "share" in row:
        value = row["share"]
        first = f"**{value:.2f}**"
    else:
        value = statistics.median(row["ours"])
        first = f"**{value:.2f} s**"
    times = (f"{statistics.median(row[k]):.3g} s" if k in row else "" for k in ("ours", "peer"))
    ours, peer = row.get("cells") or times
    target = row.get("target", "")
    met = ("met" if reached(value, target) else "**missed**") if target else ""
    return f"| {row['work']} | {target} | {first} | {met} | {ours} | {peer} | {row.get('note', '')} |"


def reached(value, target):
    """Is 5.0 at least "≥ 4x", or 0.4 at most "≤ 1/2"?"""
    sign, number = target.split()[:2]
    limit = float(Fraction(number.rstrip("x")))
    return value >= limit if sign == "≥" else value <= limit


def page(found):
    """results/bench.md"""
    machine, packages = found["environment"], ", ".join(f"{name} {v}" for name, v in found["versions"].items())
    return "\n".join([
        "# Speed", "", f"`python -m bench` on {machine['cores']} {machine['machine']} cores ({found['processor']}, "
        f"{found['memory']:.0f} GiB, {machine['device']}), where a product of two fp32 matrices of 2048 × 2048 runs at "
        f"{machine['matmul_gflops']:.0f} GFLOP/s. Python {machine['python']}, {packages}. Seeds are 0.", "",
        "Peer: what stands last in the work. Result: how many times faster (or, in tokens, fewer) we are, the median "
        "of the ratios of five turns, with the lowest and the highest; below 1, slower. Or a share, or seconds. "
        "Each comparison was made in one run, not all of them in the same.", "",
        "| work | target | result | | ours | peer | notes, ours first |", "|---|---|---:|---|---:|---:|---|",
        *(line(row) for name in TABLES for row in found["tables"].get(name, [])), "",
        "A loop of eigvalsh is fast already: our entropies spend most of their time in the same eigvalsh and in the "
        "inner products. Our own sampler makes ten samples cheap, because it reads a question once for all of them; "
        "what is left is mostly reading, which answer and confidence need too.", "",
        "## How cost grows", "", "Medians of five.", "", *growth.lines(found["growth"]), "",
        "![](bench-growth.png)", "",
        "## What other models would cost", "", *found["prediction"], "",
        "Predicted from the operations that were counted for 48 few-shot questions with SmolLM2: stage 1 is one answer "
        "and 10 samples a question, stage 3 one pass over the questions with 16 rollouts each. This CPU: at the "
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
    every = [*TABLES, "growth", "prediction", "recipe"]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(every)} (default: all)")
    parser.add_argument("--merge", action="store_true", help="with names: write the numbers beside those in results/ "
                        "that were measured before, which should be on the same machine")  # fmt: skip
    parser.add_argument("--turns", type=int, default=setting.TURNS, help="fewer, to see that it runs; only printed")
    args = parser.parse_args()
    names, write = args.names or every, args.turns == setting.TURNS and (args.merge or not args.names)
    setting.TURNS = args.turns
    if unknown := set(names) - set(every):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}: choose from {', '.join(every)}")
    if set(names) & set(NEED_A_MODEL) and not (Path(MODEL).exists() and Path(EMBEDDER).exists()):
        parser.error("run scripts/fetch_smollm2.py and scripts/fetch_minilm.py first")
    results = Run(ROOT / "results")
    found = results.read("bench.json") if args.merge else {"tables": {}}
    found |= {"environment": environment() | {"matmul_gflops": matmul_flops() / 1e9}, **hardware()}
    found["versions"] = {name: version(name) for name in PEERS}
    for name in names:
        if name in TABLES:
            found["tables"][name] = TABLES[name]()
            print(*map(line, found["tables"][name]), sep="\n", flush=True)
        elif name == "growth":
            found["growth"] = growth.measure()
            print(*growth.lines(found["growth"]), sep="\n", flush=True)
        elif name == "recipe":
            found["recipe"] = prediction.recipe()
            print(*found["recipe"], sep="\n", flush=True)
        else:
            pieces = prediction.measure()
            speed = {s: sum(pieces[s]["flops"].values()) / pieces[s]["seconds"] / 1e9 for s in ("stage 1", "stage 3")}
            found["speed"] = ", ".join(f"{s}: {value:.0f} GFLOP/s" for s, value in speed.items())
            found |= {"prediction": prediction.table(pieces, found["memory"]), "check": prediction.check(pieces)}
            print(*found["prediction"], *found["check"], sep="\n", flush=True)
        if write:
            results.write("bench.json", found)
    if not write:
        return
    results.write("bench.md", page(found))
    growth.draw(found["growth"], results.path("bench-growth.png"))
    fill(ROOT / "docs" / "cost.md", "bench:cost", "\n".join([*found["prediction"], "", *found["check"]]))
    fill(ROOT / "docs" / "cost.md", "bench:recipe", "\n".join(found.get("recipe", [])))


if __name__ == "__main__":
    main()

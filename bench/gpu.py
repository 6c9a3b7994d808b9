"""What a GPU does with the method; writes results/gpu.json and the numbers in docs/cost.md. Minutes on one GPU.

    python -m bench.gpu reflecting recipe amp

    reflecting   one GRPO step of SmolLM2-135M, 16 prompts x 8 reflections of 24 tokens, against TRL; five turns
    recipe       sampling and training steps of `--recipe paper` with random weights of Qwen2.5-7B's shape. They end
                 nothing early, so that every thought, answer and reflection has its full length: an upper bound
    amp          one run of `python -m experiments smollm2-reflection`, which must be there, in float16 too
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import data
import lm
import lora
import rl
import use
from bench import grpo
from bench.prediction import SHAPES
from bench.setting import MODEL, ROOT, ratios
from experiments.grid import TABLES, slug
from experiments.tables import fill
from infra import setup
from infra.folder import Run
from report.build import environment
from report.tables import METHODS, lines
from settings import RECIPES, Config

BATCHES = {"16": ["trl", "16", "on", "24"], "128": ["trl", "128", "off", "24"]}  # of TRL: its default, and all at once


def reflecting(turns=5):
    """-> seconds and GiB of each, and how many times faster ours is: median, lowest, highest"""
    found = grpo.measure({"ours": ["ours", "auto", "24"]} | BATCHES, turns + 1)
    for of in found.values():
        of["seconds"] = of["seconds"][1:]  # the first one warms up
    return {name: of | {"ratio": ratios(of["seconds"], found["ours"]["seconds"])} for name, of in found.items()}


def recipe(steps=2, size="7B", device="cuda"):
    """-> seconds and generated tokens for each question that is sampled and for each step, and peak GiB of both"""
    usual = {f.name: f.default for f in fields(Config)} | RECIPES["paper"]
    config = Config(**usual | dict(steps=steps, warmup=0))
    with torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(SHAPES[size], dtype=torch.bfloat16)
    model = lm.LM(model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(MODEL), f"random {size}")
    model = setup.with_engine(model, config.engine)
    prompt = data.Prompt(model, "chat", reasoned=True, reflection=config.reflection,
                         statement=data.STATEMENTS[config.statement])  # fmt: skip
    asked, temperatures = data.load("facts"), [config.answer_temperature] + [config.temperature] * config.samples
    found = {}

    def sample(questions):
        return use.answers(model, prompt, [q.question for q in questions], temperatures, range(len(questions)), config)

    sample(asked[:2])  # to warm up
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    replies = sample(asked[: config.sample_batch])
    found["sample"] = {
        "questions": config.sample_batch, "seconds": (time.perf_counter() - start) / config.sample_batch,
        "tokens": sum(r.tokens + r.thought_tokens for row in replies for r in row) / config.sample_batch,
        "peak": torch.cuda.max_memory_allocated() / 2**30,
    }  # fmt: skip
    lora.add_lora(model, config.rank, 2 * config.rank, dropout=config.dropout)
    items = [rl.Item(q.question, q.answers[0], 0.5, 1) for q in asked[: 2 * config.questions]]
    torch.cuda.reset_peak_memory_stats()
    times, tokens, random = [time.perf_counter()], [], np.random.default_rng(0)

    def on_step(record):
        times.append(time.perf_counter())
        tokens.append(record["tokens"])

    rl.train(model, prompt, items, config, lambda *_: random.random(), on_step)  # nothing that they say is a number
    found["train"] = {
        "steps": steps, "seconds": float(np.median(np.diff(times))), "tokens": float(np.mean(tokens)),
        "peak": torch.cuda.max_memory_allocated() / 2**30,
    }  # fmt: skip
    return found


def amp():
    """-> {precision: what its confidences are like}, of one arm and seed of `python -m experiments smollm2-reflection`,
    which must have been run here: bfloat16 is its own precision, float16 runs on the same samples"""
    table, root, found = TABLES["smollm2-reflection"], ROOT / "runs" / "experiments" / "smollm2-reflection", {}
    name, half = "the number alone", root / "fp16-1"
    shutil.copytree(root / "samples-1", half, dirs_exist_ok=True)
    flags = f"eval --out {half} {table.call(name, 1)} --amp fp16"
    subprocess.run([sys.executable, "calunc.py", *shlex.split(flags)], cwd=ROOT, check=True)
    for kind, folder in (("bf16", root / f"{slug(name)}-1"), ("fp16", half)):
        methods = Run(folder).read("report.json")["sets"]["test"]["methods"]
        found[kind] = {way: {m: methods[METHODS[way]][m] for m in ("ece", "brier", "auroc")}
                       for way in ("trained", "expected")}  # fmt: skip
        found[kind]["skipped"] = sum(r["skipped"] > 0 for r in Run(folder).read("metrics.jsonl"))
    return found


PARTS = {"reflecting": reflecting, "recipe": recipe, "amp": amp}


def numbers(of):
    return ", ".join(f"{x:.3f}" for x in of.values())


def page(found):
    """The block of docs/cost.md"""
    parts = []
    if of := found.get("reflecting"):
        ours = of["ours"]
        rows = {"ours": [f"{np.median(ours['seconds']):.2f}", "", f"{ours['peak']:.1f} GiB"]}
        for name in BATCHES:
            faster = "{:.1f}× ({:.1f} to {:.1f})".format(*of[name]["ratio"])
            row = [f"{np.median(of[name]['seconds']):.2f}", faster, f"{of[name]['peak']:.1f} GiB"]
            rows[f"TRL, {name} completions at a time"] = row
        parts += [f"**A reflecting step**, 16 prompts × 8 reflections of exactly 24 tokens, SmolLM2-135M in bfloat16, "
                  f"on one {of['device']}, five turns:",
                  lines(["", "seconds, median", "ours is faster by", "peak memory"], rows)]  # fmt: skip
    if of := found.get("recipe"):
        config = {f.name: f.default for f in fields(Config)} | RECIPES["paper"]
        asked = sum(config[f"{part}_questions"] for part in ("platt", "train", "test", "ood"))
        rows = {}
        for stage, each, number in (("sample", "question", asked), ("train", "step", config["steps"])):
            own, hours = of[stage], of[stage]["seconds"] * number / 3600
            rows[stage] = [f"{own['seconds']:.2f} s a {each}", f"{own['tokens']:,.0f}", f"{hours:.1f} h",
                           f"{own['peak']:.0f} GiB"]  # fmt: skip
        parts += [f"**`--recipe paper`** with random weights of Qwen2.5-7B's shape on one {of['device']}, every "
                  "thought, answer and reflection of full length:",
                  lines(["stage", "measured", "generated tokens each", "so the whole recipe takes", "peak memory"],
                        rows)]  # fmt: skip
    if of := found.get("amp"):
        rows = {kind: [numbers(x["trained"]), numbers(x["expected"]), str(x["skipped"])]
                for kind, x in of.items() if kind != "device"}  # fmt: skip
        parts += [f"**Mixed precision** on one {of['device']}: the number alone of [smollm2-reflection]"
                  "(../results/smollm2-reflection/report.md), seed 1, new questions; ECE, Brier score and AUROC:",
                  lines(["`--amp`", "stated", "expected", "steps skipped"], rows)]  # fmt: skip
    return "\n\n".join(part if isinstance(part, str) else "\n".join(part) for part in parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, help="default: all")
    names = parser.parse_args().parts or list(PARTS)
    results = Run(ROOT / "results")
    for name in names:
        made = PARTS[name]() | {"device": environment(torch.device("cuda"))["device"]}
        found = (results.read("gpu.json") if results.path("gpu.json").exists() else {}) | {name: made}
        print(json.dumps(made), flush=True)
        results.write("gpu.json", found)
        fill(ROOT / "docs" / "cost.md", "bench:gpu", page(found))


if __name__ == "__main__":
    main()

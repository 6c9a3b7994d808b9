"""What stage 1 and stage 3 cost for models of other sizes, from counted work; checked against the runs in results/.

The work of a small piece of each stage is recorded on SmolLM2 (tokens, pairs, logits of every call of the model) and
replayed with the sizes of other models (cost.Size), as if they read and wrote the same number of tokens.
"""

import json
import statistics
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

import cost
import lm
import lora
import rl
from bench.setting import MODEL, ROOT, fewshot_questions
from settings import Config

GPU = 100e12  # useful FLOP/s of one GPU: an assumption, a tenth of an H100's peak in bf16
# the published shapes of SmolLM2-135M, Qwen2.5-1.5B and Qwen2.5-7B
SHAPES = {
    "135M": LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "1.5B": Qwen2Config(
        vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "7B": Qwen2Config(
        vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4,
    ),
}  # fmt: skip


@dataclass
class Recorder(cost.Work):
    """Work that also remembers each call, so that it can be replayed with another size."""

    calls: list = field(default_factory=list)

    def forward(self, size, tokens, pairs, logits=0):
        self.calls.append(("forward", size.adapter > 0, tokens, pairs, logits))
        super().forward(size, tokens, pairs, logits)

    def backward(self, size, tokens, pairs, logits=0):
        self.calls.append(("backward", size.adapter > 0, tokens, pairs, logits))
        super().backward(size, tokens, pairs, logits)

    def replay(self, size):
        """The same calls of a model of another size. -> FLOPs"""
        work = cost.Work()
        for direction, adapted, *counts in self.calls:
            getattr(work, direction)(size if adapted else replace(size, adapter=0), *counts)
        return work.flops


def sizes():
    """{name: cost.Size}, with a LoRA of rank 16. No weight is ever made."""
    found = {}
    for name, config in SHAPES.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        lora.add_lora(lm.LM(model, None, name))
        found[name] = cost.Size.of(model)
    return found


def measure(questions=48):
    """Record `questions` questions of stage 1, and of one pass of stage 3, five times each.

    -> {"questions": n, piece: {"calls", "seconds" (median), "tokens", "logits", "flops"}}
    """
    model = replace(lm.load(MODEL), work=Recorder())
    prompt, asked = fewshot_questions(model, questions)
    prompts, stop = [prompt.answer(q.question) for q in asked], lm.stop_ids(model, "\n")
    found = {}

    def record(name, function):
        seconds = []
        for _ in range(5):
            model.work.calls = []
            model.work.take()
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
        found[name] = dict(calls=model.work.calls, seconds=statistics.median(seconds), **model.work.take())

    record("stage 1", lambda: lm.sample(model, prompts, [0.0] + [1.0] * 10, 16, stop, list(range(questions))))
    lora.add_lora(model)
    targets = np.linspace(0, 1, questions)
    items = [rl.Item(q.question, q.answers[0], p, 1) for q, p in zip(asked, targets, strict=True)]

    def reward(confidence, item):
        return rl.calibration_reward(confidence, item.target)

    def train(batch, rollouts):
        config = Config(steps=questions // batch, questions=batch, rollouts=rollouts, amp="off", kl=0.03)
        return lambda: rl.train(model, prompt, items, reward, config, lambda _: None)

    record("stage 3", train(16, 16))
    record("stage 3 of smollm2-rl", train(24, 8))
    return {"questions": questions, **found}


def table(found, memory):
    """Markdown: FLOPs and time of both stages for each size, on a machine with so many GiB."""
    n, speed = found["questions"], {s: found[s]["flops"] / found[s]["seconds"] for s in ("stage 1", "stage 3")}
    columns = "PFLOP | this CPU | one GPU, at least"
    lines = [f"| model | questions | stage 1, {columns} | stage 3, {columns} |", "|---" + "|---:" * 7 + "|"]
    for name, size in sizes().items():
        each = {s: Recorder(calls=found[s]["calls"]).replay(size) / n for s in speed}
        for questions in (2_000, 20_000):
            cells = []
            for s in speed:
                flops = questions * each[s]
                fits = 4 * (size.weights + size.head) < memory * 2**30  # in float32
                took = duration(flops / speed[s]) if fits else "does not fit"
                cells += [f"{flops / 1e15:,.2f}", took, duration(flops / GPU)]
            lines.append(f"| {name} | {questions:,} | " + " | ".join(cells) + " |")
    return lines


def duration(seconds):
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"


def check(found):
    """Markdown: the seconds predicted for the published run of RL alone on SmolLM2, beside those that it took."""
    folder, n = ROOT / "results" / "smollm2-rl", found["questions"]
    config, stages, report = (json.loads((folder / f"{f}.json").read_text()) for f in ("config", "stages", "report"))
    asked = sum(s["n"] for s in report["sets"].values()) + config["platt_questions"] + config["train_questions"]
    lines = ["| stage of smollm2-rl | questions | predicted | took | predicted / took |", "|---|---:|---:|---:|---:|"]
    trained = config["steps"] * config["questions"]
    for stage, piece, questions in (("sample", "stage 1", asked), ("train", "stage 3 of smollm2-rl", trained)):
        seconds = found[piece]["seconds"] / n * questions
        took = stages[stage]["seconds"]
        lines.append(f"| {stage} | {questions:,} | {seconds:,.0f} s | {took:,.0f} s | {seconds / took:.2f} |")
    return lines

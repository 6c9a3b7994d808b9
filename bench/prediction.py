"""What stage 1 and stage 3 cost for models of other sizes, from counted work; checked against a run in results/.

The floating-point operations of a small piece of each stage are counted on SmolLM2, by kind of matrix product, and each
kind grows with the size of another model as if it read and wrote the same number of tokens:

    maps       the linear maps of the blocks and the adapter on them     with their weights
    attention  scores and mixtures of every pair of tokens               with layers x heads x head size
    head       the logits                                                with width x vocabulary

Counted is what is computed, padding included. Left out: norms, activations and softmax, below 1%; and that an adapter
of the same rank is a smaller share of a larger model, up to 4% of stage 3.
"""

import json
import statistics
from collections import Counter
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, bmm_flop, mm_flop
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
from transformers.pytorch_utils import Conv1D

import data
import lm
import lora
import rl
import use
from bench import setting
from bench.setting import ROOT, fewshot_questions, load, take_turns
from beyond import rewards
from settings import RECIPES, Config

GPU = 100e12  # FLOP/s of one GPU: an assumption, a tenth of an H100's peak in bf16
CAPACITY = 4  # infra.models.capacity of 80 GB
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


@dataclass(frozen=True)
class Size:
    """What each kind of work is proportional to, of a model without an adapter."""

    maps: int
    attention: int
    head: int


def size_of(model):
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    maps = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_hidden_layers * config.num_attention_heads * width
    return Size(sum(m.weight.numel() for m in maps), attention, head.weight.numel())


def size(name):
    """Of a published model. No weight is ever made."""
    with torch.device("meta"):
        return size_of(AutoModelForCausalLM.from_config(SHAPES[name]))


def counted(function, model):
    """Floating-point operations of a call, forward and backward. -> {kind: number}"""
    found, aten = Counter(), torch.ops.aten
    vocabulary = model.get_output_embeddings().weight.shape[0]

    def product(*shapes, **_):
        a, b = shapes[-2:]  # a bias may stand in front
        found["head" if vocabulary in (*a, *b) else "maps"] += mm_flop(a, b)
        return mm_flop(a, b)

    def pairs(a, b, **_):
        found["attention"] += bmm_flop(a, b)
        return bmm_flop(a, b)

    mapping = {aten.mm: product, aten.addmm: product, aten.bmm: pairs}
    # attention written out: torch does not count the fused one of a CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        function()
    assert sum(found.values()) == counter.get_total_flops()
    return dict(found)


def predicted(flops, own, other):
    """Counted {kind: number} for a model of size `own` -> the number for one of size `other`"""
    return sum(number * getattr(other, kind) / getattr(own, kind) for kind, number in flops.items())


def measure(questions=48):
    """Count `questions` questions of stage 1, and of one pass of stage 3, and time them in turns.

    -> {"questions": n, piece: {"flops": {kind: number}, "seconds": median}}
    """
    model = load()
    prompt, asked = fewshot_questions(model, questions)
    prompts, stop = [prompt.first_turn(q.question) for q in asked], lm.stop_ids(model, "\n")

    def sample():
        temperatures, seeds = [0.0] + [1.0] * 10, list(range(questions))
        with lora.adapter(model, False):
            model.engine(16).sample(model, prompts, temperatures, 16, stop, seeds, logprobs=True)

    lora.add_lora(model)
    targets = np.linspace(0, 1, questions).tolist()
    items = [rl.Item(q.question, q.answers[0], p, 1) for q, p in zip(asked, targets, strict=True)]

    def train(batch, rollouts):
        config = Config(steps=questions // batch, questions=batch, rollouts=rollouts, amp="off", kl=0.03)
        return lambda: setting.train(model, prompt, items, config)

    pieces = {"stage 1": sample, "stage 3": train(16, 16), "stage 3 of smollm2-rl": train(24, 8)}
    flops = {name: counted(function, model.model) for name, function in pieces.items()}
    seconds = take_turns(pieces, warm_up=False)
    found = {name: {"flops": flops[name], "seconds": statistics.median(seconds[name])} for name in pieces}
    return {"questions": questions, **found}


def table(found, memory):
    """Markdown: FLOPs and time of both stages for each size, on a machine with so many GiB."""
    n, stages = found["questions"], ("stage 1", "stage 3")
    columns = "PFLOP | this CPU | one GPU, at least"
    lines = [f"| model | questions | stage 1, {columns} | stage 3, {columns} |", "|---" + "|---:" * 7 + "|"]
    own = size("135M")
    for name in SHAPES:
        other = size(name)
        fits = 4 * (other.maps + other.head) < memory * 2**30  # in float32
        for questions in (2_000, 20_000):
            cells = []
            for piece in (found[stage] for stage in stages):
                flops = questions / n * predicted(piece["flops"], own, other)
                took = duration(flops / sum(piece["flops"].values()) * piece["seconds"]) if fits else "does not fit"
                cells += [f"{flops / 1e15:,.2f}", took, duration(flops / GPU)]
            lines.append(f"| {name} | {questions:,} | " + " | ".join(cells) + " |")
    return lines


def recipe(few=2):
    """Markdown: what `--recipe paper` costs with its own model, from the operations and tokens that are counted with
    SmolLM2 on a few questions, in chat form and with the recipe's settings."""
    model, own, other = load(), size("135M"), size("7B")
    usual = {f.name: f.default for f in fields(Config)} | RECIPES["paper"]
    config = Config(**usual | dict(steps=1, questions=few, amp="off"))
    prompt = data.Prompt(model, "chat", reasoned=True, reflection=config.reflection,
                         statement=data.STATEMENTS[config.statement])  # fmt: skip
    asked = data.load("facts")[:few]
    drawn, steps = [], []

    def sample():
        temperatures = [config.answer_temperature] + [config.temperature] * config.samples
        texts = [q.question for q in asked]
        drawn.extend(use.answers(model, prompt, texts, temperatures, list(range(few)), config))

    flops = {"sample": counted(sample, model.model)}
    lora.add_lora(model, dropout=config.dropout)
    items = [rl.Item(q.question, q.answers[0], 0.5, 1) for q in asked]
    reward = rewards.chosen(config)
    flops["train"] = counted(lambda: rl.train(model, prompt, items, config, reward, steps.append), model.model)
    whole = Config(**usual)
    questions = {
        "sample": whole.platt_questions + whole.train_questions + whole.test_questions + whole.ood_questions,
        "train": whole.steps * whole.questions,
    }
    tokens = {"sample": sum(r.tokens + r.thought_tokens for replies in drawn for r in replies) / few,
              "train": steps[0]["tokens"] / few}  # fmt: skip
    lines = ["| stage | questions | generated tokens each | PFLOP | one GPU, at least |", "|---" + "|---:" * 4 + "|"]
    for stage, of in flops.items():
        total = questions[stage] / few * predicted(of, own, other)
        lines.append(f"| {stage} | {questions[stage]:,} | {tokens[stage]:,.0f} | {total / 1e15:,.0f} | "
                     f"{duration(total / GPU)} |")  # fmt: skip
    shape, weights = SHAPES["7B"], 2 * (other.maps + 2 * other.head)  # bytes, in bf16, with the embedding
    head = shape.hidden_size // shape.num_attention_heads
    kept = 2 * 2 * shape.num_hidden_layers * shape.num_key_value_heads * head  # bytes of a token
    ends = 8 * shape.hidden_size + 3 * (shape.hidden_size + shape.intermediate_size)  # of the seven maps of a block
    adapter = 16 * whole.rank * shape.num_hidden_layers * ends  # weights, gradients, two moments, in float32
    parts = {"weights": weights, "the judge's, while it grades": weights, "adapter and its moments": adapter,
             "keys and values of what is sampled at once": 2 * kept * lm.CACHED * CAPACITY,
             "logits": 16 * lm.LOGITS * CAPACITY}  # fmt: skip
    said = ", ".join(f"{name} {size / 2**30:.1f} GiB" for name, size in parts.items())
    return [*lines, "", f"Memory: {said}; {sum(parts.values()) / 2**30:.0f} GiB in all, without activations."]


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

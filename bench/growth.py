"""How time grows: with questions, samples, group size and prompt length, each doubled three times."""

import statistics
import textwrap

import numpy as np
from matplotlib.figure import Figure

import lm
import lora
import rl
from bench.setting import fewshot_questions, load, take_turns, train
from settings import Config

QUESTIONS, SAMPLES, GROUP, LENGTH = (8, 16, 32, 64), (5, 10, 20, 40), (8, 16, 32, 64), (64, 128, 256, 512)


def measure():
    """-> {what is doubled: {size, as text: median seconds}}"""
    model = load()
    stop = lm.stop_ids(model, "\n")
    prompt, questions = fewshot_questions(model, max(QUESTIONS))
    prompts = [prompt.first_turn(q.question) for q in questions]

    def sample(ids, n):
        return lambda: model.engine(16).sample(model, ids, [1.0] * n, 16, stop, list(range(len(ids))))

    def beginnings(length):
        return [p[:length] for p in random]

    random = np.random.default_rng(0).integers(1000, 40_000, size=(8, max(LENGTH))).tolist()  # nothing in common
    panels = {
        "questions, 10 samples each": {n: sample(prompts[:n], 10) for n in QUESTIONS},
        "samples of each of 16 questions": {n: sample(prompts[:16], n) for n in SAMPLES},
        "tokens of each of 8 prompts that have nothing in common": {n: sample(beginnings(n), 10) for n in LENGTH},
    }
    found = {label: _medians(functions) for label, functions in panels.items()}

    lora.add_lora(model)
    items = [rl.Item(q.question, q.answers[0], i / 7, 1) for i, q in enumerate(questions[:8])]

    def step(group):
        config = Config(steps=1, questions=8, rollouts=group, amp="off", kl=0.03)
        return lambda: train(model, prompt, items, config)

    found["rollouts of a group, in a training step of 8 questions"] = _medians({n: step(n) for n in GROUP})
    return found


def _medians(functions):
    seconds = take_turns(functions)
    return {str(n): statistics.median(s) for n, s in seconds.items()}


def lines(found):
    """Markdown: each panel with its times and its growth at each doubling."""
    out = ["| doubled | ×1 | ×2 | ×4 | ×8 | growth at each doubling |", "|---|" + "---:|" * 5]
    for label, times in found.items():
        s = list(times.values())
        cells = [f"{n}: {t:.2f} s" for n, t in times.items()]
        growth = ", ".join(f"{after / before:.2f}" for before, after in zip(s, s[1:], strict=False))
        out.append(f"| {label} | " + " | ".join(cells) + f" | {growth} |")
    return out


def draw(found, path):
    """Time against size, both axes logarithmic, beside a line of slope one."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    figure.suptitle("Seconds against size. Grey: in proportion.", fontsize="medium")
    for axes, (label, times) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        x, y = np.array(list(times), dtype=int), np.array(list(times.values()))
        axes.plot(x, y[-1] * x / x[-1], color="#777777", lw=1)
        axes.plot(x, y, "o-", color="#0072B2")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set(xticks=x, xticklabels=x, yticks=[], xlabel=textwrap.fill(label, 24))
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        for at, seconds in zip(x, y, strict=True):
            axes.annotate(f"{seconds:.1f}", (at, seconds), textcoords="offset points", xytext=(0, 6), fontsize="small")
    figure.savefig(path, dpi=150)

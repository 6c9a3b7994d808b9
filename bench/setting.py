"""What the benchmarks share: the model, the questions, and how they are timed."""

import statistics
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
MODEL = str(ROOT / "models" / "smollm2-135m-instruct")
EMBEDDER = str(ROOT / "models" / "all-minilm-l6-v2")


def fewshot_questions(model, n):
    """-> the few-shot prompt, and n built-in questions of all families."""
    import data

    questions = data.load("facts")
    chosen = np.random.default_rng(0).permutation(len(questions))[:n]
    return data.Prompt(model, "fewshot"), [questions[i] for i in chosen]


def take_turns(functions, repetitions=5, warm_up=True):
    """Seconds of each function, in turns. -> {name: [seconds]}

    warm_up: call each of them once before, uncounted.
    """
    seconds = {name: [] for name in functions}
    for repetition in range(repetitions + warm_up):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if repetition >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(slow, fast):
    """The ratio of each turn, so that what slows the machine for a while slows both. -> median, lowest, highest"""
    found = [s / f for s, f in zip(slow, fast, strict=True)]
    return statistics.median(found), min(found), max(found)


def compared(work, target, seconds, note=""):
    """A row of the table from the seconds of "ours" and "peer"."""
    ours, peer = seconds["ours"], seconds["peer"]
    return dict(work=work, target=target, ratio=ratios(peer, ours), ours=ours, peer=peer, note=note)

"""What the benchmarks share: the model, the questions, and how they are timed."""

import statistics
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
MODEL = str(ROOT / "models" / "smollm2-135m-instruct")
EMBEDDER = str(ROOT / "models" / "all-minilm-l6-v2")
TURNS = 5


def load(engine="auto"):
    """The model with one of the two engines, or the one that is faster for the length."""
    import lm
    from infra import setup

    gpu = torch.cuda.is_available()
    model = lm.load(MODEL, *(("cuda", torch.bfloat16) if gpu else ()))
    return setup.with_engine(model, engine)


def fewshot_questions(model, n, reflection=0):
    """-> the few-shot prompt, and n built-in questions of all families."""
    import data

    questions = data.load("facts")
    chosen = np.random.default_rng(0).permutation(len(questions))[:n]
    return data.Prompt(model, "fewshot", reflection=reflection), [questions[i] for i in chosen]


def train(model, prompt, items, config, on_step=lambda record: None):
    """rl.train with the paper's reward, which is what stage 3 calls."""
    import rl

    rl.train(model, prompt, items, config, lambda c, item: rl.calibration_reward(c, item.target), on_step)


def take_turns(functions, repetitions=None, warm_up=True):
    """Seconds of each function, in turns, TURNS of them if not told otherwise. -> {name: [seconds]}

    warm_up: call each of them once before, uncounted.
    """
    repetitions = repetitions or TURNS
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


def matmul_flops(size=2048, seconds=0.5):
    """FLOP/s of a plain product of two fp32 matrices, the best of as many as fit into `seconds`."""
    a, best, stop = torch.randn(size, size), float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < stop or best == float("inf"):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best

"""What a loop of training needs beside the method: resuming, micro-batches, the log.

A checkpoint holds all that the next step depends on: training goes on from it as if it had not stopped.
"""

import io
import time

import numpy as np
import torch

from infra import parallel, progress
from infra.files import first, seed_of, write_whole
from infra.models import refused

PATIENCE = 5  # steps in a row without a finite gradient


class Loop:
    """The numbers of the steps that are left, -warmup ... steps - 1; after each, `record` takes its metrics.

    It begins with the metrics that the checkpoint `saved` has, and ends early after 5 optimiser steps in a row without
    a finite gradient: such steps change nothing, so what is left are the last good weights.
    """

    def __init__(self, optimizer, config, saved, on_step):
        self.optimizer, self.config, self.saved, self.on_step = optimizer, config, saved, on_step
        self.parts = {"adam": optimizer.adam, "schedule": optimizer.schedule, "scaler": optimizer.scaler}
        self.log, self.last, self.cost = [], time.perf_counter(), 0.0
        if saved and saved.exists():
            self._load()
        for record in self.log:
            on_step(record)

    def __iter__(self):
        begin, end = len(self.log) - self.config.warmup, self.config.steps
        steps = {"initial": len(self.log), "total": end + self.config.warmup}
        with progress.Bar(desc="training", unit="step", **steps) as self.bar:
            for self.step in range(begin, end):
                if self.optimizer.skipped >= PATIENCE:
                    break
                yield self.step

    def choose(self, items):
        """The training questions of the step, in shuffled epochs; the supervised steps have an order of their own."""
        name, number = ("warmup", self.step + self.config.warmup) if self.step < 0 else ("train", self.step)
        size = min(self.config.questions, len(items))
        if size < parallel.size():
            raise ValueError(f"{size} questions a step are fewer than the {parallel.size()} processes")
        return [items[i] for i in batch_of(number, len(items), size, seed_of(self.config.seed, name))]

    def record(self, **metrics):
        """Log the metrics of the step, and write a checkpoint; at most 5% of the time goes into checkpoints."""
        self.log.append({"step": self.step, **metrics, "skipped": self.optimizer.skipped})
        self.on_step(self.log[-1])
        shown = {name: f"{metrics[name]:.3f}" for name in ("supervised_loss", "reward", "malformed") if name in metrics}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        if self.saved and first() and time.perf_counter() - self.last > 20 * self.cost:
            start = time.perf_counter()
            self._save()
            self.last = time.perf_counter()
            self.cost = self.last - start

    def _save(self):
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"weights": [p.detach() for p in self.optimizer.params], "log": self.log}
        content = io.BytesIO()
        torch.save(state, content)
        write_whole(self.saved, [content.getvalue()])

    def _load(self):
        with refused(f"{self.saved} is damaged: delete it, and training begins again"):
            state = torch.load(self.saved, map_location="cpu", weights_only=True)  # nothing in it is run
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            for p, value in zip(self.optimizer.params, state["weights"], strict=True):
                p.data.copy_(value)
            self.log = state["log"]
            self.optimizer.skipped = self.log[-1]["skipped"]


def batch_of(step, n, size, seed):
    """The questions of a step: shuffled epochs, cut into batches of `size`; a function of its arguments alone."""
    places = range(step * size, (step + 1) * size)
    order = {e: np.random.default_rng([seed, e]).permutation(n) for e in {i // n for i in places}}
    return [int(order[i // n][i % n]) for i in places]


def micro_batches(completions, limit, questions=0):
    """Cut a step, Q groups of completions, into backward passes of at most `limit` tokens, or one completion.

    questions: so many questions each instead, 0: as many as fit. -> lists of (question, its completions' places)
    """
    parts, rows, longest = [], 0, 0
    for q, group in enumerate(completions):
        at_once = max(1, limit // max(map(len, group)))
        for start in range(0, len(group), at_once):
            places = range(start, min(start + at_once, len(group)))
            distinct = {tuple(group[g]) for g in places}  # equal ones are scored once, and padded to the longest
            rows, longest = rows + len(distinct), max(longest, *map(len, distinct))
            if not parts or rows * longest > limit or questions and q >= parts[-1][0][0] + questions:
                parts.append([])
                rows, longest = len(distinct), max(map(len, distinct))
            parts[-1].append((q, places))
    return parts


def correlation(pairs):
    """Pearson correlation of (mean stated confidence, target) over the questions of a step; None if undefined."""
    x = np.array(pairs).T
    # the mean of equal numbers is not always that number: a spread of rounding errors is none
    return float(np.corrcoef(x)[0, 1]) if len(pairs) > 1 and (np.ptp(x, axis=1) > 1e-9).all() else None


def sampled(rollouts):
    """Number of sampled tokens."""
    return sum(len(r.reflection) + len(r.number) for group in rollouts for r in group)


def measures(rewards, rollouts, chosen):
    """What the rollouts of a step are like, of all processes. Q lists of G, the same, all chosen Items -> dict"""
    rewards = np.array(parallel.gather(rewards))
    stated = parallel.gather([[r.confidence for r in group if r.confidence is not None] for group in rollouts])
    numbers = sum(stated, [])
    return {
        "reward": float(rewards.mean()),
        "malformed": 1 - len(numbers) / rewards.size,
        "mean_confidence": float(np.mean(numbers)) if numbers else None,
        "distinct": len(set(numbers)),
        "correlation": correlation([(np.mean(s), x.target) for s, x in zip(stated, chosen, strict=True) if s]),
        "no_signal": float((rewards.max(1) == rewards.min(1)).mean()),
        **parallel.totals(tokens=sampled(rollouts)),
    }

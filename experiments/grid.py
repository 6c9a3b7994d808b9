"""What is compared: each arm is the flags of a run, and all arms of a seed share its samples."""

import re
from dataclasses import dataclass

SEEDS = (1, 2, 3, 4, 5)

# The general budget of every trained arm: the same questions, steps and learning rate.
PAPER = "paper: calibrated reward"
BRIER = "Brier reward (RLCR)"
OURS = "ours"
ARMS = {
    PAPER: "",
    BRIER: "--reward brier",
    "log reward (Rewarding Doubt)": "--reward log",
    "supervised on the target": "--steps 0 --warmup 500",
    "exact gradient": "--gradient exact",
    "exact, hybrid reward": "--gradient exact --reward hybrid",
    "exact, target of the answer": "--gradient exact --target answer",
    OURS: "--gradient exact --reward hybrid --target answer",
}
ABLATIONS = {
    "tolerance 0": "--tolerance 0",
    "tolerance 0.1": "--tolerance 0.1",
    "zscore advantages": "--advantage zscore",
    "rank 1": "--rank 1",
    "rank 4": "--rank 4",
    "350 training questions": "--train-questions 350",
    "700 training questions": "--train-questions 700",
}


@dataclass(frozen=True)
class Table:
    """A grid of runs: arms x seeds. `flags` are those of every run, `reference` the arm that all are compared with."""

    title: str
    text: str
    arms: dict
    seeds: tuple
    reference: str
    flags: str = ""
    resamples: int = 1000


def slug(name):
    """A name as part of a path."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


TABLES = {
    "toy-arms": Table(
        "Every arm on five toy worlds", "All arms have the same questions, samples, steps and learning rate.",
        ARMS, SEEDS, BRIER,
    ),
    "toy-ablations": Table(
        "One thing changed at a time, on three toy worlds", "Everything else as in the paper's arm.",
        {PAPER: "", **ABLATIONS}, SEEDS[:3], PAPER,
    ),
}  # fmt: skip

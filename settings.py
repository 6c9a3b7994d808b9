"""Every setting of a run: its flag, its default, what it is for, and which stage depends on it first."""

import difflib
import importlib.util
import math
import os
import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path


def flag(default, text, stage, **kwargs):
    """A field of Config that is a flag of the command line; `stage` is the first one that depends on it."""
    return field(default=default, metadata={"help": text, "stage": stage, **kwargs})


@dataclass(frozen=True)
class Config:
    """Every setting of a run. [reported] marks what one second-hand note says of the paper; it is unverified."""

    model: str = flag("toy", "`toy`, or a causal language model: a hub id or a folder", "sample")
    dataset: str = flag("facts", "`facts`, `facts:capitals`, trivia_qa, nq_open, web_questions, gsm8k, sciq, or a "
                        "JSONL file with `question` and `answers`; commas join, in equal shares", "sample")  # fmt: skip
    ood: str = flag("", "unseen evaluation sets, named like --dataset (default: none; toy: its own)", "sample")
    prompt: str = flag("auto", "auto: the tokenizer's chat template if it has one", "sample",
                       choices=("auto", "chat", "fewshot"))  # fmt: skip
    platt_questions: int = flag(500, "labelled questions for Platt scaling alone", "sample")
    train_questions: int = flag(1000, "labelled questions for Platt scaling and stage 3", "sample")
    test_questions: int = flag(500, "held-out questions of the same families", "sample")
    ood_questions: int = flag(300, "questions of each unseen set", "sample")
    samples: int = flag(10, "answers sampled per question, n >= 2", "sample")
    temperature: float = flag(1.0, "of the sampled answers [reported: 1]", "sample")
    answer_temperature: float = flag(0.0, "of the one answer that counts, 0 is greedy [reported: 0.1]", "sample")
    answer_tokens: int = flag(16, "longest answer, in tokens", "sample")
    seed: int = flag(0, "of everything", "sample")
    sample_batch: int = flag(24, "questions sampled at once", None)

    embedder: str = flag("self", "sentence encoder, a hub id or folder; `self`: the model's hidden state", "calibrate")
    kernel: str = flag("rbf", "between embeddings", "calibrate", choices=("rbf", "cosine"))
    gamma: float = flag(1.0, "of the rbf kernel", "calibrate")
    grader: str = flag("exact", "exact: normalised match or equal number; contains: as words", "calibrate",
                       choices=("exact", "contains"))  # fmt: skip
    target: str = flag("question", "question: Platt scaling of the entropy; answer: of the entropy and the answer's "
                       "mean similarity to the samples", "calibrate", choices=("question", "answer"))  # fmt: skip
    folds: int = flag(5, "of the cross-fitted targets", "calibrate")

    steps: int = flag(200, "of reinforcement learning [reported: 1000]", "train")
    questions: int = flag(16, "per step [reported: 32]", "train")
    rollouts: int = flag(16, "per question [reported: 16]", "train")
    rollout_temperature: float = flag(1.0, "of the rollouts and their log-probabilities [reported: 1.5]", "train")
    reasoning: int = flag(0, "tokens that the model may think before the number", "train")
    reward: str = flag("calibrated", "calibrated: 1 - max(tolerance, |c - p|) [reported]; brier, log: scores of c "
                       "against the answer's correctness; hybrid: alpha * calibrated + (1 - alpha) * brier", "train",
                       choices=("calibrated", "brier", "log", "hybrid"))  # fmt: skip
    tolerance: float = flag(0.05, "of the calibrated reward [reported: 0.05]", "train")
    alpha: float = flag(0.5, "of the hybrid reward", "train")
    gradient: str = flag("sampled", "sampled: from rollouts; exact: of the expected reward over all percentages, no "
                         "rollouts, advantages, clipping", "train", choices=("sampled", "exact"))  # fmt: skip
    every: int = flag(1, "of the exact gradient: each so many-th percentage", "train", choices=(1, 5, 10))
    advantage: str = flag("loo", "loo, center, or zscore (GRPO's)", "train", choices=("loo", "center", "zscore"))
    lr: float = flag(2e-4, "learning rate of AdamW", "train")
    rank: int = flag(16, "of the LoRA [reported: 16]", "train")
    updates: int = flag(1, "optimiser steps per batch of rollouts", "train")
    clip: float = flag(0.2, "range of the probability ratio, when there are several updates", "train")
    kl: float = flag(0.03, "weight of the divergence from the base model, per nat; 0 may collapse", "train")
    max_grad_norm: float = flag(1.0, "gradient clipping", "train")
    micro_batch: int = flag(0, "questions in one backward pass, same result; 0: as many as their logits allow", None)
    recompute: str = flag("off", "activations in the backward pass; saves memory, same result", None,
                          choices=("off", "on"))  # fmt: skip
    adapter: str = flag("turn", "where it is on; turn: from the confidence turn on, so that what was read once serves "
                        "all rollouts; everywhere: it reads the question and the answer too, costs more than twice as "
                        "much, and can be merged", "train", choices=("turn", "everywhere"))  # fmt: skip
    tensorboard: str = flag("off", "also write the log of stage 3 for TensorBoard, to the folder tensorboard", None,
                            choices=("off", "on"))  # fmt: skip
    warmup: int = flag(0, "supervised steps on the calibrated targets before the first rollout", "train")
    amp: str = flag("auto", "mixed precision; auto: off on a CPU", "train", choices=("auto", "off", "bf16", "fp16"))

    baselines: str = flag("", "beside those that cost nothing: stated (untrained, with Platt), zero-shot, p-true; "
                          "commas join. Each reads the questions again", "eval")  # fmt: skip
    readout: str = flag("stated", "of ask and predict; expected: the mean of what would be stated", None,
                        choices=("stated", "expected"))  # fmt: skip
    resamples: int = flag(1000, "of the bootstrap", "eval")
    device: str = flag("auto", "auto: cuda if there is one", None, choices=("auto", "cpu", "cuda"))
    shard: str = flag("off", "with torchrun, for a model that does not fit one device: each process holds a share of "
                      "the frozen weights, and all do the same work", None, choices=("off", "on"))  # fmt: skip


# What the toy world needs instead: it is small enough for large batches, and its hidden states point much the same
# way, so that a narrow kernel is needed to tell its one-word answers apart.
TOY = dict(
    dataset="toy",
    platt_questions=100, train_questions=1400, test_questions=600, ood_questions=600, answer_tokens=4, sample_batch=200,
    gamma=16.0, steps=500, questions=64, lr=4e-3,
)  # fmt: skip


def option(name):
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def command(config):
    """The call that a run's settings come from: those that are not the default. config: as a dict -> str"""
    default = usual(config["model"])
    flags = [f"{option(name)} {shlex.quote(str(value))}" for name, value in config.items() if value != default[name]]
    return " ".join(["python calunc.py", *flags])


def one_spelling(names):
    """Paths among comma-separated names, without "./" and a last slash, so that they are not taken for others."""
    names = map(str.strip, names.split(","))
    return ",".join(os.path.normpath(name) if name and os.path.exists(name) else name for name in names)


def nearest(name, known):
    """A question at the end of the message about an unknown name, if one of the known ones is like it."""
    near = difflib.get_close_matches(name, known, 1) or [x for x in known if len(name) > 3 and name in x]
    return f"did you mean {near[0]!r}?" if near else ""


def nearest_file(path):
    """The same for a path, by what else is in its folder."""
    folder = Path(path).parent
    others = {p.name for p in folder.iterdir()} - {Path(path).name} if folder.is_dir() else ()
    near = nearest(Path(path).name, sorted(others))
    return near and near.replace("'", f"'{folder}/", 1)


def usual(model):
    """The default of every setting, where the toy model has some of its own. -> dict"""
    return {f.name: f.default for f in fields(Config)} | (TOY if model == "toy" else {})


def check(config):
    """Raises ValueError for a setting that no stage could use."""
    if config.samples < 2:
        raise ValueError(f"--samples is {config.samples}: an entropy needs at least 2 samples")
    positive = ("platt_questions", "train_questions", "test_questions", "ood_questions", "answer_tokens",
                "sample_batch", "questions", "rollouts", "rank", "updates", "resamples", "folds",
                "temperature", "rollout_temperature", "lr", "gamma", "max_grad_norm")  # fmt: skip
    for f in fields(config):
        if f.type is float and not math.isfinite(getattr(config, f.name)):
            raise ValueError(f"{option(f.name)} is {getattr(config, f.name)}: it must be a finite number")
    for name in positive:
        if not getattr(config, name) > 0:
            raise ValueError(f"{option(name)} is {getattr(config, name)}: it must be positive")
    for name in ("steps", "warmup", "reasoning", "micro_batch", "kl", "answer_temperature", "tolerance", "clip"):
        if getattr(config, name) < 0:
            raise ValueError(f"{option(name)} is {getattr(config, name)}: it must not be negative")
    for f in fields(config):
        if "choices" in f.metadata and getattr(config, f.name) not in f.metadata["choices"]:
            known = ", ".join(map(str, f.metadata["choices"]))
            raise ValueError(f"{option(f.name)} is {getattr(config, f.name)!r}: it must be one of {known}")
    if config.questions < processes():
        raise ValueError(f"--questions is {config.questions}, too few a step for {processes()} processes")
    if config.shard == "on" and processes() == 1:
        raise ValueError("--shard on needs more than one process: torchrun --nproc-per-node N calunc.py ...")
    if config.model == "toy" and config.prompt == "chat":
        raise ValueError("the toy model has no chat template: use --prompt fewshot")
    if config.tensorboard == "on" and not importlib.util.find_spec("tensorboard"):
        raise ValueError("--tensorboard on needs a package: pip install tensorboard")
    if config.folds < 2 or config.rollouts < 2:
        raise ValueError("--folds and --rollouts must be at least 2")
    if config.readout == "expected" and config.reasoning:
        raise ValueError("--readout expected takes no --reasoning, which cannot be enumerated")
    if config.gradient == "exact" and (config.reasoning or config.updates > 1):
        raise ValueError("--gradient exact takes no --reasoning, which cannot be enumerated, and one update a step")
    if not 0 <= config.seed < 2**63:
        raise ValueError(f"--seed is {config.seed}: it must be from 0 to 2^63 - 1")
    if not 0 <= config.alpha <= 1:
        raise ValueError(f"--alpha is {config.alpha}: it must be from 0 to 1")
    if config.warmup and config.reasoning:
        raise ValueError("--warmup has no reasoning to imitate: use it without --reasoning")
    if (config.model == "toy") != (config.dataset == "toy") or config.model == "toy" and config.ood:
        raise ValueError("the toy model and the toy questions go together: give --model for other questions")


def processes():
    """How many torchrun started; one without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1

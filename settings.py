"""Every setting of a run: its flag, its default, what it is for, and which stage depends on it first.

From infra: `files.processes`, how many processes share the work.
"""

import math
import shlex
from dataclasses import dataclass, field, fields

from infra.files import processes

POSITIVE, NOT_NEGATIVE = "positive", "not negative"


def flag(default, text, stage, must_be=None, choices=None):
    """A field of Config that is a flag of the command line; `stage` is the first one that depends on it."""
    return field(default=default, metadata={"help": text, "stage": stage, "must_be": must_be, "choices": choices})


@dataclass(frozen=True)
class Config:
    """Every setting of a run."""

    model: str = flag("toy", "`toy`, or a causal language model: a hub id or a folder", "sample")
    dataset: str = flag("facts", "`facts`, `facts:capitals`, trivia_qa, nq_open, web_questions, gsm8k, sciq, or a "
                        "JSONL file with `question` and `answers`; commas join, in equal shares", "sample")  # fmt: skip
    ood: str = flag("", "unseen evaluation sets, named like --dataset (default: none; toy: its own)",
                    "sample")  # fmt: skip
    prompt: str = flag("auto", "auto: chat or fewshot, by a pilot, where there is a chat template", "sample",
                       choices=("auto", "chat", "fewshot"))  # fmt: skip
    platt_questions: int = flag(500, "labelled questions for Platt scaling alone", "sample", POSITIVE)
    train_questions: int = flag(1000, "labelled questions to train on", "sample", POSITIVE)
    test_questions: int = flag(500, "held-out questions of the same families", "sample", POSITIVE)
    ood_questions: int = flag(300, "questions of each unseen set", "sample", POSITIVE)
    samples: int = flag(10, "answers sampled per question, n >= 2", "sample", POSITIVE)
    temperature: float = flag(1.0, "temperature of the sampled answers", "sample", POSITIVE)
    answer_temperature: float = flag(0.0, "temperature of the answer, 0: greedy", "sample", NOT_NEGATIVE)
    answer: str = flag("direct", "direct: the answer at once; reasoned: after a thought of a sentence or two",
                       "sample", choices=("direct", "reasoned"))  # fmt: skip
    answer_tokens: int = flag(16, "longest answer, in tokens", "sample", POSITIVE)
    thought_tokens: int = flag(64, "longest thought before a reasoned answer", "sample", POSITIVE)
    seed: int = flag(1, "random seed of all stages", "sample", NOT_NEGATIVE)
    sample_batch: int = flag(24, "questions sampled at once", None, POSITIVE)

    embedder: str = flag("self", "sentence encoder, a hub id or folder; `self`: the model's hidden state", "calibrate")
    kernel: str = flag("rbf", "kernel between embeddings", "calibrate", choices=("rbf", "cosine"))
    gamma: float = flag(1.0, "inverse squared length scale of the rbf kernel", "calibrate", POSITIVE)
    grader: str = flag("exact", "exact: normalised match or equal number; contains: as words; judge: a language model "
                       "says yes or no; file: --labels", "calibrate",
                       choices=("exact", "contains", "judge", "file"))  # fmt: skip
    judge: str = flag("", "with --grader judge: a hub id or folder", "calibrate")
    labels: str = flag("", "JSONL; --grader file: `id`, `correct`; recalibrate: `question`, `correct`", "calibrate")
    target: str = flag("question", "question: Platt scaling of the entropy; answer: of the entropy and the answer's "
                       "mean similarity to the samples", "calibrate", choices=("question", "answer"))  # fmt: skip
    folds: int = flag(5, "number of folds of the cross-fitted targets", "calibrate", POSITIVE)

    steps: int = flag(200, "steps of reinforcement learning", "train", NOT_NEGATIVE)
    questions: int = flag(16, "questions per step", "train", POSITIVE)
    rollouts: int = flag(16, "rollouts per question", "train", POSITIVE)
    rollout_temperature: float = flag(1.0, "temperature of the rollouts", "train", POSITIVE)
    reflection: int = flag(32, "longest reflection before the number, in tokens; 0: none", "train", NOT_NEGATIVE)
    statement: str = flag("confidence", "confidence: that the answer is right, in percent; uncertainty: that it "
                          "is wrong, from 0 to 1", "train", choices=("confidence", "uncertainty"))  # fmt: skip
    shown: str = flag("answer", "what the second turn shows of a reasoned answer", "train",
                      choices=("answer", "thought"))  # fmt: skip
    tell: str = flag("none", "what the second turn says of the answer; probability: the geometric mean of its tokens'",
                     "train", choices=("none", "probability"))  # fmt: skip
    reward: str = flag("calibrated", "calibrated: 1 - max(tolerance, |c - p|); brier, log: scores of c against the "
                       "answer's correctness; hybrid: alpha * calibrated + (1 - alpha) * brier", "train",
                       choices=("calibrated", "brier", "log", "hybrid"))  # fmt: skip
    tolerance: float = flag(0.05, "differences up to this cost nothing in the calibrated reward", "train", NOT_NEGATIVE)
    alpha: float = flag(0.5, "weight of the calibrated reward in the hybrid one", "train", NOT_NEGATIVE)
    gradient: str = flag("sampled", "sampled: from rollouts; exact: of the expected reward over all percentages, "
                         "after each sampled reflection", "train", choices=("sampled", "exact"))  # fmt: skip
    every: int = flag(1, "with --gradient exact: all percentages (1) or every fifth (5)", "train", choices=(1, 5))
    advantage: str = flag("loo", "loo: reward minus the mean of the group's other rewards; zscore: divided by the "
                          "group's standard deviation", "train", choices=("loo", "zscore"))  # fmt: skip
    lr: float = flag(2e-4, "learning rate of AdamW", "train", POSITIVE)
    rank: int = flag(16, "rank of the LoRA", "train", POSITIVE)
    dropout: float = flag(0.0, "dropout of the LoRA in the update", "train", NOT_NEGATIVE)
    kl: float = flag(0.03, "weight of the divergence from the base model; 0 may collapse", "train", NOT_NEGATIVE)
    max_grad_norm: float = flag(1.0, "largest norm of the gradient; a longer one is scaled down", "train", POSITIVE)
    adapter: str = flag("turn", "where the LoRA is on; turn: from the confidence turn on, so that question and answer "
                        "are read once for all rollouts; everywhere: on these too, at over twice the cost, and can be "
                        "merged", "train", choices=("turn", "everywhere"))  # fmt: skip
    warmup: int = flag(0, "supervised steps on the calibrated targets before the first rollout", "train", NOT_NEGATIVE)
    amp: str = flag("auto", "mixed precision; auto: off on a CPU", "train", choices=("auto", "off", "bf16", "fp16"))
    micro_batch: int = flag(0, "at most so many questions in one backward pass, 0: as many as fit", None, NOT_NEGATIVE)
    recompute: str = flag("off", "recompute activations in the backward pass; saves memory, same result", None,
                          choices=("off", "on"))  # fmt: skip

    baselines: str = flag("", "beside those that cost nothing: stated (untrained, with Platt), zero-shot, p-true; "
                          "commas join. Each reads the questions again", "eval")  # fmt: skip
    resamples: int = flag(1000, "resamples of the bootstrap", "eval", POSITIVE)
    readout: str = flag("expected", "confidence of ask and predict; expected: mean of the numbers that the model could "
                        "write; stated: the one that it writes; sequence, samples: untrained (beyond/readouts.py)",
                        None, choices=("expected", "stated", "sequence", "samples"))  # fmt: skip
    engine: str = flag("auto", "plain: a row for each completion; shared: equal beginnings are computed once; auto: "
                       "shared for short completions, if the model allows it", None,
                       choices=("auto", "plain", "shared"))  # fmt: skip
    device: str = flag("auto", "auto: cuda if there is one", None, choices=("auto", "cpu", "cuda"))


# What the toy world needs instead: it is small enough for large batches, and its hidden states point much the same
# way, so that a narrow kernel is needed to tell its one-word answers apart.
TOY = dict(
    dataset="toy",
    platt_questions=100, train_questions=1400, test_questions=600, ood_questions=600, answer_tokens=4, sample_batch=200,
    gamma=16.0, steps=250, questions=32, rollouts=8, lr=4e-3, reflection=5,
)  # fmt: skip
# What the paper states (arXiv 2603.06317); a recipe adds what it leaves open. Embedder and gamma: arXiv 2509.22272.
PAPER = dict(
    model="Qwen/Qwen2.5-7B-Instruct", dataset="trivia_qa,nq_open", ood="gsm8k", prompt="chat", answer="reasoned",
    temperature=1.0, answer_temperature=0.1, train_questions=18000, test_questions=2000, grader="judge",
    judge="GPT-4o-mini", target="question", statement="uncertainty", shown="answer", reward="calibrated",
    tolerance=0.05, gradient="sampled", advantage="zscore", steps=1000, questions=32, rollouts=16,
    rollout_temperature=1.5, rank=16, dropout=0.05, warmup=0,
)  # fmt: skip
RECIPES = {
    "paper": PAPER | dict(
        embedder="sentence-transformers/all-mpnet-base-v2", judge="Qwen/Qwen2.5-7B-Instruct", platt_questions=2000,
        ood_questions=1319, answer_tokens=32, thought_tokens=96, reflection=64, lr=2e-5),
    "small": dict(  # on two cores, with what scripts/fetch_*.py fetch
        model="models/smollm2-135m-instruct", embedder="models/all-minilm-l6-v2", prompt="fewshot",
        dataset="facts,questions/triviaqa_train.jsonl", ood="questions/webquestions.jsonl,questions/gsm8k_test.jsonl",
        platt_questions=300, train_questions=1000, test_questions=500, ood_questions=150, sample_batch=48,
        reflection=16, warmup=20, steps=40, questions=12, rollouts=8, lr=1e-3),
}  # fmt: skip


def option(name):
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def usual(model):
    """The default of every setting, where the toy model has some of its own. -> dict"""
    return {f.name: f.default for f in fields(Config)} | (TOY if model == "toy" else {})


def flags(config):
    """The flags of settings that are not the default. config: all settings, as a dict -> str"""
    default = usual(config["model"])
    return " ".join(f"{option(k)} {shlex.quote(str(v))}" for k, v in config.items() if v != default[k])


def check(config):
    """Raises ValueError for a setting that no stage could use."""
    for f in fields(config):
        value, must_be, choices = getattr(config, f.name), f.metadata["must_be"], f.metadata["choices"]
        if f.type is float and not math.isfinite(value):
            raise ValueError(f"{option(f.name)} is {value}: it must be a finite number")
        if must_be == POSITIVE and value <= 0 or must_be == NOT_NEGATIVE and value < 0:
            raise ValueError(f"{option(f.name)} is {value}: it must be {must_be}")
        if choices and value not in choices:
            raise ValueError(f"{option(f.name)} is {value!r}: it must be one of {', '.join(map(str, choices))}")
    toy = config.model == "toy"
    refused = {
        f"--samples is {config.samples}: an entropy needs at least 2 samples": config.samples < 2,
        "--folds and --rollouts must be at least 2": config.folds < 2 or config.rollouts < 2,
        f"--seed is {config.seed}: it must be below 2^63": config.seed >= 2**63,
        f"--alpha is {config.alpha}: it must be from 0 to 1": config.alpha > 1,
        f"--tolerance is {config.tolerance}: it must be below 1, or every number earns the same": config.tolerance >= 1,
        f"--questions is {config.questions}, fewer than the {processes()} processes":
            config.questions < processes(),
        f"--dropout is {config.dropout}: it must be below 1": config.dropout >= 1,
        "--gradient exact takes no dropout: add --dropout 0": config.dropout and config.gradient == "exact",
        "--grader judge needs --judge, and --judge needs it": (config.grader == "judge") != bool(config.judge),
        "--grader file needs --labels, and --labels needs it": (config.grader == "file") != bool(config.labels),
        "--shown thought needs --answer reasoned": config.shown == "thought" and config.answer == "direct",
        "the toy model has no chat template: use --prompt fewshot": toy and config.prompt == "chat",
        "the toy model answers at once, and states percentages: --answer and --statement need --model":
            toy and (config.answer != "direct" or config.statement != "confidence"),
        "the toy model answers the toy questions alone: --dataset and --ood need --model":
            toy and (config.dataset != "toy" or config.ood),
        "--dataset toy needs the toy model: leave --model out": config.dataset == "toy" and not toy,
    }  # fmt: skip
    for sentence, applies in refused.items():
        if applies:
            raise ValueError(sentence)

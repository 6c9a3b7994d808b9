"""What a trained run is for: a language model that answers and says how sure it is.

    lm = CalibratedLM("runs/x")
    answer = lm.ask("What is the capital of Peru?")
    answer.text, answer.confidence

The commands `ask`, `predict` and `merge` use the same run folders.

From infra: setup (the model and the settings of a run), folder.Run, files.read_questions, models.save.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import data
import lm
import lora
import rl
from beyond import baselines, exact
from infra import models, setup
from infra.files import read_questions
from infra.folder import Run
from report import card


@dataclass(frozen=True)
class Answer:
    text: str
    confidence: float | None  # in [0, 1]; None where none was stated


class CalibratedLM:
    """What a finished run has made of a language model.

    settings: those that change no training, as readout="expected" or device="cpu". Raises ValueError for a folder
    without a trained adapter, and for other settings.
    """

    def __init__(self, folder="runs/toy", **settings):
        self.config, self.run = setup.trained_run(folder, settings)
        self.model, self.prompt = setup.load_model(self.config, self.run)
        lora.load_adapter(self.model, self.run.path("adapter"))

    def ask(self, question):
        """-> Answer"""
        return self.ask_all([question])[0]

    def ask_all(self, questions):
        """The same in batches; the cache of a question is used again for the confidence turn. -> list of Answer"""
        model, prompt, config, questions = self.model, self.prompt, self.config, [q.strip() for q in questions]
        way = {"stated": "trained", "expected": "expected"}[config.readout]
        prompts, found = [prompt.answer(q) for q in questions], {}
        for batch in batches(range(len(questions)), lambda i: len(prompts[i]), config.sample_batch):
            with lora.adapter(model, False):
                before = lm.read(model, [prompts[i] for i in batch])
                drawn = model.engine(config.answer_tokens).sample(
                    model, before, [config.answer_temperature], config.answer_tokens, lm.stop_ids(model, "\n"),
                    [lm.seed_of(config.seed, "use", questions[i]) for i in batch],
                )  # fmt: skip
            answers = [data.clean_answer(model.decode(c)) for (c,) in drawn]
            pairs = [(questions[i], a) for i, a in zip(batch, answers, strict=True)]
            stated, _, _ = state(model, prompt, pairs, [way], config, before)[way]
            found |= {i: Answer(a, c) for i, a, c in zip(batch, answers, stated, strict=True)}
        return [found[i] for i in range(len(questions))]


def batches(items, length, size):
    """Cut into batches of similar length, so that little is padded; the longest first, so that memory fails early."""
    items = sorted(items, key=length, reverse=True)
    return [items[i : i + size] for i in range(0, len(items), size)]


def state(model, prompt, pairs, ways, config, before=None):
    """What the model says about a batch of (question, answer) pairs. -> {way: (confidences, tokens, seconds)}

    ways: "trained", and with the adapter off "untrained" and "zero-shot", one greedy statement; "expected", the mean of
    what would be said with the adapter on, and "p-true", for which nothing is generated. A confidence is None where
    none is stated; tokens and seconds are sums over the batch. before: Read of the questions, as for rl.ask.
    """
    start, found = time.perf_counter(), {}
    config = replace(config, reasoning=0) if "p-true" in ways else config
    asked = rl.ask(model, prompt, pairs, config, before)
    reading = time.perf_counter() - start
    for way in ways:
        start, tokens = time.perf_counter(), 0
        with torch.no_grad(), lora.adapter(model, way in ("trained", "expected")):
            if way == "p-true":
                stated = baselines.p_true(model, asked, config)
            elif way == "expected":
                stated = exact.expect(model, asked, config)
            else:  # greedy: no seed matters
                said = rl.rollout(model, prompt, asked, 1, 0.0, range(len(pairs)), config.reasoning)
                stated, tokens = [c for (c,) in said.confidence], said.sampled
        found[way] = stated, tokens, reading + time.perf_counter() - start
    return found


# ---- commands ---------------------------------------------------------------------------------------------------


def ask(args):
    if not args.question:
        raise ValueError('ask needs a question: python calunc.py ask "What is the capital of Peru?" --run runs/x')
    if args.out or args.input:
        raise ValueError("ask takes no --out and no --in; --run names the run folder")
    answer = CalibratedLM(args.run or "runs/toy", **args.given).ask(args.question)
    said = "no confidence stated" if answer.confidence is None else f"confidence {answer.confidence:.0%}"
    print(f"{answer.text}  ({said})")


def predict(args):
    if not args.input or not args.out:
        raise ValueError("predict needs --in questions.jsonl and --out answers.jsonl")
    out = _writable(args.out)
    asked = [row for _, row in read_questions(args.input)]
    answers = CalibratedLM(args.run or "runs/toy", **args.given).ask_all([row["question"].strip() for row in asked])
    rows = [row | {"answer": a.text, "confidence": a.confidence} for row, a in zip(asked, answers, strict=True)]
    Run(out.parent).write(out.name, rows)
    print(f"{len(rows)} answers in {out}")


def merge(args):
    """Write the trained model to a new folder, as an ordinary one.

    Raises ValueError where the adapter is not on everywhere: an ordinary model has no switch.
    """
    if not args.out:
        raise ValueError("merge needs --out, a new folder for the model; --run names the run folder")
    out = _writable(args.out)
    config, run = setup.trained_run(args.run or "runs/toy", args.given)
    if not run.finished("eval"):
        raise ValueError(f"{run.folder} has no report yet: go on with `{setup.again(run.config(), run)}`")
    if config.adapter != "everywhere":
        raise ValueError(f"the adapter in {run.folder} is on from the confidence turn on, and an ordinary model has no "
                         "switch: add --adapter everywhere to the call that made the run; the samples are kept, the "
                         "adapter is trained again")  # fmt: skip
    trained = CalibratedLM(run.folder, **args.given)
    model = trained.model
    lora.merge(model)
    asked = model.tokenizer.decode(sum(trained.prompt.confidence("(question)", "(answer)"), []))
    models.save(model.model, model.tokenizer, out, card.merged(run.read("report.json"), asked))
    print(f"the merged model is in {out}")


def _writable(out):
    """Where predict and merge write to. Raises ValueError if they cannot."""
    out = Path(out)
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to write {out.name} to")
    if out.exists():
        raise ValueError(f"{out} is there already: give --out a new name")
    return out

"""What a trained run is for: a language model that answers and says how sure it is. `ask`, `predict`, `merge` use it.

    lm = CalibratedLM("runs/x")
    answer = lm.ask("What is the capital of Peru?")
    answer.text, answer.confidence

From infra: setup (the model and the settings of a run), folder.Run, files.read_questions, loop.sampled, models.save.
"""

import functools
import time
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import NamedTuple

import torch

import data
import lm
import lora
import rl
from beyond import baselines, exact
from infra import models, setup
from infra.files import read_questions
from infra.folder import Run
from infra.loop import sampled
from report import card


@dataclass(frozen=True)
class Answer:
    text: str
    confidence: float | None  # in [0, 1]; None where none was stated
    reflection: str = ""  # what the model wrote before its confidence


class CalibratedLM:
    """What a finished run has made of a language model.

    settings: those that change no training, as device="cpu". Raises ValueError for others, and without an adapter.
    """

    def __init__(self, folder="runs/toy", **settings):
        self.config, self.run = setup.trained_run(folder, settings)
        self.model, self.prompt = setup.load_model(self.config, self.run)
        lora.load_adapter(self.model, self.run.path("adapter"))

    def ask(self, question):
        """-> Answer"""
        return self.ask_all([question])[0]

    def ask_all(self, questions):
        """The same in batches. -> list of Answer"""
        model, prompt, config = self.model, self.prompt, self.config
        questions = setup.askable(config, model, questions)
        way, found = {"stated": "trained", "expected": "expected"}[config.readout], {}
        for batch in batches(range(len(questions)), lambda i: len(questions[i]), config.sample_batch):
            asked = [questions[i] for i in batch]
            seeds = [lm.seed_of(config.seed, "use", q) for q in asked]
            with lora.adapter(model, False):
                replies = [r for (r,) in answers(model, prompt, asked, [config.answer_temperature], seeds, config)]
            pairs = [(q, r.text, r.thought, exp(r.logprob / r.tokens)) for q, r in zip(asked, replies, strict=True)]
            said = state(model, prompt, pairs, [way], config)[way]
            for i, reply, confidence, reflection in zip(batch, replies, said[0], said[3], strict=True):
                found[i] = Answer(reply.text, confidence, reflection)
        return [found[i] for i in range(len(questions))]


class Reply(NamedTuple):
    text: str
    thought: str  # before the answer; empty if it is given at once
    tokens: int  # of the answer
    thought_tokens: int
    logprob: float  # of the answer at temperature 1, in nats


def answers(model, prompt, questions, temperatures, seeds, config):
    """Answer Q questions, once at each of n temperatures, with the adapter as it is. -> Q lists of n Replies"""
    now, n, stop = [prompt.answer(q) for q in questions], len(temperatures), lm.stop_ids(model, "\n")
    fit = max(1, model.rows(max(map(len, now)) + config.thought_tokens + config.answer_tokens) // n)
    if prompt.reasoned and fit < len(now):  # each thought is a prompt of its own
        cuts = [slice(i, i + fit) for i in range(0, len(now), fit)]
        return sum((answers(model, prompt, questions[s], temperatures, seeds[s], config) for s in cuts), [])
    thoughts, parts = [[]] * (len(now) * n), [(range(len(now) * n), now, temperatures, seeds)]
    if prompt.reasoned:
        force = functools.partial(prompt.after, label="Answer:")
        read, longest = lm.read(model, now), config.thought_tokens
        now, thoughts, _ = rl.think(model, read, temperatures, longest, seeds, force, model.blank)
        after = [lm.seed_of(seeds[i // n], "answer", i % n) for i in range(len(thoughts))]
        same = {t: [i for i in range(len(thoughts)) if temperatures[i % n] == t] for t in temperatures}
        parts = [(rows, now.some(rows), [t], [after[i] for i in rows]) for t, rows in same.items()]
    found = {}
    for rows, read, own, seeds in parts:
        engine = model.engine(config.answer_tokens)
        drawn, logp = engine.sample(model, read, own, config.answer_tokens, stop, seeds, True, model.blank)
        for i, ids, nats in zip(rows, sum(drawn, []), sum(logp, []), strict=True):
            text, thought = data.clean_answer(model.decode(ids)), model.decode(thoughts[i]).strip()
            found[i] = Reply(text, thought, len(ids), len(thoughts[i]), nats)
    return [[found[q * n + i] for i in range(n)] for q in range(len(questions))]


def batches(items, length, size):
    """Cut into batches of similar length, so that little is padded; the longest first, so that memory fails early."""
    items = sorted(items, key=length, reverse=True)
    return [items[i : i + size] for i in range(0, len(items), size)]


def state(model, prompt, pairs, ways, config):
    """What the model says about a batch of answered questions. -> {way: (confidences, tokens, seconds, reflections)}

    pairs: as rl.ask takes them. ways: "trained", and with the adapter off "untrained", "alone" (without reflection) and
    "zero-shot": greedily; "expected", the mean of what would be said after the trained model's reflection; "p-true",
    for which nothing is generated. A confidence is None where none is stated; tokens and seconds are sums.
    """
    start = time.perf_counter()
    asked = rl.ask(model, prompt, pairs, config)
    reading, found = time.perf_counter() - start, {}

    @functools.cache
    def spoken(on):
        start = time.perf_counter()
        with lora.adapter(model, on):  # greedy: no seed matters
            said = rl.rollout(model, prompt, asked, 1, 0.0, range(len(pairs)))
        return said, time.perf_counter() - start

    for way in ways:
        on = way in ("trained", "expected")
        said, took = spoken(on) if prompt.reflection or way not in ("expected", "p-true") else ([], 0.0)
        start, tokens = time.perf_counter(), sampled(said)
        with torch.no_grad(), lora.adapter(model, on):
            if way == "p-true":
                stated = baselines.p_true(model, asked, config)
            elif way == "expected":
                stated = exact.expect(model, prompt, asked.after(said) if said else asked, config)
                tokens = sum(len(r.thought) for (r,) in said)
            else:
                stated = [r.confidence for (r,) in said]
        thoughts = [model.decode(r.thought).strip() for (r,) in said] if said else [""] * len(pairs)
        found[way] = stated, tokens, reading + took + time.perf_counter() - start, thoughts
    return found


# ---- commands ---------------------------------------------------------------------------------------------------


def ask(args):
    if not args.question:
        raise ValueError('ask needs a question: python calunc.py ask "What is the capital of Peru?" --run runs/x')
    if args.out or args.input:
        raise ValueError("ask takes no --out and no --in; --run names the run folder")
    answer = CalibratedLM(args.run or "runs/toy", **args.given).ask(args.question)
    said = "no confidence stated" if answer.confidence is None else f"confidence {answer.confidence:.0%}"
    if args.show_reflection:
        print(answer.reflection)
    print(f"{answer.text}  ({said})")


def predict(args):
    if not args.input or not args.out:
        raise ValueError("predict needs --in questions.jsonl and --out answers.jsonl")
    out = _writable(args.out)
    asked = [row for _, row in read_questions(args.input, taken=("answer", "confidence", "reflection"))]
    found = CalibratedLM(args.run or "runs/toy", **args.given).ask_all([row["question"].strip() for row in asked])
    rows = [row | {"answer": a.text, "confidence": a.confidence, "reflection": a.reflection}
            for row, a in zip(asked, found, strict=True)]  # fmt: skip
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
    lora.merge(trained.model)
    asked = trained.model.tokenizer.decode(sum(trained.prompt.confidence("(question)", "(answer)", "", 0.5), []))
    models.save(trained.model.model, trained.model.tokenizer, out, card.merged(run.read("report.json"), asked))
    print(f"the merged model is in {out}")


def _writable(out):
    """Where predict and merge write to. Raises ValueError if they cannot."""
    out = Path(out)
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to write {out.name} to")
    if out.exists():
        raise ValueError(f"{out} is there already: give --out a new name")
    return out

"""What a run is for: a language model that answers and says how sure it is. The commands use it: infra/commands.py.

    trained = CalibratedLM("runs/x")
    answer = trained.ask("What is the capital of Peru?")
    answer.text, answer.confidence
    trained.judge("What is the capital of Peru?", "Cusco").confidence

From infra: setup (the model and the settings of a run), progress, files.LABELLED, loop.sampled.
"""

import functools
import time
from dataclasses import dataclass
from math import exp
from typing import NamedTuple

import torch

import data
import entropy
import lm
import lora
import rl
from beyond import baselines, exact, readouts
from infra import progress, setup
from infra.files import LABELLED
from infra.loop import sampled


@dataclass(frozen=True)
class Answer:
    text: str
    confidence: float | None  # in [0, 1]; None where none was stated
    reflection: str = ""  # what the model wrote before its confidence


class CalibratedLM:
    """What a run has made of a language model.

    settings: those that change no training, as device="cpu" or readout="sequence". fit: the name of one that
    `recalibrate` made. Raises ValueError for other settings, and for a run that is not far enough for the readout.
    """

    def __init__(self, folder="runs/toy", fit="", **settings):
        self.config, self.run = setup.usable_run(folder, settings)
        self.field = readouts.FIELDS[self.config.readout]
        self.refitted = setup.fit_of(self.config, self.run, fit) if fit else None
        self.model, self.prompt = setup.load_model(self.config, self.run)
        if self.config.readout in readouts.TRAINED:
            lora.load_adapter(self.model, self.run.path("adapter"))
        else:
            labelled = [row for row in self.run.read("targets.jsonl") if row["part"] in LABELLED]
            self.scale = readouts.scaler(readouts.FEATURES[self.field], labelled)
        if self.config.readout == "samples":
            self.embedder = lm.load_embedder(self.config.embedder, self.model)

    def ask(self, question):
        """-> Answer"""
        return self.ask_all([question])[0]

    def judge(self, question, answer):
        """How sure the model is of an answer from elsewhere. -> Answer"""
        return self.judge_all([question], [answer or ""])[0]  # None is no answer

    def ask_all(self, questions):
        """`ask`, in batches. -> list of Answer"""
        return self.judge_all(questions := list(questions), [None] * len(questions))

    def judge_all(self, questions, texts):
        """`judge`, in batches; a text may be None, for the model's own. -> list of Answer"""
        questions, config, found = setup.askable(self.config, self.model, questions), self.config, {}
        texts = [text if text is None else setup.check_answer(config, self.model, text) for text in texts]
        n = config.samples if config.readout == "samples" else 0
        temperatures = [config.answer_temperature] + [config.temperature] * n
        for given in (False, True):
            some = [i for i, (_, text) in enumerate(zip(questions, texts, strict=True)) if (text is not None) == given]
            parts = batches(some, lambda i: len(questions[i]), config.sample_batch)
            for batch in progress.Bar(parts, desc="answering", unit="batch", disable=len(parts) < 2 or None):
                asked, replies = [questions[i] for i in batch], [[]] * len(batch)
                seeds = [lm.seed_of(config.seed, "use", q) for q in asked]
                if n or not given:
                    with lora.adapter(self.model, False):
                        replies = answers(self.model, self.prompt, asked, temperatures, seeds, config)
                if given:
                    own = readouts.log_probabilities(self.model, self.prompt, asked, [texts[i] for i in batch])
                    own = [Reply(texts[i], "", size, 0, nats) for i, (size, nats) in zip(batch, own, strict=True)]
                    replies = [[reply, *samples[1:]] for reply, samples in zip(own, replies, strict=True)]
                found.update(zip(batch, self._answers(asked, replies), strict=True))
        return [found[i] for i in range(len(questions))]

    def _answers(self, questions, replies):
        """Q questions, and for each its reply and samples beside it. -> Q Answers"""
        first, reflections = [reply for reply, *_ in replies], [""] * len(replies)
        if self.config.readout in readouts.TRAINED:
            pairs = [(q, r.text, r.thought, r.probability) for q, r in zip(questions, first, strict=True)]
            said = state(self.model, self.prompt, pairs, [self.field], self.config)
            confidences, _, _, reflections = said[self.field]
        elif self.config.readout == "samples":
            rows = [{"answer": r.text, "samples": [s.text for s in samples], "answer_logprob": r.logprob,
                     "answer_tokens": r.tokens} for r, *samples in replies]  # fmt: skip
            confidences = self.scale(scores(self.embedder, rows, self.config))
        else:
            confidences = self.scale([{"probability": r.probability} for r in first])
        if self.refitted:
            confidences = self.refitted.predict(confidences)
        return [Answer(r.text, c, z) for r, c, z in zip(first, confidences, reflections, strict=True)]

    def threshold(self, max_error):
        """The confidence from which on at most such a share of answers is wrong, or None: see readouts.threshold."""
        pairs = self.refitted.pairs if self.refitted else setup.test_part(self)
        said, correct = zip(*pairs, strict=True)
        return readouts.threshold(self.refitted.predict(said) if self.refitted else said, correct, max_error)


class Reply(NamedTuple):
    text: str
    thought: str  # before the answer; empty if it is given at once
    tokens: int  # of the answer
    thought_tokens: int
    logprob: float  # of the answer at temperature 1, in nats

    @property
    def probability(self):
        return exp(self.logprob / self.tokens)  # geometric mean over its tokens, the end included


def answers(model, prompt, questions, temperatures, seeds, config):
    """Answer Q questions, once at each of n temperatures, with the adapter as it is. -> Q lists of n Replies"""
    now, n, stop = [prompt.first_turn(q) for q in questions], len(temperatures), lm.stop_ids(model, "\n")
    fit = max(1, model.rows(max(map(len, now)) + config.thought_tokens + config.answer_tokens) // n)
    if prompt.reasoned and fit < len(now):  # each thought is a prompt of its own
        cuts = [slice(i, i + fit) for i in range(0, len(now), fit)]
        return sum((answers(model, prompt, questions[s], temperatures, seeds[s], config) for s in cuts), [])
    thoughts, parts = [[]] * (len(now) * n), [(range(len(now) * n), now, temperatures, seeds)]
    if prompt.reasoned:
        force = functools.partial(prompt.forced, label="Answer:")
        asked, longest = lm.read(model, now), config.thought_tokens
        now, thoughts, _ = rl.think(model, asked, temperatures, longest, seeds, force, model.blank)
        after = [lm.seed_of(seeds[i // n], "answer", i % n) for i in range(len(thoughts))]
        same = {t: [i for i in range(len(thoughts)) if temperatures[i % n] == t] for t in temperatures}
        parts = [(rows, now.some(rows), [t], [after[i] for i in rows]) for t, rows in same.items()]
    found = {}
    for rows, begun, each, drawing in parts:  # completions; their prompts, temperatures and seeds
        engine = model.engine(config.answer_tokens)
        drawn, logp = engine.sample(model, begun, each, config.answer_tokens, stop, drawing, True, model.blank)
        for i, ids, nats in zip(rows, sum(drawn, []), sum(logp, []), strict=True):
            text, thought = data.clean_answer(model.decode(ids)), model.decode(thoughts[i]).strip()
            found[i] = Reply(text, thought, len(ids), len(thoughts[i]), nats)
    return [[found[q * n + i] for i in range(n)] for q in range(len(questions))]


def scores(embedder, rows, config):
    """How far the samples disagree, and with the answer. N rows of samples.jsonl -> N dicts"""
    texts = [text for row in rows for text in (row["answer"], *row["samples"])]
    embeddings = lm.embed(embedder, texts).reshape(len(rows), 1 + config.samples, -1)  # (N, 1 + n, d)
    gram = entropy.gram(embeddings, config.kernel, config.gamma)  # (N, 1 + n, 1 + n)
    found = zip(rows, gram, entropy.von_neumann(gram[:, 1:, 1:]).tolist(), strict=True)  # of the samples, (N,)
    return [{"entropy": h, "similarity": float(k[0, 1:].mean()), **baselines.free(row, k[1:, 1:])}
            for row, k, h in found]  # fmt: skip


def batches(items, length, size):
    """Cut into batches of similar length, so that little is padded; the longest first, so that memory fails early."""
    items = sorted(items, key=length, reverse=True)
    return [items[i : i + size] for i in range(0, len(items), size)]


def state(model, prompt, pairs, methods, config):
    """What the model says about a batch of answered questions. -> {method: (confidences, tokens, seconds, reflections)}

    pairs: as rl.second_turns takes them. methods: "trained"; with the adapter off "untrained", "alone" and "zero-shot",
    which differ in the caller's prompt; "expected", the mean of what would be said after the trained reflection;
    "p-true", for which nothing is generated. None where none is stated; tokens and seconds are sums.
    """
    start = time.perf_counter()
    asked = rl.second_turns(model, prompt, pairs, config)
    reading, found = time.perf_counter() - start, {}

    @functools.cache
    def spoken(on):
        start = time.perf_counter()
        with lora.adapter(model, on):  # greedy: no seed matters
            said = rl.rollout(model, prompt, asked, 1, 0.0, range(len(pairs)))
        return said, time.perf_counter() - start

    for method in methods:
        on = method in ("trained", "expected")
        said, took = spoken(on) if prompt.reflection or method not in ("expected", "p-true") else ([], 0.0)
        start, tokens = time.perf_counter(), sampled(said)
        with torch.no_grad(), lora.adapter(model, on):
            if method == "p-true":
                stated = baselines.p_true(model, asked, config)
            elif method == "expected":
                stated = exact.expect(model, prompt, asked.after(said) if said else asked, config)
                tokens = sum(len(r.reflection) for (r,) in said)
            else:
                stated = [r.confidence for (r,) in said]
        reflections = [model.decode(r.reflection).strip() for (r,) in said] if said else [""] * len(pairs)
        found[method] = stated, tokens, reading + took + time.perf_counter() - start, reflections
    return found

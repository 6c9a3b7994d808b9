"""What the model says about its confidence: statements sampled one by one, or all of them with their probabilities.

The base model reads the question and its own answer; the adapter is on from the turn on ("Confidence:"). Then

    sampled:  c_1 ... c_G ~ pi( . | question, answer)              rollouts, perhaps after some reasoning
    exact:    pi(c) = P(" c%" | question, answer)                  for each c in 0, 1, ..., 100
    readout:  E[c] = sum_c c p(c) / sum_c p(c)                     expected confidence; p(c) = P(" c", then no digit)

Without reasoning there are only 101 whole percentages to say. They are scored on the shared prompt as a tree of digits,
of about a hundred tokens, with gradients on. The readout takes " 9.5%" for 9%; the exact gradient takes it for
malformed, with whatever else is no whole percentage. What comes after the digits need not be read for it: a dozen
tokens, where each digit is one.
"""

import time
from dataclasses import dataclass

import torch

from data import LABEL, parse_confidence
from lm import completion_logprobs, sample, seed_of, stop_ids
from lora import adapter
from prefix import Read

NUMBER_TOKENS = 6  # the longest statement


@dataclass(frozen=True)
class Asked:
    """Q questions with their answers, and the turn that every statement begins with."""

    read: Read | list  # by the base model; or the token ids, which the adapter is to read for each use
    turn: list  # token ids of "Confidence:"

    def __len__(self):
        return len(self.read.prompts if isinstance(self.read, Read) else self.read)

    def some(self, chosen):
        some = self.read.some(chosen) if isinstance(self.read, Read) else [self.read[q] for q in chosen]
        return Asked(some, self.turn)


def ask(lm, prompt, pairs, reason=False, read=None, where="turn"):
    """(question, answer) pairs -> Asked. reason: the turn begins with the reasoning.

    read: what the model has read to answer the questions (frozen), to go on from. where: the setting `adapter`.
    """
    contexts, turns = zip(*(prompt.confidence(q, a, reason) for q, a in pairs), strict=True)
    if where == "everywhere":
        return Asked(list(contexts), turns[0])
    if read is None:
        return Asked(Read(lm, list(contexts), frozen=True), turns[0])
    return Asked(read.then([c[len(p) :] for c, p in zip(contexts, read.prompts, strict=True)]), turns[0])


# ---- sampled ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rollouts:
    """Q questions, G completions each: token ids, which tokens were the model's choice, and the stated confidence."""

    asked: Asked
    completions: list  # Q lists of G lists of token ids, where the adapter is on; the turn is their beginning
    actions: list  # the same shape, 1 where the token was sampled and 0 where it was forced
    confidence: list  # Q lists of G, a float in [0, 1] or None

    @property
    def tokens(self):
        """Number of sampled tokens."""
        return sum(sum(a) for group in self.actions for a in group)


def rollout(lm, prompt, asked, group, temperature, seeds, reasoning=0, number_tokens=NUMBER_TOKENS):
    """Let the model state its confidence in each answer, `group` times. -> Rollouts

    A completion is the turn and the sampled number. With reasoning > 0 the model first writes up to that many tokens,
    to the end of the line. Forced tokens are no actions.
    """
    size, turn = len(asked), asked.turn
    completions, actions = ([[x] * group for _ in range(size)] for x in (turn, [0] * len(turn)))

    def extend(rows, choice):
        """Append to each completion, and note whether it was the model's choice."""
        for x, a, new in zip(completions, actions, rows, strict=True):
            x[:] = [old + tokens for old, tokens in zip(x, new, strict=True)]
            a[:] = [old + [choice] * len(tokens) for old, tokens in zip(a, new, strict=True)]

    if reasoning:
        # the token that ends the thought is an action too
        thoughts = sample(lm, asked.read, [temperature] * group, reasoning, stop_ids(lm, "\n"), seeds, completions)
        extend(thoughts, 1)
        extend([[prompt.after_reasoning(t) for t in row] for row in thoughts], 0)
    numbers = sample(lm, asked.read, [temperature] * group, number_tokens, stop_ids(lm, "\n%"),
                     [seed_of(seed, "number") for seed in seeds], completions)  # fmt: skip
    extend(numbers, 1)
    # with special tokens, which would hide in the midst of a number
    stated = {t: parse_confidence(LABEL + lm.tokenizer.decode(t)) for t in {tuple(t) for row in numbers for t in row}}
    return Rollouts(asked, completions, actions, [[stated[tuple(t)] for t in row] for row in numbers])


# ---- exact ------------------------------------------------------------------------------------------------------


def percentages(lm, every=1):
    """Each `every`-th percentage, as far as the tokenizer can write it. -> {percent: token ids}"""
    found = {percent: lm.proceed(f" {percent}%") for percent in range(0, 101, every)}
    return {percent: ids for percent, ids in found.items() if _written(lm, ids, f"{percent}%")}


def _written(lm, ids, text):
    return lm.decode(ids).strip() == text  # some tokenizers drop the first blank when they decode


def log_policy(lm, asked, said, temperature=1.0, recompute=False):
    """log pi(c) of each question and percentage. -> (Q, C), with gradient"""
    completions = [[asked.turn + ids for ids in said.values()]] * len(asked)
    logp, _ = completion_logprobs(lm, asked.read, completions, temperature, recompute, given=len(asked.turn))
    return logp.sum(-1).view(-1, len(said))


def divergence(logp, reference):
    """KL(policy || reference) over the percentages and, as one more outcome, all else. (Q, C) x 2 -> (Q,), in nats"""

    def whole(x):
        rest = (1 - x.exp().sum(-1, keepdim=True)).clamp_min(1e-6).log()
        return torch.cat([x, rest], dim=-1)

    p, q = whole(logp), whole(reference)
    return (p.exp() * (p - q)).sum(-1)


def expected_confidence(chance, said):
    """Mean of what would be said, given that it is one of `said`, and the chance of that. (Q, C) -> (Q,), (Q,)"""
    percent = torch.tensor(list(said), dtype=chance.dtype, device=chance.device)
    return (chance * percent).sum(-1) / chance.sum(-1).clamp_min(1e-12) / 100, chance.sum(-1)


def whole_numbers(lm):
    """How a statement of each percentage begins: " 7", or " 7%" where that is one token. -> {percent: token ids}"""
    found = {}
    for percent in range(101):
        for text in (f"{percent}%", f"{percent}"):
            ids = lm.proceed(f" {text}")
            if _written(lm, ids, text):
                found[percent] = ids
    return found


def whole_number_chance(lm, asked, said):
    """P(the statement begins with the number and goes on with no other of `said`). -> (Q, C)"""
    begins = log_policy(lm, asked, said).exp()
    chance, ids = begins.clone(), list(said.values())
    for i, x in enumerate(ids):  # " 75" is a part of " 7", and " 100" of " 10" alone
        shorter = [j for j, y in enumerate(ids) if len(y) < len(x) and x[: len(y)] == y]
        if shorter:
            chance[:, max(shorter, key=lambda j: len(ids[j]))] -= begins[:, i]
    return chance.clamp_min(0)


# ---- all ways ---------------------------------------------------------------------------------------------------


def p_true(lm, asked):
    """P(True) against P(False), where the turn asks for one of them. -> Q floats, None if it cannot be written"""
    words = {text: lm.proceed(f" {text}") for text in ("True", "False")}
    if not all(_written(lm, ids, text) for text, ids in words.items()):
        return [None] * len(asked)
    said = [[asked.turn + ids for ids in words.values()]] * len(asked)
    logp, _ = completion_logprobs(lm, asked.read, said, given=len(asked.turn))
    return logp.sum(-1).view(-1, 2).softmax(-1)[:, 0].tolist()


def expect(lm, asked):
    """The expected confidence in each answer, None where it is likelier that no number would be stated."""
    said = whole_numbers(lm)
    if not said:
        return [None] * len(asked)
    mean, number = expected_confidence(whole_number_chance(lm, asked, said), said)
    return [c if p >= 0.5 else None for c, p in zip(mean.tolist(), number.tolist(), strict=True)]


@torch.no_grad()
def state(lm, prompt, pairs, ways, reasoning=0, read=None, where="turn"):
    """What the model says about a batch of (question, answer) pairs. -> {way: (confidences, tokens, seconds)}

    ways: "trained", and with the adapter off "untrained" and "zero-shot", one greedy statement; "expected", the mean of
    what would be said with the adapter on, and "p-true", for which nothing is generated. A confidence is None where
    none is stated; tokens and seconds are sums over the batch. The base model reads each pair once for all of them.
    read, where: as for `ask`.
    """
    start = time.perf_counter()
    asked = ask(lm, prompt, pairs, reasoning > 0 and "p-true" not in ways, read, where)
    reading, found = time.perf_counter() - start, {}
    for way in ways:
        start, tokens = time.perf_counter(), 0
        with adapter(lm, way in ("trained", "expected")):
            if way == "p-true":
                stated = p_true(lm, asked)
            elif way == "expected":
                stated = expect(lm, asked)
            else:
                drawn = rollout(lm, prompt, asked, 1, 0.0, range(len(pairs)), reasoning)  # greedy: no seed matters
                stated, tokens = [c for (c,) in drawn.confidence], drawn.tokens
        found[way] = stated, tokens, reading + time.perf_counter() - start
    return found

"""The confidences that need no training, and what any confidence is good for.

    sequence   Platt scaling of the log-odds of exp(log P(answer) / its tokens); costs nothing
    samples    Platt scaling of the entropy of n samples and the answer's mean similarity to them

What is a probability already goes in as its log-odds, so that the fit can leave it as it is.

A threshold t to act on: of n held-out answers with a confidence of at least t, k are wrong. Then

    p(t) = P(Binomial(n, α) <= k)

is a p-value of "more than α of such answers are wrong". Thresholds are tested from the highest down, from the first one
that 30 answers reach and that could pass, and the last one before the first p(t) > δ is taken: fixed sequence testing,
"Learn then Test", arXiv 2110.01052. With probability 1 - δ over the draw of the held-out questions, at most α of the
answers above t are wrong, for questions like these, and if fewer are wrong the higher the threshold.
"""

from dataclasses import dataclass
from functools import cached_property
from math import log, log1p

import numpy as np
import torch

import platt
from lm import stop_ids
from lora import adapter

FIELDS = {"stated": "trained", "expected": "expected", "sequence": "probability, scaled", "samples": "samples, scaled"}
TRAINED = ("stated", "expected")
RISKS, DELTA = (0.05, 0.1, 0.2, 0.5), 0.1
FEW = 30  # answers that a threshold is tested on at least: one early error among fewer would end it
CLIP = 0.02  # chosen on labelled questions: the best of 0.2 to 1e-6 for self-consistency, and as good for the others


def log_odds(probability):
    """log p / (1 - p). Below 2% and above 98% it is that of 2% and 98%: shares of ten samples are often 0 or 1."""
    p = np.clip(probability, CLIP, 1 - CLIP)
    return np.log(p / (1 - p))


FEATURES = {  # a row of targets.jsonl -> what is fitted
    "probability, scaled": lambda t: log_odds(t["probability"]),
    "consistency, scaled": lambda t: log_odds(t["consistency"]),
    "clusters, scaled": lambda t: t["clusters"],
    "samples, scaled": lambda t: [t["entropy"], t["similarity"]],
    "all, scaled": lambda t: [t["entropy"], t["similarity"], log_odds(t["probability"])],
}


def scaler(feature, labelled):
    """Platt scaling of a feature of rows, fitted to labelled ones. -> rows like them -> confidences, None for None"""
    pairs = [(x, t["correct"]) for t in labelled if (x := feature(t)) is not None]
    fit = platt.fit(*zip(*pairs, strict=True)) if pairs else None

    def confidence(row):
        x = feature(row) if fit else None
        return None if x is None else float(fit.predict(x))

    return lambda rows: [confidence(row) for row in rows]


def log_probabilities(lm, prompt, questions, answers):
    """Answers from elsewhere, as if given at once, each as it is likeliest to be written. -> tokens and nats of Q

    Raises ValueError where the tokenizer has nothing that ends an answer.
    """
    every, prompts = [written(lm, lm.plain(text)) for text in answers], [prompt.first_turn(q) for q in questions]
    with torch.no_grad(), adapter(lm, False):
        logp, _ = lm.engine(max(len(x) for way in every for x in way)).completion_logprobs(lm, prompts, every)
    each = zip(every, logp.sum(1).split([len(ways) for ways in every]), strict=True)
    return [(len(ways[i := int(nats.argmax())]), float(nats[i])) for ways, nats in each]


def written(lm, text):
    """An answer with or without a blank before it and with each end, which may be one token with a full stop: ids"""
    found, line_end = [], stop_ids(lm, "\n")
    for blank in (" ", ""):
        for ids in (lm.proceed(blank + text + end) for end in ("\n", "\n\n")):  # some tokenizers drop both
            found += [ids[: i + 1] for i, token in enumerate(ids) if token in line_end][:1]
        found += [[*lm.proceed(blank + text), end] for end in sorted(stop_ids(lm, ""))]
    if not found:
        raise ValueError(f"the tokenizer of {lm.name} has neither an end of a line nor of a text")
    return [list(ids) for ids in dict.fromkeys(map(tuple, found))]


@dataclass(frozen=True)
class Refit:
    """Confidences made right for other questions, from a few labels: pairs of confidence and 0 or 1.

    P(correct) = σ(slope · log-odds + offset): as it is (1, 0), shifted (1, b), or Platt's (a, b) with a > 0, whichever
    has the lowest BIC, -2 log L + log N for each number that was fitted (Schwarz 1978): few labels may not say enough
    for two. The order stays, but for ties below 2% and above 98%. Raises ValueError where nothing has a confidence.
    """

    pairs: list

    @cached_property
    def slope_and_offset(self):
        there = [(c, y) for c, y in self.pairs if c is not None]
        if not there:
            raise ValueError(f"none of the {len(self.pairs)} labelled questions has a confidence to fit")
        x, y = log_odds([c for c, _ in there]), np.array([y for _, y in there])
        full = platt.fit(x, y)
        fits = [(1.0, 0.0), (1.0, shift(x, y)), *[(full.a, full.b)] * (full.a > 0)]

        def bic(fitted):
            p = platt.sigmoid(fits[fitted][0] * x + fits[fitted][1])
            return -2 * np.log(np.where(y == 1, p, 1 - p)).sum() + fitted * log(len(y))

        return fits[min(range(len(fits)), key=bic)]

    def predict(self, confidences):
        slope, offset = self.slope_and_offset
        if (slope, offset) == (1, 0):
            return list(confidences)  # log-odds would move those near 0 and 1
        return [None if c is None else float(platt.sigmoid(slope * log_odds(c) + offset)) for c in confidences]


def shift(x, y):
    """b so that the mean of sigmoid(x + b) is the share of right answers, with half an answer more of each kind."""
    low, high = -30.0, 30.0
    for _ in range(60):
        b = (low + high) / 2
        low, high = (b, high) if platt.sigmoid(x + b).mean() < (y.sum() + 0.5) / (len(y) + 1) else (low, b)
    return b


def threshold(confidence, correct, max_error, delta=DELTA):
    """The last t, from the highest down, before the first that fails the test: that at most max_error of the answers
    with a confidence of at least t are wrong, in all questions like these N. -> float, or None if the first one fails

    Nothing stated, None, is never answered. Raises ValueError for a max_error that is not between 0 and 1.
    """
    if not 0 < max_error < 1:
        raise ValueError(f"an error of {max_error} cannot be promised: it must be between 0 and 1")
    pairs = sorted(((c, y) for c, y in zip(confidence, correct, strict=True) if c is not None), reverse=True)
    right, found = 0, None
    least = max(FEW, log(delta) / log1p(-max_error))  # with fewer answers not even 0 errors would pass
    for n, (t, y) in enumerate(pairs, 1):
        right += y
        if n < least or n < len(pairs) and pairs[n][0] == t:
            continue
        if tail(n - right, n, max_error) > delta:
            break
        found = t
    return found


def tail(k, n, p):
    """P(Binomial(n, p) <= k)"""
    i, factorial = np.arange(k + 1), np.cumsum(np.log(np.maximum(np.arange(n + 1), 1)))  # log n!
    log_count = factorial[n] - factorial[i] - factorial[n - i]
    return np.exp(log_count + i * np.log(p) + (n - i) * np.log1p(-p)).sum()

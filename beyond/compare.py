"""The confidences of the last stage, on the same held-out questions and the same cached samples.

A score's Platt scaling is fitted on all labelled questions, or on Platt's own part if each must be read again for it.
"""

import numpy as np

import platt
import use
from beyond import baselines
from beyond.readouts import FEATURES, log_odds, scaler
from infra import parallel, progress
from infra.files import LABELLED


def state(config, model, prompt, pairs, ways):
    """use.state of (sample, target) pairs, in batches. -> {way: (confidences, tokens and seconds a question, texts)}"""
    found = {way: [[None] * len(pairs), 0, 0.0, [""] * len(pairs)] for way in ways}
    asked, mine = [(s["question"], s["answer"], s["thought"], t["probability"]) for s, t in pairs], []
    batches = use.batches(range(len(pairs)), lambda i: len(asked[i][0]), config.sample_batch)
    for batch in progress.Bar(parallel.share(batches), desc=f"confidence: {', '.join(ways)}", unit="batch"):
        mine.append(use.state(model, prompt, [asked[i] for i in batch], ways, config))
    for batch, got in zip(batches, parallel.gather(mine), strict=True):
        for way, (confidence, tokens, seconds, texts) in got.items():
            for i, c, text in zip(batch, confidence, texts, strict=True):
                found[way][0][i], found[way][3][i] = c, text
            found[way][1] += tokens / len(pairs)
            found[way][2] += seconds / len(pairs)
    return {way: tuple(values) for way, values in found.items()}


def free(labelled, held_out):
    """Base rate, family prior, and the scores that cost nothing, with Platt scaling. -> {method: confidences}"""
    labels, families = [t["correct"] for t in labelled], [t["family"] for t in labelled]
    asked = [t for _, t in held_out]
    found = {"base rate": [float(np.mean(labels))] * len(asked)}
    found["family prior"] = baselines.family_prior(labels, families, [t["family"] for t in asked])
    return found | {field: scaler(field, labelled)(asked) for field in FEATURES}


def read_again(name, config, model, prompt, pairs, stated):
    """A baseline that reads the questions again, as stated and with Platt scaling. -> {method: confidences}

    It is added to `stated`, unless it is there already.
    """
    way = "untrained" if name == "stated" else name
    if name == "zero-shot":
        prompt = baselines.without_examples(prompt)
    if name == "p-true":
        prompt = baselines.true_or_false(prompt)
    if way not in stated:
        held_out = [(s, t) for s, t in pairs if s["part"] not in LABELLED]
        stated |= state(config, model, prompt, held_out, [way])
    own = [(s, t) for s, t in pairs if s["part"] == "platt"]
    scores, *_ = state(config, model, prompt, own, [way])[way]
    return {way: stated[way][0], f"{way}, scaled": _scale(scores, [t for _, t in own], stated[way][0])}


def _scale(scores, labelled, asked):
    """Platt scaling fitted to the confidences of labelled questions -> those of the asked; None stays None."""
    there = [(s, t["correct"]) for s, t in zip(scores, labelled, strict=True) if s is not None]
    if not there:
        return [None] * len(asked)
    known, labels = zip(*there, strict=True)
    fit = platt.fit(log_odds(known), labels)
    return [None if s is None else float(fit.predict(log_odds(s))) for s in asked]

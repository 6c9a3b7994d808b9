"""The confidences of the last stage, on the same held-out questions and the same cached samples.

A score's Platt scaling is fitted on all labelled questions, or on Platt's own part if each must be read again for it.
"""

import numpy as np

import use
from beyond import baselines
from beyond.readouts import FEATURES, log_odds, scaler
from infra import parallel, progress
from infra.files import LABELLED


def state(config, model, prompt, pairs, methods):
    """use.state of (sample, target) pairs, in batches. -> {method: (confidences, mean tokens and seconds, texts)}"""
    found = {method: [[None] * len(pairs), 0, 0.0, [""] * len(pairs)] for method in methods}
    asked, mine = [(s["question"], s["answer"], s["thought"], t["probability"]) for s, t in pairs], []
    batches = use.batches(range(len(pairs)), lambda i: len(asked[i][0]), config.sample_batch)
    for batch in progress.Bar(parallel.share(batches), desc=f"confidence: {', '.join(methods)}", unit="batch"):
        mine.append(use.state(model, prompt, [asked[i] for i in batch], methods, config))
    for batch, got in zip(batches, parallel.gather(mine), strict=True):
        for method, (confidence, tokens, seconds, texts) in got.items():
            for i, c, text in zip(batch, confidence, texts, strict=True):
                found[method][0][i], found[method][3][i] = c, text
            found[method][1] += tokens / len(pairs)
            found[method][2] += seconds / len(pairs)
    return {method: tuple(values) for method, values in found.items()}


def free(labelled, asked):
    """Base rate, family prior, and the scores that cost nothing, with Platt scaling. -> {method: confidences}"""
    labels, families = [t["correct"] for t in labelled], [t["family"] for t in labelled]
    found = {"base rate": [float(np.mean(labels))] * len(asked)}
    found["family prior"] = baselines.family_prior(labels, families, [t["family"] for t in asked])
    return found | {field: scaler(feature, labelled)(asked) for field, feature in FEATURES.items()}


def read_again(name, config, model, prompt, pairs, stated):
    """A baseline that reads the questions again, as stated and with Platt scaling. -> {method: confidences}

    It is added to `stated`, unless it is there already.
    """
    method = "untrained" if name == "stated" else name
    if name == "zero-shot":
        prompt = baselines.without_examples(prompt)
    if name == "p-true":
        prompt = baselines.true_or_false(prompt)
    if method not in stated:
        held_out = [(s, t) for s, t in pairs if s["part"] not in LABELLED]
        stated |= state(config, model, prompt, held_out, [method])
    own = [(s, t) for s, t in pairs if s["part"] == "platt"]
    known, *_ = state(config, model, prompt, own, [method])[method]
    labelled = [{"said": c, "correct": t["correct"]} for c, (_, t) in zip(known, own, strict=True)]
    scale = scaler(lambda row: None if row["said"] is None else log_odds(row["said"]), labelled)
    return {method: stated[method][0], f"{method}, scaled": scale([{"said": c} for c in stated[method][0]])}

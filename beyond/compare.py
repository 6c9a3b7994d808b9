"""The other confidences of the last stage, on the same held-out questions and the same cached samples.

A score is also shown with Platt scaling of its own, fitted on all labelled questions, or on Platt's own part where each
question has to be read again for it.
"""

import platt
import use
from beyond import baselines
from infra.parallel import Journal
from lm import seed_of


def ways(config):
    """How the confidence is stated: before and after training; the expectation needs a number alone."""
    return ["untrained", "trained"] + ["expected"] * (config.reasoning == 0)


def state(config, run, model, prompt, pairs, ways):
    """use.state of (sample, target) pairs, in batches. -> {way: (confidences, tokens and seconds a question)}"""
    found = {way: [[None] * len(pairs), 0, 0.0] for way in ways}
    asked = [(s["question"], s["answer"]) for s, _ in pairs]
    names = [f"{s['part']} {s['id']}" for s, _ in pairs]
    cut = use.batches(range(len(pairs)), lambda i: len(asked[i][0]), config.sample_batch)
    pieces = {seed_of(*ways, *(names[i] for i in batch)): batch for batch in cut}
    journal = Journal(run, "eval", config, pieces)
    for piece in journal.todo(desc=f"confidence: {', '.join(ways)}", unit="batch"):
        journal.keep(piece, use.state(model, prompt, [asked[i] for i in pieces[piece]], ways, config))
    for piece, got in journal.all().items():
        for way, (confidence, tokens, seconds) in got.items():
            for i, c in zip(pieces[piece], confidence, strict=True):
                found[way][0][i] = c
            found[way][1] += tokens / len(pairs)
            found[way][2] += seconds / len(pairs)
    return {way: tuple(values) for way, values in found.items()}


def constants(labelled, held_out):
    """The base rate and the family prior. -> {method: confidences}"""
    labels, families = [t["correct"] for t in labelled], [t["family"] for t in labelled]
    return {
        "base rate": baselines.base_rate(labels, len(held_out)).tolist(),
        "family prior": baselines.family_prior(labels, families, [t["family"] for _, t in held_out]).tolist(),
    }


def scaled(labelled, held_out):
    """The scores that cost nothing, with Platt scaling. -> {method: confidences}"""
    found = {}
    for name in baselines.FREE:
        found[f"{name}, scaled"] = _scale([t[name] for t in labelled], labelled, [t[name] for _, t in held_out])
    return found


def read_again(name, config, run, model, prompt, pairs, stated):
    """A baseline that reads the questions again, as stated and with Platt scaling. -> {method: confidences}

    It is added to `stated`, unless it is there already.
    """
    way, asking = baselines.READING[name](prompt)
    held_out, own = ([(s, t) for s, t in pairs if (s["part"] == "platt") == mine and s["part"] != "train"]
                     for mine in (False, True))  # fmt: skip
    if way not in stated:
        stated |= state(config, run, model, asking, held_out, [way])
    ((scores, _, _),) = state(config, run, model, asking, own, [way]).values()
    return {way: stated[way][0], f"{way}, scaled": _scale(scores, [t for _, t in own], stated[way][0])}


def _scale(scores, labelled, asked):
    """Platt scaling fitted to the scores of labelled questions -> probabilities of those asked; None stays None."""
    there = [(s, t["correct"]) for s, t in zip(scores, labelled, strict=True) if s is not None]
    if not there:
        return [None] * len(asked)
    fit = platt.fit(*zip(*there, strict=True))
    return [None if s is None else float(fit.predict(s)) for s in asked]

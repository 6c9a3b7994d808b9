"""The last stage: what the model says before and after training, beside everything that it is compared with.

    eval       stated confidence, before and after, v the rest       predictions.jsonl, report.*, *.png

All on the same held-out questions and the same cached samples. A score is also shown with Platt scaling of its own,
fitted on all labelled questions, or on Platt's own part where each question has to be read again for it.
"""

import numpy as np

import baselines
import card
import figures
import lora
import page
import platt
import report
import statements
import tables
import toy
from lm import seed_of
from parallel import Journal
from run import first
from stages import batches, fingerprint


def evaluate(config, run, model, prompt):
    """-> predictions.jsonl, report.json, report.md, pictures, report.html"""
    labelled, platt_part, held_out = [], [], []
    for s, t in zip(run.rows("samples.jsonl"), run.rows("targets.jsonl"), strict=True):
        if t["part"] in ("platt", "train"):
            labelled.append(t)
        if t["part"] != "train":  # whose samples nobody needs any more
            (platt_part if t["part"] == "platt" else held_out).append((s, t))
    rows = [t for _, t in held_out]
    lora.load_adapter(model, run.path("adapter"))

    seconds = [row["seconds"] for row in run.rows("seconds.jsonl") if row["part"] not in ("platt", "train")]
    columns, cost = {}, report.teacher_cost([s for s, _ in held_out], seconds)
    finished = Journal(run, "eval", config)
    ways = ["untrained", "trained"] + ["expected"] * (config.reasoning == 0)
    stated = _state(config, model, prompt, held_out, ways, finished)
    for name in baselines.FREE:
        columns[f"{name}, scaled"] = _scale([t[name] for t in labelled], labelled, [t[name] for t in rows])
    for name in baselines.chosen(config.baselines):
        way, asking = baselines.READING[name](prompt)
        if way not in stated:
            stated |= _state(config, model, asking, held_out, [way], finished)
        ((scores, _, _),) = _state(config, model, asking, platt_part, [way], finished).values()
        columns[f"{way}, scaled"] = _scale(scores, [t for _, t in platt_part], stated[way][0])
    for way, (confidence, tokens, seconds) in stated.items():
        columns[way] = confidence
        cost[way] = {"tokens": cost["answer"]["tokens"] + tokens, "seconds": cost["answer"]["seconds"] + seconds}
    labels, families = [t["correct"] for t in labelled], [t["family"] for t in labelled]
    columns["base rate"] = baselines.base_rate(labels, len(rows)).tolist()
    columns["family prior"] = baselines.family_prior(labels, families, [r["family"] for r in rows]).tolist()
    rows = [r | {name: values[i] for name, values in columns.items()} for i, r in enumerate(rows)]
    run.write("predictions.jsonl", rows)

    fit = platt.Platt.from_json(run.path("platt.json").read_text(encoding="utf-8"))
    fit.check(fingerprint(config, prompt))
    log = run.read("metrics.jsonl")
    result = report.build(rows, fit, log, cost, run.stages(), config, run.read("environment.json"))
    if config.model == "toy":
        with lora.adapter(model, False):
            result["language_model_error"] = toy.error(model.model, model.tokenizer, toy.world(config.seed))
    run.write("report.json", result)
    run.write("report.md", tables.markdown(result))
    run.write("adapter/README.md", card.adapter(result))
    if first():
        _draw(run, [r for r in rows if r["part"] == "test"], fit, log)
        pictures = {name: run.path(name).read_bytes() for name in page.FIGURES}
        run.write("report.html", page.render(result, rows, [s for s, _ in held_out], pictures))


def _state(config, model, prompt, pairs, ways, finished):
    """statements.state of (sample, target) pairs, in batches. -> {way: (confidences, tokens and seconds a question)}"""
    found = {way: [[None] * len(pairs), 0, 0.0] for way in ways}
    asked = [(s["question"], s["answer"]) for s, _ in pairs]
    cut = batches(range(len(pairs)), lambda i: len(asked[i][0]), config.sample_batch)
    names = [f"{s['part']} {s['id']}" for s, _ in pairs]
    pieces = {seed_of(*ways, *(names[i] for i in batch)): batch for batch in cut}

    def ask(batch):
        return statements.state(model, prompt, [asked[i] for i in batch], ways, config.reasoning, where=config.adapter)

    for piece, got in finished.all(pieces, ask, desc=f"confidence: {', '.join(ways)}", unit="batch"):
        for way, (confidence, tokens, seconds) in got.items():
            for i, c in zip(pieces[piece], confidence, strict=True):
                found[way][0][i] = c
            found[way][1] += tokens / len(pairs)
            found[way][2] += seconds / len(pairs)
    return {way: tuple(values) for way, values in found.items()}


def _scale(scores, labelled, asked):
    """Platt scaling fitted to the scores of labelled questions -> probabilities of those asked; None stays None."""
    there = [(s, t["correct"]) for s, t in zip(scores, labelled, strict=True) if s is not None]
    if not there:
        return [None] * len(asked)
    fit = platt.fit(*zip(*there, strict=True))
    return [None if s is None else float(fit.predict(s)) for s in asked]


def _draw(run, test, fit, log):
    correct = np.array([r["correct"] for r in test])
    methods = {}
    for title, name in (("Stated, untrained", "untrained"), ("Stated, trained", "trained"), ("Teacher", "target")):
        said = np.array([r[name] is not None for r in test])
        methods[title] = np.array([r[name] for r in test if r[name] is not None], dtype=float), correct[said]
    figures.reliability(methods, run.path("reliability.png"))
    figures.risk_coverage(methods, run.path("risk_coverage.png"))
    figures.entropy_curve(np.array([r["entropy"] for r in test]), correct, fit, run.path("entropy.png"))
    figures.training(report.rl_steps(log), run.path("training.png"))

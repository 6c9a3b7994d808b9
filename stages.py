"""The four stages, top to bottom: sample, calibrate, train, eval. Each reads the files of the one before.

    sample     questions -> one answer and n samples each            samples.jsonl
    calibrate  samples -> entropy -> P(correct)                      targets.jsonl, platt.json
    train      targets -> an adapter that states them                adapter/, metrics.jsonl
    eval       stated confidence, before and after, v the teacher    predictions.jsonl, report.json, report.md, *.png

`answer_questions` is what all of it is for: one answer and one confidence, in two short generations.
"""

import json
import sys
import time
from dataclasses import asdict

import numpy as np
import torch
from tqdm import tqdm

import baselines
import data
import entropy
import figures
import lm
import lora
import platt
import report
import rl
import toy
from run import key, read_lines

# ---- what the stages share --------------------------------------------------------------------------------------


def load_model(config, run):
    """-> LM and Prompt. The toy model is trained once for each seed and kept in the run folder."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, and there is no GPU in reach")
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    name = config.model
    if name == "toy":
        name = run.path(f"model-{config.seed}")
        if not name.exists():
            name.parent.mkdir(parents=True, exist_ok=True)
            toy.build(name, config.seed)
    # a GPU holds the frozen weights in the precision of the arithmetic; what is trained stays in float32
    dtype = (rl.amp_dtype(config.amp, device) if device.type == "cuda" else None) or torch.float32
    loaded = lm.load(name, device, dtype)
    style = config.prompt
    if style == "auto":
        style = "chat" if loaded.tokenizer.chat_template else "fewshot"
    if style == "chat" and not loaded.tokenizer.chat_template:
        raise ValueError(f"{config.model} has no chat template: use --prompt fewshot")
    return loaded, data.Prompt(loaded, style, () if config.model == "toy" else data.EXAMPLES)


def load_questions(config):
    """-> list of (part, Question). part: platt, train, test, or the name of an unseen set."""
    sizes = {"platt": config.platt_questions, "train": config.train_questions, "test": config.test_questions}
    if config.model == "toy":
        world = toy.world(seed=config.seed)
        known, unseen = (world.questions(f, config.seed) for f in (toy.TRAINED, toy.UNSEEN))
        others = {"unseen families": unseen}
    else:
        known, others = data.load(config.dataset), {}
        asked = {q.question for q in known}
        for name in filter(None, map(str.strip, config.ood.split(","))):
            short = data.short_name(name)
            # a file called test.jsonl must not take the place of the held-out part
            found = [q for q in data.load(name, held_out=True) if q.question not in asked]
            if not found:
                raise ValueError(f"--ood {name}: all of its questions are in --dataset too")
            others[name if short in sizes or short in others else short] = found
    if len(known) < sum(sizes.values()):
        share = len(known) / sum(sizes.values())
        sizes = {part: max(1, int(size * share)) for part, size in sizes.items()}
        print(f"note: only {len(known)} questions, so the parts are smaller: {sizes}", file=sys.stderr)
    parts = data.split(known, sizes, config.seed)
    for name, questions in others.items():
        parts[name] = data.split(questions, {name: min(config.ood_questions, len(questions))}, config.seed)[name]
    return [(part, q) for part, questions in parts.items() for q in questions]


def batches(items, length, size):
    """Cut into batches of similar length, so that little is padded; the longest first, so that memory fails early."""
    items = sorted(items, key=length, reverse=True)
    return [items[i : i + size] for i in range(0, len(items), size)]


# ---- stage 1: sample --------------------------------------------------------------------------------------------


def sample(config, run, model, prompt, questions):
    """One answer and n samples for each question -> samples.jsonl"""
    stop = lm.stop_ids(model, "\n")
    temperatures = [config.answer_temperature] + [config.temperature] * config.samples
    prompts = {(part, q.id): prompt.answer(q.question) for part, q in questions}
    # finished batches are kept, so that an interrupted run goes on where it was
    partial = run.path(f".samples-{key('sample', config)}.jsonl")
    rows = {(row["part"], row["id"]): row for row in read_lines(partial)}
    if rows:
        run.write(partial.name, list(rows.values()))  # without a last line that was cut short
    todo = [(part, q) for part, q in questions if (part, q.id) not in rows]
    bar = tqdm(total=len(questions), initial=len(rows), desc="sampling answers", unit="question")
    for batch in batches(todo, lambda item: len(prompts[item[0], item[1].id]), config.sample_batch):
        start = time.perf_counter()
        seeds = [lm.seed_of(config.seed, "sample", q.id) for _, q in batch]
        ids = [prompts[part, q.id] for part, q in batch]
        drawn = lm.sample(model, ids, temperatures, config.answer_tokens, stop, seeds)
        seconds = (time.perf_counter() - start) / len(batch)
        for (part, q), completions in zip(batch, drawn, strict=True):
            texts = [data.clean_answer(model.decode(c)) for c in completions]
            rows[part, q.id] = {
                "part": part, **asdict(q), "answer": texts[0], "samples": texts[1:],
                "answer_tokens": len(completions[0]), "sample_tokens": sum(map(len, completions[1:])),
                "seconds": seconds,
            }  # fmt: skip
            run.append(partial.name, rows[part, q.id])
        bar.update(len(batch))
    bar.close()
    run.write("samples.jsonl", [rows[part, q.id] for part, q in questions])
    partial.unlink(missing_ok=True)


# ---- stage 2: calibrate -----------------------------------------------------------------------------------------


def fingerprint(config, prompt):
    """What an entropy, and so a fit to it, depends on."""
    return {
        "model": config.model, "prompt": prompt.style, "preamble": lm.seed_of(str(prompt.examples)),
        "n": config.samples, "temperature": config.temperature, "answer_temperature": config.answer_temperature,
        "answer_tokens": config.answer_tokens, "embedder": config.embedder, "kernel": config.kernel,
        "gamma": config.gamma, "grader": config.grader,
    }  # fmt: skip


def calibrate(config, run, model, prompt):
    """Samples -> entropies -> P(correct): targets.jsonl and platt.json"""
    rows = run.read("samples.jsonl")
    embedder = lm.load_embedder(config.embedder, model)
    texts = [text for row in rows for text in row["samples"]]
    embeddings = lm.embed(embedder, texts).reshape(len(rows), config.samples, -1)  # (N, n, d)
    score = entropy.entropies(embeddings, config.kernel, config.gamma)  # (N,)
    correct = np.array([data.grade(row["answer"], row["answers"], config.grader) for row in rows])

    # the questions of Platt's part are in every fit; those for stage 3 are scored by fits that did not see them
    part = np.array([row["part"] for row in rows])
    labelled = np.isin(part, ("platt", "train"))
    fold = np.where(part == "platt", -1, np.arange(len(rows)) % config.folds)
    fit = platt.fit(score[labelled], correct[labelled], fingerprint=fingerprint(config, prompt))
    for warning in fit.warnings:
        print(f"warning: Platt scaling: {warning}", file=sys.stderr)
    target = fit.predict(score)
    target[labelled] = platt.cross_fit(score[labelled], correct[labelled], fold[labelled])
    run.write("targets.jsonl", [
        {"part": row["part"], "id": row["id"], "family": row["family"], "entropy": h, "correct": c,
         "target": p,  # none for Platt's own questions
         "truth": row["truth"] and row["truth"].get(row["answer"], 0.0)}
        for row, h, c, p in zip(rows, score.tolist(), correct.tolist(), target.tolist(), strict=True)
    ])  # fmt: skip
    run.write("platt.json", json.loads(fit.to_json()))
    print(f"Platt scaling: P(correct) = sigma({fit.a:.3f} * entropy + {fit.b:.3f}) on {labelled.sum()} questions, "
          f"accuracy {correct[labelled].mean():.3f}")  # fmt: skip


# ---- stage 3: train ---------------------------------------------------------------------------------------------


def train(config, run, model, prompt):
    """Targets -> an adapter that states them: adapter/ and metrics.jsonl"""
    pairs = zip(run.read("samples.jsonl"), run.read("targets.jsonl"), strict=True)
    items = [(s["question"], s["answer"], t["target"]) for s, t in pairs if s["part"] == "train"]
    lora.add_lora(model, config.rank, alpha=2 * config.rank, seed=config.seed)
    settings = rl.Config(
        steps=config.steps, questions=config.questions, rollouts=config.rollouts, reasoning=config.reasoning,
        temperature=config.rollout_temperature, lr=config.lr, advantage=config.advantage, updates=config.updates,
        clip=config.clip, kl=config.kl, max_grad_norm=config.max_grad_norm, micro_batch=config.micro_batch,
        recompute=config.recompute == "on", warmup=config.warmup, amp=config.amp, seed=config.seed,
    )  # fmt: skip
    def reward(confidence, target):
        return rl.calibration_reward(confidence, target, config.tolerance)

    run.write("metrics.jsonl", [])
    rl.train(model, prompt, items, reward, settings, lambda record: run.append("metrics.jsonl", record))
    _, turn = prompt.confidence("", "", reason=config.reasoning > 0)  # the same for every question
    lora.save_adapter(model, run.path("adapter"), turn)


# ---- evaluation -------------------------------------------------------------------------------------------------


def state_confidence(config, model, prompt, asked, seeds, on):
    """The greedy statement on each (question, answer), with the adapter on or off -> confidences, tokens, seconds."""
    confidence, tokens, start = [None] * len(asked), 0, time.perf_counter()
    bar = tqdm(total=len(asked), desc=f"stated confidence, {'trained' if on else 'untrained'}", unit="question")
    for chosen in batches(range(len(asked)), lambda i: len(asked[i][0]), config.sample_batch):
        with lora.adapter(model, on):
            stated = rl.rollout(model, prompt, [asked[j] for j in chosen], 1, 0.0, [seeds[j] for j in chosen],
                                config.reasoning)  # fmt: skip
        for j, (c,) in zip(chosen, stated.confidence, strict=True):
            confidence[j] = c
        tokens += stated.tokens
        bar.update(len(chosen))
    bar.close()
    return confidence, tokens / len(asked), (time.perf_counter() - start) / len(asked)


def evaluate(config, run, model, prompt):
    """Stated confidence before and after, beside the teacher and the constants -> report.json, report.md, pictures"""
    samples, rows = run.read("samples.jsonl"), run.read("targets.jsonl")
    labelled = [r for r in rows if r["part"] in ("platt", "train")]
    held_out = [(s, r) for s, r in zip(samples, rows, strict=True) if r["part"] not in ("platt", "train")]
    samples, rows = [s for s, _ in held_out], [r for _, r in held_out]
    labels, families = [r["correct"] for r in labelled], [r["family"] for r in labelled]
    lora.load_adapter(model, run.path("adapter"))

    asked = [(s["question"], s["answer"]) for s in samples]
    seeds = [lm.seed_of(config.seed, "eval", r["part"], r["id"]) for r in rows]
    cost = report.teacher_cost(samples)
    stated = {}
    for name, on in (("untrained", False), ("trained", True)):
        stated[name], tokens, seconds = state_confidence(config, model, prompt, asked, seeds, on)
        cost[name] = {"tokens": cost["answer"]["tokens"] + tokens, "seconds": cost["answer"]["seconds"] + seconds}
    base = baselines.base_rate(labels, len(rows))
    prior = baselines.family_prior(labels, families, [r["family"] for r in rows])
    rows = [r | {"untrained": u, "trained": t, "base rate": b, "family prior": p} for r, u, t, b, p in
            zip(rows, stated["untrained"], stated["trained"], base.tolist(), prior.tolist(), strict=True)]  # fmt: skip
    run.write("predictions.jsonl", rows)

    fit = platt.Platt.from_json(run.path("platt.json").read_text(encoding="utf-8"))
    fit.check(fingerprint(config, prompt))
    log = run.read("metrics.jsonl")
    result = report.build(rows, fit, log, cost, run.costs(), config, run.read("environment.json"))
    if config.model == "toy":
        with lora.adapter(model, False):
            result["language_model_error"] = toy.error(model.model, model.tokenizer, toy.world(config.seed))
    run.write("report.json", result)
    run.write("report.md", report.markdown(result))

    test = [r for r in rows if r["part"] == "test"]
    correct = np.array([r["correct"] for r in test])
    methods = {}
    for title, name in (("Stated, untrained", "untrained"), ("Stated, trained", "trained"), ("Teacher", "target")):
        said = np.array([r[name] is not None for r in test])
        methods[title] = np.array([r[name] for r in test if r[name] is not None], dtype=float), correct[said]
    figures.reliability(methods, run.path("reliability.png"))
    figures.risk_coverage(methods, run.path("risk_coverage.png"))
    figures.entropy_curve(np.array([r["entropy"] for r in test]), correct, fit, run.path("entropy.png"))
    figures.training(log, run.path("training.png"))


# ---- using the result -------------------------------------------------------------------------------------------


def answer_questions(config, run, questions):
    """Question texts -> [{"question", "answer", "confidence"}], one short generation for each of the two turns."""

    model, prompt = load_model(config, run)
    lora.load_adapter(model, run.path("adapter"))
    answers, seeds = {}, [lm.seed_of(config.seed, "use", q) for q in questions]
    prompts = [prompt.answer(q) for q in questions]
    stop = lm.stop_ids(model, "\n")
    with lora.adapter(model, False):
        for batch in batches(range(len(questions)), lambda i: len(prompts[i]), config.sample_batch):
            drawn = lm.sample(model, [prompts[i] for i in batch], [config.answer_temperature], config.answer_tokens,
                              stop, [seeds[i] for i in batch])  # fmt: skip
            answers |= {i: data.clean_answer(model.decode(c)) for i, (c,) in zip(batch, drawn, strict=True)}
    asked = [(q, answers[i]) for i, q in enumerate(questions)]
    confidence, _, _ = state_confidence(config, model, prompt, asked, seeds, on=True)
    return [{"question": q, "answer": a, "confidence": c} for (q, a), c in zip(asked, confidence, strict=True)]

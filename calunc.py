"""calunc: teach a language model to say how sure it is.

    python calunc.py                                              the toy world, all stages, a few minutes
    python calunc.py --model M --dataset D --out runs/x           any causal language model, any questions
    python calunc.py ask "What is the capital of Peru?" --run runs/x
    CalibratedLM("runs/x").ask("What is the capital of Peru?")    the same from Python

The method of "From Entropy to Calibrated Uncertainty: Training Language Models to Reason About Uncertainty", arXiv
2603.06317, top to bottom:

    sample      answer each question once, and n times more
    calibrate   the entropy of the samples (the paper's stage 1), Platt scaling to P(correct) (its stage 2)
    train       reinforcement learning: reflect, then state that number (its stage 3)
    eval        compare what is stated with the baselines

Each stage reads the files of the one before, and is skipped when its own are there and were made with the same
settings.

From infra: cli (flags, what is done already), prepare (questions, model, what is refused), commands (ask and others),
parallel (processes), progress, files, folder, grading.
"""

from infra import cli

if __name__ == "__main__":
    cli.start(__doc__)  # answers --help and refuses wrong flags before torch is imported, which takes seconds

import math
import sys
import time
from dataclasses import asdict, replace

import numpy as np

import lm
import lora
import platt
import rl
import toy
import use
from beyond import baselines, compare, exact, graders, rewards
from infra import commands, folder, parallel, progress
from infra.files import LABELLED, first
from infra.grading import grade
from infra.prepare import prepare
from report import build, graded, tables
from use import Answer, CalibratedLM  # noqa: F401, part of what this module offers

# ---- sample -----------------------------------------------------------------------------------------------------


def sample(config, run, model, prompt, questions):
    """One answer and n samples for each question -> samples.jsonl; what that cost, in all calls and processes"""
    temperatures = [config.answer_temperature] + [config.temperature] * config.samples
    batches = use.batches(questions, lambda item: len(item[1].question), config.sample_batch)
    # a batch is kept as a whole or made again: in another one, rounding would differ
    names = [lm.seed_of(prompt.style, *(f"{part} {q.id}" for part, q in batch)) for batch in batches]
    files = {run.unfinished("sample", config, f"{name}.json"): b for name, b in zip(names, batches, strict=True)}
    left, own = parallel.missing(files), len(parallel.share([*files]))
    before = {"initial": own - len(left), "total": own}
    for file in progress.Bar(left, desc="sampling answers", unit="batch", **before):
        batch, found, start = files[file], [], time.perf_counter()
        seeds = [lm.seed_of(config.seed, "sample", q.id) for _, q in batch]
        replies = use.answers(model, prompt, [q.question for _, q in batch], temperatures, seeds, config)
        for (part, q), (answer, *samples) in zip(batch, replies, strict=True):
            if not math.isfinite(answer.logprob):
                raise ValueError(f"{config.model} gives no finite probability to its own answer: are its weights NaN?")
            found.append({
                "part": part, **asdict(q), "answer": answer.text, "samples": [s.text for s in samples],
                "thought": answer.thought, "answer_logprob": answer.logprob, "answer_tokens": answer.tokens,
                "reply_tokens": answer.tokens + answer.thought_tokens,
                "sample_tokens": sum(s.tokens + s.thought_tokens for s in samples),
            })  # fmt: skip
        parallel.keep(file, {"rows": found, "seconds": time.perf_counter() - start})
    parallel.wait()
    made = [run.read(file.name) for file in files]
    rows = {(row["part"], row["id"]): row for batch in made for row in batch["rows"]}
    run.write("samples.jsonl", [rows[part, q.id] for part, q in questions])
    for sentence in build.no_answers(list(rows.values())) if first() else ():
        print(f"warning: {sentence}", file=sys.stderr)
    tokens = sum(row["reply_tokens"] + row["sample_tokens"] for row in rows.values())
    return {"tokens": tokens, "seconds": round(sum(batch["seconds"] for batch in made), 2)}


# ---- calibrate --------------------------------------------------------------------------------------------------


def calibrate(config, run, model):
    """Samples -> entropies -> P(correct): targets.jsonl and platt.json"""
    if not first():
        return
    embedder, rows, size = lm.load_embedder(config.embedder, model), run.read("samples.jsonl"), 500
    found, labels, cut = [], graders.graded(config, run, rows, model), 0  # (N,) of 0 and 1
    for start in progress.Bar(range(0, len(rows), size), desc="embedding the answers", unit=f"{size} questions"):
        batch = rows[start : start + size]
        texts = [text for row in batch for text in (row["answer"], *row["samples"])]
        cut += sum(len(embedder.encode(text, special=True)) > embedder.tokenizer.model_max_length for text in texts)
        score = use.scores(embedder, batch, config)  # entropy, similarity and what else is free
        for row, own, label in zip(batch, score, labels[start : start + size], strict=True):
            found.append({
                "part": row["part"], "id": row["id"], "family": row["family"], **own,
                "correct": label, "exact": grade(row["answer"], row["answers"]),
                "truth": row["truth"] and row["truth"].get(row["answer"], 0.0),
            })  # fmt: skip

    if cut:
        print(f"warning: {cut} answers are longer than the {embedder.tokenizer.model_max_length} tokens that "
              f"{config.embedder} reads, and were cut", file=sys.stderr)  # fmt: skip
    features = np.array([[t["entropy"], t["similarity"]] if config.target == "answer" else t["entropy"] for t in found])
    correct, part = (np.array([t[name] for t in found]) for name in ("correct", "part"))
    # Platt's own questions are in every fit; each training question gets its target from a fit that did not see it
    labelled = np.isin(part, LABELLED)
    fold = np.where(part == "platt", -1, np.arange(len(found)) % config.folds)
    fit = platt.fit(features[labelled], correct[labelled])
    target = fit.predict(features)
    target[labelled] = platt.cross_fit(features[labelled], correct[labelled], fold[labelled])
    for row, p in zip(found, target.tolist(), strict=True):
        row["target"] = p  # NaN, written as null, for Platt's own questions
    run.write("targets.jsonl", found)
    run.write("platt.json", asdict(fit))
    for warning in fit.warnings:
        print(f"warning: Platt scaling: {warning}", file=sys.stderr)
    print(f"Platt scaling: P(correct) = {fit.formula()} on {labelled.sum()} questions, "
          f"accuracy {correct[labelled].mean():.3f}")  # fmt: skip
    seen = graded.look(config, [pair for pair in zip(rows, found, strict=True) if pair[1]["part"] in LABELLED])
    print(graded.text(seen))
    for warning in seen["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)


# ---- train ------------------------------------------------------------------------------------------------------


def train(config, run, model, prompt):
    """Targets -> an adapter that states them: adapter/ and metrics.jsonl"""
    pairs = zip(run.read("samples.jsonl"), run.read("targets.jsonl"), strict=True)
    items = [rl.Item(s["question"], s["answer"], t["target"], t["correct"], s["thought"], t["probability"])
             for s, t in pairs if s["part"] == "train"]  # fmt: skip
    lora.add_lora(model, config.rank, alpha=2 * config.rank, seed=config.seed, dropout=config.dropout)
    log = []
    run.write("metrics.jsonl", log)  # also where there are no steps

    def on_step(record):
        log.append(record)
        run.append("metrics.jsonl", record)

    reward, saved = rewards.chosen(config), run.unfinished("train", config, "checkpoint")
    rl.train(model, prompt, items, config, reward, on_step, saved, exact.instead(model, prompt, config, reward))
    for sentence in build.troubles(log) if first() else ():
        print(f"warning: training: {sentence}", file=sys.stderr)
    steps = build.rl_steps(log)
    if steps and steps[-1]["tokens"] and first():
        each = steps[-1]["tokens"] / (config.rollouts * min(config.questions, len(items)))
        print(f"training: {each:.1f} sampled tokens in each rollout of the last step")
    _, turn = prompt.second_turn("", "", "", 0)  # the same for every question
    if first():
        lora.save_adapter(model, run.path("adapter"), turn if config.adapter == "turn" else None)
    return sum(record.get("tokens", 0) for record in log)


# ---- eval -------------------------------------------------------------------------------------------------------


def evaluate(config, run, model, prompt):
    """Confidences stated before and after training, beside the baselines -> predictions.jsonl, report.*, pictures"""
    pairs = list(zip(run.read("samples.jsonl"), run.read("targets.jsonl"), strict=True))
    known = [(s, t) for s, t in pairs if s["part"] in LABELLED]
    labelled, held_out = [t for _, t in known], [(s, t) for s, t in pairs if s["part"] not in LABELLED]
    lora.load_adapter(model, run.path("adapter"))
    stated = compare.state(config, model, prompt, held_out, ["untrained", "trained", "expected"])
    if config.reflection:
        stated |= compare.state(config, model, replace(prompt, reflection=0), held_out, ["alone"])
    columns = {method: confidence for method, (confidence, *_) in stated.items()}
    columns |= compare.free(labelled, [t for _, t in held_out])
    for name in baselines.chosen(config.baselines):
        columns |= compare.read_again(name, config, model, prompt, pairs, stated)
    if config.reflection:
        columns |= {f"reflection, {method}": stated[method][3] for method in ("untrained", "trained")}
    rows = [t | {name: values[i] for name, values in columns.items()} for i, (_, t) in enumerate(held_out)]
    run.write("predictions.jsonl", rows)

    samples = [s for s, _ in held_out]
    cost = build.teacher_cost(samples, run.stages()["sample"]["seconds"] / len(pairs))  # all per question
    for method, (_, tokens, seconds, _) in stated.items():
        cost[method] = {"tokens": cost["answer"]["tokens"] + tokens, "seconds": cost["answer"]["seconds"] + seconds}
    fit = platt.Platt(**run.read("platt.json"))
    error = None
    if config.model == "toy":
        with lora.adapter(model, False):
            error = toy.error(model.model, model.tokenizer, toy.world(config.seed))
    build.write(run, config, rows, samples, fit, run.read("metrics.jsonl"), cost, error, graded.look(config, known))
    made = [of[1] for method, of in stated.items() if method != "expected"]  # whose reflection is that of "trained"
    return sum(int(round(tokens * len(held_out))) for tokens in made)


# ---- all of it --------------------------------------------------------------------------------------------------


@cli.in_one_sentence
def main(argv):
    args, config = cli.parse(argv, __doc__)
    cli.check_arguments(args)
    if args.recipe or args.print_settings:
        cli.show_settings(config)
    if args.print_settings:
        return
    if args.command in cli.USES:
        return getattr(commands, args.command)(args)
    with parallel.joined(config.device):
        run, todo = cli.plan(args, config)
        if todo:
            questions, model, prompt, tried = prepare(config, run, todo)
        if "sample" in todo:
            with run.stage("sample", config) as cost:
                cost |= sample(config, run, model, prompt, questions) | tried
        if "calibrate" in todo:
            with run.stage("calibrate", config) as cost:
                calibrate(config, run, model)  # generates nothing
                cost |= {"tokens": 0, "embedder": folder.local(config.embedder)}
        if "train" in todo:
            with run.stage("train", config) as cost:
                cost["tokens"] = train(config, run, model, prompt)
        if "eval" in todo:
            with run.stage("eval", config) as cost:
                cost["tokens"] = evaluate(config, run, model, prompt)
        if args.command == "eval":
            report = run.read("report.json")
            cli.goodbye(run, tables.summary(report), report["warnings"])


if __name__ == "__main__":
    sys.exit(main())

"""The first three stages, top to bottom. Each reads the files of the one before; compare.py has the last one.

    sample     questions -> one answer and n samples each            samples.jsonl
    calibrate  samples -> entropy -> P(correct)                      targets.jsonl, platt.json
    train      targets -> an adapter that states them                adapter/, metrics.jsonl

`answer_questions` is what all of it is for: one answer and one confidence, in two short generations. `merge` makes an
ordinary model of it.
"""

import itertools
import json
import math
import shutil
import sys
import time
from dataclasses import asdict

import numpy as np
import torch
from tqdm import tqdm

import amp
import baselines
import card
import data
import entropy
import lm
import lora
import parallel
import platt
import report
import rewards
import rl
import statements
import toy
from parallel import Journal
from prefix import Read, check_context
from run import first
from settings import check

MEASURED = 500  # questions whose embeddings are held at once

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
        if first() and not name.exists():
            name.parent.mkdir(parents=True, exist_ok=True)
            toy.build(name, config.seed)
        parallel.wait()
    # a GPU holds the frozen weights in the precision of the arithmetic; what is trained stays in float32
    dtype = (amp.amp_dtype(config.amp, device) if device.type == "cuda" else None) or torch.float32
    # what does not fit one device comes there in shares
    loaded = lm.load(name, "cpu" if config.shard == "on" else device, dtype)
    if config.shard == "on":
        parallel.shard(loaded.model, device)
        loaded.model.to(device)
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
        for name in dict.fromkeys(filter(None, map(str.strip, config.ood.split(",")))):
            found = [q for q in data.load(name, held_out=True) if q.question not in asked]
            if not found:
                raise ValueError(f"--ood {name}: all of its questions are in --dataset too")
            # a file called test.jsonl must not take the place of the held-out part
            free = (x for x in (data.short_name(name), name, f"unseen {name}") if x not in sizes and x not in others)
            others[next(free)] = found
    if len(known) < sum(sizes.values()):
        share = len(known) / sum(sizes.values())
        sizes = {part: max(1, int(size * share)) for part, size in sizes.items()}
        sizes["test"] += max(0, len(known) - sum(sizes.values()))
        if first():
            print(f"note: only {len(known)} questions, so the parts are smaller: {sizes['platt']} for Platt scaling "
                  f"alone, {sizes['train']} to train on, {sizes['test']} held out", file=sys.stderr)
    parts = data.split(known, sizes, config.seed)
    for name, questions in others.items():
        parts[name] = data.split(questions, {name: min(config.ood_questions, len(questions))}, config.seed)[name]
    return [(part, q) for part, questions in parts.items() for q in questions]


def batches(items, length, size):
    """Cut into batches of similar length, so that little is padded; the longest first, so that memory fails early."""
    items = sorted(items, key=length, reverse=True)
    return [items[i : i + size] for i in range(0, len(items), size)]


# ---- stage 1: sample --------------------------------------------------------------------------------------------


def check_lengths(config, model, prompt, questions):
    """Raises ValueError for a question that does not fit into the model's context with all that comes after it."""
    context, turn = prompt.confidence("", "", config.reasoning > 0)
    more = len(context) + len(turn) - len(prompt.answer("")) + config.answer_tokens + config.reasoning
    for _, q in questions:
        try:
            check_context(model, [prompt.answer(q.question)], more + statements.NUMBER_TOKENS)
        except ValueError as error:
            raise ValueError(f"question {q.id}: {error}") from None


def sample(config, run, model, prompt, questions):
    """One answer and n samples for each question -> samples.jsonl"""
    stop = lm.stop_ids(model, "\n")
    temperatures = [config.answer_temperature] + [config.temperature] * config.samples
    prompts = {(part, q.id): prompt.answer(q.question) for part, q in questions}

    def draw(batch):
        """-> [what is known of each question of the batch], seconds a question"""
        start = time.perf_counter()
        seeds = [lm.seed_of(config.seed, "sample", q.id) for _, q in batch]
        ids = [prompts[part, q.id] for part, q in batch]
        drawn, logp = lm.sample(model, ids, temperatures, config.answer_tokens, stop, seeds, logprobs=True)
        spent, found = (time.perf_counter() - start) / len(batch), []
        for (part, q), completions, (answer_logprob, *_) in zip(batch, drawn, logp, strict=True):
            if not math.isfinite(answer_logprob):
                raise ValueError(f"{config.model} gives no finite probability to its own answer: are its weights NaN?")
            texts = [data.clean_answer(model.decode(c)) for c in completions]
            found.append({
                "part": part, **asdict(q), "answer": texts[0], "samples": texts[1:],
                "answer_logprob": answer_logprob, "answer_tokens": len(completions[0]),
                "sample_tokens": sum(map(len, completions[1:])),
            })  # fmt: skip
        return found, spent

    # a batch is kept as a whole or made again: in another one, rounding would differ
    cut = batches(questions, lambda item: len(prompts[item[0], item[1].id]), config.sample_batch)
    pieces = {lm.seed_of(*(f"{part} {q.id}" for part, q in batch)): batch for batch in cut}
    rows, seconds = {}, {}
    for _, (drawn, spent) in Journal(run, "sample", config).all(pieces, draw, desc="sampling answers", unit="batch"):
        for row in drawn:  # as text, which takes a quarter of the memory
            rows[row["part"], row["id"]], seconds[row["part"], row["id"]] = json.dumps(row), spent
    run.write("samples.jsonl", (json.loads(rows[part, q.id]) for part, q in questions))
    run.write("seconds.jsonl", [{"part": part, "id": q.id, "seconds": seconds[part, q.id]} for part, q in questions])


# ---- stage 2: calibrate -----------------------------------------------------------------------------------------


def fingerprint(config, prompt):
    """What an entropy, and so a fit to it, depends on."""
    return {
        "model": config.model, "prompt": prompt.style, "preamble": lm.seed_of(str(prompt.examples)),
        "n": config.samples, "temperature": config.temperature, "answer_temperature": config.answer_temperature,
        "answer_tokens": config.answer_tokens, "embedder": config.embedder, "kernel": config.kernel,
        "gamma": config.gamma, "grader": config.grader, "target": config.target,
    }  # fmt: skip


def calibrate(config, run, model, prompt):
    """Samples -> entropies -> P(correct): targets.jsonl and platt.json"""
    if not first() and not parallel.replicas:
        return
    embedder, rows, found = lm.load_embedder(config.embedder, model), run.rows("samples.jsonl"), []
    with tqdm(desc="embedding the answers", unit="question") as bar:
        while some := list(itertools.islice(rows, MEASURED)):
            found += _measure(config, embedder, some)
            bar.update(len(some))
    score = np.array([t["entropy"] for t in found])  # (N,)
    features = np.array([(t["entropy"], t["similarity"]) for t in found]) if config.target == "answer" else score
    correct = np.array([t["correct"] for t in found])

    # the questions of Platt's part are in every fit; those for stage 3 are scored by fits that did not see them
    part = np.array([t["part"] for t in found])
    labelled = np.isin(part, ("platt", "train"))
    fold = np.where(part == "platt", -1, np.arange(len(found)) % config.folds)
    fit = platt.fit(features[labelled], correct[labelled], fingerprint=fingerprint(config, prompt))
    for warning in fit.warnings:
        print(f"warning: Platt scaling: {warning}", file=sys.stderr)
    target = fit.predict(features)
    target[labelled] = platt.cross_fit(features[labelled], correct[labelled], fold[labelled])
    for row, p in zip(found, target.tolist(), strict=True):
        row["target"] = p  # none for Platt's own questions
    run.write("targets.jsonl", found)
    run.write("platt.json", json.loads(fit.to_json()))
    print(f"Platt scaling: P(correct) = {fit.formula()} on {labelled.sum()} questions, "
          f"accuracy {correct[labelled].mean():.3f}")  # fmt: skip


def _measure(config, embedder, rows):
    """What the samples of some questions say. -> the rows of targets.jsonl, without the target"""
    texts = [text for row in rows for text in (row["answer"], *row["samples"])]
    embeddings = lm.embed(embedder, texts).reshape(len(rows), 1 + config.samples, -1)  # (N, 1 + n, d)
    gram = entropy.grams(embeddings, config.kernel, config.gamma)  # (N, 1 + n, 1 + n)
    score = entropy.von_neumann(gram[:, 1:, 1:]).tolist()  # N
    similarity = gram[:, 0, 1:].mean(axis=1).tolist()  # N, of the answer to the samples
    return [
        {"part": row["part"], "id": row["id"], "family": row["family"], "entropy": h, "similarity": s,
         "correct": data.grade(row["answer"], row["answers"], config.grader),
         "truth": row["truth"] and row["truth"].get(row["answer"], 0.0),
         "probability": baselines.sequence_probability(row["answer_logprob"], row["answer_tokens"]),
         "consistency": baselines.self_consistency(row["answer"], row["samples"]),
         "clusters": baselines.cluster_entropy(k[1:, 1:])}
        for row, h, s, k in zip(rows, score, similarity, gram, strict=True)
    ]  # fmt: skip


# ---- stage 3: train ---------------------------------------------------------------------------------------------


def train(config, run, model, prompt):
    """Targets -> an adapter that states them: adapter/ and metrics.jsonl"""
    pairs = zip(run.rows("samples.jsonl"), run.rows("targets.jsonl"), strict=True)
    items = [rl.Item(s["question"], s["answer"], t["target"], t["correct"]) for s, t in pairs if s["part"] == "train"]
    lora.add_lora(model, config.rank, alpha=2 * config.rank, seed=config.seed)
    log, said = [], set()
    run.write("metrics.jsonl", log)
    if first():
        shutil.rmtree(run.path("tensorboard"), ignore_errors=True)  # of an earlier training
    board = Board(run) if config.tensorboard == "on" and first() else None

    def warn(steps):
        for sentence in report.troubles(steps):
            if first() and sentence not in said:
                said.add(sentence)
                tqdm.write(f"warning: training: {sentence}", file=sys.stderr)

    def on_step(record):
        log.append(record)
        run.append("metrics.jsonl", record)
        if board:
            board.add(record)
        if len(log) >= report.WINDOW:
            warn(log[-report.WINDOW :])

    saved = run.unfinished("train", config, "safetensors")
    rl.train(model, prompt, items, rewards.chosen(config), config, on_step, saved)
    warn(log)
    if board:
        board.close()
    _, turn = prompt.confidence("", "", reason=config.reasoning > 0)  # the same for every question
    if first():
        lora.save_adapter(model, run.path("adapter"), turn if config.adapter == "turn" else None)


class Board:
    """The log of stage 3 for TensorBoard, in a run's folder of this name."""

    def __init__(self, run):
        from torch.utils.tensorboard import SummaryWriter  # only here: its package may not be there

        self.writer = SummaryWriter(run.path("tensorboard"))
        self.close = self.writer.close
        print(f"TensorBoard: tensorboard --logdir {run.path('tensorboard')}")

    def add(self, record):
        for name, value in record.items():
            if value is not None:
                self.writer.add_scalar(name, value, record["step"])


# ---- using the result -------------------------------------------------------------------------------------------


def load_trained(config, run):
    """-> LM with the adapter of a run, and Prompt"""
    check(config)
    model, prompt = load_model(config, run)
    lora.load_adapter(model, run.path("adapter"))
    return model, prompt


def answer_questions(config, model, prompt, questions):
    """Question texts -> [(answer, confidence or None)]: each is read once, answered, and judged."""
    found, seeds = {}, [lm.seed_of(config.seed, "use", q) for q in questions]
    prompts = [prompt.answer(q) for q in questions]
    stop, way = lm.stop_ids(model, "\n"), {"stated": "trained", "expected": "expected"}[config.readout]
    for batch in batches(range(len(questions)), lambda i: len(prompts[i]), config.sample_batch):
        read, own = Read(model, [prompts[i] for i in batch], frozen=True), [seeds[i] for i in batch]
        with lora.adapter(model, False):
            drawn = lm.sample(model, read, [config.answer_temperature], config.answer_tokens, stop, own)
        pairs = [(questions[i], data.clean_answer(model.decode(c))) for i, (c,) in zip(batch, drawn, strict=True)]
        stated, _, _ = statements.state(model, prompt, pairs, [way], config.reasoning, read, config.adapter)[way]
        found |= {i: (a, c) for i, (_, a), c in zip(batch, pairs, stated, strict=True)}
    return [found[i] for i in range(len(questions))]


def merge(config, run, out):
    """Write the trained model to a new folder, as an ordinary one.

    Raises ValueError where the adapter is not on everywhere: an ordinary model has no switch.
    """
    if config.adapter != "everywhere":
        raise ValueError(f"the adapter in {run.folder} is on from the confidence turn on, and an ordinary model has no "
                         "switch: add --adapter everywhere to the call that made the run; the samples are kept, the "
                         "adapter is trained again")  # fmt: skip
    model, prompt = load_trained(config, run)
    lora.merge(model)
    asked = model.tokenizer.decode(sum(prompt.confidence("(question)", "(answer)"), []))
    lm.save(model.model, model.tokenizer, out, card.merged(run.read("report.json"), asked))

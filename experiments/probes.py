"""What else is there without training the model: a linear head on its frozen state, and the kind of the question.

    python -m experiments.probes smollm2-told        once its questions are sampled; its report then has the heads

    x    the states of the base model at the last token of the confidence turn, at a half, two thirds and five sixths of
         its depth, each of its d numbers standardised on the labelled questions
    p    = clip(w . x + b)        ridge regression on the targets that a student is paid for, its strength chosen among
         the labelled questions by leave-one-out; alone, and with the log-odds of the sequence probability beside x

Others train such a head instead of words: Azaria and Mitchell, arXiv 2304.13734; Kadavath et al., arXiv 2207.05221.

    p = sigma(a log-odds + b_f)     Platt scaling of the sequence probability with an offset for each family f: what a
                                    student can reach on a mixed test set that knows no more than the kind of question
"""

import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

import platt
import rl
import use
from beyond.readouts import log_odds
from experiments.grid import TABLES
from infra import cli, setup
from infra.files import LABELLED
from infra.folder import Run

STRENGTHS = np.logspace(1, 5, 9)


def states(model, prompt, samples, config):
    """Hidden states before the confidence. N rows of samples.jsonl -> (N, 3 d) float32"""
    layers, seen, found = model.model.base_model.layers, {}, [None] * len(samples)
    chosen = [layers[len(layers) * part // 6 - 1] for part in (3, 4, 5)]
    hooks = [layer.register_forward_hook(lambda layer, _, out: seen.update({layer: last_of(out)})) for layer in chosen]
    for batch in use.batches(range(len(samples)), lambda i: len(samples[i]["question"]), config.sample_batch):
        pairs = [(samples[i]["question"], samples[i]["answer"], samples[i]["thought"]) for i in batch]
        with torch.no_grad():
            rl.second_turns(model, prompt, pairs, config).read(model, range(len(batch)))  # last of all the turn
        for i, x in zip(batch, torch.cat([seen[layer] for layer in chosen], dim=-1).float().cpu(), strict=True):
            found[i] = x.numpy()
    for hook in hooks:
        hook.remove()
    return np.stack(found)


def last_of(out):
    """The hidden state of the last token, whatever else a layer returns. -> (R, d)"""
    return (out if torch.is_tensor(out) else out[0])[:, -1]


def probed(x, target, asked):
    """(N, F), (N,), (M, F) -> (M,) confidences"""
    scale = StandardScaler().fit(x)
    return RidgeCV(STRENGTHS).fit(scale.transform(x), target).predict(scale.transform(asked)).clip(0, 1)


def columns(targets, hidden):
    """The confidences of the held-out questions. -> {field: (M,)}"""
    part, target = (np.array([row[name] for row in targets]) for name in ("part", "target"))
    free = log_odds([row["probability"] for row in targets])[:, None]
    train, asked = part == "train", ~np.isin(part, LABELLED)
    features = {"probe": hidden, "probe, told": np.hstack([hidden, free])}
    return {name: probed(x[train], target[train].astype(float), x[asked]) for name, x in features.items()}


def with_family(labelled, asked):
    """Confidences of rows of targets.jsonl; a family without labels has the average one's offset. N, M rows -> (M,)"""
    names = sorted({row["family"] for row in labelled})
    share = np.array([np.mean([row["family"] == name for row in labelled]) for name in names])

    def features(rows):
        of = np.array([[row["family"] == name for name in names] for row in rows], dtype=float)  # (N, families)
        of[of.sum(1) == 0] = share
        return np.hstack([log_odds([row["probability"] for row in rows])[:, None], of[:, 1:]])

    return platt.fit(features(labelled), [row["correct"] for row in labelled]).predict(features(asked))


def main(name):
    table, root = TABLES[name], Path("runs/experiments") / name
    runs = {seed: Run(root / f"samples-{seed}") for seed in table.seeds}
    _, config = cli.parse(shlex.split(f"{table.flags} --seed {table.seeds[0]}"))
    every = {row["question"]: row for run in runs.values() for row in run.read("samples.jsonl")}
    model, prompt = setup.load_model(config, runs[table.seeds[0]])
    hidden = dict(zip(every, states(model, prompt, list(every.values()), config), strict=True))
    for run in runs.values():
        samples, targets = run.read("samples.jsonl"), run.read("targets.jsonl")
        found = columns(targets, np.stack([hidden[row["question"]] for row in samples]))
        held_out = [row for row in targets if row["part"] not in LABELLED]
        rows = [{"part": row["part"], "id": row["id"]} for row in held_out]
        rows = [row | {field: float(of[i]) for field, of in found.items()} for i, row in enumerate(rows)]
        run.write("probes.jsonl", rows)
        print(f"wrote {run.path('probes.jsonl')}")


if __name__ == "__main__":
    main(sys.argv[1])

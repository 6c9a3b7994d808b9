"""Runs of calunc.py in which one thing is taken away or put in, to find out what an arm owes to it.

    python -m experiments.controls shuffled ...    the targets of the training questions change places
    python -m experiments.controls told ...        the second turn shows neither question nor answer: use --tell
    python -m experiments.controls teacher ...     targets calibrated on entropy, similarity and log-odds together

Training on shuffled targets teaches the form of a statement and the base rate. Other flags are those of calunc.py.
"""

import functools
import sys

import numpy as np

import calunc
import data
import platt
from beyond.readouts import FEATURES
from infra.files import LABELLED


def shuffled(rows, config):
    """targets.jsonl with the targets of the training questions in another order."""
    trained = [row for row in rows if row["part"] == "train"]
    order = np.random.default_rng(config.seed).permutation(len(trained))
    for row, target in zip(trained, [trained[i]["target"] for i in order], strict=True):
        row["target"] = target
    return rows


def teacher(rows, config):
    """targets.jsonl with cross-fitted targets of three scores instead of one, as calunc.calibrate makes them."""
    labelled = [row for row in rows if row["part"] in LABELLED]
    own = [row["part"] == "platt" for row in labelled]
    fold = np.where(own, -1, np.arange(len(labelled)) % config.folds)
    correct = np.array([row["correct"] for row in labelled])
    scores = np.array([FEATURES["all, scaled"](row) for row in labelled])
    for row, target in zip(labelled, platt.cross_fit(scores, correct, fold).tolist(), strict=True):
        row["target"] = target
    return rows


def with_targets(train, change, config, run, model, prompt):
    """calunc.train on changed targets; what is on the disk stays as it is."""
    read = run.read
    run.read = lambda name: change(read(name), config) if name == "targets.jsonl" else read(name)
    try:
        return train(config, run, model, prompt)
    finally:
        del run.read


def told(second_turn):
    """Prompt.second_turn of a question and an answer that are hidden."""
    return lambda prompt, _question, _answer, *more: second_turn(prompt, "?", "?", *more)


if __name__ == "__main__":
    if sys.argv[1] == "told":
        data.Prompt.second_turn = told(data.Prompt.second_turn)
    else:
        change = {"shuffled": shuffled, "teacher": teacher}[sys.argv[1]]
        calunc.train = functools.partial(with_targets, calunc.train, change)
    sys.exit(calunc.main(sys.argv[2:]))

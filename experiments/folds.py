"""The seeds of a table on one sample of questions, each with a test part of its own, as in cross-validation.

Seed s takes as its test part the s-th piece from the end of the questions that are not unseen; Platt's own part and the
training part follow it around. Sampling is dear and the same for all: the samples of seed 1 are those of all.
"""

from collections import Counter

from infra.folder import Run

KNOWN = ("platt", "train", "test")


def turned(rows, shift):
    """Rows of samples.jsonl with other parts: what is known moves on by `shift` test parts, what is unseen stays."""
    known = [row for row in rows if row["part"] in KNOWN]
    parts, step = [row["part"] for row in known], shift * Counter(row["part"] for row in known)["test"]
    known = known[len(known) - step :] + known[: len(known) - step]
    found = [row | {"part": part} for row, part in zip(known, parts, strict=True)]
    return found + [row for row in rows if row["part"] not in KNOWN]


def make(first, folder, config):
    """The run folder of another seed, with its `sample` stage done."""
    source, run = Run(first), Run(folder)
    if run.done("sample", config):
        return
    run.start("sample", config)
    run.write("environment.json", source.read("environment.json"))
    with run.stage("sample", config) as cost:
        run.write("samples.jsonl", turned(source.read("samples.jsonl"), config.seed - 1))
        cost["tokens"] = 0

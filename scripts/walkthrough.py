"""Follow one question through the whole method: docs/walkthrough.md, whose numbers are computed.

    python scripts/walkthrough.py measure --run RUN --beside RUN --question cities-0223
    python scripts/walkthrough.py write

`measure` asks the models, and writes what they said to docs/walkthrough.json. `write` needs no model: it runs the
Python of docs/walkthrough.template.md on that file, puts the output under each example, fills the `{names}` in the
prose with the values that the examples left behind, and writes docs/walkthrough.md. Edit the template. Its words are
about this one question: another one needs others, and tests/test_walkthrough.py says which no longer hold.
"""

import argparse
import doctest
import json
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import data  # noqa: E402
import lm  # noqa: E402
import lora  # noqa: E402
import statements  # noqa: E402
from run import Run, write_whole  # noqa: E402
from settings import Config  # noqa: E402

DOCS = ROOT / "docs"
MEASURED, TEMPLATE, DOCUMENT = (DOCS / f"walkthrough.{suffix}" for suffix in ("json", "template.md", "md"))
UNIT = 10_000  # embeddings and entropies are kept as whole multiples of 1/UNIT
SETTINGS = ("model", "embedder", "samples", "temperature", "kernel", "gamma", "folds", "reward", "tolerance",
            "rollouts", "rollout_temperature", "gradient", "advantage", "kl", "warmup", "steps", "questions",
            "seed")  # fmt: skip


# ---- measure ----------------------------------------------------------------------------------------------------


def say(model, prompt, pair, on):
    """What the policy says about one answer: the probabilities, and the greedy statement. on: with the adapter"""
    asked = statements.ask(model, prompt, [pair])
    with torch.no_grad(), lora.adapter(model, on):
        said = statements.percentages(model), statements.whole_numbers(model)
        exact = statements.log_policy(model, asked, said[0])[0].exp()
        begins = statements.whole_number_chance(model, asked, said[1])[0]
        ((stated,),) = statements.rollout(model, prompt, asked, 1, 0.0, [0]).confidence
    assert list(said[0]) == list(said[1]) == list(range(101)), "the tokenizer cannot write all percentages"
    return {"stated": stated, "exact": _rounded(exact), "begins": _rounded(begins)}


def _rounded(chance):
    return [round(p, 6) for p in chance.tolist()]


def measure(folder, beside, identity):
    """The files of a finished run, and its models -> what docs/walkthrough.json holds."""
    runs = {"trained": Run(folder), "beside": Run(beside)}
    raw = {name: run.read("config.json") for name, run in runs.items()}
    known = Config.__dataclass_fields__
    # a run of an older version lacks newer settings, which it did not have to choose
    config = Config(**{name: value for name, value in raw["trained"].items() if name in known})
    samples, targets = runs["trained"].read("samples.jsonl"), runs["trained"].read("targets.jsonl")
    row = next((r for r in samples if r["id"] == identity), None)
    if row is None or row["part"] in ("platt", "train"):
        raise ValueError(f"{identity} is not among the held-out questions of {folder}")
    if not row["source"].startswith("facts"):
        raise ValueError(f"{identity} is not a question of `facts`: its text is not ours to copy")
    labelled = [t for t in targets if t["part"] in ("platt", "train")]
    predicted = {name: {p["id"]: p for p in run.read("predictions.jsonl")} for name, run in runs.items()}
    test = [p for p in predicted["trained"].values() if p["part"] == row["part"]]
    family = [p for p in test if p["family"] == row["family"]]

    model = lm.load(config.model)
    prompt, pair = data.Prompt(model, config.prompt), (row["question"], row["answer"])
    texts = list(dict.fromkeys([row["answer"], *row["samples"]]))
    vectors = lm.embed(lm.load_embedder(config.embedder, model), texts)
    asked = statements.ask(model, prompt, [pair])
    seeds = [lm.seed_of(config.seed, "rollout", identity)]
    drawn = statements.rollout(model, prompt, asked, config.rollouts, config.rollout_temperature, seeds)
    policies = {"untrained": say(model, prompt, pair, False)}
    for name, run in runs.items():
        lora.load_adapter(model, run.path("adapter"))
        policies[name] = say(model, prompt, pair, True)
    skip = len(asked.turn)
    return {
        **{name: row[name] for name in ("id", "part", "family", "question", "answers", "answer", "samples")},
        "correct": data.grade(row["answer"], row["answers"], config.grader),
        "prompt": model.decode(prompt.answer(row["question"])),
        "settings": {name: getattr(config, name) for name in SETTINGS},
        "beside": {"target": predicted["beside"][identity]["target"],
                   **{name: raw["beside"][name] for name in ("reward", "gradient", "warmup", "steps")}},
        "embeddings": {text: [round(x * UNIT) for x in v.tolist()] for text, v in zip(texts, vectors, strict=True)},
        # no question or answer of these: entropy and correctness alone
        "labelled": {"entropy": [round(t["entropy"] * UNIT) for t in labelled],
                     "correct": "".join(str(t["correct"]) for t in labelled)},
        "rollouts": [{"said": model.tokenizer.decode(c[skip:]), "tokens": len(c) - skip}
                     for c in drawn.completions[0]],
        "policies": policies,
        "same_family": {"correct": "".join(str(p["correct"]) for p in family),
                        "stated": [p["trained"] for p in family],
                        **{name: [round(found[p["id"]]["expected"], 3) for p in family]
                           for name, found in predicted.items()}},
        "test": {"same": sum(q["untrained"] == policies["untrained"]["stated"] for q in test) / len(test),
                 "correct": sum(q["correct"] for q in test) / len(test)},
    }  # fmt: skip


# ---- write ------------------------------------------------------------------------------------------------------


class _Keep(doctest.DocTestRunner):
    """Runs examples and keeps what they print, instead of comparing it."""

    def report_start(self, out, test, example):
        pass

    def report_success(self, out, test, example, got):
        example.want = got

    report_failure = report_success

    def report_unexpected_exception(self, out, test, example, exc_info):
        raise exc_info[1]


def fill(template):
    """The text of the template -> the text of the document."""
    pieces = doctest.DocTestParser().parse(template)
    examples = [piece for piece in pieces if isinstance(piece, doctest.Example)]
    test = doctest.DocTest(examples, {}, TEMPLATE.name, str(TEMPLATE), 0, None)
    before = Path.cwd()
    os.chdir(ROOT)  # where a reader would run them
    try:
        _Keep(verbose=False).run(test, clear_globs=False)
    finally:
        os.chdir(before)
    text = ""
    for piece in pieces:
        if isinstance(piece, doctest.Example):
            first, *rest = piece.source.splitlines()
            text += "\n".join([f">>> {first}", *(f"... {line}".rstrip() for line in rest)]) + "\n" + piece.want
        else:
            text += piece.format_map(test.globs)
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    ask = steps.add_parser("measure", help="ask the models, and write docs/walkthrough.json")
    ask.add_argument("--run", required=True, help="a finished run with --target question and rollouts")
    ask.add_argument("--beside", required=True, help="another one on the same samples, for a last comparison")
    ask.add_argument("--question", required=True, help="the id of a question of `facts`")
    steps.add_parser("write", help="fill the template, and write docs/walkthrough.md")
    args = parser.parse_args()
    if args.step == "measure":
        try:
            found = measure(args.run, args.beside, args.question)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        write_whole(MEASURED, [(json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n").encode()])
    else:
        write_whole(DOCUMENT, [fill(TEMPLATE.read_text(encoding="utf-8")).encode()])


if __name__ == "__main__":
    main()

"""The commands that use a run: `ask`, `predict`, `recalibrate`, `merge`. What each of them takes is in cli.USES."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lora
from beyond import graders, readouts
from infra import models, setup
from infra.files import read_questions
from infra.folder import Run
from report import card
from use import CalibratedLM


def ask(args):
    answer = CalibratedLM(args.run, args.fit, **args.given).ask(args.question)
    said = "no confidence stated" if answer.confidence is None else f"confidence {answer.confidence:.0%}"
    if args.show_reflection:
        print(answer.reflection)
    print(f"{answer.text}  ({said})")


def predict(args):
    """Rows that have an `answer` keep it and get a confidence for it; the others get the model's own."""
    out, acting = _writable(args.out), args.max_error is not None
    asked = read_questions(args.input, ("confidence", "reflection", *["abstain"] * acting))
    model = CalibratedLM(args.run, args.fit, **args.given)
    least = model.threshold(args.max_error) if acting else None
    rows = []
    for (_, row), a in zip(asked, _answers(model, asked), strict=True):
        own = {"answer": a.text} if row.get("answer") is None else {}
        rows.append(row | own | {"confidence": a.confidence, "reflection": a.reflection})
        if acting:
            rows[-1]["abstain"] = least is None or a.confidence is None or a.confidence < least
    Run(out.parent).write(out.name, rows)
    print(f"{len(rows)} answers in {out}")
    if acting:
        promise = f"at most {100 * args.max_error:g}% wrong answers"
        like = "like the labelled ones" if args.fit else "of the model itself to questions like the held-out ones"
        kept, given = sum(not row["abstain"] for row in rows), sum(row.get("answer") is not None for _, row in asked)
        print(f"no threshold promises {promise}: all abstain" if least is None else
              f"{kept} have a confidence of at least {least:.3f}, which promises {promise} among answers {like}, at "
              f"{1 - readouts.DELTA:.0%} confidence; the others abstain")
        if given and not args.fit:
            print(f"note: {given} answers were in {args.input}: nothing is promised of those")


def recalibrate(args):
    """Refit a readout to labelled questions of another kind; the fit is kept in the run folder under a name."""
    path = args.given.pop("labels")
    asked, name, seen = read_questions(path), args.fit or Path(path).stem, set()
    for where, row in asked:
        accepted, label = row.get("answers"), row.setdefault("correct", None)
        listed = isinstance(accepted, list) and accepted and all(isinstance(a, str) and a.strip() for a in accepted)
        if label not in (0, 1) and (label is not None or not listed):
            raise ValueError(f"{where}: needs `answers`, a list of accepted ones, or `correct`, 0 or 1")
        one = row["question"].strip(), row["answer"].strip() if isinstance(row.get("answer"), str) else None
        if one in seen:  # labels must be independent
            raise ValueError(f"{where}: this question, with this answer, was there before")
        seen.add(one)
    model = CalibratedLM(args.run, **args.given)
    config, run = model.config, model.run
    before = setup.fits(run)
    if config.readout in before.get(name, {}):
        raise ValueError(f"there is a fit {name!r} of --readout {config.readout} already: give --fit a new name")
    found = _answers(model, asked)
    rows = [row | {"answer": a.text} for (_, row), a in zip(asked, found, strict=True)]
    grader = replace(config, grader="exact") if config.grader == "file" else config
    unlabelled = [row for row in rows if row["correct"] is None]
    graded = iter(graders.graded(grader, run, unlabelled, model.model))
    correct = [int(next(graded) if row["correct"] is None else row["correct"]) for row in rows]
    refit = readouts.Refit([(a.confidence, label) for a, label in zip(found, correct, strict=True)])
    slope, offset = refit.slope_and_offset
    entry = {"key": run.stages()[setup.needed(config)]["key"], "pairs": refit.pairs}
    run.write(setup.FITS, before | {name: before.get(name, {}) | {config.readout: entry}})
    there = sum(a.confidence is not None for a in found)
    print(f"fit {name!r} of --readout {config.readout}, on {there} confidences in {len(rows)} answers with an accuracy "
          f"of {sum(correct) / len(rows):.0%}: P(correct) = σ({slope:.2f} · log-odds + {offset:.2f})")
    notes = [f"{there} labels say little: fifty are better"] * (there < readouts.FEW)
    notes += ["answers without `correct` were graded by exact match"] * (grader is not config and bool(unlabelled))
    for note in notes:
        print(f"note: {note}")


def _answers(model, asked):
    """Of rows and where they stand, with an answer or without one. -> list of Answer"""
    for where, row in asked:
        with models.refused(where):
            setup.askable(model.config, model.model, [row["question"]])
            if row.get("answer") is not None:
                setup.check_answer(model.config, model.model, row["answer"])
    rows = [SimpleNamespace(id=f"in {where}", question=row["question"].strip()) for where, row in asked]
    setup.check_lengths(model.config, model.model, model.prompt, rows, model.config.readout in readouts.TRAINED)
    return model.judge_all([row["question"] for _, row in asked], [row.get("answer") for _, row in asked])


def merge(args):
    """Write the trained model to a new folder, as an ordinary one.

    Raises ValueError where the adapter is not on everywhere: an ordinary model has no switch.
    """
    out = _writable(args.out)
    config, run = setup.usable_run(args.run, args.given | {"readout": "expected"})
    if not run.finished("eval"):
        raise ValueError(f"{run.folder} has no report yet: go on with `{setup.again(run.config(), run)}`")
    if config.adapter != "everywhere":
        raise ValueError(f"the adapter in {run.folder} is on from the confidence turn on, and an ordinary model has no "
                         "switch: add --adapter everywhere to the call that made the run; the samples are kept, the "
                         "adapter is trained again")  # fmt: skip
    trained = CalibratedLM(run.folder, **args.given | {"readout": "expected"})
    lora.merge(trained.model)
    asked = trained.model.tokenizer.decode(sum(trained.prompt.second_turn("(question)", "(answer)", "", 0.5), []))
    models.save(trained.model.model, trained.model.tokenizer, out, card.merged(run.read("report.json"), asked))
    print(f"the merged model is in {out}")


def _writable(out):
    """Where predict and merge write to. Raises ValueError if they cannot."""
    out = Path(out)
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to write {out.name} to")
    if out.exists():
        raise ValueError(f"{out} is there already: give --out a new name")
    return out

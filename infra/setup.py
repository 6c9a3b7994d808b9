"""From settings and a run folder to what the stages work on: the questions of each part, the model and its prompt."""

import shlex
import sys
from dataclasses import asdict, fields, replace

import torch

import data
import lm
import lora
import rl
import toy
from beyond import readouts, tell
from infra import models, parallel, sharing
from infra.files import first, names
from infra.folder import Run, local, model_key
from settings import check, flags, option


def load_questions(config):
    """-> list of (part, Question). part: platt, train, test, or the name of an unseen set."""
    sizes = {"platt": config.platt_questions, "train": config.train_questions, "test": config.test_questions}
    if config.model == "toy":
        world = toy.world(seed=config.seed)
        known, unseen = (world.questions(f, config.seed) for f in (toy.TRAINED, toy.UNSEEN))
        others = {"unseen families": unseen}
    else:
        known, others = data.load(config.dataset), {}
        asked, taken = {q.words for q in known}, {q.id for q in known}
        for name in filter(None, names(config.ood)):
            found = [q for q in data.load(name, held_out=True) if q.words not in asked]
            if not found:
                raise ValueError(f"--ood {name}: all of its questions are in --dataset too")
            found = [replace(q, id=f"{name}: {q.id}") if q.id in taken else q for q in found]
            taken |= {q.id for q in found}
            others[f"unseen {name}" if name in sizes else name] = found  # a file called "test" is not the part
    if len(known) < sum(sizes.values()):
        share = len(known) / sum(sizes.values())
        sizes = {part: max(1, int(size * share)) for part, size in sizes.items()}
        if first():
            print(f"note: only {len(known)} questions, so the parts are smaller: {sizes['platt']} for Platt scaling "
                  f"alone, {sizes['train']} to train on, {sizes['test']} held out", file=sys.stderr)  # fmt: skip
    parts = data.split(known, sizes, config.seed)
    for name, questions in others.items():
        parts |= data.split(questions, {name: min(config.ood_questions, len(questions))}, config.seed)
    return [(part, q) for part, questions in parts.items() for q in questions]


def check_lengths(config, model, prompt, questions, confidence=True):
    """Raises ValueError for a question that does not fit into the model's context with its answer and confidence."""
    (context, turn), first = prompt.second_turn("", "", "", 1), prompt.first_turn("")
    end = min(lm.stop_ids(model, ""), default=0)  # some models have none
    forced = [len(prompt.forced(end, label)) for label in ("Answer:", prompt.statement.label)]  # at most
    answer = config.answer_tokens + (config.thought_tokens + forced[0]) * prompt.reasoned
    second = len(context) + len(turn) - len(first) + answer + prompt.reflection + forced[1] + rl.NUMBER_TOKENS
    for q in questions:
        with models.refused(f"question {q.id}"):
            lm.check_context(model, [prompt.first_turn(q.question)], max(answer, second * confidence))


def askable(config, model, questions):
    """Questions without blanks around them. Raises ValueError for one that the toy model has no words for."""
    questions = [q.strip() for q in questions]
    words = model.tokenizer.get_vocab() if config.model == "toy" else ()
    for q in questions if words else ():
        family, _, name = q.partition(" of ")
        if family not in toy.FAMILIES or not name.istitle() or f" {name}" not in words:
            raise ValueError(f"the toy model knows the {', '.join(toy.FAMILIES)} of its own invented names, not {q!r}")
    return questions


def load_model(config, run):
    """-> LM and Prompt. The toy model is trained once for each seed and kept in the run folder."""
    check(config)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, and there is no GPU in reach")
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    name, device = config.model, torch.device(chosen if config.device == "auto" else config.device)
    if name == "toy":
        name = run.path(f"model-{config.seed}")
        if first() and not name.exists():
            name.parent.mkdir(parents=True, exist_ok=True)
            toy.build(name, config.seed)
        parallel.wait()
    # a GPU holds the frozen weights in the precision of the arithmetic; what is trained stays in float32
    dtype = (rl.amp_dtype(config.amp, device) if device.type == "cuda" else None) or torch.float32
    model = lm.load(name, device, dtype)
    template = model.tokenizer.chat_template
    if config.prompt == "chat" and not template:
        raise ValueError(f"{config.model} has no chat template: use --prompt fewshot")
    style = "chat" if template and config.prompt != "fewshot" else "fewshot"
    if config.prompt == "auto" and template:
        style = run.stages().get("sample", {}).get("pilot", {}).get("prompt", style)  # as the samples were made
    model = with_engine(model, config.engine)
    own = tell if config.tell == "probability" else data
    return model, own.Prompt(model, style, () if config.model == "toy" else own.EXAMPLES, config.answer == "reasoned",
                             config.reflection, data.STATEMENTS[config.statement], config.shown)  # fmt: skip


def with_engine(model, engine):
    """The one place where it is decided whether infra.sharing may be used: where its numbers are right. -> LM

    Raises ValueError for a model that works with neither engine, or not with the one that is wanted.
    """
    parameters = lora.add_lora(model, rank=1)  # it changes nothing yet, and what it is put on must run with it
    try:
        models.check(model, lm)
        with models.refused(f"{model.name}: {type(model.model).__name__} cannot be trained"):
            with torch.no_grad():
                before = lm.read(model, [[1, 2]])
            logp, _ = lm.completion_logprobs(model, before, [[[1, 2, 3]]])
            torch.autograd.grad(logp.sum(), parameters, allow_unused=True)
        if engine == "plain":
            return model
        try:
            models.check(model, sharing)
        except ValueError as error:
            if engine == "shared":
                raise ValueError(f"{error}: use --engine plain") from None
            return model
    finally:
        lora.remove(model)
    return replace(model, sharing=sharing, longest_shared=10**9 if engine == "shared" else lm.SHORT)


def usable_run(folder, settings):
    """A run folder -> its Config, with other settings where they change no result, and its Run.

    Raises ValueError, which says how to go on, for a folder without what the readout needs.
    """
    run = Run(folder)
    if not run.path("stages.json").is_file() or not run.path("config.json").is_file():
        raise ValueError(f"{folder} is no run folder with stages.json and config.json, which `python calunc.py --out "
                         f"{folder}`, with the flags of the run, writes")  # fmt: skip
    own = run.config()
    free = [f.name for f in fields(own) if not f.metadata["stage"]]
    for name, value in settings.items():
        if name not in free and value != getattr(own, name, None):
            raise ValueError(f"no {option(name)} here: the settings are those of the run in {folder}")
    config = replace(own, **settings)
    check(config)

    def made(stage):
        return run.finished(stage) and run.stages()[stage]["key"].startswith(model_key(stage, own))

    if not made(stage := needed(config)):
        what = {"train": "adapter", "calibrate": "calibrated samples"}[stage]
        hint = ", or add --readout sequence" if "readout" not in settings and made("calibrate") else ""
        raise ValueError(f"{folder} holds no {what} for its settings and the model {own.model}, as it is found from "
                         f"here: make it with `{again(own, run, stage)}`{hint}")  # fmt: skip
    known = run.stages()[stage].get("embedder")  # its digest
    if config.readout == "samples" and known and known != local(own.embedder):
        raise ValueError(f"{own.embedder} is not the encoder that {folder} was calibrated with")
    return config, run


def needed(config):
    """The stage that a readout needs."""
    return "train" if config.readout in readouts.TRAINED else "calibrate"


def check_answer(config, model, text):
    """An answer from elsewhere without blanks around it. Raises ValueError for one that this run cannot judge."""
    if config.answer == "reasoned":
        raise ValueError("the answers of this run come after a thought, which an answer from elsewhere does not have")
    if not isinstance(text, str) or not text.strip() or data.clean_answer(text) != text.strip():
        raise ValueError(f"an answer must be a text of one line, and not {text!r}")
    if config.model == "toy" and f" {text.strip()}" not in model.tokenizer.get_vocab():
        raise ValueError(f"the toy model has no word {text!r}")
    if (n := min(map(len, readouts.written(model, model.plain(text.strip())))) - 1) >= config.answer_tokens:
        raise ValueError(f"the answer has {n} tokens and the end of its line, more than the --answer-tokens "
                         f"{config.answer_tokens} of the run")  # fmt: skip
    return text.strip()


def test_part(model):
    """Of a CalibratedLM: its confidences in the held-out questions of the run's own kind. -> N pairs with 0 or 1"""
    run, trained = model.run, needed(model.config) == "train"
    if trained and not run.finished("eval"):
        raise ValueError(f"{run.folder} has no report yet: go on with `{again(run.config(), run)}`")
    rows = [row for row in run.read("predictions.jsonl" if trained else "targets.jsonl") if row["part"] == "test"]
    confidences = [row[model.field] for row in rows] if trained else model.scale(rows)
    return [(c, row["correct"]) for c, row in zip(confidences, rows, strict=True)]


FITS = "fits.json"  # of `recalibrate`, {name: {readout: {"key": of the stage that it needs, "pairs": ...}}}


def fits(run):
    found = run.read(FITS) if run.path(FITS).exists() else {}
    if not isinstance(found, dict) or not all(isinstance(of, dict) for of in found.values()):
        raise ValueError(f"{run.path(FITS)} is damaged: delete it, and recalibrate again")
    return found


def fit_of(config, run, name):
    """-> Refit. Raises ValueError where there is none of this name for the readout."""
    found = fits(run).get(name, {}).get(config.readout)
    if not found:
        there = ", ".join(f"{name} ({', '.join(of)})" for name, of in fits(run).items()) or "none"
        raise ValueError(f"{run.folder} has no fit {name!r} of --readout {config.readout}; `recalibrate` makes it. "
                         f"There is: {there}")  # fmt: skip
    with models.refused(f"{run.path(FITS)} is damaged: delete it, and recalibrate again"):
        key, refit = found["key"], readouts.Refit(found["pairs"])
        refit.slope_and_offset  # noqa: B018, is there one?
    if key != run.stages()[needed(config)]["key"]:
        raise ValueError(f"the fit {name!r} is of what {run.folder} held before: recalibrate under another name")
    return refit


def again(config, run, stage=""):
    """The call that goes on with a run."""
    words = ["python calunc.py", "calibrate" * (stage == "calibrate"), flags(asdict(config))]
    return " ".join(filter(None, [*words, "--out", shlex.quote(str(run.folder))]))

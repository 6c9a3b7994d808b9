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
from beyond import tell
from infra import models, parallel, sharing
from infra.files import first, names
from infra.folder import Run, model_key
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
        asked = {q.question for q in known}
        for name in filter(None, names(config.ood)):
            found = [q for q in data.load(name, held_out=True) if q.question not in asked]
            if not found:
                raise ValueError(f"--ood {name}: all of its questions are in --dataset too")
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


def check_lengths(config, model, prompt, questions):
    """Raises ValueError for a question that does not fit into the model's context with all that comes after it."""
    (context, turn), first = prompt.confidence("", "", "", 1), prompt.answer("")
    end = min(lm.stop_ids(model, ""), default=0)  # some models have none
    forced = [len(prompt.after(end, label)) for label in ("Answer:", prompt.statement.label)]  # at most
    answer = config.answer_tokens + (config.thought_tokens + forced[0]) * prompt.reasoned
    second = len(context) + len(turn) - len(first) + answer + prompt.reflection + forced[1] + rl.NUMBER_TOKENS
    for q in questions:
        with models.refused(f"question {q.id}"):
            lm.check_context(model, [prompt.answer(q.question)], max(answer, second))


def askable(config, model, questions):
    """Questions without blanks around them. Raises ValueError for one that the toy model has no words for."""
    questions, words = [q.strip() for q in questions], model.tokenizer.get_vocab()
    for q in questions if config.model == "toy" else ():
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
        style = run.pilot().get("prompt", style)  # as the samples were made
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


def trained_run(folder, settings):
    """A run folder with an adapter -> its Config, with other settings where they change no result, and its Run.

    Raises ValueError, which says how to go on, for a folder without one.
    """
    run = Run(folder)
    if not run.path("stages.json").is_file() or not run.path("config.json").is_file():
        raise ValueError(f"{folder} is no run folder with stages.json and config.json, which `python calunc.py --out "
                         f"{folder}`, with the flags of the run, writes")  # fmt: skip
    own = run.config()
    if not run.finished("train") or not run.stages()["train"]["key"].startswith(model_key("train", own)):
        raise ValueError(f"{folder} holds no adapter for its settings and the model {own.model}, as it is found from "
                         f"here: train it with `{again(own, run)}`")  # fmt: skip
    free = [f.name for f in fields(own) if not f.metadata["stage"]]
    for name, value in settings.items():
        if name not in free and value != getattr(own, name, None):
            raise ValueError(f"no {option(name)} here: the settings are those of the run in {folder}")
    return replace(own, **settings), run


def again(config, run):
    """The call that goes on with a run."""
    return " ".join(filter(None, ["python calunc.py", flags(asdict(config)), "--out", shlex.quote(str(run.folder))]))

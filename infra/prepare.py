"""What a call needs before its first stage. Whatever cannot be used is found here, before anything is written."""

from types import SimpleNamespace

import lm
from beyond import baselines, exact, graders, pilot, rewards
from infra import parallel, progress, setup
from infra.files import first
from report import build


def prepare(config, run, todo):
    """-> (part, Question) pairs to sample, LM, Prompt, {"pilot": what it found}, or {} if the prompt was no choice

    Raises ValueError for settings, files, models and questions that one of the stages `todo` could not use.
    """
    parallel.wait()  # until all have seen what is done
    chosen = baselines.chosen(config.baselines)
    for name in sorted({config.embedder, config.judge} - {"", "self"}):
        lm.find(name)
    questions, tried = setup.load_questions(config) if "sample" in todo else [], {}
    asked = [q for _, q in questions] or [SimpleNamespace(**row) for row in run.read("samples.jsonl")]
    if config.labels and "calibrate" in todo:
        if len({q.id for q in asked}) < len(asked):  # in a run that an earlier version began
            raise ValueError("two questions of this run have one id, so that labels cannot tell them apart")
        graders.labels(config, {q.id: getattr(q, "answer", None) for q in asked})
    progress.expect(config, run, todo, [part for part, _ in questions] or [q.part for q in asked])
    model, prompt = setup.load_model(config, run)  # and, in a new run of the toy world, train it
    setup.check_lengths(config, model, prompt, asked)
    if "zero-shot" in chosen:
        baselines.without_examples(prompt).second_turn("", "", "", 0)  # can its template be used?
    exact.instead(model, prompt, config, rewards.chosen(config))  # can it write the numbers?
    if "sample" in todo:
        prompt, tried = pilot.held(config, run, model, prompt, questions, "train" in todo)
    if "calibrate" in todo and first():  # to be refused now; they are loaded again where they are used
        lm.load_embedder(config.embedder, model)
        if config.judge:
            graders.load(config, model, asked)
    run.start(todo[0], config)
    run.write("environment.json", build.environment(model.device))
    if tried:
        print(tried["said"])
        run.write(pilot.kept(config, run).name, tried)  # for when the stage is interrupted
    return questions, model, prompt, {"pilot": tried} if tried else {}

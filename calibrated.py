"""What a run is for: a language model that answers and says how sure it is, from Python.

    lm = CalibratedLM("runs/x")
    answer = lm.ask("What is the capital of Peru?")
    answer.text, answer.confidence

The commands `ask`, `predict` and `merge` use the same run folders, by `trained_run`.
"""

import shlex
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from run import Run, model_key
from settings import Config, command, nearest_file, option


@dataclass(frozen=True)
class Answer:
    text: str
    confidence: float | None  # in [0, 1]; None where none was stated


class CalibratedLM:
    """What a finished run has made of a language model.

    settings: those that change no training, as readout="expected" or device="cpu". Raises ValueError for a folder
    without a trained adapter, and for other settings.
    """

    def __init__(self, folder="runs/toy", **settings):
        self.config, self.run = trained_run(folder, settings)
        import stages  # torch

        self._model, self._prompt = stages.load_trained(self.config, self.run)

    def ask(self, question):
        """-> Answer"""
        return self.ask_all([question])[0]

    def ask_all(self, questions):
        """The same in batches. -> list of Answer"""
        import stages

        return [Answer(*x) for x in stages.answer_questions(self.config, self._model, self._prompt, questions)]


def trained_run(folder, settings):
    """A run folder with an adapter -> its Config, with other settings where they change no result, and its Run."""
    run = Run(folder)
    if not run.path("stages.json").is_file():
        near = nearest_file(folder) or "it is what `python calunc.py --out FOLDER` writes"
        raise ValueError(f"{folder} is no run folder; {near}")
    if not run.path("config.json").exists():
        raise ValueError(f"{folder} has no config.json any more: call the run again, with its flags")
    own = run.config()
    if not run.finished("train"):
        raise ValueError(f"{folder} holds no trained adapter yet: go on with `{again(own, run)}`")
    if not run.stages()["train"]["key"].startswith(model_key("train", own)):
        path = Path(own.model)
        if path.parent != Path() and not path.exists():
            raise ValueError(f"there is no model {path}, which {folder} was made with: call from where that was done")
        raise ValueError(f"{folder} has an adapter of another model or of other settings: train it again with "
                         f"`{again(own, run)}`")  # fmt: skip
    free = {f.name for f in fields(Config) if f.metadata["stage"] is None}
    for name, value in settings.items():
        if name not in free and value != getattr(own, name, None):
            raise ValueError(f"no {option(name)} here: the settings are those of the run in {folder}")
    return replace(own, **({"shard": "off"} | settings)), run


def again(config, run):
    """The call that goes on with a run."""
    return f"{command(asdict(config))} --out {shlex.quote(str(run.folder))}"

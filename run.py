"""The folder that holds the artefacts of a run.

A stage is skipped when it was finished with the same settings, and every artefact is written whole or not at all.
"""

import contextlib
import hashlib
import json
import math
import os
from dataclasses import fields
from pathlib import Path

from settings import Config, processes

FILES = {  # the stages in their order, and what each of them writes
    "sample": ("samples.jsonl", "seconds.jsonl"),
    "calibrate": ("targets.jsonl", "platt.json"),
    "train": ("metrics.jsonl", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    "eval": ("adapter/README.md", "predictions.jsonl", "report.json", "report.md", "report.html", "reliability.png",
             "risk_coverage.png", "entropy.png", "training.png"),
}
STAGES = tuple(FILES)
FORMAT = 3  # of the files; what a version with another one made is made again
FACTS = Path(__file__).parent / "facts" / "facts.jsonl"


class Run:
    """A folder of artefacts. Each is written to a temporary name and renamed, so none is ever half there."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, name):
        return self.folder / name

    def write(self, name, value):
        """Text as it is, a list as JSONL, anything else as JSON; a number that is not defined becomes null."""
        if not first():
            return
        if isinstance(value, list):
            value = "".join(json.dumps(_strict(row), allow_nan=False) + "\n" for row in value)
        elif not isinstance(value, str):
            value = json.dumps(_strict(value), allow_nan=False, indent=2) + "\n"
        write_whole(self.path(name), value.encode())

    def append(self, name, row):
        if first():
            append_line(self.path(name), row)

    def read(self, name):
        """The content of a JSON or JSONL file. Raises ValueError that names it."""
        path = self.path(name)
        if path.suffix == ".jsonl":
            return read_lines(path)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def config(self):
        """The settings of the run. Raises ValueError for those of another version."""
        found, known = self.read("config.json"), {f.name: f.type for f in fields(Config)}
        if not isinstance(found, dict) or found.keys() != known.keys():
            raise ValueError(f"{self.path('config.json')} was made by another version: run it again")
        for name, value in found.items():
            if not isinstance(value, (known[name], int) if known[name] is float else known[name]):
                raise ValueError(f"{self.path('config.json')} is damaged: {name} is {value!r}")
        return Config(**found)

    def done(self, stage, config):
        """Was this stage finished with these settings, and is all of it still there?"""
        return self.finished(stage) and self.stages()[stage]["key"] == key(stage, config)

    def start(self, stage):
        """From here on the files of this stage and the later ones must not pass for finished."""
        earlier = STAGES[: STAGES.index(stage)]
        self.write("stages.json", {name: entry for name, entry in self.stages().items() if name in earlier})

    def finish(self, stage, config, loading, seconds, work):
        """Note that the stage is finished, and what it cost. loading: seconds that the call spent before it."""
        if not first():
            return
        entry = {"key": key(stage, config), "loading": round(loading, 2), "seconds": round(seconds, 2), **work}
        entry["sha256"] = {name: _digest(self.path(name)) for name in FILES[stage]}
        self.write("stages.json", self.stages() | {stage: entry})
        self.tidy(stage)

    def tidy(self, stage):
        """Without what an interrupted call of a stage, which is finished now, has left."""
        for unfinished in self.folder.glob(f".{stage}-*") if first() else ():
            unfinished.unlink()

    def finished(self, stage):
        """Was this stage finished, with the settings that it was started with?

        Raises ValueError for a file that was altered since.
        """
        digests = self.stages().get(stage, {}).get("sha256")
        if not isinstance(digests, dict) or digests.keys() != set(FILES[stage]):  # not there, or of another version
            return False
        if not all(self.path(name).exists() for name in FILES[stage]):
            return False
        for name, digest in digests.items():
            if _digest(self.path(name)) != digest:
                raise ValueError(f"{self.path(name)} is not what `{stage}` wrote: put it back, or delete it and it is "
                                 "made again")  # fmt: skip
        return True

    def unfinished(self, stage, config, suffix):
        """Where a stage keeps what an interrupted call of the same settings can go on from."""
        return self.path(f".{stage}-{key(stage, config)}.{suffix}")

    def stages(self):
        """The stages that are finished, and what each of them cost. -> {stage: dict}"""
        found = self.read("stages.json") if self.path("stages.json").exists() else {}
        whole = isinstance(found, dict) and all(
            isinstance(x, dict) and isinstance(x.get("key"), str) for x in found.values()
        )
        if not whole:
            raise ValueError(f"{self.path('stages.json')} is damaged: delete it, and all is made again")
        return found


def key(stage, config):
    """A digest of all settings that a stage, or one before it, depends on, and one of the question files."""
    questions = {}
    for name in map(str.strip, f"{config.dataset},{config.ood}".split(",")):
        file = FACTS if name.partition(":")[0] == "facts" else Path(name)
        if file.is_file():
            questions[name] = _digest(file)
    return settings_key(stage, config) + "-" + _short(questions)


def settings_key(stage, config):
    """The first part of the key."""
    stages = STAGES[: STAGES.index(stage) + 1]
    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.metadata["stage"] in stages}
    return _short(settings | {"format": FORMAT})


def _short(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def first():
    """Is this the process that writes? Without torchrun, the only one."""
    return processes() == 1 or os.environ["RANK"] == "0"


def append_line(path, row):
    """One more line of a JSONL file; a crash leaves the lines before it whole."""
    line = json.dumps(_strict(row), allow_nan=False).encode() + b"\n"
    with _opened(path, "ab") as file:
        file.write(line)


def write_whole(path, content):
    """Bytes to a file that is never half there: to another name, to the disk, then renamed."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with _opened(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _opened(path, mode):
    """A file whose content is on the disk afterwards; an error, as of a full disk, says which file it was."""
    try:
        with path.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno:  # the system's, not one that came meanwhile
            error.filename = str(path)
        raise


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _strict(value):
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(path):
    """The rows of a JSONL file, none if it does not exist; a last line that was cut short is left out.

    Raises ValueError that names it for what is no JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None

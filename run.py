"""The folder that holds the artefacts of a run.

A stage is skipped when it was finished with the same settings, and every artefact is written whole or not at all.
"""

import contextlib
import functools
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
LOADED = (".safetensors", ".json", ".jinja", ".model", ".txt")  # of a model and its tokenizer; also vocab.txt
FACTS = Path(__file__).parent / "facts" / "facts.jsonl"


class Run:
    """A folder of artefacts. Each is written to a temporary name and renamed, so none is ever half there."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, name):
        return self.folder / name

    def write(self, name, value):
        """Text as it is, a dict as JSON, rows as JSONL, one by one; a number that is not defined becomes null."""
        if not first():
            return
        if isinstance(value, str):
            content = [value]
        elif isinstance(value, dict):
            content = [json.dumps(strict(value), allow_nan=False, indent=2) + "\n"]
        else:
            content = (_line(row) for row in value)
        write_whole(self.path(name), map(str.encode, content))

    def append(self, name, row):
        if first():
            append_line(self.path(name), row)

    def read(self, name):
        """The content of a JSON or JSONL file. Raises ValueError that names it."""
        path = self.path(name)
        if path.suffix == ".jsonl":
            return list(read_lines(path))
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def rows(self, name):
        """The rows of a JSONL file, one by one."""
        return read_lines(self.path(name))

    def begun_with(self):
        """What config.json has, of whatever version; an empty dict where it is not there."""
        found = self.read("config.json") if self.path("config.json").exists() else {}
        return found if isinstance(found, dict) else {}

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
        own = FILES[stage] + ((f"model-{config.seed}",) if config.model == "toy" else ())  # and what it was made with
        entry["sha256"] = {name: _digest(self.path(name)) for name in own}
        self.write("stages.json", self.stages() | {stage: entry})
        self.tidy(stage)

    def tidy(self, stage):
        """Without what an interrupted call of a stage, which is finished now, has left."""
        for unfinished in self.folder.glob(f".{stage}-*") if first() else ():
            unfinished.unlink()

    def foreign(self):
        """Is there something of this name that is no run, not even one that was interrupted at once?"""
        if not self.folder.exists() or self.path("stages.json").exists():
            return False
        if self.folder.is_file():
            return True
        left = [p.name for p in self.folder.iterdir()]
        left = [name for name in left if not name.startswith((".", "model-")) and not name.endswith(".tmp")]
        return bool(left) and "platt_questions" not in self.begun_with()

    def finished(self, stage):
        """Was this stage finished, with the settings that it was started with?

        Raises ValueError for a file that was altered since.
        """
        digests = self.stages().get(stage, {}).get("sha256")
        if not isinstance(digests, dict) or not digests.keys() >= set(FILES[stage]):  # not there, or another version's
            return False
        if not all(self.path(name).exists() for name in digests):
            return False
        for name, digest in digests.items():
            if _digest(self.path(name)) != digest:
                raise ValueError(f"{self.path(name)} is not what `{stage}` wrote: put it back, or delete it and it is "
                                 "made again, with all that depends on it")  # fmt: skip
        return True

    def unfinished(self, stage, config, suffix):
        """Where a stage keeps what an interrupted call of the same settings can go on from."""
        return self.path(f".{stage}-{key(stage, config)}.{suffix}")

    def resumes(self, stage, config):
        """Is there something that an interrupted call of this stage has left? What that call cost is not known."""
        return any(self.folder.glob(self.unfinished(stage, config, "*").name))

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
    """A digest of all settings that a stage, or one before it, depends on; of local models; of the question files."""
    questions = {}
    for name in map(str.strip, f"{config.dataset},{config.ood}".split(",")):
        file = FACTS if name.partition(":")[0] == "facts" else Path(name)
        if file.is_file():
            questions[name] = _digest(file)
    return f"{model_key(stage, config)}-{short(questions)}"


def model_key(stage, config):
    """The first two parts of the key: without the question files, which nobody needs any more who asks the model."""
    used = [config.model, config.embedder] if stage != "sample" else [config.model]
    local = [_digest(Path(name)) for name in used if name not in ("toy", "self") and Path(name).is_dir()]
    return f"{_settings_key(stage, config)}-{short(local)}"


def _settings_key(stage, config):
    stages = STAGES[: STAGES.index(stage) + 1]
    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.metadata["stage"] in stages}
    return short(settings | {"format": FORMAT})


def short(value):
    """A digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def first():
    """Is this the process that writes? Without torchrun, the only one."""
    return processes() == 1 or os.environ["RANK"] == "0"


def append_line(path, row):
    """One more line of a JSONL file; a crash leaves the lines before it whole."""
    line = _line(row).encode()
    with _opened(path, "ab") as file:
        file.write(line)


def write_whole(path, content):
    """Pieces of bytes to a file that is never half there: to another name, to the disk, then renamed."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with _opened(temporary, "wb") as file:
            file.writelines(content)
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
    """SHA-256 of a file, or of all files of a model's folder that are loaded."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in LOADED)
        return short([(file.name, _unchanged(file, file.stat().st_size, file.stat().st_mtime_ns)) for file in files])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache
def _unchanged(file, size, time):
    """The weights of a model are not read again while they look the same."""
    return _digest(file)


def _line(row):
    return json.dumps(strict(row), allow_nan=False) + "\n"


def strict(value):
    """A value as JSON has it: no NaN."""
    if isinstance(value, dict):
        return {k: strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(path):
    """The rows of a JSONL file, none if it does not exist; a last line that was cut short is left out.

    Raises ValueError that names it for what is no JSON.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                try:
                    row = json.loads(line.decode())
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path} is damaged: {error}") from None
                yield row

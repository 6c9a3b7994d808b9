"""The folder that holds the artefacts of a run.

A stage is skipped when it was finished with the same settings, and every artefact is written whole or not at all.
"""

import contextlib
import functools
import hashlib
import json
import shlex
import time
from dataclasses import asdict, fields
from pathlib import Path

from data import files_of
from infra.files import first, line, parsed, write_whole
from settings import Config, option, usual

FILES = {  # the stages in their order, and what each of them writes
    "sample": ("samples.jsonl",),
    "calibrate": ("targets.jsonl", "platt.json"),
    "train": ("metrics.jsonl", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    "eval": ("adapter/README.md", "predictions.jsonl", "report.json", "report.md", "report.html", "reliability.png",
             "risk_coverage.png", "entropy.png", "training.png"),
}  # fmt: skip
STAGES = tuple(FILES)
FORMAT = 6  # of the files; a folder of another format is refused
PILOT = {"questions": 40, "samples": 5}  # what beyond/pilot.py tries both prompts on, and samples for each question
LOADED = (".safetensors", ".json", ".jinja", ".model", ".txt")  # of a model and its tokenizer; also vocab.txt


class Run:
    """A folder of artefacts. Methods that read raise ValueError, which names the file, for one that was altered."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, name):
        return self.folder / name

    def write(self, name, value):
        """Text as it is, a dict as JSON, rows as JSONL, one by one; a number that is not defined becomes null."""
        content = [value.encode()] if isinstance(value, str) else map(line, value)
        if isinstance(value, dict):
            content = [line(value, indent=2)]
        if first():
            write_whole(self.path(name), content)

    def append(self, name, row):
        """One more line of a JSONL file that is written again when its stage is."""
        if first():
            with self.path(name).open("ab") as file:
                file.write(line(row))

    def read(self, name):
        """The content of a JSON or JSONL file."""
        text, where = self.path(name).read_bytes(), f"{self.path(name)} is damaged"
        if name.endswith(".jsonl"):
            return [parsed(row, where) for row in text.splitlines()]
        return parsed(text, where)

    def begun_with(self):
        """The settings in config.json; an empty dict where it is not there. Raises ValueError for another format."""
        if not self.path("config.json").exists():
            return {}
        found = self.read("config.json")
        if not isinstance(found, dict) or found.pop("format", 3) != FORMAT:
            raise ValueError(f"{self.folder} was made by another version of calunc: name another folder, or delete it")
        return found

    def config(self):
        """The settings of the run."""
        found, known = self.begun_with(), {f.name: f.type for f in fields(Config)}
        for name, value in found.items():
            if type(value) is not known.get(name):
                raise ValueError(f"{self.path('config.json')} is damaged: {name} is {value!r}")
        return Config(**found)

    def stages(self):
        """The stages that are finished: what they depended on, their files, what they cost. -> {stage: dict}"""
        self.begun_with()  # in this format?
        found = self.read("stages.json") if self.path("stages.json").exists() else {}
        if not isinstance(found, dict) or not all(isinstance(x, dict) and "files" in x for x in found.values()):
            raise ValueError(f"{self.path('stages.json')} is damaged: delete it, and all is made again")
        return found

    def finished(self, stage):
        """Was this stage finished, with the settings that it was started with?"""
        sizes = self.stages().get(stage, {}).get("files", {})
        if not all(name in sizes and self.path(name).exists() for name in FILES[stage]):
            return False
        for name in FILES[stage]:
            if self.path(name).stat().st_size != sizes[name]:
                raise ValueError(f"{self.path(name)} is not what `{stage}` wrote: put it back, or delete it and it is "
                                 "made again, with all that depends on it")  # fmt: skip
        return True

    def done(self, stage, config):
        """Was this stage finished with these settings, and is all of it still there?"""
        entry = self.stages()[stage] if self.finished(stage) else {"key": ""}
        piloted = entry.get("pilot", {}).get("key", pilot_key(config))  # where a pilot chose the prompt
        return (entry["key"], piloted) == (key(stage, config), pilot_key(config))

    def changed(self, config, given):
        """The settings that differ from those in config.json. -> names

        Raises ValueError for one that was not given: a forgotten flag must not cost a trained adapter, or half of one.
        """
        old, depends = self.begun_with(), [f.name for f in fields(config) if f.metadata["stage"]]
        changed = [name for name in depends if old.get(name, getattr(config, name)) != getattr(config, name)]
        default = usual(old.get("model"))
        forgotten = [name for name in changed if name not in given and old[name] != default[name]]
        if forgotten:
            said = " ".join(f"{option(name)} {shlex.quote(str(old[name]))}" for name in forgotten)
            raise ValueError(f"{self.folder} was made with {said}, which this call does not say: give these flags "
                             "again, or with another value, or name another --out")  # fmt: skip
        return changed

    def start(self, stage, config):
        """Call before the first stage to run: from here on it and later ones must not pass for finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_config(config)
        earlier = STAGES[: STAGES.index(stage)]
        self.write("stages.json", {name: entry for name, entry in self.stages().items() if name in earlier})

    def keep(self, config, given):
        """Where nothing is left to do: keep the settings if they were lost, and a --readout that was given."""
        old = self.begun_with()
        new = old | {"readout": given.get("readout", old["readout"])} if old else asdict(config)
        if new != old:
            self.write("config.json", {"format": FORMAT} | new)

    def write_config(self, config):
        self.write("config.json", {"format": FORMAT} | asdict(config))

    @contextlib.contextmanager
    def stage(self, stage, config):
        """Time one stage unless it says its seconds, take note of its cost, and mark it as finished."""
        from infra import parallel  # torch

        cost, begin = {}, time.perf_counter()
        yield cost
        cost.setdefault("seconds", round(time.perf_counter() - begin, 2))
        parallel.wait()  # all have read what is tidied now
        if first():
            sizes = {name: self.path(name).stat().st_size for name in FILES[stage]}
            self.write("stages.json", self.stages() | {stage: {"key": key(stage, config), **cost, "files": sizes}})
            self.tidy(stage)
        parallel.wait()

    def unfinished(self, stage, config, suffix):
        """Where a stage keeps what an interrupted call of the same settings can go on from."""
        return self.path(f".{stage}-{key(stage, config)}.{suffix}")

    def tidy(self, stage):
        """Delete the partial files of a finished stage."""
        for unfinished in self.folder.glob(f".{stage}-*") if first() else ():
            unfinished.unlink()

    def foreign(self):
        """True if there is something of this name that is no run, not even one that was interrupted at once."""
        if not self.folder.is_dir():
            return self.folder.exists()
        names = {p.name for p in self.folder.iterdir() if p.suffix != ".tmp" and not p.name.startswith((".", "model-"))}
        if "config.json" in names and b"platt_questions" in self.path("config.json").read_bytes():
            return False  # a model has a config.json too
        return bool(names) and "stages.json" not in names


def key(stage, config):
    """A digest of all settings that a stage, or one before it, depends on; of the model; of other files and folders."""
    files = {name: _digest(file) for name, file in (files_of(config.dataset) | files_of(config.ood)).items()}
    if stage != "sample":
        used = [name for name in (config.embedder, config.judge, config.labels) if name not in ("", "self")]
        files |= {name: _digest(Path(name)) for name in used if Path(name).exists()}
    return f"{model_key(stage, config)}-{short(files)}"


def model_key(stage, config):
    """The first two parts of the key: without the other files, which nobody needs any more who asks the model."""
    stages = STAGES[: STAGES.index(stage) + 1]
    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.metadata["stage"] in stages}
    return f"{short(settings | {'format': FORMAT})}-{short(local(config.model))}"


def pilot_key(config):
    """A digest of what a choice of the prompt depends on, beside what all samples do."""
    embedder = [] if config.embedder == "self" else local(config.embedder)
    return short([PILOT, config.embedder, embedder, config.kernel, config.gamma, config.grader == "contains"])


def local(model):
    """The digest of a model that is a folder, in a list."""
    return [_digest(Path(model))] if model != "toy" and Path(model).is_dir() else []


def short(value):
    """A digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _digest(path):
    """SHA-256 of a file, or of all files of a model's folder that are loaded."""
    if path.is_dir():
        files = [f for f in sorted([*path.iterdir(), *path.glob("*_Pooling/*")]) if f.suffix in LOADED]
        return short([(file.name, _digest(file)) for file in files])
    return _sha256(path, path.stat().st_size, path.stat().st_mtime_ns)


@functools.lru_cache
def _sha256(path, size, time):
    """A file is not read again while it looks the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

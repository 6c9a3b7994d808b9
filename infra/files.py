"""Files that are whole or not there, the process that writes them, and questions in other people's files."""

import difflib
import hashlib
import json
import math
import os
from pathlib import Path

LABELLED = ("platt", "train")  # the parts of the questions whose labels are used


def processes():
    """How many torchrun started; one without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def first():
    """Is this the process that writes? Without torchrun, the only one."""
    return processes() == 1 or os.environ["RANK"] == "0"


def write_whole(path, content):
    """Write a file whole or not at all: under another name, to the disk, then renamed."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # of the system, as a full disk
            error.filename = str(temporary)
        raise


def line(row, indent=None):
    """A value as a line of strict JSON, in bytes."""
    return (json.dumps(strict(row), allow_nan=False, indent=indent) + "\n").encode()


def strict(value):
    """A value as JSON has it: NaN and infinity become null."""
    if isinstance(value, dict):
        return {k: strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parsed(text, where):
    """JSON. Raises ValueError that begins with `where`, also for half a character, as "\\ud800", and for NaN."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        strict(value)  # which goes deep
        return value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from None


def read_rows(path):
    """Lines of JSONL -> (where, dict) pairs. Raises ValueError that names the file and the line."""
    if not Path(path).exists():
        raise ValueError(f"there is no file {path}; {nearest(path) or 'look at its name'}")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # some editors begin with a mark
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    found = [(f"{path}, line {number}", text) for number, text in enumerate(lines, 1) if text.strip()]
    found = [(where, parsed(text, where)) for where, text in found]
    for where, row in found:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: not an object")
    return found


def read_questions(path, taken=()):
    """Rows with a `question`, and without the columns that are `taken`."""
    found = read_rows(path)
    for where, row in found:
        for column in (name for name in taken if name in row):
            raise ValueError(f"{where}: has a column `{column}`, which would be overwritten: rename it")
        if not isinstance(row.get("question"), str) or not row["question"].strip():
            raise ValueError(f"{where}: needs a non-empty string `question`")
    if not found:
        raise ValueError(f"{path} holds no questions")
    return found


def names(text):
    """A comma-separated list -> its names. A path that exists may have commas and blanks in it."""
    parts = text.split(",")
    for n in range(len(parts), 0, -1):
        name = ",".join(parts[:n]).strip()
        if n == 1 or os.path.exists(name):
            return [name, *(names(",".join(parts[n:])) if parts[n:] else [])]


def nearest(name, known=()):
    """A question at the end of the message about an unknown name: was a known one meant, or a file beside it?"""
    folder = Path(name).parent
    files = {p.name: str(p) for p in folder.iterdir() if p.is_file()} if folder.is_dir() else {}
    near = difflib.get_close_matches(Path(name).name, [*known, *files], 1)
    return f"did you mean {files.get(near[0], near[0])!r}?" if near else ""


def seed_of(*parts):
    """A seed from names and numbers, the same in every process (Python's own `hash` is salted)."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:7], "big")

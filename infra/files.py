"""Files that are whole or not there, the process that writes them, and questions in other people's files."""

import contextlib
import hashlib
import json
import math
import os
from pathlib import Path

from infra.hints import nearest_file


def processes():
    """How many torchrun started; one without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def first():
    """Is this the process that writes? Without torchrun, the only one."""
    return processes() == 1 or os.environ["RANK"] == "0"


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


def append_line(path, row):
    """One more line of a JSONL file; a crash leaves the lines before it whole."""
    with _opened(path, "ab") as file:
        file.write(line(row))


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


def read_lines(path):
    """The rows of a JSONL file, none if it does not exist; a last line that was cut short is left out.

    Raises ValueError that names it for what is no JSON.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for row in file:
            if row.endswith(b"\n"):
                yield parsed(row, path)


def parsed(text, path):
    """JSON. Raises ValueError that names the file."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def line(row, indent=None):
    """A value as a line of strict JSON, in bytes: NaN becomes null."""
    return (json.dumps(strict(row), allow_nan=False, indent=indent) + "\n").encode()


def strict(value):
    """A value as JSON has it: no NaN."""
    if isinstance(value, dict):
        return {k: strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def short(value):
    """A digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def read_questions(path):
    """Lines of JSONL with a `question` -> (where, row) pairs. Raises ValueError that names the file and the line."""
    if not Path(path).exists():
        raise ValueError(f"there is no file {path}; {nearest_file(path) or 'look at its name'}")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # some editors begin with a mark
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # half a character, as "\ud800", is none
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({getattr(error, 'msg', error)})") from None
        if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
            raise ValueError(f"{where}: needs a non-empty string `question`")
        found.append((where, row))
    if not found:
        raise ValueError(f"{path} holds no questions")
    return found


def seed_of(*parts):
    """A seed from names and numbers, the same in every process (Python's own `hash` is salted)."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:7], "big")

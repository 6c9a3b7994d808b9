"""What a message about an unknown name ends with: the known name that was probably meant."""

import difflib
import os
from pathlib import Path


def nearest(name, known):
    """A question at the end of the message about an unknown name, if one of the known ones is like it."""
    near = difflib.get_close_matches(name, known, 1) or [x for x in known if len(name) > 3 and name in x]
    return f"did you mean {near[0]!r}?" if near else ""


def nearest_file(path):
    """The same for a path, by what else is in its folder."""
    folder = Path(path).parent
    others = {p.name for p in folder.iterdir()} - {Path(path).name} if folder.is_dir() else ()
    near = nearest(Path(path).name, sorted(others))
    return near and near.replace("'", f"'{folder}/", 1)


def one_spelling(names):
    """Paths among comma-separated names, without "./" and a last slash, so that they are not taken for others."""
    names = map(str.strip, names.split(","))
    return ",".join(os.path.normpath(name) if name and os.path.exists(name) else name for name in names)

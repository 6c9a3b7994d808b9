"""Does memory stay flat? 10,000 questions and 500 steps on a large toy world, in a temporary folder; about 15 minutes.

    python bench/soak.py

Prints the resident memory of each stage at a tenth of its time, and the most that it had after that; exit code 1 if
that is 5% more in any of them. Further arguments are flags of calunc.py, for a shorter trial.
"""

import functools
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import calunc  # noqa: E402
import toy  # noqa: E402

FLAGS = "--platt-questions 500 --train-questions 7000 --test-questions 900 --ood-questions 1600 --steps 500"


def resident():
    """MiB of this process."""
    fields = Path("/proc/self/status").read_text().split()
    return int(fields[fields.index("VmRSS:") + 1]) / 1024


def watched(function, growth):
    """The function, whose memory is noted every fifth of a second."""

    @functools.wraps(function)
    def run(*args):
        seen, done = [resident()], threading.Event()

        def watch():
            while not done.wait(0.2):
                seen.append(resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            return function(*args)
        finally:
            done.set()
            watcher.join()
            tenth = max(1, len(seen) // 10)
            growth[function.__name__] = max(seen[:tenth]), max(seen[tenth:] or seen)

    return run


def main(argv):
    growth = {}
    toy.world = functools.partial(toy.world, trained=2800, unseen=600)
    for stage in ("sample", "calibrate", "train", "evaluate"):
        setattr(calunc, stage, watched(getattr(calunc, stage), growth))
    with tempfile.TemporaryDirectory() as folder:
        code = calunc.main(["--out", f"{folder}/soak", *FLAGS.split(), *argv])
    for name, (early, late) in growth.items():
        print(f"{name}: {early:.0f} MiB in the first tenth, {late:.0f} MiB at most after it: {late / early - 1:+.1%}")
    return code or any(late > 1.05 * early for early, late in growth.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

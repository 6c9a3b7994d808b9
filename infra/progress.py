"""How far a call is: a bar in a terminal; in a file or the log of a CI, one line at most every 30 seconds.

Both also say how long all that is still to do will take, once the speed of this call is known. A later loop is weighed
by the tokens that it will read and write, which is right to a factor of three or so; the present one has its own speed.
"""

import os
import sys
from time import time

from tqdm import tqdm

from infra.files import LABELLED

EVERY, KNOWN = 30, 5  # seconds between two lines; seconds after which a speed is known


class Lines:
    """A file that passes on some of the lines that tqdm writes."""

    last = time()

    def write(self, text):
        if text.strip() and time() - self.last >= EVERY:
            self.last = time()
            print(text.strip(), file=sys.stderr, flush=True)

    def flush(self):
        pass


class Bar(tqdm):
    """Around a loop, as tqdm. desc: its name in `expect`; initial: what earlier calls have done of it."""

    lines, ahead, spent = Lines(), {}, []  # of the call: {name: tokens} to come; (tokens, seconds) of what has ended

    def __init__(self, items=None, **kwargs):
        self.tokens = 0
        while kwargs["desc"] in self.ahead:  # what comes before it in there does not come any more
            self.tokens = self.ahead.pop(next(iter(self.ahead)))
        terminal = sys.stderr.isatty() and "CI" not in os.environ
        super().__init__(items, **kwargs, **({} if terminal else {"file": self.lines, "ncols": 0, "mininterval": 1}))

    def now(self):
        """What this call has done of the loop. -> tokens, seconds"""
        return self.tokens * (self.n - self.initial) / max(self.total, 1), self._time() - self.start_t

    def left(self):
        """Seconds until all loops have ended; None while that is not known."""
        if self.disable or self.n == self.initial or not self.tokens:
            return None
        (_, own), (tokens, seconds) = self.now(), map(sum, zip(*self.spent, self.now(), strict=True))
        rest = own * (self.total - self.n) / (self.n - self.initial)
        return rest + sum(self.ahead.values()) * seconds / tokens if seconds >= KNOWN else None

    @property
    def format_dict(self):
        found, left = super().format_dict, self.left()
        said = [found["postfix"]] * bool(found["postfix"])
        said += [] if left is None else [f"about {self.format_interval(left)} left in all"]
        return found | {"postfix": ", ".join(said)}

    def close(self):
        if not getattr(self, "disable", True) and hasattr(self, "start_t"):  # it was not half made, nor closed before
            ended = self.now()
            super().close()
            self.spent += [ended] if self.tokens else []


def expect(config, run, todo, parts):
    """Call before the first loop of the stages `todo` of a run. parts: that of each question."""
    n, held = len(parts), sum(part not in LABELLED for part in parts)
    answer = config.answer_tokens / 2 + config.thought_tokens * (config.answer == "reasoned")  # most end early
    turn, number = 40, 4  # these and other constants: as measured on a CPU
    said = config.reflection + number
    step = turn + config.rollouts * said * 5  # sampled, scored twice, gradient
    if config.gradient == "exact":
        each = 6 * (100 // config.every + 1) + 5 * config.reflection
        step = turn + each * (config.rollouts if config.reflection else 1)
    steps = (config.steps * step + config.warmup * (turn + 3 * said)) * (2.2 if config.adapter == "everywhere" else 1)
    built = config.model != "toy" or run.path(f"model-{config.seed}").exists()
    Bar.spent, Bar.ahead = [], {} if built else {"toy: language model": 3e6}
    for stage, name, tokens in (
        ("sample", "pilot", min(n, 40) * (15 + 6 * answer) * (config.model != "toy")),  # of one prompt
        ("sample", "sampling answers", n * (15 + (1 + config.samples) * answer)),
        ("calibrate", "judging answers", n * 60 * (config.grader == "judge")),
        ("calibrate", "embedding the answers", n * (1 + config.samples) * answer / 8),
        ("train", "training", config.questions * steps),
        ("eval", "confidence: untrained, trained, expected", held * (2 * (turn + said) + 30)),
        ("eval", "confidence: alone", held * (turn + number) * (config.reflection > 0)),
    ):
        Bar.ahead |= {name: tokens} if stage in todo and tokens else {}

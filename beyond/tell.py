"""`--tell probability`: what the model is told of its answer before it is asked how sure it is.

    p = exp(log P(answer | question) / tokens of the answer)        the geometric mean, free once the answer is there

It stands on a line of its own after the answer, in the examples too. The base model reads it, like the answer, and no
answer can forge it, as an answer has one line. The stated number is then informed by the decoder as well as by
introspection: a student that is paid for agreeing with a noisy teacher can become better than the teacher, because what
it is told carries more than what it is paid for.
"""

import functools
from dataclasses import dataclass

import data
from beyond import exact

EXAMPLES = tuple((*example, p) for example, p in zip(data.EXAMPLES, (0.94, 0.91, 0.38, 0.72, 0.45), strict=True))


@dataclass(frozen=True, eq=False)
class Prompt(data.Prompt):
    @functools.cached_property
    def step(self):
        """1%, or 5% for the toy model, which has no words for less (nor one for "Probability:": it reads <unk>)."""
        return 0.01 if exact.written(self.lm, self.lm.proceed(" 43%"), "43%") else 0.05

    def told(self, probability):
        """0.43 -> "Probability: 43%". Raises ValueError where there is no probability."""
        if probability is None:
            raise ValueError("--tell probability needs the probabilities of the answer's tokens, which it has not")
        said = f"{round(probability / self.step) * self.step:.0%}"
        return f"Probability: {said}\n" if self.style == "fewshot" else f"Mean probability of its tokens: {said}.\n"

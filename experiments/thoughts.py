"""Runs of the toy world whose reflection is not the trained model's own, to find out what it is good for.

    python -m experiments.thoughts constant ...      as many words, always the same ones; needs --reflection 0
    python -m experiments.thoughts frozen ...        written by the base model, in training and at the end

The first keeps the length of a reflection but not its content; the second keeps the content but does not train it.
Other flags are those of calunc.py, but for --gradient exact.
"""

import functools
import sys
from dataclasses import replace

import calunc
import data
import rl
from infra.files import seed_of
from lora import adapter

WORDS = "red red red red"  # as many as the toy model reflects in


def constant(second_turn):
    """Prompt.second_turn, with a reflection that is part of what is asked."""

    def asked(prompt, *pair):
        context, turn = second_turn(prompt, *pair)
        return context, prompt.lm.proceed(f"\nReflection: {WORDS}") + turn

    return asked


def frozen(rollout, lm, prompt, asked, group, temperature, seeds):
    """rl.rollout, with reflections of the base model, which are no actions."""
    if not prompt.reflection:
        return rollout(lm, prompt, asked, group, temperature, seeds)
    with adapter(lm, False):
        thoughts = rollout(lm, prompt, asked, group, temperature, seeds)
    each = [seed_of(seed, "frozen", g) for seed in seeds for g in range(group)]
    numbers = rollout(lm, replace(prompt, reflection=0), asked.after(thoughts), 1, temperature, each)
    every = [n._replace(forced=r.reflection + r.forced) for r, (n,) in zip(sum(thoughts, []), numbers, strict=True)]
    return [every[i : i + group] for i in range(0, len(every), group)]


if __name__ == "__main__":
    if sys.argv[1] == "constant":
        data.Prompt.second_turn = constant(data.Prompt.second_turn)
    else:
        rl.rollout = functools.partial(frozen, rl.rollout)
    sys.exit(calunc.main(sys.argv[2:]))

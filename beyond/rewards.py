"""Other rewards of a stated confidence: the Brier and the log score of the model's own answer, and a mixture.

All are in [0, 1], as rl.calibration_reward is, and no parseable number earns 0, the least.
"""

import math

from data import STATEMENTS, Statement
from rl import calibration_reward

RLCR = Statement("<confidence>", "", r"([01](?:\.[0-9]+)?)</confidence>", 1, 0)


def brier_reward(confidence, correct):
    """1 - (c - y)², the Brier score of the model's own answer; None earns 0.

    The reward of RLCR, arXiv 2507.16806, which trains the answer too.
    """
    return 0.0 if confidence is None else 1.0 - (confidence - correct) ** 2


def log_reward(confidence, correct, floor=0.01):
    """1 + log(chance given to what happened) / log(1/floor): the logarithmic score on [0, 1]; None earns 0.

    Confidences are clipped to [floor, 1 - floor]. The reward of Rewarding Doubt, arXiv 2503.02623, up to its scale.
    """
    if confidence is None:
        return 0.0
    c = min(max(confidence, floor), 1 - floor)
    return 1.0 + math.log(c if correct else 1 - c) / math.log(1 / floor)


def trl_reward(completions, target, **_):
    """The paper's reward for TRL's GRPOTrainer: texts or conversations, which state a confidence or an uncertainty as
    here or a confidence as RLCR does; and the target of each. No number, or several, earn 0."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    read = [[form.read(text) for form in (*STATEMENTS.values(), RLCR) if form.label in text] for text in texts]
    return [calibration_reward(r[0] if len(r) == 1 else None, p) for r, p in zip(read, target, strict=True)]


def chosen(config):
    """--reward as a function (stated confidence or None, rl.Item) -> float."""
    ways = {
        "calibrated": lambda c, x: calibration_reward(c, x.target, config.tolerance),
        "brier": lambda c, x: brier_reward(c, x.correct),
        "log": lambda c, x: log_reward(c, x.correct),
        "hybrid": lambda c, x: config.alpha * ways["calibrated"](c, x) + (1 - config.alpha) * ways["brier"](c, x),
    }
    return ways[config.reward]

"""What a stated confidence c may earn instead: two rewards that look at the model's own answer alone, and a mixture.

    calibrated   1 - max(tolerance, |c - p|)         the paper's, rl.calibration_reward
    brier        1 - (c - y)^2                       y: is it right?
    log          1 + log(chance given to y) / log(1/floor)
    hybrid       alpha calibrated + (1 - alpha) brier

All are in [0, 1], and no parseable number earns 0, the least.
"""

import math

from data import LABEL, parse_confidence
from rl import calibration_reward


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
    """The paper's reward as TRL's trainers call it. -> list of floats

    completions: texts, or conversations whose last message has one; target: the data set's column of calibrated
    probabilities. A text is "Confidence: 73%", perhaps after some reasoning, or " 73%" where the prompt ends with the
    label.
    """
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    stated = [parse_confidence(text if LABEL in text else LABEL + text) for text in texts]
    return [calibration_reward(c, p) for c, p in zip(stated, target, strict=True)]


def chosen(config):
    """--reward as a function (stated confidence or None, rl.Item) -> float."""

    def calibrated(confidence, item):
        return calibration_reward(confidence, item.target, config.tolerance)

    def brier(confidence, item):
        return brier_reward(confidence, item.correct)

    def log(confidence, item):
        return log_reward(confidence, item.correct)

    def hybrid(confidence, item):
        return config.alpha * calibrated(confidence, item) + (1 - config.alpha) * brier(confidence, item)

    return {"calibrated": calibrated, "brier": brier, "log": log, "hybrid": hybrid}[config.reward]

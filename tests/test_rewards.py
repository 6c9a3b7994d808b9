"""rewards.py against its definitions, and what a proper score is: best, on average, at the truth."""

import itertools
import math

import numpy as np
import pytest

from rewards import brier_reward, calibration_reward, chosen, log_reward
from rl import Item
from settings import Config


@pytest.mark.parametrize(
    "confidence, target, reward",
    [
        (0.7, 0.7, 0.95),
        (0.74, 0.7, 0.95),
        (0.66, 0.7, 0.95),
        (0.8, 0.7, 0.9),
        (0.6, 0.7, 0.9),
        (1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.0, 0.0, 0.95),
        (1.0, 1.0, 0.95),
        (0.25, 0.75, 0.5),
        (None, 0.7, 0.0),
        (None, 0.0, 0.0),
    ],
)
def test_reward(confidence, target, reward):
    assert calibration_reward(confidence, target) == pytest.approx(reward, abs=1e-12)


def test_scores_of_correctness():
    for c, y in itertools.product([0, 0.3, 1], [0, 1]):
        assert brier_reward(c, y) == pytest.approx(1 - (c - y) ** 2)
    assert brier_reward(None, 1) == log_reward(None, 0) == 0
    assert log_reward(0.3, 1) == pytest.approx(1 + math.log(0.3) / math.log(100))
    assert log_reward(0.3, 0) == pytest.approx(1 + math.log(0.7) / math.log(100))
    for worst in (log_reward(0, 1), log_reward(0.01, 1), log_reward(1, 0)):
        assert worst == pytest.approx(0, abs=1e-12)
    assert log_reward(1, 1) == log_reward(0.99, 1) < 1


@pytest.mark.parametrize("reward", [brier_reward, log_reward])
@pytest.mark.parametrize("p", [0.02, 0.37, 0.5, 0.91])
def test_the_scores_are_proper(reward, p):
    """The best thing to say is the probability itself."""
    grid = np.arange(101) / 100
    expected = [p * reward(c, 1) + (1 - p) * reward(c, 0) for c in grid]
    assert grid[np.argmax(expected)] == pytest.approx(p)


def test_reward_with_another_tolerance():
    assert calibration_reward(0.6, 0.7, tolerance=0.2) == 0.8
    assert calibration_reward(0.7, 0.7, tolerance=0) == 1
    assert calibration_reward(None, 0.7, tolerance=0.2) == 0


def test_inside_the_tolerance_all_is_equally_good():
    assert len({calibration_reward(c, 0.5) for c in np.linspace(0.4501, 0.5499, 50)}) == 1


@pytest.mark.parametrize("confidence, target", [
    (1.01, 0.5), (-0.01, 0.5), (73, 0.5), (math.nan, 0.5), (0.5, 1.01), (0.5, -0.01), (0.5, math.nan), (None, 2),
])  # fmt: skip
def test_reward_refuses_what_is_no_probability(confidence, target):
    with pytest.raises(ValueError, match="must be in"):
        calibration_reward(confidence, target)


REWARDS = {
    "calibrated": lambda c, p, y: 0.0 if c is None else 1 - max(0.05, abs(c - p)),
    "brier": lambda c, p, y: 0.0 if c is None else 1 - (c - y) ** 2,
    "log": lambda c, p, y: 0.0 if c is None else log_reward(c, y),
    "hybrid": lambda c, p, y: 0.25 * REWARDS["calibrated"](c, p, y) + 0.75 * REWARDS["brier"](c, p, y),
}


@pytest.mark.parametrize("name", REWARDS)
def test_rewards(name):
    reward = chosen(Config(reward=name, alpha=0.25))
    for c in (None, 0.0, 0.4, 1.0):
        for y in (0, 1):
            assert reward(c, Item("q", "a", 0.3, y)) == pytest.approx(REWARDS[name](c, 0.3, y))

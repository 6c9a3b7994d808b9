"""beyond/ and the paper's reward against definitions, plain loops and, for proper scores, what is best on average."""

import itertools
import math

import numpy as np
import pytest
from helpers import Config

import platt
from beyond import compare, readouts, rewards
from beyond.baselines import chosen, cluster_entropy, family_prior, free
from beyond.rewards import brier_reward, log_reward
from rl import Item, calibration_reward


@pytest.mark.parametrize("confidence, target, tolerance, reward", [
    (0.7, 0.7, 0.05, 0.95), (0.74, 0.7, 0.05, 0.95), (0.66, 0.7, 0.05, 0.95), (0.8, 0.7, 0.05, 0.9),
    (0.6, 0.7, 0.05, 0.9), (1.0, 0.0, 0.05, 0.0), (0.0, 1.0, 0.05, 0.0), (0.0, 0.0, 0.05, 0.95),
    (None, 0.7, 0.05, 0.0), (None, 0.0, 0.2, 0.0), (0.6, 0.7, 0.2, 0.8), (0.7, 0.7, 0.0, 1.0),
])  # fmt: skip
def test_the_reward_of_the_paper(confidence, target, tolerance, reward):
    assert calibration_reward(confidence, target, tolerance) == pytest.approx(reward, abs=1e-12)


@pytest.mark.parametrize("confidence, target", [
    (1.01, 0.5), (-0.01, 0.5), (73, 0.5), (math.nan, 0.5), (0.5, 1.01), (0.5, -0.01), (0.5, math.nan), (None, 2),
])  # fmt: skip
def test_it_refuses_what_is_no_probability(confidence, target):
    with pytest.raises(ValueError, match="must be in"):
        calibration_reward(confidence, target)


def test_scores_of_correctness():
    for c, y in itertools.product([0, 0.3, 1], [0, 1]):
        assert brier_reward(c, y) == pytest.approx(1 - (c - y) ** 2)
    assert log_reward(0.3, 1) == pytest.approx(1 + math.log(0.3) / math.log(100))
    assert log_reward(0.3, 0) == pytest.approx(1 + math.log(0.7) / math.log(100))
    for worst in (log_reward(0, 1), log_reward(0.01, 1), log_reward(1, 0), log_reward(None, 0), brier_reward(None, 1)):
        assert worst == pytest.approx(0, abs=1e-12)
    assert log_reward(1, 1) == pytest.approx(log_reward(0.99, 1)) and log_reward(1, 1) < 1


@pytest.mark.parametrize("reward", [brier_reward, log_reward])
@pytest.mark.parametrize("p", [0.02, 0.37, 0.5, 0.91])
def test_the_scores_are_proper(reward, p):
    """The best thing to say is the probability itself."""
    grid = np.arange(101) / 100
    expected = [p * reward(c, 1) + (1 - p) * reward(c, 0) for c in grid]
    assert grid[np.argmax(expected)] == pytest.approx(p)


def test_the_choice_of_rewards():
    names = ("calibrated", "brier", "log", "hybrid")
    earned = {name: rewards.chosen(Config(reward=name, alpha=0.25, tolerance=0.2)) for name in names}
    for c, y in itertools.product((None, 0.0, 0.4, 1.0), (0, 1)):
        got = {name: reward(c, Item("q", "a", 0.3, y)) for name, reward in earned.items()}
        assert got["calibrated"] == pytest.approx(0 if c is None else 1 - max(0.2, abs(c - 0.3)))
        assert (got["brier"], got["log"]) == pytest.approx((brier_reward(c, y), log_reward(c, y)))
        assert got["hybrid"] == pytest.approx(0.25 * got["calibrated"] + 0.75 * got["brier"])


def test_the_reward_for_trl():
    """A confidence or an uncertainty as here, or a confidence as RLCR has it, once; of texts and of conversations."""
    said = {
        "so\nConfidence: 70%": 0.7, "Confidence: 70.": None, "Confidence: 30%</s>": None, "Uncertainty: 0.25": 0.75,
        "It may be 0.9. Uncertainty: 1": 0.0, "Uncertainty: 25%": None, "so <confidence>0.4</confidence>": 0.4,
        "<confidence>1.5</confidence>": None, "70%": None, "": None, "Confidence: 70% 80%": None,
        "Confidence: 70% Confidence: 70%": None, "Confidence: 70% Uncertainty: 0.3": None,
        "Uncertainty: 0.3 Confidence: 70%": None, "Uncertainty: 0.3 <confidence>0.7</confidence>": None,
    }  # fmt: skip
    targets = [i / len(said) for i in range(len(said))]
    want = [0 if c is None else 1 - max(0.05, abs(c - p)) for c, p in zip(said.values(), targets, strict=True)]
    assert rewards.trl_reward(completions=[*said], target=targets, prompts=[], step=1) == pytest.approx(want)
    chats = [[{"role": "user", "content": "x"}, {"role": "assistant", "content": text}] for text in said]
    assert rewards.trl_reward(chats, targets) == pytest.approx(want)


LABELS = [1, 0, 0, 1, 1, 0, 1]
FAMILIES = ["easy", "hard", "hard", "easy", "easy", "easy", "one"]


@pytest.mark.parametrize("kind", [list, np.array])
def test_family_prior(kind):
    asked, labels = ["one", "easy", "new", "hard", "easy"], kind(LABELS)
    got = family_prior(labels, kind(FAMILIES), kind(asked))
    for value, family in zip(got, asked, strict=True):
        ours = [label for label, f in zip(LABELS, FAMILIES, strict=True) if f == family] or LABELS  # unseen: base rate
        assert value == pytest.approx(sum(ours) / len(ours))
    assert list(labels) == LABELS and family_prior(LABELS, FAMILIES, []) == []
    assert family_prior(LABELS, ["f"] * 7, ["f", "g"]) == pytest.approx([4 / 7] * 2)


def test_what_the_samples_give_for_nothing():
    """Geometric mean; share of equal answers; the entropy of clusters of the sizes 3, 1 and 2."""
    group = np.array([0, 0, 1, 0, 2, 2])
    gram, share = np.where(group[:, None] == group, 0.9, 0.4), np.array([3, 1, 2]) / 6
    row = {"answer": "Paris", "samples": ["Paris", "paris.", "The Paris", "Lyon", "Paris, France"],
           "answer_logprob": np.log(0.5 * 0.25 * 0.125), "answer_tokens": 3}  # fmt: skip
    want = {"probability": 0.25, "consistency": 0.6, "clusters": -(share * np.log(share)).sum()}
    assert free(row, gram) == pytest.approx(want)
    row |= {"answer": "Rome", "answer_logprob": 0.0}
    assert free(row, gram) == pytest.approx(want | {"probability": 1, "consistency": 0})
    assert cluster_entropy(np.ones((4, 4))) == 0 and cluster_entropy(np.eye(7)) == pytest.approx(np.log(7))
    # 0 is like 1 and 1 is like 2: the first member of a cluster decides who is in it
    chain = np.array([[1, 0.6, 0.1], [0.6, 1, 0.6], [0.1, 0.6, 1]])
    assert cluster_entropy(chain) == pytest.approx(np.log(3) - 2 / 3 * np.log(2))


def test_platt_scaling_leaves_a_calibrated_probability_as_it_is():
    """Also where it is 0 or 1 now and then; the entropy of clusters is no probability."""
    rng = np.random.default_rng(0)
    p, asked = rng.uniform(0.02, 0.98, 20_000), np.linspace(0.02, 0.98, 25)
    right = (rng.random(len(p)) < p).astype(int)
    noise = iter(rng.random((len(p) + len(asked), 2)))  # scores that say nothing
    same = [dict(family="f", probability=x, consistency=x, clusters=10 * x, entropy=a, similarity=b)
            for x, (a, b) in zip([*p, *asked], noise, strict=True)]  # fmt: skip
    rows = [row | {"correct": y} for row, y in zip(same, right, strict=False)]
    found = compare.free(rows, same[len(p) :])
    for name in ("probability", "consistency", "all"):
        np.testing.assert_allclose(found[f"{name}, scaled"], asked, atol=0.03 if name == "all" else 0.02)
    np.testing.assert_allclose(found["clusters, scaled"], platt.fit(10 * p, right).predict(10 * asked), atol=1e-9)
    assert np.abs(np.array(found["clusters, scaled"]) - asked).max() > 0.04  # what log-odds are for
    assert readouts.log_odds([0, 1]) == pytest.approx([readouts.log_odds(0.02), -readouts.log_odds(0.02)])
    assert readouts.log_odds([0.25, 0.5]) == pytest.approx([-np.log(3), 0])


def test_the_choice_of_baselines():
    assert chosen("") == [] and chosen(" p-true, stated,p-true") == ["p-true", "stated"]
    for wrong, hint in (("stated,p-tru", "'p-tru'; choose from"), ("xyz", "choose from stated, zero-shot, p-true")):
        with pytest.raises(ValueError, match=hint):
            chosen(wrong)

"""baselines.py against plain loops."""

import numpy as np
import pytest

import eval as evaluation
from baselines import base_rate, chosen, cluster_entropy, family_prior, self_consistency, sequence_probability

LABELS = [1, 0, 0, 1, 1, 0, 1]
FAMILIES = ["easy", "hard", "hard", "easy", "easy", "easy", "one"]


@pytest.mark.parametrize("kind", [list, np.array])
def test_base_rate(kind):
    got = base_rate(kind(LABELS), 3)
    assert got.shape == (3,) and got.tolist() == [4 / 7] * 3


def test_the_base_rate_is_calibrated_and_knows_nothing():
    labels = np.array(LABELS)
    confidence = base_rate(labels, 7)
    assert evaluation.ece(confidence, labels) == pytest.approx(0, abs=1e-12)
    assert evaluation.auroc(confidence, labels) == 0.5


@pytest.mark.parametrize("kind", [list, np.array])
def test_family_prior(kind):
    asked = ["one", "easy", "new", "hard", "easy"]
    got = family_prior(kind(LABELS), kind(FAMILIES), kind(asked))
    assert got.shape == (5,)
    rows = list(zip(LABELS, FAMILIES, strict=True))
    for value, family in zip(got, asked, strict=True):
        ours = [label for label, f in rows if f == family] or LABELS  # an unseen family: the base rate
        assert value == pytest.approx(sum(ours) / len(ours))
    assert family_prior(LABELS, FAMILIES, []).shape == (0,)


def test_one_family_is_the_base_rate():
    assert family_prior(LABELS, ["f"] * 7, ["f", "g"]).tolist() == base_rate(LABELS, 2).tolist()


def test_inputs_are_not_changed():
    labels, families = np.array(LABELS), np.array(FAMILIES)
    family_prior(labels, families, ["easy"])
    assert labels.tolist() == LABELS and families.tolist() == FAMILIES


def test_sequence_probability_is_the_geometric_mean():
    assert sequence_probability(np.log(0.5 * 0.25 * 0.125), 3) == pytest.approx(0.25)
    assert sequence_probability(0.0, 4) == 1


def test_self_consistency():
    samples = ["Paris", "paris.", "The Paris", "Lyon", "Paris, France"]
    assert self_consistency("Paris", samples) == 0.6
    assert self_consistency("Rome", samples) == 0


def test_the_entropy_of_clusters():
    """Sizes 3, 1 and 2, and none: the first member of a cluster decides who is in it."""
    group = np.array([0, 0, 1, 0, 2, 2])
    gram = np.where(group[:, None] == group, 0.9, 0.4)
    share = np.array([3, 1, 2]) / 6
    assert cluster_entropy(gram) == pytest.approx(-(share * np.log(share)).sum())
    assert cluster_entropy(np.ones((4, 4))) == 0
    assert cluster_entropy(np.eye(7)) == pytest.approx(np.log(7))
    chain = np.array([[1, 0.6, 0.1], [0.6, 1, 0.6], [0.1, 0.6, 1]])  # 0 is like 1 and 1 is like 2
    assert cluster_entropy(chain) == pytest.approx(np.log(3) - 2 / 3 * np.log(2))


def test_the_choice_of_baselines():
    assert chosen("") == [] and chosen(" p-true, stated,p-true") == ["p-true", "stated"]
    with pytest.raises(ValueError, match="'p-tru'; did you mean 'p-true'"):
        chosen("stated,p-tru")
    with pytest.raises(ValueError, match="choose from stated, zero-shot, p-true"):
        chosen("xyz")

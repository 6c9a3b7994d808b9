"""baselines.py against plain loops."""

import numpy as np
import pytest

import eval as evaluation
from baselines import base_rate, family_prior

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

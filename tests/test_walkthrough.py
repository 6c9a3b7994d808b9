"""docs/walkthrough.md: regenerated, recomputed by other means, and its words held against its numbers."""

import ast
import doctest
import json
import math
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import data
import entropy
import platt
import rewards
import rl

ROOT = Path(rl.__file__).parent
sys.path.insert(0, str(ROOT / "scripts"))
import walkthrough  # noqa: E402

DOCUMENT = walkthrough.DOCUMENT.read_text(encoding="utf-8")
TEMPLATE = walkthrough.TEMPLATE.read_text(encoding="utf-8")
TOLD = json.loads(walkthrough.MEASURED.read_text(encoding="utf-8"))
RUNS = ROOT / "runs" / "experiments" / "smollm2-arms"
PAPER = RUNS / "calibrated-reward-the-paper-s-0"
OURS = RUNS / "exact-gradient-hybrid-reward-target-of-the-answer-after-a-warm-up-ours-0"


def words(text):
    return " ".join(text.split())


def says(sentence):
    assert sentence in words(DOCUMENT), sentence


@pytest.fixture(scope="module")
def gram():
    """Equation (1) up to the kernel, by loops."""
    e = [np.array(TOLD["embeddings"][text], dtype=float) for text in TOLD["samples"]]
    e = [v / math.sqrt(sum(x * x for x in v)) for v in e]
    return np.array([[math.exp(-sum((x - y) ** 2 for x, y in zip(v, w, strict=True))) for w in e] for v in e])


@pytest.fixture(scope="module")
def target(gram):
    """Equation (1) from singular values, and (2) spelt out."""
    lam = [x for x in np.linalg.svd(gram / 10)[1] if x > 1e-12]
    fit = platt.fit(np.array(TOLD["labelled"]["entropy"]) / walkthrough.UNIT, labels())
    return 1 / (1 + math.exp(-(fit.a * -sum(x * math.log(x) for x in lam) + fit.b)))


def labels():
    return np.array([int(x) for x in TOLD["labelled"]["correct"]])


# ---- the document -----------------------------------------------------------------------------------------------


def test_the_document_is_what_the_template_and_the_measurement_give():
    """So a number that is edited by hand fails, in the prose and in the outputs."""
    assert walkthrough.fill(TEMPLATE) == DOCUMENT


def test_a_reader_who_types_along_sees_the_same(monkeypatch):
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testfile(str(walkthrough.DOCUMENT), module_relative=False)
    assert not failed and tried > 40


def test_another_measurement_gives_another_document(monkeypatch, tmp_path):
    """The numbers come from the file: without the last sample's agreement the entropy is another one."""
    other = json.loads(json.dumps(TOLD))
    other["samples"][-1] = "Japan"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "walkthrough.json").write_text(json.dumps(other))
    monkeypatch.setattr(walkthrough, "ROOT", tmp_path)
    text = walkthrough.fill(TEMPLATE)
    assert text != DOCUMENT and "meanings 1.191" in DOCUMENT and "meanings 1.191" not in text


def test_names_and_links_lead_somewhere():
    found = re.findall(r"`([a-z]+)\.([A-Za-z_]+)`", DOCUMENT)
    assert len(found) >= 12
    for module, name in found:
        defined = {n.name for n in ast.parse((ROOT / f"{module}.py").read_text()).body if hasattr(n, "name")}
        assert name in defined, f"{module}.{name}"
    links = re.findall(r"\]\(([^)]+)\)", DOCUMENT)
    assert len(links) >= 9
    titles = re.findall(r"^#+ (.*)$", DOCUMENT, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for link in links:
        assert link in anchors if link.startswith("#") else (ROOT / "docs" / link).exists(), link
    for equation in range(1, 7):
        assert f"({equation})" in DOCUMENT, equation


def test_the_measurement_is_small_and_of_our_own_question():
    assert walkthrough.MEASURED.stat().st_size < 60_000
    (question,) = [q for q in data.load("facts") if q.id == TOLD["id"]]
    assert (question.question, list(question.answers)) == (TOLD["question"], TOLD["answers"])
    assert set(TOLD["labelled"]) == {"entropy", "correct"}  # numbers of the others, no text
    assert TOLD["part"] == "test"


def test_no_place_and_no_long_line():
    for path in (walkthrough.DOCUMENT, walkthrough.TEMPLATE, walkthrough.MEASURED):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w./])/(work|root|home|Users|tmp)/", text), path
    assert max(map(len, DOCUMENT.splitlines())) <= 120


# ---- the numbers, by other means --------------------------------------------------------------------------------


def test_gram_and_eigenvalues(gram):
    vectors = np.array([TOLD["embeddings"][text] for text in TOLD["samples"]]) / walkthrough.UNIT
    np.testing.assert_allclose(entropy.gram(vectors), gram, atol=1e-9)
    lam = np.linalg.eigvals(gram / 10).real
    assert lam.sum() == pytest.approx(1) and (lam > 1e-9).sum() == len(set(TOLD["samples"])) == 6
    assert str(gram.round(2)) in DOCUMENT
    assert [i for i in range(1, 11) if gram[0, i - 1] > 1 - 1e-9] == [1, 2, 5, 7, 10]
    assert gram[0, 2] < gram[0, 3] < gram[0, 5] < 1  # Malaysia, United States of America, Canada
    by_hand = -sum(x * math.log(x) for x in lam if x > 1e-12)
    assert by_hand == pytest.approx(float(entropy.von_neumann(gram)))
    strings = -sum(k / 10 * math.log(k / 10) for k in Counter(TOLD["samples"]).values())
    says(f"meanings {by_hand:.3f} nats, strings {strings:.3f}, at most {math.log(10):.3f}")
    assert by_hand < strings < math.log(10)


def test_platt(target):
    scores, y = np.array(TOLD["labelled"]["entropy"]) / walkthrough.UNIT, labels()
    assert len(scores) == len(y) == 3900
    fit = platt.fit(scores, y)
    p = 1 / (1 + np.exp(-(fit.a * scores + fit.b)))
    smooth = np.where(y == 1, (y.sum() + 1) / (y.sum() + 2), 1 / ((1 - y).sum() + 2))
    # at the optimum of the cross-entropy its gradient is 0
    assert abs((p - smooth).mean()) < 1e-9 and abs(((p - smooth) * scores).mean()) < 1e-9
    says(f"{fit.a:.2f} * 1.19 + {fit.b:.2f}) = {target:.3f}")


def test_what_the_own_label_does_to_the_cross_fitted_target():
    """Nothing: that is what the text says that cross-fitting is for."""
    scores, y = np.array(TOLD["labelled"]["entropy"][:40]) / walkthrough.UNIT, labels()[:40]
    flipped = y.copy()
    flipped[7] = 1 - y[7]
    one, other = (platt.cross_fit(scores, x, np.arange(40) % 5) for x in (y, flipped))
    assert one[7] == other[7] and not np.allclose(one, other)


def test_rewards_and_advantages(target):
    stated = [None, 0.62, 0.14, 0.95, None, 0.15, 0.9, 0.3]
    r = [0 if c is None else 1 - max(0.05, abs(c - target)) for c in stated]
    a = [x - (sum(r) - x) / 7 for x in r]
    assert sum(a) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(rl.group_advantages([r])[0], a)
    np.testing.assert_allclose(rl.group_advantages([r], "center")[0], np.array(a) * 7 / 8)
    for c, rollout, x, y in zip(stated, TOLD["rollouts"], r, a, strict=True):
        assert data.parse_confidence(data.LABEL + rollout["said"]) == c
        says(f"confidence {c} reward {x:.3f} advantage {y:+.3f}")
    value = -sum(y * rollout["tokens"] for y, rollout in zip(a, TOLD["rollouts"], strict=True)) / 8
    says(f"loss {value:.3f}, push on the first token of each: {[round(y, 3) for y in a]}")
    # the words
    numbers = [c for c in stated if c is not None]
    assert min(numbers, key=lambda c: abs(c - target)) == 0.3 == stated[a.index(max(a))]
    assert stated[a.index(min(a))] is None and a[3] < 0 and TOLD["correct"] == 1


def test_the_expected_reward_and_its_gradient(target):
    before, after = (TOLD["policies"][name]["exact"] for name in ("untrained", "trained"))
    assert len(before) == len(after) == 101 and 0 < sum(before) < 1 and 0 < sum(after) < 1
    r = [rewards.calibration_reward(c / 100, target) for c in range(101)]
    J, later = (sum(x * y for x, y in zip(pi, r, strict=True)) for pi in (before, after))
    says(f"J before {J:.3f}, after {later:.3f}; a whole percentage: {sum(before):.2f}, {sum(after):.2f}")
    push = [pi * (x - J) for pi, x in zip(before, r, strict=True)]
    says(f"40% r {r[40]:.2f} push {push[40]:+.4f} before {before[40]:.3f} after {after[40]:.3f}")
    # by a finite difference: one logit for each percentage, and one for all else, which earns nothing
    logits, step = np.log([*before, 1 - sum(before)]), 1e-6
    logits[40] += step
    moved = np.exp(logits) / np.exp(logits).sum()
    assert (moved[:-1] @ np.array(r) - J) / step == pytest.approx(push[40], rel=1e-4)
    # the words
    assert np.argmax(before) == 100 and push[100] == min(push) < 0 and after[100] < 0.0005
    assert np.argmax(push) == np.argmax(after) == 40 and before[35] < before[40] / 2
    assert abs(0.35 - target) < abs(0.4 - target)


def test_stated_and_expected(target):
    policies = TOLD["policies"]
    for name, policy in policies.items():
        mean = sum(c * p for c, p in enumerate(policy["begins"])) / sum(policy["begins"])
        says(f"{name} stated {policy['stated']:.0%} expected {mean:.1f}%")
    assert abs(policies["trained"]["stated"] - target) < 0.05  # inside the tolerance
    untrained = policies["untrained"]
    digit = Counter()
    for c, p in enumerate(untrained["begins"]):
        digit[str(c)[0]] += p
    assert digit.most_common(1)[0][0] == "9" and untrained["stated"] == 0.9
    assert 1.7 < untrained["exact"][100] / untrained["exact"][90] < 2  # "nearly twice as likely"
    assert np.argmax(policies["beside"]["exact"]) == 20


def test_where_it_is_not_typical():
    cities = TOLD["same_family"]
    assert set(cities["stated"]) == {TOLD["policies"]["trained"]["stated"]}
    right = np.array([int(x) for x in cities["correct"]])
    for name in ("trained", "beside"):
        c = np.array(cities[name])
        pairs = np.sign(c[right == 1][:, None] - c[right == 0])
        says(f"{(pairs.mean() + 1) / 2:.2f}")
    n = len(right)
    says(f"This adapter states it for {n} of the {n} held-out questions about cities")
    says("from 0.01 to 0.36")


# ---- the models -------------------------------------------------------------------------------------------------


def test_measured_again():
    needed = [ROOT / TOLD["settings"]["model"], ROOT / TOLD["settings"]["embedder"], PAPER, OURS]
    missing = [str(path.relative_to(ROOT)) for path in needed if not path.exists()]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    again = walkthrough.measure(PAPER, OURS, TOLD["id"])
    for name in ("embeddings", "policies"):  # where another machine may round otherwise
        assert again[name].keys() == TOLD[name].keys()
    for text, vector in TOLD["embeddings"].items():
        np.testing.assert_allclose(again["embeddings"][text], vector, atol=2)
    for name, policy in TOLD["policies"].items():
        assert again["policies"][name]["stated"] == policy["stated"]
        for kind in ("exact", "begins"):
            np.testing.assert_allclose(again["policies"][name][kind], policy[kind], atol=1e-4)
    rest = TOLD.keys() - {"embeddings", "policies"}
    assert {name: again[name] for name in rest} == {name: TOLD[name] for name in rest}

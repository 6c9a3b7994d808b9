"""beyond/readouts.py and report/acting.py: what a threshold promises, what a refit may change, what is recommended."""

import numpy as np
import pytest
from helpers import plain_logp, shared
from scipy.stats import binom
from tokenizers import normalizers

import data
import lm as language
import platt
import toy
from beyond import readouts
from beyond.readouts import Refit, threshold
from report import acting


def test_the_tail_is_that_of_a_binomial():
    for n, p in ((1, 0.5), (30, 0.05), (3000, 0.2)):
        for k in {0, 1, n // 7, n // 3, n}:
            assert readouts.tail(k, n, p) == pytest.approx(binom.cdf(k, n, p), rel=1e-9)


def test_a_threshold_by_hand():
    """0.95 ** 45 < 0.1 < 0.95 ** 44, and at least 30 answers; with ties, and what is never answered."""
    sure = [0.9] * 20 + [0.8] * 25
    assert threshold([*sure, 0.3, None], [1] * 45 + [0, 0], 0.05) == 0.8
    assert threshold([*sure, 0.3], [1] * 46, 0.05) == 0.3 and threshold(sure[1:], [1] * 44, 0.05) is None
    assert threshold(sure, [1] * 44 + [0], 0.05) is None and threshold(sure, [1] * 44 + [0], 0.1) == 0.8
    assert threshold([0.9] * 29, [1] * 29, 0.5) is None and threshold([0.9] * 30, [1] * 30, 0.5) == 0.9
    # the first failure ends it, though a lower one would pass
    assert threshold(sure + [0.5] * 200, [1] * 43 + [0, 0] + [1] * 200, 0.05) is None
    assert threshold([None] * 50, [0] * 50, 0.5) is None and threshold([0.9] * 50, [1] * 50, 1e-17) is None
    for wrong in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="cannot be promised"):
            threshold([0.5], [1], wrong)


@pytest.mark.parametrize("error", [0.1, 0.2])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_promised_error_holds_on_the_toy_world(error, noise):
    """In 200 draws of held-out questions nine in ten thresholds keep the promise, by the known probabilities of
    all, which the lowest threshold without an error too many in the draw does not.

    The confidences are these probabilities, or noisy."""
    world, rng = toy.world(seed=3), np.random.default_rng(1)
    true = np.array([max(q.truth.values()) for q in world.questions(toy.TRAINED, 3)])  # of the likeliest answer
    said = platt.sigmoid(readouts.log_odds(true) + noise * rng.normal(size=len(true)))
    broken, naive, found = 0, 0, []
    for _ in range(200):
        some = rng.integers(len(true), size=300)
        right = (rng.random(300) < true[some]).astype(int)
        t = threshold(said[some], right, error)
        if t is not None:
            found.append((said >= t).mean())
            broken += 1 - true[said >= t].mean() > error
        order = some[np.argsort(-said[some])]
        wrong = 1 - right[np.argsort(-said[some])].cumsum() / np.arange(1, 301)
        naive += 1 - true[said >= said[order[np.flatnonzero(wrong <= error)[-1]]]].mean() > error
    assert broken <= 0.1 * 200 < naive and len(found) > 60 and np.mean(found) > 0.05  # it promises something too


def test_a_refit_says_no_more_than_the_labels_do():
    """Many labels: the known distortion; a few of them that fit: nothing changes. The order always stays."""
    rng = np.random.default_rng(0)
    c = rng.uniform(0.03, 0.97, 4000)

    def drawn(slope, offset, n=4000):
        p = platt.sigmoid(slope * readouts.log_odds(c[:n]) + offset)
        return Refit([*zip(c[:n].tolist(), (rng.random(n) < p).astype(int).tolist(), strict=True), (None, 1)])

    assert drawn(0.5, -1).slope_and_offset == pytest.approx((0.5, -1), abs=0.1)
    assert drawn(1, -3, 200).slope_and_offset == (1, pytest.approx(-3, abs=0.6))
    assert sum(drawn(1, 0, 50).slope_and_offset == (1, 0) for _ in range(20)) >= 16
    for labels in ([1] * 30, [0] * 30, [0] * 15 + [1] * 15):  # the last: the more confident, the worse
        slope, _ = Refit([*zip(np.linspace(0.9, 0.1, 30).tolist(), labels, strict=True)]).slope_and_offset
        assert slope > 0
    assert np.mean(Refit([(0.5, 0)] * 49 + [(0.6, 0)]).predict([0.5])) == pytest.approx(0.5 / 51, rel=0.2)
    assert drawn(0.5, 0).predict([None, 0.2, 0.9])[0] is None
    with pytest.raises(ValueError, match="none of the 2 labelled questions has a confidence"):
        Refit([(None, 1), (None, 0)]).slope_and_offset  # noqa: B018


@pytest.mark.parametrize("style", ["fewshot", "chat"])
@pytest.mark.parametrize("engine", ["plain", "shared"])
def test_an_answer_from_elsewhere_has_the_probability_of_the_same_answer_of_the_model(tiny, style, engine):
    lm = language.load(tiny("llama", chat=True))
    lm, questions = shared(lm) if engine == "shared" else lm, ["what", "why is it so", "who"]
    prompt, answers = data.Prompt(lm, style, data.EXAMPLES[:1]), ["a b", "c", "<end> d"]
    found = readouts.log_probabilities(lm, prompt, questions, answers)
    for (n, nats), q, text in zip(found, questions, answers, strict=True):
        ends = [lm.encode("\n")[0], lm.encode("\n\n")[0], *language.stop_ids(lm, "")]
        every = [[*lm.proceed(blank + lm.plain(text)), end] for blank in ("", " ") for end in ends]
        by = {sum(plain_logp(lm, prompt.first_turn(q), ids, 1.0)).item(): ids for ids in every}
        assert nats == pytest.approx(max(by), abs=1e-4) and n == len(by[max(by)])
        assert not any(lm.encode("<end>")[0] in ids for ids in every)


def test_the_end_of_an_answer_from_elsewhere_where_the_tokenizer_drops_line_ends(tiny, monkeypatch):
    """As that of BERT does: it ends with the text, or is refused where no token ends one."""
    lm = language.load(tiny("llama"))
    lm.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\n", "")
    prompt, (end,) = data.Prompt(lm, "fewshot", data.EXAMPLES[:1]), language.stop_ids(lm, "")
    ((n, nats),) = readouts.log_probabilities(lm, prompt, ["what"], ["a b"])
    every = [[*lm.proceed(text), end] for text in (" a b", "a b")]
    by = {plain_logp(lm, prompt.first_turn("what"), ids, 1.0).sum().item(): ids for ids in every}
    assert nats == pytest.approx(max(by), abs=1e-4) and n == len(by[max(by)])
    monkeypatch.setattr(readouts, "stop_ids", lambda lm, characters: frozenset())
    with pytest.raises(ValueError, match="neither an end of a line nor of a text"):
        readouts.log_probabilities(lm, prompt, ["what"], ["a b"])


def test_an_answer_whose_full_stop_and_end_are_one_token(tiny):
    """As many tokenizers have it; the model writes that token where it is the likelier one."""
    lm = language.load(tiny("gpt2"))
    prompt, one = data.Prompt(lm, "fewshot", data.EXAMPLES[:1]), lm.tokenizer.convert_tokens_to_ids(".\n")
    ways = readouts.written(lm, "a.")
    assert [*lm.proceed(" a"), one] in ways and [*lm.proceed("a"), one] in ways
    by = {plain_logp(lm, prompt.first_turn("what"), ids, 1.0).sum().item(): ids for ids in ways}
    ((n, nats),) = readouts.log_probabilities(lm, prompt, ["what"], ["a."])
    assert nats == pytest.approx(max(by), abs=1e-4) and n == len(by[max(by)])


def rows_of(n, part, **ways):
    rng = np.random.default_rng(n)
    rows = [{"part": part, "correct": int(y)} for y in rng.random(n) < 0.5]
    for field, sharp in ways.items():  # the larger, the better
        for row in rows:
            row[field] = float(platt.sigmoid(sharp * (row["correct"] - 0.5) + rng.normal()))
    return rows


def test_what_is_recommended():
    """The best, or the cheapest that ties with it; of all unseen sets by their mean."""
    cost = {name: {"tokens": i} for i, name in enumerate(("answer", "expected", "trained", "target"))}
    better = rows_of(400, "test", **{"trained": 0, "expected": 1, "probability, scaled": 0, "samples, scaled": 6})
    ties = rows_of(100, "a", **{"trained": 0, "expected": 5, "probability, scaled": 0, "samples, scaled": 5})
    ties += rows_of(90, "b", **{"trained": 0, "expected": 5, "probability, scaled": 0, "samples, scaled": 5.2})
    for row in ties[::9]:
        row["trained"] = None
    test, unseen = acting.build(better + ties, cost, 500, 0)["recommended"]
    assert test.startswith("held-out questions: --readout samples (Brier score 0.")
    assert test.endswith(", 3.0 tokens), the best.")
    assert unseen.startswith("unseen sets: --readout samples (") and ", a tie with expected (" in unseen  # untrained
    means = [np.mean([np.mean([(r["expected"] - r["correct"]) ** 2 for r in ties if r["part"] == p]) for p in "ab"])]
    assert f"expected (Brier score {means[0]:.3f}, 1.0 tokens)" in unseen
    assert len(acting.build(better, cost, 50, 0)["recommended"]) == 1


def test_the_table_of_thresholds_says_what_happened_on_every_set():
    rows = rows_of(300, "test", trained=6, expected=0) + rows_of(80, "x", trained=-6, expected=0)
    found = acting.thresholds(rows, "trained")
    t = found["0.1"]["threshold"]
    assert t == threshold(*zip(*((r["trained"], r["correct"]) for r in rows[:300]), strict=True), 0.1)
    kept = [r for r in rows[300:] if r["trained"] >= t]
    assert found["0.1"]["sets"]["x"] == [len(kept) / 80, pytest.approx(1 - np.mean([r["correct"] for r in kept]))]
    assert found["0.1"]["sets"]["test"][1] <= 0.1 < found["0.1"]["sets"]["x"][1]  # nothing is promised there
    none = acting.thresholds(rows, "expected")["0.05"]
    assert none == {"threshold": None, "sets": {"test": [0, None], "x": [0, None]}}
    report = {"thresholds": {"stated": found, "expected": {"0.05": none}}, "sets": {"test": 0, "x": 0}}
    _, _, heads, cells = acting.table(report)
    assert heads[2:] == ["test: answered, error", "x: answered, error"]
    assert cells["stated, at most 10% wrong"][0] == f"{t:.3f}"
    assert cells["expected, at most 5% wrong"] == ["no threshold reaches it", "0%, n/a", "0%, n/a"]

"""toy.py: the invented world against its own probabilities, and the whole pipeline on a small one."""

import json
import re
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import calunc
import data
import lm as language
import lora
import toy

STEPS, WIDTH = 260, 48


def small_world(seed=0, every=12):
    """Each twelfth question of the world: 175 of trained families, 75 of unseen ones."""
    full, some = WORLD(seed), slice(None, None, every)
    return toy.World(full.family[some], full.subject[some], full.answers[some], full.probs[some])


WORLD = toy.world


@pytest.fixture(scope="module")
def full():
    return toy.world(seed=0)


@pytest.fixture(scope="module")
def tokenizer(full):
    return toy.tokenizer(full)


@pytest.fixture(scope="module")
def lines(full, tokenizer):
    """20,000 lines of the corpus as text, reports and counting apart."""
    ids = toy.corpus(full, tokenizer)(20_000, np.random.default_rng(5))
    text = [tokenizer.decode(row) for row in ids]
    reports = [re.fullmatch(r"Question: (\w+) of (\w+)\nAnswer: (\w+)\nConfidence: (\d+)%\n", t) for t in text]
    return [m.groups() for m in reports if m], [t for t, m in zip(text, reports, strict=True) if not m]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A finished run on a small world: a real toy model, answers, targets, an adapter, a report."""
    out = tmp_path_factory.mktemp("toy") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "world", small_world)
        patch.setattr(toy, "train", partial(toy.train, steps=STEPS, batch=128, width=WIDTH, layers=2))
        assert calunc.main([
            "--out", str(out), "--platt-questions", "25", "--train-questions", "90", "--test-questions", "60",
            "--ood-questions", "60", "--samples", "6", "--steps", "30", "--questions", "16", "--rollouts", "16",
            "--lr", "1e-2", "--resamples", "100",
        ]) == 0  # fmt: skip
    return out


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fits(observed, expected):
    """Pearson's chi-square test of counts, which a true hypothesis fails once in a million."""
    observed, expected = np.asarray(observed, float), np.asarray(expected, float)
    statistic = ((observed - expected) ** 2 / expected).sum()
    return statistic < chi2.isf(1e-6, observed.size - 1)


# the world


def test_probabilities_are_distributions_with_a_clear_first_answer(full):
    assert full.probs.shape == full.answers.shape == (3000, 4)
    np.testing.assert_allclose(full.probs.sum(1), 1, atol=1e-12)
    assert (full.probs > 0).all()
    assert (full.probs.argmax(1) == 0).all()
    assert full.probs[:, 0].std() > 0.15  # easy and hard ones


def test_each_question_has_four_different_answers_of_the_kind_of_its_family(full):
    for family, answers in zip(full.family, full.answers.tolist(), strict=True):
        kind, _ = toy.FAMILIES[family]
        assert len(set(answers)) == 4
        assert set(answers) <= set(toy.KINDS[kind])


def test_no_subject_occurs_twice(full):
    assert len(set(full.subject)) == len(full.subject)


def test_trained_and_unseen_families_share_the_kinds_but_no_family():
    assert not set(toy.TRAINED) & set(toy.UNSEEN)
    assert {*toy.TRAINED, *toy.UNSEEN} == set(toy.FAMILIES)
    assert {toy.FAMILIES[f][0] for f in toy.TRAINED} == {toy.FAMILIES[f][0] for f in toy.UNSEEN} == set(toy.KINDS)


def test_an_easier_relation_has_a_higher_mean_of_the_first_probability(full):
    family = np.array(full.family)
    mean = {f: full.probs[family == f, 0].mean() for f in toy.TRAINED}
    assert mean["emblem"] > mean["banner"] > mean["crown"]


def test_questions_carry_the_known_distribution(full):
    known, unseen = full.questions(toy.TRAINED, 0), full.questions(toy.UNSEEN, 0)
    assert (len(known), len(unseen)) == (2100, 900)
    assert {q.family for q in known} == set(toy.TRAINED)
    assert len({q.id for q in known + unseen}) == 3000
    at = {(f, s): i for i, (f, s) in enumerate(zip(full.family, full.subject, strict=True))}
    for q in known + unseen:
        family, subject = q.question.split(" of ")
        i = at[family, subject]
        assert q.family == family
        assert q.truth == dict(zip(full.answers[i].tolist(), full.probs[i].tolist(), strict=True))
        assert len(q.answers) == 1 and q.answers[0] in q.truth


def test_gold_answers_follow_the_known_distribution(full):
    seeds, observed, expected = range(12), np.zeros((4, 4)), np.zeros((4, 4))
    for seed in seeds:
        for q in full.questions(toy.FAMILIES, seed):
            probs = list(q.truth.values())
            level = min(int((probs[0] - 0.34) / 0.16), 3)  # from hard to easy
            observed[level, list(q.truth).index(q.answers[0])] += 1
            expected[level] += probs
    for o, e in zip(observed, expected, strict=True):
        assert fits(o, e)


def test_the_world_is_a_function_of_its_seed():
    one, same, other = toy.world(3), toy.world(3), toy.world(4)
    assert one.subject == same.subject and one.family == same.family
    np.testing.assert_array_equal(one.answers, same.answers)
    np.testing.assert_array_equal(one.probs, same.probs)
    assert one.questions(toy.TRAINED, 3) == same.questions(toy.TRAINED, 3)
    assert one.questions(toy.TRAINED, 3) != one.questions(toy.TRAINED, 4)
    assert one.subject != other.subject


# the corpus


def test_lines_survive_decoding_and_encoding(full, tokenizer):
    ids = toy.corpus(full, tokenizer)(500, np.random.default_rng(1))
    assert ids.shape == (500, 11)
    for row in ids.tolist():
        assert tokenizer(tokenizer.decode(row)).input_ids == row
    assert tokenizer.unk_token_id not in ids


def test_prompts_are_beginnings_of_lines(full, tokenizer):
    folderless = language.LM(torch.nn.Linear(1, 1), tokenizer, "toy")
    prompt = data.Prompt(folderless, "fewshot", ())
    line = f"Question: {full.family[0]} of {full.subject[0]}\nAnswer: {full.answers[0, 0]}\nConfidence: 75%\n"
    ids = tokenizer(line).input_ids
    question = line[len("Question: ") : line.index("\n")]
    assert prompt.answer(question) == ids[:6]
    assert prompt.confidence(question, str(full.answers[0, 0])) == (ids[:7], ids[7:9])


def test_reports_follow_the_known_distribution(full, lines):
    reports, _ = lines
    at = {(f, s): i for i, (f, s) in enumerate(zip(full.family, full.subject, strict=True))}
    places = np.array([at[f, s] for f, s, _, _ in reports])
    answer = np.array([full.answers[i].tolist().index(r[2]) for i, r in zip(places, reports, strict=True)])
    bins = np.digitize(full.probs[places, 0], [0.5, 0.66, 0.82])  # from hard to easy
    for b in range(4):
        assert fits(np.bincount(answer[bins == b], minlength=4), full.probs[places[bins == b]].sum(0))
    assert len(set(places.tolist())) > 2900  # every question, evenly
    assert fits(np.bincount(places // 300, minlength=10), np.full(10, len(places) / 10))


def test_confidences_in_reports_are_uniform_and_know_nothing(full, lines):
    reports, _ = lines
    number = np.array([int(r[3]) for r in reports])
    assert set(number.tolist()) == set(range(0, 101, 5))
    assert fits(np.bincount(number // 5, minlength=21), np.full(21, len(number) / 21))
    best = {(f, s): a for f, s, a in zip(full.family, full.subject, full.answers[:, 0], strict=True)}
    sure = {(f, s): p for f, s, p in zip(full.family, full.subject, full.probs[:, 0], strict=True)}
    first = np.array([best[r[0], r[1]] == r[2] for r in reports])
    easy = np.array([sure[r[0], r[1]] for r in reports])
    for known in (first, easy):  # 5 standard errors
        assert abs(np.corrcoef(number, known)[0, 1]) < 5 / np.sqrt(len(number))


def test_one_line_in_ten_counts_up_or_down(lines):
    reports, counting = lines
    assert fits([len(counting), len(reports)], [2000, 18000])
    steps = Counter()
    for text in counting:
        numbers = [int(n) for n in re.fullmatch(r"( \d+%){11}", text)[0].replace("%", "").split()]
        (step,) = set(np.diff(numbers).tolist())
        steps[step] += 1
    assert set(steps) == {5, -5}
    assert fits([steps[5], steps[-5]], [len(counting) / 2] * 2)


# the model


def test_the_model_has_at_most_a_million_parameters(full):
    model, tokenizer = toy.train(full, steps=2, batch=2)
    assert 300_000 < model.num_parameters() <= 1_000_000
    assert model.config.vocab_size == len(tokenizer)
    assert not model.training


def test_the_trained_model_knows_the_probabilities(small_run):
    world, model = small_world(), language.load(next(small_run.glob("model*")))
    # a model that knows the four answers but not their probabilities is off by 0.3
    assert toy.error(model.model, model.tokenizer, world) < 0.1
    vocab = model.tokenizer.get_vocab()
    said, known = [], []
    for i in range(len(world.family)):
        ids = model.encode(f"Question: {world.family[i]} of {world.subject[i]}\nAnswer:")
        p = model.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1).tolist()
        said.append([p[vocab[" " + a]] for a in world.answers[i]])
        known.append(world.probs[i])
    said, known = np.array(said), np.array(known)
    assert said.sum(1).mean() > 0.9  # nearly nothing on other words
    assert np.corrcoef(said[:, 0], known[:, 0])[0, 1] > 0.8
    np.testing.assert_allclose(said.mean(0), known.mean(0), atol=0.05)
    # what toy.error says of it, from the same numbers
    assert toy.error(model.model, model.tokenizer, world) == pytest.approx(np.abs(said - known)[:, 0].mean(), abs=1e-5)


def test_the_error_of_a_model_in_half_precision(small_run):
    world, model = small_world(), language.load(next(small_run.glob("model*")))
    exact = toy.error(model.model, model.tokenizer, world)
    assert toy.error(model.model.to(torch.bfloat16), model.tokenizer, world) == pytest.approx(exact, abs=0.01)


def test_the_error_is_large_for_another_world(small_run):
    model = language.load(next(small_run.glob("model*")))
    world = small_world()
    turned = toy.World(world.family, world.subject[::-1], world.answers[::-1], world.probs)
    assert toy.error(model.model, model.tokenizer, turned) > 0.3


# the pipeline on a small world


def test_the_model_answers_mostly_with_the_best_answer(small_run):
    best = [max(r["truth"], key=r["truth"].get) == r["answer"] for r in rows(small_run / "samples.jsonl")]
    assert len(best) == 25 + 90 + 60 + 60
    assert np.mean(best) > 0.8


def test_the_truth_of_an_answer_is_its_known_probability(small_run):
    samples, targets = rows(small_run / "samples.jsonl"), rows(small_run / "targets.jsonl")
    for s, t in zip(samples, targets, strict=True):
        assert t["truth"] == s["truth"].get(s["answer"], 0.0)
        assert s["family"] in (toy.UNSEEN if s["part"] == "unseen families" else toy.TRAINED)


def test_entropy_falls_where_the_known_probability_rises(small_run):
    targets = rows(small_run / "targets.jsonl")
    assert np.corrcoef([t["entropy"] for t in targets], [t["truth"] for t in targets])[0, 1] < -0.3
    assert json.loads((small_run / "platt.json").read_text())["a"] < 0


def test_training_makes_the_stated_confidence_agree_with_the_target(small_run):
    report = json.loads((small_run / "report.json").read_text())
    log = rows(small_run / "metrics.jsonl")
    assert np.mean([r["reward"] for r in log[-5:]]) > np.mean([r["reward"] for r in log[:5]]) + 0.05
    for part in ("test", "unseen families"):
        agreement = {k: v["mean_absolute_difference"] for k, v in report["sets"][part]["agreement"].items()}
        before, *after = (v for k, v in agreement.items() if "v teacher" in k)
        assert len(after) == 2 and max(after) < before
        assert sum("v known" in k for k in agreement) == 4
        assert "Known probability" in report["sets"][part]["methods"]


def test_predict_answers_as_the_frozen_model_and_states_numbers(small_run, tmp_path, capsys):
    samples = [s for s in rows(small_run / "samples.jsonl") if s["part"] == "test"]
    stated = {r["id"]: r["trained"] for r in rows(small_run / "predictions.jsonl")}
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("".join(json.dumps({"question": s["question"]}) + "\n" for s in samples))
    assert calunc.main(["predict", "--in", str(asked), "--out", str(out), "--run", str(small_run)]) == 0
    found = rows(out)
    assert [list(r) for r in found] == [["question", "answer", "confidence"]] * len(samples)
    assert [r["question"] for r in found] == [s["question"] for s in samples]
    assert [r["answer"] for r in found] == [s["answer"] for s in samples]  # though the adapter is there
    assert [r["confidence"] for r in found] == [stated[s["id"]] for s in samples]
    assert sum(r["confidence"] is not None for r in found) > 0.9 * len(found)
    # one at a time says the same
    capsys.readouterr()
    for r in [r for r in found if r["confidence"] is not None][:3]:
        assert calunc.main(["ask", r["question"], "--run", str(small_run)]) == 0
        assert capsys.readouterr().out == f"{r['answer']}  (confidence {r['confidence']:.0%})\n"


def test_predict_can_state_the_expectation(small_run, tmp_path):
    """What is reported as expected is what a user gets, though the question is read once for both turns."""
    samples = [s for s in rows(small_run / "samples.jsonl") if s["part"] == "test"]
    expected = {r["id"]: r["expected"] for r in rows(small_run / "predictions.jsonl")}
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("".join(json.dumps({"question": s["question"]}) + "\n" for s in samples))
    argv = ["predict", "--in", str(asked), "--out", str(out), "--run", str(small_run), "--readout", "expected"]
    assert calunc.main(argv) == 0
    for row, s in zip(rows(out), samples, strict=True):
        assert row["confidence"] == pytest.approx(expected[s["id"]], abs=1e-5)


def test_the_adapter_would_change_the_answers_if_it_were_on(small_run):
    """So that the equality of the answers above is due to the switch, not to an adapter that does nothing."""
    samples = rows(small_run / "samples.jsonl")
    model = language.load(next(small_run.glob("model*")))
    lora.load_adapter(model, small_run / "adapter")
    prompts = [model.encode(f"Question: {s['question']}\nAnswer:") for s in samples]
    answers = {}
    for on in (False, True):
        with lora.adapter(model, on):
            drawn = language.sample(model, prompts, [0.0], 4, language.stop_ids(model), [0] * len(prompts))
        answers[on] = [data.clean_answer(model.decode(c)) for (c,) in drawn]
    assert answers[False] == [s["answer"] for s in samples]
    assert answers[True] != answers[False]

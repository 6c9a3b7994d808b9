"""toy.py: the invented world against its own probabilities, and the whole pipeline on a small one."""

import itertools
import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from helpers import one_sentence, rows, write
from scipy.stats import chi2

import calunc
import data
import lm as language
import lora
import toy
import use
from beyond import readouts
from infra import models


def small_world(seed=0, world=toy.world):
    """Each twelfth question of the world: 175 of trained families, 75 of unseen ones."""
    full, some = world(seed), slice(None, None, 12)
    return toy.World(full.family[some], full.subject[some], full.answers[some], full.probs[some])


@pytest.fixture(scope="module")
def full():
    return toy.world(seed=0)


@pytest.fixture(scope="module", params=[True, False], ids=["reflecting", "short"])
def lines(request, full):
    """20,000 lines of the corpus as text. -> reports as (question, answer, reflection, percentage), lines that count"""
    tokenizer = toy.tokenizer(full)
    ids = toy.corpus(full, tokenizer)(20_000, np.random.default_rng(5), request.param)
    text, thought = [tokenizer.decode(row) for row in ids], r"Reflection: ((?:\w+ ?){4})\n" if request.param else "()"
    form = rf"Question: (\w+ of \w+)\nAnswer: (\w+)\n{thought}Confidence: (\d+)%\n"
    reports = [re.fullmatch(form, t) for t in text]
    return [m.groups() for m in reports if m], [t for t, m in zip(text, reports, strict=True) if not m]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A finished run on a small world: a real toy model, answers, an adapter, a report. -> folder, samples"""
    out = tmp_path_factory.mktemp("toy") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "world", small_world)
        patch.setattr(toy, "train", partial(toy.train, steps=260, batch=128, width=48, layers=2))
        assert calunc.main([
            "--out", str(out), "--platt-questions", "25", "--train-questions", "90", "--test-questions", "60",
            "--ood-questions", "60", "--samples", "6", "--steps", "30", "--questions", "16", "--rollouts", "16",
            "--lr", "1e-2", "--resamples", "100", "--seed", "0",
        ]) == 0  # fmt: skip
    return out, rows(out / "samples.jsonl")


def fits(observed, expected):
    """Pearson's chi-square test of counts, which a true hypothesis fails once in a million."""
    return ((np.asarray(observed) - expected) ** 2 / expected).sum() < chi2.isf(1e-6, len(observed) - 1)


# ---- the world -----------------------------------------------------------------------------------


def test_a_question_has_four_answers_of_its_kind_with_known_probabilities(full):
    assert full.probs.shape == full.answers.shape == (3000, 4) and len(set(full.subject)) == 3000
    np.testing.assert_allclose(full.probs.sum(1), 1, atol=1e-12)
    assert (full.probs > 0).all() and (full.probs.argmax(1) == 0).all()
    for family, answers in zip(full.family, full.answers.tolist(), strict=True):
        assert len(set(answers)) == 4 and set(answers) <= set(toy.KINDS[toy.FAMILIES[family][0]])
    mean = {f: full.probs[np.array(full.family) == f, 0].mean() for f in toy.TRAINED}
    assert mean["emblem"] > mean["banner"] > mean["crown"] and full.probs[:, 0].std() > 0.15  # easy and hard ones
    assert not set(toy.TRAINED) & set(toy.UNSEEN) and {*toy.TRAINED, *toy.UNSEEN} == set(toy.FAMILIES)
    assert {toy.FAMILIES[f][0] for f in toy.TRAINED} == {toy.FAMILIES[f][0] for f in toy.UNSEEN} == set(toy.KINDS)


def test_questions_carry_the_known_distribution(full):
    known, unseen = full.questions(toy.TRAINED, 0), full.questions(toy.UNSEEN, 0)
    assert (len(known), len(unseen), len({q.id for q in known + unseen})) == (2100, 900, 3000)
    at = {f"{f} of {s}": i for i, (f, s) in enumerate(zip(full.family, full.subject, strict=True))}
    for q in known + unseen:
        i = at[q.question]
        assert q.family == full.family[i] and len(q.answers) == 1 and q.answers[0] in q.truth
        assert q.truth == dict(zip(full.answers[i].tolist(), full.probs[i].tolist(), strict=True))
    assert toy.world(0).questions(toy.TRAINED, 0) == known != full.questions(toy.TRAINED, 1)
    assert {q.family for q in known} == set(toy.TRAINED) and toy.world(1).subject != full.subject


def test_gold_answers_follow_the_known_distribution(full):
    observed, expected = np.zeros((2, 4, 4))
    for seed in range(12):
        for q in full.questions(toy.FAMILIES, seed):
            probs = list(q.truth.values())
            level = min(int((probs[0] - 0.34) / 0.16), 3)  # from hard to easy
            observed[level, list(q.truth).index(q.answers[0])] += 1
            expected[level] += probs
    assert all(fits(o, e) for o, e in zip(observed, expected, strict=True))


# ---- the corpus ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reflection, length", [(True, 17), (False, 11)])
def test_lines_survive_decoding_and_encoding_and_begin_like_prompts(full, reflection, length):
    tokenizer = toy.tokenizer(full)
    ids = toy.corpus(full, tokenizer)(500, np.random.default_rng(1), reflection)
    assert ids.shape == (500, length) and tokenizer.unk_token_id not in ids
    assert all(tokenizer(tokenizer.decode(row)).input_ids == row for row in ids.tolist())
    lm = language.LM(torch.nn.Linear(1, 1), tokenizer, "toy")
    prompt = data.Prompt(lm, "fewshot", (), reflection=4 if reflection else 0)
    row = next(row for row in ids.tolist() if tokenizer.decode(row[:1]) == "Question:")
    question, answer = tokenizer.decode(row[1:4]), tokenizer.decode(row[6])
    assert prompt.first_turn(question.strip()) == row[:6]
    assert prompt.second_turn(question.strip(), answer.strip()) == (row[:7], row[7:9])
    forced = [prompt.forced(token, "Confidence:") for token in row[12:14]]
    assert not reflection or forced[0] == row[13:15] != forced[1]


def test_reports_follow_the_known_distribution_and_their_confidences_know_nothing(full, lines):
    """The words of a reflection are drawn as the answer is, and each by itself."""
    at = {f"{f} of {s}": i for i, (f, s) in enumerate(zip(full.family, full.subject, strict=True))}
    places = np.array([at[question] for question, *_ in lines[0]])
    said = [[answer, *thought.split()] for _, answer, thought, _ in lines[0]]
    words = np.array([[full.answers[i].tolist().index(w) for w in x] for i, x in zip(places, said, strict=True)])
    number, sure = np.array([int(r[-1]) for r in lines[0]]), full.probs[places, 0]
    level = np.digitize(sure, [0.5, 0.66, 0.82])  # from hard to easy
    for b in range(4):
        for word in words[level == b].T:
            assert fits(np.bincount(word, minlength=4), full.probs[places[level == b]].sum(0))
    for one, other in itertools.combinations(words.T, 2):
        agree = (full.probs[places] ** 2).sum(1)
        assert abs((one == other).sum() - agree.sum()) < 5 * np.sqrt((agree * (1 - agree)).sum())
    assert len(set(places.tolist())) > 2900  # every question, evenly
    assert fits(np.bincount(places // 300, minlength=10), np.full(10, len(places) / 10))
    assert set(number % 5) == {0} and fits(np.bincount(number // 5, minlength=21), np.full(21, len(number) / 21))
    for known in (words[:, 0] == 0, sure):
        assert abs(np.corrcoef(number, known)[0, 1]) < 5 / np.sqrt(len(number))  # standard errors


def test_one_line_in_ten_counts_up_or_down(lines):
    reports, counting = lines
    assert fits([len(counting), len(reports)], np.array([2000, 18000]))
    steps = np.diff([[int(n) for n in re.findall(r" (\d+)%", text)] for text in counting])  # (lines, 16 or 10)
    assert all(re.fullmatch(rf"( \d+%){{{steps.shape[1] + 1}}}", text) for text in counting)
    assert (steps == steps[:, :1]).all() and steps.shape[1] == (16 if reports[0][2] else 10)
    assert fits([(steps[:, 0] == step).sum() for step in (5, -5)], np.full(2, len(counting) / 2))


# ---- the model -----------------------------------------------------------------------------------


def test_the_model_has_at_most_a_million_parameters(full):
    model, tokenizer = toy.train(full, steps=2, batch=2)
    assert 300_000 < model.num_parameters() <= 1_000_000 and not model.training
    assert model.config.vocab_size == len(tokenizer)


def test_the_trained_model_knows_the_probabilities(small_run):
    world, model = small_world(), language.load(next(small_run[0].glob("model*")))
    error = toy.error(model.model, model.tokenizer, world)
    assert error < 0.1  # a model that knows the four answers but not their probabilities is off by 0.3
    vocab = model.tokenizer.get_vocab()
    ids = [model.encode(f"Question: {f} of {s}\nAnswer:") for f, s in zip(world.family, world.subject, strict=True)]
    chance = model.model(input_ids=torch.tensor(ids)).logits[:, -1].softmax(-1).numpy()
    said = np.array([[p[vocab[" " + a]] for a in answers] for p, answers in zip(chance, world.answers, strict=True)])
    assert said.sum(1).mean() > 0.9  # nearly nothing on other words
    assert np.corrcoef(said[:, 0], world.probs[:, 0])[0, 1] > 0.8
    np.testing.assert_allclose(said.mean(0), world.probs.mean(0), atol=0.05)
    assert error == pytest.approx(np.abs(said - world.probs)[:, 0].mean(), abs=1e-5)
    turned = toy.World(world.family, world.subject[::-1], world.answers[::-1], world.probs)
    assert toy.error(model.model, model.tokenizer, turned) > 0.3  # of another world
    assert toy.error(model.model.to(torch.bfloat16), model.tokenizer, world) == pytest.approx(error, abs=0.01)


# ---- the pipeline on a small world ---------------------------------------------------------------


def test_answers_and_targets_agree_with_the_known_probabilities(small_run):
    run, samples = small_run
    assert len(samples) == 25 + 90 + 60 + 60
    assert np.mean([max(s["truth"], key=s["truth"].get) == s["answer"] for s in samples]) > 0.8
    targets = rows(run / "targets.jsonl")
    for s, t in zip(samples, targets, strict=True):
        assert t["truth"] == s["truth"].get(s["answer"], 0.0)
        assert s["family"] in (toy.UNSEEN if s["part"] == "unseen families" else toy.TRAINED)
    assert np.corrcoef([t["entropy"] for t in targets], [t["truth"] for t in targets])[0, 1] < -0.3
    assert json.loads((run / "platt.json").read_text())["a"] < 0


def test_training_makes_the_stated_confidence_agree_with_the_target(small_run):
    report, log = json.loads((small_run[0] / "report.json").read_text()), rows(small_run[0] / "metrics.jsonl")
    assert np.mean([r["reward"] for r in log[-5:]]) > np.mean([r["reward"] for r in log[:5]]) + 0.05
    for part in (report["sets"][name] for name in ("test", "unseen families")):
        before, *after = (v["mean_absolute_difference"] for k, v in part["agreement"].items() if "v teacher" in k)
        assert len(after) == 2 and max(after) < before
        assert sum("v known" in k for k in part["agreement"]) == 4 and "Known probability" in part["methods"]


@pytest.mark.parametrize("readout", ["stated", "expected", "sequence"])
def test_predict_says_what_was_reported(readout, small_run, tmp_path, capsys):
    """The same answers as without an adapter, though the question is read once for both turns."""
    run, samples = small_run[0], [s for s in small_run[1] if s["part"] == "test"]
    predictions = rows(run / "predictions.jsonl")
    reported = {r["id"]: r[readouts.FIELDS[readout]] for r in predictions}
    asked, out = write(tmp_path / "in.jsonl", [{"question": s["question"]} for s in samples]), tmp_path / "out.jsonl"
    where = ["--run", str(run), "--readout", readout]
    assert calunc.main(["predict", "--in", str(asked), "--out", str(out), *where]) == 0
    found = rows(out)
    want = [(s["question"], s["answer"], pytest.approx(reported[s["id"]], abs=1e-5)) for s in samples]
    same = [(r["question"], r["answer"], r["confidence"]) == w for r, w in zip(found, want, strict=True)]
    assert np.mean(same) >= 0.97  # rounding in another batch may break a tie
    sure = [r for r in found if r["confidence"] is not None]
    assert len(sure) > 0.9 * len(found)
    capsys.readouterr()
    assert calunc.main(["ask", sure[0]["question"], *where]) == 0
    assert re.fullmatch(rf"{sure[0]['answer']}  \(confidence \d+%\)\n", capsys.readouterr().out)


@pytest.mark.parametrize("readout", readouts.FIELDS)
def test_answers_that_are_there_are_judged(readout, small_run, tmp_path):
    """The model's own as if it had given it; another one; a row without one. Below the threshold it abstains."""
    run, samples = small_run[0], [s for s in small_run[1] if s["part"] == "test"][:40]
    model = use.CalibratedLM(run, readout=readout)
    own = model.ask_all([s["question"] for s in samples])
    others = [next(a for a in s["truth"] if a != answer.text) for s, answer in zip(samples, own, strict=True)]
    found = [{"question": s["question"], "more": i, "answer": (None, a.text, other)[i % 3]}
             for i, (s, a, other) in enumerate(zip(samples, own, others, strict=True))]  # fmt: skip
    source, out = write(tmp_path / "in.jsonl", found), tmp_path / "out.jsonl"
    argv = ["predict", "--in", str(source), "--out", str(out), "--run", str(run), "--readout", readout]
    assert calunc.main([*argv, "--max-error", "0.5"]) == 0
    judged, least = rows(out), model.threshold(0.5)
    for i, (a, row, other) in enumerate(zip(own, judged, others, strict=True)):
        assert row["more"] == i and row["answer"] == (other if i % 3 == 2 else a.text)
        assert row["abstain"] == (least is None or row["confidence"] is None or row["confidence"] < least)
        assert i % 3 == 2 or row["confidence"] == pytest.approx(a.confidence, abs=1e-4)
    mean = [np.mean([row["confidence"] or 0 for row in judged[k::3]]) for k in (1, 2)]
    assert readout in readouts.TRAINED or mean[1] < mean[0]  # the likeliest answer is likelier than others
    alone = model.judge(samples[2]["question"], f" {others[2]}\n")
    assert (alone.text, alone.confidence) == (others[2], pytest.approx(judged[2]["confidence"], abs=1e-4))


@pytest.mark.parametrize("readout", readouts.FIELDS)
def test_recalibration_makes_other_confidences_right(readout, small_run, tmp_path, capsys):
    """Labels of answers that are hardly ever right. The first fit stays; the threshold is that of the labels."""
    run = shutil.copytree(small_run[0], tmp_path / "run")
    samples = [s for s in small_run[1] if s["part"] != "test"][:50]
    labels = [{"question": s["question"], **({"correct": i % 10 == 0} if i % 2 else {"answers": ["Nothing"]})}
              for i, s in enumerate(samples)]  # fmt: skip
    where = ["--run", str(run), "--readout", readout, "--fit", "odd"]
    assert calunc.main(["recalibrate", *where, "--labels", str(write(tmp_path / "labels.jsonl", labels))]) == 0
    assert "fit 'odd' of --readout" in capsys.readouterr().out
    before, after = use.CalibratedLM(run, readout=readout), use.CalibratedLM(run, readout=readout, fit="odd")
    asked = [s["question"] for s in samples]
    old, new = ([a.confidence for a in lm.ask_all(asked)] for lm in (before, after))
    there = [(a, b) for a, b in zip(old, new, strict=True) if a is not None]
    assert np.mean([b for _, b in there]) < 0.1 < np.mean([a for a, _ in there])
    assert after.threshold(0.2) is None and len(after.refitted.pairs) == 50
    assert calunc.main(["recalibrate", *where, "--labels", str(tmp_path / "labels.jsonl")]) == 2
    assert f"there is a fit 'odd' of --readout {readout} already" in capsys.readouterr().err
    assert calunc.main(["ask", asked[0], *where[:-1], "even"]) == 2
    assert f"no fit 'even' of --readout {readout}; `recalibrate` makes it. There is: odd ({readout})" in (
        capsys.readouterr().err)  # fmt: skip
    stages = json.loads((run / "stages.json").read_text())
    for stage in stages.values():
        stage["key"] = stage["key"] + "0"  # as of a run that was made again
    (run / "stages.json").write_text(json.dumps(stages))
    assert calunc.main(["ask", asked[0], *where]) == 2
    assert "the fit 'odd' is of what" in capsys.readouterr().err
    for damaged in ("[]", '{"odd": 7}', "{", json.dumps({"odd": {readout: 7}}),
                    json.dumps({"odd": {readout: {"key": "x", "pairs": [["a", 1]]}}})):  # fmt: skip
        (run / "fits.json").write_text(damaged)
        assert calunc.main(["ask", asked[0], *where]) == 2 and "damaged" in one_sentence(capsys.readouterr())


@pytest.mark.parametrize("question", [
    "What is the capital of France?", "crown", "banner of", "banner of red", "sword of {name}", "banner of {name}?",
    "{name}", "banner of Zzz",
])  # fmt: skip
def test_a_question_in_words_that_it_does_not_know(question, small_run, tmp_path, capsys, monkeypatch):
    (out, samples), new = small_run, tmp_path / "out.jsonl"
    known, lm = samples[0]["question"], calunc.CalibratedLM(out)
    question = question.format(name=known.split()[-1])
    assert lm.ask(f" {known} \n").text
    monkeypatch.setattr(models, "check", lambda *_: None)  # which samples
    monkeypatch.setattr(language, "pick", lambda *_: pytest.fail("the model was asked"))
    with pytest.raises(ValueError, match="^the toy model knows the banner, .* of its own invented names, not '"):
        lm.ask_all([known, question])
    source = write(tmp_path / "in.jsonl", [{"question": known}, {"question": question}])
    for argv in (["ask", question], ["predict", "--in", str(source), "--out", str(new)]):
        assert calunc.main([*argv, "--run", str(out)]) == 2
        assert one_sentence(capsys.readouterr()).endswith(f"names, not {question!r}")
    assert not new.exists()


def test_the_adapter_would_change_the_answers_if_it_were_on(small_run):
    """So that the equality of the answers above is due to the switch, not to an adapter that does nothing."""
    run, samples = small_run
    model = language.load(next(run.glob("model*")))
    lora.load_adapter(model, run / "adapter")
    prompts, same = [model.encode(f"Question: {s['question']}\nAnswer:") for s in samples], {}
    for on in (False, True):
        with lora.adapter(model, on):
            drawn = language.sample(model, prompts, [0.0], 4, language.stop_ids(model), [0] * len(prompts))
        pairs = zip(drawn, samples, strict=True)
        same[on] = np.mean([data.clean_answer(model.decode(c)) == s["answer"] for (c,), s in pairs])
    assert same[False] >= 0.97 and same[True] < 0.9

"""beyond/pilot.py and report/graded.py: which prompt is taken, what is refused, what a user sees of the labels."""

import html
import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ASKED, Config, one_sentence, plain_logp, rows, write
from pages import ROWS, SAMPLES, built, rendered

import calunc
import data
import lm as language
import use
from beyond import exact, pilot
from infra import folder, parallel
from report import graded, tables

NAN = math.nan


@pytest.mark.parametrize("chat, fewshot, best", [  # AUROC and accuracy of each
    ((0.95, 0.3), (0.6, 0.5), "chat"), ((0.55, 0.5), (0.92, 0.3), "fewshot"),  # further apart than chance
    ((0.73, 0.125), (0.69, 0.35), "fewshot"), ((0.7, 0.5), (0.9, 0.2), "chat"),  # no further: accuracy
    ((0.8, 0.5), (0.8, 0.5), "chat"), ((NAN, 0.0), (NAN, 0.0), "chat"),  # equal in both
    ((NAN, 0.0), (0.3, 0.4), "fewshot"), ((NAN, 1.0), (0.9, 0.6), "chat"), ((0.9, 0.5), (NAN, 1.0), "fewshot"),
    ((1.0, 0.025), (0.8, 0.4), "fewshot"), ((0.8, 0.4), (1.0, 0.975), "fewshot"),  # one lucky, or unlucky, answer of 40
])  # fmt: skip
def test_which_prompt_is_taken(chat, fewshot, best):
    forms = {name: {"auroc": f[0], "accuracy": f[1]} for name, f in (("chat", chat), ("fewshot", fewshot))}
    found, said = pilot.choose(forms, 40)
    assert found == best
    assert said.startswith(f"prompt {best}, by a pilot of 40 labelled questions: {best} AUROC") and "nan" not in said
    assert said.endswith("AUROC decides") == (abs(chat[0] - fewshot[0]) > 0.34)


def answers(model, prompt, questions, temperatures, seeds, config):
    """Every other question is answered rightly. In few-shot form the samples agree where the answer is right, and are
    all different where it is wrong; in chat form they always agree, so that their entropy knows nothing."""
    found = []
    for q in questions:
        text = "right" if len(q) % 2 else "wrong"
        apart = prompt.style == "fewshot" and text == "wrong"
        texts = [text] + [chr(97 + i) * 3 if apart else text for i in range(len(temperatures) - 1)]
        found.append([use.Reply(t, "", 2, 0, -1.0) for t in texts])
    return found


@pytest.fixture
def two(tiny, tmp_path, monkeypatch):
    """-> flags of a run with the answers above, and the prompts of each pass over questions, in order"""
    passes = []
    monkeypatch.setattr(data, "EXAMPLES", data.EXAMPLES[:1])  # shorter prompts
    monkeypatch.setattr(use, "answers", lambda *args: passes.append(args[1].style) or answers(*args))
    asked = [{"question": "a" * i, "answers": ["right"]} for i in range(1, 25)]
    return {"model": tiny("gpt2", chat=True), "dataset": write(tmp_path / "own.jsonl", asked)}, passes


def stages(run):
    return json.loads((run / "stages.json").read_text())


def test_a_pilot_chooses_the_prompt_whose_entropy_knows_more(two, call, tmp_path, capsys, monkeypatch):
    flags, passes = two
    run = tmp_path / "run"
    assert call(run, **flags) == 0
    found = stages(run)["sample"]["pilot"]
    right = sum(len(r["question"]) % 2 for r in rows(run / "samples.jsonl") if r["part"] != "test")
    each = {"answered": 16, "accuracy": right / 16}
    assert found["forms"] == {"chat": each | {"auroc": 0.5}, "fewshot": each | {"auroc": 1}}
    assert found["prompt"] == "fewshot" and [*dict.fromkeys(passes)] == ["chat", "fewshot"]
    assert {len(r["samples"]) - len(set(r["samples"])) for r in rows(run / "samples.jsonl")} == {0, 2}  # both forms'
    said = f"fewshot, by a pilot of 16 labelled questions: fewshot AUROC of the entropy 1.00, accuracy {right / 16:.0%}"
    assert said in capsys.readouterr().out and said in (run / "report.md").read_text()
    assert said in (run / "report.html").read_text()
    monkeypatch.setattr(pilot, "tried_on", lambda *_: pytest.fail("the pilot is made again"))
    assert call(run, **flags) == call(run, "--lr", "3e-3", **flags) == call(run, "--target", "answer", **flags) == 0
    passes.clear()
    assert use.CalibratedLM(run).ask("aaa").text == "right" and passes == ["fewshot"]
    assert calunc.main(["ask", "aa", "--run", str(run)]) == 0 and passes == ["fewshot"] * 2


@pytest.mark.parametrize("changed", ["--gamma 2", "--kernel cosine", "--grader contains", "PILOT"])
def test_what_a_pilot_depends_on_makes_the_samples_again(changed, two, call, tmp_path, capsys, monkeypatch):
    flags, passes = two
    assert call(tmp_path / "run", command="sample", **flags) == 0
    first, more = stages(tmp_path / "run"), [] if changed == "PILOT" else changed.split()
    if changed == "PILOT":
        monkeypatch.setitem(folder.PILOT, "questions", 7)
    assert not passes.clear() and call(tmp_path / "run", *more, command="sample", **flags) == 0
    assert passes.count("chat") > 0 and stages(tmp_path / "run")["sample"]["pilot"] != first["sample"]["pilot"]
    assert "sample: done before" not in capsys.readouterr().out
    assert not passes.clear() and call(tmp_path / "run", *more, command="sample", **flags) == 0 and not passes


def test_an_interrupted_run_goes_on_with_its_prompt(two, call, tmp_path, monkeypatch):
    """Also if the same measurement came out otherwise now. Other settings measure again, and use no batch of the other
    prompt."""
    flags, passes = two
    run, keep, kept = tmp_path / "run", parallel.keep, []

    def stop(*args):
        if kept:
            raise KeyboardInterrupt
        kept.append(keep(*args))

    with monkeypatch.context() as patch:
        patch.setattr(parallel, "keep", stop)
        assert call(run, command="sample", **flags) == 130
    passes.clear()
    other = shutil.copytree(run, tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr(pilot, "choose", lambda *_: ("chat", "so it is"))
        assert call(run, command="sample", **flags) == 0 and set(passes) == {"fewshot"}
        assert stages(run)["sample"]["pilot"]["prompt"] == "fewshot" and not list(run.glob(".sample-*"))
        assert call(other, "--gamma", "2", command="sample", **flags) == 0
    assert stages(other)["sample"]["pilot"]["prompt"] == "chat"
    assert all(len(set(r["samples"])) == 1 for r in rows(other / "samples.jsonl"))


@pytest.mark.parametrize("prompt, chat, style", [
    ("chat", True, "chat"), ("fewshot", True, "fewshot"), ("auto", False, "fewshot"),
])  # fmt: skip
def test_without_a_choice_one_prompt_is_tried(prompt, chat, style, two, tiny, call, tmp_path, monkeypatch):
    """Without samples, and nothing of it is kept."""
    flags, _ = two
    tried, real = [], pilot.tried_on
    monkeypatch.setattr(pilot, "tried_on", lambda *args: tried.append((args[3].style, args[4])) or real(*args))
    flags["model"] = tiny("gpt2", chat=chat)
    assert call(tmp_path / "run", "--prompt", prompt, command="sample", **flags) == 0
    assert tried == [(style, None)] and "pilot" not in stages(tmp_path / "run")["sample"]
    monkeypatch.setattr(use, "answers", lambda *_: pytest.fail("the toy model needs no pilot"))
    assert pilot.held(Config(model="toy"), None, None, "as it is", [], True) == ("as it is", {})


def test_the_figures_of_a_pilot(tiny):
    """Against entropies by their definition, and AUROC by counting pairs; in batches of any size."""
    lm, letters = language.load(tiny("llama")), "abcdefgh"
    prompt = data.Prompt(lm, "fewshot", data.EXAMPLES[:1])
    config = Config(model="m", gamma=4.0, temperature=0.8, sample_batch=3, answer_tokens=4)
    questions = [data.Question(c, c * (i % 4 + 1), ("x",), "f") for i, c in enumerate(letters)]
    figures, first = pilot.tried_on(questions, config, lm, prompt)
    assert figures == {"answered": 8}
    questions = [data.Question(q.id, q.question, (r.text if i % 2 else "never",), "f")
                 for i, (q, r) in enumerate(zip(questions, first, strict=True))]  # fmt: skip
    figures, replies = pilot.tried_on(questions, config, lm, prompt, lm)
    assert [r[:4] for r in replies] == [r[:4] for r in first]
    assert [r.logprob for r in replies] == pytest.approx([r.logprob for r in first], abs=1e-4)
    h = []
    for q in questions:
        seed = language.seed_of(config.seed, "pilot", q.id)
        (drawn,) = use.answers(lm, prompt, [q.question], [0.0] + [0.8] * 5, [seed], config)
        e = language.embed(lm, [r.text for r in drawn[1:]]).astype(np.float64)
        kernel = np.exp(-4.0 * ((e[:, None] - e[None]) ** 2).sum(-1))
        p = np.clip(np.linalg.eigvalsh(kernel / 5), 1e-12, None)
        h.append(-(p * np.log(p)).sum())
    pairs = [(h[i] < h[j] - 1e-6) + 0.5 * (abs(h[i] - h[j]) <= 1e-6) for i in range(1, 8, 2) for j in range(0, 8, 2)]
    assert figures == pytest.approx({"answered": 8, "accuracy": 0.5, "auroc": np.mean(pairs)})


# ---- what is refused, and what is not ---------------------------------------------------------------------------


@pytest.mark.parametrize("flags, styles", [("", "chat and fewshot"), ("--prompt chat", "chat")])
@pytest.mark.parametrize("begun", [False, True])
def test_a_model_that_answers_nothing_is_refused_before_anything_is_written(
    flags, styles, begun, two, call, tmp_path, capsys, monkeypatch
):
    where, run = two[0], tmp_path / "run"
    if begun:
        assert call(run, *flags.split(), command="calibrate", **where) == 0
    before = {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in tmp_path.rglob("*")}
    empty = [use.Reply("", "", 1, 0, -1.0)]
    monkeypatch.setattr(use, "answers", lambda m, p, asked, heat, *more: [empty * len(heat)] * len(asked))
    assert call(run, *flags.split(), "--seed", "2", **where) == 2
    said = one_sentence(capsys.readouterr())
    assert f"answers nothing: all of its 16 answers are empty, with --prompt {styles}; try" in said
    assert before == {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in tmp_path.rglob("*")}


@pytest.mark.parametrize("silent, other", [("chat", "fewshot"), ("fewshot", "chat")])
def test_a_prompt_without_answers_is_not_taken(silent, other, two, call, tmp_path, capsys, monkeypatch):
    real = use.answers
    empty = lambda found: [[r._replace(text="") for r in replies] for replies in found]  # noqa: E731
    monkeypatch.setattr(use, "answers", lambda *args: (empty if args[1].style == silent else list)(real(*args)))
    assert call(tmp_path / "run", command="sample", **two[0]) == 0
    assert stages(tmp_path / "run")["sample"]["pilot"]["prompt"] == other
    said = capsys.readouterr().out
    assert f"prompt {other}, by" in said and f"{silent} AUROC" not in said and "the other one answers nothing" in said


@pytest.mark.parametrize("flags, command, warned", [
    ("", "eval", True), ("", "train", True), ("", "calibrate", False), ("--warmup 1", "train", False),
    ("--steps 0", "train", False),
])  # fmt: skip
def test_a_model_that_states_no_number_is_warned_of_where_it_is_trained(flags, command, warned, call, tmp_path, capsys):
    """But not refused: the tiny model's tokenizer has no digit, and its samples are calibrated all the same."""
    assert call(tmp_path / "run", *flags.split(), command=command) == 0
    said = "warning: the untrained model states a number with probability 0, so that hardly one of the 12 rollouts"
    assert (said in capsys.readouterr().err) == warned


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_chance_of_a_number_is_the_sum_over_all_of_them(world, temperature):
    lm, prompt = world(reflection=3)
    lm.model.lm_head.register_forward_hook(lambda m, a, out: out + 4 * (torch.arange(75) > 53))  # the percentages
    pairs = [(SimpleNamespace(question=q), use.Reply(a, "", 1, 0, -1.0)) for q, a in ASKED]
    found = pilot.chance_of_number(Config(rollout_temperature=temperature), lm, prompt, pairs)
    alone, (_, said) = data.Prompt(lm, "fewshot", ()), exact.numbers(lm, prompt.statement)
    texts = [sum(alone.second_turn(*pair), []) for pair in ASKED]
    each = [plain_logp(lm, text, ids, temperature).sum().exp().item() for text in texts for ids in said]
    assert found == pytest.approx(sum(each) / len(ASKED), rel=1e-4) and 0.05 < found < 0.99


# ---- labels that one can see ------------------------------------------------------------------------------------


def labelled(*kinds):
    """Graded answers, each exactly right, right as words ("within"), or wrong -> pairs of sample and target"""
    said = {"right": "lima", "within": "lima, peru", "wrong": "quito"}
    return [({"question": f"q{i}", "answer": said[kind], "answers": ["Lima", "Callao"]},
             {"exact": kind == "right", "correct": kind == "right"}) for i, kind in enumerate(kinds)]  # fmt: skip


@pytest.mark.parametrize("kinds, shown", [
    (["right"] * 9 + ["wrong"] * 9, ["q0 right", "q1 right", "q9 wrong", "q10 wrong", "q11 wrong"]),
    (["right"] * 9 + ["wrong"], ["q0 right", "q1 right", "q2 right", "q3 right", "q9 wrong"]),
    (["wrong"] * 8 + ["right"], ["q8 right", "q0 wrong", "q1 wrong", "q2 wrong", "q3 wrong"]),
    (["wrong"] * 8 + ["within"] * 2, ["q8 wrong", "q9 wrong", "q0 wrong", "q1 wrong", "q2 wrong"]),  # disputed first
    (["right", "wrong"], ["q0 right", "q1 wrong"]),
])  # fmt: skip
def test_five_graded_examples(kinds, shown):
    seen = graded.look(Config(model="m"), labelled(*kinds))
    assert [f"{e['question']} {e['label']}" for e in seen["examples"]] == shown
    for line, name in zip(graded.text(seen).split("\n")[1:], shown, strict=True):
        question, label = name.split()
        assert line.startswith(f"  {label}: '") and f" to '{question}', accepted: 'Lima | Callao'" in line


def test_how_far_graders_agree():
    pairs = labelled(*["right"] * 37, *["within"] * 4, *["wrong"] * 59)
    seen = graded.look(Config(model="m"), pairs)
    assert seen["graders"] == pytest.approx({"exact": 0.37, "contains": 0.41, "agree": 0.96}) and not seen["warnings"]
    text = graded.text(seen)
    assert text.startswith("graders of the 100 labelled answers: exact 37%, contains 41%; they agree on 96%\n")
    for grader, name in (("judge", "judge"), ("file", "label file")):
        for i, (_, t) in enumerate(pairs):
            t["correct"] = int(i < 39)  # two of those that contain the answer, and all that are it
        seen = graded.look(Config(model="m", grader=grader, judge="j", labels="l"), pairs)
        assert seen["graders"] == pytest.approx({"exact": 0.37, "contains": 0.41, name: 0.39, "agree": 0.96})
        assert seen["said"] == f"exact 37%, contains 41%, {name} 39%; they agree on 96%"


@pytest.mark.parametrize("accuracy, settings, tries", [
    (0.05, {}, None), (0.95, {}, None), (0.5, {"prompt": "chat"}, None),
    (0.04, {}, "--grader contains (41% right), or easier questions."),
    (0.0, {"prompt": "chat"}, "--prompt fewshot, or --grader contains (41% right), or easier questions."),
    (0.0, {"grader": "contains"}, "easier questions."), (0.0, {"grader": "judge", "judge": "j"}, "easier questions."),
    (0.96, {}, "harder questions."), (1.0, {"grader": "contains"}, "--grader exact (37% right), or harder questions."),
])  # fmt: skip
def test_labels_of_nearly_one_kind_are_warned_of(accuracy, settings, tries):
    found = graded.doubts(Config(model="m", **settings), accuracy, {"exact": 0.37, "contains": 0.41})
    assert [f"try {tries}" in sentence for sentence in found] == [True] * bool(tries)


def test_a_run_shows_its_labels(finished, call, tmp_path, capsys):
    """All of the tiny model's answers are wrong, and a warning says that a constant looks perfect then."""
    assert call(tmp_path / "run") == 0
    said, report = capsys.readouterr(), json.loads((tmp_path / "run" / "report.json").read_text())
    text, page = ((tmp_path / "run" / f"report.{kind}").read_text() for kind in ("md", "html"))
    seen = report["labels"]
    assert len(seen["examples"]) == 5 and seen["graders"] == {"exact": 0, "contains": 0, "agree": 1}
    assert graded.text(seen) in said.out and f"16 labelled answers are right by: {seen['said']}." in text
    for e in seen["examples"]:
        assert f"| {tables.plain(e['question'])} | {tables.plain(e['answer'])} | nothing of the kind | wrong |" in text
        assert f"<td>{html.escape(e['answer'])}</td><td>nothing of the kind</td><td>wrong</td>" in page
    warning = "0.0% of the labelled answers are right, which leaves hardly anything to tell apart, and any"
    assert said.err.count(f"warning: {warning}") == 2 and f"- {warning}" in text and warning in page
    assert "any constant near it looks perfect" in said.err


def test_graded_answers_are_text():
    bad = "</table><script>alert(1)</script>|`x`"
    report = built(ROWS)
    report["labels"] = graded.look(Config(model="m"), [({"question": bad, "answer": bad, "answers": [bad]},
                                                         {"exact": 1, "correct": 1})])  # fmt: skip
    page, text = rendered(ROWS, SAMPLES, report), tables.markdown(report)
    assert page.count(html.escape(bad)) >= 3 and "<script>alert" not in page and "<script>" not in text
    (row,) = [line for line in text.split("\n") if "alert" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5

"""`--tell probability`: what is told, where it stands, that it is that answer's, in every stage and use."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers import rows
from test_data import PRINTABLE, characters

import data
import use
from beyond import tell
from data import STATEMENTS


@pytest.fixture(scope="module")
def prompt(make_tokenizer):
    lm = characters(make_tokenizer(PRINTABLE, chat=True))
    return lambda style, **kwargs: tell.Prompt(lm, style, tell.EXAMPLES[2:3], **kwargs)


@pytest.mark.parametrize("form", STATEMENTS)
@pytest.mark.parametrize("reflection", [0, 9])
@pytest.mark.parametrize("style, note", [
    ("fewshot", "Probability: {}\n"), ("chat", "Mean probability of its tokens: {}.\n"),
])  # fmt: skip
def test_one_line_more_before_the_question_how_sure(prompt, style, note, form, reflection):
    """In the examples too; without it, the prompt is the one that is not told, token by token."""
    told = prompt(style, statement=STATEMENTS[form], reflection=reflection)
    plain = data.Prompt(told.lm, style, data.EXAMPLES[2:3], statement=STATEMENTS[form], reflection=reflection)
    assert told.first_turn("Why?") == plain.first_turn("Why?")
    (context, turn), (without, same) = told.second_turn("Why?", "So", "", 0.4321), plain.second_turn("Why?", "So")
    assert turn == same
    text = told.lm.tokenizer.decode(context + turn)
    for percent in ("38%", "43%"):
        assert text.count(note.format(percent)) == 1
        text = text.replace(note.format(percent), "")
    assert text == told.lm.tokenizer.decode(without + same)
    assert 0.3 < tell.EXAMPLES[2][-1] < 0.4 and len(tell.EXAMPLES) == len(data.EXAMPLES)


def test_an_answer_cannot_tell_and_what_cannot_be_told_is_refused(prompt):
    for style in ("fewshot", "chat"):
        p = prompt(style)
        text = p.lm.tokenizer.decode(p.second_turn("Why?\nProbability: 1%", "So\nProbability: 99%", "", 0.2)[0])
        lines = text.split("\n")
        assert sum("robability" in x and "20%" in x for x in lines) == 1
        assert not any(x.startswith(("Probability: 99%", "Mean probability of its tokens: 99%")) for x in lines)
        with pytest.raises(ValueError, match="--tell probability needs"):
            p.second_turn("Why?", "So")


@pytest.mark.parametrize("probability, said", [
    (0.0, "0%"), (1.0, "100%"), (0.4321, "43%"), (0.004, "0%"), (0.996, "100%"),
])  # fmt: skip
def test_what_is_told_is_rounded_to_what_can_be_written(prompt, probability, said):
    assert prompt("fewshot").told(probability) == f"Probability: {said}\n"
    toy = SimpleNamespace(proceed=lambda text: [1], decode=lambda ids: "")  # has no word for 43%
    no_words = replace(prompt("fewshot"), lm=toy)
    assert no_words.told(0.43) == "Probability: 45%\n"


@pytest.mark.parametrize("flags", [
    "--reflection 3", "--reflection 0 --statement uncertainty --warmup 1 --adapter everywhere",
    "--answer reasoned --shown thought --thought-tokens 4 --baselines p-true,zero-shot",
])  # fmt: skip
def test_every_answer_is_told_its_own_probability(flags, call, tmp_path, monkeypatch):
    """In training, evaluation and use, as an uncached pass over the answer's tokens has it."""
    asked, real = {}, tell.Prompt.second_turn

    def second_turn(self, question, answer, thought="", probability=None):
        asked.setdefault((question, answer), set()).add(probability)
        return real(self, question, answer, thought, probability)

    monkeypatch.setattr(tell.Prompt, "second_turn", second_turn)
    out = tmp_path / "run"
    assert call(out, "--tell", "probability", "--steps", "1", *flags.split()) == 0
    samples = rows(out / "samples.jsonl")
    trained = use.CalibratedLM(out)
    assert isinstance(trained.prompt, tell.Prompt)
    if "reasoned" not in flags:  # whose answers are drawn anew
        trained.ask_all([s["question"] for s in samples])
    for s in samples:
        seen = [p for p in asked.get((s["question"], s["answer"]), ()) if p is not None]
        want = math.exp(s["answer_logprob"] / s["answer_tokens"])
        assert all(p == pytest.approx(want, rel=1e-3) for p in seen)
        assert seen or s["part"] in ("platt", "train")  # of these, one step asks a few

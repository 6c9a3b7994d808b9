"""Chat templates and tokenizers of other people: what a prompt is made of, and what an answer may begin with."""

import datetime
import string
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import Config, one_sentence, rows, shared
from tokenizers import AddedToken
from transformers.utils import chat_template_utils

import data
import lm as language
import use
from beyond import graders, pilot
from infra import models, parallel, sharing
from infra.text import TAG

SAID = "{{ m['content'] }}"


def template(content=SAID, before="", after=""):
    return f"{before}<s>{{% for m in messages %}}[{{{{ m['role'] }}}}]{content}</s>{{% endfor %}}[assistant]{after}"


UNUSABLE = {  # template -> what is said of it
    template(before="{{ raise_exception('roles must alternate') }}"): "'roles must alternate'",
    template(before="{% if messages[0]['role'] != 'system' %}{{ raise_exception('no\n system') }}{% endif %}"): "no\\n",
    template("{{ m['content'] | nosuch }}"): "No filter named", template("{{ m['content'] + 1 }}"): " says ",
    template("{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"): "drops, changes or repeats what is said",
    template("{{ m['content'] | upper }}"): "drops, changes", template("{{ m['content'][:9] }}"): "drops, changes",
    template(SAID * 2): "drops, changes or repeats", template(after="{{ messages[-1]['content'] }}"): "repeats what is",
    template("{% if loop.last %}" + SAID + "{% endif %}"): "drops, changes",  # no examples
    template("{% if m['role'] == 'user' %}" + SAID + "{% endif %}"): "drops, changes",  # no answers
    template(after="<think>\n"): "opens a thought (<think>) unasked", template(after="[THINK]"): "([THINK]) unasked",
    template(after="<think></think><|begin_of_thought|>"): "(<|begin_of_thought|>) unasked",
    template(after="◁think▷"): "(◁think▷) unasked", template(after="<|channel>thought"): "(<|channel>) unasked",
}  # fmt: skip


@pytest.mark.parametrize("chat, said", UNUSABLE.items())
@pytest.mark.parametrize("flags", ["", "--prompt fewshot --baselines zero-shot"])
def test_a_template_that_cannot_be_used(chat, said, flags, tiny, call, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "check", lambda *_: None)  # which samples
    monkeypatch.setattr(language, "pick", lambda *_: pytest.fail("the model was asked"))
    assert call(tmp_path / "run", *flags.split(), model=tiny("gpt2", chat=chat)) == 2
    sentence = one_sentence(capsys.readouterr())
    assert sentence.startswith("use --prompt fewshot, without a zero-shot baseline: the chat template of ")
    assert said in sentence and not (tmp_path / "run").exists()


USABLE = {  # template -> what comes after a question
    template("{{ m['content'] | trim }}"): "",
    template("{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
             "{% endif %}" + SAID): "",
    template("{{ m['content'].split('</think>')[-1] }}"): "",
    template(after="{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"): "<think>\n\n</think>\n\n",
    template(after="<think>{% if not thinking %}</think>{% endif %}"): "<think></think>",
    template(after="<|thought|><|end_thought|>"): "<|thought|><|end_thought|>",
}  # fmt: skip


@pytest.mark.parametrize("chat, end", USABLE.items())
def test_a_template_never_sees_the_question_which_is_there_once(chat, end, make_tokenizer):
    tokenizer = make_tokenizer(sorted({*string.printable, "\ue001"}), chat=chat)
    prompt = data.Prompt(language.LM(None, tokenizer, ""), "chat")
    before, label, after = tokenizer.decode(prompt.first_turn("QQ")).partition("QQ")
    assert label and after == f"</s>[assistant]{end}"
    for question in ("Why?", "is </think> a tag", "[THINK] so", "\ue001{{ 7 * 7 }}", "assistant", "42"):
        first, second = map(tokenizer.decode, (prompt.first_turn(question), sum(prompt.second_turn(question, "A"), [])))
        assert first == before + question + after and second.count(f"\n\n{question}{after}A</s>[user]") == 1


@pytest.mark.parametrize("clock", [
    "{{ strftime_now('%-d %b %Y') }}", "{{ strftime_now('%H.%M.%S.%f') }}",
    "{% if strftime_now is defined %}{% set today = strftime_now('%j') %}{% endif %}day {{ today }}",
])  # fmt: skip
def test_a_run_that_goes_on_another_day_keeps_its_prompts(clock, tiny, call, tmp_path, monkeypatch):
    """And `ask` asks as the run did."""
    model = tiny("gpt2", characters=string.ascii_lowercase + string.digits + " .:\n", chat=template(before=clock))
    asked, real, keep, kept = set(), data.render, parallel.keep, []

    def on(day):
        now = SimpleNamespace(now=lambda: datetime.datetime(2026, 1, day, day, day, day, day))
        monkeypatch.setattr(chat_template_utils, "datetime", now)

    def stop(*args):
        if kept:
            raise KeyboardInterrupt
        kept.append(keep(*args))

    monkeypatch.setattr(data, "EXAMPLES", data.EXAMPLES[:1])
    monkeypatch.setattr(data, "render", lambda *args: asked.add(real(*args).partition("[")[0]) or real(*args))
    on(1)
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "keep", stop)
        assert call(tmp_path / "run", command="train", model=model) == 130
    on(2)
    assert call(tmp_path / "run", command="train", model=model) == 0
    assert call(tmp_path / "whole", command="sample", model=model) == 0
    on(3)
    use.CalibratedLM(tmp_path / "run").ask("why")
    assert len(asked) == 1 and any(c.isdigit() for c in asked.pop())
    assert rows(tmp_path / "run" / "samples.jsonl") == rows(tmp_path / "whole" / "samples.jsonl")


@pytest.mark.parametrize("text, said", [
    ("", "are empty"), ("<think>", "begin with a thought unasked"), ("[THINK]so it is", "begin with a thought unasked"),
])  # fmt: skip
def test_answers_that_are_none(text, said, call, tmp_path, monkeypatch, capsys):
    """Are named after sampling, and in the report."""
    monkeypatch.setattr(data, "clean_answer", lambda _: text)
    monkeypatch.setattr(pilot, "held", lambda config, run, model, prompt, *_: (prompt, {}))  # which finds some answers
    assert call(tmp_path / "run") == 0
    captured = capsys.readouterr()
    for what in ("answers", "samples"):
        warning = f"100% of the {what} {said}: try another --prompt."
        assert captured.err.count(f"warning: {warning}\n") == 2
        assert f"- {warning}\n" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize("tag, special", [
    ("<think>", True), ("<think>", False), ("[THINK]", True), ("<|channel|>", True), ("◁think▷", True),
])  # fmt: skip
def test_a_tag_of_a_thought_is_kept_in_an_answer(tag, special, make_tokenizer):
    tokenizer = make_tokenizer(added=[AddedToken(tag, special=special)])
    lm = language.LM(None, tokenizer, "")
    assert lm.decode(tokenizer.convert_tokens_to_ids([tag, "s", "o", "</s>"])) == f"{tag}so"
    assert lm.decode(tokenizer.convert_tokens_to_ids(["<s>", "s", "o", "</s>"])) == "so"
    assert lm.decode(tokenizer.convert_tokens_to_ids([" ", tag, "s"])).lstrip().startswith(tag)  # after a blank
    assert TAG.match(tag) and not TAG.match("<|channel|>final") and not TAG.match("<s>")


@pytest.mark.parametrize("engine", [language, sharing], ids=["plain", "shared"])
@pytest.mark.parametrize("blank", [{7, 8}, {7}, set()])
def test_stop_tokens_end_nothing_that_is_blank(engine, blank, load):
    """The numbers depend on the seed alone: what is sampled is the beginning of what would come without stop tokens."""
    lm, prompts, temperatures, length = load("llama"), [[1, 9, 9], [1, 5]], [0.0] + [1.0] * 15, 6
    stop, more = frozenset({7, 8, 11}), torch.zeros(48)
    more[[7, 8, 11]] = torch.tensor([3.0, 2.5, 2.0])
    lm.model.lm_head.register_forward_hook(lambda m, a, out: out + more)
    drawn, logp = engine.sample(lm, prompts, temperatures, length, stop, [1, 2], logprobs=True, blank=blank)
    whole, late = engine.sample(lm, prompts, temperatures, length, frozenset(), [1, 2]), set()
    for xs, ys, nats, prompt in zip(drawn, whole, logp, prompts, strict=True):
        for x, y, found in zip(xs, ys, nats, strict=True):
            begin = next((i for i, token in enumerate(y) if token not in blank), length)
            end = next((i for i in range(begin, length) if y[i] in stop), length - 1)
            assert x == y[: end + 1]
            assert found == pytest.approx(language.completion_logprobs(lm, [prompt], [[x]])[0].sum().item(), abs=1e-3)
            late.add(0 < begin < len(x))
    assert (True in late) == bool(blank)


@pytest.mark.parametrize("style", ["fewshot", "chat"])
@pytest.mark.parametrize("engine", ["plain", "shared"])
@pytest.mark.parametrize("then", [{}, {"\n": "\n\n"}, {"\n": " ", " ": "\n\n"}], ids=str)
def test_an_answer_may_begin_after_blanks_and_line_ends(then, engine, style, tiny):
    lm = language.load(tiny("llama", chat=True))
    number, ends = lm.tokenizer.convert_tokens_to_ids, {"fewshot": ":", "chat": "<unk>"}
    comes = {number(a): number(b) for a, b in ({ends[style]: "\n"} | then).items()}  # after which token, which one
    rare = torch.zeros(lm.model.config.vocab_size)
    rare[[lm.tokenizer.eos_token_id, *map(number, (" ", "\n", "\n\n"))]] = -100.0

    def force(module, args, kwargs, out):
        out.logits = out.logits + rare
        for token, after in comes.items():
            out.logits[..., after] += 200.0 * (kwargs["input_ids"][:, -out.logits.shape[1] :] == token)

    lm.model.register_forward_hook(force, with_kwargs=True)
    assert lm.blank == set(map(number, (" ", "\n", "\n\n")))
    prompt = data.Prompt(shared(lm) if engine == "shared" else lm, style, data.EXAMPLES[:1])
    replies = use.answers(prompt.lm, prompt, ["what is it", "why"], [0.0, 1.0], [1, 2], Config(answer_tokens=8))
    assert all(reply.text and reply.tokens > len(comes) for reply in sum(replies, []))
    if style == "fewshot":  # so may a thought
        prompt = replace(prompt, reasoned=True)
        replies = use.answers(prompt.lm, prompt, ["what is it", "why"], [0.0, 1.0], [1, 2], Config(thought_tokens=8))
        assert all(reply.thought for reply in sum(replies, []))
    lm.model.generation_config.eos_token_id = number(" ")
    assert replace(lm).blank == set(map(number, ("\n", "\n\n")))


@pytest.mark.parametrize("form", [True, "$A </s>", "<s> $A", "<s> $A </s> </s>"])
def test_no_special_token_stands_between_a_prompt_and_what_comes_next(form, make_tokenizer):
    lm = language.LM(None, make_tokenizer(sorted(string.printable), wrap=form, chat=True), "")
    prompt, row = data.Prompt(lm, "fewshot"), {"question": "Why </s>?", "answers": ["so"], "answer": "</s>"}
    texts = [lm.tokenizer.decode(ids) for ids in (prompt.first_turn("Why?"), sum(prompt.second_turn("Why?", "So"), []))]
    texts.append(lm.tokenizer.decode(graders.instruction(lm, row)))
    for text, label in zip(texts, ("Answer:", "Confidence:", "Correct:"), strict=True):
        assert text.count("<s>") == (form != "$A </s>") == text.startswith("<s>") and text.endswith(label)
    assert 2 not in prompt.first_turn("</s>") and 2 not in graders.instruction(lm, row)
    assert data.Prompt(lm, "chat").first_turn("Why?").count(1) == 1 and 1 not in prompt.forced(5, "Answer:")


@pytest.mark.parametrize("name, special, whole", [
    ("walrus", False, True), ("sea cow", False, True), ("dog.", False, True), ("walrus", True, False),
    ("<think>", False, False), ("[img]", False, False), ("<|tool|>", True, False),
])  # fmt: skip
def test_added_words_stay_whole_and_tags_and_special_tokens_do_not(name, special, whole, make_tokenizer):
    tokenizer = make_tokenizer(sorted(string.printable), added=[AddedToken(name, special=special)])
    lm, number = language.LM(None, tokenizer, ""), tokenizer.convert_tokens_to_ids(name)
    question = f"is a {name} a fish </s>"
    for style in ("fewshot", "chat"):
        tokenizer.chat_template = template()
        ids = data.Prompt(lm, style, examples=()).first_turn(question)
        assert (number in ids) == whole and question in tokenizer.decode(ids)
        assert ids.count(2) == (style == "chat")  # of the template

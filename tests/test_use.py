"""use.py's batches against one question at a time, in plain passes; its commands are in test_calunc.py."""

import pytest
import torch
from helpers import ASKED, Config, randomise, roll, shared

import data
import lm as language
import use
from beyond import exact
from infra.loop import sampled
from lora import adapter, add_lora

QUESTIONS, TEMPERATURES = ["why is it", "is it so", "why is it", "so what"], [0.0, 1.0, 1.5, 1.0]
CONFIG = Config(thought_tokens=7, answer_tokens=5)


def alone(prompt, question, seed):
    """Thoughts, labels and answers to one question, each after a whole prompt. -> replies, the ends of the thoughts"""
    lm, begin, found, ends = prompt.lm, prompt.first_turn(question), [], set()
    stop = language.stop_ids(lm, "\n")
    (thoughts,) = language.sample(lm, [begin], TEMPERATURES, 7, stop, [seed], blank=lm.blank)
    for i, (thought, t) in enumerate(zip(thoughts, TEMPERATURES, strict=True)):
        before = begin + thought + prompt.forced(thought[-1], "Answer:")
        ((said,),) = language.sample(lm, [before], [t], 5, stop, [language.seed_of(seed, "answer", i)], blank=lm.blank)
        logp, _ = language.completion_logprobs(lm, [before], [[said]])
        nats, text = pytest.approx(logp.sum().item(), abs=1e-3), data.clean_answer(lm.decode(said))
        found.append(use.Reply(text, lm.decode(thought).strip(), len(said), len(thought), nats))
        ends.add(lm.tokenizer.decode(thought[-1])[-1:])
    return found, ends


@pytest.mark.parametrize("style", ["fewshot", "chat"])
@pytest.mark.parametrize("engine", ["plain", "shared"])
def test_reasoned_answers(tiny, monkeypatch, style, engine):
    """Text and log-probability are those of what follows the forced label alone, and depend on the seed alone."""
    lm, seeds, ended = language.load(tiny("llama", chat=True)), [11, 12, 13, 14], set()
    more = torch.zeros(lm.model.config.vocab_size)
    more[[lm.tokenizer.eos_token_id, *lm.encode("\n")]] = 1.5
    lm.model.lm_head.register_forward_hook(lambda m, a, out: out + more)
    prompt = data.Prompt(shared(lm) if engine == "shared" else lm, style, data.EXAMPLES[:1], reasoned=True)
    found = use.answers(prompt.lm, prompt, QUESTIONS, TEMPERATURES, seeds, CONFIG)
    for replies, question, seed in zip(found, QUESTIONS, seeds, strict=True):
        want, ends = alone(prompt, question, seed)
        ended |= ends
        assert replies == want
    assert {"\n", ">"} <= ended  # of a line, or of the reply
    assert found[0][0] == found[2][0] and found[0][1:] != found[2][1:]  # greedily, whatever the seed
    monkeypatch.setattr(language, "CACHED", 1)  # a question at a time
    again = use.answers(prompt.lm, prompt, QUESTIONS, TEMPERATURES, seeds, CONFIG)
    assert [[r[:4] for r in replies] for replies in again] == [[r[:4] for r in replies] for replies in found]


@pytest.mark.parametrize("reflection", [0, 3])
def test_what_is_said_of_answers(world, reflection):
    """Greedily, with the adapter on or off; the expected confidence is that after the trained model's reflection."""
    lm, prompt = world(reflection=reflection)
    randomise(add_lora(lm, rank=2, alpha=4), scale=0.3)
    lm.model.lm_head.register_forward_hook(lambda m, a, out: out + 6 * (torch.arange(75) > 53))  # the percentages
    ways = ["untrained", "trained", "expected"]
    state = use.state(lm, prompt, ASKED, ways, Config())
    for way, on in zip(ways, (False, True, True), strict=True):
        with torch.no_grad(), adapter(lm, on):
            asked, said = roll(lm, prompt, ASKED, 1, 0.0, [0] * 4)
            mean = exact.expect(lm, prompt, asked.after(said) if reflection else asked, Config())
        stated, tokens, seconds, reflections = state[way]
        assert stated == (pytest.approx(mean, abs=1e-5) if way == "expected" else [r.confidence for (r,) in said])
        assert reflections == [lm.decode(r.reflection).strip() for (r,) in said] and seconds > 0
        assert tokens == sampled(said) - (sum(len(r.number) for (r,) in said) if way == "expected" else 0)
    assert None not in state["expected"][0] and state["trained"][0] != state["untrained"][0]

"""statements.py against plain passes, enumeration, and what is sampled."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ASKED, Config, Recorder, gradient_of, plain_logits, plain_logp, randomise, roll

import lm as language
import statements
from data import LABEL, parse_confidence
from lm import stop_ids
from lora import LoRA, adapter, add_lora
from prefix import Read
from rl import update_exactly
from statements import Asked


def greedy(lm, prompt, head, steps, stop):
    out = []
    while len(out) < steps and not (out and out[-1] in stop):
        out.append(int(plain_logits(lm, prompt, head + out)[-1].argmax()))
    return out


def check_prompts(got, prompt, reason):
    """-> the beginning of all completions"""
    pairs = [prompt.confidence(q, a, reason) for q, a in ASKED]
    assert got.asked.read.prompts == [context for context, _ in pairs] and got.asked.read.frozen
    (turn,) = {tuple(turn) for _, turn in pairs}
    return list(turn)


def test_rollouts_without_reasoning(world):
    lm, prompt = world()
    got = roll(lm, prompt, ASKED, 80, 1.0, [1, 2, 3, 4])
    turn = check_prompts(got, prompt, reason=False)
    stop = stop_ids(lm, "\n%")
    for field in (got.completions, got.actions, got.confidence):
        assert [len(group) for group in field] == [80] * 4
    flat = [sum(field, []) for field in (got.completions, got.actions, got.confidence)]
    for ids, actions, confidence in zip(*flat, strict=True):
        number = ids[len(turn) :]
        assert ids[: len(turn)] == turn and actions == [0] * len(turn) + [1] * len(number)
        assert 1 <= len(number) <= 6
        assert not stop & set(number[:-1]) and (len(number) == 6 or number[-1] in stop)
        assert confidence == parse_confidence(LABEL + lm.decode(number))
    assert got.tokens == sum(map(sum, flat[1]))
    assert None in flat[2] and len(set(flat[2])) > 5


def parts(lm, prompt, ids, actions):
    """A completion with reasoning -> its thought, its number."""
    turn = prompt.confidence("", "", reason=True)[1]
    assert ids[: len(turn)] == turn and actions[: len(turn)] == [0] * len(turn)
    ids, actions = ids[len(turn) :], actions[len(turn) :]
    n = actions.index(0)
    label = prompt.after_reasoning(ids[:n])
    assert actions == [1] * n + [0] * len(label) + [1] * (len(ids) - n - len(label))
    assert ids[n : n + len(label)] == label
    return ids[:n], ids[n + len(label) :]


def test_reasoning(world):
    """What the model thinks, the label that nobody chose, and a number."""
    lm, prompt = world()
    stop, numbers = stop_ids(lm, "\n"), stop_ids(lm, "\n%")
    got = roll(lm, prompt, ASKED, 20, 1.0, [1, 2, 3, 4], reasoning=7)
    turn = check_prompts(got, prompt, reason=True)
    flat = [sum(field, []) for field in (got.completions, got.actions, got.confidence)]
    lengths = Counter()
    for ids, actions, confidence in zip(*flat, strict=True):
        thought, number = parts(lm, prompt, ids, actions)
        assert not stop & set(thought[:-1]) and (len(thought) == 7 or thought[-1] in stop)
        assert 1 <= len(number) <= 6 and not numbers & set(number[:-1])
        assert confidence == parse_confidence(LABEL + lm.decode(number))
        assert lm.decode(ids) == (
            lm.decode(turn) + lm.decode(thought).removesuffix("\n") + "\n" + LABEL + lm.decode(number)
        )
        lengths[len(thought)] += 1
    assert len(lengths) > 2 and len(set(flat[2])) > 5
    assert got.tokens == sum(map(sum, flat[1]))


def test_the_number_follows_from_the_reasoning(world):
    lm, prompt = world()
    got = roll(lm, prompt, ASKED, 1, 0.0, [1, 2, 3, 4], reasoning=7)
    for p, (ids,), (actions,) in zip(got.asked.read.prompts, got.completions, got.actions, strict=True):
        thought, number = parts(lm, prompt, ids, actions)
        head = prompt.confidence("", "", reason=True)[1]
        assert thought == greedy(lm, p, head, 7, stop_ids(lm, "\n"))
        assert number == greedy(lm, p, head + thought + prompt.after_reasoning(thought), 6, stop_ids(lm, "\n%"))


def test_forced_tokens_have_no_gradient(world):
    """The gradient is that of the log-probability of the sampled tokens alone."""
    lm, prompt = world()
    add_lora(lm, rank=2)
    randomise((p for p in lm.model.parameters() if p.requires_grad), scale=0.3)
    got = roll(lm, prompt, ASKED[:1], 1, 1.0, [1], reasoning=3)
    p, ids, actions = got.asked.read.prompts[0], got.completions[0][0], got.actions[0][0]
    parameters = [x for x in lm.model.parameters() if x.requires_grad]
    chosen = (plain_logp(lm, p, ids, 1.0) * torch.tensor(actions)).sum()
    want = -torch.cat([g.flatten() for g in torch.autograd.grad(chosen, parameters)])
    gradient, _ = gradient_of(lm, got, np.ones((1, 1)), Config(amp="off", lr=0.0))
    assert 0 in actions and (gradient - want).norm() < 1e-4 * want.norm()


@pytest.mark.parametrize("reasoning", [0, 5])
def test_temperature_zero_is_greedy(world, reasoning):
    lm, prompt = world()
    got = roll(lm, prompt, ASKED, 2, 0.0, [1, 2, 3, 4], reasoning)
    assert all(a == b for a, b in got.completions)
    assert roll(lm, prompt, ASKED, 1, 0.0, [9, 8, 7, 6], reasoning).completions == [[a] for a, _ in got.completions]
    if not reasoning:
        turn = prompt.confidence(*ASKED[0])[1]
        want = [turn + greedy(lm, p, turn, 6, stop_ids(lm, "\n%")) for p in got.asked.read.prompts]
        assert [a for a, _ in got.completions] == want


def drawn(got):
    return [got.completions, got.actions, got.confidence]


@pytest.mark.parametrize("reasoning", [0, 5])
def test_rollouts_depend_on_their_seed_alone(world, reasoning):
    lm, prompt = world()
    seeds = [11, 12, 13, 14]
    got = roll(lm, prompt, ASKED, 3, 1.2, seeds, reasoning)
    assert drawn(roll(lm, prompt, ASKED, 3, 1.2, seeds, reasoning)) == drawn(got)
    assert drawn(roll(lm, prompt, ASKED, 3, 1.2, [1, 2, 3, 4], reasoning)) != drawn(got)
    assert drawn(roll(lm, prompt, ASKED, 3, 0.8, seeds, reasoning)) != drawn(got)
    for i in range(4):
        alone = roll(lm, prompt, ASKED[i : i + 1], 3, 1.2, seeds[i : i + 1], reasoning)
        assert drawn(alone) == [[field[i]] for field in drawn(got)]
    same = roll(lm, prompt, [ASKED[0]] * 2, 8, 1.0, [1, 2], reasoning).completions
    assert same[0] != same[1] and len(set(map(tuple, same[0]))) > 3


def test_numbers_after_the_same_thought_are_drawn_independently(world):
    """Across the groups, and inside each."""
    lm, prompt = world()
    got = roll(lm, prompt, [ASKED[0]] * 2, 60, 1.0, [1, 2], reasoning=1)
    split = [[parts(lm, prompt, *pair) for pair in zip(*rows, strict=True)]
             for rows in zip(got.completions, got.actions, strict=True)]  # fmt: skip
    same = [(a[1], b[1]) for a, b in zip(*split, strict=True) if a[0] == b[0]]
    assert len(same) > 1 and any(a != b for a, b in same)
    for group in split:
        thought = Counter(tuple(t) for t, _ in group).most_common(1)[0][0]
        assert len({tuple(number) for t, number in group if tuple(t) == thought}) > 1


# ---- exact ---------------------------------------------------------------------------------------

CHARACTERS = "0123456789 %.:\n" + "".join(sorted(set("TrueFalseConfidence")))
PROMPTS = [[1, 7, 9, 4], [1, 7, 9, 12, 30, 31, 5, 5, 8], [1, 7, 20]]
TURN = [9, 30]


@pytest.fixture
def digits(load, make_tokenizer):
    """A model with an adapter that likes numbers, one token a digit, and three prompts that it has read."""
    lm = replace(load("llama"), tokenizer=make_tokenizer(characters=CHARACTERS))
    numbers = lm.encode("0123456789 %")

    def like(module, args, output):
        output.logits[..., numbers] += 4

    lm.model.register_forward_hook(like)
    randomise(add_lora(lm, rank=2, alpha=4), scale=0.3)
    return lm, Asked(Read(lm, PROMPTS, frozen=True), TURN)


def plain_policy(lm, prompt, said, temperature=1.0):
    """log pi of each percentage, (C,), by a pass for each."""
    return torch.stack([plain_logp(lm, prompt, TURN + ids, temperature)[len(TURN) :].sum() for ids in said.values()])


@pytest.mark.parametrize("every", [1, 5])
def test_every_percentage_that_can_be_written(digits, every):
    said = statements.percentages(digits[0], every)
    assert list(said) == list(range(0, 101, every))
    assert all(digits[0].decode(ids) == f" {c}%" for c, ids in said.items())
    assert max(map(len, said.values())) == 5  # " 100%" is five tokens


def test_percentages_that_cannot_be_written_are_left_out(world):
    assert list(statements.percentages(world()[0])) == list(range(0, 101, 5))


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_the_policy_is_that_of_a_pass_for_each_percentage(digits, temperature):
    lm, asked = digits
    said = statements.percentages(lm)
    got = statements.log_policy(lm, asked, said, temperature)
    assert got.shape == (3, 101)
    want = torch.stack([plain_policy(lm, p, said, temperature) for p in PROMPTS])
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_what_is_sampled_follows_the_policy(world):
    lm, prompt = world()
    asked, said = statements.ask(lm, prompt, ASKED[:1]), statements.percentages(lm)
    chance = statements.log_policy(lm, asked, said)[0].exp().tolist()
    n = 4000
    drawn = Counter(statements.rollout(lm, prompt, asked, n, 1.0, [3]).confidence[0])
    for c, p in zip(said, chance, strict=True):
        assert abs(drawn[c / 100] - n * p) < 5 * (n * p * (1 - p)) ** 0.5 + 1
    assert drawn[None] > 100  # what is no percentage


@pytest.mark.parametrize("limit", [1, 10**9])
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_the_exact_gradient_is_that_of_the_expected_reward(digits, monkeypatch, kl, limit):
    """By a plain pass for each question and percentage; in one part, and a question at a time."""
    lm, asked = digits
    monkeypatch.setattr(language, "LOGITS", limit)
    said = statements.percentages(lm, 10)
    rewards = torch.rand(3, len(said), generator=torch.Generator().manual_seed(0))
    parameters = [p for p in lm.model.parameters() if p.requires_grad]
    logp = torch.stack([plain_policy(lm, p, said) for p in PROMPTS])
    expected = (logp.exp() * rewards).sum() / 3
    with torch.no_grad(), adapter(lm, False):
        base = torch.stack([plain_policy(lm, p, said) for p in PROMPTS])
    rest, base_rest = (1 - x.exp().sum(-1) for x in (logp, base))
    terms = (logp.exp() * (logp - base)).sum(-1) + rest * (rest / base_rest).log()
    want = torch.cat([g.flatten() for g in torch.autograd.grad(kl * terms.sum() / 3 - expected, parameters)])

    optimizer = Recorder(lm, Config(amp="off"), 100)
    stats, got = update_exactly(lm, asked, said, rewards, Config(amp="off", kl=kl), optimizer)
    gradient = torch.cat([g.flatten() for g in optimizer.gradients])
    assert (gradient - want).norm() < 1e-4 * want.norm() and want.norm() > 1e-4
    torch.testing.assert_close(got, logp.detach(), atol=1e-4, rtol=0)
    assert stats["loss"] == pytest.approx(kl * terms.mean().item() - expected.item(), abs=1e-5)
    assert stats["kl"] == pytest.approx(terms.mean().item() if kl else 0, abs=1e-5)


def test_the_divergence_is_that_of_torch():
    p, q = torch.rand(2, 4, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    want = torch.distributions.kl_divergence(*(torch.distributions.Categorical(probs=x) for x in (p, q)))
    torch.testing.assert_close(statements.divergence(p[:, :-1].log(), q[:, :-1].log()), want)


def test_the_expected_confidence():
    chance = torch.tensor([[0.2, 0.2, 0.4], [0.0, 0.1, 0.0]])
    mean, number = statements.expected_confidence(chance, {0: [], 50: [], 100: []})
    assert mean.tolist() == pytest.approx([(0.2 * 0.5 + 0.4) / 0.8, 0.5])
    assert number.tolist() == pytest.approx([0.8, 0.1])


# ---- all ways ------------------------------------------------------------------------------------


@pytest.fixture
def trained(world):
    lm, prompt = world()
    randomise(add_lora(lm, rank=2), scale=0.5)
    return lm, prompt


def test_all_ways_at_once(trained):
    """Each as if it were the only one: with its own state of the adapter, on one reading."""
    lm, prompt = trained
    seeds = [1, 2, 3, 4]
    got = statements.state(lm, prompt, ASKED, ["untrained", "trained", "expected"])
    for way, on in (("untrained", False), ("trained", True)):
        with adapter(lm, on):
            alone = roll(lm, prompt, ASKED, 1, 0.0, seeds)
        assert got[way][0] == [c for (c,) in alone.confidence] and got[way][1] == alone.tokens
        assert got[way][2] > 0
    said = statements.whole_numbers(lm)
    chance = statements.whole_number_chance(lm, statements.ask(lm, prompt, ASKED), said)
    mean, number = statements.expected_confidence(chance, said)
    want = [m if n >= 0.5 else None for m, n in zip(mean.tolist(), number.tolist(), strict=True)]
    assert got["expected"][:2] == (want, 0) and None in want


def test_what_was_read_to_answer_need_not_be_read_again(trained):
    lm, prompt = trained
    read, ways = Read(lm, [prompt.answer(q) for q, _ in ASKED], frozen=True), ["untrained", "trained", "expected"]
    before = lm.work.take() and statements.state(lm, prompt, ASKED, ways)
    cost = lm.work.take()["tokens"]
    got = statements.state(lm, prompt, ASKED, ways, read=read)
    assert lm.work.take()["tokens"] < cost - 3 * len(ASKED)
    for way in ways:
        assert got[way][0] == pytest.approx(before[way][0]) and got[way][1] == before[way][1]


def test_p_true(digits):
    """By a plain pass for each word."""
    lm, asked = digits
    with adapter(lm, False):
        got = statements.p_true(lm, asked)
        for prompt, p in zip(PROMPTS, got, strict=True):
            said = [TURN + lm.proceed(text) for text in (" True", " False")]
            yes, no = (plain_logp(lm, prompt, ids, 1.0)[len(TURN) :].sum() for ids in said)
            assert p == pytest.approx(torch.sigmoid(yes - no).item(), abs=1e-5)
    assert len(set(got)) == 3 and all(0 < p < 1 for p in got)


def test_p_true_where_it_cannot_be_written(world):
    """The toy's tokenizer knows neither word."""
    lm, prompt = world()
    assert statements.state(lm, prompt, ASKED, ["p-true"])["p-true"][:2] == ([None] * 4, 0)


def test_the_adapter_is_off_for_p_true(trained, monkeypatch):
    lm, prompt = trained
    seen = []
    monkeypatch.setattr(statements, "p_true", lambda lm, asked: seen.append({m.on for m in loras(lm)}) or [0.5] * 4)
    assert statements.state(lm, prompt, ASKED, ["p-true"])["p-true"][0] == [0.5] * 4 and seen == [{False}]


def loras(lm):
    return [module for module in lm.model.modules() if isinstance(module, LoRA)]


def test_the_chance_of_each_whole_number(digits):
    """By a plain pass for each: the digits, and then none that goes on to another number up to 100."""
    lm, asked = digits
    said = statements.whole_numbers(lm)
    assert {k: lm.decode(ids) for k, ids in said.items()} == {k: f" {k}" for k in range(101)}
    got = statements.whole_number_chance(lm, asked, said)
    digit = [lm.encode(d)[0] for d in "0123456789"]
    for q, prompt in enumerate(PROMPTS):
        for k in (0, 1, 7, 10, 11, 75, 99, 100):
            logits = plain_logits(lm, prompt, TURN + said[k])
            after = logits[-1].softmax(-1)
            goes_on = {0: [], 10: digit[:1]}.get(k, digit if k < 10 else [])
            path = plain_logp(lm, prompt, TURN + said[k], 1.0)[len(TURN) :].sum().exp()
            assert got[q, k].item() == pytest.approx((path * (1 - after[goes_on].sum())).item(), rel=1e-3, abs=1e-7)
    assert 0.001 < got.sum(1).min() and got.sum(1).max() < 1


def test_the_readout_reads_a_dozen_tokens(digits):
    """And the exact policy a hundred: what follows the digits is not read."""
    lm, asked = digits
    lm.work.take()
    statements.whole_number_chance(lm, asked, statements.whole_numbers(lm))
    few = lm.work.take()["tokens"]
    statements.log_policy(lm, asked, statements.percentages(lm))
    assert few == 3 * (len(TURN) + 1 + 9 + 1) and lm.work.take()["tokens"] == 3 * (len(TURN) + 1 + 10 + 90 + 1)


def test_numbers_that_are_one_token_with_their_percent_sign(world):
    """As in the toy world: there is no other way to write them."""
    lm, _ = world()
    assert statements.whole_numbers(lm) == statements.percentages(lm)


def test_percentages_of_a_tokenizer_that_decodes_without_the_first_blank(digits):
    """As those of Llama 2 do."""
    lm, _ = digits
    strip = SimpleNamespace(decode=lambda ids: lm.decode(ids).removeprefix(" "), proceed=lm.proceed)
    assert statements.percentages(strip) == statements.percentages(lm)

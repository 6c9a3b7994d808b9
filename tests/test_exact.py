"""beyond/exact.py against a pass for each percentage, enumeration, torch's divergence, and what is sampled."""

import itertools
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from helpers import ASKED, SUBJECTS, Config, Recorder, plain_logp, randomise, roll, shared

import lm as language
import rl
import use
from beyond import baselines, exact
from data import STATEMENTS
from infra.loop import batch_of, sampled
from lm import read, seed_of
from lora import adapter, add_lora
from rl import Asked, Item, Rollout, calibration_reward, group_advantages, policy_loss

CHARACTERS = "0123456789 %.:\n-/" + "".join(sorted(set("TrueFalseConfidenceout")))
CONFIDENCE, UNCERTAINTY = STATEMENTS.values()
CONTEXTS = [[1, 7, 9, 4], [1, 7, 9, 12, 30, 31, 5, 5, 8], [1, 7, 20]]
TURN = [9, 30]
ITEMS = [Item(f"banner of {s}", a, p, 1) for s in SUBJECTS for a, p in [("red", 0.9), ("blue", 0.1)]]
FAST = Config(steps=30, questions=8, rollouts=16, lr=3e-2, amp="off", reflection=0)


def asked_of(lm):
    with torch.no_grad(), adapter(lm, False):
        return Asked([context + TURN for context in CONTEXTS], read(lm, CONTEXTS), [0, 1, 2])


@pytest.fixture
def digits(load, make_tokenizer):
    """A model with an adapter that likes numbers, one token a digit, and three prompts that it has read."""
    lm = replace(load("llama"), tokenizer=make_tokenizer(characters=CHARACTERS))
    numbers = lm.encode("0123456789 %")

    def like(module, args, output):
        output.logits[..., numbers] += 4

    lm.model.register_forward_hook(like)
    randomise(add_lora(lm, rank=2, alpha=4), scale=0.3)
    return lm, asked_of(lm)


def plain_policy(lm, context, said, temperature=1.0, turn=TURN):
    """log pi of each statement, (N,), by a pass for each."""
    return torch.stack([plain_logp(lm, context, turn + ids, temperature)[len(turn) :].sum() for ids in said])


def gradient_of(lm, value):
    parameters = [p for p in lm.model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])


def close(got, want):
    return (got - want).norm() < 1e-4 * want.norm() and want.norm() > 1e-4


# ---- what can be stated ---------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 5])
def test_every_number_that_can_be_written(digits, world, every):
    """All that the parser reads, of at most four characters, and with each end that a statement can have."""
    lm, _ = digits
    values, said = exact.numbers(lm, CONFIDENCE, every)
    assert values == [c / 100 for c in range(0, 101, every)]
    assert [lm.decode(ids) for ids in said] == [f" {c}%" for c in range(0, 101, every)]
    # some tokenizers, as Llama 2's, decode without the first blank
    strip = SimpleNamespace(decode=lambda ids: lm.decode(ids).removeprefix(" "), proceed=lm.proceed)
    assert exact.numbers(strip, CONFIDENCE, every) == (values, said)
    assert exact.numbers(world()[0], CONFIDENCE)[0] == [c / 100 for c in range(0, 101, 5)]  # the toy world's alone
    values, said = exact.numbers(lm, UNCERTAINTY, every)
    texts = ["".join(x) for n in range(1, 5) for x in itertools.product("0123456789.", repeat=n) if x[-1] != "."]
    stated = {text: UNCERTAINTY.read(f"Uncertainty: {text}") for text in texts}
    forms = {text: c for text, c in stated.items() if c is not None and round(100 * c) % every == 0}
    ends = [lm.encode("\n"), [lm.tokenizer.eos_token_id]]
    want = {(*lm.encode(f" {text}"), *end): pytest.approx(c) for text, c in forms.items() for end in ends}
    assert dict(zip(map(tuple, said), values, strict=True)) == want and len(said) == len(want)
    assert exact.numbers(world()[0], UNCERTAINTY) == ([], [])


@pytest.mark.parametrize("temperature, engine, every", [(1.0, "plain", 5), (1.5, "shared", 1)])
def test_the_policy_is_that_of_a_pass_for_each_percentage(digits, temperature, engine, every):
    lm, asked = digits
    (_, said), rows = exact.numbers(lm, CONFIDENCE, every), [2, 0, 1]
    lm = shared(lm) if engine == "shared" else lm
    got = exact.log_policy(lm, asked, rows, said, Config(rollout_temperature=temperature))
    want = torch.stack([plain_policy(lm, CONTEXTS[q], said, temperature) for q in rows])
    assert got.shape == (3, 1 + 100 // every)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("reflection", [0, 1])
def test_what_is_sampled_follows_the_policy(world, reflection):
    lm, prompt = world(reflection=reflection)
    asked, (group,) = roll(lm, prompt, ASKED[:1], 4000, 1.0, [3])
    values, said = exact.numbers(lm, CONFIDENCE)
    if reflection:  # after the commonest thought
        (first,), _ = Counter(tuple(r.reflection) for r in group).most_common(1)[0]
        group = [r for r in group if r.reflection == [first]]
        asked = asked.after([group[:1]])
    drawn, n = Counter(r.confidence for r in group), len(group)
    for c, p in zip(values, exact.log_policy(lm, asked, [0], said, Config())[0].exp().tolist(), strict=True):
        assert abs(drawn[c] - n * p) < 5 * (n * p * (1 - p)) ** 0.5 + 1
    assert drawn[None] > n / 40 > 5  # what is no percentage


# ---- the expected readout -------------------------------------------------------------------------


def speaks(lm, script):
    """From now on the model says each text of `script`, {text: its chance}, after whatever it was asked."""
    script = {tuple(lm.encode(text)): chance for text, chance in script.items()}

    def say(module, args, kwargs, out):
        length = out.logits.shape[1]
        for r, row in enumerate(kwargs["input_ids"].tolist()):
            for t in range(length):
                begun = tuple(row[: len(row) - length + t + 1])
                begun = begun if any(x[: len(begun)] == begun for x in script) else ()  # it reads the question
                chance = torch.full((out.logits.shape[2],), 1e-9)
                for x, p in script.items():
                    if x[: len(begun)] == begun and len(x) > len(begun):
                        chance[x[len(begun)]] += p
                out.logits[r, t] = chance.log()

    lm.model.register_forward_hook(say, with_kwargs=True)


@pytest.mark.parametrize("script, mean", [
    ({" 20%": 0.3, " 80%": 0.3, " 2018.": 0.2, " 75-76%": 0.2}, 0.5),  # the last two would make it 0.49
    ({" 20%": 0.3, " 80%": 0.1, " 2018.": 0.6}, None), ({" 75%": 0.4, " 75-76%": 0.6}, None),
    ({" 75%": 0.6, " 75.5%": 0.2, " 7": 0.2}, 0.75), ({" 0%": 0.25, " 10%": 0.25, " 100%": 0.5}, 0.525),
    ({" 101%": 0.5, " 5 %": 0.3, " 50": 0.2}, None),
    *(({text: 1.0}, None) for text in (" 150%", " 75-76%", " 5 out of 10", " 1/3", " 0.75")),
])  # fmt: skip
def test_what_is_no_whole_percentage_is_not_read_as_one(load, make_tokenizer, script, mean):
    """It has no part in the mean, and where it is likelier than all percentages, nothing is stated."""
    lm = replace(load("llama"), tokenizer=make_tokenizer(characters=CHARACTERS))
    speaks(lm, script)
    prompt = SimpleNamespace(statement=CONFIDENCE)
    got = exact.expect(lm, prompt, asked_of(lm), Config())
    assert got == [None if mean is None else pytest.approx(mean, abs=1e-4)] * 3


def thoughtful(group):
    """So many reflections of each of the three questions -> rollouts, the turns with them, whose they are"""
    batch = [[Rollout([5 + q] + [7 + g] * g, [33], [], None) for g in range(group)] for q in range(3)]
    turns = [TURN + r.reflection + r.forced for group in batch for r in group] or [TURN] * 3
    return batch, turns, [q for q in range(3) for _ in range(max(group, 1))]


@pytest.mark.parametrize("form, group", [(CONFIDENCE, 0), (CONFIDENCE, 2), (UNCERTAINTY, 1)])
def test_the_expected_confidence(digits, monkeypatch, form, group):
    """At temperature 1, whatever that of training is, and after each reflection; by a pass for each number."""
    lm, asked = digits
    batch, turns, whose = thoughtful(group)
    after, some, (values, said) = asked.after(batch) if group else asked, [0, -1], exact.numbers(lm, form)
    assert after.prompts == [CONTEXTS[q] + turn for q, turn in zip(whose, turns, strict=True)]
    chance = torch.stack([plain_policy(lm, CONTEXTS[whose[i]], said, 1.0, turns[i]).exp() for i in some]).detach()
    seen, real = [], exact.expected_confidence

    def sure(chance, values):  # this model states a number too seldom
        seen.append(chance[some])
        return real(chance, values)[0], torch.ones(len(whose))

    monkeypatch.setattr(exact, "expected_confidence", sure)
    with torch.no_grad():
        got = exact.expect(lm, SimpleNamespace(statement=form), after, Config(rollout_temperature=1.5))
    torch.testing.assert_close(seen[0], chance, rtol=1e-3, atol=0)
    means = chance @ torch.tensor(values) / chance.sum(1)
    assert [got[i] for i in some] == pytest.approx(means.tolist(), abs=1e-4) and len(got) == len(whose)
    torch.testing.assert_close(real(chance, values), (means, chance.sum(1)))


def test_p_true(digits, world):
    """With the adapter as it is."""
    lm, asked = digits
    with torch.no_grad(), adapter(lm, False):
        got = baselines.p_true(lm, asked, Config(rollout_temperature=1.5))
        for context, p in zip(CONTEXTS, got, strict=True):
            words = [lm.proceed(text) for text in (" True", " False")]
            assert p == pytest.approx(plain_policy(lm, context, words).softmax(0)[0].item(), abs=1e-5)
    lm, prompt = world()  # cannot write the words, and says a percentage too seldom
    found = use.state(lm, prompt, ASKED, ["expected"], Config()) | use.state(lm, prompt, ASKED, ["p-true"], Config())
    assert {way: x[:2] for way, x in found.items()} == {"expected": ([None] * 4, 0), "p-true": ([None] * 4, 0)}


# ---- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine, limit, kl, group", [
    ("shared", 1, 0.3, 0), ("shared", 10**9, 0.0, 0), ("plain", 10**9, 0.3, 0), ("shared", 10**9, 0.3, 3),
    ("plain", 1, 0.3, 2), ("plain", 10**9, 0.0, 2),
])  # fmt: skip
def test_the_exact_gradient_is_that_of_the_expected_reward(digits, monkeypatch, engine, limit, kl, group):
    """By a plain pass for each question, reflection and percentage; in one part, and a question at a time."""
    lm, asked = digits
    batch, turns, whose = thoughtful(group)
    lm = shared(lm) if engine == "shared" else lm
    monkeypatch.setattr(language, "LOGITS", limit)
    (_, said), size = exact.numbers(lm, CONFIDENCE, 10), len(turns)
    rewards = torch.rand(3, len(said), generator=torch.Generator().manual_seed(0))

    def policies():
        """log pi of numbers, (R, N), and of the tokens of each thought"""
        rows = list(zip([CONTEXTS[q] for q in whose], turns, strict=True))
        thoughts = [plain_logp(lm, context, turn[:-1], 1.0)[len(TURN) :] for context, turn in rows] if group else []
        return torch.stack([plain_policy(lm, context, said, 1.0, turn) for context, turn in rows]), thoughts

    logp, thoughts = policies()
    with torch.no_grad(), adapter(lm, False):
        base, others = policies()
    expected = (logp.exp() * rewards[whose]).sum(1)
    value = expected.sum()
    for i, thought in enumerate(thoughts):
        rest = [expected[j].item() for j in range(size) if whose[j] == whose[i] and j != i]
        value = value + (expected[i].item() - np.mean(rest)) * thought.sum()
    rest, base_rest = (1 - x.exp().sum(-1) for x in (logp, base))
    terms = (logp.exp() * (logp - base)).sum(-1) + rest * (rest / base_rest).log()
    terms = terms.sum() + sum(((a - b) ** 2 / 2).sum() for a, b in zip(thoughts, others, strict=True))
    want = gradient_of(lm, (kl * terms - value) / size)

    config = Config(amp="off", kl=kl)
    optimizer = Recorder(lm, config)
    stats, got = exact.update(lm, asked, batch if group else None, rewards, said, config, optimizer)
    assert close(torch.cat([g.flatten() for g in optimizer.gradients]), want)
    torch.testing.assert_close(got, logp.detach(), atol=1e-4, rtol=0)
    assert stats["kl"] == pytest.approx(terms.item() / size if kl else 0, rel=1e-3)
    assert group or stats["loss"] == pytest.approx((kl * terms - value).item() / size, abs=1e-5)


def test_the_exact_gradient_is_the_mean_of_the_sampled_one_and_has_less_variance(monkeypatch):
    """All pairs of rollouts of a model of four tokens, with their chances: a reflection and a number of one token each.
    Both gradients are that of the expected reward, and given the reflections the exact one is the other's mean."""
    config = transformers.GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    lm = language.LM(transformers.GPT2LMHeadModel(config).eval().requires_grad_(False), None, "four tokens")
    randomise(lm.model.parameters())
    randomise(add_lora(lm, rank=2, alpha=4), scale=0.3)
    with torch.no_grad(), adapter(lm, False):
        asked = Asked([[0, 2, 1]], read(lm, [[0, 2]]), [0])
    earned, tokens = [0.9, 0.1, 0.4, 0.0], range(4)  # the last token is no number
    logp = torch.stack([plain_logp(lm, [0, 2], [1, z, 3, c], 1.0)[1:] for z in tokens for c in tokens])  # (16, 3)
    chance = logp[:, [0, 2]].sum(1).exp()
    want = gradient_of(lm, (chance * torch.tensor(earned * 4)).sum())

    def by_numbers(i, j):
        advantages = torch.tensor(group_advantages([[earned[i % 4], earned[j % 4]]])[0])
        two, actions = logp[[i, j]], torch.tensor([[1, 0, 1]] * 2)
        return gradient_of(lm, -policy_loss(two, two.detach(), advantages, actions)[0])

    def exactly(*thoughts):
        config = Config(amp="off", lr=0.0)
        optimizer, said = Recorder(lm, config), [[0], [1], [2]]
        monkeypatch.setattr(exact, "rollout", lambda *args: [[Rollout([z], [3], [], None) for z in thoughts]])
        prompt = SimpleNamespace(reflection=1)
        exact.exact_step(lm, prompt, asked, ITEMS[:1], [0], optimizer, earned[:3], said, lambda c, item: c, config)
        return -torch.cat([g.flatten() for g in optimizer.gradients])

    def moments(chance, gradients):
        weight = torch.outer(chance, chance).flatten()[:, None]
        mean = (weight * gradients).sum(0)
        return mean, (weight * (gradients - mean) ** 2).sum().item()

    sampled_ones = torch.stack([by_numbers(i, j) for i in range(16) for j in range(16)])
    exact_ones = torch.stack([exactly(y, z) for y in tokens for z in tokens])
    both = chance.detach().view(4, 4)  # of a reflection and a number
    thoughts, given = both.sum(1), both / both.sum(1, keepdim=True)
    means = torch.einsum("yc,zd,yczdp->yzp", given, given, sampled_ones.view(4, 4, 4, 4, -1)).flatten(0, 1)
    torch.testing.assert_close(exact_ones, means, atol=1e-5, rtol=1e-3)
    (mean, noise), (plain_mean, plain_noise) = moments(thoughts, exact_ones), moments(both.flatten(), sampled_ones)
    assert close(mean, want) and close(plain_mean, want) and noise < 0.5 * plain_noise and both.sum() > 0.9999


def test_the_divergence_is_that_of_torch():
    p, q = torch.rand(2, 4, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    want = torch.distributions.kl_divergence(*(torch.distributions.Categorical(probs=x) for x in (p, q)))
    torch.testing.assert_close(exact.divergence(p[:, :-1].log(), q[:, :-1].log()), want)


def calibrated(confidence, item):
    return calibration_reward(confidence, item.target)


@pytest.mark.parametrize("reflection", [0, 2])
def test_what_an_exact_step_logs(world, reflection):
    config, (lm, prompt), log = replace(FAST, gradient="exact", steps=1, lr=1e-9), world(reflection=reflection), []
    add_lora(lm, rank=4, alpha=8)
    rl.train(lm, prompt, ITEMS, config, calibrated, log.append, instead=exact.instead(lm, prompt, config, calibrated))
    values, said = exact.numbers(lm, CONFIDENCE)
    items = [ITEMS[i] for i in batch_of(0, 8, 8, seed_of(config.seed, "train"))]
    asked = rl.second_turns(lm, prompt, [(x.question, x.answer) for x in items], config)
    targets = [x.target for x in items]
    seeds = [seed_of(config.seed, "rollout", 0, i) for i in range(8)]
    batch = rl.rollout(lm, prompt, asked, 16, 1.0, seeds) if reflection else []
    after = asked.after(batch) if reflection else asked
    chance = exact.log_policy(lm, after, range(len(after.prompts)), said, config).detach().double().exp().numpy()
    chance = chance.reshape(8, -1, 21).mean(1)
    rewards = np.array([[calibration_reward(c, p) for c in values] for p in targets])
    mean = chance @ np.array(values) / chance.sum(1)
    assert {name: log[0][name] for name in log[0] if name not in ("loss", "grad_norm", "skipped")} == pytest.approx({
        "step": 0, "tokens": sampled(batch), "kl": 0, "no_signal": 0, "reward": (chance * rewards).sum(1).mean(),
        "malformed": 1 - chance.sum(1).mean(), "mean_confidence": mean.mean(),
        "correlation": np.corrcoef(mean, targets)[0, 1],
        "distinct": (chance.mean(0) >= 0.01 * chance.mean(0).max()).sum(),
    }, rel=1e-3)  # fmt: skip


def test_a_tokenizer_without_numbers_has_no_exact_gradient(world):
    lm, prompt = world(statement=UNCERTAINTY)
    with pytest.raises(ValueError, match="a tokenizer that can write the numbers"):
        exact.instead(lm, prompt, replace(FAST, gradient="exact"), calibrated)


@pytest.mark.parametrize("form, texts, reflection", [
    (CONFIDENCE, [" 75%", " 10%", " 100%"], 0), (CONFIDENCE, [" 75%", " 10%", " 100%"], 3),
    (UNCERTAINTY, [" 0.25\n", " 0.90\n", " 0.00\n"], 3),
])  # fmt: skip
def test_warm_up(digits, form, texts, reflection):
    """To the nearest multiple of five. The base model reflects, the adapter reads it, and the loss per token is that of
    the number alone; by plain passes."""
    (lm, asked), config, seeds = digits, Config(amp="off", rollout_temperature=1.2, micro_batch=2), [1, 2, 3]
    prompt = SimpleNamespace(reflection=reflection, statement=form, forced=lambda last, label: [33])
    with adapter(lm, False):
        batch = rl.rollout(lm, prompt, asked, 1, 1.2, seeds)
    assert batch != rl.rollout(lm, prompt, asked, 1, 1.2, seeds)
    logp = []
    for context, (r,), ids in zip(CONTEXTS, batch, map(lm.encode, texts), strict=True):
        logp.append(plain_logp(lm, context, TURN + r.reflection + r.forced + ids, 1.0)[-len(ids) :])
    items, optimizer, parts = [Item("", "", p, 1) for p in (0.73, 0.08, 1.0)], Recorder(lm, config), []
    backward = optimizer.backward
    optimizer.backward = lambda loss: parts.append(loss.item()) or backward(loss)
    want = gradient_of(lm, loss := -torch.cat(logp).mean())
    found = exact.supervised_step(lm, prompt, asked, items, seeds, optimizer, config)
    assert len(parts) == 2  # of two questions, and of one
    assert (found.pop("tokens") > 0) == (prompt.reflection > 0)
    assert close(torch.cat([g.flatten() for g in optimizer.gradients]), want)
    assert found == pytest.approx({"supervised_loss": loss.item(), "grad_norm": want.norm().item()}, rel=1e-3)


@pytest.mark.parametrize("gradient", ["sampled", "exact"])
def test_everything_is_read_in_mixed_precision(world, gradient):
    """The questions, the turn, rollouts, scores and the reference, in supervised steps and in others."""
    lm, prompt = world(reflection=2)
    add_lora(lm, 2)
    seen, config = [], Config(amp="fp16", warmup=1, steps=1, questions=2, rollouts=2, kl=0.1, gradient=gradient)
    items = [rl.Item(q, a, 0.5, 1) for q, a in ASKED[:2]]
    lm.model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    instead = exact.instead(lm, prompt, config, calibrated)
    rl.train(lm, prompt, items, config, calibrated, lambda record: None, instead=instead)
    assert len(seen) > 5 and all(seen)

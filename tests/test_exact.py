"""beyond/exact.py against a pass for each percentage, enumeration, torch's divergence, and what is sampled."""

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ASKED, SUBJECTS, Config, Recorder, plain_logp, randomise, roll, shared

import lm as language
import rl
import use
from beyond import baselines, exact
from lm import read
from lora import adapter, add_lora
from report.build import troubles
from rl import Asked, Item, calibration_reward

CHARACTERS = "0123456789 %.:\n-" + "".join(sorted(set("TrueFalseConfidence")))
CONTEXTS = [[1, 7, 9, 4], [1, 7, 9, 12, 30, 31, 5, 5, 8], [1, 7, 20]]
TURN = [9, 30]
ITEMS = [Item(f"banner of {s}", a, p, 1) for s in SUBJECTS for a, p in [("red", 0.9), ("blue", 0.1)]]
FAST = Config(steps=30, questions=8, rollouts=16, lr=3e-2, amp="off")


def asked_of(lm):
    with torch.no_grad(), adapter(lm, False):
        return Asked([context + TURN for context in CONTEXTS], read(lm, CONTEXTS))


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


def plain_policy(lm, context, said, temperature=1.0):
    """log pi of each percentage, (C,), by a pass for each."""
    return torch.stack([plain_logp(lm, context, TURN + ids, temperature)[len(TURN) :].sum() for ids in said.values()])


# ---- what can be stated ---------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 5])
def test_every_percentage_that_can_be_written(digits, world, every):
    lm, _ = digits
    said = exact.percentages(lm, every)
    assert list(said) == list(range(0, 101, every))
    assert all(lm.decode(ids) == f" {c}%" for c, ids in said.items())
    # some tokenizers, as Llama 2's, decode without the first blank
    strip = SimpleNamespace(decode=lambda ids: lm.decode(ids).removeprefix(" "), proceed=lm.proceed)
    assert exact.percentages(strip, every) == said
    assert list(exact.percentages(world()[0], every)) == list(range(0, 101, 5))  # the toy world has no others


@pytest.mark.parametrize("temperature, engine, every", [(1.0, "plain", 5), (1.5, "shared", 1)])
def test_the_policy_is_that_of_a_pass_for_each_percentage(digits, temperature, engine, every):
    lm, asked = digits
    said, rows = exact.percentages(lm, every), [2, 0, 1]
    lm = shared(lm) if engine == "shared" else lm
    got = exact.log_policy(lm, asked, rows, said, Config(rollout_temperature=temperature))
    want = torch.stack([plain_policy(lm, CONTEXTS[q], said, temperature) for q in rows])
    assert got.shape == (3, 1 + 100 // every)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_what_is_sampled_follows_the_policy(world):
    lm, prompt = world()
    asked, drawn = roll(lm, prompt, ASKED[:1], 4000, 1.0, [3])
    said, drawn = exact.percentages(lm), Counter(drawn.confidence[0])
    for c, p in zip(said, exact.log_policy(lm, asked, [0], said, Config())[0].exp().tolist(), strict=True):
        assert abs(drawn[c / 100] - 4000 * p) < 5 * (4000 * p * (1 - p)) ** 0.5 + 1
    assert drawn[None] > 100  # what is no percentage


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
])  # fmt: skip
def test_what_is_no_whole_percentage_is_not_read_as_one(load, make_tokenizer, script, mean):
    """It has no part in the mean, and where it is likelier than all percentages, nothing is stated."""
    lm = replace(load("llama"), tokenizer=make_tokenizer(characters=CHARACTERS))
    speaks(lm, script)
    assert exact.expect(lm, asked_of(lm), Config()) == [None if mean is None else pytest.approx(mean, abs=1e-4)] * 3


def test_the_expected_confidence(digits, world):
    """At temperature 1, whatever that of training is; the adapter is on, and off where p-true is asked for."""
    lm, asked = digits
    said, percent = exact.percentages(lm), torch.arange(101.0)
    chance = torch.stack([plain_policy(lm, context, said).exp() for context in CONTEXTS]).detach()
    means, mass = exact.expected_confidence(chance, said)
    torch.testing.assert_close(means, (chance @ percent) / chance.sum(1) / 100)
    torch.testing.assert_close(mass, chance.sum(1))
    with torch.no_grad():
        got = exact.expect(lm, asked, Config(rollout_temperature=1.5))
    assert got == [None if p < 0.5 else pytest.approx(m, abs=1e-4) for m, p in zip(means, mass, strict=True)]
    with torch.no_grad(), adapter(lm, False):
        got = baselines.p_true(lm, asked, Config(rollout_temperature=1.5))
        for context, p in zip(CONTEXTS, got, strict=True):
            words = {text: lm.proceed(text) for text in (" True", " False")}
            assert p == pytest.approx(plain_policy(lm, context, words).softmax(0)[0].item(), abs=1e-5)
    lm, prompt = world()  # cannot write the words, and says a percentage too seldom
    found = use.state(lm, prompt, ASKED, ["expected"], Config()) | use.state(lm, prompt, ASKED, ["p-true"], Config())
    assert {way: x[:2] for way, x in found.items()} == {"expected": ([None] * 4, 0), "p-true": ([None] * 4, 0)}


# ---- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine, limit, kl", [("shared", 1, 0.3), ("shared", 10**9, 0.0), ("plain", 10**9, 0.3)])
def test_the_exact_gradient_is_that_of_the_expected_reward(digits, monkeypatch, engine, limit, kl):
    """By a plain pass for each question and percentage; in one part, and a question at a time."""
    lm, asked = digits
    lm = shared(lm) if engine == "shared" else lm
    monkeypatch.setattr(language, "LOGITS", limit)
    said = exact.percentages(lm, 10)
    rewards = torch.rand(3, len(said), generator=torch.Generator().manual_seed(0))
    parameters = [p for p in lm.model.parameters() if p.requires_grad]
    logp = torch.stack([plain_policy(lm, context, said) for context in CONTEXTS])
    expected = (logp.exp() * rewards).sum() / 3
    with torch.no_grad(), adapter(lm, False):
        base = torch.stack([plain_policy(lm, context, said) for context in CONTEXTS])
    rest, base_rest = (1 - x.exp().sum(-1) for x in (logp, base))
    terms = (logp.exp() * (logp - base)).sum(-1) + rest * (rest / base_rest).log()
    want = torch.cat([g.flatten() for g in torch.autograd.grad(kl * terms.sum() / 3 - expected, parameters)])

    config = Config(amp="off", kl=kl)
    optimizer = Recorder(lm, config)
    stats, got = exact.update(lm, asked, rewards, said, config, optimizer)
    gradient = torch.cat([g.flatten() for g in optimizer.gradients])
    assert (gradient - want).norm() < 1e-4 * want.norm() and want.norm() > 1e-4
    torch.testing.assert_close(got, logp.detach(), atol=1e-4, rtol=0)
    assert stats["loss"] == pytest.approx(kl * terms.mean().item() - expected.item(), abs=1e-5)
    assert stats["kl"] == pytest.approx(terms.mean().item() if kl else 0, abs=1e-5)


def test_the_divergence_is_that_of_torch():
    p, q = torch.rand(2, 4, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    want = torch.distributions.kl_divergence(*(torch.distributions.Categorical(probs=x) for x in (p, q)))
    torch.testing.assert_close(exact.divergence(p[:, :-1].log(), q[:, :-1].log()), want)


def calibrated(confidence, item):
    return calibration_reward(confidence, item.target)


def learn(world, config, items=ITEMS, layers=1):
    """-> the trained model, its prompt, and what was logged"""
    lm, prompt = world(layers)
    add_lora(lm, rank=4, alpha=8)
    log = []
    rl.train(lm, prompt, items, config, calibrated, log.append, instead=exact.instead(lm, config, calibrated))
    return lm, prompt, log


def test_what_an_exact_step_logs(world):
    lm, prompt, log = learn(world, replace(FAST, gradient="exact", steps=1, lr=1e-9))
    said, targets = exact.percentages(lm), [x.target for x in ITEMS]
    asked = rl.ask(lm, prompt, [(x.question, x.answer) for x in ITEMS], FAST)
    chance = exact.log_policy(lm, asked, range(8), said, FAST).detach().double().exp().numpy()
    rewards = np.array([[calibration_reward(c / 100, p) for c in said] for p in targets])
    mean = chance @ np.array(list(said)) / 100 / chance.sum(1)
    assert {name: log[0][name] for name in log[0] if name not in ("loss", "grad_norm", "skipped")} == pytest.approx({
        "step": 0, "tokens": 0, "kl": 0, "no_signal": 0, "reward": (chance * rewards).sum(1).mean(),
        "malformed": 1 - chance.sum(1).mean(), "mean_confidence": mean.mean(),
        "correlation": np.corrcoef(mean, targets)[0, 1],
        "distinct": (chance.mean(0) >= 0.01 * chance.mean(0).max()).sum(),
    }, rel=1e-3)  # fmt: skip


def test_the_exact_gradient_learns_to_tell_questions_apart(world):
    """With a divergence term: without, it soon says one number, and has no gradient left."""
    _, _, log = learn(world, replace(FAST, steps=60, lr=1e-2, kl=0.05, gradient="exact"), layers=2)
    assert log[-1]["correlation"] > 0.9 and log[-1]["reward"] > 0.75 and log[-1]["malformed"] < 0.1
    assert troubles(log) == []


def test_a_tokenizer_without_percentages_has_no_exact_gradient(load):
    with pytest.raises(ValueError, match="percentages"):
        exact.instead(load("llama"), replace(FAST, gradient="exact"), calibrated)


def test_warm_up_raises_the_target(world):
    """To the nearest multiple of five; what is logged is the loss per token."""
    told = [("banner of Zorva", "red", 0.73), ("banner of Zorva", "blue", 0.08), ("river of Kelo", "blue", 1.0)]
    items, texts = [Item(*x, 1) for x in told], [" 75%", " 10%", " 100%"]

    @torch.no_grad()
    def chances(lm, prompt):
        rows = [(*prompt.confidence(x.question, x.answer), text) for x, text in zip(items, texts, strict=True)]
        return torch.tensor([plain_logp(lm, context, turn + lm.encode(t), 1.0)[-1] for context, turn, t in rows])

    before = chances(*world())
    lm, prompt, log = learn(world, replace(FAST, steps=0, warmup=40), items)
    assert (before < math.log(0.1)).all() and (chances(lm, prompt) > math.log(0.5)).all()
    assert [record["step"] for record in log] == list(range(-40, 0))
    assert all(set(record) == {"step", "supervised_loss", "grad_norm", "skipped"} for record in log)
    assert log[0]["supervised_loss"] == pytest.approx(-before.mean().item(), abs=1e-4) and log[0]["supervised_loss"] > 2
    assert log[-1]["supervised_loss"] < 0.5


def test_everything_is_read_in_mixed_precision(world):
    """The questions, the turn, rollouts, scores and the reference, in supervised steps and in others."""
    lm, prompt = world()
    add_lora(lm, 2)
    seen, config = [], Config(amp="fp16", warmup=1, steps=1, questions=2, rollouts=2, kl=0.1)
    items = [rl.Item(q, a, 0.5, 1) for q, a in ASKED[:2]]
    lm.model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    instead = exact.instead(lm, config, None)
    rl.train(lm, prompt, items, config, lambda c, x: c or 0.0, lambda record: None, instead=instead)
    assert len(seen) > 5 and all(seen)

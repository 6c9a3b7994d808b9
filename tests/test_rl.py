"""rl.py against definitions by loop, exact enumeration of a tiny policy, and a plain reimplementation of a step."""

import contextlib
import itertools
import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from helpers import SUBJECTS, Config, Recorder, gradient_of, plain_logp, randomise

import rl
import statements
from amp import Optimizer, amp_dtype
from lm import LM, seed_of
from lora import adapter, add_lora
from prefix import Read
from report import troubles
from rl import (
    Item,
    batch_of,
    calibration_reward,
    group_advantages,
    kl_to_reference,
    policy_loss,
    train,
    update,
)
from statements import Asked, Rollouts

# ---- advantages ----------------------------------------------------------------------------------

REWARDS = np.random.default_rng(0).uniform(0, 1, (5, 7))


def advantage_by_loop(row, i, kind):
    others = [r for j, r in enumerate(row) if j != i]
    if kind == "loo":
        return row[i] - sum(others) / len(others)
    mean = sum(row) / len(row)
    std = math.sqrt(sum((r - mean) ** 2 for r in row) / len(row))
    return row[i] - mean if kind == "center" else (row[i] - mean) / (std + 1e-6)


@pytest.mark.parametrize("kind", ["loo", "center", "zscore"])
def test_advantages_are_their_definition(kind):
    got = group_advantages(REWARDS, kind)
    want = [[advantage_by_loop(row, i, kind) for i in range(7)] for row in REWARDS.tolist()]
    np.testing.assert_allclose(got, want, atol=1e-12)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got.sum(1), 0, atol=1e-12)
    np.testing.assert_allclose(group_advantages(REWARDS + 3, kind), got, atol=1e-9)


def test_single_precision_rewards_are_averaged_in_double_precision():
    rewards = (1000 + REWARDS).astype(np.float32)
    for kind in rl.KINDS:
        got = group_advantages(rewards, kind)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, group_advantages(rewards.astype(np.float64) - 1000, kind), atol=1e-10)


def test_loo_is_the_default():
    assert group_advantages([[1, 0, 0]]).tolist() == [[1, -0.5, -0.5]]


def test_zscore_ignores_the_scale_and_the_others_do_not():
    for kind, factor in [("loo", 10), ("center", 10), ("zscore", 1)]:
        np.testing.assert_allclose(
            group_advantages(10 * REWARDS, kind), factor * group_advantages(REWARDS, kind), rtol=1e-4
        )


@pytest.mark.parametrize("kind", ["loo", "center", "zscore"])
@pytest.mark.parametrize("value", [0.1 + 0.2, 1 / 3, 0.95, 1e-8, 0.0, 1e6 / 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 3, 7, 16])
def test_equal_rewards_are_no_signal(kind, value, dtype, size):
    """The mean of equal numbers is not always that number."""
    rewards = np.full((2, size), value, dtype)
    rewards[1] = REWARDS[0, 0]
    assert (group_advantages(rewards, kind) == 0).all()


def test_a_constant_group_beside_another_one():
    for kind in rl.KINDS:
        got = group_advantages([[0.1] * 3, [0.1, 0.2, 0.3]], kind)
        assert (got[0] == 0).all() and (got[1, [0, 2]] != 0).all()


def test_rounding_is_no_signal_for_zscore():
    """One reward of sixteen differs in its last bit."""
    rewards = np.full((1, 16), 0.9)
    rewards[0, 3] = np.nextafter(0.9, 1)
    assert np.abs(group_advantages(rewards, "zscore")).max() < 1e-6


@pytest.mark.parametrize("kind", ["loo", "center", "zscore"])
def test_rewards_are_not_changed(kind):
    rewards = REWARDS.copy()
    rewards[2] = 0.3
    before = rewards.copy()
    group_advantages(rewards, kind)
    assert np.array_equal(rewards, before)


def test_advantages_refuse():
    with pytest.raises(ValueError, match="'std': choose one of loo, center, zscore"):
        group_advantages(REWARDS, "std")
    for bad in ([[0.1, math.nan]], [[0.1, math.inf]], [0.1, 0.2], [[[0.1]]], [[]], np.zeros((0, 4))):
        with pytest.raises(ValueError, match="finite, of shape"):
            group_advantages(bad)


# ---- loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ratio, advantage, loss, gradient, outside",
    [  # the gradient is that of the loss with respect to logp
        (1.5, 1.0, -1.2, 0.0, 1),
        (0.5, 1.0, -0.5, -0.5, 1),
        (1.5, -1.0, 1.5, 1.5, 1),
        (0.5, -1.0, 0.8, 0.0, 1),
        (1.1, 2.0, -2.2, -2.2, 0),
        (0.9, -2.0, 1.8, 1.8, 0),
        (1.0, 3.0, -3.0, -3.0, 0),
        (1.5, 0.0, 0.0, 0.0, 1),
    ],
)
def test_the_quadrants_of_the_clip(ratio, advantage, loss, gradient, outside):
    logp = torch.tensor([[-1.0 + math.log(ratio)]], requires_grad=True)
    got, stats = policy_loss(logp, torch.tensor([[-1.0]]), torch.tensor([advantage]), torch.ones(1, 1))
    got.backward()
    assert got.item() == pytest.approx(loss, abs=1e-6)
    assert logp.grad.item() == pytest.approx(gradient, abs=1e-6)
    assert stats["clip_fraction"] == outside
    assert stats["approx_kl"] == pytest.approx(-math.log(ratio), abs=1e-6)


def test_the_width_of_the_clip():
    logp = torch.tensor([[math.log(1.5)], [math.log(1.2)]])
    loss, stats = policy_loss(logp, torch.zeros(2, 1), torch.ones(2), torch.ones(2, 1), clip=0.4)
    assert loss.item() == pytest.approx(-(1.4 + 1.2) / 2) and stats["clip_fraction"] == 0.5


def random_step(rows=4, length=5):
    generator = torch.Generator().manual_seed(0)
    logp = -torch.rand(rows, length, generator=generator) * 2
    old = logp + 0.3 * torch.randn(rows, length, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]])[:rows, :length]
    return logp.requires_grad_(), old, torch.randn(rows, generator=generator).double(), mask


def test_loss_and_stats_equal_a_plain_loop():
    logp, old, advantages, mask = random_step()
    loss, stats = policy_loss(logp, old, advantages, mask)
    total, outside, difference, tokens = 0.0, 0, 0.0, 0
    for b, t in itertools.product(range(4), range(5)):
        if mask[b, t]:
            ratio, a = (logp[b, t] - old[b, t]).exp().item(), advantages[b].item()
            total += min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
            outside += not 0.8 <= ratio <= 1.2
            difference += (old[b, t] - logp[b, t]).item()
            tokens += 1
    assert loss.item() == pytest.approx(-total / 4, abs=1e-6)
    assert stats == pytest.approx({"clip_fraction": outside / tokens, "approx_kl": difference / tokens}, abs=1e-6)
    assert 0 < outside < tokens


def test_masked_tokens_count_for_nothing():
    logp, old, advantages, mask = random_step()
    loss, stats = policy_loss(logp, old, advantages, mask)
    loss.backward()
    assert (logp.grad[mask == 0] == 0).all() and (logp.grad[:, 0] != 0).any()
    other = torch.where(mask == 1, logp, -50.0).detach()
    assert policy_loss(other, old, advantages, mask) == (loss, stats)


def test_the_normaliser_is_a_constant():
    logp, old, advantages, mask = random_step()
    whole, _ = policy_loss(logp, old, advantages, mask)
    parts = [policy_loss(logp[i], old[i], advantages[i], mask[i], normaliser=4)[0] for i in ([0], [1, 2, 3])]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(policy_loss(logp, old, advantages, mask, normaliser=8)[0], whole / 2)


def test_a_ratio_of_one_has_the_gradient_of_reinforce():
    logp, _, advantages, mask = random_step()
    loss, stats = policy_loss(logp, logp.detach(), advantages, mask)
    loss.backward()
    torch.testing.assert_close(logp.grad, -(advantages.float()[:, None] * mask) / 4)
    assert stats == {"clip_fraction": 0, "approx_kl": 0}


def test_loss_without_any_action():
    logp, old, advantages, mask = random_step()
    loss, stats = policy_loss(logp, old, advantages, mask * 0)
    assert loss == 0 and stats == {"clip_fraction": 0, "approx_kl": 0}


# ---- the gradient, by enumeration of all nine completions of two tokens --------------------------

PAIRS = list(itertools.product(range(3), repeat=2))
PAIR_REWARDS = torch.tensor([0.9, 0.1, 0.35, 0.6, 0.0, 0.95, 0.2, 0.7, 0.5], dtype=torch.float64)


def table(seed=0):
    """Logits of the first token, and of the second one given the first: (1 + 3, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()


def pair_logp(policy):  # (9, 2)
    logp = policy.log_softmax(-1)
    return torch.stack([torch.stack([logp[0, a], logp[1 + a, b]]) for a, b in PAIRS])


def grad(value, policy):
    return torch.autograd.grad(value, policy)[0]


def exact_gradient(policy):
    return grad((pair_logp(policy).sum(1).exp() * PAIR_REWARDS).sum(), policy)


def test_the_expected_gradient_is_that_of_the_expected_reward():
    policy = table()
    logp = pair_logp(policy)
    chance = logp.detach().sum(1).exp()
    total = torch.zeros_like(policy)
    for i in range(9):
        loss, _ = policy_loss(logp[[i]], logp[[i]].detach(), PAIR_REWARDS[[i]], torch.ones(1, 2))
        total += chance[i] * torch.autograd.grad(loss, policy, retain_graph=True)[0]
    torch.testing.assert_close(total, -exact_gradient(policy))


def expected_group_gradient(kind):
    """Over all 81 groups of two rollouts, weighted by their probabilities."""
    policy = table()
    logp = pair_logp(policy)
    chance, total = logp.detach().sum(1).exp(), torch.zeros_like(policy)
    for i, j in itertools.product(range(9), repeat=2):
        advantages = torch.tensor(group_advantages([PAIR_REWARDS[[i, j]].tolist()], kind)[0])
        loss, _ = policy_loss(logp[[i, j]], logp[[i, j]].detach(), advantages, torch.ones(2, 2))
        total += chance[i] * chance[j] * torch.autograd.grad(loss, policy, retain_graph=True)[0]
    return -total, exact_gradient(policy)


def test_leave_one_out_is_unbiased():
    got, exact = expected_group_gradient("loo")
    torch.testing.assert_close(got, exact)


def test_center_shrinks_the_gradient_by_a_known_factor():
    got, exact = expected_group_gradient("center")
    torch.testing.assert_close(got, exact / 2)  # (G - 1) / G


def test_zscore_is_biased():
    """Not only in length: it points elsewhere."""
    got, exact = expected_group_gradient("zscore")
    assert torch.cosine_similarity(got.flatten(), exact.flatten(), dim=0) < 0.999


def test_the_divergence_has_the_gradient_of_kl():
    """k2 of each token: the gradient of KL(policy || reference) of the next token, at the states that are visited."""
    policy, reference = table(), table(seed=1).detach()
    logp, ref = pair_logp(policy), pair_logp(reference)
    chance = logp.detach().sum(1).exp()
    got = torch.zeros_like(policy)
    for i in range(9):
        divergence = kl_to_reference(logp[[i]], ref[[i]], torch.ones(1, 2))
        got += chance[i] * torch.autograd.grad(divergence, policy, retain_graph=True)[0]
    p, q = policy.log_softmax(-1), reference.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)  # (4,), one for each state
    visits = torch.cat([torch.ones(1), p[0].exp()]).detach()
    reverse = (q.exp() * (q - p)).sum(-1)  # what k3 would follow
    reverse = torch.autograd.grad((visits * reverse).sum(), policy, retain_graph=True)[0]
    torch.testing.assert_close(got, grad((visits * kl).sum(), policy))
    assert (got - reverse).norm() > 0.1 * got.norm()


def test_the_divergence_ignores_masked_tokens():
    logp, ref = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]]), torch.tensor([[-2.0, 9.0], [-1.0, -4.0]])
    got = kl_to_reference(logp, ref, torch.tensor([[1, 0], [1, 1]]))
    assert got.item() == pytest.approx((1 + 4 + 9) / 2)


@pytest.fixture
def three_tokens():
    """A GPT-2 with a vocabulary of three and an adapter that is not zero."""
    config = transformers.GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    lm = LM(transformers.GPT2LMHeadModel(config).eval().requires_grad_(False), None, "three tokens")
    randomise(lm.model.parameters())
    randomise(add_lora(lm, rank=2, alpha=4), seed=2)
    return lm


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_update_follows_the_expected_reward(three_tokens, temperature):
    """All nine completions of a prompt as one group, each with its probability times its reward as advantage."""
    lm, prompt, turn = three_tokens, [0, 2, 1], [1]
    logp = [plain_logp(lm, prompt, [*turn, *pair], temperature)[1:] for pair in PAIRS]
    chance = torch.stack(logp).sum(1).exp()  # (9,)
    assert chance.sum().item() == pytest.approx(1)
    parameters = [p for p in lm.model.parameters() if p.requires_grad]
    exact = torch.autograd.grad((chance * PAIR_REWARDS).sum(), parameters)
    want = -torch.cat([g.flatten() for g in exact])

    batch = rollouts(lm, [prompt], [[[*turn, *pair] for pair in PAIRS]], [[[0, 1, 1]] * 9])
    advantages = (9 * chance.detach() * PAIR_REWARDS).numpy()[None]
    got, _ = gradient_of(lm, batch, advantages, Config(rollout_temperature=temperature, amp="off"))
    assert (got - want).norm() < 1e-4 * want.norm() and want.norm() > 1e-3


# ---- one step, against a plain reimplementation --------------------------------------------------

# ragged in every way, with forced tokens, and with completions that occur twice
PROMPTS = [[1, 7, 9, 4], [1, 7, 9, 12, 30, 31, 5, 5, 8], [1, 7, 20]]
COMPLETIONS = [
    [[5, 6, 2], [5], [5, 6, 2], [0, 0, 2, 40, 41, 42]],
    [[9, 2], [9], [9, 3], [11, 2]],
    [[2], [33, 0, 0], [33, 0, 0], [33, 0, 1, 2]],
]
ACTIONS = [
    [[0, 1, 1], [1], [0, 1, 1], [1, 0, 0, 0, 1, 1]],
    [[0, 1], [1], [0, 1], [1, 1]],
    [[1], [0, 0, 1], [0, 1, 1], [0, 0, 1, 1]],
]

def rollouts(lm, prompts=PROMPTS, completions=COMPLETIONS, actions=ACTIONS):
    return Rollouts(Asked(Read(lm, prompts, frozen=True), []), completions, actions, None)


ADVANTAGES = np.random.default_rng(3).normal(size=(3, 4))
ROWS = [(p, c, a) for p, cs, acts in zip(PROMPTS, COMPLETIONS, ACTIONS, strict=True)
        for c, a in zip(cs, acts, strict=True)]  # fmt: skip


@pytest.fixture
def trained(load):
    """(family) -> a model with an adapter that is not zero, always the same."""

    def make(family="llama"):
        lm = load(family)
        randomise(add_lora(lm, rank=2, alpha=4), scale=0.3)
        return lm

    return make


def plain_steps(lm, config, total_steps):
    """config.updates steps of AdamW on the rollouts above, a sequence at a time -> first gradient, last loss."""
    parameters = [p for p in lm.model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0)
    with torch.no_grad():
        old = [plain_logp(lm, p, c, config.rollout_temperature) for p, c, _ in ROWS]
        with adapter(lm, False):
            reference = [plain_logp(lm, p, c, config.rollout_temperature) for p, c, _ in ROWS]
    first = None
    for step in range(config.updates):
        total = 0.0
        for (p, c, actions), o, ref, advantage in zip(ROWS, old, reference, ADVANTAGES.flatten(), strict=True):
            logp, a = plain_logp(lm, p, c, config.rollout_temperature), torch.tensor(actions)
            ratio = (logp - o).exp()
            gain = torch.min(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage)
            total = total - ((gain - config.kl * (logp - ref) ** 2 / 2) * a).sum() / len(ROWS)
        adam.zero_grad()
        total.backward()
        gradient = torch.cat([p.grad.flatten() for p in parameters])
        first = gradient if first is None else first
        shrink = min(1.0, config.max_grad_norm / gradient.norm().item())
        for p in parameters:
            p.grad *= shrink
        for group in adam.param_groups:
            group["lr"] = config.lr * min((step + 1) / 10, 1 - step / total_steps)
        adam.step()
    return first, total.item()


def adapter_of(lm):
    return torch.cat([p.detach().flatten() for p in lm.model.parameters() if p.requires_grad])


SETTINGS = [
    Config(amp="off", lr=1e-2),
    Config(amp="off", lr=1e-2, rollout_temperature=1.5, kl=0.3),
    Config(amp="off", lr=1e-1, updates=2, clip=0.05, max_grad_norm=0.1),
    Config(amp="off", lr=1e-1, updates=3, rollout_temperature=0.7, kl=0.3, clip=0.1, max_grad_norm=0.1),
]


@pytest.mark.parametrize("config", SETTINGS, ids=["one", "one, kl", "two", "three, kl"])
@pytest.mark.parametrize("micro_batch", [0, 1, 2])
def test_update_equals_a_plain_reimplementation(trained, config, micro_batch):
    """So the micro-batch changes nothing, and more updates keep the log-probabilities of the policy that sampled."""
    lm, plain = trained(), trained()
    before = adapter_of(lm)
    config = replace(config, micro_batch=micro_batch)
    optimizer = Optimizer(lm, config, 8)
    stats = update(lm, rollouts(lm), ADVANTAGES, config, optimizer)
    first, loss = plain_steps(plain, config, 8)
    torch.testing.assert_close(adapter_of(lm), adapter_of(plain), atol=1e-5, rtol=0)
    assert (adapter_of(lm) - before).abs().max() > 1e-4
    assert stats["loss"] == pytest.approx(loss, abs=1e-4)
    if config.updates == 1:
        assert stats["grad_norm"] == pytest.approx(first.norm().item(), rel=1e-4)
        assert stats["clip_fraction"] == stats["approx_kl"] == 0
    else:
        assert stats["clip_fraction"] > 0  # the old log-probabilities did matter


def test_a_backward_pass_holds_no_more_logits_than_allowed(trained, monkeypatch):
    """Without a micro-batch of its own, a step is split where the log-probabilities would not fit."""
    config, held = SETTINGS[1], []
    whole = trained()
    update(whole, rollouts(whole), ADVANTAGES, config, Optimizer(whole, config, 8))
    monkeypatch.setattr("lm.LOGITS", 48 * 9)  # nine tokens: the longest prompt has as many
    lm = trained()
    lm.model.register_forward_hook(lambda *a: held.append(a[-1].logits.shape[:2].numel()))
    batch = rollouts(lm)
    held.clear()
    update(lm, batch, ADVANTAGES, config, Optimizer(lm, config, 8))
    assert len(held) == 2 * 3 and max(held) <= 9  # one question at a time, and once more for the reference
    torch.testing.assert_close(adapter_of(lm), adapter_of(whole), atol=1e-5, rtol=0)


def test_the_stats_do_not_depend_on_the_micro_batch(trained):
    for config in SETTINGS:
        stats = [
            update(lm, rollouts(lm), ADVANTAGES, c, Optimizer(lm, c, 8))
            for c in (replace(config, micro_batch=m) for m in (0, 1, 2))
            for lm in [trained()]
        ]
        assert set(stats[0]) == {"grad_norm", "loss", "clip_fraction", "approx_kl", "kl"}
        for other in stats[1:]:
            assert other == pytest.approx(stats[0], rel=1e-3, abs=1e-6)


def test_equal_rewards_move_nothing(trained):
    lm = trained()
    before = adapter_of(lm)
    config = Config(amp="off", lr=1e-2)
    stats = update(lm, rollouts(lm), group_advantages(np.full((3, 4), 1 / 3)), config, Optimizer(lm, config, 8))
    assert torch.equal(adapter_of(lm), before) and stats["grad_norm"] == 0


def test_the_reference_is_the_base_model(load):
    """A fresh adapter has no divergence; any other one has, and the step leaves the adapter switched on."""
    config = Config(amp="off", kl=1.0)
    lm = load("llama")
    add_lora(lm)
    stats = update(lm, rollouts(lm), np.zeros((3, 4)), config, Optimizer(lm, config, 8))
    assert stats["kl"] == stats["grad_norm"] == 0
    randomise(p for p in lm.model.parameters() if p.requires_grad)
    on = plain_logp(lm, [1, 5], [6, 7], 1.0)
    with adapter(lm, False):
        off = plain_logp(lm, [1, 5], [6, 7], 1.0)
    config = replace(config, lr=0.0)
    stats = update(lm, rollouts(lm), np.zeros((3, 4)), config, Optimizer(lm, config, 8))
    assert stats["kl"] > 0.01 and stats["grad_norm"] > 0.01
    assert torch.equal(plain_logp(lm, [1, 5], [6, 7], 1.0), on) and not torch.equal(on, off)


def test_the_learning_rate_goes_up_and_straight_down(load):
    lm = load("gpt2")
    add_lora(lm)
    optimizer, rates = Optimizer(lm, Config(lr=2.0, amp="off"), 40), []
    for _ in range(40):
        rates.append(optimizer.schedule.get_last_lr()[0])
        optimizer.backward(sum(p.sum() for p in optimizer.params))
        optimizer.step()
    want = [2 * min((i + 1) / 10, (40 - i) / 40) for i in range(40)]
    np.testing.assert_allclose(rates, want)
    assert optimizer.schedule.get_last_lr() == [0]


# ---- mixed precision -----------------------------------------------------------------------------


def test_amp_dtypes(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for device in (cpu, gpu):
        assert amp_dtype("off", device) is None
        assert amp_dtype("bf16", device) == torch.bfloat16
        assert amp_dtype("fp16", device) == torch.float16
    assert amp_dtype("auto", cpu) is None
    for has, dtype in [(True, torch.bfloat16), (False, torch.float16)]:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has: has)
        assert amp_dtype("auto", gpu) == dtype


def first_step(lm, config, optimizer):
    """Updates until one is taken: fp16 first has to find a scale that does not overflow. -> stats, scales"""
    before, scales = adapter_of(lm), []
    while torch.equal(adapter_of(lm), before) and len(scales) < 9:
        scales.append(optimizer.scaler.get_scale())
        with optimizer.autocast():
            batch = rollouts(lm)
        stats = update(lm, batch, ADVANTAGES, config, optimizer)
    return stats, scales


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_the_gradient_of_mixed_precision_is_close(trained, amp):
    lm = trained()
    exact, _ = gradient_of(lm, rollouts(lm), ADVANTAGES, Config(amp="off", kl=0.1))
    lm, dtypes = trained(), set()
    lm.model.model.layers[0].mlp.up_proj.base.register_forward_hook(lambda *a: dtypes.add(a[2].dtype))
    config = Config(amp=amp, kl=0.1)
    optimizer = Recorder(lm, config, 100)
    assert optimizer.scaler.is_enabled() == (amp == "fp16")
    stats, scales = first_step(lm, config, optimizer)
    assert scales == ([2.0**k for k in range(10, 10 - len(scales), -1)] if amp == "fp16" else [1])
    got = torch.cat([g.flatten() for g in optimizer.gradients]) / scales[-1]
    assert torch.cosine_similarity(got, exact, dim=0) > 0.98
    assert stats["grad_norm"] == pytest.approx(exact.norm().item(), rel=0.05)  # unscaled before it is clipped
    assert dtypes == {amp_dtype(amp, lm.device)}
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    assert {g.dtype for g in optimizer.gradients} == {torch.float32}


def test_an_overflow_skips_the_step_and_halves_the_scale(trained):
    lm, config = trained(), Config(amp="fp16", lr=1e-2)
    optimizer = Optimizer(lm, config, 100)
    first_step(lm, config, optimizer)
    after, scale = adapter_of(lm), optimizer.scaler.get_scale()
    assert after.isfinite().all()
    update(lm, rollouts(lm), 1e37 * ADVANTAGES, config, optimizer)
    assert torch.equal(adapter_of(lm), after)
    assert optimizer.scaler.get_scale() == scale / 2
    update(lm, rollouts(lm), ADVANTAGES, config, optimizer)  # and the next one is taken
    assert not torch.equal(adapter_of(lm), after) and adapter_of(lm).isfinite().all()


# ---- the loop ------------------------------------------------------------------------------------

KEYS = {
    "step", "reward", "malformed", "mean_confidence", "distinct", "correlation", "no_signal", "grad_norm", "loss",
    "clip_fraction", "approx_kl", "kl", "skipped", "tokens",
}  # fmt: skip
ITEMS = [Item(f"banner of {s}", a, p, 1) for s in SUBJECTS for a, p in [("red", 0.9), ("blue", 0.1)]]
FAST = Config(steps=30, questions=8, rollouts=16, lr=3e-2, rollout_temperature=1.0, amp="off")


def calibrated(confidence, item):
    return calibration_reward(confidence, item.target)


def learn(world, config, items=ITEMS, reward=calibrated, layers=1):
    """-> the trained model, its prompt, and what was logged."""
    lm, prompt = world(layers)
    add_lora(lm, rank=4, alpha=8)
    log = []
    train(lm, prompt, items, reward, config, log.append)
    return lm, prompt, log


@pytest.mark.parametrize("change", [{}, {"reasoning": 2}, {"updates": 2, "micro_batch": 3, "kl": 0.01}], ids=str)
def test_the_reward_rises(world, change):
    config = replace(FAST, lr=2e-2, rollout_temperature=1.2, questions=4, rollouts=32, **change)
    _, _, log = learn(world, config, items=[replace(x, target=0.5) for x in ITEMS])
    assert [record["step"] for record in log] == list(range(30))
    assert np.mean([r["reward"] for r in log[:3]]) < 0.45 and np.mean([r["reward"] for r in log[-5:]]) > 0.7
    assert log[0]["malformed"] > 0.5 and log[-1]["malformed"] < 0.1


def test_the_exact_gradient_learns_to_tell_questions_apart(world):
    """With a divergence term: without, it soon says one number, and has no gradient left."""
    _, _, log = learn(world, replace(FAST, steps=60, lr=1e-2, kl=0.05, gradient="exact"), layers=2)
    assert set(log[0]) == KEYS - {"clip_fraction", "approx_kl"}
    assert log[-1]["correlation"] > 0.9 and log[-1]["reward"] > 0.75 and log[-1]["malformed"] < 0.1


def test_what_an_exact_step_logs(world):
    lm, prompt = world()
    add_lora(lm)
    log, said = [], statements.percentages(lm)
    asked = statements.ask(lm, prompt, [(x.question, x.answer) for x in ITEMS])
    with torch.no_grad():
        logp = statements.log_policy(lm, asked, said)
    train(lm, prompt, ITEMS, calibrated, replace(FAST, gradient="exact", steps=1), log.append)
    chance = logp.double().exp().numpy()
    rewards = np.array([[calibration_reward(c / 100, x.target) for c in said] for x in ITEMS])
    mean = chance @ np.array(list(said)) / 100 / chance.sum(1)
    assert log[0]["reward"] == pytest.approx((chance * rewards).sum(1).mean(), rel=1e-4)
    assert log[0]["malformed"] == pytest.approx(1 - chance.sum(1).mean(), rel=1e-4)
    assert log[0]["mean_confidence"] == pytest.approx(mean.mean(), rel=1e-4)
    assert log[0]["correlation"] == pytest.approx(np.corrcoef(mean, [x.target for x in ITEMS])[0, 1], abs=1e-3)
    assert log[0]["distinct"] == (chance.mean(0) >= 0.01 * chance.mean(0).max()).sum() and log[0]["no_signal"] == 0


def test_a_policy_without_preference_has_not_collapsed(world):
    """Each of 101 percentages is said less than once in a hundred times, and so is each if hardly any is said."""
    lm, prompt = world()
    add_lora(lm)
    for logit in (0.0, -9.0):  # of what is a percentage, against all else

        def alike(lm, asked, said, *_, logit=logit):
            rest = torch.tensor([logit] * len(said) + [0.0]).log_softmax(0)[:-1]
            return rest.expand(len(asked), -1).clone().requires_grad_()

        log = []
        with mock.patch.object(statements, "log_policy", alike), mock.patch.object(Optimizer, "step", lambda _: 0.0):
            train(lm, prompt, ITEMS, calibrated, replace(FAST, gradient="exact", steps=1), log.append)
        assert log[0]["distinct"] == len(statements.percentages(lm)) and troubles(log * 20) == []


def test_it_learns_to_tell_questions_apart(world):
    # one layer cannot: the adapter, on for the turn alone, does not reach what was read below it
    _, _, log = learn(world, replace(FAST, lr=1e-2, warmup=5), layers=2)
    assert log[-1]["correlation"] > 0.9 and log[-1]["reward"] > 0.65 > 0.5 > log[5]["reward"]


def test_the_base_model_is_not_touched(world):
    ids = torch.arange(40)[None]
    before = world()[0].model(input_ids=ids).logits
    lm, _, _ = learn(world, replace(FAST, steps=3, warmup=2))
    assert not torch.equal(lm.model(input_ids=ids).logits, before)
    with adapter(lm, False):
        assert torch.equal(lm.model(input_ids=ids).logits, before)


def test_what_is_logged(world):
    """Each step again, from the confidences that were rewarded."""
    calls = []

    def reward(confidence, item):
        calls.append((confidence, item.target))
        return calibration_reward(*calls[-1])

    config = replace(FAST, steps=4, questions=5, rollouts=6)
    _, _, log = learn(world, config, reward=reward)
    for step, record in enumerate(log):
        assert set(record) == KEYS
        groups = [calls[30 * step + 6 * i :][:6] for i in range(5)]
        chosen = batch_of(step, 8, 5, seed_of(0, "train"))
        assert [{p for _, p in group} for group in groups] == [{ITEMS[i].target} for i in chosen]
        rewards = [[calibration_reward(*call) for call in group] for group in groups]
        stated = [c for group in groups for c, _ in group if c is not None]
        assert record["step"] == step
        assert record["reward"] == pytest.approx(np.mean(rewards))
        assert record["malformed"] == pytest.approx(1 - len(stated) / 30)
        assert record["mean_confidence"] == pytest.approx(np.mean(stated))
        assert record["distinct"] == len(set(stated))
        assert record["no_signal"] == np.mean([len(set(group)) == 1 for group in rewards])
        assert record["clip_fraction"] == record["approx_kl"] == record["kl"] == record["skipped"] == 0
        assert 30 <= record["tokens"] <= 30 * 6


def test_when_no_number_is_ever_stated(world):
    """No reward, no signal, no step, and no crash."""
    lm, prompt = world()
    add_lora(lm)
    numbers = [i for i in range(len(lm.tokenizer)) if "%" in lm.decode([i])]

    def ban(module, args, output):
        output.logits[..., numbers] = -torch.inf

    lm.model.register_forward_hook(ban)
    before, log = adapter_of(lm), []
    train(lm, prompt, ITEMS, calibrated, replace(FAST, steps=2), log.append)
    for record in log:
        assert record["malformed"] == record["no_signal"] == 1 and record["reward"] == record["distinct"] == 0
        assert record["mean_confidence"] is record["correlation"] is None
    assert torch.equal(adapter_of(lm), before)


def test_correlation():
    assert rl.correlation([(0.1, 0.3), (0.2, 0.5), (0.3, 0.7)]) == pytest.approx(1)
    assert rl.correlation([(0.1, 0.7), (0.2, 0.5), (0.4, 0.6)]) == pytest.approx(
        np.corrcoef([0.1, 0.2, 0.4], [0.7, 0.5, 0.6])[0, 1]
    )
    for undefined in ([], [(0.3, 0.4)], [(0.25, 0.1), (0.25, 0.2)], [(0.1, 0.5), (0.2, 0.5)]):
        assert rl.correlation(undefined) is None


def test_rounding_is_no_correlation():
    """The policy says 10% everywhere, and malformed rollouts make the groups unequal."""
    x = [np.mean([0.1] * n) for n in (3, 4, 6, 8)]
    assert len(set(x)) > 1
    assert rl.correlation(list(zip(x, [0.2, 0.9, 0.4, 0.6], strict=True))) is None
    assert rl.correlation([(0.2, 0.1), (0.3, 0.1), (0.7, 0.1)]) is None


def test_a_run_is_decided_by_its_seed(world):
    config = replace(FAST, steps=3, warmup=1, rollout_temperature=1.3)
    first, second, other = (adapter_of(learn(world, c)[0]) for c in (config, config, replace(config, seed=1)))
    assert torch.equal(first, second) and not torch.equal(first, other)


RESUMED = [{}, {"gradient": "exact", "every": 10}, {"updates": 2, "kl": 0.1}, {"steps": 0, "warmup": 4}]


@pytest.mark.parametrize("change", RESUMED, ids=str)
def test_training_that_was_interrupted_ends_as_if_it_had_not_been(world, change, tmp_path, monkeypatch):
    """Stopped after each step; the checkpoint is written after the first one of every call."""
    config = replace(FAST, **({"steps": 3, "warmup": 2} | change))
    whole, _, log = learn(world, config)
    whole, path = adapter_of(whole), tmp_path / "saved.safetensors"
    batches, calls = rl.batch_of, []

    def cut(*args):
        calls.append(args)
        if len(calls) % 2 == 0:
            raise KeyboardInterrupt
        return batches(*args)

    monkeypatch.setattr(rl, "batch_of", cut)
    for _ in range(config.warmup + config.steps):
        lm, prompt = world()
        add_lora(lm, rank=4, alpha=8)
        seen = []  # each call tells all of it
        with contextlib.suppress(KeyboardInterrupt):
            train(lm, prompt, ITEMS, calibrated, config, seen.append, path)
    assert torch.equal(adapter_of(lm), whole) and seen == log


def spoil(lm, steps):
    """The gradient of these optimiser steps is nan: one backward pass each."""
    parameter, count = next(p for p in lm.model.parameters() if p.requires_grad), itertools.count()
    parameter.register_hook(lambda g: g * torch.nan if next(count) in steps else g)


def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(world):
    lm, prompt = world()
    add_lora(lm, rank=4, alpha=8)
    spoil(lm, {1, 2, 4})
    log, states = [], []
    config = replace(FAST, steps=7, micro_batch=8)
    train(lm, prompt, ITEMS, calibrated, config, lambda r: (log.append(r), states.append(adapter_of(lm))))
    assert [r["skipped"] for r in log] == [0, 1, 2, 0, 1, 0, 0]
    assert [torch.equal(a, b) for a, b in itertools.pairwise(states)] == [True, True, False, True, False, False]
    assert torch.isfinite(states[-1]).all()


@pytest.mark.parametrize("change, skipped", [
    ({}, [0, 0, 1, 2, 3, 4, 5]), ({"updates": 2}, [0, 2, 4, 6]), ({"warmup": 30}, [0, 0, 1, 2, 3, 4, 5]),
    ({"gradient": "exact", "every": 10}, [0, 0, 1, 2, 3, 4, 5]),
], ids=str)  # fmt: skip
def test_training_stops_after_five_updates_without_a_finite_gradient(change, skipped, world, tmp_path):
    lm, prompt = world()
    add_lora(lm, rank=4, alpha=8)
    spoil(lm, set(range(2, 100)))
    log, states, path = [], [], tmp_path / "saved.safetensors"
    config = replace(FAST, steps=30, micro_batch=8, **change)
    train(lm, prompt, ITEMS, calibrated, config, lambda r: (log.append(r), states.append(adapter_of(lm))), path)
    assert [r["skipped"] for r in log] == skipped
    good = states[skipped.count(0) - 1]
    assert torch.equal(adapter_of(lm), good) and torch.isfinite(good).all()
    assert troubles(log)[-1].startswith("it ended early")


def test_training_that_ended_early_does_not_go_on(world, tmp_path):
    """Started again, with the checkpoint of its last step."""
    logs, path = [], tmp_path / "saved.safetensors"
    for _ in range(2):
        lm, prompt = world()
        add_lora(lm, rank=4, alpha=8)
        spoil(lm, set(range(100)))
        logs.append([])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rl.time, "perf_counter", itertools.count().__next__)  # a checkpoint after each step
            train(lm, prompt, ITEMS, calibrated, replace(FAST, steps=30), logs[-1].append, path)
    assert str(logs[0]) == str(logs[1]) and len(logs[0]) == rl.PATIENCE  # as text, where nan is nan


def test_each_group_of_each_step_is_drawn_anew(world):
    """The same question three times a step, and a policy that does not change."""
    calls = []
    learn(world, replace(FAST, steps=3, lr=0.0), [ITEMS[0]] * 3, lambda c, p: calls.append(c) or 0.0)
    groups = [tuple(calls[i : i + 16]) for i in range(0, len(calls), 16)]
    assert len(groups) == 9 and len(set(groups)) == 9


def test_the_temperature_of_a_run(world, monkeypatch):
    """One temperature for the rollouts and for their log-probabilities."""
    seen, score, generate = [], rl.completion_logprobs, statements.sample
    monkeypatch.setattr(rl, "completion_logprobs", lambda lm, p, c, t, *rest, **kw:
                        seen.append(t) or score(lm, p, c, t, *rest, **kw))
    monkeypatch.setattr(statements, "sample", lambda lm, p, t, *rest: seen.extend(t) or generate(lm, p, t, *rest))
    learn(world, replace(FAST, steps=1, rollout_temperature=1.7, updates=2, kl=0.1, reasoning=2, micro_batch=4))
    assert set(seen) == {1.7} and len(seen) > 20


def test_fewer_questions_than_a_step_takes(world):
    _, _, log = learn(world, replace(FAST, steps=2, questions=50), items=ITEMS[:3])
    assert len(log) == 2


@pytest.mark.parametrize("n, size", [(12, 4), (7, 3), (5, 5), (10, 1)])
def test_an_epoch_has_each_question_once(n, size):
    steps = 3 * n  # `size` times `steps` is three epochs of each size
    order = [i for step in range(steps) for i in batch_of(step, n, size, seed=4)]
    epochs = [order[i : i + n] for i in range(0, len(order), n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert batch_of(2, n, size, seed=4) == order[2 * size : 3 * size]
    assert [i for step in range(steps) for i in batch_of(step, n, size, seed=5)] != order


def number_logp(lm, prompt, question, answer, text):
    context, turn = prompt.confidence(question, answer)
    return plain_logp(lm, context, turn + lm.encode(text), 1.0)[len(turn) :]


def test_warm_up_raises_the_target(world):
    told = [("banner of Zorva", "red", 0.73), ("banner of Zorva", "blue", 0.08), ("river of Kelo", "blue", 1.0)]
    items = [Item(*x, 1) for x in told]
    texts = [" 75%", " 10%", " 100%"]  # the nearest multiples of five

    @torch.no_grad()
    def chances(lm, prompt):
        rows = zip(items, texts, strict=True)
        return torch.tensor([number_logp(lm, prompt, x.question, x.answer, t) for x, t in rows])

    before = chances(*world())
    lm, prompt, log = learn(world, replace(FAST, steps=0, warmup=40), items)
    assert (before < math.log(0.1)).all() and (chances(lm, prompt) > math.log(0.5)).all()
    assert [record["step"] for record in log] == list(range(-40, 0))
    assert all(set(record) == {"step", "supervised_loss", "grad_norm", "skipped"} for record in log)
    assert log[-1]["supervised_loss"] < 0.5 < 2 < log[0]["supervised_loss"]


def test_warm_up_returns_the_loss_per_token(world):
    lm, prompt = world()
    add_lora(lm)
    want = -number_logp(lm, prompt, "banner of Zorva", "red", " 75%")
    record = rl.warm_up(lm, prompt, [Item("banner of Zorva", "red", 0.73, 1)], FAST, Optimizer(lm, FAST, 10))
    assert record["supervised_loss"] == pytest.approx(want.mean().item(), abs=1e-5)

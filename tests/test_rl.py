"""rl.py against definitions by loop, exact enumeration of a tiny policy, and a plain reimplementation of a step."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

import rl
import toy
from data import LABEL, Prompt, parse_confidence
from lm import LM, adapter, add_lora, seed_of, stop_ids
from rl import (
    Config,
    Optimizer,
    Rollouts,
    amp_dtype,
    batch_of,
    calibration_reward,
    group_advantages,
    kl_to_reference,
    policy_loss,
    rollout,
    train,
    update,
)

# ---- reward --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "confidence, target, reward",
    [
        (0.7, 0.7, 0.95),
        (0.74, 0.7, 0.95),
        (0.66, 0.7, 0.95),
        (0.8, 0.7, 0.9),
        (0.6, 0.7, 0.9),
        (1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.0, 0.0, 0.95),
        (1.0, 1.0, 0.95),
        (0.25, 0.75, 0.5),
        (None, 0.7, 0.0),
        (None, 0.0, 0.0),
    ],
)
def test_reward(confidence, target, reward):
    assert calibration_reward(confidence, target) == pytest.approx(reward, abs=1e-12)


def test_reward_with_another_tolerance():
    assert calibration_reward(0.6, 0.7, tolerance=0.2) == 0.8
    assert calibration_reward(0.7, 0.7, tolerance=0) == 1
    assert calibration_reward(None, 0.7, tolerance=0.2) == 0


def test_inside_the_tolerance_all_is_equally_good():
    assert len({calibration_reward(c, 0.5) for c in np.linspace(0.4501, 0.5499, 50)}) == 1


@pytest.mark.parametrize("confidence, target", [
    (1.01, 0.5), (-0.01, 0.5), (73, 0.5), (math.nan, 0.5), (0.5, 1.01), (0.5, -0.01), (0.5, math.nan), (None, 2),
])  # fmt: skip
def test_reward_refuses_what_is_no_probability(confidence, target):
    with pytest.raises(ValueError, match="must be in"):
        calibration_reward(confidence, target)


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
            ratio, a = math.exp(logp[b, t] - old[b, t]), advantages[b].item()
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
    assert torch.cosine_similarity(got.flatten(), exact.flatten(), dim=0) < 0.99


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
    torch.testing.assert_close(got, grad((visits * kl).sum(), policy))
    reverse = grad((visits * (q.exp() * (q - p)).sum(-1)).sum(), policy)  # what k3 would have
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


def randomise(parameters, seed=1, scale=0.4):
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.data.copy_(scale * torch.randn(p.shape, generator=generator))


class Recorder(Optimizer):
    """Steps, and keeps the gradients as they were before clipping."""

    def step(self):
        self.gradients = [p.grad.detach().clone() for p in self.params]
        return super().step()


def gradient_of(lm, batch, advantages, config):
    """One flat vector; the parameters move."""
    optimizer = Recorder(lm, config, 100)
    stats = update(lm, batch, advantages, config, optimizer)
    return torch.cat([g.flatten() for g in optimizer.gradients]), stats


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_update_follows_the_expected_reward(three_tokens, temperature):
    """All nine completions of a prompt as one group, each with its probability times its reward as advantage."""
    lm, prompt = three_tokens, [0, 2, 1]
    ids = torch.tensor([[*prompt, *pair] for pair in PAIRS])
    logp = (lm.model(input_ids=ids).logits / temperature).log_softmax(-1)  # (9, 5, 3)
    chance = logp[:, 2:4].gather(2, ids[:, 3:, None]).sum((1, 2)).exp()
    assert chance.sum().item() == pytest.approx(1)
    parameters = [p for p in lm.model.parameters() if p.requires_grad]
    exact = torch.autograd.grad((chance * PAIR_REWARDS).sum(), parameters)
    want = -torch.cat([g.flatten() for g in exact])

    pairs = [list(pair) for pair in PAIRS]
    batch = Rollouts([prompt], [pairs], [[[1, 1]] * 9], [[None] * 9], [[""] * 9])
    advantages = (9 * chance.detach() * PAIR_REWARDS).numpy()[None]
    got, _ = gradient_of(lm, batch, advantages, Config(temperature=temperature, amp="off"))
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
    [[1, 1, 1], [1], [1, 1, 1], [1, 0, 0, 0, 1, 1]],
    [[1, 1], [1], [1, 1], [1, 1]],
    [[1], [1, 0, 1], [1, 0, 1], [0, 0, 1, 1]],
]
BATCH = Rollouts(PROMPTS, COMPLETIONS, ACTIONS, None, None)
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


def plain_logp(lm, prompt, completion, temperature):
    logits = lm.model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    logp = (logits / temperature).log_softmax(-1)
    return torch.stack([logp[len(prompt) + i - 1, t] for i, t in enumerate(completion)])


def plain_steps(lm, config, total_steps):
    """config.updates steps of AdamW on BATCH, one sequence at a time; returns the first gradient."""
    parameters = [p for p in lm.model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0)
    with torch.no_grad():
        old = [plain_logp(lm, p, c, config.temperature) for p, c, _ in ROWS]
        with adapter(lm, False):
            reference = [plain_logp(lm, p, c, config.temperature) for p, c, _ in ROWS]
    first = None
    for step in range(config.updates):
        total = 0.0
        for (p, c, actions), o, ref, advantage in zip(ROWS, old, reference, ADVANTAGES.flatten(), strict=True):
            logp, a = plain_logp(lm, p, c, config.temperature), torch.tensor(actions)
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
    return first


def adapter_of(lm):
    return torch.cat([p.detach().flatten() for p in lm.model.parameters() if p.requires_grad])


SETTINGS = [
    Config(amp="off", lr=1e-2),
    Config(amp="off", lr=1e-2, temperature=1.5, kl=0.3),
    Config(amp="off", lr=3e-1, updates=2, max_grad_norm=0.1),
    Config(amp="off", lr=1e-1, updates=3, temperature=0.7, kl=0.3, clip=0.1, max_grad_norm=0.1),
]


@pytest.mark.parametrize("config", SETTINGS, ids=["one", "one, kl", "two", "three, kl"])
@pytest.mark.parametrize("micro_batch", [0, 1, 2])
def test_update_equals_a_plain_reimplementation(trained, config, micro_batch):
    """So the micro-batch changes nothing, and more updates keep the log-probabilities of the policy that sampled."""
    lm, plain = trained(), trained()
    before = adapter_of(lm)
    config = replace(config, micro_batch=micro_batch)
    optimizer = Optimizer(lm, config, 8)
    stats = update(lm, BATCH, ADVANTAGES, config, optimizer)
    first = plain_steps(plain, config, 8)
    torch.testing.assert_close(adapter_of(lm), adapter_of(plain), atol=1e-5, rtol=0)
    assert (adapter_of(lm) - before).abs().max() > 1e-4
    if config.updates == 1:
        assert stats["grad_norm"] == pytest.approx(first.norm().item(), rel=1e-4)
        assert stats["clip_fraction"] == stats["approx_kl"] == 0
    else:
        assert stats["clip_fraction"] > 0  # the old log-probabilities did matter

"""rl.py against definitions by loop, exact enumeration of a tiny policy, and plain passes over what was sampled."""

import functools
import inspect
import itertools
import json
import math
import sys
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from helpers import ASKED, SUBJECTS, Config, Recorder, plain_logits, plain_logp, randomise, roll, rows, shared

import calunc
import rl
from beyond import exact, rewards
from infra import loop
from infra.loop import batch_of
from lm import LM, seed_of, stop_ids
from lora import LoRA, adapter, add_lora
from report.build import troubles
from rl import Item, Rollout, group_advantages, kl_to_reference, policy_loss

KINDS = ("loo", "center", "zscore")
REWARDS = np.random.default_rng(0).uniform(0, 1, (5, 7))


def advantage_by_loop(row, i, kind):
    others = [r for j, r in enumerate(row) if j != i]
    if kind == "loo":
        return row[i] - sum(others) / len(others)
    mean = sum(row) / len(row)
    std = math.sqrt(sum((r - mean) ** 2 for r in row) / len(row))
    return row[i] - mean if kind == "center" else (row[i] - mean) / (std + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_advantages_are_their_definition(kind):
    rewards = REWARDS.copy()
    got = group_advantages(rewards, kind)
    want = [[advantage_by_loop(row, i, kind) for i in range(7)] for row in REWARDS.tolist()]
    np.testing.assert_allclose(got, want, atol=1e-12)
    np.testing.assert_allclose(group_advantages(REWARDS + 3, kind), got, atol=1e-9)
    factor = 1 if kind == "zscore" else 10  # the only one that ignores the scale
    np.testing.assert_allclose(group_advantages(10 * REWARDS, kind), factor * got, rtol=1e-4)
    assert got.dtype == np.float64 and np.array_equal(rewards, REWARDS)  # not changed in place
    single = (1000 + REWARDS).astype(np.float32)  # averaged in double precision
    exactly = single.astype(float) - 1000
    np.testing.assert_allclose(group_advantages(single, kind), group_advantages(exactly, kind), atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_rewards_are_no_signal(kind, dtype):
    """The mean of equal numbers is not always that number. Beside them, a group with a signal keeps it."""
    for value, size in itertools.product([0.1 + 0.2, 1 / 3, 0.95, 1e-8, 0.0, 1e6 / 7], [1, 3, 7, 16]):
        assert (group_advantages(np.full((2, size), value, dtype), kind) == 0).all()
    got = group_advantages(np.array([[0.1] * 3, [0.1, 0.2, 0.3]], dtype), kind)
    assert (got[0] == 0).all() and (got[1, [0, 2]] != 0).all()
    assert np.abs(group_advantages([[0.9] * 15 + [np.nextafter(0.9, 1)]], kind)).max() < 1e-6  # rounding is none


def test_advantages_refuse():
    assert group_advantages([[1, 0, 0]]).tolist() == [[1, -0.5, -0.5]]  # loo is the default
    with pytest.raises(ValueError, match="'std': choose loo, center or zscore"):
        group_advantages(REWARDS, "std")
    for bad in ([[0.1, math.nan]], [[0.1, math.inf]], [0.1, 0.2], [[[0.1]]], [[]], np.zeros((0, 4))):
        with pytest.raises(ValueError, match="finite, of shape"):
            group_advantages(bad)


@pytest.mark.parametrize("ratio, advantage, loss, gradient, outside", [
    (1.5, 1.0, -1.2, 0.0, 1), (0.5, 1.0, -0.5, -0.5, 1), (1.5, -1.0, 1.5, 1.5, 1), (0.5, -1.0, 0.8, 0.0, 1),
    (1.1, 2.0, -2.2, -2.2, 0), (0.9, -2.0, 1.8, 1.8, 0), (1.0, 3.0, -3.0, -3.0, 0), (1.5, 0.0, 0.0, 0.0, 1),
])  # fmt: skip
def test_the_quadrants_of_the_clip(ratio, advantage, loss, gradient, outside):
    """The gradient is that of the loss with respect to logp."""
    logp = torch.tensor([[-1.0 + math.log(ratio)]], requires_grad=True)
    got, stats = policy_loss(logp, torch.tensor([[-1.0]]), torch.tensor([advantage]), torch.ones(1, 1))
    got.backward()
    assert (got.item(), logp.grad.item()) == pytest.approx((loss, gradient), abs=1e-6)
    assert stats == pytest.approx({"clip_fraction": outside, "approx_kl": -math.log(ratio)}, abs=1e-6)


@pytest.mark.parametrize("clip", [0.2, 0.05])
def test_the_loss_equals_a_plain_loop(clip):
    generator = torch.Generator().manual_seed(0)
    logp = (-torch.rand(4, 5, generator=generator) * 2).requires_grad_()
    old = logp.detach() + 0.3 * torch.randn(4, 5, generator=generator)
    advantages = torch.randn(4, generator=generator).double()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]])
    loss, stats = policy_loss(logp, old, advantages, mask, clip)
    total, outside, difference, tokens = 0.0, 0, 0.0, int(mask.sum())
    for b, t in mask.nonzero().tolist():
        ratio, a = (logp[b, t] - old[b, t]).exp().item(), advantages[b].item()
        total += min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
        outside += abs(ratio - 1) > clip
        difference += (old[b, t] - logp[b, t]).item()
    assert loss.item() == pytest.approx(-total / 4, abs=1e-6) and 0 < outside < tokens
    assert stats == pytest.approx({"clip_fraction": outside / tokens, "approx_kl": difference / tokens}, abs=1e-6)
    parts = [policy_loss(logp[i], old[i], advantages[i], mask[i], clip, 4)[0] for i in ([0], [1, 2, 3])]
    torch.testing.assert_close(sum(parts), loss)  # the normaliser is a constant
    assert policy_loss(logp, old, advantages, mask * 0) == (0, {"clip_fraction": 0, "approx_kl": 0})
    fresh, _ = policy_loss(logp, logp.detach(), advantages, mask, clip)  # a ratio of 1 has the gradient of REINFORCE
    (gradient,) = torch.autograd.grad(fresh, logp)
    torch.testing.assert_close(gradient, -(advantages.float()[:, None] * mask) / 4)


def test_estimates_of_the_divergence():
    """As a loss on samples, k2 has the gradient of KL(policy || reference). k1 and k3 have its value, but k1 has no
    gradient, and k3 has that of KL(reference || policy)."""
    policy, other = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy.requires_grad_()
    logp, ref = policy.log_softmax(-1), other.log_softmax(-1)
    kl, reverse = (logp.exp() * (logp - ref)).sum(), (ref.exp() * (ref - logp)).sum()
    chance, log_ratio = logp.detach().exp(), ref - logp
    k1, k3 = (chance * -log_ratio).sum(), (chance * (log_ratio.exp() - 1 - log_ratio)).sum()
    k2 = kl_to_reference(logp[:, None], ref[:, None], chance[:, None])
    torch.testing.assert_close(torch.stack([k1, k3]), torch.stack([kl, kl]))
    found = [torch.autograd.grad(x, policy, retain_graph=True)[0] for x in (k1, k2, k3, 0 * kl, kl, reverse)]
    torch.testing.assert_close(found[:3], found[3:])
    assert (found[1] - found[2]).norm() > 0.1 * found[1].norm()


# ---- rl.train, with rollouts that are given instead of sampled -----------------------------------

# ragged, with forced tokens, with the ids of padding and of eos, and with completions that occur twice
DRAW = np.random.default_rng(3).integers
TURN = [9, 30]
CONTEXTS = [[1, 7, *DRAW(3, 48, n).tolist()] for n in (2, 7, 1, 3, 3, 2, 5, 1)]
SAID = [[DRAW(0, 4, n).tolist() for n in DRAW(1, 5, 4)] for _ in CONTEXTS]
EARNED = np.random.default_rng(3).uniform(size=(8, 4)).tolist()
BOTH = dict(kl=0.3, rollout_temperature=1.5)
PAIRS = list(itertools.product(range(3), repeat=2))  # all completions of two of three tokens
PAIR_REWARDS = torch.tensor([0.9, 0.1, 0.35, 0.6, 0.0, 0.95, 0.2, 0.7, 0.5], dtype=torch.float64)


def parted(tokens, confidence):
    """Somewhere into a thought, what is forced, and a number."""
    begin, end = sorted(DRAW(0, len(tokens) + 1, 2))
    return Rollout(tokens[:begin], tokens[begin:end], tokens[end:], confidence)


BATCH = [[parted(*x) for x in zip(*both, strict=True)] for both in zip(SAID, EARNED, strict=True)]


def earning(earned, batch=BATCH):
    return [[x._replace(confidence=c) for x, c in zip(*both, strict=True)] for both in zip(batch, earned, strict=True)]


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    """Every call of rl.train leaves its optimiser behind."""

    class Watched(Recorder):
        def __init__(self, *args):
            super().__init__(*args)
            self.losses, self.scales, self.steps = [], [], []
            rl.last = self

        def backward(self, loss):
            self.losses.append(loss.item())
            super().backward(loss)

        def step(self):
            self.scales.append(self.scaler.get_scale())
            norm = super().step()
            self.steps.append(torch.cat([g.flatten() for g in self.gradients]))
            return norm

    monkeypatch.setattr(rl, "last", None, raising=False)
    monkeypatch.setattr(rl, "Optimizer", Watched)


def adapter_of(lm):
    return torch.cat([p.detach().flatten() for p in lm.model.parameters() if p.requires_grad])


def dressed(lm, dropout=0.0):
    """With an adapter that is not zero, always the same."""
    randomise(add_lora(lm, rank=2, alpha=4, dropout=dropout), scale=0.3)
    return lm


def given(lm, config, batch=BATCH, contexts=CONTEXTS, turn=TURN, see=None, saved=None):
    """Train with these rollouts, which earn what they state, in every step. -> what is logged, the optimiser"""
    asked, log = [], []

    def second_turn(q, *_):
        asked.append(int(q))
        return contexts[int(q)], turn

    items = [Item(str(q), "", q / len(contexts), 1) for q in range(len(contexts))]
    config = replace(config, questions=99, rollouts=len(batch[0]))  # there are fewer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl, "rollout", lambda lm, prompt, which, *_: [batch[q] for q in asked[-len(which.prompts) :]])
        rl.train(lm, SimpleNamespace(second_turn=second_turn), items, config, lambda c, x: c or 0.0,
                 lambda record: (log.append(record), see and see(record)), saved)  # fmt: skip
    return log, rl.last


def said_logp(lm, config, context, turn, said):
    """log π of the tokens of a completion, in a pass of its own. -> (T,)"""
    if config.adapter == "turn":
        return plain_logp(lm, context, turn + said, config.rollout_temperature)[len(turn) :]
    logits = lm.model(input_ids=torch.tensor([context + turn + said])).logits[0, -len(said) - 1 : -1]
    return (logits / config.rollout_temperature).log_softmax(-1)[range(len(said)), said]


def plain_gradient(lm, config, batch=BATCH, contexts=CONTEXTS, turn=TURN, reward=lambda c, q: c):
    """REINFORCE with the group as baseline, by loops. -> gradient, the divergence"""
    gain, divergence, size = 0.0, 0.0, sum(map(len, batch))
    for q, (context, group) in enumerate(zip(contexts, batch, strict=True)):
        earned = [reward(r.confidence, q) for r in group]
        for i, (thought, forced, number, _) in enumerate(group):
            a = torch.tensor([1] * len(thought) + [0] * len(forced) + [1] * len(number))
            logp = said_logp(lm, config, context, turn, thought + forced + number)
            with torch.no_grad(), adapter(lm, False):
                reference = said_logp(lm, config, context, turn, thought + forced + number)
            gain = gain + advantage_by_loop(earned, i, config.advantage) * (logp * a).sum() / size
            divergence = divergence + ((logp - reference) ** 2 / 2 * a).sum() / size
    parameters = [p for p in lm.model.parameters() if p.requires_grad]
    found = torch.autograd.grad(config.kl * divergence - gain, parameters)
    return torch.cat([g.flatten() for g in found]), divergence.item()


def close(got, want, share):
    """Vectors that differ by a small share of their length."""
    return (got - want).norm() <= share * want.norm() and want.norm() > 1e-4


@pytest.mark.parametrize("family, engine, passes, change", [
    ("llama", "plain", 1, {}), ("gpt2", "shared", 1, BOTH), ("llama", "plain", 1, BOTH | dict(micro_batch=8)),
    ("llama", "plain", 4, BOTH | dict(micro_batch=2)), ("gpt2", "shared", 4, BOTH | dict(micro_batch=2)),
    ("gpt2", "plain", None, BOTH), ("gpt2", "shared", None, BOTH), ("llama", "plain", 1, BOTH | dict(recompute="on")),
    ("gpt2", "shared", 4, BOTH | dict(recompute="on", micro_batch=2)),
    ("gpt2", "plain", 2, BOTH | dict(adapter="everywhere")), ("llama", "shared", 2, dict(adapter="everywhere")),
    ("llama", "shared", 1, dict(advantage="zscore", rollout_temperature=0.7, max_grad_norm=0.05)),
], ids=str)  # fmt: skip
def test_training_equals_a_plain_loop(load, monkeypatch, family, engine, passes, change):
    """However a step is split (None: by the logits that may be held, of nine tokens, so that groups are too), whatever
    the engine, the recomputation. GPT-2's dropout of 0.1 would show, so it is off."""
    lm, plain, held, again, checkpoint = dressed(load(family)), dressed(load(family)), [], [], rl.checkpoint
    monkeypatch.setattr(rl, "checkpoint", lambda *args, **more: again.append(args) or checkpoint(*args, **more))
    before, config = adapter_of(lm), Config(amp="off", lr=1e-1, steps=2, **change)
    if passes is None:
        monkeypatch.setattr("lm.LOGITS", 48 * 9)
        lm.model.register_forward_hook(lambda *a: held.append(a[-1].logits.shape[:2].numel()))
    log, optimizer = given(shared(lm) if engine == "shared" else lm, config)
    assert len(optimizer.losses) == 2 * passes if passes else len(optimizer.losses) > 16 and max(held) <= 9
    assert bool(again) == (config.recompute == "on")
    parameters = [p for p in plain.model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0)
    for step, record in enumerate(log):
        want, divergence = plain_gradient(plain, config)
        norm = want.norm().item()
        assert close(optimizer.steps[step], want, 1e-3) and record["grad_norm"] == pytest.approx(norm, rel=1e-3)
        assert record["kl"] == pytest.approx(divergence if config.kl else 0, rel=1e-3)
        clipped = want * min(1.0, config.max_grad_norm / norm)
        for p, part in zip(parameters, clipped.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)
        adam.param_groups[0]["lr"] = config.lr * min((step + 1) / 10, 1 - step / config.steps)
        adam.step()
    assert close(adapter_of(lm) - before, adapter_of(plain) - before, 1e-2) and not lm.model.training


@pytest.mark.parametrize("kind, factor, temperature", [("loo", 1, 1.0), ("loo", 1, 1.5), ("center", 0.5, 1.0)])
def test_a_step_is_unbiased(kind, factor, temperature):
    """All 81 groups of two, as so many questions, weighted by their chance: the gradient of the expected reward, which
    "center" shrinks by (G - 1) / G."""
    config = transformers.GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    lm = LM(transformers.GPT2LMHeadModel(config).eval().requires_grad_(False), None, "three tokens")
    randomise(lm.model.parameters())
    config = Config(rollout_temperature=temperature, amp="off", steps=1, advantage=kind)
    dressed(lm)
    chance = torch.stack([said_logp(lm, config, [0, 2, 1], [1], list(x)).sum().exp().double() for x in PAIRS])
    assert chance.sum().item() == pytest.approx(1)
    parameters = [p for p in lm.model.parameters() if p.requires_grad]
    want = torch.cat([g.flatten() for g in torch.autograd.grad((chance * PAIR_REWARDS).sum(), parameters)])
    groups = list(itertools.product(range(9), repeat=2))
    earned = [(chance[i] * chance[j] * PAIR_REWARDS[[i, j]]).tolist() for i, j in groups]
    batch = earning(earned, [[Rollout([PAIRS[i][0]], [], [PAIRS[i][1]], None) for i in group] for group in groups])
    _, optimizer = given(lm, config, batch, [[0, 2, 1]] * 81, [1])
    assert close(-81 * optimizer.steps[0], factor * want, 1e-3)


def test_what_is_logged(load):
    earned = [[0.1, None, 0.3, 0.1], [0.5, 0.5, 0.5, 0.5], [None, None, 0.75, 0.25]]
    lm = dressed(load("llama"))
    log, optimizer = given(lm, Config(amp="off", steps=2), earning(earned, BATCH[:3]), CONTEXTS[:3])
    stated = [[c for c in group if c is not None] for group in earned]
    assert log[0] == pytest.approx({
        "step": 0, "reward": sum(map(sum, stated)) / 12, "malformed": 3 / 12, "distinct": 5, "no_signal": 1 / 3,
        "mean_confidence": np.mean(sum(stated, [])), "kl": 0, "skipped": 0, "loss": optimizer.losses[0],
        "correlation": np.corrcoef([np.mean(group) for group in stated], [0, 1 / 3, 2 / 3])[0, 1],
        "tokens": sum(len(x.reflection + x.number) for x in sum(BATCH[:3], [])),  # what is forced is not generated
        "grad_norm": optimizer.steps[0].norm().item(),
    }, rel=1e-4)  # fmt: skip
    before = adapter_of(lm)
    log, _ = given(lm, Config(amp="off", steps=2), earning([[None] * 4] * 8))  # no number at all: no signal, no step
    for record in log:
        assert record["malformed"] == record["no_signal"] == 1 and record["reward"] == record["distinct"] == 0
        assert record["mean_confidence"] is record["correlation"] is None and record["grad_norm"] == 0
    assert torch.equal(adapter_of(lm), before)
    for undefined in ([], [(0.3, 0.4)], [(0.25, 0.1), (0.25, 0.2)], [(0.1, 0.5), (0.2, 0.5)]):
        assert loop.correlation(undefined) is None
    # rounding is none: the policy says 10% everywhere, and malformed rollouts make the groups unequal
    x = [np.mean([0.1] * n) for n in (3, 4, 6, 8)]
    assert loop.correlation(list(zip(x, [0.2, 0.9, 0.4, 0.6], strict=True))) is None


def test_learning_rate_and_precision(load, monkeypatch):
    lm = dressed(load("gpt2"))
    (rate,) = rl.Optimizer(lm, Config(amp="off", warmup=10, steps=30)).schedule.lr_lambdas
    np.testing.assert_allclose([rate(i) for i in range(41)], [min((i + 1) / 10, 1 - i / 40) for i in range(41)])
    cpu, gpu, half = torch.device("cpu"), torch.device("cuda"), {"bf16": torch.bfloat16, "fp16": torch.float16}
    for name, dtype in {"off": None, **half}.items():
        assert rl.amp_dtype(name, cpu) is rl.amp_dtype(name, gpu) is dtype
    assert rl.amp_dtype("auto", cpu) is None
    for has, name in [(True, "bf16"), (False, "fp16")]:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has, **_: has)
        assert rl.amp_dtype("auto", gpu) is half[name]


@pytest.mark.parametrize("n, size", [(12, 4), (7, 3), (5, 5), (10, 1)])
def test_an_epoch_has_each_question_once(n, size):
    order, other = ([i for step in range(3 * n) for i in batch_of(step, n, size, seed)] for seed in (4, 5))
    epochs = [order[i : i + n] for i in range(0, len(order), n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1 and order != other


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision(load, amp):
    """The gradient is close. A step that overflows is skipped, and halves the scale that fp16 needs."""
    want, _ = plain_gradient(dressed(load("llama")), Config(kl=0.1))
    lm, dtypes, states, batch = dressed(load("llama")), set(), [], list(BATCH)
    lm.model.model.layers[0].mlp.up_proj.base.register_forward_hook(lambda *a: dtypes.add(a[2].dtype))

    def see(record):
        states.append(adapter_of(lm))
        batch[:] = earning(np.multiply(EARNED, 1e37 if record["step"] == 8 else 1).tolist())  # of step 9

    log, optimizer = given(lm, Config(amp=amp, kl=0.1, lr=1e-6, steps=11), batch, see=see)
    skipped, scales = [r["skipped"] for r in log], optimizer.scales
    assert skipped[8:] == [0, 1, 0]  # before, fp16 has to find its scale
    if amp == "fp16":
        assert scales == [2.0 ** (10 - sum(s > 0 for s in skipped[:i])) for i in range(11)]
    assert torch.equal(states[9], states[8]) and not torch.equal(states[10], states[9])
    assert torch.cosine_similarity(optimizer.steps[-1] / scales[-1], want, dim=0) > 0.98
    assert log[-1]["grad_norm"] == pytest.approx(want.norm().item(), rel=0.05)  # unscaled before it is clipped
    assert dtypes == {rl.amp_dtype(amp, lm.device)}
    assert {p.dtype for p in lm.model.parameters()} == {g.dtype for g in optimizer.gradients} == {torch.float32}


def spoil(lm, steps):
    """The gradient of these optimiser steps is nan: one backward pass each."""
    parameter, count = next(p for p in lm.model.parameters() if p.requires_grad), itertools.count()
    parameter.register_hook(lambda g: g * torch.nan if next(count) in steps else g)
    return lm


@pytest.mark.parametrize("bad, skipped", [
    ({1, 2, 4}, [0, 1, 2, 0, 1, 0, 0]), (range(2, 99), [0, 0, 1, 2, 3, 4, 5]),  # five in a row, and it stops
], ids=["some", "all"])  # fmt: skip
def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(load, bad, skipped):
    lm, states = spoil(dressed(load("llama")), bad), []
    config = Config(amp="off", lr=1e-2, steps=7 if skipped[-1] == 0 else 30)
    log, optimizer = given(lm, config, see=lambda _: states.append(adapter_of(lm)))
    assert [r["skipped"] for r in log] == skipped
    assert [torch.equal(a, b) for a, b in itertools.pairwise(states)] == [s > 0 for s in skipped[1:]]
    assert adapter_of(lm).isfinite().all() and optimizer.schedule.last_epoch == skipped.count(0)
    assert troubles(log)[-1].startswith("it ended early" if skipped[-1] else "3 steps had no finite gradient")


def test_training_that_ended_early_does_not_go_on(load, tmp_path, monkeypatch):
    """Started again, with the checkpoint of its last step; one that is damaged is named."""
    clock = itertools.accumulate(itertools.chain([0], itertools.cycle([100, 0, 1])))  # a step takes long, saving not
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=clock.__next__))
    saved, config = tmp_path / "saved", Config(amp="fp16", steps=30)
    for _ in range(2):
        log, optimizer = given(spoil(dressed(load("llama")), range(99)), config, saved=saved)
        assert [r["skipped"] for r in log] == [1, 2, 3, 4, 5] and optimizer.scaler.get_scale() == 2.0**5
    saved.write_bytes(b"PK what is this")
    with pytest.raises(ValueError, match="saved is damaged: delete it, and training begins again"):
        given(dressed(load("llama")), config, saved=saved)


# ---- rollouts ------------------------------------------------------------------------------------

SEEDS = [11, 12, 13, 14]


@pytest.fixture(params=["plain", "shared"])
def speaker(request, world):
    """A random model of the toy world and its prompt, with either engine."""
    lm, prompt = world()
    return (shared(lm) if request.param == "shared" else lm), prompt


@pytest.mark.parametrize("reflection", [0, 1, 7])
def test_rollouts(speaker, reflection):
    """Perhaps a thought, and the label that nobody chose; a number, the token that ends it included."""
    (lm, prompt), asking = speaker, [ASKED[0], *ASKED[:3]]
    prompt, line, number = replace(prompt, reflection=reflection), stop_ids(lm, "\n"), stop_ids(lm, "\n%")
    asked, batch = roll(dressed(lm), prompt, asking, 60, 1.3, SEEDS)
    assert asked.prompts == [sum(prompt.second_turn(q, a), []) for q, a in asking]
    assert [len(group) for group in batch] == [60] * 4
    found = sum(batch, [])
    for r in found:
        for part, longest, stop in ((r.reflection, reflection, line), (r.number, rl.NUMBER_TOKENS, number)):
            assert not stop & set(part[:-1]) and (len(part) == longest or part[-1] in stop)
        assert r.forced == (prompt.forced(r.reflection[-1], "Confidence:") if reflection else [])
        text = lm.tokenizer.decode([t for t in r.number if t != lm.tokenizer.eos_token_id])
        assert r.confidence == prompt.statement.read(f"Confidence:{text}")
        assert r.tokens == r.reflection + r.forced + r.number and len(r.actions) == len(r.tokens)
        assert [t for t, chosen in zip(r.tokens, r.actions, strict=True) if chosen] == r.reflection + r.number
    assert loop.sampled(batch) == sum(sum(r.actions) for r in found)
    assert len({r.confidence for r in found} - {None}) > 2
    assert any(r.number[-1] == lm.tokenizer.eos_token_id for r in found)  # which is an action too
    assert len({len(r.reflection) for r in found}) > 2 or reflection < 7
    if reflection == 1:  # numbers after the same thought are drawn independently: across groups, and inside each
        assert any(a.reflection == b.reflection and a.number != b.number for a, b in zip(*batch[:2], strict=True))
        common = Counter(r.reflection[0] for r in batch[0]).most_common(1)[0][0]
        assert len({tuple(r.number) for r in batch[0] if r.reflection == [common]}) > 1
    # both engines score them as plain passes do
    logp, _ = lm.engine(9).completion_logprobs(lm, asked.read(lm, [1]), [[r.tokens for r in batch[1][:5]]], 1.3)
    for got, r in zip(logp, batch[1], strict=False):
        turn = prompt.second_turn(*asking[1])[1]
        want = plain_logp(lm, asked.prompts[1][: -len(turn)], turn + r.tokens, 1.3)[len(turn) :]
        torch.testing.assert_close(got[: len(want)], want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("reflection", [0, 5])
def test_temperature_zero_is_greedy(speaker, reflection):
    """By plain passes; the number follows from the reflection. Whoever samples has the adapter on."""
    lm, prompt = speaker[0], replace(speaker[1], reflection=reflection)
    _, batch = roll(dressed(lm), prompt, ASKED, 2, 0.0, SEEDS)

    def greedy(context, head, steps, stop):
        out = []
        while len(out) < steps and not (out and out[-1] in stop):
            out.append(int(plain_logits(lm, context, head + out)[-1].argmax()))
        return out

    for (q, a), group in zip(ASKED, batch, strict=True):
        context, turn = prompt.second_turn(q, a)
        begun = greedy(context, turn, reflection, stop_ids(lm, "\n"))
        begun += prompt.forced(begun[-1], "Confidence:") if reflection else []
        assert [r.tokens for r in group] == [begun + greedy(context, turn + begun, 6, stop_ids(lm, "\n%"))] * 2


@pytest.mark.parametrize("reflection", [0, 5])
def test_rollouts_depend_on_their_seed_alone(speaker, reflection, monkeypatch):
    """Not on the batch, but for rounding; so a part at a time, where their caches would not fit, changes nothing."""
    lm, prompt = speaker[0], replace(speaker[1], reflection=reflection)

    def drawn(pairs=ASKED, seeds=SEEDS):
        return [tuple(r.tokens) for r in sum(roll(lm, prompt, pairs, 8, 1.2, seeds)[1], [])]

    def same(other):
        return np.mean([a == b for a, b in zip(whole, other, strict=True)])

    whole = drawn()
    assert same(drawn()) > 0.9 and same(drawn(seeds=[1, 2, 3, 4])) < 0.9
    assert same(sum((drawn([pair], [seed]) for pair, seed in zip(ASKED, SEEDS, strict=True)), [])) > 0.9
    monkeypatch.setattr("lm.CACHED", 1)
    assert same(drawn()) > 0.9 and len(set(drawn([ASKED[0]] * 2, [1, 2]))) > 8


# ---- all of a step, sampled ----------------------------------------------------------------------

ITEMS = [Item(f"banner of {s}", a, p, 1) for s in SUBJECTS for a, p in [("red", 0.9), ("blue", 0.1)]]
FAST = Config(steps=30, questions=8, rollouts=16, lr=1e-2, amp="off", reflection=0)
calibrated = rewards.chosen(FAST)


def learn(world, config, items=ITEMS, layers=1, see=lambda lm: None, saved=None):
    """-> the trained model, and what was logged."""
    (lm, prompt), log = world(layers, reflection=config.reflection), []
    add_lora(lm, rank=4, alpha=8, dropout=config.dropout)
    rl.train(lm, prompt, items, config, calibrated, lambda r: (log.append(r), see(lm)), saved,
             exact.instead(lm, prompt, config, calibrated))  # fmt: skip
    return lm, log


@pytest.mark.parametrize("reflection, engine", [(0, "shared"), (3, "plain"), (3, "shared")])
def test_the_gradient_of_what_was_sampled(world, monkeypatch, reflection, engine):
    """By plain passes over each rollout; no two groups have a seed in common."""
    (lm, prompt), seen, sample = world(reflection=reflection), [], rl.rollout
    monkeypatch.setattr(rl, "rollout", lambda *args: seen.append((args, sample(*args))) or seen[-1][1])
    config = Config(rollout_temperature=1.7, kl=0.1, questions=4, rollouts=3, steps=2, amp="off")
    asked, log = [ITEMS[0], *ITEMS[:3]], []
    rl.train(dressed(shared(lm) if engine == "shared" else lm), prompt, asked, config, calibrated, log.append)
    assert {args[4] for args, _ in seen} == {1.7} and len({s for args, _ in seen for s in args[5]}) == 8
    assert len({str([r.tokens for r in group]) for _, batch in seen for group in batch}) == 8
    items, batch = [asked[i] for i in batch_of(0, 4, 4, seed_of(config.seed, "train"))], seen[0][1]
    contexts, (turn, *_) = zip(*(prompt.second_turn(x.question, x.answer) for x in items), strict=True)
    want, _ = plain_gradient(dressed(world()[0]), config, batch, contexts, turn, lambda c, q: calibrated(c, items[q]))
    assert close(rl.last.steps[0], want, 1e-3) and log[0]["tokens"] == loop.sampled(batch)


@pytest.mark.parametrize("change", [
    {"warmup": 5}, {"gradient": "exact", "kl": 0.05, "steps": 60}, {"warmup": 10, "steps": 60, "reflection": 2},
    {"gradient": "exact", "kl": 0.05, "steps": 40, "reflection": 2, "rollouts": 4},
], ids=str)  # fmt: skip
def test_it_learns_to_tell_questions_apart(world, change):
    """In two layers: with one, the adapter, on for the turn alone, does not reach what was read below it."""
    lm, log = learn(world, replace(FAST, **change), layers=2)
    assert log[-1]["correlation"] > 0.9 and log[-1]["reward"] > 0.65 > 0.55 > log[change.get("warmup", 0)]["reward"]
    assert troubles(log) == []
    frozen = [p for p in lm.model.parameters() if not p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(frozen, world(2)[0].model.parameters(), strict=True))


@pytest.mark.parametrize("change", [
    {}, {"gradient": "exact", "every": 5, "warmup": 1}, {"amp": "fp16", "kl": 0.1}, {"steps": 0, "warmup": 4},
    {"dropout": 0.5, "reflection": 2}, {"gradient": "exact", "reflection": 2},
], ids=str)  # fmt: skip
def test_training_that_was_interrupted_ends_as_if_it_had_not_been(world, change, tmp_path, monkeypatch):
    """Stopped after each step; the checkpoint is written after the first one of every call."""
    config = replace(FAST, rollouts=4, **({"steps": 3, "warmup": 2} | change))
    (whole, log), last, batches, calls = learn(world, config), [], batch_of, itertools.count(1)

    def cut(*args):
        if next(calls) % 2 == 0:
            raise KeyboardInterrupt
        return batches(*args)

    monkeypatch.setattr(loop, "batch_of", cut)
    for _ in log[1:]:
        with pytest.raises(KeyboardInterrupt):
            learn(world, config, saved=tmp_path / "saved", see=last.append)
    lm, seen = learn(world, config, saved=tmp_path / "saved")  # each call tells all of it
    assert close(adapter_of(lm), adapter_of(whole), 1e-3)
    assert [r["step"] for r in seen] == [r["step"] for r in log] == list(range(-config.warmup, config.steps))
    assert [r["grad_norm"] for r in seen] == pytest.approx([r["grad_norm"] for r in log], rel=1e-2, nan_ok=True)


def test_dropout_is_in_the_update_alone(world, monkeypatch):
    """What samples, the old policy and the reference have none; so the ratio is not 1. Without dropout, nothing is as
    it would not be without the code for it, to the bit."""

    def step(dropout, **change):
        (lm, prompt), seen = world(reflection=3), {}

        def spy(name, real):
            def call(*args, **more):
                seen[name] = args, real(*args, **more)
                return seen[name][1]

            patch.setattr(rl, name, call)

        for name in ("rollout", "policy_loss", "kl_to_reference"):
            spy(name, vars(rl)[name])
        config = replace(FAST, dropout=dropout, kl=0.1, steps=1, rollouts=4, **change)
        rl.train(dressed(lm, dropout), prompt, ITEMS, config, calibrated, lambda record: None)
        (logp, old, *rest), (loss, _) = seen["policy_loss"]
        assert loss.item() == policy_loss(logp, old, *rest, normaliser=32)[0].item() and not old.requires_grad
        return seen["rollout"][1], logp.detach(), old, seen["kl_to_reference"][0][1], adapter_of(lm)

    with monkeypatch.context() as patch:
        batch, logp, old, reference, trained = step(0.0)
        dropped, recomputed = step(0.5), step(0.5, recompute="on")
        patch.setattr(LoRA, "forward", lambda lora, x: lora.base(x) + lora.on * lora.scale * (x @ lora.A.T @ lora.B.T))
        plain = step(0.0)
    assert batch == dropped[0] == plain[0] and torch.equal(logp, old)
    torch.testing.assert_close(dropped[2:4], (old, reference))
    assert (dropped[1] - old).abs().max() > 0.1 and not torch.equal(dropped[4], trained)
    assert all(map(torch.equal, plain[1:], (logp, old, reference, trained)))
    torch.testing.assert_close(recomputed[1:], dropped[1:])


@pytest.mark.parametrize("engine", ["plain", "shared"])
def test_few_frames_lie_between_main_and_the_model(call, tmp_path, monkeypatch, engine):
    """Between main and the function that calls the model, of our own files. And each generated token is counted."""
    root, forward, seen = Path(calunc.__file__).parent, transformers.GPT2LMHeadModel.forward, []

    @functools.wraps(forward)
    def traced(*args, **kwargs):
        frames = [
            (Path(frame.f_code.co_filename), frame.f_code.co_name) for frame, _ in traceback.walk_stack(sys._getframe())
        ]
        own = [f"{p.stem}.{name}" for p, name in frames if p.is_relative_to(root) and "tests" not in p.parts]
        seen.append(own[1 : own.index("calunc.main")])  # own[0] calls the model
        return forward(*args, **kwargs)

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "forward", traced)
    assert call(tmp_path / "run", "--steps", "2", "--engine", engine, "--kl", "0.1", command="train") == 0
    for stage in ("calunc.sample", "calunc.train"):
        chains = [names for names in seen if names[-1:] == [stage]]
        assert chains and max(map(len, chains)) <= 6, max(chains, key=len)
    assert len(inspect.getsourcelines(rl.train)[0]) <= 70
    cost = json.loads((tmp_path / "run/stages.json").read_text())
    assert cost["train"]["tokens"] == sum(row["tokens"] for row in rows(tmp_path / "run/metrics.jsonl")) > 0

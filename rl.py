"""Stage 3: reinforcement learning that aligns the confidence a model *states* with a calibrated target.

    r_i  = 1 - max(tolerance, |c_i - p|)                       reward of one rollout (rewards.py has others)
    A_i  = r_i - mean of the other rewards of its group        advantage ("loo": leave-one-out baseline, RLOO)
    ratio_t = exp(logp_t - old_logp_t)
    L    = -1/M sum_i sum_t min(ratio_t A_i, clip(ratio_t, 1 - eps, 1 + eps) A_i)       PPO's clipped objective

c_i is the stated confidence of rollout i, p the target of its question, and M a constant (the number of rollouts of a
step), so that splitting a step into micro-batches changes nothing. With one update per rollout the ratio is 1 and L
has the gradient of REINFORCE; "zscore" advantages make it GRPO as published.

Sources: REINFORCE, Williams 1992; PPO, arXiv 1707.06347; GRPO, arXiv 2402.03300; RLOO, arXiv 2402.14740. "zscore" is
not the default: it was measured to make models overconfident (arXiv 2508.11800).

Left out: a value network (the group is the baseline) and a reward on the answer: the answer is frozen text.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

import parallel
import statements
from amp import Optimizer
from lm import completion_logprobs, seed_of
from lora import adapter
from prefix import chunks, tree_of
from rewards import calibration_reward  # noqa: F401, part of what this module offers
from run import first, write_whole

KINDS = ("loo", "center", "zscore")
PATIENCE = 5  # steps in a row without a finite gradient


# ---- advantage, loss --------------------------------------------------------------------------------------------


def group_advantages(rewards, kind="loo"):
    """Advantages inside each group of rollouts of one question. (Q, G) -> (Q, G) float64, rewards unchanged.

    "loo": r_i - mean of the others; "center": r_i - mean; "zscore": (r_i - mean) / (std + 1e-6), GRPO's.
    A group whose rewards are all equal gets exactly 0. Raises ValueError for an unknown kind, a shape other than
    (Q, G), and rewards that are not finite.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of advantage {kind!r}: choose one of {', '.join(KINDS)}")
    r = np.asarray(rewards, dtype=np.float64)
    if r.ndim != 2 or 0 in r.shape or not np.isfinite(r).all():
        raise ValueError("rewards must be finite, of shape (Q, G)")
    centered = r - r.mean(axis=1, keepdims=True)
    if kind == "loo":
        # r_i - (sum - r_i) / (G - 1) = (r_i - mean) G / (G - 1)
        centered = centered * r.shape[1] / max(r.shape[1] - 1, 1)
    if kind == "zscore":
        centered = centered / (r.std(axis=1, keepdims=True) + 1e-6)
    # rounding in the mean must not become a signal where there is none
    constant = r.max(axis=1, keepdims=True) == r.min(axis=1, keepdims=True)
    return np.where(constant, 0.0, centered)


def policy_loss(logp, old_logp, advantages, mask, clip=0.2, normaliser=None):
    """PPO's clipped policy-gradient loss. (B, T), (B, T), (B,), (B, T) -> scalar, stats.

    old_logp: log-probabilities under the policy that sampled, without gradient. normaliser: what the sum over tokens
    is divided by; B unless given (give the size of the whole step when B is a micro-batch).
    stats: clip_fraction, the share of real tokens whose ratio left [1 - clip, 1 + clip]; approx_kl, the mean over real
    tokens of old_logp - logp, in nats.
    """
    log_ratio = (logp - old_logp) * mask
    ratio = log_ratio.exp()
    advantage = advantages.to(ratio.dtype)[:, None]
    # the minimum for both signs of the advantage: the pessimistic side of the trust region
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    loss = -(objective * mask).sum() / (normaliser or len(logp))
    tokens = mask.sum().clamp_min(1)
    outside = ((ratio - 1).abs() > clip) * mask
    stats = {"clip_fraction": float(outside.sum() / tokens), "approx_kl": float(-log_ratio.detach().sum() / tokens)}
    return loss, stats


def kl_to_reference(logp, ref_logp, mask):
    """Low-variance estimate of KL(policy || reference), k2 = (logp - ref)²/2, (B, T) x 3 -> sum over tokens.

    As a loss on fresh samples, each token's k2 has the expected gradient of that token's KL(policy || reference) given
    the tokens before it (that these change too is left out); k1's is zero, and k3's is that of KL(reference || policy).
    Names and estimators: Schulman, "Approximating KL Divergence", 2020.
    """
    return (0.5 * (logp - ref_logp) ** 2 * mask).sum()


# ---- the loop ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One training question with the model's own answer, which is frozen."""

    question: str
    answer: str
    target: float  # calibrated probability that the answer is correct
    correct: int  # is it?


def batch_of(step, n, size, seed):
    """The questions of a step: shuffled epochs, cut into batches of `size`; a function of its arguments alone."""
    places = range(step * size, (step + 1) * size)
    order = {e: np.random.default_rng([seed, e]).permutation(n) for e in {i // n for i in places}}
    return [int(order[i // n][i % n]) for i in places]


def warm_up(lm, prompt, items, config, optimizer):
    """One supervised step on the calibrated targets: raise log π(" 75%") for a target of 0.73. -> what is logged

    Multiples of five: people say round numbers, and so does the text that models are trained on.
    """
    step = max(5, config.every)
    texts = [lm.proceed(f" {step * round(100 * x.target / step)}%") for x in items]
    mine = parallel.share(list(zip(items, texts, strict=True)))
    asked = statements.ask(lm, prompt, [(x.question, x.answer) for x, _ in mine], where=config.adapter)
    completions = [[asked.turn + text] for _, text in mine]
    with optimizer.autocast():
        logp, mask = completion_logprobs(
            lm, asked.read, completions, recompute=config.recompute == "on", given=len(asked.turn)
        )
    loss = -(logp * mask).sum() / sum(map(len, texts))
    optimizer.backward(loss)
    return {**parallel.totals(supervised_loss=loss.item()), "grad_norm": optimizer.step()}


def correlation(pairs):
    """Pearson correlation of (mean stated confidence, target) over the questions of a step; None if undefined."""
    x = np.array(pairs).T
    # the mean of equal numbers is not always that number: a spread of rounding errors is none
    return float(np.corrcoef(x)[0, 1]) if len(pairs) > 1 and (np.ptp(x, axis=1) > 1e-9).all() else None


def _parts(lm, sizes, micro_batch):
    """Questions that share a backward pass: so many, or as many as can hold their log-probabilities for it."""
    every = range(len(sizes))
    return [every[i : i + micro_batch] for i in every[::micro_batch]] if micro_batch else chunks(sizes, lm.chunk)


def update(lm, batch, advantages, config, optimizer):
    """Optimiser steps on one batch of rollouts, Q groups of G. -> stats of the last of them"""
    size, tokens = parallel.totals(size=advantages.size, tokens=batch.tokens).values()
    parts = _parts(lm, [len(tree_of(group)) for group in batch.completions], config.micro_batch)
    reads = [batch.asked.some(part).read for part in parts]
    completions = [[batch.completions[q] for q in part] for part in parts]
    given, old, stats = len(batch.asked.turn), {}, {}

    def logprobs(i, **kwargs):
        return completion_logprobs(lm, reads[i], completions[i], config.rollout_temperature, given=given, **kwargs)

    for number in range(config.updates):
        totals = {"loss": 0.0, "clip_fraction": 0.0, "approx_kl": 0.0, "kl": 0.0}
        if number == 0 and config.updates > 1:  # the policy that sampled, before its first change
            with torch.no_grad(), optimizer.autocast():
                old = {i: logprobs(i)[0] for i in range(len(parts))}
        for i, part in enumerate(parts):
            with optimizer.autocast():
                logp, _ = logprobs(i, recompute=config.recompute == "on")  # (B, T)
            length = logp.shape[1]
            rows = [a + [0] * (length - len(a)) for q in part for a in batch.actions[q]]
            actions = torch.tensor(rows, device=lm.device)  # (B, T)
            advantage = torch.as_tensor(advantages[list(part)].reshape(-1), device=lm.device)  # (B,)
            # with one update the ratio is 1 in value, and still carries the gradient
            loss, of_part = policy_loss(logp, old.get(i, logp.detach()), advantage, actions, config.clip, size)
            if config.kl:
                with torch.no_grad(), adapter(lm, False), optimizer.autocast():
                    ref, _ = logprobs(i)
                divergence = kl_to_reference(logp, ref, actions) / size
                loss = loss + config.kl * divergence
                totals["kl"] += divergence.item()
            optimizer.backward(loss)
            totals["loss"] += loss.item()
            share = int(actions.sum()) / tokens  # the stats are means over tokens
            for name, value in of_part.items():
                totals[name] += value * share
        stats = {"grad_norm": optimizer.step(), **parallel.totals(**totals)}
    return stats


def update_exactly(lm, asked, said, rewards, config, optimizer):
    """One optimiser step on the expected reward sum_c pi(c) r(c). rewards (Q, C) -> stats, log pi (Q, C)

    The gradient of the reward is the one that REINFORCE estimates from rollouts, without noise; percentages that were
    left out of `said`, and whatever is none, earn 0. The divergence is that of the distributions over `said` and all
    else, not of the tokens one by one.
    """
    size, found, totals = parallel.totals(size=len(rewards))["size"], [], {"loss": 0.0, "kl": 0.0}
    tokens = len(tree_of([asked.turn + ids for ids in said.values()]))
    for part in _parts(lm, [tokens] * len(rewards), config.micro_batch):  # equal sizes: in their order
        some = asked.some(part)
        with optimizer.autocast():
            recompute = config.recompute == "on"
            logp = statements.log_policy(lm, some, said, config.rollout_temperature, recompute)  # (Q', C)
        loss = -(logp.exp() * rewards[list(part)]).sum() / size
        if config.kl:
            with torch.no_grad(), adapter(lm, False), optimizer.autocast():
                reference = statements.log_policy(lm, some, said, config.rollout_temperature)
            kl = statements.divergence(logp, reference).sum() / size
            loss = loss + config.kl * kl
            totals["kl"] += kl.item()
        optimizer.backward(loss)
        totals["loss"] += loss.item()
        found.append(logp.detach())
    return {"grad_norm": optimizer.step(), **parallel.totals(**totals)}, torch.cat(found)


def sampled_step(lm, prompt, chosen, reward, config, optimizer, step):
    """Rollouts, rewards, advantages, update. -> what is logged"""
    mine = parallel.share(list(enumerate(chosen)))
    seeds = [seed_of(config.seed, "rollout", step, i) for i, _ in mine]
    with optimizer.autocast():
        pairs = [(x.question, x.answer) for _, x in mine]
        asked = statements.ask(lm, prompt, pairs, config.reasoning > 0, where=config.adapter)
        batch = statements.rollout(
            lm, prompt, asked, config.rollouts, config.rollout_temperature, seeds, config.reasoning
        )
    groups = zip(batch.confidence, mine, strict=True)
    rewards = np.array([[reward(c, x) for c in group] for group, (_, x) in groups])
    stats = update(lm, batch, group_advantages(rewards, config.advantage), config, optimizer)
    rewards, confidence = np.array(parallel.gather(rewards.tolist())), parallel.gather(batch.confidence)
    stated = [[c for c in group if c is not None] for group in confidence]
    numbers = sum(stated, [])
    return {
        "reward": float(rewards.mean()),
        "malformed": 1 - len(numbers) / rewards.size,
        "mean_confidence": float(np.mean(numbers)) if numbers else None,
        "distinct": len(set(numbers)),
        "correlation": correlation([(np.mean(s), x.target) for s, x in zip(stated, chosen, strict=True) if s]),
        "no_signal": float((rewards.max(1) == rewards.min(1)).mean()),
        **stats,
        **parallel.totals(tokens=batch.tokens),
    }


def exact_step(lm, prompt, chosen, reward, config, optimizer, said):
    """All that can be said, its rewards, update. -> what is logged

    `distinct` counts what is said at least a hundredth as often as what is said most often.
    """
    mine = parallel.share(chosen)
    with optimizer.autocast():
        asked = statements.ask(lm, prompt, [(x.question, x.answer) for x in mine], where=config.adapter)
    rewards = torch.tensor([[reward(c / 100, x) for c in said] for x in mine], device=lm.device)  # (Q, C)
    stats, logp = update_exactly(lm, asked, said, rewards, config, optimizer)
    chance = torch.tensor(parallel.gather(logp.exp().tolist()))  # (Q, C), of all processes, as what follows
    rewards = torch.tensor(parallel.gather(rewards.tolist()))
    mean, number = statements.expected_confidence(chance, said)
    often = chance.mean(0)  # (C,)
    return {
        "reward": (chance * rewards).sum(-1).mean().item(),
        "malformed": 1 - number.mean().item(),
        "mean_confidence": mean.mean().item(),
        "distinct": int((often >= 0.01 * often.max()).sum()),
        "correlation": correlation(list(zip(mean.tolist(), (x.target for x in chosen), strict=True))),
        "no_signal": (rewards.amax(1) == rewards.amin(1)).float().mean().item(),
        **stats,
        "tokens": 0,
    }


def train(lm, prompt, items, reward, config, on_step, saved=None):
    """Stage 3: REINFORCE / GRPO on the confidence turn, or the exact gradient of the same expected reward.

    lm: with a LoRA. items: of class Item. reward: (confidence or None, Item) -> float. config: settings.Config.
    on_step(dict): called with the metrics of every step, and first with those of the steps that the checkpoint has.
    saved: the path of a checkpoint, to go on from if it is there and to be kept up to date. After 5 optimiser steps in
    a row without a finite gradient it stops; such steps change nothing, so what is left are the last good weights.
    """
    optimizer = Optimizer(lm, config, config.warmup + config.steps * config.updates)
    size, exact = min(config.questions, len(items)), config.gradient == "exact"
    said = statements.percentages(lm, config.every) if exact else None
    if size < parallel.size():
        raise ValueError(f"{size} questions a step are too few for {parallel.size()} processes")
    if exact and not said:
        raise ValueError("the exact gradient needs a tokenizer that can write percentages")
    (done, log), total = optimizer.load(saved) if saved and saved.exists() else (0, []), config.warmup + config.steps
    for record in log:
        on_step(record)
    bar = tqdm(range(done, total), desc="training", unit="step", initial=done, total=total)
    last, cost = time.perf_counter(), 0.0
    for number in bar:
        if optimizer.skipped >= PATIENCE:
            break
        step = number - config.warmup  # below 0: supervised
        order = ("warmup", number) if step < 0 else ("train", step)
        chosen = [items[i] for i in batch_of(order[1], len(items), size, seed_of(config.seed, order[0]))]
        if step < 0:
            record = warm_up(lm, prompt, chosen, config, optimizer)
        elif exact:
            record = exact_step(lm, prompt, chosen, reward, config, optimizer, said)
        else:
            record = sampled_step(lm, prompt, chosen, reward, config, optimizer, step)
        log.append({"step": step, **record, "skipped": optimizer.skipped})
        on_step(log[-1])
        shown = ("supervised_loss", "reward", "malformed")
        bar.set_postfix({name: f"{record[name]:.3f}" for name in shown if name in record})
        if saved and first() and time.perf_counter() - last > 20 * cost:  # a twentieth of the time at most goes into it
            start = time.perf_counter()
            write_whole(saved, [optimizer.save(number + 1, log)])
            last = time.perf_counter()
            cost = last - start

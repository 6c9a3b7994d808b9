"""Stage 3: reinforcement learning that aligns the confidence a model *states* with a calibrated target.

    r_i  = 1 - max(tolerance, |c_i - p|)                       reward of one rollout; 0 if it states no number
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

from data import LABEL, parse_confidence
from lm import completion_logprobs, sample, seed_of, stop_ids
from lora import adapter
from prefix import Read, chunks, tree_of

KINDS = ("loo", "center", "zscore")


# ---- reward, advantage, loss ------------------------------------------------------------------------------------


def calibration_reward(confidence, target, tolerance=0.05):
    """1 - max(tolerance, |c - p|), the paper's reward as reported to us; None, no parseable number, earns 0.

    confidence: in [0, 1] or None; target: the calibrated probability in [0, 1]. Inside the tolerance all is equally
    good. Raises ValueError for numbers outside [0, 1].
    """
    if not 0 <= target <= 1 or confidence is not None and not 0 <= confidence <= 1:
        raise ValueError(f"confidence and target must be in [0, 1], not {confidence} and {target}")
    return 0.0 if confidence is None else 1.0 - max(tolerance, abs(confidence - target))


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


# ---- rollouts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rollouts:
    """Q questions, G completions each: their prompts, token ids, which tokens were the model's choice, and c."""

    prompts: Read  # by the base model
    given: int  # tokens that each completion begins with: "Confidence:"
    completions: list  # Q lists of G lists of token ids, where the adapter is on
    actions: list  # the same shape, 1 where the token was sampled and 0 where it was forced
    confidence: list  # Q lists of G, a float in [0, 1] or None

    @property
    def tokens(self):
        """Number of sampled tokens."""
        return sum(sum(a) for group in self.actions for a in group)


def rollout(lm, prompt, asked, group, temperature, seeds, reasoning=0, number_tokens=6):
    """Let the model state its confidence in each (question, answer), `group` times. -> Rollouts

    A completion is the forced beginning of the turn ("Confidence:") and the sampled number. With reasoning > 0 the
    model first writes up to that many tokens, to the end of the line. Forced tokens are no actions.
    """
    prompts, turns = zip(*(prompt.confidence(q, a, reason=reasoning > 0) for q, a in asked), strict=True)
    read = Read(lm, list(prompts), frozen=True)
    completions, actions = [[turn] * group for turn in turns], [[[0] * len(turn)] * group for turn in turns]

    def extend(rows, choice):
        """Append to each completion, and note whether it was the model's choice."""
        for x, a, new in zip(completions, actions, rows, strict=True):
            x[:] = [old + tokens for old, tokens in zip(x, new, strict=True)]
            a[:] = [old + [choice] * len(tokens) for old, tokens in zip(a, new, strict=True)]

    if reasoning:
        # the token that ends the thought is an action too
        thoughts = sample(lm, read, [temperature] * group, reasoning, stop_ids(lm, "\n"), seeds, completions)
        extend(thoughts, 1)
        extend([[prompt.after_reasoning(t) for t in row] for row in thoughts], 0)
    numbers = sample(lm, read, [temperature] * group, number_tokens, stop_ids(lm, "\n%"),
                     [seed_of(seed, "number") for seed in seeds], completions)  # fmt: skip
    extend(numbers, 1)
    stated = {t: parse_confidence(LABEL + lm.decode(t)) for t in {tuple(t) for row in numbers for t in row}}
    confidence = [[stated[tuple(t)] for t in row] for row in numbers]
    return Rollouts(read, len(turns[0]), completions, actions, confidence)


# ---- the loop ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """What stage 3 depends on, beside the model, the questions and their targets."""

    steps: int = 300
    questions: int = 16  # a step
    rollouts: int = 16  # a question (the group)
    temperature: float = 1.0  # of the rollouts, and of every log-probability
    reasoning: int = 0  # tokens before the number
    lr: float = 1e-4
    advantage: str = "loo"
    updates: int = 1  # optimiser steps for each batch of rollouts
    clip: float = 0.2
    kl: float = 0.0  # weight of the divergence from the base model
    max_grad_norm: float = 1.0
    micro_batch: int = 0  # questions in one backward pass; 0: as many as prefix.LOGITS allows
    recompute: bool = False  # activations in the backward pass
    warmup: int = 0  # supervised steps before the first rollout
    amp: str = "auto"
    seed: int = 0


def amp_dtype(amp, device):
    """"auto|off|bf16|fp16" -> torch dtype or None. auto: off on a CPU, bf16 on a GPU that has it, else fp16."""
    if amp == "auto":
        amp = "off" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


class Optimizer:
    """AdamW under AMP: master weights in float32; scale -> backward -> unscale -> clip -> step -> update."""

    def __init__(self, lm, config, total_steps):
        self.params = [p for p in lm.model.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.params, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0)
        # ten steps up, then straight down to zero
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.adam, lambda step: min((step + 1) / 10, 1 - step / max(total_steps, 1))
        )
        self.device, self.dtype = lm.device.type, amp_dtype(config.amp, lm.device)
        # fp16 gradients of a small loss underflow unless the loss is scaled up; bf16 has the range of fp32
        self.scaler = torch.amp.GradScaler(self.device, init_scale=2.0**10, enabled=self.dtype == torch.float16)
        self.max_grad_norm = config.max_grad_norm

    def autocast(self):
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None)

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def step(self):
        """Clip, update, and return the gradient norm before clipping. An fp16 overflow skips the step."""
        scale = self.scaler.get_scale()
        self.scaler.unscale_(self.adam)
        norm = torch.nn.utils.clip_grad_norm_(self.params, self.max_grad_norm)
        self.scaler.step(self.adam)
        self.scaler.update()
        self.adam.zero_grad()
        if self.scaler.get_scale() >= scale:
            self.schedule.step()
        return float(norm)


def batch_of(step, n, size, seed):
    """The questions of a step: shuffled epochs, cut into batches of `size`; a function of its arguments alone."""
    places = range(step * size, (step + 1) * size)
    order = {e: np.random.default_rng([seed, e]).permutation(n) for e in {i // n for i in places}}
    return [int(order[i // n][i % n]) for i in places]


def warm_up(lm, prompt, items, config, optimizer):
    """One supervised step on the calibrated targets: raise log π(" 75%") for a target of 0.73. -> loss per token

    Multiples of five: people say round numbers, and so does the text that models are trained on.
    """
    prompts, turns = zip(*(prompt.confidence(q, a) for q, a, _ in items), strict=True)
    numbers = [lm.proceed(f" {5 * round(20 * p)}%") for _, _, p in items]
    completions = [[turn + number] for turn, number in zip(turns, numbers, strict=True)]
    with optimizer.autocast():
        read = Read(lm, list(prompts), frozen=True)
        logp, mask = completion_logprobs(lm, read, completions, recompute=config.recompute, given=len(turns[0]))
    loss = -(logp * mask).sum() / mask.sum()
    optimizer.backward(loss)
    optimizer.step()
    return loss.item()


def correlation(pairs):
    """Pearson correlation of (mean stated confidence, target) over the questions of a step; None if undefined."""
    x = np.array(pairs).T
    # the mean of equal numbers is not always that number: a spread of rounding errors is none
    return float(np.corrcoef(x)[0, 1]) if len(pairs) > 1 and (np.ptp(x, axis=1) > 1e-9).all() else None


def update(lm, batch, advantages, config, optimizer):
    """Optimiser steps on one batch of rollouts, Q groups of G. -> stats of the last of them"""
    every, size = range(len(advantages)), advantages.size
    if config.micro_batch:
        parts = [every[i : i + config.micro_batch] for i in every[:: config.micro_batch]]
    else:  # as many questions as can hold their log-probabilities until the backward pass
        parts = chunks([len(tree_of(group)) for group in batch.completions], lm.chunk)
    prompts = [batch.prompts.some(part) for part in parts]
    completions = [[batch.completions[q] for q in part] for part in parts]
    old, stats = {}, {}

    def logprobs(i, **kwargs):
        return completion_logprobs(lm, prompts[i], completions[i], config.temperature, given=batch.given, **kwargs)

    for number in range(config.updates):
        totals = {"loss": 0.0, "clip_fraction": 0.0, "approx_kl": 0.0, "kl": 0.0}
        if number == 0 and config.updates > 1:  # the policy that sampled, before its first change
            with torch.no_grad(), optimizer.autocast():
                old = {i: logprobs(i)[0] for i in range(len(parts))}
        for i, part in enumerate(parts):
            with optimizer.autocast():
                logp, _ = logprobs(i, recompute=config.recompute)  # (B, T)
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
            share = int(actions.sum()) / batch.tokens  # the stats are means over tokens
            for name, value in of_part.items():
                totals[name] += value * share
        stats = {"grad_norm": optimizer.step(), **totals}
    return stats


def train(lm, prompt, items, reward, config, on_step):
    """REINFORCE / GRPO on the confidence turn.

    lm: with a LoRA. items: (question, frozen answer, target) each. reward: (confidence or None, target) -> float.
    on_step(dict): called with the metrics of every step.
    """
    optimizer = Optimizer(lm, config, config.warmup + config.steps * config.updates)
    size = min(config.questions, len(items))
    for step in tqdm(range(config.warmup), desc="supervised warm-up", unit="step", disable=not config.warmup):
        chosen = [items[i] for i in batch_of(step, len(items), size, seed_of(config.seed, "warmup"))]
        warm_up(lm, prompt, chosen, config, optimizer)
    bar = tqdm(range(config.steps), desc="reinforcement learning", unit="step")
    for step in bar:
        start = time.perf_counter()
        chosen = [items[i] for i in batch_of(step, len(items), size, seed_of(config.seed, "train"))]
        with optimizer.autocast():
            batch = rollout(
                lm, prompt, [(q, a) for q, a, _ in chosen], config.rollouts, config.temperature,
                [seed_of(config.seed, "rollout", step, i) for i in range(size)], config.reasoning,
            )  # fmt: skip
        pairs = zip(batch.confidence, (p for _, _, p in chosen), strict=True)
        rewards = np.array([[reward(c, p) for c in group] for group, p in pairs])
        stats = update(lm, batch, group_advantages(rewards, config.advantage), config, optimizer)
        stated = [c for group in batch.confidence for c in group if c is not None]
        said = [(np.mean([c for c in group if c is not None]), p)
                for group, (_, _, p) in zip(batch.confidence, chosen, strict=True) if any(c is not None for c in group)]
        record = {
            "step": step,
            "reward": float(rewards.mean()),
            "malformed": 1 - len(stated) / rewards.size,
            "mean_confidence": float(np.mean(stated)) if stated else None,
            "distinct": len(set(stated)),
            "correlation": correlation(said),
            "no_signal": float((rewards.max(1) == rewards.min(1)).mean()),
            **stats,
            "tokens_per_second": batch.tokens / (time.perf_counter() - start),
        }
        bar.set_postfix(reward=f"{record['reward']:.3f}", malformed=f"{record['malformed']:.2f}")
        on_step(record)

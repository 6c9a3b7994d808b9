"""Stage 3: reinforcement learning that aligns the confidence a model *states* with a calibrated target.

    r_i = 1 - max(tolerance, |c_i - p|)                        reward of one rollout
    A_i = r_i - mean of the other rewards of its group         advantage ("loo": leave-one-out baseline, RLOO)
    L   = -1/M sum_i sum_t min(ratio A_i, clip(ratio, 1 - eps, 1 + eps) A_i)      PPO's clipped objective
    ratio = π(token) / π_old(token)

c_i is the stated confidence of rollout i, p the target of its question, M the number of rollouts of a step, however it
is split. There is one update per batch of rollouts: the ratio is 1 in value, the clip never acts, L has the gradient of
REINFORCE.

GRPO as published (arXiv 2402.03300) divides the advantage by the group's standard deviation ("zscore"), averages over
the tokens of each rollout, and adds a k3 estimate of the divergence. Here the advantage has the scale of the reward,
tokens are summed, and the divergence is k2 (see kl_to_reference).

Sources: REINFORCE, Williams 1992; PPO, arXiv 1707.06347; RLOO, arXiv 2402.14740; mixed precision, arXiv 1710.03740.
Left out: a value network, as the group is the baseline, and a reward on the answer, which is frozen text.

From infra: parallel (a process's share of the questions, sums over processes); loop (resuming, micro-batches, the log).
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from data import LABEL, parse_confidence
from infra import parallel
from infra.loop import Loop, measures, micro_batches
from lm import CACHED, Read, read, read_on, seed_of, stop_ids
from lora import adapter

NUMBER_TOKENS = 6  # the longest statement

# ---- reward, advantage, loss ------------------------------------------------------------------------------------


def calibration_reward(confidence, target, tolerance=0.05):
    """1 - max(tolerance, |c - p|), the paper's reward; None, no parseable number, earns 0.

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
    r = np.asarray(rewards, dtype=np.float64)
    if r.ndim != 2 or 0 in r.shape or not np.isfinite(r).all():
        raise ValueError("rewards must be finite, of shape (Q, G)")
    centered = r - r.mean(axis=1, keepdims=True)
    if kind == "loo":  # r_i - (sum - r_i) / (G - 1) = (r_i - mean) G / (G - 1)
        found = centered * r.shape[1] / max(r.shape[1] - 1, 1)
    elif kind == "zscore":
        found = centered / (r.std(axis=1, keepdims=True) + 1e-6)
    elif kind == "center":
        found = centered
    else:
        raise ValueError(f"unknown kind of advantage {kind!r}: choose loo, center or zscore")
    # rounding in the mean must not become a signal where there is none
    return np.where(r.max(axis=1, keepdims=True) == r.min(axis=1, keepdims=True), 0.0, found)


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
    outside, tokens = ((ratio - 1).abs() > clip) * mask, mask.sum().clamp_min(1)
    stats = {"clip_fraction": float(outside.sum() / tokens), "approx_kl": float(-log_ratio.detach().sum() / tokens)}
    return -(objective * mask).sum() / (normaliser or len(logp)), stats


def kl_to_reference(logp, ref_logp, mask):
    """Low-variance estimate of KL(policy || reference), k2 = (logp - ref)²/2, (B, T) x 3 -> sum over tokens.

    As a loss on fresh samples, each token's k2 has the expected gradient of that token's KL(policy || reference) given
    the tokens before it (that these change too is left out); k1's is zero, and k3's is that of KL(reference || policy).
    Names and estimators: Schulman, "Approximating KL Divergence", 2020.
    """
    return (0.5 * (logp - ref_logp) ** 2 * mask).sum()


# ---- rollouts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Q answered questions, up to the point where the model is to state its confidence."""

    prompts: list  # Q lists of token ids, the turn that asks for the confidence included
    frozen: Read | None  # what the base model has read of them, all but that turn; None: the adapter reads everything

    def read(self, lm, rows):
        """Read what is not frozen of some prompts, with the adapter as it is and gradients if they are on. -> Read"""
        prompts = [self.prompts[q] for q in rows]
        return read(lm, prompts) if self.frozen is None else read_on(lm, self.frozen, rows, prompts)


def ask(lm, prompt, pairs, config, before=None):
    """(question, answer) pairs -> Asked. before: Read of the questions, from answering them, to go on from."""
    contexts, turns = zip(*(prompt.confidence(q, a, config.reasoning > 0) for q, a in pairs), strict=True)
    prompts = [context + turn for context, turn in zip(contexts, turns, strict=True)]
    if config.adapter == "everywhere":
        return Asked(prompts, None)
    with torch.no_grad(), adapter(lm, False):
        if before is None:
            return Asked(prompts, read(lm, list(contexts)))
        return Asked(prompts, read_on(lm, before, list(range(len(pairs))), list(contexts)))


@dataclass(frozen=True)
class Rollouts:
    """Q questions, G completions each: token ids, which of them the model chose, and the stated confidence."""

    tokens: list  # Q lists of G lists of token ids
    actions: list  # the same shape: 1 where the token was sampled, 0 where it was forced
    confidence: list  # Q lists of G, a float in [0, 1] or None

    @property
    def sampled(self):
        """Number of sampled tokens."""
        return sum(sum(a) for group in self.actions for a in group)


@torch.no_grad()
def rollout(lm, prompt, asked, group, temperature, seeds, reasoning=0):
    """Let the model state its confidence in each answer, `group` times. -> Rollouts

    With reasoning > 0 it first writes up to that many tokens, to the end of the line; what is forced after them is no
    action. So many questions at a time that their caches and logits fit.
    """
    longest = max(map(len, asked.prompts)) + reasoning + 2 * NUMBER_TOKENS
    at_once = max(1, min(CACHED // longest, lm.chunk) // (group if reasoning else 1))
    found = Rollouts([], [], [])
    for start in range(0, len(asked.prompts), at_once):
        rows = list(range(len(asked.prompts)))[start : start + at_once]
        now, number_seeds, each = asked.read(lm, rows), [seed_of(seeds[q], "number") for q in rows], group
        begun, actions = ([[] for _ in range(len(rows) * group)] for _ in range(2))  # question by question
        if reasoning:
            sample, own = lm.engine(reasoning).sample, [seeds[q] for q in rows]
            thoughts = sum(sample(lm, now, [temperature] * group, reasoning, stop_ids(lm, "\n"), own), [])
            forced = [prompt.after_reasoning(t) for t in thoughts]
            begun = [t + f for t, f in zip(thoughts, forced, strict=True)]
            actions = [[1] * len(t) + [0] * len(f) for t, f in zip(thoughts, forced, strict=True)]
            whose = [i for i in range(len(rows)) for _ in range(group)]  # from here on, a row for each completion
            now = read_on(lm, now, whose, [now.prompts[i] + b for i, b in zip(whose, begun, strict=True)])
            number_seeds, each = [seed_of(number_seeds[i], c % group) for c, i in enumerate(whose)], 1
        sample, stop = lm.engine(NUMBER_TOKENS).sample, stop_ids(lm, "\n%")
        numbers = sum(sample(lm, now, [temperature] * each, NUMBER_TOKENS, stop, number_seeds), [])
        # with special tokens, which would hide in the midst of a number
        stated = [parse_confidence(LABEL + lm.tokenizer.decode(x)) for x in numbers]
        tokens = [b + x for b, x in zip(begun, numbers, strict=True)]
        actions = [a + [1] * len(x) for a, x in zip(actions, numbers, strict=True)]
        for i in range(0, len(tokens), group):
            found.tokens.append(tokens[i : i + group])
            found.actions.append(actions[i : i + group])
            found.confidence.append(stated[i : i + group])
    return found


# ---- the loop ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One training question with the model's own answer, which is frozen."""

    question: str
    answer: str
    target: float  # calibrated probability that the answer is correct
    correct: int  # is it?


class Optimizer:
    """AdamW in mixed precision: scale -> backward -> unscale -> clip -> step -> update.

    What is trained, its gradients and moments stay in float32; the arithmetic, and on a GPU the frozen weights, are in
    half precision. A gradient that is not finite changes nothing: the step is skipped and counted.
    """

    def __init__(self, lm, config):
        self.params = [p for p in lm.model.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.params, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0)
        total = config.warmup + config.steps  # the learning rate rises for ten steps, then falls linearly to zero
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.adam, lambda step: min((step + 1) / 10, 1 - step / max(total, 1))
        )
        self.device, self.dtype = lm.device.type, amp_dtype(config.amp, lm.device)
        # fp16 gradients of a small loss underflow unless the loss is scaled up; bf16 has the range of fp32
        self.scaler = torch.amp.GradScaler(self.device, init_scale=2.0**10, enabled=self.dtype == torch.float16)
        self.max_grad_norm, self.skipped = config.max_grad_norm, 0  # steps in a row

    def autocast(self):
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None)

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def step(self):
        """Clip, update, and return the gradient norm before clipping. A gradient that is not finite skips the step."""
        parallel.add_gradients(self.params)
        self.scaler.unscale_(self.adam)
        norm = torch.nn.utils.clip_grad_norm_(self.params, self.max_grad_norm)
        finite = bool(norm.isfinite())
        if finite or self.scaler.is_enabled():  # the scaler sees it too, and lowers the scale
            self.scaler.step(self.adam)
        self.scaler.update()
        self.adam.zero_grad()
        if finite:
            self.schedule.step()
        self.skipped = 0 if finite else self.skipped + 1
        return float(norm)


def amp_dtype(amp, device):
    """ "auto|off|bf16|fp16" -> torch dtype or None. auto: off on a CPU, bf16 on a GPU that has it, else fp16."""
    if amp == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        amp = "off" if device.type == "cpu" else "bf16" if fast else "fp16"
    return {"auto": None, "off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def scorer(lm, tokens, config):
    """What reads and scores completions of up to so many tokens; with --recompute it keeps no activations."""

    def score(asked, rows, completions, temperature):
        return lm.engine(tokens).completion_logprobs(lm, asked.read(lm, rows), completions, temperature)

    return functools.partial(checkpoint, score, use_reentrant=False) if config.recompute == "on" else score


def train(lm, prompt, items, config, reward, on_step, saved=None, instead=None):
    """Stage 3: REINFORCE with a group baseline on the confidence turn.

    lm: with a LoRA. items: of class Item. reward: (confidence or None, Item) -> float. config: settings.Config.
    on_step(dict): called with the metrics of every step. saved: path of a checkpoint, to go on from if it is there and
    to be kept up to date. instead: (step) -> a function that does this step in another way, or None (beyond/exact.py).
    """
    optimizer, total = Optimizer(lm, config), config.rollouts * min(config.questions, len(items))
    loop = Loop(optimizer, config, saved, on_step)
    for step in loop:  # the supervised steps of --warmup have negative numbers
        # questions: with the model's own answers, which the base model reads
        chosen = loop.choose(items)
        mine = parallel.share(list(enumerate(chosen)))
        with optimizer.autocast():
            asked = ask(lm, prompt, [(x.question, x.answer) for _, x in mine], config)
        other = instead and instead(step)
        if other:
            loop.record(**other(lm, asked, chosen, optimizer))
            continue
        # rollouts: G statements of each confidence
        seeds = [seed_of(config.seed, "rollout", step, i) for i, _ in mine]
        temperature = config.rollout_temperature
        with optimizer.autocast():
            batch = rollout(lm, prompt, asked, config.rollouts, temperature, seeds, config.reasoning)
        # rewards, advantages
        groups = zip(batch.confidence, mine, strict=True)
        rewards = np.array([[reward(c, x) for c in group] for group, (_, x) in groups])
        advantages = group_advantages(rewards, config.advantage)  # (Q, G)
        # log-probabilities, loss, gradient, step
        score, sums = scorer(lm, max(map(len, sum(batch.tokens, []))), config), {"loss": 0.0, "kl": 0.0}
        few = 4 * (asked.frozen is None)  # prompts that are read with gradients hold activations too
        for part in micro_batches(batch.tokens, lm.chunk, config.micro_batch or few):
            rows, places = [q for q, _ in part], [(q, g) for q, some in part for g in some]  # B of these
            said = [[batch.tokens[q][g] for g in some] for q, some in part]
            with optimizer.autocast():
                logp, mask = score(asked, rows, said, temperature)  # (B, T)
            actions = [batch.actions[q][g] for q, g in places]
            actions = torch.tensor([a + [0] * (mask.shape[1] - len(a)) for a in actions], device=lm.device)  # (B, T)
            advantage = torch.tensor([advantages[place] for place in places], device=lm.device)  # (B,)
            loss, _ = policy_loss(logp, logp.detach(), advantage, actions, normaliser=total)
            if config.kl:
                with torch.no_grad(), adapter(lm, False), optimizer.autocast():
                    reference, _ = score(asked, rows, said, temperature)
                divergence = kl_to_reference(logp, reference, actions) / total
                loss = loss + config.kl * divergence
                sums["kl"] += divergence.item()
            optimizer.backward(loss)
            sums["loss"] += loss.item()
        norm, sums = optimizer.step(), parallel.totals(**sums, tokens=batch.sampled)
        loop.record(**measures(rewards, batch.confidence, chosen), grad_norm=norm, **sums)

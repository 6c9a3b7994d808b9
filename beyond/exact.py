"""All that can be stated, with its probability: the exact gradient, the expected readout, the supervised warm-up.

After a reflection z, or without one, there are only 101 numbers to state, each with the probability

    π(c | z) = P(" c%" | question, answer, z)                  for c in 0, 1, ..., 100
    J(z)     = Σ_c π(c | z) r(c)                               expected reward of a reflection
    E[c | z] = Σ_c c π(c | z) / Σ_c π(c | z)                   expected confidence, a finer readout

Numbers are scored as a tree of digits on what was read once (infra/sharing.py), with gradients. Reflections are
sampled, and each earns its J, which has none of the noise of the number that follows (Rao-Blackwell):

    ∇ E[J] = E[ ∇ log π(z) (J(z) - baseline) + ∇ J(z) ]        the first term as in rl.py, the second one exactly

With --advantage zscore the first term alone is divided by the group's standard deviation. Anything but a number in its
usual form, as " 9.5%", " 2018" or " 75-76", has no part in these sums and earns nothing.
"""

import functools
from dataclasses import replace

import torch

from infra import parallel
from infra.loop import correlation, micro_batches, sampled
from lm import stop_ids
from lora import adapter
from rl import group_advantages, kl_to_reference, policy_loss, rollout, scorer

# ---- all numbers ------------------------------------------------------------------------------------------------


def numbers(lm, statement, every=1):
    """What states each `every`-th percent, as far as the tokenizer can write it. -> N confidences, N lists of token ids

    An uncertainty has several forms, as 0.3 and 0.30, and ends with its line or with the text.
    """
    found, ends = [], [[]]
    if "%" not in statement.stop:
        ends = [lm.proceed("\n"), *([i] for i in sorted(stop_ids(lm, "")))]
    for c in (percent / 100 for percent in range(0, 101, every)):
        form, forms = statement.write(c), {statement.write(c)}
        while form.endswith("0") and "." in form:
            form = form[:-1].removesuffix(".")
            forms.add(form)
        for form in sorted(forms):
            ids = lm.proceed(f" {form}")
            if written(lm, ids, form):
                found += [(c, ids + end) for end in ends]
    return [c for c, _ in found], [ids for _, ids in found]


def written(lm, ids, text):
    return lm.decode(ids).strip() == text  # some tokenizers drop the first blank when they decode


def log_policy(lm, asked, rows, said, config):
    """log π of each of N statements, token ids, after some of the prompts. -> (R, N), with gradient"""
    score = scorer(lm, max(map(len, said)), config)
    logp, _ = score(asked, rows, [said for _ in rows], config.rollout_temperature)
    return logp.sum(-1).view(-1, len(said))


def expected_confidence(chance, values):
    """Mean of what would be stated, given that it is one of N values, and the chance of that. (R, N) -> (R,), (R,)"""
    values = torch.tensor(values, dtype=chance.dtype, device=chance.device)
    return (chance * values).sum(-1) / chance.sum(-1).clamp_min(1e-12), chance.sum(-1)


def expect(lm, prompt, asked, config):
    """The expected confidence in each answer, at temperature 1; None if P(no number) > 1/2."""
    rows, (values, said) = list(range(len(asked.prompts))), numbers(lm, prompt.statement)
    if not said:
        return [None] * len(rows)
    logp = log_policy(lm, asked, rows, said, replace(config, rollout_temperature=1.0))
    mean, number = expected_confidence(logp.exp(), values)
    return [c if p >= 0.5 else None for c, p in zip(mean.tolist(), number.tolist(), strict=True)]


def divergence(logp, reference):
    """KL(policy || reference) over the numbers and, as one more outcome, all else. (R, N) x 2 -> (R,), in nats"""
    rest, other = ((1 - x.exp().sum(-1)).clamp_min(1e-6) for x in (logp, reference))  # (R,) each
    return (logp.exp() * (logp - reference)).sum(-1) + rest * (rest / other).log()


# ---- other steps of training ------------------------------------------------------------------------------------


def instead(lm, prompt, config, reward):
    """What rl.train is to do instead of a step from rollouts. -> (step) -> a function of its own -> metrics

    Raises ValueError for a tokenizer that cannot write the numbers, if the exact gradient needs them.
    """
    later = None
    if config.gradient == "exact":
        values, said = numbers(lm, prompt.statement, config.every)
        if not said:
            raise ValueError("the exact gradient needs a tokenizer that can write the numbers")
        later = functools.partial(exact_step, values=values, said=said, reward=reward, config=config)
    warm_up = functools.partial(supervised_step, config=config)
    return lambda step: warm_up if step < 0 else later


def supervised_step(lm, prompt, asked, chosen, seeds, optimizer, config):
    """Raise log π(" 75%") for a target of 0.73, after a reflection of the base model, which is frozen. -> metrics

    Multiples of five: people say round numbers, and so does the text that models are trained on.
    """
    end = "" if "%" in prompt.statement.stop else "\n"
    texts = [lm.proceed(f" {prompt.statement.write(round(20 * x.target) / 20)}{end}") for x in chosen]
    mine, said, total = parallel.share(texts), [], 0.0
    if prompt.reflection:
        with optimizer.autocast(), adapter(lm, False):
            said = rollout(lm, prompt, asked, 1, config.rollout_temperature, seeds)
        asked = asked.after(said)
    score, few = scorer(lm, max(map(len, texts)), config), 0 if asked.frozen else 4  # as in rl.train
    for part in micro_batches([[text] for text in mine], lm.chunk, config.micro_batch or few):
        rows = [i for i, _ in part]
        with optimizer.autocast():
            logp, mask = score(asked, rows, [[mine[i]] for i in rows], 1.0)
        loss = -(logp * mask).sum() / sum(map(len, texts))
        optimizer.backward(loss)
        total += loss.item()
    return {**parallel.totals(supervised_loss=total, tokens=sampled(said)), "grad_norm": optimizer.step()}


def update(lm, asked, batch, rewards, said, config, optimizer):
    """One optimiser step on the expected reward. -> stats, log π (Q G, N)

    asked: Q prompts; batch: G rollouts of each, for their reflections, or None, and G is 1; rewards: (Q, N).
    """
    after, group = (asked.after(batch), len(batch[0])) if batch else (asked, 1)
    total, found, sums = parallel.totals(n=len(rewards) * group)["n"], [], {"loss": 0.0, "kl": 0.0}
    tree = lm.engine(max(map(len, said))) is lm.sharing  # of digits: at most half of the tokens
    fit = lm.chunk * (1 + tree) // (sum(map(len, said)) * group)
    at_once = max(1, min(config.micro_batch or fit, fit))  # questions

    def policies(some, rows, reflections):
        with optimizer.autocast():
            number = log_policy(lm, after, rows, said, config)  # (R G, N)
            if not batch:
                return number, None, None
            score = scorer(lm, max(map(len, sum(reflections, []))), config)
            return number, *score(asked, some, reflections, config.rollout_temperature)  # (R G, T) each

    for start in range(0, len(rewards), at_once):
        some = range(start, min(start + at_once, len(rewards)))  # whole groups, R of them
        rows = [q * group + g for q in some for g in range(group)]
        reflections = [[r.reflection for r in batch[q]] for q in some if batch]
        logp, reflected, mask = policies(some, rows, reflections)
        earned = rewards[start : start + at_once].repeat_interleave(group, 0)  # (R G, N)
        expected = (logp.exp() * earned).sum(-1)  # J, (R G,)
        loss = -expected.sum() / total
        if batch:
            advantage = group_advantages(expected.detach().view(-1, group).cpu(), config.advantage)  # (R, G)
            advantage = torch.tensor(advantage, device=lm.device).flatten()
            loss = loss + policy_loss(reflected, reflected.detach(), advantage, mask, normaliser=total)[0]
        if config.kl:
            with torch.no_grad(), adapter(lm, False):
                reference, reference_reflected, _ = policies(some, rows, reflections)
            kl = divergence(logp, reference).sum() / total
            kl = kl + kl_to_reference(reflected, reference_reflected, mask) / total if batch else kl
            loss = loss + config.kl * kl
            sums["kl"] += kl.item()
        optimizer.backward(loss)
        sums["loss"] += loss.item()
        found.append(logp.detach())
    return {"grad_norm": optimizer.step(), **parallel.totals(**sums)}, torch.cat(found)


def exact_step(lm, prompt, asked, chosen, seeds, optimizer, values, said, reward, config):
    """Reflections, all that can be stated after them, its rewards, update. -> metrics

    `distinct` counts what is stated at least a hundredth as often as what is stated most often.
    """
    batch = None
    if prompt.reflection:
        with optimizer.autocast():
            batch = rollout(lm, prompt, asked, config.rollouts, config.rollout_temperature, seeds)
    rewards = [[reward(c, x) for c in values] for x in parallel.share(chosen)]
    stats, logp = update(lm, asked, batch, torch.tensor(rewards, device=lm.device), said, config, optimizer)
    chance = logp.exp().view(len(rewards), -1, len(said)).mean(1)  # over reflections
    chance, rewards = (torch.tensor(parallel.gather(x)) for x in (chance.tolist(), rewards))  # (Q, N), of all
    mean, number = expected_confidence(chance, values)
    often = chance.mean(0)  # (N,)
    return {
        "reward": (chance * rewards).sum(-1).mean().item(),
        "malformed": 1 - number.mean().item(),
        "mean_confidence": mean.mean().item(),
        "distinct": int((often >= 0.01 * often.max()).sum()),
        "correlation": correlation(list(zip(mean.tolist(), (x.target for x in chosen), strict=True))),
        "no_signal": (rewards.amax(1) == rewards.amin(1)).float().mean().item(),
        **stats,
        **parallel.totals(tokens=sampled(batch or [])),
    }

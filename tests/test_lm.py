"""lm.py and lora.py against a plain loop: one sequence at a time, no cache, no padding, no mask."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
import transformers
from scipy import stats
from tokenizers import pre_tokenizers

import lm as language
import prefix
import toy
from lm import _pick, completion_logprobs, embed, sample, seed_of, stop_ids
from lora import LoRA, adapter, add_lora, load_adapter, save_adapter
from prefix import Read

V = 48
EOS = 2

# ragged in every way; completions contain 0 (the filler inside lm.py) and eos, and some occur twice
PROMPTS = [[1, 7, 9, 4], [1, 7, 9, 12, 30, 31, 5, 5, 8], [1, 7, 20], [1, 7, 9, 12, 30, 8]]
COMPLETIONS = [
    [[5, 6, 2], [5], [5, 6, 2], [0, 0, 2, 40, 41, 42, 43]],
    [[9, 2]],
    [[2], [33, 0, 0], [33, 0, 0], [33, 0, 1, 2]],
    [[11, 12, 13, 14, 15], [11, 12, 13, 14, 16]],
]
FLAT = [(p, c) for p, group in zip(PROMPTS, COMPLETIONS, strict=True) for c in group]


def plain_logits(lm, ids):
    return lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()  # (len(ids), V)


def plain_logprobs(lm, prompt, completion, temperature=1.0):
    logp = (plain_logits(lm, prompt + completion) / temperature).log_softmax(-1)
    return torch.stack([logp[len(prompt) + i - 1, t] for i, t in enumerate(completion)])


def plain_greedy(lm, prompt, steps):
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(plain_logits(lm, ids)[-1].argmax()))
    return ids[len(prompt) :]


def randomise(parameters, seed=1, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.data.copy_(scale * torch.randn(p.shape, generator=generator))


def assert_matches_plain(lm, prompts, completions, temperature=1.0):
    logp, mask = completion_logprobs(lm, prompts, completions, temperature)
    flat = [(p, c) for p, group in zip(prompts, completions, strict=True) for c in group]
    assert logp.shape == mask.shape == (len(flat), max(len(c) for _, c in flat))
    assert logp.dtype == torch.float32
    for row, m, (prompt, completion) in zip(logp, mask, flat, strict=True):
        want = plain_logprobs(lm, prompt, completion, temperature)
        torch.testing.assert_close(row[: len(completion)], want, atol=1e-4, rtol=0)
        assert m.tolist() == [1] * len(completion) + [0] * (len(row) - len(completion))
        assert (row[len(completion) :] == 0).all()


# ---- log-probabilities ---------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_logprobs_equal_the_plain_loop(lm, temperature):
    assert_matches_plain(lm, PROMPTS, COMPLETIONS, temperature)


def test_logprobs_of_one_prompt_and_of_prompts_with_nothing_in_common(lm):
    assert_matches_plain(lm, PROMPTS[:1], COMPLETIONS[:1])
    assert_matches_plain(lm, [[5, 6], [7], [8, 9, 10]], [[[3, 4]], [[3]], [[2]]])
    assert_matches_plain(lm, [[5, 6, 7], [5, 6, 7], [5, 6]], [[[3, 4]], [[3, 4], [9]], [[7, 3, 4]]])
    assert_matches_plain(lm, PROMPTS, [[[3]], [[4]], [[2]], [[2], [2]]])  # nothing to feed after the prompts


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logprobs_with_each_attention(load, family, attention):
    lm = load(family)
    if (family, attention) == ("gemma2", "sdpa"):
        attention = "eager"  # the only one that knows soft-capping
    lm.model.set_attn_implementation(attention)
    assert_matches_plain(lm, PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "mistral"])
def test_logprobs_when_the_prompt_is_longer_than_the_sliding_window(load, family):
    assert_matches_plain(load(family, window=4), PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_logprobs_with_a_tied_head(load, family):
    assert_matches_plain(load(family, tied=True), PROMPTS, COMPLETIONS)


def test_padding_is_invisible(lm):
    """A prompt alone and the same prompt beside longer ones; GPT-2 has absolute positions to get wrong."""
    alone, _ = completion_logprobs(lm, PROMPTS[:1], COMPLETIONS[:1])
    batch, _ = completion_logprobs(lm, PROMPTS, COMPLETIONS)
    n = len(COMPLETIONS[0])
    torch.testing.assert_close(batch[:n, : alone.shape[1]], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperatures", [[0.0, 1.0, 1.0, 0.5], [1.3]])
def test_log_probabilities_of_what_is_sampled(lm, temperatures):
    """At temperature 1, whatever they were sampled at."""
    n, heads = len(temperatures), [[[5, 9]] * len(temperatures), [[]] * len(temperatures), [[7]] * len(temperatures)]
    for head in (None, heads):
        drawn, logp = sample(lm, PROMPTS[:3], temperatures, 5, {2, 3}, [1, 2, 3], head, logprobs=True)
        assert drawn == sample(lm, PROMPTS[:3], temperatures, 5, {2, 3}, [1, 2, 3], head)
        for q, prompt in enumerate(PROMPTS[:3]):
            for c in range(n):
                start = prompt + (heads[q][c] if head else [])
                assert logp[q][c] == pytest.approx(plain_logprobs(lm, start, drawn[q][c]).sum().item(), abs=1e-4)


def test_a_frozen_prompt_goes_on(lm):
    """As if it had been read in one go, by the base model; some of them, and for sampling and scoring."""
    randomise(add_lora(lm, rank=2))
    more = [[4], [9, 30, 31], [7, 7]]
    whole = [p + x for p, x in zip(PROMPTS, more, strict=False)]
    first = Read(lm, PROMPTS[: len(more)], frozen=True)
    for read, prompts in ((first.then(more), whole), (first.then(more).some([2, 0]), [whole[2], whole[0]])):
        assert read.prompts == prompts
        at_once = Read(lm, prompts, frozen=True)
        completions = COMPLETIONS[: len(prompts)]
        got, want = (completion_logprobs(lm, r, completions)[0] for r in (read, at_once))
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
        got, want = (sample(lm, r, [1.0] * 3, 4, {2}, [1, 2, 3][: len(prompts)]) for r in (read, at_once))
        assert got == want
    assert first.prompts == PROMPTS[: len(more)]  # and can go on in another way
    with pytest.raises(ValueError, match="context"):
        first.then([[1] * 100] * len(more))


def test_the_order_of_prompts_and_completions_does_not_matter(lm):
    logp, _ = completion_logprobs(lm, PROMPTS, COMPLETIONS)
    reverse, _ = completion_logprobs(lm, PROMPTS[::-1], [g[::-1] for g in COMPLETIONS[::-1]])
    torch.testing.assert_close(reverse.flip(0), logp, atol=1e-5, rtol=0)


def test_gradients_equal_the_plain_loop(lm):
    parameters = add_lora(lm, rank=3, alpha=5)
    randomise(parameters)
    weight = torch.randn(len(FLAT), 8, generator=torch.Generator().manual_seed(0))

    logp, _ = completion_logprobs(lm, PROMPTS, COMPLETIONS, 1.5)
    (logp * weight[:, : logp.shape[1]]).sum().backward()
    ours = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    for (prompt, completion), w in zip(FLAT, weight, strict=True):
        (plain_logprobs(lm, prompt, completion, 1.5) * w[: len(completion)]).sum().backward()
    for got, p in zip(ours, parameters, strict=True):
        assert p.grad.norm() > 1e-3
        assert (got - p.grad).norm() <= 1e-4 * p.grad.norm()


def test_the_mask_comes_from_lengths_when_pad_is_eos(load):
    lm = load("llama", tokenizer={"pad": "</s>"})
    assert lm.tokenizer.pad_token_id == lm.tokenizer.eos_token_id == EOS
    _, mask = completion_logprobs(lm, [[1, 5]], [[[2], [2, 2], [0, 0, 0], [9, 2]]])
    assert mask.sum(1).tolist() == [1, 2, 3, 2]
    assert_matches_plain(lm, [[1, 5]], [[[2], [2, 2], [0, 0, 0], [9, 2]]])


def test_the_common_beginning_is_computed_once(load):
    lm, seen = load("llama"), []
    lm.model.register_forward_pre_hook(lambda *a: seen.append(a[2]["input_ids"].numel()), with_kwargs=True)
    prompts = [[9] * 20 + [t, 6] for t in (5, 6, 7)]
    completion_logprobs(lm, prompts, [[[3, 4], [3, 4], [3, 5]]] * 3)
    assert sum(seen) == 20 + 3 * 2 + 3 * 1  # the beginning, the prompts' own, and 3: the last token predicts nothing


def frozen_logprobs(lm, prompt, completion):
    """By two calls of the model: the base model on the prompt, the adapter on its completion."""
    with torch.no_grad(), adapter(lm, False):
        read = lm.model(input_ids=torch.tensor([prompt]), use_cache=True)
    logits = lm.model(input_ids=torch.tensor([completion]), past_key_values=read.past_key_values).logits[0]
    logp = torch.cat([read.logits[0, -1:], logits]).log_softmax(-1)
    return torch.stack([logp[i, t] for i, t in enumerate(completion)])


def test_frozen_prompts_are_read_by_the_base_model(lm):
    """Log-probabilities and gradients of the adapter; also of some of the prompts, and of each a second time."""
    parameters = add_lora(lm, rank=3, alpha=5)
    randomise(parameters)
    read = Read(lm, PROMPTS, frozen=True)
    for chosen in (range(len(PROMPTS)), [2, 0]):
        prompts, completions = [PROMPTS[q] for q in chosen], [COMPLETIONS[q] for q in chosen]
        got, mask = completion_logprobs(lm, read.some(chosen), completions)
        flat = [(p, c) for p, group in zip(prompts, completions, strict=True) for c in group]
        want = torch.stack([
            torch.nn.functional.pad(frozen_logprobs(lm, p, c), (0, got.shape[1] - len(c))) for p, c in flat
        ])  # fmt: skip
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(0))
        ours, plain = (torch.autograd.grad((x * weight).sum(), parameters) for x in (got, want))
        for a, b in zip(ours, plain, strict=True):
            assert b.norm() > 1e-3 and (a - b).norm() <= 1e-4 * b.norm()


@pytest.mark.parametrize("given", [1, 2, 9])
def test_given_tokens_are_not_scored_and_change_nothing_else(load, given):
    lm = load("llama")
    parameters = add_lora(lm, rank=3, alpha=5)
    randomise(parameters)
    whole, mask = completion_logprobs(lm, PROMPTS, COMPLETIONS)
    got, scored = completion_logprobs(lm, PROMPTS, COMPLETIONS, given=given)
    want = mask.clone()
    want[:, :given] = 0
    assert torch.equal(scored, want)
    torch.testing.assert_close(got, whole * want, atol=1e-5, rtol=1e-5)
    if given < 7:  # the longest has seven tokens
        ours, plain = (torch.autograd.grad(x.sum(), parameters) for x in (got, whole * want))
        for a, b in zip(ours, plain, strict=True):
            assert b.norm() > 1e-3 and (a - b).norm() <= 1e-4 * b.norm()


def test_the_temperature_divides_in_single_precision(load):
    """As it does for sampling: half precision would round each logit anew."""
    lm = load("llama")
    lm.model.to(torch.bfloat16)
    got, _ = completion_logprobs(lm, [PROMPTS[0]], [[[5]]], temperature=1.5)
    logits = lm.model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    assert got.dtype == torch.float32
    # the two passes may round the logits themselves differently
    assert got.item() == pytest.approx((logits.float() / 1.5).log_softmax(-1)[5].item(), abs=0.05)


def test_frozen_prompts_are_read_once(load):
    lm, seen = load("llama"), []
    add_lora(lm)
    lm.model.register_forward_pre_hook(lambda *a: seen.append(a[2]["input_ids"].numel()), with_kwargs=True)
    read = Read(lm, [[9] * 20 + [t, 6] for t in (5, 6, 7)], frozen=True)
    assert sum(seen) == 20 + 3 * 2
    for _ in range(2):
        sample(lm, read, [1.0, 1.0], 1, frozenset(), [1, 2, 3])
        completion_logprobs(lm, read, [[[3]]] * 3)
    assert sum(seen) == 20 + 3 * 2


def test_sampling_after_a_frozen_prompt(load):
    """Greedy, so that one wrong distribution would show."""
    lm = load("llama")
    randomise(add_lora(lm, rank=3, alpha=5), scale=1.0)
    heads = [[[3, 4]], [[5]], [[6, 7, 8]], [[9, 9]]]
    got = sample(lm, Read(lm, PROMPTS, frozen=True), [0.0], 5, frozenset(), [1, 2, 3, 4], heads)
    for prompt, (head,), (found,) in zip(PROMPTS, heads, got, strict=True):
        for i in range(5):
            chances = [frozen_logprobs(lm, prompt, [*head, *found[:i], t])[-1].item() for t in range(48)]
            assert int(np.argmax(chances)) == found[i]
    plain = sample(lm, PROMPTS, [0.0], 5, frozenset(), [1, 2, 3, 4], heads)
    assert plain != got


@pytest.mark.parametrize("size", [1, 9, 10_000])
def test_chunks_and_recomputation_change_nothing(load, monkeypatch, size):
    """Also the gradients, which flow through what chunks share."""
    lm = load("llama")
    parameter = lm.model.model.layers[0].self_attn.k_proj.weight.requires_grad_(True)

    def run(**kwargs):
        logp, _ = completion_logprobs(lm, PROMPTS, COMPLETIONS, **kwargs)
        weight = torch.randn(logp.shape, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad((logp * weight).sum(), parameter)
        return logp.detach(), gradient

    whole = run()
    monkeypatch.setattr(language, "LOGITS", size * V)
    for got in (run(), run(recompute=True)):
        for x, y in zip(got, whole, strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_recomputation_keeps_no_activations(load):
    """Tensors that the backward pass needs, in bytes, without and with recomputation."""
    lm = load("llama")
    lm.model.model.layers[0].self_attn.k_proj.weight.requires_grad_(True)
    kept = []
    for recompute in (False, True):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.nbytes) or x, lambda x: x):
            completion_logprobs(lm, [[9, 1], [9, 2]], [[[3, 4, 5]], [[3, 4, 6]]], recompute=recompute)
        kept.append(sum(saved))
    assert kept[1] < 0.5 * kept[0]


def test_chunks_hold_every_row_once():
    sizes = [5, 900, 100, 5, 300, 7, 100]
    found = prefix.chunks(sizes, 512)
    assert sorted(sum(found, [])) == list(range(len(sizes)))
    assert found == [[1], [4], [2, 6, 5, 0, 3]]
    assert all(len(chunk) == 1 or len(chunk) * max(sizes[i] for i in chunk) <= 512 for chunk in found)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sampling_after_a_head_is_sampling_from_a_longer_prompt(load, family):
    lm = load(family)
    heads = [[[5], [5, 6], [], [5, 6]], [[8, 8, 8], [8, 9], [8], [7]], [[4], [4], [4], [4]], [[], [], [3, 3], []]]
    temperatures, seeds = [1.0, 0.0, 1.5, 0.0], [1, 2, 3, 4]
    got = sample(lm, PROMPTS, temperatures, 6, frozenset({EOS}), seeds, heads)
    for prompt, row, seed, found in zip(PROMPTS, heads, seeds, got, strict=True):
        for c, head in enumerate(row):  # all completions are drawn, so that c has its own random numbers
            assert sample(lm, [prompt + head], temperatures, 6, frozenset({EOS}), [seed])[0][c] == found[c]
    assert heads[0] == [[5], [5, 6], [], [5, 6]]


def test_sampling_computes_a_beginning_that_completions_share_once(load):
    lm, seen = load("llama"), []
    lm.model.register_forward_pre_hook(lambda *a: seen.append(a[2]["input_ids"].numel()), with_kwargs=True)
    drawn = sample(lm, [[9] * 6, [9, 5, 5]], [2.0] * 20, 4, frozenset(), [0, 1])
    trees = [{x[:i] for x in map(tuple, group) for i in range(1, 4)} for group in drawn]
    assert 4 < len({x[0] for x in map(tuple, drawn[0])}) < 20  # they do part
    # the common beginning, the prompts with padding, then as many columns as the row with most beginnings has
    width = sum(max(sum(len(x) == i for x in tree) for tree in trees) for i in range(1, 4))
    assert sum(seen) == 1 + 2 * 5 + 2 * width


# ---- sampling ------------------------------------------------------------------------------------


def chi_square(counts, probs):
    """p-value; cells with an expectation below 5 are pooled."""
    expected = probs.double().numpy() * counts.sum()
    small = expected < 5
    assert counts[expected == 0].sum() == 0
    observed = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    keep = expected > 0
    return stats.chisquare(observed[keep], expected[keep] * observed.sum() / expected[keep].sum()).pvalue


def two_steps(lm, prompt, temperature):
    """The exact distribution of the first two tokens, (V, V)."""

    def step(ids):
        return (plain_logits(lm, ids)[-1].double() / temperature).softmax(-1)

    return step(prompt)[:, None] * torch.stack([step([*prompt, t]) for t in range(V)])


@pytest.mark.parametrize("family, temperature", [("gpt2", 0.7), ("llama", 1.0), ("gemma3", 1.5)])
def test_samples_come_from_the_softmax(load, family, temperature):
    lm, n, prompt = load(family), 16, PROMPTS[0]
    rows = sample(lm, [prompt] * 500, [temperature] * n, 2, frozenset(), range(500))
    pairs = np.array(rows).reshape(-1, 2)
    exact = two_steps(lm, prompt, temperature)
    first = np.bincount(pairs[:, 0], minlength=V)
    joint = np.bincount(pairs[:, 0] * V + pairs[:, 1], minlength=V * V)
    assert chi_square(first, exact.sum(1)) > 1e-3
    assert chi_square(joint, exact.flatten()) > 1e-3
    wrong = two_steps(lm, prompt, temperature * 1.3)  # the test has the power to see a wrong temperature
    assert chi_square(first, wrong.sum(1)) < 1e-6
    assert chi_square(joint, wrong.flatten()) < 1e-6


def test_completions_of_a_group_are_independent(load):
    lm, prompt = load("llama"), PROMPTS[0]
    rows = np.array(sample(lm, [prompt] * 2000, [1.0, 1.0], 1, frozenset(), range(2000)))[:, :, 0]
    p = plain_logits(lm, prompt)[-1].softmax(-1)
    same = float((p**2).sum())
    assert stats.binomtest(int((rows[:, 0] == rows[:, 1]).sum()), 2000, same).pvalue > 1e-3


def test_each_completion_has_its_own_temperature(load):
    lm, prompt = load("llama"), PROMPTS[0]
    rows = np.array(sample(lm, [prompt] * 3000, [0.7, 0.0, 1.5], 1, frozenset(), range(3000)))[:, :, 0]
    logits = plain_logits(lm, prompt)[-1]
    assert set(rows[:, 1]) == {int(logits.argmax())}
    for column, temperature in [(0, 0.7), (2, 1.5)]:
        counts = np.bincount(rows[:, column], minlength=V)
        assert chi_square(counts, (logits / temperature).softmax(-1)) > 1e-3


def test_greedy_equals_argmax_of_the_plain_loop(lm):
    got = sample(lm, PROMPTS, [0.0, 0.0], 8, frozenset(), [0] * len(PROMPTS))
    assert got == [[plain_greedy(lm, p, 8)] * 2 for p in PROMPTS]
    assert len({tuple(g[0]) for g in got}) > 1  # the prompts do differ


def test_greedy_beyond_a_sliding_window(load):
    lm = load("gemma3", window=4)
    assert sample(lm, PROMPTS, [0.0], 8, frozenset(), [0] * 4) == [[plain_greedy(lm, p, 8)] for p in PROMPTS]


def test_a_completion_does_not_depend_on_its_batch(lm):
    seeds, temperatures = [11, 12, 13, 14], [1.0, 1.5, 0.0, 1.0]
    stop = frozenset(range(2, 8))
    got = sample(lm, PROMPTS, temperatures, 10, stop, seeds)
    assert len({len(c) for g in got for c in g}) > 3  # some stop early, some late
    for i in range(4):
        assert sample(lm, [PROMPTS[i]], temperatures, 10, stop, [seeds[i]]) == [got[i]]
    assert sample(lm, PROMPTS[::-1], temperatures, 10, stop, seeds[::-1]) == got[::-1]
    fewer = sample(lm, PROMPTS, temperatures[:2], 10, stop, seeds)
    assert fewer == [g[:2] for g in got]
    assert sample(lm, PROMPTS, temperatures, 10, stop, [21, 22, 23, 24]) != got


def test_stopping_cuts_and_changes_nothing_else(lm):
    """Finished completions and prompts leave, and the others go on as if they had never been there."""
    arguments = (lm, PROMPTS, [1.0, 1.5, 0.7], 12)
    free = sample(*arguments, frozenset(), [1, 2, 3, 4])
    assert {len(c) for g in free for c in g} == {12}
    stop = {2, 3, 10, 11, 17, 30}

    def cut(tokens):
        end = next((i for i, t in enumerate(tokens) if t in stop), len(tokens))
        return tokens[: end + 1]  # the stop token is an action of the model: it stays

    want = [[cut(c) for c in g] for g in free]
    assert sample(*arguments, stop, [1, 2, 3, 4]) == want
    assert len({len(c) for g in want for c in g}) > 2
    assert len({c[-1] for g in want for c in g if len(c) < 12}) > 2  # several of them did stop one


def test_finished_prompts_leave_the_batch(load):
    lm, shapes = load("llama"), []
    firsts = [plain_greedy(lm, p, 3) for p in PROMPTS]
    stop = {firsts[0][0]}
    lm.model.register_forward_pre_hook(lambda *a: shapes.append(a[2]["input_ids"].shape[0]), with_kwargs=True)
    sample(lm, PROMPTS, [0.0], 3, stop, [0] * 4)
    alive = [sum(not stop & set(f[:k]) for f in firsts) for k in (1, 2)]
    assert shapes[2:] == [n for n in alive if n]
    assert alive[0] < 4


def test_when_every_token_is_eos(load):
    lm, calls = load("gpt2"), []
    lm.model.register_forward_hook(lambda *a: calls.append(1))
    got = sample(lm, PROMPTS, [1.0, 0.0], 10, frozenset(range(V)), [0, 1, 2, 3])
    assert [[len(c) for c in g] for g in got] == [[1, 1]] * 4
    assert len(calls) <= 2  # nothing is computed after everything has stopped
    assert_matches_plain(lm, PROMPTS, got)


def test_a_banned_token_is_never_sampled(load):
    lm = load("gpt2")
    banned = [0, 1, 2, 17, 46, 47]

    def ban(module, args, output):
        output.logits[..., banned] = -torch.inf

    lm.model.register_forward_hook(ban)
    got = sample(lm, PROMPTS, [1.5] * 50, 10, frozenset(), [0, 1, 2, 3])
    seen = {t for g in got for c in g for t in c}
    assert not seen & set(banned) and len(seen) > 30


@pytest.mark.parametrize("temperature", [0.1, 1.0, 1.5])
def test_the_ends_of_the_unit_interval(temperature):
    last = 1 - 2.0**-53  # the largest that torch.rand can return
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 9, generator=generator)
    logits[:, [0, 4, 7, 8]] = -torch.inf
    t = torch.full((2,), temperature)
    ends = torch.tensor([0.0, last], dtype=torch.float64).expand(200, 2)
    tokens = _pick(logits[:, None], t, ends)  # (200, 1, 2)
    assert (logits / temperature).softmax(-1).gather(1, tokens[:, 0]).gt(0).all()


def test_pick_inverts_the_distribution_function():
    logits = torch.tensor([[[0.1, 0.2, 0.3, 0.4]], [[0.4, 0.3, 0.2, 0.1]]]).log()  # (R=2, S=1, V=4)
    uniform = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.6001], dtype=torch.float64).expand(2, 6)
    got = _pick(logits, torch.ones(6), uniform)
    assert got.tolist() == [[[0, 0, 1, 1, 2, 3]], [[0, 0, 0, 0, 0, 1]]]
    temperature = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 0.5])  # at 0.5 the weights are 1, 4, 9, 16
    assert _pick(logits, temperature, uniform).tolist() == [[[0, 3, 1, 1, 3, 3]], [[0, 0, 0, 0, 0, 1]]]


def test_picking_a_few_rows_at_a_time_changes_nothing(monkeypatch):
    logits = torch.randn(5, 2, 9, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    temperature = torch.tensor([0.0, 1.0, 1.5], dtype=torch.float64)
    whole = _pick(logits, temperature, uniform)
    for size in (1, 2 * 2 * 9):
        monkeypatch.setattr(language, "LOGITS", size)
        assert torch.equal(_pick(logits, temperature, uniform), whole)


def test_the_context_is_a_limit(load):
    for family in ("gpt2", "llama"):
        lm = load(family)
        assert len(sample(lm, [[5] * 54], [0.0], 10, frozenset(), [0])[0][0]) == 10
        with pytest.raises(ValueError, match="context of 64"):
            sample(lm, [[5], [5] * 55], [0.0], 10, frozenset(), [0, 0])


def test_inputs_are_not_changed(load):
    lm = load("llama")
    inputs = [copy.deepcopy(PROMPTS), [1.0, 0.0], {EOS, 5}, [1, 2, 3, 4]]
    before = copy.deepcopy(inputs)
    completions = sample(lm, inputs[0], inputs[1], 6, inputs[2], inputs[3])
    again = copy.deepcopy(completions)
    completion_logprobs(lm, inputs[0], completions)
    texts = ["b", "a", "b"]
    embed(lm, texts)
    assert (inputs, completions, texts) == (before, again, ["b", "a", "b"])


def test_sampling_leaves_the_global_generator_alone(load):
    lm = load("llama")
    state = torch.get_rng_state()
    first = sample(lm, PROMPTS, [1.0], 5, frozenset(), [1, 2, 3, 4])
    add_lora(lm)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert sample(lm, PROMPTS, [1.0], 5, frozenset(), [1, 2, 3, 4]) == first


# ---- loading, stopping, seeds --------------------------------------------------------------------


def test_load_gives_a_frozen_model_without_dropout(lm):
    assert not lm.model.training and not any(p.requires_grad for p in lm.model.parameters())
    assert lm.model.dtype == torch.float32
    assert torch.equal(plain_logits(lm, PROMPTS[1]), plain_logits(lm, PROMPTS[1]))


def test_text_survives_encoding(load):
    lm = load("llama", tokenizer={"wrap": True})
    assert lm.decode(lm.encode("ab: c.\n")) == "ab: c.\n"
    assert lm.encode("ab", special=True) == [1, *lm.encode("ab"), EOS]
    assert lm.decode([*lm.encode("ab"), EOS]) == "ab"


def test_text_that_goes_on_has_no_blank_of_its_own(make_tokenizer):
    """Some tokenizers put a blank before the first word of a text."""
    tokenizer = make_tokenizer(characters="abc.:\n%7 ▁")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    lm = language.LM(None, tokenizer, "blank")
    assert tokenizer.convert_ids_to_tokens(lm.encode(":ab")) == ["▁", ":", "a", "b"]
    assert tokenizer.convert_ids_to_tokens(lm.proceed(":ab")) == [":", "a", "b"]
    assert tokenizer.convert_ids_to_tokens(lm.proceed(" 7%")) == ["▁", "7", "%"]
    toy_like = language.LM(None, toy.tokenizer(SimpleNamespace(subject=["Zorva"])), "one token a word")
    for text in ("\nConfidence:", "Confidence:", " 75%"):
        assert toy_like.proceed(text) == toy_like.encode(text)
    plain = language.LM(None, make_tokenizer(), "joins '.' and the end of a line")
    for text in ("\nab", " ab", ".\nab", "\n\nab"):
        assert plain.proceed(text) == plain.encode(text)


def test_load_refuses_an_encoder_and_decoder_in_one_sentence(tmp_path, make_tokenizer):
    config = transformers.T5Config(vocab_size=48, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError) as error:
        language.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_load_refuses_what_is_no_model(tmp_path):
    with pytest.raises((OSError, ValueError)):
        language.load(tmp_path)


def stop_texts(lm, *args):
    return sorted(lm.tokenizer.convert_ids_to_tokens(sorted(stop_ids(lm, *args))))


NEWLINES = ["\n", "\n\n", ".\n"]


def test_stop_ids_are_every_eos_and_every_newline(load):
    assert stop_texts(load("llama")) == sorted(["</s>", *NEWLINES])
    assert stop_texts(load("llama"), "") == ["</s>"]
    assert stop_texts(load("llama"), ".") == [".", ".\n", "</s>"]
    assert stop_texts(load("llama", generation_eos=[2, 3])) == sorted(["</s>", "<end>", *NEWLINES])
    assert stop_texts(load("gpt2", eos=3)) == sorted(["</s>", "<end>", *NEWLINES])  # both count


def test_stop_ids_without_eos(load):
    lm = load("gpt2", eos=None, tokenizer={"eos": None})
    assert lm.tokenizer.eos_token_id is None
    assert stop_texts(lm) == sorted(NEWLINES)
    assert stop_ids(lm, "") == frozenset()


def test_stop_ids_when_the_model_config_holds_a_list(load):
    """As Llama 3 does."""
    assert stop_texts(load("llama", eos=[2, 3])) == sorted(["</s>", "<end>", *NEWLINES])


def test_a_newline_ends_a_sampled_line(load):
    lm = load("gpt2")
    stop = stop_ids(lm)
    got = [c for g in sample(lm, PROMPTS, [1.5] * 40, 20, stop, [5, 6, 7, 8]) for c in g]
    assert {c[-1] for c in got if len(c) < 20} == stop  # each of them was met
    assert all(not stop & set(c[:-1]) for c in got)
    assert all("\n" not in lm.decode(c[:-1]) for c in got)


def test_seeds_are_the_same_in_every_process():
    known = 6267372776928883
    assert seed_of("sft", 3, "q-17") == known
    code = "from lm import seed_of; print(seed_of('sft', 3, 'q-17'))"
    env = {"PYTHONHASHSEED": "123", "PYTHONPATH": ":".join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert int(out.stdout) == known


def test_seeds_differ_and_fit_a_generator():
    parts = [("",), (1, 23), (12, 3), (123,), ("a", 0), ("a", 1), ("b", 0), (0, "a"), ("é",)]
    seeds = [seed_of(*p) for p in parts]
    assert len(set(seeds)) == len(seeds)
    for seed in seeds:
        torch.Generator().manual_seed(seed)
        np.random.default_rng(seed)


# ---- LoRA ----------------------------------------------------------------------------------------


def test_a_new_adapter_changes_nothing(lm):
    before = plain_logits(lm, PROMPTS[1])
    add_lora(lm, rank=4, alpha=8)
    assert torch.equal(plain_logits(lm, PROMPTS[1]), before)


def test_an_adapter_that_is_off_is_the_base_model(lm):
    before = plain_logits(lm, PROMPTS[1])
    randomise(add_lora(lm, rank=4, alpha=8))
    changed = plain_logits(lm, PROMPTS[1])
    assert (changed - before).abs().max() > 0.1
    with adapter(lm, False):
        assert torch.equal(plain_logits(lm, PROMPTS[1]), before)
        assert_matches_plain(lm, PROMPTS, COMPLETIONS)
    assert torch.equal(plain_logits(lm, PROMPTS[1]), changed)


def test_the_switch_nests_and_survives_exceptions(load):
    lm = load("gpt2")
    base = plain_logits(lm, PROMPTS[0])
    randomise(add_lora(lm))
    on = plain_logits(lm, PROMPTS[0])

    def state():
        now = plain_logits(lm, PROMPTS[0])
        return "off" if torch.equal(now, base) else "on" if torch.equal(now, on) else "?"

    with adapter(lm, False):
        with adapter(lm, True):
            assert state() == "on"
            with adapter(lm, False):
                assert state() == "off"
            assert state() == "on"
        assert state() == "off"
        with pytest.raises(KeyError), adapter(lm, True):
            raise KeyError
        assert state() == "off"
    assert state() == "on"
    with pytest.raises(KeyError), adapter(lm, False):
        raise KeyError
    assert state() == "on"


LINEAR = {  # the linear maps of one block, the output head aside
    "gpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    "llama": {f"self_attn.{x}_proj" for x in "qkvo"} | {f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
LINEAR |= dict.fromkeys(["qwen2", "gemma2", "gemma3"], LINEAR["llama"])


@pytest.mark.parametrize("family", LINEAR)
@pytest.mark.parametrize("tied", [False, True])
def test_only_the_adapter_is_trained(load, family, tied):
    lm = load(family, tied=tied)
    parameters = add_lora(lm, rank=4)
    adapted = {n for n, m in lm.model.named_modules() if isinstance(m, LoRA)}
    prefix = "transformer.h" if family == "gpt2" else "model.layers"
    assert adapted == {f"{prefix}.{i}.{name}" for i in range(2) for name in LINEAR[family]}
    trainable = {n for n, p in lm.model.named_parameters() if p.requires_grad}
    assert trainable == {f"{n}.{part}" for n in adapted for part in "AB"}
    assert {id(p) for p in parameters} == {id(p) for p in lm.model.parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in parameters)
    assert type(lm.model.get_output_embeddings()) is torch.nn.Linear


def test_the_adapter_is_a_low_rank_update_of_the_weight(load):
    """y = (W + alpha / r B A) x, with GPT-2's weights stored transposed."""
    lm = load("gpt2")
    parameters = add_lora(lm, rank=3, alpha=7)
    randomise(parameters)
    got = plain_logits(lm, PROMPTS[1])
    merged = load("gpt2")
    for name, module in lm.model.named_modules():
        if isinstance(module, LoRA):
            weight = merged.model.get_submodule(name).weight
            weight.data += (7 / 3 * module.B @ module.A).T
    torch.testing.assert_close(got, plain_logits(merged, PROMPTS[1]), atol=1e-4, rtol=1e-4)


def test_the_seed_decides_the_first_adapter(load):
    a, b, c = (add_lora(load("llama"), rank=4, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_peft_reads_the_adapter(load, make_folder, tmp_path, recwarn, family, tied):
    lm = load(family, tied=tied)
    randomise(add_lora(lm, rank=3, alpha=7))
    save_adapter(lm, tmp_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(make_folder(family, tied=tied))
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert not [w for w in recwarn if "fan_in_fan_out" in str(w.message) or "adapter" in str(w.message)]
    for prompt in PROMPTS:
        with torch.no_grad():
            want = theirs(input_ids=torch.tensor([prompt])).logits[0]
            torch.testing.assert_close(plain_logits(lm, prompt), want, atol=1e-5, rtol=1e-5)
    assert peft.PeftConfig.from_pretrained(tmp_path).base_model_name_or_path == lm.name


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # peft has no activated LoRA for Conv1D
def test_peft_switches_the_adapter_on_where_we_do(load, make_folder, tmp_path, family):
    lm, turn = load(family), [30, 31, 32]
    randomise(add_lora(lm, rank=3, alpha=7))
    save_adapter(lm, tmp_path, invocation=turn)
    base = transformers.AutoModelForCausalLM.from_pretrained(make_folder(family))
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    for prompt, rest in ([5, 6, 7], [8, 9]), (turn + [4], [3]), ([1] * 9, [2, 2, 2]):
        got, _ = completion_logprobs(lm, Read(lm, [prompt], frozen=True), [[turn + rest]])
        ids = torch.tensor([prompt + turn + rest])
        want = theirs(input_ids=ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        want = want.gather(1, ids[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(got[0], want, atol=1e-5, rtol=1e-5)


def test_an_adapter_survives_saving(lm, tmp_path, make_folder):
    randomise(add_lora(lm, rank=3, alpha=7))
    save_adapter(lm, tmp_path / "new" / "folder")
    other = language.load(lm.name)
    load_adapter(other, tmp_path / "new" / "folder")
    assert torch.equal(plain_logits(other, PROMPTS[1]), plain_logits(lm, PROMPTS[1]))
    assert any(p.requires_grad for p in other.model.parameters())  # training can go on


@pytest.mark.parametrize("alpha", [7, 21])
def test_loading_over_another_adapter(load, tmp_path, alpha):
    """The scale belongs to the file, as the weights do."""
    lm, other = load("llama"), load("llama")
    randomise(add_lora(lm, rank=3, alpha=7))
    save_adapter(lm, tmp_path)
    randomise(add_lora(other, rank=3, alpha=alpha), seed=5)
    load_adapter(other, tmp_path)
    torch.testing.assert_close(plain_logits(other, PROMPTS[1]), plain_logits(lm, PROMPTS[1]))


@pytest.mark.parametrize(
    "family, other",
    [
        (("llama", {}), ("gpt2", {})),
        (("gpt2", {}), ("llama", {})),
        (("llama", {}), ("llama", {"width": 32})),
        (("llama", {"layers": 4}), ("llama", {})),
        (("llama", {}), ("llama", {"layers": 4})),
    ],
)
def test_an_adapter_of_another_model_is_refused(load, tmp_path, family, other):
    lm = load(family[0], **family[1])
    add_lora(lm, rank=3, alpha=7)
    save_adapter(lm, tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        load_adapter(load(other[0], **other[1]), tmp_path)


# ---- sentence embeddings -------------------------------------------------------------------------

TEXTS = ["paris", "a", "the capital of france", "", "paris", "b", "london."]


def plain_embedding(embedder, text):
    """One text, no padding: the mean of the last hidden states, as a unit vector.

    A causal model reads a blank first.
    """
    causal = "Causal" in type(embedder.model).__name__ or "LMHead" in type(embedder.model).__name__
    ids = torch.tensor([embedder.tokenizer(f" {text}" if causal else text).input_ids])
    with torch.no_grad():
        mean = embedder.model.base_model(input_ids=ids).last_hidden_state[0].mean(0)
    return (mean / mean.norm()).numpy()


@pytest.mark.parametrize("batch_size", [1, 3, 256])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "bert"])
def test_embeddings_equal_the_plain_mean(load, make_folder, family, batch_size):
    host = load("gpt2")
    if family == "bert":
        embedder = language.load_embedder(make_folder("bert", tokenizer={"wrap": True}), host)
        assert embedder.encode("a", special=True) == [1, *embedder.encode("a"), 2]
    else:
        embedder = load(family)
        assert language.load_embedder("self", embedder) is embedder
    got = embed(embedder, TEXTS, batch_size)
    assert got.shape == (len(TEXTS), 16) and got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    for text, row in zip(TEXTS, got, strict=True):
        np.testing.assert_allclose(row, plain_embedding(embedder, text), atol=1e-5)
    assert np.array_equal(got[0], got[4]) and not np.allclose(got[0], got[6], atol=1e-2)


def test_a_text_without_any_token_has_an_embedding(load, make_folder):
    encoder = language.load_embedder(make_folder("bert"), load("llama"))
    assert encoder.encode("", special=True) == []
    got = embed(encoder, ["", "paris", ""])
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    assert np.array_equal(got[0], got[2]) and not np.allclose(got[0], got[1], atol=1e-2)


def test_embeddings_ignore_the_adapter(load):
    lm = load("llama")
    before = embed(lm, TEXTS)
    randomise(add_lora(lm))
    on = plain_logits(lm, PROMPTS[0])
    assert np.array_equal(embed(lm, TEXTS), before)
    assert torch.equal(plain_logits(lm, PROMPTS[0]), on)  # and it is on again afterwards

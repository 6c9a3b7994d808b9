"""cost.py against torch's own counter of operations, and against counting by hand."""

import time
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cost import Size, Work, matmul_flops
from lm import completion_logprobs, embed, sample
from lora import adapter, add_lora
from prefix import Read

PROMPTS = [[1, 7, 9, 4], [1, 7, 9, 12, 30, 31, 5, 5, 8]]
COMPLETIONS = [[[5, 6, 2], [5], [5, 6, 2], [5, 7, 2]], [[9, 2, 3]] * 4]


def counted(function):
    """Operations in matrix products outside and inside attention, by torch."""
    with FlopCounterMode(display=False) as counter:
        function()
    found = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    inside = found.pop("aten.bmm", 0)
    return sum(found.values()), inside


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gemma3"])
def test_the_forward_pass_of_one_token_after_the_other(load, family):
    """Token by token there is no masked pair, so torch's count of the attention is exact too."""
    lm = load(family)
    lm.model.set_attn_implementation("eager")
    add_lora(lm, rank=3)
    ids, cache = [1, 7, 9, 4, 5], None

    def run():
        nonlocal cache
        for t in ids:
            cache = lm.model(input_ids=torch.tensor([[t]]), past_key_values=cache, use_cache=True).past_key_values

    with torch.no_grad():
        outside, inside = counted(run)
    size, work = Size.of(lm.model), Work()
    work.forward(size, tokens=5, pairs=1 + 2 + 3 + 4 + 5, logits=5)
    assert work.flops == outside + inside
    assert work.tokens == work.logits == 5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_backward_pass(load, family):
    lm = load(family)
    lm.model.set_attn_implementation("eager")
    add_lora(lm, rank=3)
    hidden = {}
    lm.model.get_input_embeddings().register_forward_hook(lambda *a: hidden.setdefault("x", a[-1].requires_grad_()))
    logits = lm.model(input_ids=torch.tensor([[5]])).logits  # one token: again no masked pair
    outside, inside = counted(lambda: logits.sum().backward())
    work = Work()
    work.backward(Size.of(lm.model), tokens=1, pairs=1, logits=1)
    assert work.flops == outside + inside
    assert work.tokens == 0


def test_the_adapter_counts_where_it_is_on(lm):
    bare = Size.of(lm.model)
    add_lora(lm, rank=3)
    on = Size.of(lm.model)
    assert on.adapter == sum(p.numel() for p in lm.model.parameters() if p.requires_grad) > 0
    assert replace(on, adapter=0) == bare
    with adapter(lm, False):
        assert Size.of(lm.model) == bare


def spent(lm, function):
    lm.work.take()
    out = function()
    return out, lm.work.take()


def test_each_token_is_counted_once(load):
    lm = load("llama")
    (logp, _), found = spent(lm, lambda: completion_logprobs(lm, PROMPTS, COMPLETIONS))
    # the common beginning, what is each prompt's own, and the beginnings 5, 5 6, 5 7 and 9, 9 2
    assert found["tokens"] == 3 + (1 + 6) + 3 + 2
    # the last logits of the common beginning and of both prompts, and those of each beginning
    assert found["logits"] == 1 + 2 + 3 + 2
    pairs = [1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 5, 6, 6, 10, 11]
    want = Work()
    want.forward(Size.of(lm.model), found["tokens"], sum(pairs), found["logits"])
    assert found["flops"] == want.flops
    assert spent(lm, lambda: None)[1] == {"tokens": 0, "logits": 0, "flops": 0}


def test_given_tokens_need_no_logits(load):
    lm = load("llama")
    read = Read(lm, PROMPTS, frozen=True)
    _, whole = spent(lm, lambda: completion_logprobs(lm, read, COMPLETIONS))
    _, less = spent(lm, lambda: completion_logprobs(lm, read, COMPLETIONS, given=2))
    assert whole["tokens"] == less["tokens"] == 5
    # those after 5 6 and 5 7, and as many of the other prompt
    assert (whole["logits"], less["logits"]) == (5, 2 + 2)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_backward_pass_counts_once_and_recomputation_as_one_more_forward_pass(load, recompute):
    lm = load("llama")
    add_lora(lm, rank=3)
    read = Read(lm, PROMPTS, frozen=True)
    (logp, _), forward = spent(lm, lambda: completion_logprobs(lm, read, COMPLETIONS, recompute=recompute))
    _, backward = spent(lm, lambda: logp.sum().backward())
    want = Work()
    want.backward(Size.of(lm.model), 5, 5 + 6 + 6 + 10 + 11, 5)
    assert backward["flops"] == want.flops + recompute * forward["flops"]


def test_without_gradients_there_is_no_backward_pass_to_count(load):
    lm = load("llama")
    with torch.no_grad():
        completion_logprobs(lm, PROMPTS, COMPLETIONS)
    drawn, found = spent(lm, lambda: sample(lm, PROMPTS, [0.0, 0.0], 3, frozenset(), [1, 2]))
    # both greedy completions are one
    assert found["tokens"] == 3 + (1 + 6) + 2 * 2


def test_embedding_counts_for_the_language_model(load, make_folder):
    import lm as language

    model = load("llama")
    encoder = language.load_embedder(make_folder("bert", tokenizer={"wrap": True}), model)
    _, found = spent(model, lambda: embed(encoder, ["ab", "abc", "ab"]))
    size, want = Size.of(encoder.model), Work()
    want.forward(size, 4 + 5, 4**2 + 5**2)  # with the two tokens around each, and equal texts once
    assert (found["tokens"], found["flops"]) == (9, want.flops)
    assert found["logits"] == 0


def test_the_speed_of_a_matrix_product():
    size = 256
    a = torch.randn(size, size)
    speed = matmul_flops(size=size, seconds=0.2)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    assert speed == pytest.approx(2 * size**3 / min(times), rel=0.9)  # the same order, on a busy machine too

"""lm.py and lora.py: what is sampled, read once, loaded, stopped at, adapted and embedded.

That the log-probabilities, gradients and samples are those of uncached passes is in test_engines.py.
"""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from helpers import Config, randomise, shared
from scipy import stats
from tokenizers import pre_tokenizers

import lm as language
import rl
import toy
from infra import sharing
from lm import completion_logprobs, embed, pick, read, read_on, sample, seed_of, stop_ids
from lora import LoRA, adapter, add_lora, load_adapter, merge, save_adapter

V, EOS = 48, 2
PROMPTS = [[1, 7, 9, 4], [1, 7, 9, 12, 30, 31, 5, 5, 8], [1, 7, 20], [1, 7, 9, 12, 30, 8]]
COMPLETIONS = [[[5, 6, 2], [5], [5, 6, 2], [0, 0, 2, 40, 41, 42, 43]], [[9, 2]], [[2], [33, 0, 0], [33, 0, 0]],
               [[11, 12, 13, 14, 15], [11, 12, 13, 14, 16]]]  # fmt: skip
both_engines = pytest.mark.parametrize("engine", [language, sharing], ids=["plain", "shared"])


def logits_of(lm, ids):
    return lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()  # (len(ids), V)


# ---- reading, scoring ---------------------------------------------------------------------------


def fed(lm):
    """-> list of the numbers of tokens that the model is fed, padding included"""
    seen = []
    lm.model.register_forward_pre_hook(lambda *a: seen.append(a[2]["input_ids"].numel()), with_kwargs=True)
    return seen


@both_engines
def test_what_is_read_is_read_once(load, engine):
    """What all prompts begin with, what is read on, what several completions need, and equal completions."""
    lm = load("llama")
    seen = fed(lm)
    before = read(lm, [[9] * 20 + [t, 6] for t in (5, 6, 7)])
    assert sum(seen) == 20 + 3 * 2
    before = read_on(lm, before, [0, 1, 1], [before.prompts[q] + [8, 8] for q in (0, 1, 1)])
    assert seen[2:] == [3 * 2]
    for _ in range(2):
        engine.completion_logprobs(lm, before, [[[3]]] * 3)
        engine.sample(lm, before, [1.0, 1.0], 1, frozenset(), [1, 2, 3])
    assert len(seen) == 3
    engine.completion_logprobs(lm, before, [[[3, 4], [3, 4], [3, 5]]] * 3)
    assert seen[3:] == [3 * 2 if engine is language else 3]  # the last token predicts nothing


def test_shared_sampling_computes_a_beginning_that_completions_share_once(load):
    lm = load("llama")
    before, seen = read(lm, [[9] * 6, [9, 5, 5]]), fed(lm)
    drawn = sharing.sample(lm, before, [2.0] * 20, 4, frozenset(), [0, 1])
    trees = [{x[:i] for x in map(tuple, group) for i in range(1, 4)} for group in drawn]
    assert 4 < len({x[0] for x in map(tuple, drawn[0])}) < 20  # they do part
    # as many columns as the row with most beginnings has
    assert seen == [2 * max(sum(len(x) == i for x in tree) for tree in trees) for i in range(1, 4)]


@both_engines
def test_some_of_what_was_read(load, engine):
    """Any number of times each; and it can go on in several ways."""
    lm, rows = load("gpt2"), [2, 0, 2]
    before = read(lm, PROMPTS)
    got, want = (engine.completion_logprobs(lm, x, [COMPLETIONS[q] for q in rows])[0]
                 for x in (before.some(rows), [PROMPTS[q] for q in rows]))  # fmt: skip
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    for more in ([[4], [9, 30, 31], [7]], [[30] * 8, [2], [0, 0]]):
        prompts = [PROMPTS[q] + x for q, x in zip(rows, more, strict=True)]
        longer = read_on(lm, before, rows, prompts)
        assert longer.prompts == prompts
        torch.testing.assert_close(longer.last, read(lm, prompts).last, atol=1e-4, rtol=0)
    torch.testing.assert_close(before.last, read(lm, PROMPTS).last, atol=1e-5, rtol=0)


@both_engines
@pytest.mark.parametrize("limit, cached", [(1, 1), (9 * V, 60), (10**6, 10**6)])
def test_chunks_and_recomputation_change_nothing(load, monkeypatch, engine, limit, cached):
    """Also the gradients, which flow through what chunks share; and recomputing keeps few activations."""
    lm = load("llama")
    parameter = lm.model.model.layers[0].self_attn.k_proj.weight.requires_grad_(True)

    def run(recompute):
        scored, saved = rl.scorer(shared(lm) if engine is sharing else lm, 7, Config(recompute=recompute)), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.nbytes) or x, lambda x: x):
            logp, _ = scored(rl.Asked(PROMPTS, None, range(len(PROMPTS))), range(len(PROMPTS)), COMPLETIONS, 1.0)
        weight = torch.randn(logp.shape, generator=torch.Generator().manual_seed(0))
        return logp.detach(), *torch.autograd.grad((logp * weight).sum(), parameter), sum(saved)

    *whole, _ = run("off")
    drawn = engine.sample(lm, PROMPTS, [1.0, 0.0, 1.5], 6, {EOS, 5, 9}, [1, 2, 3, 4])
    monkeypatch.setattr(language, "LOGITS", limit)
    monkeypatch.setattr(language, "CACHED", cached)
    (*kept, most), (*recomputed, few) = run("off"), run("on")
    for x, y, z in zip(whole, kept, recomputed, strict=True):
        torch.testing.assert_close(y, x, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(z, x, atol=1e-5, rtol=1e-4)
    assert few < 0.5 * most
    again = engine.sample(lm, PROMPTS, [1.0, 0.0, 1.5], 6, {EOS, 5, 9}, [1, 2, 3, 4])
    assert sum(a == b for x, y in zip(drawn, again, strict=True) for a, b in zip(x, y, strict=True)) >= 11


@pytest.mark.parametrize("memory, times", [(8, 1), (24, 1), (80, 5)])
def test_a_gpu_holds_more_at_once(load, monkeypatch, memory, times):
    lm = load("llama")
    on_cpu = lm.chunk, lm.rows(9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, memory * 2**30))
    assert language.capacity(torch.device("cuda", 0)) == times and (lm.chunk, lm.rows(9)) == on_cpu
    monkeypatch.setattr(language, "capacity", lambda device: times)
    assert (lm.chunk, lm.rows(2**16)) == (times * language.LOGITS // V, times)


@both_engines
def test_the_temperature_divides_in_single_precision(load, engine):
    """As it does for sampling: half precision would round each logit anew."""
    lm = load("llama")
    before = read(lm, [PROMPTS[0]])
    before = replace(before, last=(100 + before.last).to(torch.bfloat16))
    got, _ = engine.completion_logprobs(lm, before, [[[5]]], temperature=1.5)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx((before.last[0].float() / 1.5).log_softmax(-1)[5].item(), abs=1e-4)


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
        return (logits_of(lm, ids)[-1].double() / temperature).softmax(-1)

    return step(prompt)[:, None] * torch.stack([step([*prompt, t]) for t in range(V)])


@pytest.mark.parametrize("family, temperature, engine", [
    ("gpt2", 0.7, language), ("llama", 1.0, sharing), ("gemma3", 1.5, language),
])  # fmt: skip
def test_samples_come_from_the_softmax(load, family, temperature, engine):
    lm, prompt = load(family), PROMPTS[0]
    rows = engine.sample(lm, [prompt] * 500, [temperature] * 16, 2, frozenset(), range(500))
    pairs = np.array(rows).reshape(-1, 2)
    exact = two_steps(lm, prompt, temperature)
    first, joint = np.bincount(pairs[:, 0], minlength=V), np.bincount(pairs @ [V, 1], minlength=V * V)
    assert chi_square(first, exact.sum(1)) > 1e-3 and chi_square(joint, exact.flatten()) > 1e-3
    wrong = two_steps(lm, prompt, temperature * 1.3)  # the test has the power to see a wrong temperature
    assert chi_square(first, wrong.sum(1)) < 1e-6 and chi_square(joint, wrong.flatten()) < 1e-6


@both_engines
def test_each_completion_has_its_own_temperature_and_is_independent(load, engine):
    lm, prompt = load("llama"), PROMPTS[0]
    rows = np.array(engine.sample(lm, [prompt] * 2000, [0.7, 0.0, 1.5, 1.5], 1, frozenset(), range(2000)))[:, :, 0]
    logits = logits_of(lm, prompt)[-1]
    assert set(rows[:, 1]) == {int(logits.argmax())}
    for column, temperature in [(0, 0.7), (2, 1.5), (3, 1.5)]:
        counts = np.bincount(rows[:, column], minlength=V)
        assert chi_square(counts, (logits / temperature).softmax(-1)) > 1e-3
    same = float(((logits / 1.5).softmax(-1) ** 2).sum())
    assert stats.binomtest(int((rows[:, 2] == rows[:, 3]).sum()), 2000, same).pvalue > 1e-3


@both_engines
def test_when_every_token_is_eos(load, engine):
    """Nothing is computed after everything has stopped."""
    lm = load("gpt2")
    before, seen = read(lm, PROMPTS), fed(lm)
    got = engine.sample(lm, before, [1.0, 0.0], 10, frozenset(range(V)), [0, 1, 2, 3])
    assert [[len(c) for c in g] for g in got] == [[1, 1]] * 4 and not seen


@pytest.mark.parametrize("temperature", [0.1, 1.0, 1.5])
def test_the_ends_of_the_unit_interval(temperature):
    last = 1 - 2.0**-53  # the largest that torch.rand can return
    logits = 3 * torch.randn(200, 9, generator=torch.Generator().manual_seed(0))
    logits[:, [0, 4, 7, 8]] = -torch.inf
    tokens = pick(logits, temperature, torch.tensor([0.0, last], dtype=torch.float64).expand(200, 2))  # (200, 2)
    assert (logits / temperature).softmax(-1).gather(1, tokens).gt(0).all()


def test_pick_inverts_the_distribution_function():
    logits = torch.tensor([[[0.1, 0.2, 0.3, 0.4]], [[0.4, 0.3, 0.2, 0.1]]]).log()  # (R=2, W=1, V=4)
    number = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.6001], dtype=torch.float64).expand(2, 1, 6)
    assert pick(logits, 1.0, number).tolist() == [[[0, 0, 1, 1, 2, 3]], [[0, 0, 0, 0, 0, 1]]]
    assert pick(logits, 0, number).tolist() == [[[3] * 6], [[0] * 6]]
    # at 0.5 the weights are 1, 4, 9, 16
    assert pick(logits, 0.5, number).tolist() == [[[0, 1, 1, 2, 2, 3]], [[0, 0, 0, 0, 0, 1]]]


@both_engines
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_context_is_a_limit(load, engine, family):
    lm = load(family)
    assert len(engine.sample(lm, [[5] * 54], [0.0], 10, frozenset(), [0])[0][0]) == 10
    with pytest.raises(ValueError, match="context of 64"):
        engine.sample(lm, [[5], [5] * 55], [0.0], 10, frozenset(), [0, 0])
    with pytest.raises(ValueError, match="context of 64"):
        engine.completion_logprobs(lm, [[5] * 55], [[[5] * 10]])


def test_nothing_outside_is_changed_or_matters(load):
    """Neither the arguments nor torch's own random numbers."""
    lm, state = load("llama"), torch.get_rng_state()
    inputs = [copy.deepcopy(PROMPTS), [1.0, 0.0], {EOS, 5}, [1, 2, 3, 4]]
    before = copy.deepcopy(inputs)
    completions = sample(lm, inputs[0], inputs[1], 6, *inputs[2:])
    again = copy.deepcopy(completions)
    completion_logprobs(lm, inputs[0], completions)
    embed(lm, ["b", "a", "b"])
    add_lora(lm)
    assert (inputs, completions) == (before, again) and torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert sample(lm, inputs[0], inputs[1], 6, *inputs[2:]) == completions


# ---- loading, stopping, seeds -------------------------------------------------------------------


def test_load_gives_a_frozen_model_without_dropout(lm):
    assert not lm.model.training and not any(p.requires_grad for p in lm.model.parameters())
    assert lm.model.dtype == torch.float32
    torch.testing.assert_close(logits_of(lm, PROMPTS[1]), logits_of(lm, PROMPTS[1]))


def test_load_refuses_in_one_sentence(tmp_path, make_tokenizer, make_folder):
    """An encoder and decoder, a folder without a model, without a tokenizer, without some of the weights."""
    said = {"t5": "T5", "empty": "no model at", "wordless": "tokenizer", "holed": "lacks .* of its weights"}
    config = transformers.T5Config(vocab_size=48, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    model = transformers.AutoModelForCausalLM.from_pretrained(make_folder("llama"))
    model.save_pretrained(tmp_path / "wordless")
    weights = {k: v for k, v in model.state_dict().items() if "layers.1" not in k}
    model.save_pretrained(tmp_path / "holed", state_dict=weights)
    (tmp_path / "empty").mkdir()
    for name, sentence in said.items():
        if name in ("t5", "holed"):
            make_tokenizer().save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=sentence) as error:
            language.load(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_text_that_goes_on_has_no_blank_of_its_own(make_tokenizer):
    """Some tokenizers put a blank before the first word of a text."""
    tokenizer = make_tokenizer(characters="abc.:\n%7 ▁")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    lm = language.LM(None, tokenizer, "blank")
    assert tokenizer.convert_ids_to_tokens(lm.encode(":ab")) == ["▁", ":", "a", "b"]
    assert tokenizer.convert_ids_to_tokens(lm.proceed(":ab")) == [":", "a", "b"]
    assert tokenizer.convert_ids_to_tokens(lm.proceed(" 7%")) == ["▁", "7", "%"]
    word = language.LM(None, toy.tokenizer(SimpleNamespace(subject=["Zorva"])), "one token a word")
    plain = language.LM(None, make_tokenizer(), "joins '.' and the end of a line")
    for lm, texts in (word, ["\nConfidence:", "Confidence:", " 75%"]), (plain, ["\nab", " ab", ".\nab", "\n\nab"]):
        assert all(lm.proceed(text) == lm.encode(text) for text in texts)


NEWLINES = {"\n", "\n\n", ".\n"}


@pytest.mark.parametrize("model, characters, stop", [
    (dict(family="llama"), "\n", {"</s>", *NEWLINES}),
    (dict(family="llama"), "", {"</s>"}),
    (dict(family="llama"), ".", {".", ".\n", "</s>"}),
    (dict(family="llama", generation_eos=[2, 3]), "\n", {"</s>", "<end>", *NEWLINES}),
    (dict(family="gpt2", eos=3), "\n", {"</s>", "<end>", *NEWLINES}),  # the tokenizer's and the model's
    (dict(family="llama", eos=[2, 3]), "\n", {"</s>", "<end>", *NEWLINES}),  # as Llama 3 has it
    (dict(family="gpt2", eos=None, tokenizer={"eos": None}), "\n", NEWLINES),
])  # fmt: skip
def test_stop_ids_are_every_eos_and_every_newline(load, model, characters, stop):
    lm = load(**model)
    found = stop_ids(lm, characters)
    assert set(lm.tokenizer.convert_ids_to_tokens(sorted(found))) == stop and len(found) == len(stop)


def test_seeds_are_the_same_in_every_process_and_differ():
    assert seed_of("sft", 3, "q-17") == 6267372776928883
    parts = [("",), (1, 23), (12, 3), (123,), ("a", 0), ("a", 1), ("b", 0), (0, "a"), ("é",)]
    seeds = {seed_of(*p) for p in parts}
    assert len(seeds) == len(parts) and all(torch.Generator().manual_seed(seed) for seed in seeds)


# ---- LoRA ---------------------------------------------------------------------------------------


def test_the_switch(lm):
    """A new adapter changes nothing; one that is off is the base model; the switch nests and survives exceptions."""
    base = logits_of(lm, PROMPTS[1])
    parameters = add_lora(lm, rank=4, alpha=8)
    torch.testing.assert_close(logits_of(lm, PROMPTS[1]), base)
    randomise(parameters, scale=0.3)

    def state():
        difference = (logits_of(lm, PROMPTS[1]) - base).abs().max()
        return "off" if difference < 1e-5 else "on" if difference > 0.1 else difference

    with adapter(lm, False):
        with adapter(lm, True):
            assert state() == "on"
        assert state() == "off"
        with pytest.raises(KeyError), adapter(lm, True):
            raise KeyError
        assert state() == "off"
    assert state() == "on"


LINEAR = {  # the linear maps of one block, the output head aside
    "gpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    "llama": {f"self_attn.{x}_proj" for x in "qkvo"} | {f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
LINEAR["gemma3"] = LINEAR["llama"]


@pytest.mark.parametrize("family", LINEAR)
@pytest.mark.parametrize("tied", [False, True])
def test_only_the_adapter_is_trained(load, family, tied):
    lm = load(family, tied=tied)
    parameters = add_lora(lm, rank=4)
    adapted = {n for n, m in lm.model.named_modules() if isinstance(m, LoRA)}
    prefix = "transformer.h" if family == "gpt2" else "model.layers"
    assert adapted == {f"{prefix}.{i}.{name}" for i in range(2) for name in LINEAR[family]}
    trainable = {n for n, p in lm.model.named_parameters() if p.requires_grad}
    assert trainable == {f"{n}.{part}" for n in adapted for part in "AB"} and len(trainable) == len(parameters)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in parameters)


def test_the_adapter_is_a_low_rank_update_of_the_weight(load):
    """y = (W + alpha / r B A) x, with GPT-2's weights stored transposed; and `merge` makes it so."""
    lm, merged = load("gpt2"), load("gpt2")
    randomise(add_lora(lm, rank=3, alpha=7), scale=0.3)
    got = logits_of(lm, PROMPTS[1])
    for name, module in lm.model.named_modules():
        if isinstance(module, LoRA):
            merged.model.get_submodule(name).weight.data += (7 / 3 * module.B @ module.A).T
    torch.testing.assert_close(got, logits_of(merged, PROMPTS[1]), atol=1e-4, rtol=1e-4)
    merge(lm)
    assert not any(isinstance(m, LoRA) for m in lm.model.modules())
    torch.testing.assert_close(got, logits_of(lm, PROMPTS[1]), atol=1e-4, rtol=1e-4)


def test_dropout_is_on_the_adapters_input_where_there_are_gradients():
    """Of an adapter that adds its input: a quarter is dropped, and the mean stays."""
    lora, x = LoRA(torch.nn.Linear(4, 4), rank=4, alpha=4, dropout=0.25), torch.ones(5000, 4)
    lora.A.data = lora.B.data = torch.eye(4)
    added, lm = lora(x) - lora.base(x), SimpleNamespace(model=torch.nn.Sequential(lora))
    kept = torch.isclose(added, torch.tensor(4 / 3), atol=1e-5)
    assert (kept | (added.abs() < 1e-5)).all() and not torch.equal(lora(x), lora(x))
    assert abs(kept.float().mean() - 0.75) < 5 * (0.25 * 0.75 / 20000) ** 0.5
    with torch.no_grad():
        torch.testing.assert_close(lora(x) - lora.base(x), x)
    with adapter(lm, False):
        assert torch.equal(lora(x), lora.base(x))


def test_the_seed_decides_the_first_adapter(load):
    a, b, c = (add_lora(load("llama"), rank=4, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) and not torch.equal(a[0], c[0])


@pytest.mark.parametrize("rank, alpha", [(None, None), (3, 21)])
def test_an_adapter_survives_saving(lm, tmp_path, rank, alpha):
    """Also over another one: the scale belongs to the file, as the weights do."""
    randomise(add_lora(lm, rank=3, alpha=7), scale=0.3)
    save_adapter(lm, tmp_path / "new" / "folder")
    other = language.load(lm.name)
    if rank:
        randomise(add_lora(other, rank, alpha), seed=5)
    load_adapter(other, tmp_path / "new" / "folder")
    torch.testing.assert_close(logits_of(other, PROMPTS[1]), logits_of(lm, PROMPTS[1]))
    assert any(p.requires_grad for p in other.model.parameters())  # training can go on


@pytest.mark.parametrize("own, other", [
    (dict(family="llama"), dict(family="gpt2")),
    (dict(family="llama"), dict(family="llama", width=32)),
    (dict(family="llama", layers=4), dict(family="llama")),
    (dict(family="llama"), dict(family="llama", layers=4)),
])  # fmt: skip
def test_an_adapter_of_another_model_is_refused(load, tmp_path, own, other):
    lm = load(**own)
    add_lora(lm, rank=3, alpha=7)
    save_adapter(lm, tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        load_adapter(load(**other), tmp_path)


# ---- sentence embeddings ------------------------------------------------------------------------

TEXTS = ["paris", "a", "the capital of france", "", "paris", "b", "london."]


def plain_embedding(embedder, text):
    """Without padding: the mean of the last hidden states, as a unit vector. A causal model reads a blank first, and
    its last token counts alone."""
    causal = "Causal" in type(embedder.model).__name__ or "LMHead" in type(embedder.model).__name__
    ids = torch.tensor([embedder.tokenizer(f" {text}" if causal else text).input_ids])
    with torch.no_grad():
        hidden = embedder.model.base_model(input_ids=ids).last_hidden_state[0]
    mean = hidden[-1] if causal else hidden.mean(0)
    return (mean / mean.norm()).numpy()


@pytest.mark.parametrize("batch_size", [3, 256])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "bert"])
def test_embeddings_equal_those_without_padding(load, make_folder, family, batch_size):
    """Whether the adapter is on or not."""
    if family == "bert":
        embedder = language.load_embedder(make_folder("bert", tokenizer={"wrap": True}), load("gpt2"))
        assert embedder.encode("a", special=True) == [1, *embedder.encode("a"), 2]
    else:
        embedder = load(family)
        assert language.load_embedder("self", embedder) is embedder
    want = [plain_embedding(embedder, text) for text in TEXTS]
    if family != "bert":
        randomise(add_lora(embedder), scale=0.3)
    got = embed(embedder, TEXTS, batch_size)
    assert got.shape == (len(TEXTS), 16) and got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert all(m.on for m in embedder.model.modules() if isinstance(m, LoRA))


def test_a_text_without_any_token_has_an_embedding(load, make_folder):
    encoder = language.load_embedder(make_folder("bert"), load("llama"))
    assert encoder.encode("", special=True) == []
    similarity = (got := embed(encoder, ["", "paris", ""])) @ got.T
    np.testing.assert_allclose(similarity[[0, 1, 0], [0, 1, 2]], 1, atol=1e-6)
    assert similarity[0, 1] < 0.99

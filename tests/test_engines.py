"""Both engines against uncached passes of the same model: one sequence at a time, no cache, no padding, no mask."""

from dataclasses import replace

import pytest
import torch
import transformers
from helpers import ASKED, Config, randomise, shared

import lm as language
import rl
from infra import models, setup, sharing
from lm import read, read_on
from lora import LoRA, adapter, add_lora

ENGINES = {"plain": language, "shared": sharing}
BOTH = "gpt2 llama qwen2 qwen3 gemma2 gemma3 gptneox opt falcon phi mixtral mistral".split()
PLAIN = "gptneo falcon-alibi bloom".split()  # a local window by columns, and positions that the mask gives
PLAIN += "lfm2 falconh1 qwen3next".split()  # more is kept than keys and values: convolutions, recurrent states
NEITHER = {"jamba": "other probabilities"}  # transformers forgets its state between calls of several tokens
CASES = [(family, "plain") for family in BOTH + PLAIN] + [(family, "shared") for family in BOTH]
WINDOW, STOP = 4, frozenset(range(2, 12))  # a sliding window, where there is one, is shorter than the prompts

# ragged in every way; completions contain 0 (the filler inside the engines) and eos, and some occur twice
ALIKE = [[1, 7, 9, 4], [1, 7, 9, 12, 30, 31, 5, 5, 8], [1, 7, 20], [1, 7, 9, 12, 30, 8]]
DIFFERENT = [[5, 6], [7], [8, 9, 10, 1, 1, 1, 4], [2, 2, 2]]
TURNS = [[9, 30], [9, 30, 31], [33], [9, 30]]
COMPLETIONS = [[[5, 6, 2], [5], [5, 6, 2], [0, 0, 2, 40, 41, 42, 43]], [[9, 2]], [[2], [33, 0, 0], [33, 0, 0]],
               [[11, 12, 13, 14, 15], [11, 12, 13, 14, 16]]]  # fmt: skip


@pytest.fixture(params=CASES, ids="-".join)
def case(request, load):
    lm = load(request.param[0], window=WINDOW)
    randomise(add_lora(lm, rank=2, alpha=4), scale=0.3)
    return lm, ENGINES[request.param[1]]


def reading(lm, contexts, frozen):
    """-> Read of the contexts and their turns, and where the adapter is on, from which token of each prompt"""
    more = [2] if "Falcon" in type(lm.model).__name__ else []  # its state has no gradient through a step of one token
    prompts = [context + turn + more for context, turn in zip(contexts, TURNS, strict=True)]
    if not frozen:
        return read(lm, prompts), [0] * len(prompts)
    with torch.no_grad(), adapter(lm, False):
        before = read(lm, contexts)
    return read_on(lm, before, range(len(prompts)), prompts), list(map(len, contexts))


def uncached(lm, prompt, said, start):
    """One pass in which the adapter is on from token `start` on -> logits of each token of `said`, (T, V)"""
    ids = torch.tensor([prompt + said])
    on = (torch.arange(ids.shape[1]) >= start).float()[:, None]
    with pytest.MonkeyPatch.context() as patch:
        for module in (m for m in lm.model.modules() if isinstance(m, LoRA)):
            patch.setattr(module, "scale", module.scale * on)
        return lm.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]


@pytest.mark.parametrize("contexts, frozen", [(ALIKE, True), (ALIKE, False), (DIFFERENT, True)])
def test_log_probabilities_and_gradients(case, contexts, frozen):
    """Those of the adapter flow through the turn too, or through all that was read."""
    lm, engine = case
    before, start = reading(lm, contexts, frozen)
    got, mask = engine.completion_logprobs(lm, before, COMPLETIONS, temperature=1.5)
    flat = [(q, x) for q, group in enumerate(COMPLETIONS) for x in group]
    assert mask.tolist() == [[1] * len(x) + [0] * (7 - len(x)) for _, x in flat] and got.dtype == torch.float32
    want = torch.zeros(len(flat), 7)
    for row, (q, x) in enumerate(flat):
        want[row, : len(x)] = (uncached(lm, before.prompts[q], x, start[q]) / 1.5).log_softmax(-1)[range(len(x)), x]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(0))
    parameters = [p for p in lm.model.parameters() if p.requires_grad]
    ours, plain = (torch.autograd.grad((x * weight).sum(), parameters) for x in (got, want))
    for a, b in zip(ours, plain, strict=True):
        assert b.norm() > 1e-3 and (a - b).norm() <= 5e-4 * b.norm()


def test_sampled_tokens(case):
    """Each is where its random number says, in the distribution of an uncached pass; finished ones leave."""
    (lm, engine), temperatures, length, seeds = case, [0.0, 1.0, 1.5, 1.5, 0.7], 6, [1, 2, 3, 4]
    with torch.no_grad():
        before, start = reading(lm, ALIKE, frozen=True)
        drawn, logp = engine.sample(lm, before, temperatures, length, STOP, seeds, logprobs=True)
        numbers = language.uniform(seeds, len(temperatures), length, "cpu")
        for q, group in enumerate(drawn):
            for c, (x, t) in enumerate(zip(group, temperatures, strict=True)):
                assert not STOP & set(x[:-1]) and (len(x) == length or x[-1] in STOP)
                logits, at = uncached(lm, before.prompts[q], x, start[q]), range(len(x))
                assert logp[q][c] == pytest.approx(logits.log_softmax(-1)[at, x].sum().item(), abs=1e-4)
                if t == 0:
                    assert (logits.amax(-1) - logits[at, x]).max() < 1e-4
                    continue
                chance, number = (logits / t).softmax(-1).double(), numbers[q, c, : len(x)]
                end = chance.cumsum(-1)[at, x]
                assert (number < end + 1e-5).all() and (number > end - chance[at, x] - 1e-5).all()
    assert len({len(x) for group in drawn for x in group}) > 2


# ---- which engine -------------------------------------------------------------------------------


def refusal(lm, engine):
    with pytest.raises(ValueError, match=f"{lm.name}: {type(lm.model).__name__} [^\n]*$") as error:
        setup.with_engine(lm, engine)
    return str(error.value)


@pytest.mark.parametrize("family", BOTH + PLAIN + list(NEITHER))
def test_each_model_has_an_engine_or_is_refused_in_one_sentence(family, load):
    """Short completions are shared where the model allows it, long ones only where it is asked for."""
    lm = load(family, window=WINDOW)
    if family in NEITHER:
        assert all(NEITHER[family] in refusal(lm, engine) for engine in ("auto", "plain", "shared"))
        return
    short = sharing if family in BOTH else language
    assert setup.with_engine(lm, "plain").engine(1) is language
    assert [setup.with_engine(lm, "auto").engine(n) for n in (1, 16, 17, 500)] == [short, short, language, language]
    found = setup.with_engine(lm, "shared").engine(500) if family in BOTH else refusal(lm, "shared")
    assert found is sharing or found.endswith(": use --engine plain")


def test_a_model_that_takes_padding_for_text_is_refused(load):
    lm = load("llama")
    lm.model.set_attn_implementation("eager")
    assert setup.with_engine(lm, "shared").sharing
    lm.model.register_forward_pre_hook(lambda m, a, kwargs: (a, kwargs | {"attention_mask": None}), with_kwargs=True)
    assert "other probabilities" in refusal(lm, "plain")


def test_a_folder_does_not_hide_a_model_of_the_hub(tmp_path, monkeypatch):
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda name, **_: asked.append(name))
    (tmp_path / "Qwen").mkdir()
    models.find("Qwen/Qwen2.5-7B")
    with pytest.raises(ValueError, match="neither a model folder nor found on the hub"):
        models.find("Qwen/a/b")
    assert asked == ["Qwen/Qwen2.5-7B"]


# ---- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_rest_of_the_batch_is_invisible(load, family, engine):
    """A completion depends on its seed alone: also beside longer prompts, in another order."""
    lm, seeds, temperatures = load(family, window=WINDOW), [11, 12, 13, 14], [1.0, 1.5, 0.0, 1.0, 1.3]

    def alike(found):  # of 20; rounding may flip one that is nearly a tie
        return sum(a == b for x, y in zip(drawn, found, strict=True) for a, b in zip(x, y, strict=False))

    drawn = engine.sample(lm, ALIKE, temperatures * 4, 10, STOP, seeds)
    turned = engine.sample(lm, ALIKE[::-1], temperatures, 10, STOP, seeds[::-1])[::-1]
    single = [engine.sample(lm, [p], temperatures, 10, STOP, [s])[0] for p, s in zip(ALIKE, seeds, strict=True)]
    assert alike(turned) >= 18 and alike(single) >= 18
    assert alike(engine.sample(lm, ALIKE, temperatures, 10, STOP, [21, 22, 23, 24])) < 12


@pytest.mark.parametrize("engine", ENGINES)
def test_finished_rows_leave(load, engine):
    lm, fed = load("llama"), []
    before = read(lm, ALIKE)
    lm.model.register_forward_pre_hook(lambda *a: fed.append(a[2]["input_ids"].shape[0]), with_kwargs=True)
    drawn = ENGINES[engine].sample(lm, before, [1.5] * 3, 12, STOP, [1, 2, 3, 4])
    # a row for each completion, or for each prompt
    lengths = [len(x) for group in drawn for x in group] if engine == "plain" else [max(map(len, g)) for g in drawn]
    assert fed == [sum(n > step for n in lengths) for step in range(1, max(lengths))]
    assert len(set(fed)) > 2


class Widest(torch.utils._python_dispatch.TorchDispatchMode):
    """The size of the largest tensor of logits, probabilities and the like, in all that torch does."""

    most, vocabulary = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.shape[-1:] == (self.vocabulary,):
                self.most = max(self.most, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("engine, vocabulary, size, group, reflection", [
    ("plain", 152_000, 6, 8, 0), ("shared", 152_000, 6, 8, 0), ("plain", 1900, 32, 16, 96), ("shared", 1900, 9, 16, 96),
])  # fmt: skip
def test_no_more_logits_at_once_than_allowed(world, monkeypatch, engine, vocabulary, size, group, reflection):
    """A whole step of training. 1,900 tokens with an eightieth of the limit are cut as 152,000 are."""
    monkeypatch.setattr(language, "LOGITS", 2**25 * vocabulary // 152_000)
    lm, prompt = world(reflection=reflection)
    config = transformers.GPT2Config(vocab_size=vocabulary, n_embd=8, n_layer=1, n_head=2, n_positions=256)
    config.eos_token_id = config.bos_token_id = 0
    lm = replace(lm, model=transformers.GPT2LMHeadModel(config).eval().requires_grad_(False))
    add_lora(lm, rank=1)
    held, backward = [0], rl.Optimizer.backward

    def note(module, args, out):
        held[-1] += out.numel() if torch.is_grad_enabled() else 0  # until the next backward pass
        assert out.numel() <= language.LOGITS
        out[..., lm.encode("\n")] += 5  # some thoughts are short

    lm.model.get_output_embeddings().register_forward_hook(note)
    monkeypatch.setattr(rl.Optimizer, "backward", lambda *a: held.append(0) or backward(*a))
    items = [rl.Item(*ASKED[i % 4], 0.1 + 0.02 * i, 1) for i in range(size)]
    settings = Config(questions=size, rollouts=group, steps=1, amp="off")
    lm = shared(lm) if engine == "shared" else lm
    with Widest() as widest:
        widest.vocabulary = vocabulary
        rl.train(lm, prompt, items, settings, lambda c, item: (c or 0.5) - item.target, lambda step: None)
    assert language.LOGITS / 4 < max(held) <= language.LOGITS and widest.most <= language.LOGITS and len(held) > 2

"""Models and encoders that would give wrong numbers in silence: refused before a run begins, or right."""

import json
import logging
import shutil

import pytest
import torch
import transformers
from helpers import one_sentence, randomise
from tokenizers.normalizers import Replace

import lm as language
from infra import models, setup, sharing
from lora import LoRA, add_lora, save_adapter

LONG = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0, "short_factor": [1.0] * 48,
        "long_factor": [2.0] * 48, "original_max_position_embeddings": 96}  # fmt: skip


@pytest.mark.parametrize("window", [16, 600])
def test_a_window_that_an_engine_ignores_is_noticed(load, monkeypatch, window):
    """Also one that is longer than all prompts of the check."""
    lm = load("mistral", window=window)
    assert setup.with_engine(lm, "auto").sharing
    monkeypatch.setattr(sharing.Rows, "_masks", lambda self, visible, position: visible[:, None])
    assert not setup.with_engine(lm, "auto").sharing and lm.model.config.sliding_window == window


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_noise_and_no_other_model(dtype):
    """Deep models with logits of 30 and mixtures, as they are on a GPU; one that ignores padding is still noticed."""
    own = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=12, num_attention_heads=4,
               num_key_value_heads=2, head_dim=16, num_experts=8, moe_intermediate_size=32)  # fmt: skip
    for seed in range(4):
        for kind in (transformers.Qwen3ForCausalLM, transformers.Qwen3MoeForCausalLM):
            torch.manual_seed(seed)
            model = kind(kind.config_class(**own)).eval()
            model.lm_head.weight.data *= 60
            lm = language.LM(model.to(dtype), None, "m")
            assert lm.model(input_ids=torch.arange(9)[None]).logits.abs().max() > 15
            for engine in (language, sharing):
                models.check(lm, engine)
    real = language.real
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="other probabilities"):
        patch.setattr(language, "real", lambda *args: torch.ones_like(real(*args)))
        models.check(lm, language)


@pytest.mark.parametrize("row", [0, -1])
def test_an_engine_that_gives_no_number_is_noticed(load, monkeypatch, row):
    real = language.completion_logprobs

    def broken(*args):
        logp, mask = real(*args)
        logp[row, 0] = float("nan")
        return logp, mask

    monkeypatch.setattr(language, "completion_logprobs", broken)
    with pytest.raises(ValueError, match="other probabilities"):
        models.check(load("llama"), language)


def test_too_little_memory_is_not_the_model_s_fault(load, monkeypatch):
    lm = load("llama")

    def full(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(language, "completion_logprobs", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        setup.with_engine(lm, "auto")


def test_the_check_leaves_the_weights_where_they_are(load):
    """They are mapped from a file, which one addition would make private copies of."""
    lm = load("llama")
    before = {name: (p.data_ptr(), p._version) for name, p in lm.model.named_parameters()}
    setup.with_engine(lm, "auto")
    assert {name: (p.data_ptr(), p._version) for name, p in lm.model.named_parameters()} == before


@pytest.mark.parametrize("kind, own, limit", [
    ("Llama", dict(max_position_embeddings=256), 256),
    ("Mpt", dict(max_seq_len=64), 64),
    ("Bloom", {}, None),
    ("Phi3", dict(max_position_embeddings=256, original_max_position_embeddings=96, rope_parameters=LONG), 96),
    ("Llama4Text", dict(max_position_embeddings=256, floor_scale=64), 32),
])  # fmt: skip
def test_the_context_ends_where_other_rows_would_change_the_numbers(kind, own, limit):
    assert models.context(getattr(transformers, f"{kind}Config")(**own)) == limit


def test_llama_4_counts_padding_beyond_its_context():
    """Why its context is short: half of floor_scale is exact, whatever the padding; more is not."""
    common = dict(vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  intermediate_size=32, intermediate_size_mlp=32, head_dim=4, num_local_experts=2,
                  no_rope_layers=[0, 0], attn_scale=5.0, floor_scale=16, pad_token_id=None)  # fmt: skip
    model = transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**common)).eval()
    randomise(model.parameters(), scale=0.3)
    lm, errors = language.LM(model, None, "llama 4"), []
    prompts, said = [[5, 6, 7, 8, 9, 1], [9]], [[[3, 4]], [[3, 4]]]
    for more in (0, 12):
        lists = [prompts[0] + [7] * more, prompts[1]]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(language, "check_context", lambda *a: None)
            found, _ = language.completion_logprobs(lm, lists, said)
        for p, got in zip(lists, found, strict=True):
            logits = model(input_ids=torch.tensor([p + [3, 4]]), use_cache=False).logits[0, len(p) - 1 : -1]
            errors.append((got - logits.log_softmax(-1)[range(2), [3, 4]]).abs().max().item())
    assert max(errors[:3]) < 1e-4 < 1e-2 < errors[3]
    with pytest.raises(ValueError, match="context of 8"):
        language.completion_logprobs(lm, [lists[0]], said[:1])


@pytest.mark.parametrize("family", ["lfm2", "falconh1", "qwen3next"])
def test_short_completions_of_hybrids_have_gradients(load, family):
    """A completion of two tokens feeds one, and the step of one token writes its state in place."""
    lm = load(family)
    parameters = add_lora(lm, rank=2)
    randomise(parameters, scale=0.3)
    prompts, said = [[5, 6, 7, 8], [9, 4]], [[[3, 4], [7]]] * 2
    got, _ = language.completion_logprobs(lm, prompts, said)
    want = [lm.model(input_ids=torch.tensor([p + x]), use_cache=False).logits[0, len(p) - 1 : -1].log_softmax(-1)
            [range(len(x)), x].sum() for p, group in zip(prompts, said, strict=True) for x in group]  # fmt: skip
    torch.testing.assert_close(got.sum(1), torch.stack(want), atol=1e-4, rtol=0)
    ours, plain = (torch.autograd.grad(x.sum(), parameters) for x in (got, torch.stack(want)))
    assert all((a - b).norm() <= 1e-4 * (1 + b.norm()) for a, b in zip(ours, plain, strict=True))


# ---- folders -------------------------------------------------------------------------------------


def more_tokens(folder):
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"w{i}" for i in range(40)])
    tokenizer.save_pretrained(folder)


def adapter_beside(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}))


@pytest.mark.parametrize("damage, sentence", [(more_tokens, "a tokenizer with token"), (adapter_beside, "an adapter")])
def test_a_folder_whose_parts_do_not_belong_together(gpt2, call, tmp_path, capsys, damage, sentence):
    folder = shutil.copytree(gpt2, tmp_path / "model")
    damage(folder)
    assert call(tmp_path / "run", model=folder) == 2
    assert sentence in one_sentence(capsys.readouterr()) and not (tmp_path / "run").exists()


def test_special_tokens_without_an_embedding_are_refused_where_they_are_used(gpt2, tmp_path):
    """Gemma 3 of 1B has one, for pictures."""
    folder = shutil.copytree(gpt2, tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<picture {i}>" for i in range(40)]})
    tokenizer.save_pretrained(folder)
    lm = language.load(folder)
    with pytest.raises(ValueError, match="knows 48 tokens"):
        language.read(lm, [lm.encode("a <picture 39>")])


# ---- adapters ------------------------------------------------------------------------------------


def test_the_adapter_of_a_model_that_sees_is_on_its_language_model_alone():
    text = dict(vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=32, head_dim=4, sliding_window=8)  # fmt: skip
    vision = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=28,
                  patch_size=14)  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    model = transformers.Gemma3ForConditionalGeneration(config).eval().requires_grad_(False)
    randomise((p for p in model.parameters() if p.ndim > 1), scale=0.3)
    lm = setup.with_engine(language.LM(model, None, "gemma"), "plain")
    parameters = add_lora(lm, rank=2)
    names = [name for name, module in model.named_modules() if isinstance(module, LoRA)]
    assert len(names) == 14 and all("language_model.layers" in name for name in names)
    logp, _ = language.completion_logprobs(lm, [[1, 2, 3]], [[[4, 5]]])
    assert len(torch.autograd.grad(logp.sum(), parameters)) == 28


@pytest.mark.parametrize("kind", ["DeepseekV3", "Glm4Moe", "Qwen3Moe"])
def test_peft_loads_the_adapter_of_a_mixture_of_experts(kind, tmp_path):
    """Its own names for fused experts are also those of dense layers."""
    peft = pytest.importorskip("peft")
    own = dict(first_k_dense_replace=1, n_routed_experts=4)
    own = dict(mlp_only_layers=[0], num_experts=4) if kind == "Qwen3Moe" else own
    own |= dict(n_group=1, topk_group=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
                v_head_dim=4) if kind == "DeepseekV3" else {}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=4,
        intermediate_size=32, moe_intermediate_size=8, num_experts_per_tok=2, pad_token_id=None, **own)  # fmt: skip
    base = transformers.AutoModelForCausalLM.from_config(config).eval()
    randomise(base.parameters(), scale=0.3)
    base.save_pretrained(tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").requires_grad_(False)
    lm = language.LM(model.eval(), None, "moe")
    randomise(add_lora(lm, rank=2), scale=0.3)
    save_adapter(lm, tmp_path)
    theirs, ids = peft.PeftModel.from_pretrained(base, tmp_path).eval(), torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(theirs(input_ids=ids).logits, lm.model(input_ids=ids).logits, atol=1e-3, rtol=1e-3)


# ---- encoders ------------------------------------------------------------------------------------


def pooled(folder, mode):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, mode: True}))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    (folder / "modules.json").write_text(
        json.dumps([{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]))


@pytest.mark.parametrize("mode, at", [
    ("pooling_mode_mean_tokens", slice(None)), ("pooling_mode_cls_token", slice(1)),
    ("pooling_mode_lasttoken", slice(-1, None)), (None, slice(None)),
])  # fmt: skip
def test_an_encoder_pools_as_its_folder_says(load, make_folder, tmp_path, mode, at):
    folder = shutil.copytree(make_folder("bert", tokenizer={"wrap": True}), tmp_path / "encoder")
    if mode:
        pooled(folder, mode)
    encoder = language.load_embedder(folder, load("gpt2"))
    for text, got in zip(["ab", "a longer text"], language.embed(encoder, ["ab", "a longer text"]), strict=True):
        ids = torch.tensor([encoder.encode(text, special=True)])
        want = encoder.model(input_ids=ids).last_hidden_state[0, at].mean(0)
        torch.testing.assert_close(torch.tensor(got), want / want.norm(), atol=1e-5, rtol=1e-4)


def test_a_text_longer_than_the_encoder_reads_is_cut(load, make_folder, tmp_path):
    folder = shutil.copytree(make_folder("bert", tokenizer={"wrap": True}), tmp_path / "encoder")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    for encoder, limit in ((make_folder("bert", tokenizer={"wrap": True}), 64), (folder, 20)):
        encoder = language.load_embedder(encoder, load("gpt2"))
        assert len(encoder.cut("ab" * 99)) == limit and encoder.cut("ab" * 99)[-1] == 2
        one, other = language.embed(encoder, ["ab" * 99, "ab" * 99 + " c"])
        assert abs(one - other).max() < 1e-6


@pytest.mark.parametrize("own", [None, Replace("c", "b")])  # what the tokenizer changes itself, afterwards
def test_an_encoder_lowers_the_case_where_its_folder_says_so(load, make_folder, tmp_path, own):
    """Which tokenizers with cased vocabularies leave to it."""
    folder = shutil.copytree(make_folder("bert", tokenizer={"wrap": True}), tmp_path / "encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.normalizer = own
    tokenizer.save_pretrained(folder)
    for lower in (False, True):
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": lower}))
        encoder = language.load_embedder(folder, load("gpt2"))
        for text in ("Ab C", "Ab C" * 20):  # whole and cut
            assert (encoder.cut(text) == encoder.cut(text.lower())) == lower
    assert encoder.cut("C") == encoder.cut("b" if own else "c")


@pytest.mark.parametrize("limit", [20, 64])
def test_an_encoder_warns_of_nothing(load, make_folder, tmp_path, caplog, monkeypatch, limit):
    """Of no text that is too long, as it is cut: calunc counts these itself."""
    folder = shutil.copytree(make_folder("bert", tokenizer={"wrap": True}), tmp_path / "encoder")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}))
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    language.embed(language.load_embedder(folder, load("gpt2")), ["a", "ab" * 99])
    assert caplog.text == ""


def t5(folder):
    config = transformers.T5Config(vocab_size=48, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


def clip(folder):
    small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    text, vision = small | dict(vocab_size=48), small | dict(image_size=8, patch_size=4)
    transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)


@pytest.mark.parametrize("make, sentence", [
    (t5, "has a decoder"), (clip, "cannot embed"), (lambda f: pooled(f, "pooling_mode_max_tokens"), "pooling"),
    (lambda f: (f / "modules.json").write_text('[{"path": "2_Dense", "type": "x.Dense"}]'), "Dense"),
])  # fmt: skip
def test_an_encoder_that_cannot_be_used_is_refused_before_the_run(make_folder, call, tmp_path, capsys, make, sentence):
    folder = shutil.copytree(make_folder("bert"), tmp_path / "encoder")
    make(folder)
    assert call(tmp_path / "run", "--embedder", str(folder)) == 2
    assert sentence in one_sentence(capsys.readouterr()) and not (tmp_path / "run").exists()


def test_cut_answers_are_counted(call, make_folder, tmp_path, capsys):
    folder = shutil.copytree(make_folder("bert"), tmp_path / "encoder")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 2}')
    assert call(tmp_path / "run", "--embedder", str(folder), command="calibrate") == 0
    assert "longer than the 2 tokens" in capsys.readouterr().err

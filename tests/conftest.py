"""Tiny models with random weights and a one-character-a-token tokenizer, written to a temporary folder."""

import os
import shutil
import string
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
import torch
import transformers
from helpers import SMALL, SUBJECTS, randomise, write
from tokenizers import Tokenizer, decoders, models, processors

import calunc
import lm as language
import toy
from data import Prompt

hypothesis.settings.register_profile("repeatable", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)  # the models are too small to share between threads

CHAT = (
    "<s>{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FAMILIES = ("gpt2", "llama", "qwen2", "gemma2", "gemma3")
WIDTH, VOCABULARY, CONTEXT = 16, 48, 64
CONFIGS = {  # family -> the name of its configuration, and what is its own
    "gemma2": ("Gemma2", dict(attn_logit_softcapping=2.0, final_logit_softcapping=5.0)),
    "gemma3": ("Gemma3Text", {}),
    "qwen3": ("Qwen3", dict(head_dim=4)),
    "gptneox": ("GPTNeoX", {}),
    "gptneo": ("GPTNeo", {}),
    "opt": ("OPT", dict(ffn_dim=32, word_embed_proj_dim=WIDTH)),
    "falcon": ("Falcon", dict(new_decoder_architecture=False)),
    "falcon-alibi": ("Falcon", dict(alibi=True, multi_query=False, parallel_attn=False, bias=True,
                                    new_decoder_architecture=False)),
    "mixtral": ("Mixtral", dict(num_local_experts=4)),
    "jamba": ("Jamba", dict(attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, num_experts=2)),
    "lfm2": ("Lfm2", dict(layer_types=["conv", "full_attention"])),
    "falconh1": ("FalconH1", dict(mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4, mamba_chunk_size=8,
                                  mamba_d_ssm=32, head_dim=4)),
    "qwen3next": ("Qwen3Next", dict(layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2,
                                    linear_num_value_heads=4, linear_key_head_dim=4, linear_value_head_dim=4,
                                    head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
                                    shared_expert_intermediate_size=8)),
}  # fmt: skip


@pytest.fixture(scope="session")
def make_tokenizer():
    """(characters, eos, pad, chat, wrap, added) -> a fast tokenizer; ids 0 to 3 are special."""

    def make(characters=string.ascii_lowercase + " .:\n", eos="</s>", pad=None, chat=False, wrap=False, added=()):
        vocabulary = ["<unk>", "<s>", "</s>", "<end>", *characters, "\n\n", ".\n"]
        ids = {token: i for i, token in enumerate(vocabulary)}
        core = Tokenizer(models.BPE(ids, [("\n", "\n"), (".", "\n")], unk_token="<unk>", fuse_unk=False))
        core.decoder = decoders.Fuse()
        if wrap:  # True: as BERT does
            ends, form = [("<s>", 1), ("</s>", 2)], "<s> $A </s>" if wrap is True else wrap
            core.post_processor = processors.TemplateProcessing(form, special_tokens=ends)
        special = {"bos_token": "<s>", "unk_token": "<unk>", "eos_token": eos, "pad_token": pad}
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=core, **{k: v for k, v in special.items() if v}
        )
        tokenizer.add_special_tokens({"additional_special_tokens": ["</s>", "<end>"]})
        tokenizer.add_tokens(list(added))
        tokenizer.chat_template = CHAT if chat is True else chat or None
        return tokenizer

    return make


def _config(family, layers=2, width=WIDTH, tied=False, window=CONTEXT, eos=2):
    common = dict(
        vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=eos, pad_token_id=None, tie_word_embeddings=tied
    )
    if family == "gpt2":  # its dropout of 0.1 stays
        return transformers.GPT2Config(n_embd=width, n_layer=layers, n_head=4, n_positions=CONTEXT, **common)
    if family == "bert":
        return transformers.BertConfig(
            vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
            intermediate_size=2 * width, max_position_embeddings=CONTEXT,
        )  # fmt: skip
    common |= dict(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=2 * width, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    if family in ("gemma2", "gemma3"):  # layers take turns: a sliding window, full attention
        common |= dict(head_dim=4, query_pre_attn_scalar=4, sliding_window=window)
        common["layer_types"] = ["sliding_attention", "full_attention"] * (layers // 2)
    if family == "mistral":
        common["sliding_window"] = window
    if family == "gptneo":
        common |= dict(window_size=window, attention_types=[[["global", "local"], layers // 2]])
    name, own = CONFIGS.get(family, (family.capitalize(), {}))
    return getattr(transformers, f"{name}Config")(**common, **own)


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory, make_tokenizer):
    """(family, what varies) -> the folder of a saved model with its tokenizer."""
    made = {}

    def make(family, generation_eos=None, seed=0, tokenizer=None, **config):
        key = repr((family, generation_eos, seed, tokenizer, sorted(config.items())))
        if key not in made:
            kind = transformers.AutoModel if family == "bert" else transformers.AutoModelForCausalLM
            model = kind.from_config(_config(family, **config))
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():  # large enough for every part to matter, biases included
                with torch.no_grad():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(0.3 * noise if parameter.ndim > 1 else parameter + 0.2 * noise)
            if family != "bert":  # defaults for `generate` that a sampler of our own must not read
                model.generation_config = transformers.GenerationConfig(
                    do_sample=True, top_k=2, temperature=0.5, bos_token_id=1,
                    eos_token_id=config.get("eos", 2) if generation_eos is None else generation_eos,
                )  # fmt: skip
            made[key] = tmp_path_factory.mktemp(family)
            model.save_pretrained(made[key])
            make_tokenizer(**(tokenizer or {})).save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture
def load(make_folder):
    """(family, what varies) -> a fresh LM, which the test may change."""
    return lambda family, **kwargs: language.load(make_folder(family, **kwargs))


@pytest.fixture(params=FAMILIES)
def lm(request, load):
    return load(request.param)


@pytest.fixture
def world():
    """(layers, what varies) -> a random GPT-2 with the toy world's tokenizer, the same every time, and its prompt."""

    def make(layers=1, **kwargs):
        tokenizer = toy.tokenizer(SimpleNamespace(subject=SUBJECTS))
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=layers, n_head=2, n_positions=64,
            eos_token_id=0, bos_token_id=0,
        )
        lm = language.LM(transformers.GPT2LMHeadModel(config).eval().requires_grad_(False), tokenizer, "toy")
        randomise((p for p in lm.model.parameters() if p.ndim > 1), seed=3, scale=0.3)
        return lm, Prompt(lm, "fewshot", examples=(), **kwargs)

    return make


# ---- runs of the command line -----------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny(make_folder, tmp_path_factory):
    """(family, what its tokenizer has) -> a tiny random model whose context is long enough for the prompts."""

    def make(family, **tokenizer):
        small = make_folder(family, tokenizer=tokenizer)
        config = transformers.AutoConfig.from_pretrained(small)
        config.max_position_embeddings = 2048
        model = transformers.AutoModelForCausalLM.from_config(config)
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        folder = tmp_path_factory.mktemp(f"long-{family}")
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(small).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def gpt2(tiny):
    return tiny("gpt2")


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """24 questions of two families that no model answers."""
    words = "ant bat cat dog eel fox gnu hen ibis jay kiwi lynx mole newt owl pig ram seal toad vole wasp yak zebu cow"
    return write(tmp_path_factory.mktemp("data") / "animals.jsonl", [
        {"id": f"q{i}", "question": f"what is {'a' * (i % 3)} {word}", "answers": ["nothing of the kind"],
         "family": ("odd", "even")[i % 2]}
        for i, word in enumerate(words.split())
    ])  # fmt: skip


@pytest.fixture(scope="session")
def call(gpt2, questions):
    """(out, flags, command) -> exit code of a small run of the tiny GPT-2."""

    def call(out, *flags, command="eval", model=None, dataset=None):
        model, dataset = model or gpt2, dataset or questions
        where = ["--model", str(model), "--dataset", str(dataset), "--out", str(out)]
        return calunc.main([command, *where, *SMALL, *flags])

    return call


@pytest.fixture(scope="session")
def finished(call, tmp_path_factory):
    """A run of all stages in which no confidence is stated and all answers are wrong."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert call(out) == 0
    return out


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copy"))

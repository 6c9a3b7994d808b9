"""Which architectures of transformers work: tiny random models of each, compared with uncached passes of one row each.

    python scripts/list_models.py [NAME ...]

writes docs/models.md, in minutes, or with names prints what it finds for those alone; it fails where that is not what
is known (`CERTAIN`). Every model is saved, loaded and checked as `--model` is. What the checks let pass is then scored
and sampled by every engine that they allow, with a random LoRA, for prompts of several lengths that are longer than the
windows, and compared with forward passes without cache, padding and mask, which this script makes itself: it is to find
what `infra.models.check` overlooks.
"""

import argparse
import inspect
import re
import signal
import string
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import lm as plain  # noqa: E402
from infra import setup, sharing  # noqa: E402
from lora import add_lora  # noqa: E402

WINDOW, CONTEXT = 8, 256
LENGTHS, SAID = (61, 7, 34), (1, 9, 4)  # tokens of prompts and completions
SMALL = {  # whatever of it a configuration has
    16: "hidden_size n_embd d_model n_embed embedding_size word_embed_proj_dim",
    2: "depth num_hidden_layers n_layer n_layers num_layers decoder_layers",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads head_dim "
       "num_experts num_local_experts n_routed_experts moe_num_experts rotary_dim "
       "qk_rope_head_dim qk_nope_head_dim v_head_dim",
    1: "encoder_layers moe_num_shared_experts first_k_dense_replace n_group topk_group bos_token_id",
    32: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim",
    8: "moe_intermediate_size shared_expert_intermediate_size q_lora_rank kv_lora_rank",
    WINDOW: "sliding_window attention_chunk_size",
    CONTEXT: "max_position_embeddings n_positions n_ctx",
}  # fmt: skip
SMALL = {name: value for value, names in SMALL.items() for name in names.split()}
SMALL |= {"image_size": 28, "patch_size": 14, "mm_tokens_per_image": 1}
SMALL |= {"hidden_size_per_layer_input": 8, "laurel_rank": 4}
SMALL |= {"num_key_value_heads": 2, "num_experts_per_tok": 2, "moe_k": 2, "eos_token_id": 2, "pad_token_id": None}
VOCABULARIES = "vocab_size", "vocab_size_per_layer_input"
STATE = dict(mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4, mamba_chunk_size=8, mamba_n_groups=1)
LINEAR = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=4, linear_value_head_dim=4,
              num_hidden_layers=4)  # fmt: skip
LOCAL = dict(layer_types=["sliding_attention", "full_attention"])
PADDED = ("camembert data2vec-text gemma4_unified_text prophetnet roberta roberta-prelayernorm xlm-roberta "
          "xlm-roberta-xl").split()  # fmt: skip
MLA = "axk1 axk2 deepseek_v2 deepseek_v3 glm4_moe_lite minicpm3 youtu".split()
OWN = {  # what else a small one needs, or what makes an architecture what it is
    **dict.fromkeys(MLA, dict(num_key_value_heads=4, head_dim=4)),
    **{kind: dict(pad_token_id=0) for kind in PADDED},  # they compute with it
    "bamba": STATE | dict(attn_layer_indices=[1]),
    "cohere2": LOCAL,
    "deepseek_v2": dict(hidden_size=32, num_key_value_heads=4, head_dim=8, qk_rope_head_dim=8, qk_nope_head_dim=8,
                        v_head_dim=8, moe_intermediate_size=16),
    "dots1": dict(n_shared_experts=1, num_experts_per_tok=2),
    "exaone4": LOCAL,
    "falcon_h1": STATE | dict(mamba_d_ssm=32),
    "gemma2": dict(query_pre_attn_scalar=4),
    "gemma3": dict(vision_config=dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                                      image_size=28, patch_size=14)),
    "gemma3_text": LOCAL,
    "gemma3n_text": dict(num_hidden_layers=4, num_kv_shared_layers=2, layer_types=2 * LOCAL["layer_types"]),
    "gemma4_text": LOCAL | dict(pad_token_id=0),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]], window_size=WINDOW),
    "gpt_oss": dict(num_local_experts=4),
    "granitemoehybrid": STATE | dict(layer_types=["linear_attention", "full_attention"], shared_intermediate_size=16),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4),
    "lfm2": dict(layer_types=["conv", "full_attention"]),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"], num_dense_layers=1),
    "llama4_text": dict(num_hidden_layers=4, no_rope_layers=[1, 0, 1, 1], floor_scale=256),
    "mamba2": dict(num_heads=4, head_dim=8, state_size=4, n_groups=1, chunk_size=8),
    "modernbert-decoder": dict(pad_token_id=0, local_attention=2 * WINDOW, cls_token_id=1, sep_token_id=2,
                               layer_types=["sliding_attention", "full_attention"]),
    "nemotron_h": dict(num_hidden_layers=4, mamba_num_heads=4, mamba_head_dim=8, ssm_state_size=4, n_groups=1,
                       moe_shared_expert_intermediate_size=8),
    "olmo3": LOCAL,
    "olmo_hybrid": LINEAR, "qwen3_next": LINEAR | dict(shared_expert_intermediate_size=8),
    "qwen3_5_text": LINEAR, "qwen3_5_moe_text": LINEAR | dict(shared_expert_intermediate_size=8),
    "qwen2_moe": dict(shared_expert_intermediate_size=8),
    "qwen3_moe": dict(mlp_only_layers=[0]),
    "rwkv": dict(attention_hidden_size=16, context_length=CONTEXT),
    "recurrent_gemma": dict(lru_width=16, num_hidden_layers=3, attention_window_size=WINDOW),
    "reformer": dict(is_decoder=True),
    "smollm3": dict(layer_types=["full_attention", "full_attention"]),
    "xmod": dict(pad_token_id=0, default_language="en_XX"),
    "zamba2": dict(num_hidden_layers=3, layers_block_type=["linear_attention", "linear_attention", "hybrid"],
                   n_mamba_heads=4, mamba_headdim=8, mamba_d_state=4, chunk_size=8, num_mem_blocks=1,
                   attention_head_dim=8),
}  # fmt: skip
CERTAIN = {  # what is known of some: the engines, or a part of the sentence that refuses them
    **dict.fromkeys("falcon gemma3 deepseek_v2 deepseek_v3 glm4_moe ernie4_5_moe qwen3_moe".split(), "both"),
    **dict.fromkeys("gpt_neo mpt llama4 bloom falcon_h1 lfm2 granitemoehybrid qwen3_next qwen3_5".split(), "plain"),
    **dict.fromkeys("jamba rwkv recurrent_gemma".split(), "other probabilities with cached prompts"),
    "mamba": "`get_seq_length` can only be called on Attention layers",
    "openai-gpt": "does not take cached prompts",
}
VARIANTS = {  # a title -> the architecture and what it differs in
    "falcon, ALiBi": ("falcon", dict(alibi=True, multi_query=False, parallel_attn=False, bias=True)),
    "mistral, window of 1,024": ("mistral", dict(sliding_window=1024)),
    "bert, as a decoder": ("bert", dict(is_decoder=True)),
    "roberta, as a decoder": ("roberta", dict(is_decoder=True)),
    "llama, dynamic RoPE": ("llama", dict(rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4))),
    "llama, YaRN": ("llama", dict(rope_parameters=dict(
        rope_type="yarn", factor=4.0, rope_theta=1e4, original_max_position_embeddings=32))),
    "phi3, LongRoPE": ("phi3", dict(original_max_position_embeddings=96, rope_parameters=dict(
        rope_type="longrope", rope_theta=1e4, original_max_position_embeddings=96, factor=8.0,
        short_factor=[1.0, 1.0], long_factor=[2.0, 4.0]))),
    "gemma2, eager attention": ("gemma2", dict(attn_implementation="eager")),
    "ministral3, scaled by position": ("ministral3", dict(rope_parameters=dict(
        rope_type="yarn", factor=4.0, rope_theta=1e4, original_max_position_embeddings=16, llama_4_scaling_beta=0.5,
        beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0))),
}  # fmt: skip


def small(known, vocabulary):
    """What makes a configuration small, and those inside it, of a tower for pictures for example."""
    names = {*getattr(known, "__dataclass_fields__", ()), *inspect.signature(known).parameters}
    found = {name: value for name, value in (SMALL | dict.fromkeys(VOCABULARIES, vocabulary)).items() if name in names}
    for name, inner in getattr(known, "sub_configs", {}).items():
        if hasattr(inner, "model_type") and inner.model_type in CONFIG_MAPPING:
            found[name] = small(inner, vocabulary) | OWN.get(inner.model_type, {})
    return found


def build(kind, own, tokenizer, folder):
    """A small random model of an architecture, saved with its tokenizer."""
    config = CONFIG_MAPPING[kind](**small(CONFIG_MAPPING[kind], len(tokenizer)) | OWN.get(kind, {}) | own)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with torch.device("meta"):  # some are too large to make
            if sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters()) > 2**21:
                raise RuntimeError("not small")
        model = AutoModelForCausalLM.from_config(config)
        for p in model.parameters():  # large enough for every part to matter
            p.data = 0.3 * torch.randn(p.shape) if p.ndim > 1 else p.data + 0.1 * torch.randn(p.shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def characters():
    """A tokenizer of one token a character."""
    ids = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *string.printable])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(ids, [], unk_token="<unk>")),
                                   bos_token="<s>", eos_token="</s>", unk_token="<unk>")  # fmt: skip


def uncached(lm, prompt, said):
    """Log-probabilities of a completion, from one forward pass. -> (T,)"""
    logits = lm.model(input_ids=torch.tensor([prompt + said]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1)[range(len(said)), said]


def compare(lm, engine):
    """The largest difference of a log-probability, in nats, and of a gradient, relative to its size."""
    generator = torch.Generator().manual_seed(1)

    def draw(n):
        return torch.randint(4, lm.model.config.get_text_config().vocab_size, (n,), generator=generator).tolist()

    contexts, turn = [draw(n) for n in LENGTHS], draw(5)
    prompts = [context + turn + draw(i) for i, context in enumerate(contexts)]
    said = [[draw(n) for n in SAID] for _ in prompts]
    with torch.no_grad():
        before = plain.read_on(lm, plain.read(lm, contexts), range(len(prompts)), prompts)
        drawn, logp = engine.sample(lm, before, [1.0, 0.0, 0.7], 9, frozenset(range(4, 16)), [1, 2, 3], logprobs=True)
        error = max(abs(uncached(lm, p, x).sum().item() - nats)
                    for p, group, row in zip(prompts, drawn, logp, strict=True)
                    for x, nats in zip(group, row, strict=True))  # fmt: skip
    before = plain.read_on(lm, plain.read(lm, contexts), range(len(prompts)), prompts)
    found, mask = engine.completion_logprobs(lm, before, said)
    wanted = [uncached(lm, p, x) for p, group in zip(prompts, said, strict=True) for x in group]
    found = [row[: len(w)] for row, w in zip(found, wanted, strict=True)]
    error = max(error, *((a - b).abs().max().item() for a, b in zip(found, wanted, strict=True)))
    named = [(n, p) for n, p in lm.model.named_parameters() if p.requires_grad]
    mine, theirs = (torch.autograd.grad(torch.cat(x).square().sum(), [p for _, p in named], allow_unused=True)
                    for x in (found, wanted))  # fmt: skip
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if b is not None]
    if idle := [n for (n, _), g in zip(named, theirs, strict=True) if g is None]:
        raise RuntimeError(f"an adapter that is never used: {idle[0]}")
    apart = max((a - b).norm() for a, b in pairs) / max(b.norm() for _, b in pairs)
    return error, apart.item()


def verdict(kind, own, tokenizer):
    """-> the model's class; "both", "plain" or "refused"; the largest differences, or why it is refused"""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / "model"
        build(kind, own, tokenizer, folder)
        try:
            lm = setup.with_engine(plain.load(folder), "auto")
        except ValueError as error:
            return KNOWN[kind], "refused", re.sub(rf"{folder}|: \w+(?= does| gives| cannot)", "", str(error)).strip()
    for p in add_lora(lm, rank=2, alpha=4, seed=1):
        p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    found = [compare(lm, engine) for engine in ([plain, sharing] if lm.sharing else [plain])]
    return type(lm.model).__name__, "both" if lm.sharing else "plain", *map(max, zip(*found, strict=True))


def surprises(found, tried):
    """What is not as it is known to be, as where the small one has a size or a setting that does not work."""
    rows = {title: row[2] if row[1] == "refused" else row[1] for title, row in found.items()}
    return [title for title in tried if CERTAIN.get(title, "") not in rows.get(title, "")]


def page(found, missing):
    rows = {title: row for title, row in found.items() if row[1] != "refused"}
    wrong = [title for title, (_, _, nats, apart) in rows.items() if max(nats, apart) > 2e-3]
    text = PAGE.format(n=len(found), both=sum(row[1] == "both" for row in rows.values()),
                       wrong=", ".join(wrong) or "none",
                       plain=sum(row[1] == "plain" for row in rows.values()), refused=len(found) - len(rows),
                       version=transformers.__version__)  # fmt: skip
    table = ["| `model_type` | class | engines | log-probability, nats | gradient |", "|---|---|---|---:|---:|"]
    for title, (name, engine, nats, apart) in rows.items():
        table.append(f"| {title} | {name} | {engine} | {nats:.0e} | {apart:.0e} |")
    table += ["", "| `model_type` | class | refused, as it |", "|---|---|---|"]
    table += [f"| {title} | {row[0]} | {row[2][:150]} |" for title, row in found.items() if row[1] == "refused"]
    table += ["", "| `model_type` | not tried, as no small one could be made |", "|---|---|"]
    table += [f"| {title} | {why} |" for title, why in missing.items()]
    return f"{text}\n" + "\n".join(table) + "\n"


PAGE = """# Which models work

Written by `python scripts/list_models.py` with transformers {version}, on a CPU in float32.

Of {n} architectures and variants, {both} work with both [engines](cost.md#two-engines), {plain} with the plain one, and
{refused} are refused in one sentence before anything is written. More than 0.002 nats off, summed over a completion of
up to 9 tokens: {wrong}.
Each is a tiny model with random weights and a random LoRA. Its log-probabilities, sampled and scored, and their
gradients are compared with forward passes of one row each, without cache, padding and mask. Prompts have 13 to 66
tokens and are read in three parts; windows have 8. A gradient's difference is relative to the largest one. Weights are
much larger than usual, which enlarges rounding.

The context is shorter than `max_position_embeddings` where numbers would depend on other rows of a batch: LongRoPE
(Phi-3 and Phi-4-mini with 128k) ends at `original_max_position_embeddings`, Llama 4 at half of `floor_scale`, both
4,096 tokens. Windows of more than 16 tokens (512, if the configuration does not list the types of its layers) are
shortened while a model is checked. Experts that are fused into one tensor have no adapter, and neither have routers
that are no plain linear map. In Zamba 2 and Nemotron-H the log-probabilities that sampling records differ by
thousandths from those that are trained on; as their code reads, a step of one token leaves out a lower bound
(`time_step_min`) that the scan of several has.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="as `model_type` in config.json, or of a variant")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    tokenizer, found, missing = characters(), {}, {}
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # some cannot be made small
    cases = {kind: (kind, {}) for kind in KNOWN} | VARIANTS
    for title in args.names or cases:
        signal.alarm(15)
        try:
            found[title] = verdict(*cases[title], tokenizer)
        except (Exception, KeyboardInterrupt) as error:  # configurations refuse small sizes in many ways
            missing[title] = re.sub(r"\s+", " ", str(error)).strip()[:100] or "takes too long"
            print(f"{title}: {error!r:.150}", file=sys.stderr)
        if args.names:
            print(title, *found.get(title, ()))
    if not args.names:
        (ROOT / "docs" / "models.md").write_text(page(found, missing), encoding="utf-8")
    if wrong := surprises(found, args.names or cases):
        sys.exit(f"not as CERTAIN has it, perhaps for a size or a setting of the small one: {', '.join(wrong)}")


if __name__ == "__main__":
    main()

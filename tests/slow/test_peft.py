"""The files of lora.py are peft's: what peft makes of them has our logits."""

import peft
import pytest
import torch
import transformers
from helpers import randomise

from lm import completion_logprobs, read, read_on
from lora import adapter, add_lora, save_adapter

PROMPTS = [[1, 7, 9, 4], [1, 7, 9, 12, 30, 31, 5, 5, 8], [1, 7, 20]]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_peft_reads_the_adapter(load, make_folder, tmp_path, recwarn, family, tied):
    lm = load(family, tied=tied)
    randomise(add_lora(lm, rank=3, alpha=7), scale=0.3)
    save_adapter(lm, tmp_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(make_folder(family, tied=tied))
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert not [w for w in recwarn if "fan_in_fan_out" in str(w.message) or "adapter" in str(w.message)]
    for prompt in PROMPTS:
        got, want = (model(input_ids=torch.tensor([prompt])).logits for model in (lm.model, theirs))
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert peft.PeftConfig.from_pretrained(tmp_path).base_model_name_or_path == lm.name


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # peft has no activated LoRA for Conv1D
def test_peft_switches_the_adapter_on_where_we_do(load, make_folder, tmp_path, family):
    lm, turn = load(family), [30, 31, 32]
    randomise(add_lora(lm, rank=3, alpha=7), scale=0.3)
    save_adapter(lm, tmp_path, invocation=turn)
    base = transformers.AutoModelForCausalLM.from_pretrained(make_folder(family))
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        for prompt, rest in zip(PROMPTS, ([8, 9], [3], [2, 2, 2]), strict=True):
            with adapter(lm, False):
                before = read(lm, [prompt])
            got, _ = completion_logprobs(lm, read_on(lm, before, [0], [prompt + turn]), [[rest]])
            logits = theirs(input_ids=torch.tensor([prompt + turn + rest])).logits[0, -len(rest) - 1 : -1]
            want = logits.log_softmax(-1)[range(len(rest)), rest]
            torch.testing.assert_close(got[0], want, atol=1e-4, rtol=1e-4)

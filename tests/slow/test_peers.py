"""How the result fits elsewhere: adapters that are on everywhere, in peft, in transformers and in TRL."""

import contextlib
import shutil

import datasets
import peft
import pytest
import torch
import transformers
from helpers import randomise, weights
from trl import GRPOConfig, GRPOTrainer

import rl
from beyond import exact
from beyond.rewards import trl_reward
from calunc import CalibratedLM
from lm import completion_logprobs, read, read_on
from lora import adapter, add_lora, save_adapter


@pytest.fixture(scope="module")
def everywhere(finished, call, tmp_path_factory):
    """A run whose adapter reads the question and the answer too, with weights that are worth merging."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "everywhere")
    assert call(folder, "--adapter", "everywhere", "--lr", "0.1", "--warmup", "3") == 0
    return folder


def test_an_adapter_that_is_on_everywhere_reads_the_question_with_every_use(everywhere):
    """Against the plain model: one pass over context and turn, the adapter on throughout; transformers has the same."""
    trained = CalibratedLM(everywhere)
    lm, pairs = trained.model, [("what is a", "b"), ("what is", "cat c")]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(everywhere / "adapter").eval()
    said = [lm.encode("a"), lm.encode("bb")]
    asked = rl.second_turns(lm, trained.prompt, pairs, trained.config)
    got = exact.log_policy(lm, asked, [0, 1], said, trained.config)
    for q, pair in enumerate(pairs):
        before = sum(trained.prompt.second_turn(*pair), [])
        for c, ids in enumerate(said):
            for model in (lm.model, theirs):
                logp = model(input_ids=torch.tensor([before + ids])).logits[0, len(before) - 1 : -1].log_softmax(-1)
                torch.testing.assert_close(got[q, c], logp[range(len(ids)), ids].sum(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reflection", ["0", "4"])
def test_the_exact_gradient_with_it(reflection, finished, call, tmp_path, monkeypatch):
    """The tokenizer has no digits."""
    monkeypatch.setattr(exact, "numbers", lambda lm, *_: ([0.1, 0.2], [lm.encode("a"), lm.encode("b")]))
    run = shutil.copytree(finished, tmp_path / "run")
    assert call(run, "--adapter", "everywhere", "--gradient", "exact", "--reflection", reflection, command="train") == 0
    every, learned = weights(run)
    assert every.isfinite().all() and learned.abs().max() > 1e-3


# ---- peft: what it makes of the files of lora.py has our logits --------------------------------------------------

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
    for prompt, rest in zip(PROMPTS, ([8, 9], [3], [2, 2, 2]), strict=True):
        with torch.no_grad(), adapter(lm, False):
            before = read(lm, [prompt])
        got, _ = completion_logprobs(lm, read_on(lm, before, [0], [prompt + turn]), [[rest]])
        logits = theirs(input_ids=torch.tensor([prompt + turn + rest])).logits[0, -len(rest) - 1 : -1]
        torch.testing.assert_close(got[0], logits.log_softmax(-1)[range(len(rest)), rest], atol=1e-4, rtol=1e-4)


# ---- TRL -----------------------------------------------------------------------------------------


def test_a_step_of_trl_with_the_reward(gpt2, tmp_path):
    """A real step of its GRPOTrainer, which logs the mean of what the reward says."""
    seen = []

    def reward(**columns):
        seen.append((columns["target"], trl_reward(**columns)))
        return seen[-1][-1]

    config = GRPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=2, report_to=[],
        max_completion_length=4, use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True, bf16=False,
    )  # fmt: skip
    table = datasets.Dataset.from_list([{"prompt": "what is a", "target": p} for p in (0.1, 0.4, 0.6, 0.9)])
    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2, pad_token="</s>")
    trainer = GRPOTrainer(str(gpt2), reward_funcs=reward, args=config, train_dataset=table, processing_class=tokenizer)
    with contextlib.redirect_stdout(None):
        trainer.train()
    ((targets, given),) = seen
    assert len(targets) == len(given) == 4 and set(targets) <= {0.1, 0.4, 0.6, 0.9}
    (logged,) = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert logged == pytest.approx(sum(given) / 4)

"""How the result fits elsewhere: from Python, merged, in peft and transformers, in TRL, on the hub."""

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import torch
import transformers
from helpers import rows, write
from safetensors.torch import load_file
from trl import GRPOConfig, GRPOTrainer

import calunc
import lm as language
import rl
from beyond import exact
from calunc import Answer, CalibratedLM
from data import Prompt
from rl import calibration_reward


@pytest.fixture(scope="module")
def everywhere(finished, call, tmp_path_factory):
    """A run whose adapter reads the question and the answer too, with weights that are worth merging."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "everywhere")
    assert call(folder, "--adapter", "everywhere", "--lr", "0.1", "--warmup", "3") == 0
    return folder


@pytest.fixture
def train_again(finished, call, tmp_path):
    """(flags) -> the adapter's tensors after training with the adapter on everywhere"""

    def train_again(*flags):
        folder = shutil.copytree(finished, tmp_path / " ".join(flags).replace("--", ""))
        assert call(folder, "--adapter", "everywhere", *flags, command="train") == 0
        return load_file(folder / "adapter" / "adapter_model.safetensors")

    return train_again


# ---- from Python ---------------------------------------------------------------------------------


def test_three_lines_of_python(finished, tmp_path):
    lm = CalibratedLM(finished, device="cpu")
    samples = rows(finished / "samples.jsonl")
    found = lm.ask_all([row["question"] for row in samples])
    assert lm.ask(samples[3]["question"]).confidence is None
    assert sum(a.text == row["answer"] for a, row in zip(found, samples, strict=True)) >= 0.9 * len(samples)
    asked, out = write(tmp_path / "q.jsonl", [{"question": row["question"]} for row in samples]), tmp_path / "a.jsonl"
    assert calunc.main(["predict", "--run", str(finished), "--in", str(asked), "--out", str(out)]) == 0
    same = [a == Answer(r["answer"], r["confidence"]) for a, r in zip(found, rows(out), strict=True)]
    assert sum(same) >= 0.9 * len(same)  # rounding may break a tie
    for settings, said in (({"steps": 4}, "no --steps"), ({"zzz": 3}, "no --zzz"), ({"readout": "zzz"}, "is 'zzz'")):
        with pytest.raises(ValueError, match=said):
            CalibratedLM(finished, **settings)


# ---- where the adapter is on ---------------------------------------------------------------------


def test_an_adapter_that_is_on_everywhere_reads_the_question_with_every_use(everywhere):
    """Against the plain model: one pass over context and turn, the adapter on throughout."""
    trained = CalibratedLM(everywhere)
    lm, pairs = trained.model, [("what is a", "b"), ("what is", "cat c")]
    said = {1: lm.encode("a"), 2: lm.encode("bb")}
    asked = rl.ask(lm, trained.prompt, pairs, trained.config)
    got = exact.log_policy(lm, asked, [0, 1], said, trained.config)
    for q, pair in enumerate(pairs):
        before = sum(trained.prompt.confidence(*pair), [])
        for c, ids in enumerate(said.values()):
            logp = lm.model(input_ids=torch.tensor([before + ids])).logits[0, len(before) - 1 : -1].log_softmax(-1)
            torch.testing.assert_close(got[q, c], logp[range(len(ids)), ids].sum(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("flags", [
    ["--kl", "0.1", "--micro-batch", "1", "--recompute", "on"], ["--gradient", "exact"], ["--reasoning", "2"],
    ["--engine", "plain"],
], ids=str)  # fmt: skip
def test_every_kind_of_training_runs_with_it(flags, train_again, monkeypatch):
    """What was read must be read again after each update, and for the reference. The tokenizer has no digits."""
    monkeypatch.setattr(exact, "percentages", lambda lm, every=1: {1: lm.encode("a"), 2: lm.encode("b")})
    assert all(x.isfinite().all() for x in train_again(*flags).values())


def test_micro_batches_change_nothing_with_it(train_again):
    one, all_at_once = (train_again("--kl", "0.1", "--warmup", "2", "--micro-batch", size) for size in "10")
    for name, value in one.items():
        torch.testing.assert_close(value, all_at_once[name], atol=1e-4, rtol=1e-4)
    assert any(value.abs().max() > 1e-3 for name, value in one.items() if ".lora_B." in name)


# ---- merged --------------------------------------------------------------------------------------


def test_merging_a_run(everywhere, tmp_path):
    """An ordinary folder, which says the same about the same answers: each statement's whole distribution."""
    out = tmp_path / "merged"
    assert calunc.main(["merge", "--run", str(everywhere), "--out", str(out)]) == 0
    trained = CalibratedLM(everywhere)
    adapted, prompt, config = trained.model, trained.prompt, trained.config
    pairs = [(row["question"], row["answer"]) for row in rows(everywhere / "samples.jsonl")][:5]
    said = {c: adapted.encode("abc"[: c + 1]) for c in range(3)}

    def log_policy(lm):
        asked = rl.ask(lm, Prompt(lm, prompt.style), pairs, config)
        return exact.log_policy(lm, asked, list(range(5)), said, replace(config, rollout_temperature=1.0))

    torch.testing.assert_close(log_policy(language.load(out)), log_policy(adapted), atol=1e-4, rtol=1e-4)
    assert (log_policy(language.load(config.model)) - log_policy(adapted)).abs().max() > 0.01
    assert transformers.AutoTokenizer.from_pretrained(out)("a").input_ids
    card, asked = huggingface_hub.ModelCard.load(out / "README.md"), prompt.confidence("(question)", "(answer)")
    assert card.data.library_name == "transformers"
    assert f"```text\n{adapted.tokenizer.decode(sum(asked, []))}\n```" in card.text


# ---- peft, transformers, the hub -----------------------------------------------------------------


def test_transformers_loads_the_adapter_by_its_folder(everywhere):
    trained = CalibratedLM(everywhere)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(everywhere / "adapter").eval()
    ids = torch.tensor([trained.prompt.answer("what is a")])
    both = [model(input_ids=ids).logits for model in (theirs, trained.model.model)]
    torch.testing.assert_close(*both, atol=1e-4, rtol=1e-4)


def test_the_model_card_has_the_metrics_of_the_report(finished):
    card = huggingface_hub.ModelCard.load(finished / "adapter" / "README.md")
    row = json.loads((finished / "report.json").read_text())["sets"]["test"]["methods"]["Stated, trained"]
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found["test", "ece"] == pytest.approx(row["ece"]) and found["test", "brier"] == pytest.approx(row["brier"])
    assert ("test", "auroc") not in found  # no answer is right
    assert card.data.library_name == "peft" and "CalibratedLM" in card.text


# ---- TRL -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trl_reward():
    """The recipe of the documentation."""
    text = (Path(calunc.__file__).parent / "docs" / "log.md").read_text(encoding="utf-8")
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def reward(" in code]
    names = {}
    exec(code, names)
    return names["reward"]


def test_the_reward_of_texts_and_of_conversations(trl_reward):
    texts = ["so Confidence: 70%", " 70%", "Confidence: 70% 80%", "no", "70% Confidence: 30%"]
    targets = [0.7, 0.2, 0.5, 0, 1]
    want = [calibration_reward(c, p) for c, p in zip((0.7, 0.7, None, None, 0.3), targets, strict=True)]
    assert trl_reward(completions=texts, target=targets, prompts=texts, trainer_state=None) == pytest.approx(want)
    assert trl_reward([[{"role": "assistant", "content": text}] for text in texts], targets) == pytest.approx(want)


def test_a_step_of_trl_with_the_reward(gpt2, tmp_path, trl_reward):
    """A real step of its GRPOTrainer, which logs the mean of what the reward says."""
    seen = []

    def reward(**columns):
        seen.append((columns["completions"], columns["target"], trl_reward(**columns)))
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
    (completions, targets, given) = seen[0]
    assert len(completions) == len(targets) == len(given) == 4 and set(targets) <= {0.1, 0.4, 0.6, 0.9}
    (logged,) = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert logged == pytest.approx(sum(given) / 4)

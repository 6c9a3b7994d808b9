"""How the result fits elsewhere: from Python, in peft and transformers, merged, in TRL, in TensorBoard, on the hub."""

import contextlib
import json
import shutil

import huggingface_hub
import pytest
import torch
import transformers
from helpers import one_sentence, randomise, rows
from safetensors.torch import load_file

import calunc
import lm as language
import rewards
import statements
from calunc import Answer, CalibratedLM
from data import Prompt
from lora import add_lora, merge
from rewards import calibration_reward, trl_reward
from run import Run
from stages import load_trained


@pytest.fixture(scope="module")
def everywhere(finished, call, tmp_path_factory):
    """A run whose adapter reads the question and the answer too, with weights that are worth merging."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "everywhere")
    assert call(folder, "--adapter", "everywhere", "--lr", "0.1", "--warmup", "3") == 0
    return folder


# from Python


def test_three_lines_of_python(finished, tmp_path):
    lm = CalibratedLM(finished, device="cpu")
    asked = [row["question"] for row in rows(finished / "samples.jsonl")]
    found = lm.ask_all(asked)
    assert found[3] == lm.ask(asked[3]) and all(isinstance(a, Answer) for a in found)
    assert [a.text for a in found] == [row["answer"] for row in rows(finished / "samples.jsonl")]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in asked))
    out = tmp_path / "a.jsonl"
    assert calunc.main(["predict", "--run", str(finished), "--in", str(tmp_path / "q.jsonl"), "--out", str(out)]) == 0
    assert [Answer(r["answer"], r["confidence"]) for r in rows(out)] == found


@pytest.mark.parametrize("settings, said", [
    ({"steps": 4}, "no --steps here"), ({"zzz": 3}, "no --zzz here"), ({"readout": "zzz"}, "--readout is 'zzz'"),
])  # fmt: skip
def test_settings_that_python_cannot_change(settings, said, finished):
    with pytest.raises(ValueError, match=said):
        CalibratedLM(finished, **settings)


# where the adapter is on


def test_an_adapter_that_is_on_everywhere_reads_the_question_with_every_use(everywhere):
    """Against the plain model: one pass over context and turn, the adapter on throughout."""
    run = Run(everywhere)
    lm, prompt = load_trained(run.config(), run)
    pairs = [("what is a", "b"), ("what is", "cat c")]
    said = statements.whole_numbers(lm) or {1: lm.encode("a"), 2: lm.encode("bb")}
    asked = statements.ask(lm, prompt, pairs, where="everywhere")
    got = statements.log_policy(lm, asked, said)
    for q, pair in enumerate(pairs):
        context, turn = prompt.confidence(*pair)
        for c, ids in enumerate(said.values()):
            logits = lm.model(input_ids=torch.tensor([context + turn + ids])).logits[0, : len(context + turn + ids) - 1]
            want = logits.log_softmax(-1)[-len(ids) :].gather(1, torch.tensor(ids)[:, None]).sum()
            assert got[q, c].item() == pytest.approx(want.item(), abs=1e-4)


@pytest.mark.parametrize("flags", [
    ["--updates", "2"], ["--kl", "0.1", "--micro-batch", "1"], ["--gradient", "exact"], ["--reasoning", "2"],
    ["--warmup", "2", "--micro-batch", "2", "--updates", "2"],
], ids=str)  # fmt: skip
def test_every_kind_of_training_runs_with_it(flags, finished, call, tmp_path):
    """What was read must be read again after each update, and for the reference."""
    folder = shutil.copytree(finished, tmp_path / "run")
    if "exact" in flags:
        with pytest.MonkeyPatch.context() as patch:  # this tokenizer has no digits
            patch.setattr(statements, "percentages", lambda lm, every: {1: lm.encode("a"), 2: lm.encode("b")})
            assert call(folder, "--adapter", "everywhere", *flags, command="train") == 0
    else:
        assert call(folder, "--adapter", "everywhere", *flags, command="train") == 0


def test_micro_batches_change_nothing_with_it(finished, call, tmp_path):
    found = []
    for size in ("1", "0"):
        folder = shutil.copytree(finished, tmp_path / size)
        flags = ("--adapter", "everywhere", "--updates", "2", "--kl", "0.1", "--warmup", "2", "--micro-batch", size)
        assert call(folder, *flags, command="train") == 0
        found.append(load_file(folder / "adapter" / "adapter_model.safetensors"))
    for name, one in found[0].items():
        torch.testing.assert_close(one, found[1][name], atol=1e-5, rtol=1e-5)
    assert any(one.abs().max() > 1e-3 for name, one in found[0].items() if ".lora_B." in name)


# merged


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_merged_model_gives_the_same_logits(family, load, tmp_path):
    lm, ids = load(family), torch.arange(4, 20)[None]
    randomise(add_lora(lm, rank=3, alpha=7))
    want = lm.model(input_ids=ids).logits
    merge(lm)
    assert not [name for name, _ in lm.model.named_parameters() if name.endswith((".A", ".B"))]
    torch.testing.assert_close(lm.model(input_ids=ids).logits, want, atol=1e-4, rtol=1e-4)
    lm.model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(theirs(input_ids=ids).logits, want, atol=1e-4, rtol=1e-4)


def test_merging_a_run(everywhere, tmp_path):
    """An ordinary folder, which says the same about the same answers: each statement's whole distribution."""
    out = tmp_path / "merged"
    assert calunc.main(["merge", "--run", str(everywhere), "--out", str(out)]) == 0
    run = Run(everywhere)
    adapted, prompt = load_trained(run.config(), run)
    merged = language.load(out)
    pairs = [(row["question"], row["answer"]) for row in rows(everywhere / "samples.jsonl")][:5]
    said = {c: adapted.encode("abc"[: c + 1]) for c in range(3)}
    asked = [statements.ask(lm, Prompt(lm, prompt.style), pairs, where="everywhere") for lm in (adapted, merged)]
    one, two = (statements.log_policy(lm, a, said) for lm, a in zip((adapted, merged), asked, strict=True))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    base = language.load(run.config().model)
    assert (statements.log_policy(base, statements.ask(base, prompt, pairs), said) - one).abs().max() > 0.01
    assert transformers.AutoTokenizer.from_pretrained(out)("a").input_ids
    card = huggingface_hub.ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers"
    asked = adapted.tokenizer.decode(sum(prompt.confidence("(question)", "(answer)"), []))
    assert f"```text\n{asked}\n```" in card.text


def test_what_cannot_be_merged(finished, everywhere, tmp_path, capsys):
    for argv, said in (
        (["--run", str(finished), "--out", str(tmp_path / "m")], "add --adapter everywhere to the call"),
        (["--run", str(everywhere), "--out", str(tmp_path)], "is there already: give --out a new name"),
        (["--run", str(everywhere)], "merge needs --out"),
        (["--run", str(everywhere), "--out", str(tmp_path / "no" / "m")], "there is no folder"),
    ):
        assert calunc.main(["merge", *argv]) == 2
        assert said in one_sentence(capsys.readouterr())
    assert not list(tmp_path.iterdir())


# peft and transformers


def test_transformers_loads_the_adapter_by_its_folder(everywhere):
    run = Run(everywhere)
    lm, prompt = load_trained(run.config(), run)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run.path("adapter")).eval()
    ids = torch.tensor([prompt.answer("what is a")])
    torch.testing.assert_close(theirs(input_ids=ids).logits, lm.model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


# the hub


def test_the_model_card_has_the_metrics_of_the_report(finished):
    card = huggingface_hub.ModelCard.load(finished / "adapter" / "README.md")
    report = json.loads((finished / "report.json").read_text())
    row = report["sets"]["test"]["methods"]["Stated, trained"]
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found["test", "ece"] == row["ece"] and found["test", "brier"] == row["brier"]
    assert ("test", "auroc") not in found  # no answer is right
    assert card.data.library_name == "peft" and "CalibratedLM" in card.text


# TensorBoard


def test_tensorboard_has_what_the_log_has(finished, call, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "metrics.jsonl").unlink()
    assert call(folder, "--tensorboard", "on", command="train") == 0
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    for record in rows(folder / "metrics.jsonl"):
        for name in ("reward", "malformed", "grad_norm"):
            got = {e.step: e.value for e in events.Scalars(name)}
            assert got[record["step"]] == pytest.approx(record[name], rel=1e-6)


def test_another_training_is_another_log(finished, call, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = shutil.copytree(finished, tmp_path / "run")
    assert call(folder, "--tensorboard", "on", command="train") == 0
    assert call(folder, "--tensorboard", "on", "--steps", "2", command="train") == 0
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("reward")] == [0, 1]


def test_a_finished_run_can_be_shown_in_tensorboard(finished, call, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = shutil.copytree(finished, tmp_path / "run")
    assert call(folder, "--tensorboard", "on") == 0
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    log = rows(folder / "metrics.jsonl")
    assert [e.value for e in events.Scalars("reward")] == pytest.approx([r["reward"] for r in log])


def test_tensorboard_that_is_not_installed(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert call(tmp_path / "run", "--tensorboard", "on") == 2
    assert one_sentence(capsys.readouterr()) == "--tensorboard on needs a package: pip install tensorboard"
    assert not (tmp_path / "run").exists()


# TRL


def test_the_reward_of_texts_and_of_conversations():
    texts = ["so Confidence: 70%", " 70%", "Confidence: 70% 80%", "no", "70% Confidence: 30%"]
    want = [calibration_reward(c, p) for c, p in zip((0.7, 0.7, None, None, 0.3), (0.7, 0.2, 0.5, 0, 1), strict=True)]
    targets = [0.7, 0.2, 0.5, 0, 1]
    assert trl_reward(completions=texts, target=targets, prompts=texts, trainer_state=None) == want
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert rewards.trl_reward(chats, targets) == want


def test_a_step_of_trl_with_the_reward(gpt2, tmp_path):
    """A real step of its GRPOTrainer, which logs the mean of what the reward says."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    seen = []

    def reward(**columns):
        seen.append((columns["completions"], columns["target"], trl_reward(**columns)))
        return seen[-1][-1]

    config = GRPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=2, report_to=[],
        max_completion_length=4, use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True, bf16=False,
    )  # fmt: skip
    table = datasets.Dataset.from_list([{"prompt": "what is a", "target": p} for p in (0.1, 0.4, 0.6, 0.9)])
    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = GRPOTrainer(str(gpt2), reward_funcs=reward, args=config, train_dataset=table, processing_class=tokenizer)
    with contextlib.redirect_stdout(None):
        trainer.train()
    (completions, targets, given) = seen[0]
    assert len(completions) == len(targets) == len(given) == 4 and set(targets) <= {0.1, 0.4, 0.6, 0.9}
    (logged,) = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert logged == pytest.approx(sum(given) / 4)

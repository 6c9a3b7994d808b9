"""calunc.py, stages.py, run.py and report.py on tiny random models: stages, run folder, report, command line."""

import hashlib
import importlib.util
import itertools
import json
import math
import shlex
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from helpers import one_sentence, rows, write
from safetensors.torch import load_file

import baselines
import calunc
import data
import lm as language
import lora
import platt
import rl
import stages
import statements
import toy
from amp import Optimizer
from run import STAGES, Run
from settings import Config, check
from tables import METHODS

ROOT = Path(calunc.__file__).parent
PARTS = {"platt": 6, "train": 10, "test": 8}
PICTURES = ("entropy.png", "reliability.png", "risk_coverage.png", "training.png")
MADE = {  # the artefacts of each stage
    "sample": ("samples.jsonl", "seconds.jsonl"), "calibrate": ("targets.jsonl", "platt.json"),
    "train": ("metrics.jsonl", "adapter/adapter_model.safetensors"),
    "eval": ("adapter/README.md", "predictions.jsonl", "report.json", "report.md", "report.html", *PICTURES),
}  # fmt: skip


def strict(text):
    """JSON as the standard has it, without NaN."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def same(folder, other, *names):
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in names)


def forge(run, name, content):
    """An artefact of a run with another content, as if its stage had written that."""
    (run / name).write_text(content)
    stages = json.loads((run / "stages.json").read_text())
    for stage, made in MADE.items():
        if name in made:
            stages[stage]["sha256"][name] = hashlib.sha256(content.encode()).hexdigest()
    (run / "stages.json").write_text(json.dumps(stages))


def weights(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.fixture
def stating(monkeypatch):
    """Whatever a model says states a confidence: its length. Random models state none, and earn no reward."""
    monkeypatch.setattr(statements, "parse_confidence", lambda text: len(text) % 8 / 8)


@pytest.fixture(scope="session")
def mixed(finished, tmp_path_factory):
    """Questions of which every other one accepts the model's answer, and a run on them up to the targets."""
    folder = tmp_path_factory.mktemp("mixed")
    found = {s["id"]: s for s in rows(finished / "samples.jsonl")}
    for i, row in enumerate(sorted(found.values(), key=lambda row: row["id"])):
        if i % 2 and data.normalise(row["answer"]):
            row["answers"] = [row["answer"]]
    keep = ("id", "question", "answers", "family")
    path = write(folder / "animals.jsonl", [{k: found[f"q{i}"][k] for k in keep} for i in range(len(found))])
    return path


@pytest.fixture(scope="session")
def calibrated(call, mixed, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "calibrated"
    assert call(out, command="calibrate", dataset=mixed) == 0
    return out


@pytest.fixture
def train(call, mixed, calibrated, tmp_path, stating):
    """(flags) -> a copy of the calibrated run, trained with these flags."""
    count = iter(range(100))

    def train(*flags):
        out = tmp_path / f"train-{next(count)}"
        shutil.copytree(calibrated, out)
        assert call(out, *flags, command="train", dataset=mixed) == 0
        return out

    return train


# everything is wrong and nothing is stated


def test_a_random_model_runs_to_the_end(finished):
    assert {p.name for p in finished.iterdir()} == {
        "config.json", "environment.json", "stages.json", "adapter",
        *(name for names in MADE.values() for name in names if "/" not in name)
    }  # fmt: skip
    assert list(json.loads((finished / "stages.json").read_text())) == list(STAGES)
    samples = rows(finished / "samples.jsonl")
    assert {p: sum(s["part"] == p for s in samples) for p in PARTS} == PARTS
    assert len({s["id"] for s in samples}) == 24
    for s in samples:
        assert len(s["samples"]) == 3 and 1 <= s["answer_tokens"] <= 6 and 3 <= s["sample_tokens"] <= 18
        assert not any("\n" in text for text in [s["answer"], *s["samples"]])
    assert all(t["correct"] == 0 for t in rows(finished / "targets.jsonl"))
    assert len(rows(finished / "metrics.jsonl")) == 3


def test_what_each_stage_cost(finished):
    stages, report = (json.loads((finished / name).read_text()) for name in ("stages.json", "report.json"))
    assert stages["sample"]["loading"] > 0 and stages["train"]["loading"] == 0  # the first one pays for it
    for name, stage in stages.items():
        assert stage["tokens"] > 0 and stage["flops"] > stage["tokens"], name
    drawn = sum(s["answer_tokens"] + s["sample_tokens"] for s in rows(finished / "samples.jsonl"))
    assert stages["sample"]["tokens"] > drawn / 2  # of which the last of each is not read again
    assert report["stages"] == {name: stages[name] for name in ("sample", "calibrate", "train")}
    assert report["environment"]["matmul_gflops"] > 0
    lines = (finished / "report.md").read_text().split("## Cost")[1].split("## Settings")[0]
    assert all(f"| {name} | " in lines and f"{stage['tokens']:,}" in lines for name, stage in report["stages"].items())


def test_pictures_are_pictures(finished):
    for name in PICTURES:
        assert (finished / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_report_says_what_went_wrong(finished):
    report = strict((finished / "report.json").read_text())
    text = (finished / "report.md").read_text()
    for said in (
        "test: every answer is wrong: AUROC is not defined and a constant confidence is perfect.",
        "test: Stated, untrained: no confidence was stated at all; its row counts every one as worst.",
        "test: Stated, trained: no confidence was stated at all; its row counts every one as worst.",
        "training: hardly any group had rollouts of different rewards, so there was nothing to learn from.",
        "Platt scaling: all 16 labels are 0: the fit is a constant and ignores the score",
    ):
        assert said in report["warnings"]
        assert f"- {said}" in text
    assert report["sets"]["test"]["methods"]["Stated, trained"]["ece"] == 1
    assert report["sets"]["test"]["methods"]["Stated, trained"]["auroc"] is None
    assert "n/a" in text and "nan" not in text.lower().split()


def test_all_json_is_strict(finished):
    for path in finished.iterdir():
        if path.suffix == ".json":
            strict(path.read_text())
        if path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                strict(line)


def test_undefined_numbers_are_written_as_null(tmp_path):
    run = Run(tmp_path)
    run.write("x.json", {"a": [math.nan, 1.5, (math.inf, 2)], "b": "NaN"})
    run.write("x.jsonl", [{"c": -math.inf}])
    assert strict((tmp_path / "x.json").read_text()) == {"a": [None, 1.5, [None, 2]], "b": "NaN"}
    assert strict((tmp_path / "x.jsonl").read_text()) == {"c": None}


def test_ask_says_that_nothing_was_stated(finished, capsys):
    sample = rows(finished / "samples.jsonl")[0]
    capsys.readouterr()
    assert calunc.main(["ask", sample["question"], "--run", str(finished)]) == 0
    assert capsys.readouterr().out == f"{sample['answer']}  (no confidence stated)\n"
    assert calunc.main(["ask", "--run", str(finished), sample["question"]]) == 0  # in the other order too
    assert capsys.readouterr().out == f"{sample['answer']}  (no confidence stated)\n"


def test_predict_keeps_the_order_and_does_not_depend_on_the_batch(finished, tmp_path):
    asked = ["what is it", "a", "what is a very long question about", "what is it", "b c d e f"] * 3  # > sample_batch
    found = []
    for texts in (asked, asked[3:4]):
        source = write(tmp_path / "in.jsonl", [{"question": t, "extra": 1} for t in texts])
        out = tmp_path / f"{len(texts)}.jsonl"
        assert calunc.main(["predict", "--in", str(source), "--out", str(out), "--run", str(finished)]) == 0
        found.append(rows(out))
    assert [r["question"] for r in found[0]] == asked
    assert {tuple(r) for r in found[0]} == {("question", "extra", "answer", "confidence")}
    assert found[0][3] == found[1][0] == found[0][0]
    assert found[0][1]["answer"] != found[0][2]["answer"]


def test_a_run_where_all_answers_are_right(finished, call, tmp_path, stating):
    right = write(tmp_path / "right.jsonl", [
        {"question": s["question"], "answers": [s["answer"]], "family": s["family"]}
        for s in rows(finished / "samples.jsonl") if data.normalise(s["answer"])  # no answer at all is never right
    ])  # fmt: skip
    assert call(tmp_path / "run", "--steps", "1", dataset=right) == 0
    targets = rows(tmp_path / "run" / "targets.jsonl")
    assert len(targets) >= 10 and all(t["correct"] == 1 for t in targets)
    text = (tmp_path / "run" / "report.md").read_text()
    assert "test: every answer is right: AUROC is not defined and a constant confidence is perfect." in text
    assert "labels are 1: the fit is a constant" in text
    assert "nan" not in text.split()


def test_a_run_of_a_gpu_can_be_asked_on_a_cpu(copy, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = json.loads((copy / "config.json").read_text()) | {"device": "cuda"}
    (copy / "config.json").write_text(json.dumps(config))
    assert calunc.main(["ask", "why", "--run", str(copy)]) == 2
    assert "--device is cuda" in one_sentence(capsys.readouterr())
    assert calunc.main(["ask", "why", "--run", str(copy), "--device", "cpu"]) == 0


def test_a_gpu_that_is_not_there_is_an_error(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(tmp_path / "new", "--device", "cuda") == 2
    assert "cuda" in one_sentence(capsys.readouterr())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["test.jsonl", "train.jsonl", "platt.jsonl", "train", "test"])
def test_an_unseen_set_may_have_the_name_of_a_part(name, call, questions, tmp_path, monkeypatch):
    """A file called test.jsonl is an unseen set like any other, and takes the place of no part."""
    write(tmp_path / name, [{"question": f"who is {x}", "answers": ["me"]} for x in "abcde"])
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    assert call(run, "--ood", name, command="sample") == 0
    samples = rows(run / "samples.jsonl")
    for part, size in PARTS.items():
        assert sum(s["part"] == part and s["source"] == str(questions) for s in samples) == size
    assert len(samples) == 24 + 5


def test_a_question_of_an_unseen_set_that_was_trained_on_is_left_out(call, questions, tmp_path):
    known = rows(questions)
    extra = [{"question": "what is rain", "answers": ["x"]}, {"question": "what is snow", "answers": ["x"]}]
    path = write(tmp_path / "more.jsonl", [{k: q[k] for k in ("question", "answers")} for q in known[:6]] + extra)
    assert call(tmp_path / "run", "--ood", str(path), command="sample") == 0
    found = [s["question"] for s in rows(tmp_path / "run" / "samples.jsonl") if s["part"] == "more"]
    assert sorted(found) == ["what is rain", "what is snow"]


def test_unseen_sets_of_one_name_are_both_there(call, tmp_path):
    paths = []
    for folder in "xy":
        (tmp_path / folder).mkdir()
        found = [{"question": f"who is {folder} {x}", "answers": ["me"]} for x in "abcde"]
        paths.append(str(write(tmp_path / folder / "unseen.jsonl", found)))
    run = tmp_path / "run"
    if call(run, "--ood", ",".join(paths), command="sample") == 2:
        assert not run.exists()  # refused
        return
    assert len(rows(run / "samples.jsonl")) == 24 + 10


# the parts


def test_fewer_questions_make_smaller_parts(call, tmp_path, capsys):
    some = write(tmp_path / "some.jsonl", [{"question": f"what is {i * 'a'}", "answers": ["b"]} for i in range(12)])
    assert call(tmp_path / "run", dataset=some, command="sample") == 0
    err = capsys.readouterr().err
    assert err.count("note: only 12 questions, so the parts are smaller: 3 for Platt scaling alone, 5 to train") == 1
    assert [s["part"] for s in rows(tmp_path / "run" / "samples.jsonl")] == ["platt"] * 3 + ["train"] * 5 + ["test"] * 4


def test_built_in_questions_of_any_number_are_cut_into_parts():
    """Questions of one group stay together, so the parts may come out larger than asked for, and must not run dry."""
    for name in ("facts", *(f"facts:{f}" for f in sorted({q.family for q in data.load("facts")}))):
        for more in ({}, {"platt_questions": 10_000}):
            questions = stages.load_questions(Config(model="x", dataset=name, **more))
            assert len({q.id for _, q in questions}) == len(questions)
            assert {part for part, _ in questions} == set(PARTS)


def test_unseen_sets_are_evaluated_and_nothing_else(call, questions, finished, tmp_path):
    unseen = write(tmp_path / "other.jsonl", [{"question": f"who is {x}", "answers": ["me"]} for x in "abcdefgh"])
    run = tmp_path / "run"
    assert call(run, "--ood", str(unseen), "--ood-questions", "5", "--steps", "1") == 0
    samples = rows(run / "samples.jsonl")
    assert sum(s["part"] == "other" for s in samples) == 5
    part = [s for s in samples if s["part"] != "other"]
    assert part == rows(finished / "samples.jsonl")
    assert set(json.loads((run / "report.json").read_text())["sets"]) == {"test", "other"}
    assert same(run, finished, "platt.json")  # fitted on the same questions


# skipping


def stamps(run):
    return {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}


def redone(call, run, capsys, *flags, **kwargs):
    """-> the stages that a call with these flags ran again: their artefacts are new, those of others are not."""
    before = stamps(run)
    capsys.readouterr()
    assert call(run, *flags, **kwargs) == 0
    out, after = capsys.readouterr().out, stamps(run)
    found = [stage for stage in STAGES if f"{stage}: done before with the same settings" not in out]
    if found and flags:
        assert f"{', '.join(found)}: done again, with another {flags[0]}; this replaces what" in out
    for stage in STAGES:
        for name in MADE[stage]:
            assert (before[run / name] != after[run / name]) == (stage in found), (stage, name)
    return found


def test_a_second_call_does_nothing(copy, call, capsys):
    before = stamps(copy)
    assert redone(call, copy, capsys) == []
    assert stamps(copy) == before


@pytest.mark.parametrize("flags, again", [
    (["--seed", "1"], STAGES),
    (["--gamma", "2"], STAGES[1:]),
    (["--lr", "3e-3"], STAGES[2:]),
    (["--resamples", "30"], STAGES[3:]),
    (["--sample-batch", "5"], ()),
    (["--micro-batch", "2"], ()),
])  # fmt: skip
def test_a_changed_setting_redoes_what_depends_on_it(flags, again, copy, call, capsys):
    assert redone(call, copy, capsys, *flags) == list(again)
    assert redone(call, copy, capsys, *flags) == []
    assert str(json.loads((copy / "config.json").read_text())["seed"]) == ("1" if "--seed" in flags else "0")


def test_a_changed_question_file_redoes_everything(call, questions, tmp_path, capsys):
    mine = tmp_path / "mine.jsonl"
    shutil.copy(questions, mine)
    out = tmp_path / "run"
    assert call(out, command="calibrate", dataset=mine) == 0
    mine.write_text(mine.read_text().replace("nothing of the kind", "something else"))
    capsys.readouterr()
    assert call(out, command="calibrate", dataset=mine) == 0
    assert "done before" not in capsys.readouterr().out
    assert {a for s in rows(out / "samples.jsonl") for a in s["answers"]} == {"something else"}


def test_replaced_weights_redo_everything(call, copy, make_folder, tmp_path, capsys):
    """The model's folder has the name that it had."""
    model = shutil.copytree(Run(copy).config().model, tmp_path / "model")
    run = tmp_path / "run"
    assert call(run, model=model, command="train") == 0
    other = transformers.AutoModelForCausalLM.from_pretrained(model)
    other.transformer.h[0].mlp.c_fc.weight.data += 0.3
    other.save_pretrained(model)
    assert calunc.main(["ask", "why", "--run", str(run)]) == 2
    assert "has an adapter of another model" in one_sentence(capsys.readouterr())
    before = (run / "samples.jsonl").read_text()
    assert call(run, model=model, command="train") == 0
    assert "sample, calibrate, train: done again, with another model or file" in capsys.readouterr().out
    assert (run / "samples.jsonl").read_text() != before


def test_a_forgotten_flag_costs_no_adapter(copy, call, capsys):
    before = stamps(copy)
    for argv, forgotten in (
        (["--out", str(copy), "--steps", "4"], ("--model", "--dataset", "--samples 3")),
        (["--out", str(copy)], ("--model", "--lr 0.01")),
        (["sample", "--out", str(copy), "--model", "toy", "--dataset", "toy"], ("--samples 3",)),
    ):
        assert calunc.main(argv) == 2
        said = one_sentence(capsys.readouterr())
        assert said.startswith(f"{copy} was made with --") and all(flag in said for flag in forgotten)
        assert said.endswith("give these flags the value that you want, or name another --out")
    assert stamps(copy) == before
    assert call(copy, "--steps", "4", command="train") == 0


def test_what_an_unfinished_run_can_be_asked(copy, capsys):
    """It says how to go on, and not that another folder was meant."""
    (copy / "metrics.jsonl").unlink()
    capsys.readouterr()
    assert calunc.main(["ask", "why", "--run", str(copy)]) == 2
    said = one_sentence(capsys.readouterr())
    assert "holds no trained adapter yet: go on with `python calunc.py --model " in said
    assert " --steps 3 " in said and said.endswith(f" --out {copy}`")
    argv = shlex.split(said.split("`")[1])[2:]
    assert calunc.main(argv) == 0
    assert calunc.main(["ask", "why", "--run", str(copy)]) == 0


def test_the_readout_of_a_run_can_be_changed_back(copy, call, monkeypatch):
    """Also to what the default is."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"readout": "expected"}))
    seen = []
    monkeypatch.setattr(stages, "answer_questions", lambda config, *_: seen.append(config.readout) or [("a", 0.5)])
    for flags in ([], ["--readout", "stated"]):
        assert calunc.main(["ask", "why", "--run", str(copy), *flags]) == 0
    assert seen == ["expected", "stated"]


def test_a_forgotten_flag_costs_no_interrupted_training(copy, call, monkeypatch, capsys):
    (copy / "metrics.jsonl").unlink()
    with monkeypatch.context() as patch:
        fail_at(2, rl, "sampled_step", patch)
        with pytest.raises(RuntimeError):
            call(copy, "--tolerance", "0.3", command="train")
    (saved,) = copy.glob(".train-*.safetensors")
    content = saved.read_bytes()
    capsys.readouterr()
    assert call(copy, command="train") == 2
    assert one_sentence(capsys.readouterr()).startswith(f"{copy} was made with --tolerance 0.3, which")
    assert saved.read_bytes() == content
    assert call(copy, "--tolerance", "0.1", command="train") == 0
    assert "train: begun again, with another --tolerance" in capsys.readouterr().out


def test_a_path_may_be_spelled_in_several_ways(copy, questions, call, capsys, monkeypatch):
    monkeypatch.chdir(questions.parent)
    model = Run(copy).config().model
    assert call(copy, model=f"{model}/", dataset=f"{questions.parent}/./{questions.name}") == 0
    assert capsys.readouterr().out.count("done before with the same settings") == 4


def test_a_folder_of_other_things_is_left_alone(call, tmp_path, capsys):
    write(tmp_path / "config.json", [{"model_type": "gpt2"}])
    for out in (tmp_path, tmp_path / "config.json"):
        assert call(out, command="sample") == 2
        assert f"{out} is there already, and no run folder" in one_sentence(capsys.readouterr())
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    run = tmp_path / "new"
    run.mkdir()
    (run / "stages.json.tmp").touch()  # of a run that was killed at its very beginning
    (run / "model-0").mkdir()
    assert call(run, command="sample") == 0
    (run / "stages.json").unlink()  # as a message advises where it is damaged
    assert call(run, command="sample") == 0


def test_settings_that_are_lost_are_written_again(copy, call, capsys):
    content = (copy / "config.json").read_text()
    (copy / "config.json").unlink()
    assert calunc.main(["ask", "why", "--run", str(copy)]) == 2
    assert "has no config.json any more: call the run again" in one_sentence(capsys.readouterr())
    assert call(copy) == 0 and (copy / "config.json").read_text() == content
    (copy / "config.json").unlink()
    assert call(copy, "--steps", "4") == 0


def test_what_is_no_part_of_a_model_changes_nothing(call, copy, tmp_path, monkeypatch, capsys):
    model, run = shutil.copytree(Run(copy).config().model, tmp_path / "model"), tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    assert call(run, model=model, command="train") == 0
    (model / "notes.md").write_text("x")
    (model / "training_args.bin").write_text("x")
    (tmp_path / "self").mkdir()  # the name of an embedder
    (tmp_path / "self" / "x.json").write_text("{}")
    capsys.readouterr()
    assert call(run, model=model, command="train") == 0
    assert "train: done before" in capsys.readouterr().out
    assert calunc.main(["ask", "why", "--run", str(run)]) == 0
    model.rename(tmp_path / "moved")
    capsys.readouterr()
    assert calunc.main(["ask", "why", "--run", str(run)]) == 2
    assert f"there is no model {model}, which {run} was made with" in one_sentence(capsys.readouterr())


def test_a_replaced_embedder_redoes_what_depends_on_it(call, copy, make_folder, tmp_path, capsys):
    encoder = shutil.copytree(make_folder("bert"), tmp_path / "encoder")
    assert call(copy, "--embedder", str(encoder)) == 0
    other = transformers.AutoModel.from_pretrained(encoder)
    other.embeddings.word_embeddings.weight.data += torch.randn_like(other.embeddings.word_embeddings.weight)
    other.save_pretrained(encoder)
    capsys.readouterr()
    assert call(copy, "--embedder", str(encoder)) == 0
    assert "calibrate, train, eval: done again, with another model or file" in capsys.readouterr().out


def test_runs_of_other_seeds_have_other_folders(tmp_path, monkeypatch):
    made = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calunc, "go_on", lambda run, config, todo: made.append(str(run.folder)))
    for argv in ([], ["--seed", "3"], ["--model", "a/b", "--dataset", "facts"]):
        calunc.main(["sample", *argv])
    assert made == ["runs/toy", "runs/toy-3", "runs/b"]


def test_a_run_whose_settings_changed_before_it_was_trained_again_is_not_used(copy, call, capsys):
    assert calunc.main(["ask", "why", "--run", str(copy)]) == 0
    assert call(copy, "--answer-tokens", "5", command="sample") == 0
    capsys.readouterr()
    assert calunc.main(["ask", "why", "--run", str(copy)]) == 2
    assert f"{copy} holds no trained adapter" in one_sentence(capsys.readouterr())


def test_a_fit_to_other_entropies_is_refused(copy, call, capsys):
    fit = json.loads((copy / "platt.json").read_text())
    fit["fingerprint"]["gamma"] = 2.0
    forge(copy, "platt.json", json.dumps(fit))
    (copy / "report.md").unlink()
    assert call(copy) == 2
    assert "gamma" in one_sentence(capsys.readouterr())


@pytest.mark.parametrize("name", [n for stage in STAGES for n in MADE[stage]])
@pytest.mark.parametrize("how", ["cut short", "altered"])
def test_an_artefact_that_is_not_as_it_was_written_is_named_and_not_used(name, how, copy, call, capsys):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-9] if how == "cut short" else content.replace(b"0", b"1"))
    if name not in MADE["eval"]:
        (copy / "report.md").unlink()
    assert call(copy) == 2
    assert f"{copy / name} is not what `" in one_sentence(capsys.readouterr())
    (copy / name).write_bytes(content)
    assert call(copy) == 0
    (copy / name).unlink()
    assert call(copy) == 0


def test_a_stage_whose_artefact_is_gone_is_done_again(copy, finished, call):
    (copy / "targets.jsonl").unlink()
    (copy / "report.md").unlink()
    assert call(copy) == 0
    assert same(copy, finished, "targets.jsonl")
    assert (copy / "report.md").exists()


def test_what_follows_a_stage_that_is_done_again_is_not_forgotten(copy, finished, call, capsys):
    (copy / "samples.jsonl").unlink()
    assert call(copy) == 0
    assert list(json.loads((copy / "stages.json").read_text())) == list(STAGES)
    assert same(copy, finished, "targets.jsonl", "adapter/adapter_model.safetensors")
    assert calunc.main(["ask", "why", "--run", str(copy)]) == 0


def test_commands_stop_after_their_stage(call, tmp_path):
    run = tmp_path / "run"
    for i, stage in enumerate(STAGES[:3]):
        assert call(run, command=stage) == 0
        assert list(json.loads((run / "stages.json").read_text())) == list(STAGES[: i + 1])
        for other in STAGES:
            assert all((run / name).exists() == (STAGES.index(other) <= i) for name in MADE[other])


def fail_at(number, module, name, monkeypatch):
    """The call of this number raises, once; -> the list of calls."""
    real, calls = getattr(module, name), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            raise RuntimeError("interrupted")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, failing)
    return calls


def test_interrupted_sampling_goes_on_where_it_was(finished, call, tmp_path, monkeypatch):
    run = tmp_path / "run"
    calls = fail_at(2, language, "sample", monkeypatch)  # three batches of eight
    with pytest.raises(RuntimeError, match="interrupted"):
        call(run, command="sample")
    assert not (run / "samples.jsonl").exists()
    (kept,) = run.glob(".sample-*.jsonl")
    assert [len(row["value"][0]) for row in rows(kept)] == [8]
    assert call(run, command="sample") == 0
    assert [len(args[1]) for args in calls] == [8, 8, 8, 8]
    assert same(run, finished, "samples.jsonl")
    assert not list(run.glob(".sample-*"))
    resumed = [Run(folder).stages()["sample"]["resumed"] for folder in (run, finished)]
    assert resumed == [True, False]  # so that a part of the seconds does not pass for all of them


def test_a_line_that_was_cut_short_is_sampled_again_however_often(finished, call, tmp_path, monkeypatch):
    run = tmp_path / "run"
    for interruption in (2, 2):
        with monkeypatch.context() as patch:
            fail_at(interruption, language, "sample", patch)
            with pytest.raises(RuntimeError, match="interrupted"):
                call(run, command="sample")
        (kept,) = run.glob(".sample-*.jsonl")
        kept.write_text(kept.read_text()[:-20])
    assert call(run, command="sample") == 0
    assert same(run, finished, "samples.jsonl")


def test_an_interrupted_stage_leaves_nothing_that_passes_for_finished(copy, finished, call, monkeypatch):
    """Training with another rate is cut off; the run with the first rate must not report its log."""
    with monkeypatch.context() as patch:
        fail_at(3, statements, "rollout", patch)
        with pytest.raises(RuntimeError, match="interrupted"):
            call(copy, "--lr", "3e-3", command="train")
    assert call(copy) == 0
    assert not Run(copy).stages()["train"]["resumed"]  # what is left is of another training
    assert same(copy, finished, "metrics.jsonl")
    assert same(copy, finished, "adapter/adapter_model.safetensors")


def test_two_trainings_that_were_interrupted_do_not_mix(copy, finished, call, monkeypatch):
    """One is cut off after its first checkpoint, another one too; then the first goes on."""
    for flags in (("--lr", "1e-2"), ("--lr", "3e-3")):
        (copy / "adapter" / "adapter_config.json").unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            fail_at(3, statements, "rollout", patch)
            patch.setattr("rl.time.perf_counter", itertools.count().__next__)
            with pytest.raises(RuntimeError, match="interrupted"):
                call(copy, *flags, command="train")
    assert len(list(copy.glob(".train-*"))) == 2
    calls = fail_at(0, statements, "rollout", monkeypatch)
    assert call(copy, "--lr", "1e-2", command="train") == 0
    assert len(calls) == 2  # of three steps
    assert same(copy, finished, "metrics.jsonl", "adapter/adapter_model.safetensors")
    assert not list(copy.glob(".train-*")) and Run(copy).stages()["train"]["resumed"]


def test_what_a_stage_left_when_it_was_killed_at_its_very_end_is_taken_away(copy, call):
    (copy / ".sample-0.0.jsonl").write_text("")
    assert call(copy) == 0
    assert not list(copy.glob(".sample-*"))


@pytest.mark.parametrize("stage, content", [
    ("sample", '{"piece": 3}\n'), ("sample", "[1]\n"), ("sample", "{{}}\n"), ("train", "x"), ("train", ""),
    ("sample", '{"piece": 3, "value": null, "digest": "x"}\n'),
])  # fmt: skip
def test_what_an_interrupted_call_left_is_named_if_it_is_damaged(stage, content, copy, call, capsys):
    config = Run(copy).config()
    suffix = {"sample": "1.jsonl", "train": "safetensors"}[stage]
    left = Run(copy).unfinished(stage, config, suffix)
    left.write_text(content)
    (copy / MADE[stage][-1]).unlink()
    assert call(copy, command=stage) == 2
    assert f"{left} is damaged" in one_sentence(capsys.readouterr())


def test_an_altered_journal_is_named_and_not_used(call, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        fail_at(2, language, "sample", patch)
        with pytest.raises(RuntimeError):
            call(run, command="sample")
    (left,) = run.glob(".sample-*.jsonl")
    content = left.read_text()
    name = json.loads(content)["piece"]
    for altered in (content.replace('"answer_tokens": ', '"answer_tokens": 1', 1), content.replace(f"{name}", "1", 1)):
        left.write_text(altered)
        assert altered != content
        capsys.readouterr()
        assert call(run, command="sample") == 2
        assert f"{left} is damaged" in one_sentence(capsys.readouterr())
    left.unlink()
    assert call(run, command="sample") == 0


def test_an_altered_checkpoint_is_named_and_not_used(world, tmp_path):
    """Where every bit of it can be read."""
    model, _ = world()
    lora.add_lora(model, 2)
    optimizer, path = Optimizer(model, Config(), 10), tmp_path / "x.safetensors"
    path.write_bytes(optimizer.save(3, [{"step": 0}]))
    assert optimizer.load(path) == (3, [{"step": 0}])
    content = path.read_bytes()
    for place in (-5, -500, content.index(b"step") + 1):
        altered = bytearray(content)
        altered[place] ^= 1
        path.write_bytes(altered)
        with pytest.raises(ValueError, match="x.safetensors is damaged"):
            optimizer.load(path)


def test_artefacts_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.write("x.json", {"a": 1})
    with pytest.raises(TypeError):
        run.write("x.json", {"a": object()})
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run.write("x.json", {"a": 2})
    assert run.read("x.json") == {"a": 1}


@pytest.mark.parametrize("error, said", [
    (OSError(28, "No space left on device"), "[Errno 28] No space left on device: '{path}'"),
    (ConnectionError("another process ended"), "another process ended"),
])  # fmt: skip
def test_an_error_of_the_disk_names_the_file_and_leaves_nothing_behind(error, said, tmp_path, monkeypatch):
    def fail(_):
        raise error

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError) as caught:
        Run(tmp_path).write("x.json", {"a": 1})
    assert str(caught.value) == said.replace("{path}", str(tmp_path / "x.json.tmp"))
    assert not list(tmp_path.iterdir())


# repeatability


def test_the_same_seed_gives_the_same_files(finished, mixed, calibrated, call, train, tmp_path):
    again = tmp_path / "again"
    assert call(again, command="calibrate", dataset=mixed) == 0
    assert same(again, calibrated, "samples.jsonl", "targets.jsonl", "platt.json")
    one, two = train(), train()
    assert same(one, two, "adapter/adapter_model.safetensors", "metrics.jsonl")


def test_another_seed_gives_other_samples(finished, call, tmp_path):
    assert call(tmp_path / "run", "--seed", "1", command="sample") == 0
    drawn = [{s["id"]: s["samples"] for s in rows(r / "samples.jsonl")} for r in (finished, tmp_path / "run")]
    assert sum(drawn[0][i] == drawn[1][i] for i in drawn[0]) < 4
    greedy = [{s["id"]: s["answer"] for s in rows(r / "samples.jsonl")} for r in (finished, tmp_path / "run")]
    assert greedy[0] == greedy[1]


def test_a_changed_seed_makes_another_toy_model(gpt2, tmp_path, monkeypatch):
    """The facts depend on the seed, so the model that learned them must too."""
    built = []

    def build(folder, seed):
        built.append(seed)
        shutil.copytree(gpt2, folder)

    monkeypatch.setattr(toy, "build", build)
    for seed in (1, 1, 2):
        stages.load_model(Config(model="toy", dataset="toy", seed=seed, device="cpu"), Run(tmp_path / "run"))
    assert built == [1, 2]


def test_an_altered_toy_model_is_named_and_not_used(gpt2, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(toy, "build", lambda folder, seed: shutil.copytree(gpt2, folder))
    run = Run(tmp_path)
    run.write("samples.jsonl", [])
    run.write("seconds.jsonl", [])
    config = Config(model="toy", dataset="toy", device="cpu")
    stages.load_model(config, run)
    run.finish("sample", config, 0, 0, {})
    assert run.done("sample", config)
    weights = tmp_path / "model-0" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="model-0 is not what `sample` wrote: put it back, or delete it"):
        run.done("sample", config)


# targets


def flip(calibrated, run, identity):
    """A copy in which the answer to one question is graded the other way, calibrated again."""
    shutil.copytree(calibrated, run)
    samples = rows(run / "samples.jsonl")
    for s in samples:
        if s["id"] == identity:
            right = data.grade(s["answer"], s["answers"])
            s["answers"] = ["nothing of the kind"] if right else [s["answer"]]
    forge(run, "samples.jsonl", "".join(json.dumps(s) + "\n" for s in samples))
    done = json.loads((run / "stages.json").read_text())
    del done["calibrate"]
    (run / "stages.json").write_text(json.dumps(done))
    return run


def test_targets_are_cross_fitted(calibrated, call, mixed, tmp_path):
    before = rows(calibrated / "targets.jsonl")
    assert 0.2 < np.mean([t["correct"] for t in before]) < 0.8
    train = [t["id"] for t in before if t["part"] == "train"]
    for identity in train[:2]:
        run = flip(calibrated, tmp_path / identity, identity)
        assert call(run, command="calibrate", dataset=mixed) == 0
        for old, new in zip(before, rows(run / "targets.jsonl"), strict=True):
            assert old["entropy"] == new["entropy"]
            assert (old["correct"] != new["correct"]) == (old["id"] == identity)
            if old["part"] == "test":
                assert new["target"] != old["target"]
        changed = {o["id"] for o, n in zip(before, rows(run / "targets.jsonl"), strict=True)
                   if o["part"] == "train" and o["target"] != n["target"]}  # fmt: skip
        fold = {t: (6 + i) % 5 for i, t in enumerate(train)}  # six questions are Platt's
        assert changed == {t for t in train if fold[t] != fold[identity]}


def test_samples_are_measured_in_pieces(calibrated, call, mixed, tmp_path, monkeypatch):
    """With any number of questions at once the same, up to rounding."""
    monkeypatch.setattr(stages, "MEASURED", 7)
    pieces = tmp_path / "pieces"
    assert call(pieces, command="calibrate", dataset=mixed) == 0
    for one, other in zip(rows(pieces / "targets.jsonl"), rows(calibrated / "targets.jsonl"), strict=True):
        assert one.keys() == other.keys()
        assert one == pytest.approx(other, abs=1e-5)


def test_targets_of_held_out_questions_come_from_the_stored_fit(calibrated):
    fit = platt.Platt.from_json((calibrated / "platt.json").read_text())
    targets = rows(calibrated / "targets.jsonl")
    assert [t["target"] is None for t in targets] == [t["part"] == "platt" for t in targets]
    held_out = [t for t in targets if t["part"] == "test"]
    np.testing.assert_allclose([t["target"] for t in held_out], fit.predict([t["entropy"] for t in held_out]))
    labelled = [t for t in targets if t["part"] != "test"]
    again = platt.fit(*([t[k] for t in labelled] for k in ("entropy", "correct")))
    assert (fit.a, fit.b) == (again.a, again.b)
    assert all(0 <= t["entropy"] <= math.log(3) for t in targets)


def test_the_fingerprint_says_how_the_entropies_were_made(calibrated, gpt2):
    found = json.loads((calibrated / "platt.json").read_text())["fingerprint"]
    wanted = {"model": str(gpt2), "prompt": "fewshot", "n": 3, "temperature": 1.0, "answer_temperature": 0.0,
              "answer_tokens": 6, "embedder": "self", "kernel": "rbf", "gamma": 1.0, "grader": "exact"}  # fmt: skip
    assert {k: found.get(k) for k in wanted} == wanted
    assert isinstance(found["preamble"], int)


# training


@pytest.mark.parametrize("flags", [
    ["--updates", "2"], ["--kl", "0.1"], ["--advantage", "zscore"], ["--advantage", "center"], ["--warmup", "2"],
    ["--amp", "bf16"], ["--reasoning", "4"], ["--rollout-temperature", "0.5"], ["--tolerance", "0.4"],
    ["--lr", "2e-2"], ["--max-grad-norm", "1e-3"],
])  # fmt: skip
def test_each_option_of_training_runs_and_matters(flags, train):
    ordinary, changed = weights(train()), weights(train(*flags))
    assert ordinary.keys() == changed.keys()
    assert any(not torch.equal(ordinary[k], changed[k]) for k in ordinary)
    assert all(torch.isfinite(w).all() for w in changed.values())


def test_micro_batches_change_nothing(train):
    whole, cut = train("--kl", "0.1"), train("--kl", "0.1", "--micro-batch", "1")
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(cut)[name], weight, rtol=0, atol=1e-5)
    assert any(w.abs().max() > 1e-3 for name, w in weights(whole).items() if "lora_B" in name)  # it did train


def test_every_logged_number_is_explained_in_the_readme(train):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for record in rows(train("--kl", "0.1") / "metrics.jsonl"):
        for name in record.keys() - {"step", "loss"}:
            assert f"`{name}`" in readme


def test_no_steps_at_all_leave_the_model_as_it_is(train):
    out = train("--steps", "0")
    assert rows(out / "metrics.jsonl") == []
    assert all(not w.any() for name, w in weights(out).items() if "lora_B" in name)


def test_the_answers_are_those_of_the_frozen_model(train, mixed, tmp_path):
    out = train("--lr", "0.1", "--steps", "12")
    samples = rows(out / "samples.jsonl")
    model = language.load(json.loads((out / "config.json").read_text())["model"])
    lora.load_adapter(model, out / "adapter")
    prompt, answers = data.Prompt(model, "fewshot"), {}
    for on in (False, True):
        with lora.adapter(model, on):
            drawn = language.sample(
                model, [prompt.answer(s["question"]) for s in samples], [0.0], 6, language.stop_ids(model, "\n"),
                [0] * len(samples),
            )  # fmt: skip
        answers[on] = [data.clean_answer(model.decode(c)) for (c,) in drawn]
    assert answers[False] == [s["answer"] for s in samples]
    assert answers[True] != answers[False]  # the adapter does something where it is on
    asked = write(tmp_path / "in.jsonl", [{"question": s["question"]} for s in samples])
    assert calunc.main(["predict", "--in", str(asked), "--out", str(tmp_path / "o.jsonl"), "--run", str(out)]) == 0
    assert [r["answer"] for r in rows(tmp_path / "o.jsonl")] == answers[False]


def test_reasoning_runs_to_the_end(call, mixed, calibrated, tmp_path, stating):
    out = tmp_path / "run"
    shutil.copytree(calibrated, out)
    assert call(out, "--reasoning", "4", "--steps", "1", dataset=mixed) == 0
    report = json.loads((out / "report.json").read_text())
    # up to 4 tokens of reasoning and 6 of the number
    answer = report["cost"]["answer"]["tokens"]
    assert 2 < report["cost"]["trained"]["tokens"] - answer <= 10


@pytest.mark.parametrize("family, chat", [("llama", True), ("qwen2", True), ("gemma2", True), ("gemma2", False)])
def test_other_architectures_and_prompts(family, chat, tiny, call, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "EXAMPLES", data.EXAMPLES[:1])  # shorter prompts
    prompt = "chat" if chat else "fewshot"
    assert call(tmp_path / "run", "--prompt", prompt, "--steps", "1", model=tiny(family, chat=chat)) == 0
    assert json.loads((tmp_path / "run" / "platt.json").read_text())["fingerprint"]["prompt"] == prompt
    assert (tmp_path / "run" / "report.md").exists()


def test_the_prompt_is_the_chat_template_if_there_is_one(tiny, gpt2, tmp_path):
    for model, style in ((tiny("qwen2", chat=True), "chat"), (gpt2, "fewshot")):
        loaded, prompt = stages.load_model(Config(model=str(model), device="cpu"), Run(tmp_path))
        assert prompt.style == style
        assert prompt.answer("why") == data.Prompt(loaded, style).answer("why")


# evaluation


@pytest.fixture(scope="session")
def evaluated(call, mixed, calibrated, tmp_path_factory):
    """A finished run with chosen statements: four untrained and two trained ones of eight are malformed."""
    said = {False: [None, 0.9, None, 0.9, 0.8, None, 1.0, None], True: [0.1, 0.35, None, 0.8, 0.5, 0.35, None, 0.2]}

    def state(model, prompt, pairs, ways, reasoning, where):
        """Questions may come in any order: what is said goes by the question."""
        assert len(pairs) == 8 and ways == ["untrained", "trained", "expected"]
        test = [row["question"] for row in rows(out / "samples.jsonl") if row["part"] == "test"]
        place = {question: i for i, question in enumerate(test)}
        order = [place[q] for q, _ in pairs]
        return {way: ([said[way != "untrained"][i] for i in order], 40, 2.0) for way in ways}

    out = tmp_path_factory.mktemp("runs") / "evaluated"
    shutil.copytree(calibrated, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statements, "state", state)
        assert call(out, dataset=mixed) == 0
    return out, said


def test_predictions_hold_every_confidence_of_every_held_out_question(evaluated):
    out, said = evaluated
    targets, found = rows(out / "targets.jsonl"), rows(out / "predictions.jsonl")
    labelled = [t for t in targets if t["part"] in ("platt", "train")]
    test = [t for t in targets if t["part"] == "test"]
    family = defaultdict(list)
    for t in labelled:
        family[t["family"]].append(t["correct"])
    assert [r["untrained"] for r in found] == said[False]
    assert [r["trained"] for r in found] == said[True]
    for r, t in zip(found, test, strict=True):
        assert t.items() <= r.items()
        assert r["base rate"] == pytest.approx(sum(t["correct"] for t in labelled) / 16)
        assert r["family prior"] == pytest.approx(sum(family[t["family"]]) / len(family[t["family"]]))
    assert found[0]["family prior"] != found[0]["base rate"]


def by_hand(confidence, correct):
    """Accuracy, Brier score, ECE in ten bins and AUROC, as loops."""
    n, bins = len(correct), defaultdict(list)
    for c, y in zip(confidence, correct, strict=True):
        bins[min(int(c * 10 + 1e-6), 9)].append(y - c)
    right = [c for c, y in zip(confidence, correct, strict=True) if y]
    wrong = [c for c, y in zip(confidence, correct, strict=True) if not y]
    wins = sum((r > w) + (r == w) / 2 for r in right for w in wrong)
    return {
        "n": n, "accuracy": len(right) / n,
        "brier": sum((c - y) ** 2 for c, y in zip(confidence, correct, strict=True)) / n,
        "ece": sum(abs(sum(b)) for b in bins.values()) / n,
        "auroc": wins / (len(right) * len(wrong)) if right and wrong else None,
    }  # fmt: skip


def test_the_rows_of_the_report_are_those_of_the_predictions(evaluated):
    out, said = evaluated
    found = rows(out / "predictions.jsonl")
    correct = [r["correct"] for r in found]
    report = json.loads((out / "report.json").read_text())["sets"]["test"]
    worst = {name: [1 - y if r[name] is None else r[name] for r, y in zip(found, correct, strict=True)]
             for name in found[0].keys() & METHODS.keys() - {"truth"}}  # fmt: skip
    stated = {name: [(r[name], r["correct"]) for r in found if r[name] is not None] for name in worst}
    expected = {}
    for name, title in METHODS.items():
        if name in worst:
            expected[title] = by_hand(worst[name], correct)
            if len(stated[name]) < 8:
                expected[f"{title}, malformed dropped"] = by_hand(*zip(*stated[name], strict=True))
    assert list(report["methods"]) == list(expected) and len(expected) == 14
    for name, values in expected.items():
        for key, value in values.items():
            assert report["methods"][name][key] == (value if value is None else pytest.approx(value, abs=1e-12))
        low, high = report["methods"][name]["interval"]["brier"]
        assert low <= report["methods"][name]["brier"] <= high
    assert report["malformed"]["Stated, untrained"] == 0.5
    assert report["malformed"]["Stated, trained"] == 0.25
    assert 0 < report["accuracy"] < 1 and report["n"] == 8
    for name, of_family in report["families"].items():
        inside = [r for r in found if r["family"] == name]
        assert of_family["n"] == len(inside)
        assert of_family["accuracy"] == pytest.approx(np.mean([r["correct"] for r in inside]))
    both = [(r["trained"], r["target"]) for r in found if r["trained"] is not None]
    agreement = report["agreement"]["Stated, trained v teacher: samples, entropy, platt"]
    assert agreement["n"] == 6
    assert agreement["mean_absolute_difference"] == pytest.approx(np.mean([abs(a - b) for a, b in both]))


def test_the_markdown_shows_the_numbers_and_the_warnings(evaluated):
    out, _ = evaluated
    report, text = json.loads((out / "report.json").read_text()), (out / "report.md").read_text()
    for name, row in report["sets"]["test"]["methods"].items():
        (line,) = [x for x in text.splitlines() if x.startswith(f"| {name} | {row['accuracy']:.3f} [")]
        assert f" {row['ece']:.3f} [" in line and f" {row['brier']:.3f} [" in line
    assert "- test: Stated, untrained: 50.0% stated no confidence; they are counted as worst." in text
    assert "- test: Stated, trained: 25.0% stated no confidence; they are counted as worst." in text
    p = report["platt"]
    assert f"P(correct) = σ({p['a']:.3f} · entropy + {p['b']:.3f})" in text


def test_a_score_is_scaled_by_a_fit_to_labelled_questions(evaluated):
    out, _ = evaluated
    labelled = [t for t in rows(out / "targets.jsonl") if t["part"] in ("platt", "train")]
    for name in baselines.FREE:
        fit = platt.fit([t[name] for t in labelled], [t["correct"] for t in labelled])
        for r in rows(out / "predictions.jsonl"):
            assert r[f"{name}, scaled"] == pytest.approx(fit.predict(r[name]))


def test_scores_of_the_samples(calibrated):
    """The score columns, from the samples themselves."""
    for s, t in zip(rows(calibrated / "samples.jsonl"), rows(calibrated / "targets.jsonl"), strict=True):
        assert t["probability"] == pytest.approx(math.exp(s["answer_logprob"] / s["answer_tokens"]))
        same_answer = [data.normalise(x) == data.normalise(s["answer"]) for x in s["samples"]]
        assert t["consistency"] == pytest.approx(np.mean(same_answer))
        assert 0 <= t["clusters"] <= math.log(3) + 1e-9 and 0 < t["similarity"] <= 1 + 1e-9


def test_baselines_that_read_the_questions_again(copy, call, mixed, monkeypatch):
    """Zero-shot has its own prompt, P(True) too, and each is scaled on Platt's own part; nothing is trained again."""
    prompts, real = [], statements.state

    def spy(lm, prompt, pairs, ways, *rest, where):
        prompts.append((tuple(ways), len(prompt.examples), prompt.label, len(pairs)))
        return real(lm, prompt, pairs, ways, *rest, where=where)

    monkeypatch.setattr(statements, "state", spy)
    monkeypatch.setattr(statements, "parse_confidence", lambda text: len(text) % 8 / 8)
    train = (copy / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    assert call(copy, "--baselines", "stated,zero-shot,p-true") == 0
    assert (copy / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == train
    n, label = len(data.EXAMPLES), data.LABEL
    assert prompts == [
        (("untrained", "trained", "expected"), n, label, 8), (("untrained",), n, label, 6),
        (("zero-shot",), 0, label, 8), (("zero-shot",), 0, label, 6),
        (("p-true",), n, "True or false:", 8), (("p-true",), n, "True or false:", 6),
    ]  # fmt: skip
    methods = json.loads((copy / "report.json").read_text())["sets"]["test"]["methods"]
    for title in ("Stated, untrained", "Stated, zero-shot", "P(True)"):
        assert methods[title]["n"] == methods[f"{title}, Platt"]["n"] == 8
    malformed = json.loads((copy / "report.json").read_text())["sets"]["test"]["malformed"]
    assert malformed["P(True)"] == malformed["P(True), Platt"] == 1  # this tokenizer has no capital letters


def test_an_unknown_baseline_is_refused_before_anything_is_written(call, tmp_path, capsys):
    assert call(tmp_path / "run", "--baselines", "p-tru") == 2
    assert "did you mean 'p-true'?" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_targets_of_the_answer_use_its_similarity_to_the_samples(calibrated, call, mixed, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(calibrated, out)
    assert call(out, "--target", "answer", dataset=mixed, command="calibrate") == 0
    assert same(out, calibrated, "samples.jsonl")
    fit = platt.Platt.from_json((out / "platt.json").read_text())
    before, after = (rows(x / "targets.jsonl") for x in (calibrated, out))
    assert len(fit.a) == 2 and fit.fingerprint["target"] == "answer"
    for b, a in zip(before, after, strict=True):
        assert {**b, "target": 0} == {**a, "target": 0}
        if a["part"] == "test":
            assert a["target"] == pytest.approx(fit.predict([a["entropy"], a["similarity"]]))
    assert call(out, "--target", "answer", dataset=mixed) == 0  # and the pictures and the report know what to do


def test_the_cost_of_an_answer_of_the_teacher_and_of_the_student(evaluated):
    out, _ = evaluated
    cost = json.loads((out / "report.json").read_text())["cost"]
    test = [s for s in rows(out / "samples.jsonl") if s["part"] == "test"]
    answer, drawn = (np.mean([s[k] for s in test]) for k in ("answer_tokens", "sample_tokens"))
    assert cost["answer"]["tokens"] == pytest.approx(answer)
    assert cost["target"]["tokens"] == pytest.approx(answer + drawn)
    assert cost["trained"]["tokens"] == pytest.approx(answer + 5)
    assert cost["trained"]["seconds"] == pytest.approx(cost["answer"]["seconds"] + 0.25)


def test_the_adapter_is_off_for_the_untrained_row(call, mixed, train, monkeypatch):
    states, real = [], statements.rollout

    def spy(model, *args):
        on = {m.on for m in model.model.modules() if isinstance(m, lora.LoRA)}
        trained = any(m.B.abs().max() > 0 for m in model.model.modules() if isinstance(m, lora.LoRA))
        states.append((on, trained, *args[2:4]))
        return real(model, *args)

    out = train()
    monkeypatch.setattr(statements, "rollout", spy)
    assert call(out, dataset=mixed) == 0
    assert states == [({False}, True, 1, 0.0), ({True}, True, 1, 0.0)]


# publishing


def test_a_published_run_is_in_the_results_and_the_readme(evaluated, tmp_path, monkeypatch):
    """Its numbers, the row of another run beside them, and a command that makes the same settings; no text."""
    spec = importlib.util.spec_from_file_location("publish", ROOT / "scripts" / "publish.py")
    publish = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(publish)
    run = evaluated[0]
    (tmp_path / "results").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text("before <!-- results:one --> old <!-- end --> after <!-- results:two --> kept <!-- end -->")
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    for argv in ([run, "other"], [run, "one", "--beside", "other", "again"]):
        monkeypatch.setattr(sys, "argv", ["publish.py", *map(str, argv)])
        publish.main()
    text = readme.read_text()
    assert "old" not in text and text.startswith("before <!--") and "results:two --> kept" in text
    report = json.loads((tmp_path / "results" / "one" / "report.json").read_text())
    row = report["sets"]["test"]["methods"]["Stated, trained"]
    for title in ("Stated, trained", "Stated, trained, again"):
        (line,) = [x for x in text.splitlines() if x.startswith(f"| {title} |")]
        assert f"| {row['ece']:.3f} [" in line and line.endswith(f"| {report['cost']['trained']['tokens']:.1f} |")
    (command,) = [x for x in text.splitlines() if x.startswith("python calunc.py")]
    assert asdict(calunc.parse(shlex.split(command)[2:])[1]) == report["config"]
    published = "".join(p.read_text() for p in (tmp_path / "results").rglob("*.json*"))
    assert not any(q["question"] in published for q in rows(run / "samples.jsonl"))


# the command line


def run_python(*args):
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True)


def test_help_is_quick_and_explains_every_flag():
    seconds = []
    for _ in range(3):  # the machine may be busy
        start = time.perf_counter()
        done = run_python("calunc.py", "--help")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3
    assert done.returncode == 0 and not done.stderr
    entries = done.stdout.split("options:\n")[1].split("\n  -")[1:]
    texts = {e.split()[0].rstrip(","): e.split() for e in (f"-{entry}" for entry in entries)}
    flags = {"--out", "--run", "--in", *("--" + f.name.replace("_", "-") for f in fields(Config))}
    assert flags <= texts.keys()
    for flag in flags:  # more than the flag and the name of its value
        assert len(texts[flag]) > 3, flag
    assert all(f.metadata["help"].strip() for f in fields(Config))


def test_importing_the_command_line_is_light():
    done = run_python("-c", "import sys, calunc; print({'torch', 'transformers', 'numpy'} & sys.modules.keys())")
    assert done.stdout == "set()\n"


def test_settings_reach_the_configuration():
    _, config = calunc.parse(["--model", "m", "--train-questions", "7", "--ood", "a,b", "--lr", "2e-3"])
    assert (config.model, config.dataset, config.train_questions) == ("m", "facts", 7)
    assert (config.ood, config.lr) == ("a,b", 2e-3)
    _, config = calunc.parse([])
    assert (config.model, config.dataset, config.gamma) == ("toy", "toy", 16.0)
    _, config = calunc.parse(["--gamma", "3"])
    assert config.gamma == 3.0
    check(config)


def test_every_setting_names_the_first_stage_that_depends_on_it():
    assert {f.metadata["stage"] for f in fields(Config)} == {*STAGES, None}
    free = {f.name for f in fields(Config) if f.metadata["stage"] is None}
    assert free == {"sample_batch", "micro_batch", "recompute", "readout", "device", "shard", "tensorboard"}

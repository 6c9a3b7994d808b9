"""calunc.py, use.py and the run folder on tiny random models: stages, resuming, targets, evaluation, command line."""

import contextlib
import functools
import itertools
import json
import math
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from helpers import assert_close, distance, one_sentence, rows, weights, write
from scipy.stats import spearmanr

import calunc
import data
import eval as metrics
import lm as language
import lora
import platt
import rl
import toy
import use
from infra import cli, parallel, setup
from infra.folder import FILES, STAGES, Run, key
from infra.grading import grade, normalise
from report.tables import METHODS
from settings import Config, option

ROOT = Path(calunc.__file__).parent
PARTS = {"platt": 6, "train": 10, "test": 8}


def read(path):
    """JSON as the standard has it, without NaN."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def asked(capsys, run, *flags, question="why"):
    """`ask` -> exit code, what it says"""
    capsys.readouterr()
    code = calunc.main(["ask", question, "--run", str(run), *flags])
    return code, one_sentence(capsys.readouterr()) if code else capsys.readouterr().out


STATE = data.Statement, "read", lambda form, text: len(text) % 8 / 8


@pytest.fixture
def stating(monkeypatch):
    """Whatever a model says states a confidence: its length. Random models state none, and earn no reward."""
    monkeypatch.setattr(*STATE)


@pytest.fixture(scope="session")
def mixed(finished, tmp_path_factory):
    """Questions of which every other one accepts the model's answer."""
    found = {s["id"]: s for s in rows(finished / "samples.jsonl")}
    for i, row in enumerate(sorted(found.values(), key=lambda row: row["id"])):
        if i % 2 and normalise(row["answer"]):
            row["answers"] = [row["answer"]]
    kept = [{k: found[f"q{i}"][k] for k in ("id", "question", "answers", "family")} for i in range(len(found))]
    return write(tmp_path_factory.mktemp("mixed") / "animals.jsonl", kept)


@pytest.fixture(scope="session")
def calibrated(call, mixed, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "calibrated"
    assert call(out, command="calibrate", dataset=mixed) == 0
    return out


@pytest.fixture(scope="session")
def train(call, mixed, calibrated, tmp_path_factory):
    """(flags) -> a copy of the calibrated run, trained with these flags; each once."""

    @functools.cache
    def train(*flags):
        out = shutil.copytree(calibrated, tmp_path_factory.mktemp("trained") / "run")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*STATE)
            assert call(out, *flags, command="train", dataset=mixed) == 0
        return out

    return train


def test_a_random_model_runs_to_the_end(finished):
    made = {name for names in FILES.values() for name in names}
    found = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    assert found == made | {"config.json", "environment.json", "stages.json"}
    assert all((finished / n).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for n in made if n.endswith(".png"))
    samples, log = rows(finished / "samples.jsonl"), rows(finished / "metrics.jsonl")
    assert {p: sum(s["part"] == p for s in samples) for p in PARTS} == PARTS
    assert len({s["id"] for s in samples}) == 24 and len(log) == 3
    for s in samples:
        assert len(s["samples"]) == 3 and 1 <= s["answer_tokens"] <= 6 and 3 <= s["sample_tokens"] <= 18
        assert not any("\n" in text for text in [s["answer"], *s["samples"]])
    stages = read(finished / "stages.json")
    assert list(stages) == list(STAGES) and read(finished / "config.json")["format"] == 6
    for name, stage in stages.items():
        assert stage["seconds"] > 0, name
        assert stage["files"] == {file: (finished / file).stat().st_size for file in FILES[name]}
    assert all(s["reply_tokens"] == s["answer_tokens"] and s["thought"] == "" for s in samples)  # of a direct answer
    drawn = sum(s["reply_tokens"] + s["sample_tokens"] for s in samples)
    trained = sum(record["tokens"] for record in log)
    assert [stages[name]["tokens"] for name in STAGES[:3]] == [drawn, 0, trained] and trained > 0
    assert read(finished / "report.json")["stages"] == {name: stages[name] for name in STAGES[:3]}


def test_all_json_is_strict(finished, tmp_path):
    for path in (*finished.rglob("*.json"), *finished.glob("*.jsonl")):
        for i, text in enumerate([path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()):
            (tmp_path / "line").write_text(text)
            assert isinstance(read(tmp_path / "line"), dict), (path, i)
    Run(tmp_path).write("x.jsonl", [{"a": [math.nan, 1.5, (math.inf, 2)], "b": "NaN"}, {"c": -math.inf}])
    assert rows(tmp_path / "x.jsonl") == [{"a": [None, 1.5, [None, 2]], "b": "NaN"}, {"c": None}]


def test_the_report_says_what_went_wrong(finished):
    report, text = read(finished / "report.json"), (finished / "report.md").read_text()
    for said in (
        "test: every answer is wrong: AUROC is undefined.",
        "test: 8 questions are few: read the intervals, not the numbers.",
        "test: Stated, trained: 100.0% of the answers have no stated confidence; they count as worst.",
        "training: hardly any group had rollouts of different rewards, so there was little to learn from.",
        "Platt scaling: all 16 labels are 0: the fit is a constant and ignores the score",
    ):
        assert said in report["warnings"] and f"- {said}" in text
    row = report["sets"]["test"]["methods"]["Stated, trained"]
    assert (row["ece"], row["auroc"]) == (1, None) and "n/a" in text and "nan" not in text.lower().split()


def test_ask_and_predict_do_not_depend_on_the_batch(finished, tmp_path, capsys):
    texts = ["what is it", "a", "what is a very long question about", "what is it", "b c d e f"] * 3  # > sample_batch
    source, out = write(tmp_path / "in.jsonl", [{"question": t, "extra": 1} for t in texts]), tmp_path / "out.jsonl"
    assert calunc.main(["predict", "--in", str(source), "--out", str(out), "--run", str(finished)]) == 0
    found = rows(out)
    assert [r["question"] for r in found] == texts and found[3] == found[0] and found[1]["answer"] != found[2]["answer"]
    assert {tuple(r) for r in found} == {("question", "extra", "answer", "confidence", "reflection")}
    assert any(r["reflection"] for r in found)
    for r in found[:3]:
        expected = f"{r['answer']}  (no confidence stated)\n"
        assert asked(capsys, finished, question=r["question"]) == (0, expected)
        with_it = f"{r['reflection']}\n{expected}"
        assert asked(capsys, finished, "--show-reflection", question=r["question"]) == (0, with_it)
        assert calunc.main(["ask", "--run", str(finished), r["question"]]) == 0  # in the other order too
        assert capsys.readouterr().out == expected


def test_the_answers_are_those_of_the_frozen_model(train, stating):
    out = train("--lr", "0.1", "--steps", "12")
    samples, lm = rows(out / "samples.jsonl"), use.CalibratedLM(out, readout="stated")
    given = lm.ask_all([s["question"] for s in samples])
    assert [a.text for a in given] == [s["answer"] for s in samples] and None not in [a.confidence for a in given]
    prompts, stop = [lm.prompt.first_turn(s["question"]) for s in samples], language.stop_ids(lm.model, "\n")
    drawn = language.sample(lm.model, prompts, [0.0], 6, stop, [0] * len(samples))
    changed = [data.clean_answer(lm.model.decode(c)) for (c,) in drawn]
    assert changed != [a.text for a in given]  # the adapter does something where it is on, as it is here


def test_merge_writes_an_ordinary_model(train, finished, call, mixed, tmp_path, capsys):
    """With the probabilities that the adapter gives."""
    out, run = tmp_path / "merged", shutil.copytree(train("--adapter", "everywhere"), tmp_path / "run")
    argv = ["merge", "--run", str(run), "--out", str(out), "--readout", "sequence"]  # the adapter all the same
    for refused, said in (
        (argv, "has no report yet: go on with `"), (argv[:3], "merge needs --out"),
        (["merge", "--run", str(finished), *argv[3:]], "has no switch: add --adapter everywhere to the call"),
    ):  # fmt: skip
        assert calunc.main(refused) == 2 and not out.exists() and said in one_sentence(capsys.readouterr())
    assert call(run, "--adapter", "everywhere", dataset=mixed) == calunc.main(argv) == 0
    adapted, merged = (language.load(name) for name in (read(run / "config.json")["model"], out))
    lora.load_adapter(adapted, run / "adapter")
    ids = torch.arange(4, 24)[None]
    torch.testing.assert_close(merged.model(ids).logits, adapted.model(ids).logits, atol=1e-4, rtol=1e-4)
    with lora.adapter(adapted, False):
        assert (merged.model(ids).logits - adapted.model(ids).logits).abs().max() > 1e-2
    text = adapted.tokenizer.decode(sum(use.CalibratedLM(run).prompt.second_turn("(question)", "(answer)"), []))
    assert f"```text\n{text}\n```" in (out / "README.md").read_text()


def test_a_run_can_be_asked_with_other_settings_that_change_no_result(copy, call, tmp_path, monkeypatch, capsys):
    """On a CPU where it was made on a GPU; with another readout than it was made with."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = read(copy / "config.json") | {"device": "cuda", "readout": "stated"}
    (copy / "config.json").write_text(json.dumps(settings))
    assert "--device is cuda" in asked(capsys, copy)[1] and asked(capsys, copy, "--device", "cpu")[0] == 0
    assert use.CalibratedLM(copy, device="cpu").config.readout == "stated"
    for settings, said in (({"steps": 4}, "no --steps"), ({"zzz": 3}, "no --zzz"), ({"readout": "zzz"}, "is 'zzz'")):
        with pytest.raises(ValueError, match=said):
            use.CalibratedLM(copy, **settings)
    given = cli.parse(["ask", "why", "--device", "cpu", "--readout", "expected"])[0].given
    assert use.CalibratedLM(copy, **given).config.readout == "expected"
    assert call(tmp_path / "new", "--device", "cuda") == 2 and not (tmp_path / "new").exists()


def test_what_an_unfinished_run_can_be_asked(copy, call, capsys):
    """It says how to go on, and not that another folder was meant; so does one whose settings have changed since."""
    (copy / "metrics.jsonl").unlink()
    code, said = asked(capsys, copy)
    assert code == 2 and "holds no adapter" in said and "`python calunc.py --model " in said
    assert " --steps 3 " in said and said.endswith(f" --out {copy}`, or add --readout sequence")
    assert calunc.main(shlex.split(said.split("`")[1])[2:]) == asked(capsys, copy)[0] == 0
    assert call(copy, "--answer-tokens", "5", command="sample") == 0
    code, said = asked(capsys, copy)
    assert code == 2 and f"{copy} holds no adapter" in said


def test_fewer_questions_make_smaller_parts(call, tmp_path, capsys):
    some = write(tmp_path / "some.jsonl", [{"question": f"what is {i * 'a'}", "answers": ["b"]} for i in range(12)])
    assert call(tmp_path / "run", dataset=some, command="sample") == 0
    said = "note: only 12 questions, so the parts are smaller: 3 for Platt scaling alone, 5 to train"
    assert capsys.readouterr().err.count(said) == 1
    assert [s["part"] for s in rows(tmp_path / "run" / "samples.jsonl")] == ["platt"] * 3 + ["train"] * 5 + ["test"] * 4
    for name in ("facts", *{f"facts:{q.family}" for q in data.load("facts")}):
        questions = setup.load_questions(Config(model="x", dataset=name, platt_questions=10_000))
        assert len({q.id for _, q in questions}) == len(questions) and {part for part, _ in questions} == set(PARTS)


def test_no_two_questions_of_a_run_have_one_id(tmp_path):
    """Labels and samples are kept by id."""
    for name in ("a/mine.jsonl", "b/mine.jsonl", "c/mine.jsonl"):
        (tmp_path / name).parent.mkdir()
        write(tmp_path / name, [{"question": f"what is {name} {i}", "answers": ["x"]} for i in range(6)])
    ood = f"{tmp_path}/b/mine.jsonl,{tmp_path}/c/mine.jsonl"
    ids = [q.id for _, q in setup.load_questions(Config(model="x", dataset=f"{tmp_path}/a/mine.jsonl", ood=ood))]
    assert len(set(ids)) == len(ids) == 17 and {f"{tmp_path}/{x}/mine.jsonl: mine-1" for x in "bc"} < set(ids)


def test_unseen_sets_are_evaluated_and_nothing_else(call, questions, finished, tmp_path, monkeypatch):
    """One of the name of a part, or of another set, takes nobody's place; what was trained on is left out of it."""
    monkeypatch.chdir(tmp_path)
    known, names = rows(questions)[:6], ["test.jsonl", "train", "x/unseen.jsonl", "y/unseen.jsonl"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        found = [{"question": f"who is {Path(name).parent.name} {name[0]} {x}", "answers": ["me"]} for x in "abcdefgh"]
        write(tmp_path / name, [*found, *({k: q[k] for k in ("question", "answers")} for q in known)])
    run = tmp_path / "run"
    assert call(run, "--ood", ",".join(names), "--ood-questions", "5", "--steps", "1") == 0
    samples = rows(run / "samples.jsonl")
    for part, size in PARTS.items():
        assert sum(s["part"] == part and s["source"] == str(questions) for s in samples) == size
    others = [s for s in samples if s["source"] != str(questions)]
    assert len(others) == 20 and len({s["part"] for s in others}) == 4
    assert set(read(run / "report.json")["sets"]) == {"test", *(s["part"] for s in others)}
    assert all(s["question"].startswith("who is") for s in others)
    drawn = [{s["id"]: s["samples"] for s in found} for found in (samples, rows(finished / "samples.jsonl"))]
    assert sum(drawn[0][i] != of for i, of in drawn[1].items()) <= 2  # in other batches
    assert_close(read(run / "platt.json"), read(finished / "platt.json"))  # made on the same questions


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
        for name in FILES[stage]:
            assert (before[run / name] != after[run / name]) == (stage in found), (stage, name)
    return found


def test_a_second_call_does_nothing(copy, questions, call, capsys, monkeypatch):
    """Also where paths are spelled otherwise."""
    before = stamps(copy)
    assert redone(call, copy, capsys) == []
    monkeypatch.chdir(questions.parent)
    model, dataset = f"{Run(copy).config().model}/", f"{questions.parent}/./{questions.name}"
    assert redone(call, copy, capsys, model=model, dataset=dataset) == []
    assert stamps(copy) == before


def test_what_changes_no_result_is_kept_without_doing_anything_again(copy, call, capsys):
    """For `ask`; and a setting of a stage that was not asked for is not taken over."""
    old = Run(copy).config()
    assert call(copy, "--readout", "sequence", "--lr", "1", command="sample") == 0
    assert call(copy) == 0 and Run(copy).config() == replace(old, readout="sequence")


@pytest.mark.parametrize("flags, again", [
    (["--seed", "2"], STAGES), (["--gamma", "2"], STAGES[1:]), (["--lr", "3e-3"], STAGES[2:]),
    (["--resamples", "30"], STAGES[3:]), (["--sample-batch", "5", "--micro-batch", "2", "--engine", "plain"], ()),
])  # fmt: skip
def test_a_changed_setting_redoes_what_depends_on_it(flags, again, copy, call, capsys):
    assert redone(call, copy, capsys, *flags) == list(again)
    assert redone(call, copy, capsys, *flags) == []
    assert read(copy / "config.json")["seed"] == (2 if "--seed" in flags else 1)


@pytest.mark.parametrize("name, again", [
    ("mine.jsonl", STAGES), ("model/model.safetensors", STAGES), ("model/tokenizer.json", STAGES),
    ("encoder/model.safetensors", STAGES[1:]), ("model/notes.md", ()), ("model/x.bin", ()),
    ("self/x.json", ()),  # a folder of the name of an embedder
])  # fmt: skip
def test_replaced_files_redo_what_depends_on_them(name, again, questions, gpt2, make_folder, tmp_path, monkeypatch):
    shutil.copy(questions, tmp_path / "mine.jsonl")
    shutil.copytree(gpt2, tmp_path / "model")
    shutil.copytree(make_folder("bert"), tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    config = Config("model", "mine.jsonl", embedder="self" if "self" in name else "encoder")
    before, path = {stage: key(stage, config) for stage in STAGES}, tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(path.read_bytes() + b" " if path.exists() else b"x")
    assert [stage for stage in STAGES if key(stage, config) != before[stage]] == list(again)


def test_another_model_of_the_same_name_redoes_everything(call, gpt2, tmp_path, capsys):
    model, run = shutil.copytree(gpt2, tmp_path / "model"), tmp_path / "run"
    assert call(run, model=model, command="train") == 0
    before = [s["samples"] for s in rows(run / "samples.jsonl")]
    other = transformers.AutoModelForCausalLM.from_pretrained(model)
    other.transformer.wte.weight.data += torch.randn_like(other.transformer.wte.weight)
    other.save_pretrained(model)
    code, said = asked(capsys, run)
    assert code == 2 and f"{run} holds no adapter for its settings and the model {model}" in said
    assert call(run, model=model, command="train") == 0
    assert "sample, calibrate, train: done again, because a model or a file changed" in capsys.readouterr().out
    assert [s["samples"] for s in rows(run / "samples.jsonl")] != before and asked(capsys, run)[0] == 0
    model.rename(tmp_path / "moved")
    assert f"the model {model}" in asked(capsys, run)[1]


def test_a_forgotten_flag_costs_no_adapter(copy, call, capsys):
    before = stamps(copy)
    for argv, forgotten in (
        (["--steps", "4"], ("--model", "--dataset", "--samples 3")), ([], ("--model", "--lr 0.01")),
        (["sample", "--model", "toy", "--dataset", "toy"], ("--samples 3",)),
    ):  # fmt: skip
        assert calunc.main([*argv, "--out", str(copy)]) == 2
        said = one_sentence(capsys.readouterr())
        assert said.startswith(f"{copy} was made with --") and all(flag in said for flag in forgotten)
        assert said.endswith("give these flags again, or with another value, or name another --out")
    assert stamps(copy) == before and call(copy, "--steps", "4", command="train") == 0


def test_a_forgotten_flag_costs_no_interrupted_training(copy, call, capsys):
    (copy / "metrics.jsonl").unlink()
    with interrupted(2, rl, "rollout"):
        call(copy, "--tolerance", "0.3", command="train")
    before = stamps(copy)
    assert call(copy, command="train") == 2
    assert f"{copy} was made with --tolerance 0.3, which" in one_sentence(capsys.readouterr())
    assert stamps(copy) == before and list(copy.glob(".train-*.checkpoint"))
    assert call(copy, "--tolerance", "0.1", command="train") == 0
    assert "train: done again, with another --tolerance" in capsys.readouterr().out


@pytest.mark.parametrize("stages", ["finished", "just begun", "none"])
def test_a_folder_of_another_format_is_refused_and_left_untouched(stages, copy, call, capsys):
    """Format 3 had no `format` in config.json, and digests of the files."""
    settings = {name: value for name, value in read(copy / "config.json").items() if name != "format"}
    old = {name: {"key": "x", "sha256": dict.fromkeys(FILES[name], "x")} for name in STAGES}
    (copy / "config.json").write_text(json.dumps(settings))
    (copy / "stages.json").write_text(json.dumps(old if stages == "finished" else {}))
    if stages == "none":
        (copy / "stages.json").unlink()
    before = stamps(copy)
    for command in STAGES:
        assert call(copy, command=command) == 2
        assert "another version" in one_sentence(capsys.readouterr())
    code, said = asked(capsys, copy)
    assert code == 2 and ("another version" in said or stages == "none") and stamps(copy) == before


def test_a_folder_of_other_things_is_left_alone(call, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("x")
    for out in (tmp_path, tmp_path / "notes.txt"):
        assert call(out, command="sample") == 2
        assert f"{out} is there already, and no run folder" in one_sentence(capsys.readouterr())
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    run = tmp_path / "new"
    (run / "model-1").mkdir(parents=True)
    (run / "stages.json.tmp").touch()  # of a run that was killed at its very beginning
    assert call(run, command="sample") == 0
    (run / "stages.json").unlink()  # as a message advises where it is damaged
    assert call(run, command="sample") == 0


def test_settings_that_are_lost_are_written_again(copy, call, capsys):
    settings = read(copy / "config.json")
    for flags in ((), ("--steps", "4")):
        (copy / "config.json").unlink()
        assert "is no run folder" in asked(capsys, copy)[1]
        assert call(copy, *flags, command="train") == 0
        assert read(copy / "config.json") == settings | {"steps": 4 if flags else 3}


def test_where_runs_are_if_no_folder_is_named(gpt2, tmp_path, monkeypatch):
    """Another seed has a folder of its own; a model in the folder above has its name."""
    (gpt2 / "here").mkdir(exist_ok=True)
    for where, argv, folder in (
        (tmp_path, [], "runs/toy"), (tmp_path, ["--seed", "1"], "runs/toy"), (tmp_path, ["--seed", "3"], "runs/toy-3"),
        (tmp_path, ["--model", "a/b"], "runs/b"), (gpt2 / "here", ["--model", ".."], f"runs/{gpt2.name}"),
    ):  # fmt: skip
        monkeypatch.chdir(where)
        run, todo = cli.plan(*cli.parse(argv))
        assert (str(run.folder), todo) == (folder, STAGES)
    assert not (tmp_path / "runs").exists()


def test_artefacts_that_were_cut_short_are_named_and_not_used(copy, call, capsys):
    for stage, names in FILES.items():
        for name in names:
            content = (copy / name).read_bytes()
            (copy / name).write_bytes(content[:-9])
            assert call(copy) == 2
            assert f"{copy / name} is not what `{stage}` wrote: put it back" in one_sentence(capsys.readouterr())
            (copy / name).write_bytes(content)
    assert redone(call, copy, capsys) == []


@pytest.mark.parametrize("name, stage", [("samples.jsonl", 0), ("platt.json", 1), ("metrics.jsonl", 2)])
def test_a_stage_whose_artefact_is_gone_is_done_again(name, stage, copy, finished, call, capsys):
    """And what follows, which comes out as it was."""
    (copy / name).unlink()
    assert call(copy, command="train") == 0
    assert list(read(copy / "stages.json")) == list(STAGES[:3])
    assert capsys.readouterr().out.count("done before") == stage
    for made in ("samples.jsonl", "targets.jsonl", "metrics.jsonl"):
        assert_close(rows(copy / made), rows(finished / made))


@contextlib.contextmanager
def interrupted(number, module, name):
    """Inside, the call of this number raises, and is caught; 0: none does. -> the arguments of all calls"""
    real, calls = getattr(module, name), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            raise RuntimeError("interrupted")
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, failing)
        with pytest.raises(RuntimeError, match="interrupted") if number else contextlib.nullcontext():
            yield calls


def test_interrupted_sampling_goes_on_where_it_was(finished, call, tmp_path):
    """However often, also where writing was cut short."""
    run = tmp_path / "run"
    for kept in (1, 2):  # of three batches of eight
        with interrupted(2, parallel, "keep"):
            call(run, command="sample")
        assert not (run / "samples.jsonl").exists()
        before = [read(left) for left in run.glob(".sample-*.json")]
        assert [len(batch["rows"]) for batch in before] == [8] * kept
        (run / f".sample-{kept}.json.tmp").touch()
    with interrupted(0, parallel, "keep") as calls:
        assert call(run, command="sample") == 0
    assert len(calls) == 1 and not list(run.glob(".sample-*"))
    assert_close(rows(run / "samples.jsonl"), rows(finished / "samples.jsonl"))
    spent = read(run / "stages.json")["sample"]["seconds"]
    assert spent > sum(batch["seconds"] for batch in before)  # those of all calls


def test_trainings_that_were_interrupted_do_not_mix(train, calibrated, mixed, call, tmp_path, monkeypatch, stating):
    """One is cut off after its first checkpoint, another one too; then the first goes on, and ends as if it had not."""
    run, whole = shutil.copytree(calibrated, tmp_path / "run"), train("--lr", "2e-2")
    for rate in ("2e-2", "3e-3"):
        with interrupted(3, rl, "rollout"), monkeypatch.context() as patch:
            patch.setattr("time.perf_counter", itertools.count().__next__)
            call(run, "--lr", rate, command="train", dataset=mixed)
        assert not (run / "adapter").exists()
    assert len(list(run.glob(".train-*"))) == 2
    with interrupted(0, rl, "rollout") as calls:
        assert call(run, "--lr", "2e-2", command="train", dataset=mixed) == 0
    assert len(calls) == 2  # of three steps
    assert_close(rows(run / "metrics.jsonl"), rows(whole / "metrics.jsonl"))
    assert distance(run, whole) < 1e-3
    assert not list(run.glob(".train-*"))


@pytest.mark.parametrize("content", ["x", ""])
def test_what_an_interrupted_call_left_is_named_if_it_is_damaged(content, copy, call, tmp_path, capsys):
    left = Run(copy).unfinished("train", Run(copy).config(), "checkpoint")
    left.write_text(content)
    (copy / "metrics.jsonl").unlink()
    assert call(copy, command="train") == 2
    assert f"{left} is damaged" in one_sentence(capsys.readouterr())
    with interrupted(2, parallel, "keep"):
        call(tmp_path / "new", command="sample")
    (left,) = (tmp_path / "new").glob(".sample-*")
    left.write_text(content)
    assert call(tmp_path / "new", command="sample") == 2
    assert f"{left} is damaged" in one_sentence(capsys.readouterr())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ConnectionError("x"), KeyboardInterrupt()])
def test_artefacts_are_written_whole_or_not_at_all(error, tmp_path, monkeypatch):
    """An error of the disk names the file; one that came meanwhile is what it was."""

    def fail(_):
        raise error

    run = Run(tmp_path)
    run.write("x.json", {"a": 1})
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(type(error)) as caught:
        run.write("x.json", {"a": 2})
    assert str(caught.value).endswith(f" '{tmp_path / 'x.json.tmp'}'") == (type(error) is OSError)
    assert run.read("x.json") == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_another_seed_gives_other_samples_and_another_toy_model(finished, call, gpt2, tmp_path, monkeypatch):
    assert call(tmp_path / "other", "--seed", "2", command="sample") == 0
    drawn = [{s["id"]: s for s in rows(run / "samples.jsonl")} for run in (finished, tmp_path / "other")]
    assert sum(drawn[0][i]["samples"] == drawn[1][i]["samples"] for i in drawn[0]) < 4
    assert sum(drawn[0][i]["answer"] != drawn[1][i]["answer"] for i in drawn[0]) <= 1  # greedy, in other batches
    built = []
    monkeypatch.setattr(toy, "build", lambda folder, seed: built.append(seed) or shutil.copytree(gpt2, folder))
    for seed in (1, 1, 2):
        setup.load_model(Config(model="toy", dataset="toy", seed=seed, device="cpu"), Run(tmp_path / "run"))
    assert built == [1, 2]


def fitted(targets, *names):
    return platt.fit(np.array([[t[n] for n in names] for t in targets]).squeeze(), [t["correct"] for t in targets])


def test_targets_are_cross_fitted(calibrated):
    """Each by a fit to all labelled questions but those of its own fold; the held-out ones by the stored fit."""
    targets, samples = rows(calibrated / "targets.jsonl"), rows(calibrated / "samples.jsonl")
    assert 0.2 < np.mean([t["correct"] for t in targets]) < 0.8
    stored = platt.Platt(**json.loads((calibrated / "platt.json").read_text()))
    for i, (s, t) in enumerate(zip(samples, targets, strict=True)):
        others = [x for j, x in enumerate(targets) if x["part"] == "platt" or x["part"] == "train" and (i - j) % 5]
        fit = {"platt": None, "train": fitted(others, "entropy"), "test": stored}[t["part"]]
        assert t["target"] is None if fit is None else t["target"] == pytest.approx(fit.predict(t["entropy"]))
        assert 0 <= t["entropy"] <= math.log(3) + 1e-6 and 0 <= t["clusters"] <= math.log(3) + 1e-9
        assert t["correct"] == grade(s["answer"], s["answers"])
        assert t["probability"] == pytest.approx(math.exp(s["answer_logprob"] / s["answer_tokens"]))
        same = [grade(x, [s["answer"]]) for x in s["samples"]]
        assert t["consistency"] == pytest.approx(np.mean(same)) and 0 < t["similarity"] <= 1 + 1e-6
    every = fitted([t for t in targets if t["part"] != "test"], "entropy")
    assert stored.predict([0.0, 1.0]) == pytest.approx(every.predict([0.0, 1.0]))


def test_targets_of_the_answer_use_its_similarity_to_the_samples(calibrated, call, mixed, tmp_path):
    out = shutil.copytree(calibrated, tmp_path / "run")
    assert call(out, "--target", "answer", "--steps", "1", dataset=mixed) == 0  # the report knows what to do
    fit = platt.Platt(**json.loads((out / "platt.json").read_text()))
    assert len(fit.a) == 2
    for before, after in zip(rows(calibrated / "targets.jsonl"), rows(out / "targets.jsonl"), strict=True):
        assert_close({**before, "target": 0}, {**after, "target": 0})
        if after["part"] == "test":
            assert after["target"] == pytest.approx(fit.predict([after["entropy"], after["similarity"]]))


@pytest.mark.parametrize("flags", [
    "--kl 0.5", "--advantage zscore", "--warmup 2", "--amp fp16", "--reflection 0", "--rollout-temperature 0.5",
    "--tolerance 0.4", "--lr 2e-2", "--max-grad-norm 1e-3", "--reward brier", "--adapter everywhere", "--steps 0",
    "--statement uncertainty", "--dropout 0.5", "--adapter everywhere --kl 0.1 --recompute on --engine plain",
])  # fmt: skip
def test_each_option_of_training_runs_and_matters(flags, train):
    assert distance(train(*flags.split()), train()) > 1e-3
    every, learned = weights(train(*flags.split()))
    assert torch.isfinite(every).all() and learned.any() == (flags != "--steps 0")


@pytest.mark.parametrize("base", ["", "--adapter everywhere"])
@pytest.mark.parametrize("flags", ["--micro-batch 1", "--recompute on", "--engine plain"])
def test_what_saves_memory_or_time_changes_nothing(base, flags, train):
    run, other = train(*base.split(), *flags.split()), train(*base.split())
    assert distance(run, other) < 1e-2
    assert_close(rows(run / "metrics.jsonl")[0], rows(other / "metrics.jsonl")[0])


def test_every_logged_number_is_explained(train):
    table = (ROOT / "docs" / "log.md").read_text().split("\n## ")[1]
    logged = set().union(*(rows(train(*flags) / "metrics.jsonl")[0] for flags in ((), ("--warmup", "2"))))
    assert {line.split("`")[1] for line in table.split("\n") if line.startswith("| `")} == logged


@pytest.mark.parametrize("shown", ["answer", "thought"])
def test_an_answer_after_a_thought(shown, call, mixed, tmp_path):
    """The answer alone is graded and embedded, and the thought is in the second turn if it is to be shown there."""
    flags = ["--answer", "reasoned", "--shown", shown, "--thought-tokens", "5", "--steps", "1", "--kl", "0.1"]
    with interrupted(0, language, "embed") as embedded, interrupted(0, rl, "second_turns") as turns:
        assert call(tmp_path / "run", *flags, dataset=mixed) == 0
        samples, targets = rows(tmp_path / "run" / "samples.jsonl"), rows(tmp_path / "run" / "targets.jsonl")
        found = use.CalibratedLM(tmp_path / "run").ask_all([s["question"] for s in samples])
    thoughts = {s["question"]: s["thought"] for s in samples}
    assert sum(map(bool, thoughts.values())) > 20 and max(map(len, thoughts.values())) <= 2 * 5
    assert embedded[0][1] == [text for s in samples for text in (s["answer"], *s["samples"])]
    for s, t in zip(samples, targets, strict=True):
        assert t["correct"] == t["exact"] == grade(s["answer"], s["answers"])
        assert s["answer_tokens"] < s["reply_tokens"] <= s["answer_tokens"] + 5 and s["sample_tokens"] <= 3 * (6 + 5)
    texts = [(pair, lm.decode(sum(prompt.second_turn(*pair), []))) for lm, prompt, pairs, _ in turns for pair in pairs]
    assert {s["question"] for s in samples} == {q for (q, *_), _ in texts}
    as_wanted = []
    for (question, answer, *_), text in texts:  # as the tokenizer has it, without capital letters
        said = f"easoning: {thoughts[question]}\nnswer: {answer}\n" if shown == "thought" and thoughts[question] else ""
        examples = len(data.EXAMPLES) * (shown == "thought")  # which think too
        said, there = said or f"nswer: {answer}", text.count("easoning:") == examples + bool(said)
        as_wanted.append(there and f"uestion: {question}\n{said}" in text)
    assert np.mean(as_wanted) >= 0.9  # rounding may break a tie
    assert sum(a.text == s["answer"] for a, s in zip(found, samples, strict=True)) >= 0.9 * len(samples)


@pytest.mark.parametrize("family, chat", [("llama", True), ("qwen2", False), ("gemma2", True)])
def test_other_architectures_and_prompts(family, chat, tiny, call, tmp_path, monkeypatch):
    """Without --prompt, the chat template if there is one."""
    styles, real = [], data.Prompt
    monkeypatch.setattr(data, "EXAMPLES", data.EXAMPLES[:1])  # shorter prompts
    monkeypatch.setattr(data, "Prompt", lambda lm, style, *rest: styles.append(style) or real(lm, style, *rest))
    model = tiny(family, chat=chat)
    assert call(tmp_path / "run", "--steps", "1", model=model) == 0
    assert call(tmp_path / "other", "--prompt", "fewshot", model=model, command="sample") == 0
    assert styles == ["chat" if chat else "fewshot", "fewshot"] and (tmp_path / "run" / "report.md").exists()


SAID = {False: [None, 0.9, None, 0.9, 0.8, None, 1.0, None], True: [0.1, 0.35, None, 0.8, 0.5, 0.35, None, 0.2]}


@pytest.fixture(scope="session")
def evaluated(call, mixed, calibrated, tmp_path_factory):
    """A finished run with chosen statements: four untrained and two trained ones of eight are malformed."""
    out = shutil.copytree(calibrated, tmp_path_factory.mktemp("runs") / "evaluated")
    test = [row["question"] for row in rows(out / "samples.jsonl") if row["part"] == "test"]

    def state(model, prompt, pairs, ways, config):
        """Questions may come in any order: what is said goes by the question."""
        assert ways == (["untrained", "trained", "expected"] if prompt.reflection else ["alone"])
        order = [test.index(q) for q, *_ in pairs]
        said = {way: [SAID[way in ("trained", "expected")][i] for i in order] for way in ways}
        thoughts = {way: [f"{way} {i}" for i in order] for way in ways}
        return {way: (said[way], 5 * len(order), 0.25 * len(order), thoughts[way]) for way in ways}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(use, "state", state)
        assert call(out, dataset=mixed) == 0
    return out


def test_predictions_hold_every_confidence_of_every_held_out_question(evaluated):
    found, targets, n = rows(evaluated / "predictions.jsonl"), rows(evaluated / "targets.jsonl"), 6 + 10
    assert [r["untrained"] for r in found] == [r["alone"] for r in found] == SAID[False]
    assert [r["trained"] for r in found] == SAID[True]
    for way in ("untrained", "trained"):
        assert [r[f"reflection, {way}"] for r in found] == [f"{way} {i}" for i in range(8)]
    for r, t in zip(found, targets[n:], strict=True):
        assert_close(t, {name: r[name] for name in t})
        assert r["base rate"] == pytest.approx(np.mean([x["correct"] for x in targets[:n]]))
        family = [x["correct"] for x in targets[:n] if x["family"] == t["family"]]
        assert r["family prior"] == pytest.approx(np.mean(family))
        for name in ("probability", "consistency", "clusters"):
            def feature(x, name=name):
                p = np.clip(x, 0.02, 0.98)
                return x if name == "clusters" else np.log(p) - np.log(1 - p)

            fit = fitted([x | {name: feature(x[name])} for x in targets[:n]], name)
            assert r[f"{name}, scaled"] == pytest.approx(fit.predict(feature(r[name])))


def test_the_rows_of_the_report_are_those_of_the_predictions(evaluated):
    found, report = rows(evaluated / "predictions.jsonl"), read(evaluated / "report.json")["sets"]["test"]
    text, expected = (evaluated / "report.md").read_text(), {}
    for name, title in METHODS.items():
        if name in found[0] and name != "truth":
            stated = [(r[name], r["correct"]) for r in found if r[name] is not None]
            expected[title] = stated + [(1 - r["correct"], r["correct"]) for r in found if r[name] is None]
            expected |= {f"{title}, malformed dropped": stated} if len(stated) < 8 else {}
            worst = [1 - r["correct"] if r[name] is None else r[name] for r in found]
            if np.ptp(worst):
                ranks = spearmanr(worst, [r["target"] for r in found]).statistic
                assert report["methods"][title]["spearman"] == pytest.approx(ranks) and f" | {ranks:.3f} | " in text
    assert list(report["methods"]) == list(expected) and len(expected) == 18
    for title, pairs in expected.items():
        (confidence, correct), row = np.array(pairs, dtype=float).T, report["methods"][title]
        assert (row["n"], row["accuracy"]) == (len(pairs), pytest.approx(correct.mean()))
        assert row["brier"] == pytest.approx(((confidence - correct) ** 2).mean())
        assert row["ece"] == pytest.approx(metrics.ece(confidence, correct))
        assert row["auroc"] == pytest.approx(metrics.auroc(confidence, correct))
        assert row["interval"]["brier"][0] <= row["brier"] <= row["interval"]["brier"][1]
        (line,) = [x for x in text.splitlines() if x.startswith(f"| {title} | {row['accuracy']:.3f} [")]
        assert f" {row['ece']:.3f} [" in line and f" {row['brier']:.3f} [" in line
    assert report["malformed"]["Stated, untrained"] == 0.5 and report["malformed"]["Stated, trained"] == 0.25
    assert "- test: Stated, untrained: 50.0% of the answers have no stated confidence; they count as worst." in text
    for name, of_family in report["families"].items():
        inside = [r["correct"] for r in found if r["family"] == name]
        assert (of_family["n"], of_family["accuracy"]) == (len(inside), pytest.approx(np.mean(inside)))
    gaps = [abs(r["trained"] - r["target"]) for r in found if r["trained"] is not None]
    page = (evaluated / "report.html").read_text()
    assert all(f'["{way}","{way} {i}"]' in page for way in ("untrained", "trained") for i in range(8))
    agreement = report["agreement"]["Stated, trained v teacher: samples, entropy, platt"]
    assert (agreement["n"], agreement["mean_absolute_difference"]) == (6, pytest.approx(np.mean(gaps)))


def test_the_cost_of_an_answer_of_the_teacher_and_of_the_student(evaluated):
    cost = read(evaluated / "report.json")["cost"]
    test = [s for s in rows(evaluated / "samples.jsonl") if s["part"] == "test"]
    answer, drawn = (np.mean([s[k] for s in test]) for k in ("answer_tokens", "sample_tokens"))
    tokens = {name: cost[name]["tokens"] for name in ("answer", "target", "trained")}
    assert tokens == pytest.approx({"answer": answer, "target": answer + drawn, "trained": answer + 5})
    assert cost["trained"]["seconds"] == pytest.approx(cost["answer"]["seconds"] + 0.25)


def test_baselines_that_read_the_questions_again(copy, call, monkeypatch, stating):
    """Zero-shot has its own prompt, P(True) too, and each is scaled on Platt's own part; nothing is trained again."""
    prompts, switches, real, rollout = [], [], use.state, rl.rollout

    def spy(lm, prompt, pairs, ways, config):
        prompts.append((tuple(ways), len(prompt.examples), prompt.reflection, prompt.statement.label, len(pairs)))
        return real(lm, prompt, pairs, ways, config)

    def said(model, prompt, asked, *how):
        switches.append(({m.on for m in model.model.modules() if isinstance(m, lora.LoRA)}, *how[:2]))
        return rollout(model, prompt, asked, *how)

    monkeypatch.setattr(use, "state", spy)
    monkeypatch.setattr(rl, "rollout", said)
    adapter = copy / "adapter" / "adapter_model.safetensors"
    before = stamps(copy)[adapter]
    assert call(copy, "--baselines", "stated,zero-shot,p-true") == 0
    assert stamps(copy)[adapter] == before
    n, label, truth = len(data.EXAMPLES), "Confidence:", "True or false:"
    assert prompts == [
        (("untrained", "trained", "expected"), n, 4, label, 8), (("alone",), n, 0, label, 8),
        (("untrained",), n, 4, label, 6), (("zero-shot",), 0, 4, label, 8), (("zero-shot",), 0, 4, label, 6),
        (("p-true",), n, 0, truth, 8), (("p-true",), n, 0, truth, 6),
    ]  # fmt: skip
    assert switches == [({way == 1}, 1, 0.0) for way in range(6)]  # on for the trained statement alone, all greedy
    test = read(copy / "report.json")["sets"]["test"]
    for title in ("Stated, untrained", "Stated, zero-shot", "P(True)"):
        assert test["methods"][title]["n"] == test["methods"][f"{title}, Platt"]["n"] == 8
    assert test["malformed"]["P(True)"] == test["malformed"]["P(True), Platt"] == 1  # the tokenizer has no capitals


def test_help_is_quick_and_explains_every_flag_in_the_group_of_its_stage():
    seconds = []
    for _ in range(3):  # the machine may be busy
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "calunc.py", "--help"], cwd=ROOT, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1 and done.returncode == 0 and not done.stderr
    usage, empty, *_ = done.stdout.split("\n")
    assert usage.startswith("usage: python calunc.py") and len(usage) < 80 and not empty
    groups = dict(part.split(":\n", 1) for part in done.stdout.split("\n\n") if part.split("\n")[0].endswith(":"))
    entries = {title: text.removeprefix("  ").split("\n  -") for title, text in groups.items()}
    told = {title: {e.split()[0].lstrip("-"): len(e.split()) for e in found} for title, found in entries.items()}
    for f in fields(Config):  # more than the flag and the name of its value
        assert told[cli.GROUPS[f.metadata["stage"]]][option(f.name)[2:]] > 3 and f.metadata["help"].strip(), f.name
    assert {"out", "run", "in"} <= told["options"].keys()
    argv = [sys.executable, "-c", "import sys, infra.cli; sys.exit('torch' in sys.modules)"]
    assert subprocess.run(argv, cwd=ROOT).returncode == 0

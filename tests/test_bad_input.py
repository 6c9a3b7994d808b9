"""What cannot be used gets one sentence, exit code 2, and nothing half-written; what can be used runs to the end."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import one_sentence, rows, write
from safetensors.torch import load_file, save_file

import calunc
import data
import entropy
import lm as language
from infra import cli, models, parallel
from infra.cli import parse
from infra.files import names
from infra.folder import Run
from report.build import troubles

GOOD = {"question": "a", "answers": ["b"]}
LINES = {  # a file of this name holds questions, and then this line
    "malformed": b'{"question": ', "list": b"[]", "number": b"7", "null": b"null", "no_question": b'{"answers": ["b"]}',
    "question_7": b'{"question": 7, "answers": ["b"]}', "empty_question": b'{"question": "", "answers": ["b"]}',
    "blank_question": b'{"question": " \\n ", "answers": ["b"]}', "no_answers": b'{"question": "z"}',
    "answers_text": b'{"question": "z", "answers": "b"}', "answers_empty": b'{"question": "z", "answers": []}',
    "answer_empty": b'{"question": "z", "answers": ["b", " "]}', "answers_7": b'{"question": "z", "answers": [7]}',
    "latin1": '{"question": "caf\xe9", "answers": ["b"]}'.encode("latin-1"), "binary": bytes(range(128, 256)),
    "deep": b"[" * 100_000, "huge_number": b'{"question": "z", "answers": ["b"], "id": 1' + b"0" * 5000 + b"}",
    "surrogate": b'{"question": "z \\ud800", "answers": ["b"]}', "two_rows": b'{"question": "z"} {"question": "y"}',
    "same_id": b'{"question": "z", "answers": ["b"], "id": "q0"}', "nan": b"NaN",
    "enormous_question": b'{"question": "' + b"what " * 20_000 + b'", "answers": ["b"], "id": "huge"}',
}  # fmt: skip


@pytest.fixture(scope="session")
def files(tmp_path_factory, gpt2):
    """Models and question files that are wrong in one way each, by name."""
    tmp, weights = tmp_path_factory.mktemp("bad"), load_file(gpt2 / "model.safetensors")
    name, cut = "transformer.ln_f.weight", (gpt2 / "model.safetensors").read_bytes()[:-99]
    (tmp / "folder").mkdir()
    for folder, part, content in (
        ("gpt2", None, None), ("mute", "tokenizer.json", None), ("light", "model.safetensors", None),
        ("cut", "model.safetensors", cut), ("noise", "model.safetensors", b"\xff" * 9), ("config", "config.json", b"{"),
        ("kind", "config.json", b'{"model_type": "nothing"}'), ("words", "tokenizer.json", b"{"),
        ("partial", "model.safetensors", {n: w for n, w in weights.items() if n != name}),
        ("wide", "model.safetensors", weights | {name: torch.ones(17)}),
    ):  # fmt: skip
        shutil.copytree(gpt2, tmp / folder)
        if isinstance(content, dict):
            save_file(content, tmp / folder / part, {"format": "pt"})
        elif part:
            (tmp / folder / part).unlink() if content is None else (tmp / folder / part).write_bytes(content)
    (tmp / "mute" / "tokenizer_config.json").unlink()
    known = [GOOD | {"question": "q" * (i + 1), "id": f"q{i}"} for i in range(30)]
    write(tmp / "good.jsonl", known)
    for name, line in LINES.items():
        (tmp / f"{name}.jsonl").write_bytes((tmp / "good.jsonl").read_bytes() + line + b"\n")
    for name, text in (
        ("empty", ""),
        ("blank", " \n\n"),
        ("array", json.dumps(known, indent=1)),
        ("web_questions", ""),
    ):
        (tmp / f"{name}.jsonl").write_text(text)
    write(tmp / "two.jsonl", known[:2])
    return tmp


QUESTION, ANSWERS = "needs a non-empty string `question`", "needs `answers`, a non-empty list of non-empty strings"
WRONG = {  # flags of a run -> what is said
    "--model {tmp}/nowhere": "no model at '{tmp}/nowhere'",
    "--model {tmp}/empty.jsonl": "no model at '{tmp}/empty.jsonl'", "--model {tmp}/folder": "no model at ",
    "--model {tmp}/mute": "{tmp}/mute", "--model {tmp}/light": "{tmp}/light", "--model {tmp}/cut": "{tmp}/cut: ",
    "--model {tmp}/noise": "{tmp}/noise: ", "--model {tmp}/config": "no model at '{tmp}/config'",
    "--model {tmp}/kind": "no model at '{tmp}/kind'", "--model {tmp}/words": "{tmp}/words has no readable tokenizer",
    "--model {tmp}/wide": "{tmp}/wide: ", "--model {tmp}/partial": "{tmp}/partial lacks 1 of its weights, as transf",
    "--embedder {tmp}/nowhere": "no model at '{tmp}/nowhere'",
    "--prompt chat": "has no chat template: use --prompt fewshot",
    "--model toy --dataset toy --prompt chat": "the toy model has no chat template",
    "--dataset toy": "--dataset toy needs the toy model",
    "--dataset {tmp}/empty.jsonl": "empty.jsonl holds no questions",
    "--dataset {tmp}/blank.jsonl": "blank.jsonl holds no questions",
    "--dataset {tmp}/array.jsonl": "array.jsonl, line 1: not JSON",
    **{f"--dataset {{tmp}}/{name}.jsonl": f"{name}.jsonl is not UTF-8 text" for name in ("binary", "latin1")},
    **{f"--dataset {{tmp}}/{name}.jsonl": f"{name}.jsonl, line 31: {said}" for said, names in (
        ("not JSON", "malformed surrogate deep huge_number two_rows nan"), ("not an object", "list number null"),
        (QUESTION, "no_question question_7 empty_question blank_question"), ("the id 'q0' occurs twice", "same_id"),
        (ANSWERS, "no_answers answers_text answers_empty answer_empty answers_7"),
    ) for name in names.split()},
    "--dataset {tmp}/good.jsonl,{tmp}/good.jsonl": "good.jsonl is named twice",
    "--dataset {tmp}/enormous_question.jsonl --train-questions 20": "question huge: a prompt of",
    "--answer-tokens 5000": "exceed the model's context of 2048",
    "--dataset {tmp}/two.jsonl": "2 questions are too few", "--dataset ,": "no data set or file called ''",
    "--dataset {tmp}/folder": "no data set or file called '{tmp}/folder'",
    "--dataset {tmp}/god.jsonl": "did you mean '{tmp}/good.jsonl'?",
    "--dataset web_question.jsonl": "did you mean 'web_questions.jsonl'?",  # a file, and not the set web_questions
    "--dataset trivia-qa": "no data set or file called 'trivia-qa'; did you mean 'trivia_qa'?",
    "--ood gsm8": "no data set or file called 'gsm8'; did you mean 'gsm8k'?",
    "--dataset facts:zz": "facts has no family 'zz'; choose from arithmetic, calling_codes",
    "--dataset facts --ood facts:elements": "all of its questions are in --dataset too",
    "--baselines zz": "no baseline is called 'zz'; choose from stated",
    "--samples 1": "--samples is 1: an entropy needs at least 2 samples",
    "--test-questions 0": "--test-questions is 0: it must be positive",
    "--sample-batch 0": "--sample-batch is 0: it must be positive",
    "--steps -1": "--steps is -1: it must be not negative", "--lr 0": "--lr is 0.0: it must be positive",
    "--rollouts 1": "--rollouts must be at least 2", "--folds 1": "--folds and --rollouts must be at least 2",
    "--temperature 0": "--temperature is 0.0: it must be positive",
    "--gamma nan": "--gamma is nan: it must be a finite number", "--kl inf": "--kl is inf: it must be a finite number",
    "--seed -1": "--seed is -1: it must be not negative", f"--seed {2**70}": "it must be below 2^63",
    "--alpha 2": "--alpha is 2.0: it must be from 0 to 1",
    "--reflection -1": "--reflection is -1: it must be not negative",
    "--dropout 1": "--dropout is 1.0: it must be below 1", "--thought-tokens 0": "--thought-tokens is 0: it must be",
    "--dropout 0.1 --gradient exact": "--gradient exact takes no dropout: add --dropout 0",
    "--grader judge": "--grader judge needs --judge", "--judge {tmp}/gpt2": "and --judge needs it",
    "--grader file": "--grader file needs --labels", "--labels {tmp}/good.jsonl": "and --labels needs it",
    "--shown thought": "--shown thought needs --answer reasoned",
    "--model toy --dataset toy --answer reasoned": "the toy model answers at once, and states percentages: --answer",
    "--model toy --dataset toy --statement uncertainty": "the toy model answers at once, and states percentages",
    "--gradient exact": "the exact gradient needs a tokenizer that can write the numbers",
    "--grader judge --judge {tmp}/nowhere": "no model at '{tmp}/nowhere'",
    "--grader file --labels {tmp}/nowhere": "there is no file {tmp}/nowhere",
    "--answer-tokens 500 --answer reasoned --thought-tokens 1500": "exceed the model's context of 2048",
    "--reflection 2000": "exceed the model's context of 2048",
    "why": "eval takes no question ('why')", "--in x.jsonl": "eval takes no --in ('x.jsonl')",
    "--show-reflection": "eval takes no --show-reflection; --out names the run folder",
    "--run runs/toy": "eval takes no --run ('runs/toy'); --out names the run folder",
    "--out {tmp}/good.jsonl/run": "Not a directory: '{tmp}/good.jsonl/run'",
    "--out {tmp}/good.jsonl": "{tmp}/good.jsonl is there already, and no run folder",
}  # fmt: skip


def stamps(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize("flags", WRONG)
def test_a_run_that_cannot_be(flags, files, call, capsys, monkeypatch):
    monkeypatch.chdir(files)
    before = stamps(files)
    assert call(files / "runs" / "new", *flags.replace("{tmp}", str(files)).split()) == 2
    assert WRONG[flags].replace("{tmp}", str(files)) in one_sentence(capsys.readouterr())
    assert stamps(files) == before


TWO = "predict --in {tmp}/two.jsonl"


@pytest.mark.parametrize("argv, message", [
    ("ask --run {run}", "ask needs a question"), (f"ask {'why' * 5000} --run {{run}}", "exceed the model's context of"),
    ("ask why --out {run}", "; --run names the run folder"),
    ("ask why --run {run} --steps 7", "no --steps here: the settings are those of the run in"),
    ("ask why --run {tmp}/xyzzy", "{tmp}/xyzzy is no run folder"),
    ("predict --run {run}", "predict needs --in and --out"),
    (f"{TWO} --run {{run}}", "predict needs --in"), (f"{TWO} --out {{tmp}}/o --run {{tmp}}/no", "no is no run folder"),
    ("predict --in {tmp}/none.jsonl --out {tmp}/o --run {run}", "no file {tmp}/none.jsonl"),
    ("predict --in {tmp}/folder --out {tmp}/o --run {run}", "Is a directory: '{tmp}/folder'"),
    (f"{TWO} --out {{tmp}}/folder --run {{run}}", "is there already: give --out a new name"),
    (f"{TWO} --out {{tmp}}/two.jsonl --run {{run}}", "two.jsonl is there already: give --out a new name"),
    (f"{TWO} --out {{tmp}}/no/o --run {{run}}", "there is no folder {tmp}/no to"),
    ("predict --in {tmp}/empty.jsonl --out {tmp}/o --run {run}", "holds no questions"),
    ("predict --in {tmp}/malformed.jsonl --out {tmp}/o --run {run}", "line 31: not JSON"),
    (f"{TWO} --out {{tmp}}/o --run {{run}} --max-error 1", "an error of 1.0 cannot be promised: it must be"),
    (f"{TWO} --out {{tmp}}/o --run {{run}} --max-error 0", "an error of 0.0 cannot be promised"),
    (f"{TWO} --out {{tmp}}/o --run {{run}} --fit x", "has no fit 'x' of --readout expected; `recalibrate` makes it"),
    ("ask why --run {run} --max-error 0", "ask takes no --max-error"),
    ("merge --out x --fit y", "merge takes no --fit"), ("ask why --run {run} --labels x", "no --labels here"),
    ("recalibrate --run {run} --fit x", "recalibrate needs --labels"),
    ("recalibrate --run {run} --labels {tmp}/two.jsonl", "none of the 2 labelled questions has a confidence to fit"),
    ("recalibrate --run {run} --fit x --labels {tmp}/none.jsonl", "no file {tmp}/none.jsonl"),
    ("recalibrate --run {run} --fit x --labels {tmp}/again.jsonl", "again.jsonl, line 2: this question, with this"),
    ("recalibrate --run {run} --fit x --labels {tmp}/blank.jsonl", "blank.jsonl, line 1: needs `answers`, a list of"),
    ("predict --in {tmp}/nan.jsonl --out {tmp}/o --run {run}", "nan.jsonl, line 31: not JSON (Out of range"),
    ("predict --in {tmp}/long.jsonl --out {tmp}/o --run {run}", "long.jsonl, line 2: a prompt of"),
    ("recalibrate --run {run} --fit x --labels {tmp}/no_answers.jsonl", "line 31: needs `answers`, a list of accepted"),
    ("recalibrate --run {run} --fit x --labels {tmp}/answers_7.jsonl", "line 31: needs `answers`, a list of accepted"),
])  # fmt: skip
def test_a_question_that_cannot_be_asked(argv, message, files, finished, capsys, monkeypatch):
    """Which is found before the model is asked, but for what its check samples."""
    monkeypatch.setattr(models, "check", lambda *_: None)
    monkeypatch.setattr(language, "pick", lambda *_: pytest.fail("the model was asked"))
    write(files / "again.jsonl", [{"question": "who is", "correct": 1}, {"question": "who is ", "correct": 0}])
    write(files / "blank.jsonl", [{"question": "who", "answers": [" "]}])
    write(files / "long.jsonl", [{"question": "who"}, {"question": "why" * 5000}])
    before = stamps(files)
    assert calunc.main(argv.replace("{tmp}", str(files)).replace("{run}", str(finished)).split()) == 2
    assert message.replace("{tmp}", str(files)) in one_sentence(capsys.readouterr())
    assert stamps(files) == before


@pytest.mark.parametrize("row, column", [
    (dict(confidence=None), "confidence"), (dict(reflection="", more=1), "reflection"),
])  # fmt: skip
def test_predict_overwrites_no_column(row, column, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(language, "load", lambda *_: pytest.fail("a model was loaded"))
    source, out = write(tmp_path / "in.jsonl", [{"question": "who"}, {"question": "why"} | row]), tmp_path / "out.jsonl"
    assert calunc.main(["predict", "--in", str(source), "--out", str(out), "--run", str(finished)]) == 2
    sentence = one_sentence(capsys.readouterr())
    assert sentence == f"{source}, line 2: has a column `{column}`, which would be overwritten: rename it"
    assert not out.exists()


@pytest.mark.parametrize("answer, message", [
    ("", "must be a text of one line, and not ''"), (" \n", "must be a text of one line"), (7, "and not 7"),
    ("a\nb", "and not 'a\\nb'"), (["a"], "and not ['a']"), ("a b c d", "the answer has 7 tokens and the end of its l"),
])  # fmt: skip
@pytest.mark.parametrize("command", ["predict --out {out} --in", "recalibrate --fit x --labels"])
def test_an_answer_that_cannot_be_judged(answer, message, command, finished, tmp_path, capsys):
    some = [{"question": "who", "answer": "a", "correct": 1}, {"question": "why", "answer": answer, "correct": 0}]
    source, before = write(tmp_path / "in.jsonl", some), stamps(finished)
    argv = [*command.replace("{out}", str(tmp_path / "out.jsonl")).split(), str(source), "--run", str(finished)]
    assert calunc.main([*argv, "--readout", "sequence"]) == 2
    sentence = one_sentence(capsys.readouterr())
    assert sentence.startswith(f"{source}, line 2: ") and message in sentence
    assert not (tmp_path / "out.jsonl").exists() and stamps(finished) == before


@pytest.mark.parametrize("flag", ["--fit", "--run"])
def test_an_empty_argument_is_refused(flag, finished, capsys):
    """As that of a variable which the shell does not know."""
    assert calunc.main(["ask", "why", "--run", str(finished), flag, ""]) == 2
    assert one_sentence(capsys.readouterr()) == f"{flag} is empty"
    assert calunc.main(["ask", " ", "--run", str(finished)]) == 2


def test_a_terminal_without_greek_letters(copy, tmp_path):
    """It gets them in another form, and the stage is finished."""
    argv = [sys.executable, calunc.__file__, "recalibrate", "--run", str(copy), "--readout", "sequence", "--labels"]
    argv += [str(write(tmp_path / "labels.jsonl", [{"question": f"who is {x}", "correct": 0} for x in "abc"]))]
    done = subprocess.run(argv, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, capture_output=True)
    assert done.returncode == 0 and b"P(correct) = \\u03c3(" in done.stdout and b"3 labels say little" in done.stdout


def test_what_ctrl_c_says(capsys):
    def main(argv):
        raise KeyboardInterrupt

    for argv, said in ((["predict", "--out", "x"], "no result was written"), (["train", "--out", "ask"], "is kept")):
        assert cli.in_one_sentence(main)(argv) == 130 and said in capsys.readouterr().err


def test_a_readout_needs_its_stage(call, tmp_path, capsys):
    """Those that are not trained need no adapter; a threshold on the others needs the report."""
    where = ["what is it", "--run", str(tmp_path / "run"), "--readout"]
    predict = ["predict", "--in", str(write(tmp_path / "in.jsonl", [{"question": "why"}])), "--out"]
    for stage, fails in (
        ("sample", {"sequence": "holds no calibrated samples", "samples": "holds no calibrated samples"}),
        ("calibrate", {"sequence": "", "samples": "", "expected": "holds no adapter", "stated": "holds no adapter"}),
        ("train", {"expected": "", "stated": ""}),
    ):
        assert call(tmp_path / "run", command=stage) == 0
        for readout, message in fails.items():
            capsys.readouterr()
            assert calunc.main(["ask", *where, readout]) == (2 if message else 0)
            assert not message or message in one_sentence(capsys.readouterr())
    for readout, message in (("sequence", ""), ("samples", ""), ("expected", "has no report yet: go on with")):
        capsys.readouterr()
        code = calunc.main([*predict, str(tmp_path / readout), *where[1:], readout, "--max-error", "0.1"])
        assert code == (2 if message else 0) and (tmp_path / readout).exists() == (not message)
        said = capsys.readouterr()
        assert message in one_sentence(said) if message else "no threshold promises at most 10% wrong" in said.out
        assert message or rows(tmp_path / readout)[0]["abstain"] is True


def test_samples_need_the_encoder_of_the_fit(call, tiny, tmp_path, capsys):
    encoder = Path(shutil.copytree(tiny("gpt2"), tmp_path / "encoder"))
    assert call(tmp_path / "run", "--embedder", str(encoder), command="calibrate") == 0
    argv = ["ask", "what is it", "--run", str(tmp_path / "run"), "--readout"]
    assert calunc.main([*argv, "samples"]) == 0
    weights = load_file(encoder / "model.safetensors")
    save_file({name: w + 0.1 for name, w in weights.items()}, encoder / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert calunc.main([*argv, "samples"]) == 2
    assert "encoder is not the encoder that" in one_sentence(capsys.readouterr())
    assert calunc.main([*argv, "sequence"]) == 0  # it needs none


def test_an_answer_after_a_thought_is_not_from_elsewhere(call, tmp_path, capsys):
    assert call(tmp_path / "run", "--answer", "reasoned", "--thought-tokens", "3", command="calibrate") == 0
    with pytest.raises(ValueError, match="come after a thought, which an answer from elsewhere does not have"):
        calunc.CalibratedLM(tmp_path / "run", readout="sequence").judge("what is it", "a")


@pytest.mark.parametrize("argv, said", [
    ("--sampels 3", "--sampels; did you mean '--samples'?"), ("ask banner of Fibre", "of Fibre; "),
    ("prdict", "prdict"), ("--kernel zzz", "zzz"), ("--samples many", "many"), ("--zzz", "--zzz"), ("--every 7", "7"),
])  # fmt: skip
def test_usage_errors(argv, said, capsys):
    with pytest.raises(SystemExit) as stop:
        calunc.main(argv.split())
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_weights_that_are_not_numbers(gpt2, call, tmp_path, capsys):
    model = shutil.copytree(gpt2, tmp_path / "nan")
    weights = load_file(model / "model.safetensors")
    weights["transformer.ln_f.weight"].fill_(float("nan"))
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    assert call(tmp_path / "run", model=model) == 2
    assert "are its weights NaN?" in one_sentence(capsys.readouterr()) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_no_memory_is_one_sentence(error, call, tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise error

    monkeypatch.setattr(parallel, "keep", fail)
    assert call(tmp_path / "run") == 2
    assert one_sentence(capsys.readouterr()).startswith("out of memory: try a smaller --sample-batch")


def test_a_longer_reflection_is_measured_against_questions_that_were_sampled_before(copy, call, capsys):
    before = Run(copy).stages()
    assert call(copy, "--reflection", "2000") == 2
    assert "exceed the model's context of 2048" in one_sentence(capsys.readouterr()) and Run(copy).stages() == before


def test_an_adapter_of_another_model(copy, call, tiny, tmp_path, capsys):
    """Each of the size that is noted, so that only the adapter itself can tell."""
    other = tmp_path / "other"
    assert call(other, "--rank", "3", "--steps", "0", model=tiny("llama"), command="train") == 0
    stages = Run(copy).stages()
    for part in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        shutil.copy(other / part, copy / part)
        stages["train"]["files"][part] = (copy / part).stat().st_size
    (copy / "stages.json").write_text(json.dumps(stages))
    assert calunc.main(["ask", "why", "--run", str(copy)]) == 2
    assert f"the adapter in {copy / 'adapter'} does not fit" in one_sentence(capsys.readouterr())


@pytest.mark.parametrize("name, content, message", [
    ("config.json", "{}x", "config.json is damaged"), ("config.json", '{"rank": 1}', "made by another version"),
    ("config.json", '{"format": 6, "no_such_setting": 1}', "config.json is damaged: no_such_setting is 1"),
    ("config.json", "[]", "made by another version"), ("stages.json", "[", "stages.json is damaged"),
    ("stages.json", '{"train": {"key": "x"}}', "stages.json is damaged"),
    ("stages.json", '{"train": {"key": "x", "files": {}}}', "holds no adapter"),
    ("adapter/adapter_config.json", "{", "is not what `train` wrote"), ("platt.json", "", None),
    ("config.json", dict(rank=4), "holds no adapter for its settings"),
    ("config.json", dict(model="gpt2"), "holds no adapter for its settings"),
    ("config.json", dict(rank=None), "is damaged: rank is None"),
    ("config.json", dict(readout="zzz"), "--readout is 'zzz': it must be one of expected, stated"),
])  # fmt: skip
def test_a_run_folder_that_was_damaged(name, content, message, copy, capsys):
    changed = isinstance(content, dict)  # by hand
    (copy / name).write_text(json.dumps(Run(copy).read(name) | content) if changed else content)
    assert calunc.main(["ask", "why", "--run", str(copy)]) == (2 if message else 0)  # what it does not need may be so
    assert message is None or message in one_sentence(capsys.readouterr())


# ---- what can be used runs to the end ---------------------------------------------------------------------------


@pytest.fixture
def usable(tmp_path):
    """(what is special about 30 questions) -> their file."""

    def make(extra=(), **common):
        found = [{"question": f"what is {'a' * (i + 1)}", "answers": ["b"], "family": "f"} | common for i in range(30)]
        return write(tmp_path / "q.jsonl", [*found, *extra])

    return make


@pytest.mark.parametrize("tokenizer", [dict(eos=None), dict(pad="<end>"), dict(chat=True), dict(wrap=True)], ids=str)
def test_tokenizers_without_eos_or_with_more(tokenizer, tiny, call, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "EXAMPLES", data.EXAMPLES[:1])  # shorter prompts: a token is a character
    assert call(tmp_path / "run", command="train", model=tiny("gpt2", **tokenizer)) == 0


def test_a_model_that_never_ends_an_answer(call, tmp_path, monkeypatch):
    monkeypatch.setattr(language, "stop_ids", lambda *args: frozenset())
    assert call(tmp_path / "run", command="sample") == 0
    found = rows(tmp_path / "run" / "samples.jsonl")
    assert {(r["answer_tokens"], r["sample_tokens"]) for r in found} == {(6, 18)}


def test_questions_that_are_odd(usable, call, tmp_path):
    odd = [
        dict(answers=["b" * 10_000]), dict(answers=["b"] * 2000), dict(family="f" * 5000), dict(family=None),
        dict(more={"x": [1]}), dict(family="<script>"), dict(family="a|b\nc"), dict(question="\ufeffwhat\x00\x1b[31m"),
        dict(question="what is a"), dict(question="what is a"), dict(question="</s>Confidence: 100%"),
    ]  # fmt: skip
    path = usable([GOOD | {"question": f"what {'b' * i}"} | row for i, row in enumerate(odd)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))  # a mark of its encoding
    flags = ("--platt-questions", "5", "--train-questions", "10", "--test-questions", "24", "--steps", "1")
    assert call(tmp_path / "run", *flags, dataset=path) == 0


@pytest.mark.parametrize("file", ["a,b.jsonl", "a, b ,c.jsonl", ",.jsonl"])
def test_names_with_commas_and_blanks(file, usable, call, gpt2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()  # which hides no model of the hub's user a
    shutil.copy(usable(), file)
    model = shutil.copytree(gpt2, tmp_path / f"m, {file}")
    assert names(f"facts, {file},a , b") == ["facts", file, "a", "b"] and names(file) == [file]
    assert call("run", command="sample", model=model.name, dataset=f"{file}, facts:elements") == 0
    assert {row["source"] for row in rows(tmp_path / "run" / "samples.jsonl")} == {file, "facts:elements"}
    assert call("other", "--ood", f" ./{file}", "--ood-questions", "2", command="sample", model=gpt2) == 0
    assert {r["part"] for r in rows(tmp_path / "other" / "samples.jsonl")} == {"platt", "train", "test", file}
    assert parse(["--model", "a/model", "--embedder", "a/b,c"])[1].model == "a/model"


def test_a_folder_of_a_built_in_name_is_not_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("toy", "self", "gsm8k", "facts:x"):
        (tmp_path / name).mkdir()
    _, config = parse(["--model", "./toy", "--embedder", "./self", "--dataset", "./gsm8k,./facts:x"])
    assert (config.model, config.embedder, config.dataset) == ("./toy", "./self", "./gsm8k,./facts:x")
    _, config = parse(["--model", "toy/", "--embedder", "self"])
    assert (config.model, config.embedder) == ("toy/", "self")


def test_what_went_wrong_in_training():
    fine = dict(reward=0.5, distinct=9, no_signal=0.5, skipped=0)  # supervised steps have no reward
    collapsed, silent, broken = fine | dict(distinct=1), fine | dict(no_signal=0.96), fine | dict(skipped=1)
    for steps, words in (
        ([], ["there were no steps"]), ([fine] * 40, []), ([fine] * 3 + [silent], []),
        ([fine] * 20 + [collapsed] * 19 + [fine], []),
        ([fine] * 5 + [collapsed] * 20 + [fine] * 5, ["the policy collapsed"]), ([silent] * 3, ["hardly any group"]),
        ([collapsed] * 20 + [silent] * 20, ["the policy collapsed", "hardly any group"]),
        ([fine] * 9 + [broken] * 2, ["2 steps had no finite gradient"]),
        ([dict(skipped=0)] * 30 + [fine] * 3, []), ([dict(skipped=0)] * 3 + [silent] * 3, ["hardly any group"]),
        ([dict(skipped=i) for i in range(6)], ["5 steps had no finite gradient", "it ended early"]),
    ):  # fmt: skip
        found = troubles(steps)
        assert len(found) == len(words) and all(f.startswith(w) for f, w in zip(found, words, strict=True)), steps


@pytest.mark.parametrize("score, right, warning", [  # of question i, and the warning of the fit
    (lambda i: 0.5, lambda i: i % 2, "scores are the same"), (lambda i: i % 2, lambda i: i % 2, "separates the labels"),
    (lambda i: i / 30, lambda i: i % 3 > 0 and i > 9, "positive slope"), (lambda i: i, lambda i: 1, "labels are 1"),
], ids=["constant", "separable", "the wrong way", "all right"])  # fmt: skip
def test_scores_that_teach_little_finish_with_a_warning(
    score, right, warning, usable, call, tmp_path, monkeypatch, capsys
):
    real, number = calunc.sample, {f"what is {'a' * (i + 1)}": i for i in range(30)}

    def sample(config, run, model, prompt, questions):
        cost, found = real(config, run, model, prompt, questions), run.read("samples.jsonl")
        places = [number[row["question"]] for row in found]
        answers = [{"answer": "b" if right(i) else "c"} for i in places]
        run.write("samples.jsonl", [row | changed for row, changed in zip(found, answers, strict=True)])
        monkeypatch.setattr(entropy, "von_neumann", lambda gram: np.array([float(score(i)) for i in places]))
        return cost

    monkeypatch.setattr(calunc, "sample", sample)
    assert call(tmp_path / "run", "--steps", "1", dataset=usable()) == 0
    assert warning in capsys.readouterr().err
    text = (tmp_path / "run" / "report.md").read_text()
    assert warning in text.split("## Warnings")[1] and "nan" not in text.split()

"""What cannot be used gets one sentence, exit code 2, and nothing half-written; what can be used runs to the end."""

import json
import shutil

import pytest
import torch
import transformers
from helpers import one_sentence, write
from safetensors.torch import load_file, save_file

import calunc
import lm as language
from report import troubles
from run import Run
from settings import Config, check

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


@pytest.fixture
def files(tmp_path, gpt2):
    """Models and question files that are wrong in one way each, by name."""
    shutil.copytree(gpt2, tmp_path / "gpt2")
    (tmp_path / "folder").mkdir()
    for name, kept in (("mute", ["config.json", "model.safetensors"]), ("light", ["config.json", "tokenizer.json"])):
        (tmp_path / name).mkdir()
        for part in kept:
            shutil.copy(gpt2 / part, tmp_path / name)
    for name, part, content in (
        ("cut", "model.safetensors", (gpt2 / "model.safetensors").read_bytes()[:-99]),
        ("noise", "model.safetensors", b"\xff" * 999), ("config", "config.json", b"{"),
        ("kind", "config.json", b'{"model_type": "nothing"}'), ("words", "tokenizer.json", b"{"),
    ):  # fmt: skip
        shutil.copytree(gpt2, tmp_path / name)
        (tmp_path / name / part).write_bytes(content)
    weights = load_file(gpt2 / "model.safetensors")
    name = "transformer.ln_f.weight"
    for folder, changed in (("partial", {n: w for n, w in weights.items() if n != name}),
                            ("wide", weights | {name: torch.ones(17)})):  # fmt: skip
        shutil.copytree(gpt2, tmp_path / folder)
        save_file(changed, tmp_path / folder / "model.safetensors", {"format": "pt"})
    known = [GOOD | {"question": "q" * (i + 1), "id": f"q{i}"} for i in range(30)]
    write(tmp_path / "good.jsonl", known)
    for name, line in LINES.items():
        (tmp_path / f"{name}.jsonl").write_bytes((tmp_path / "good.jsonl").read_bytes() + line + b"\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text(" \n\n")
    (tmp_path / "array.jsonl").write_text(json.dumps(known, indent=1))
    write(tmp_path / "two.jsonl", known[:2])
    return tmp_path


def line(name, message):
    return ["--dataset", f"{{tmp}}/{name}.jsonl"], f"{name}.jsonl, line 31: {message}"


def refused(flags, message):
    return flags.split(), message


QUESTION, ANSWERS = "needs a non-empty string `question`", "needs `answers`, a non-empty list of non-empty strings"
WRONG = {  # flags of a run, and what is said
    "no model": refused("--model {tmp}/nowhere", "no model at '{tmp}/nowhere'"),
    "misspelt model": refused("--model {tmp}/gtp2", "did you mean '{tmp}/gpt2'?"),
    "model is a file": refused("--model {tmp}/empty.jsonl", "no model at '{tmp}/empty.jsonl'"),
    "folder without a model": refused("--model {tmp}/folder", "no model at '{tmp}/folder'"),
    "no tokenizer": refused("--model {tmp}/mute", "{tmp}/mute"),
    "no weights": refused("--model {tmp}/light", "{tmp}/light"),
    "weights cut short": refused("--model {tmp}/cut", "{tmp}/cut: "),
    "weights that are none": refused("--model {tmp}/noise", "{tmp}/noise: "),
    "broken configuration": refused("--model {tmp}/config", "no model at '{tmp}/config'"),
    "unknown architecture": refused("--model {tmp}/kind", "no model at '{tmp}/kind'"),
    "broken tokenizer": refused("--model {tmp}/words", "{tmp}/words has no readable tokenizer"),
    "no embedder": refused("--embedder {tmp}/nowhere", "no model at '{tmp}/nowhere'"),
    "misspelt embedder": refused("--embedder {tmp}/gpt", "did you mean '{tmp}/gpt2'?"),
    "no chat template": refused("--prompt chat", "has no chat template: use --prompt fewshot"),
    "empty file": refused("--dataset {tmp}/empty.jsonl", "empty.jsonl holds no questions"),
    "blank file": refused("--dataset {tmp}/blank.jsonl", "blank.jsonl holds no questions"),
    "an array over many lines": refused("--dataset {tmp}/array.jsonl", "array.jsonl, line 1: not JSON"),
    "malformed line": line("malformed", "not JSON"),
    "binary": refused("--dataset {tmp}/binary.jsonl", "binary.jsonl is not UTF-8 text"),
    "not UTF-8": refused("--dataset {tmp}/latin1.jsonl", "latin1.jsonl is not UTF-8 text"),
    "half a character": line("surrogate", "not JSON"),
    "too deep": line("deep", "not JSON"),
    "a huge number": line("huge_number", "not JSON"),
    "two rows in a line": line("two_rows", "not JSON"),
    "a list": line("list", QUESTION),
    "a number": line("number", QUESTION),
    "null": line("null", QUESTION),
    "nan": line("nan", QUESTION),
    "no question": line("no_question", QUESTION),
    "a question that is a number": line("question_7", QUESTION),
    "empty question": line("empty_question", QUESTION),
    "blank question": line("blank_question", QUESTION),
    "no answers": line("no_answers", ANSWERS),
    "answers in a string": line("answers_text", ANSWERS),
    "no answer": line("answers_empty", ANSWERS),
    "empty answer": line("answer_empty", ANSWERS),
    "answers that are numbers": line("answers_7", ANSWERS),
    "duplicate id": line("same_id", "the id 'q0' occurs twice"),
    "the same file twice": refused("--dataset {tmp}/good.jsonl,{tmp}/good.jsonl", "good.jsonl is named twice"),
    "a question beyond the context": refused("--dataset {tmp}/enormous_question.jsonl --train-questions 20",
                                             "question huge: a prompt of"),
    "answers beyond the context": refused("--answer-tokens 5000", "exceed the model's context of 2048"),
    "too few questions": refused("--dataset {tmp}/two.jsonl", "2 questions are too few"),
    "a folder of questions": refused("--dataset {tmp}/folder", "no data set or file called '{tmp}/folder'"),
    "no name": refused("--dataset ,", "no data set or file called ''"),
    "misspelt file": refused("--dataset {tmp}/god.jsonl", "did you mean '{tmp}/good.jsonl'?"),
    "misspelt set": refused("--dataset trivia-qa", "no data set or file called 'trivia-qa'; did you mean 'trivia_qa'?"),
    "misspelt unseen set": refused("--ood gsm8", "no data set or file called 'gsm8'; did you mean 'gsm8k'?"),
    "misspelt family": refused("--dataset facts:capital", "facts has no family 'capital'; did you mean 'capitals'?"),
    "unknown family": refused("--dataset facts:zz", "facts has no family 'zz'; choose from arithmetic, calling_codes"),
    "seen as unseen": refused("--dataset facts --ood facts:elements", "all of its questions are in --dataset too"),
    "nothing to share with": refused("--shard on", "--shard on needs more than one process"),
    "toy chat": refused("--model toy --dataset toy --prompt chat", "the toy model has no chat template"),
    "weights of another shape": refused("--model {tmp}/wide", "{tmp}/wide: "),
    "weights that are missing": refused("--model {tmp}/partial", "{tmp}/partial lacks 1 of its weights, as transf"),
    "toy questions": refused("--dataset toy", "the toy model and the toy questions go together"),
    "misspelt baseline": refused("--baselines p-tru", "no baseline is called 'p-tru'; did you mean 'p-true'?"),
    "unknown baseline": refused("--baselines zz", "no baseline is called 'zz'; choose from stated"),
    "one sample": refused("--samples 1", "--samples is 1: an entropy needs at least 2 samples"),
    "no questions": refused("--test-questions 0", "--test-questions is 0: it must be positive"),
    "no batch": refused("--sample-batch 0", "--sample-batch is 0: it must be positive"),
    "no steps back": refused("--steps -1", "--steps is -1: it must not be negative"),
    "one rollout": refused("--rollouts 1", "--rollouts must be at least 2"),
    "one fold": refused("--folds 1", "--folds and --rollouts must be at least 2"),
    "no learning rate": refused("--lr 0", "--lr is 0.0: it must be positive"),
    "no temperature": refused("--temperature 0", "--temperature is 0.0: it must be positive"),
    "gamma is nan": refused("--gamma nan", "--gamma is nan: it must be a finite number"),
    "infinite divergence": refused("--kl inf", "--kl is inf: it must be a finite number"),
    "a negative seed": refused("--seed -1", "--seed is -1: it must be from 0 to 2^63 - 1"),
    "a seed of 70 bits": refused(f"--seed {2**70}", "it must be from 0 to 2^63 - 1"),
    "tolerance is nan": refused("--tolerance nan", "--tolerance is nan: it must be a finite number"),
    "too much of it": refused("--alpha 2", "--alpha is 2.0: it must be from 0 to 1"),
    "imitated reasoning": refused("--warmup 2 --reasoning 4", "--warmup has no reasoning to imitate"),
    "enumerated reasoning": refused("--gradient exact --reasoning 4", "--gradient exact takes no --reasoning"),
    "expected reasoning": refused("--readout expected --reasoning 4", "--readout expected takes no --reasoning"),
    "stray word": refused("why", "eval takes no question ('why')"),
    "a run to use": refused("--run runs/toy", "eval takes no --run ('runs/toy'); --out names the run folder"),
    "a file to answer": refused("--in x.jsonl", "eval takes no --in ('x.jsonl')"),
    "a run inside a file": refused("--out {tmp}/good.jsonl/run", "Not a directory: '{tmp}/good.jsonl/run'"),
    "a run that is a file": refused("--out {tmp}/good.jsonl", "{tmp}/good.jsonl"),
}


def tree(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("case", WRONG)
def test_a_run_that_cannot_be(case, files, call, capsys):
    flags, message = WRONG[case]
    before = tree(files)
    assert call(files / "runs" / "new", *(flag.replace("{tmp}", str(files)) for flag in flags)) == 2
    assert message.replace("{tmp}", str(files)) in one_sentence(capsys.readouterr())
    assert tree(files) == before


def test_a_misspelt_file_is_no_misspelt_set(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "questions.jsonl", [GOOD])
    assert call(tmp_path / "run", dataset="question.jsonl") == 2
    assert "did you mean './questions.jsonl'?" in one_sentence(capsys.readouterr())  # and not web_questions


@pytest.mark.parametrize("argv, message", [
    (["ask", "--run", "{run}"], "ask needs a question"),
    (["ask", "", "--run", "{run}"], "ask needs a question"),
    (["ask", "why " * 2000, "--run", "{run}"], "exceed the model's context of 2048"),
    (["ask", "why", "--out", "{run}"], "ask takes no --out and no --in; --run names the run folder"),
    (["ask", "why", "--run", "{run}", "--steps", "7"], "no --steps here: the settings are those of the run in"),
    (["ask", "why", "--run", "{run}", "--model", "gpt2"], "no --model here"),
    (["ask", "why", "--run", "{tmp}/xyzzy"], "{tmp}/xyzzy is no run folder; it is what `python calunc.py --out"),
    (["ask", "why", "--run", "{tmp}/foldr"], "foldr is no run folder; did you mean '{tmp}/folder'?"),
    (["predict", "--run", "{run}"], "predict needs --in questions.jsonl and --out answers.jsonl"),
    (["predict", "--in", "{tmp}/two.jsonl", "--run", "{run}"], "predict needs --in"),
    (["predict", "--in", "{tmp}/two.jsonl", "--out", "{tmp}/o", "--run", "{tmp}/none"], "none is no run folder"),
    (["predict", "--in", "{tmp}/none.jsonl", "--out", "{tmp}/o", "--run", "{run}"], "no file {tmp}/none.jsonl"),
    (["predict", "--in", "{tmp}/folder", "--out", "{tmp}/o", "--run", "{run}"], "Is a directory: '{tmp}/folder'"),
    (["predict", "--in", "{tmp}/two.jsonl", "--out", "{tmp}/folder", "--run", "{run}"], "is there already: give --out"),
    (["predict", "--in", "{tmp}/empty.jsonl", "--out", "{tmp}/o", "--run", "{run}"], "holds no questions"),
    (["predict", "--in", "{tmp}/malformed.jsonl", "--out", "{tmp}/o", "--run", "{run}"], "line 31: not JSON"),
    (["predict", "--in", "{tmp}/two.jsonl", "--out", "{tmp}/no/o", "--run", "{run}"], "there is no folder {tmp}/no to"),
    (["predict", "--in", "{tmp}/two.jsonl", "--out", "{tmp}/folder", "--run", "{run}"], "{tmp}/folder"),
])  # fmt: skip
def test_a_question_that_cannot_be_asked(argv, message, files, finished, capsys):
    before = tree(files)
    argv = [a.replace("{tmp}", str(files)).replace("{run}", str(finished)) for a in argv]
    assert calunc.main(argv) == 2
    assert message.replace("{tmp}", str(files)) in one_sentence(capsys.readouterr())
    assert tree(files) == before


def test_a_place_where_predictions_cannot_go_is_found_before_the_work(files, finished, monkeypatch, capsys):
    def never(*args, **kwargs):
        raise AssertionError("the model was asked")

    monkeypatch.setattr(language, "sample", never)
    out = files / "no" / "folder" / "out.jsonl"
    assert calunc.main(["predict", "--in", str(files / "two.jsonl"), "--out", str(out), "--run", str(finished)]) == 2
    assert str(out.parent) in one_sentence(capsys.readouterr())


def test_predict_replaces_no_file(finished, files, capsys):
    """Not even its own input."""
    before = (files / "two.jsonl").read_bytes()
    argv = ["predict", "--in", str(files / "two.jsonl"), "--out", str(files / "two.jsonl"), "--run", str(finished)]
    assert calunc.main(argv) == 2
    assert "two.jsonl is there already: give --out a new name" in one_sentence(capsys.readouterr())
    assert (files / "two.jsonl").read_bytes() == before


def test_a_question_without_quotes(capsys):
    with pytest.raises(SystemExit):
        calunc.main(["ask", "banner", "of", "Fibre"])
    assert "of Fibre; a question of several words stands in quotes" in capsys.readouterr().err


@pytest.mark.parametrize("argv, near", [
    (["prdict"], "predict"), (["evaluate"], "eval"), (["--sampels", "3"], "--samples"),
    (["--kernel", "cosin"], "cosine"), (["--reward", "breir"], "brier"), (["--advantage", "zscor"], "zscore"),
    (["--kernel", "zzz"], None), (["--samples", "many"], None), (["--zzz"], None), (["--every", "7"], None),
])  # fmt: skip
def test_usage_errors(argv, near, capsys):
    with pytest.raises(SystemExit) as stop:
        calunc.main(argv)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert argv[-1] in said or argv[-2] in said
    assert (f"did you mean {near!r}?" in said) if near else ("did you mean" not in said)


def test_weights_that_are_not_numbers_with_an_encoder(gpt2, make_folder, call, tmp_path, capsys):
    """An encoder of its own reads the answers of such a model without complaint."""
    model = tmp_path / "nan"
    shutil.copytree(gpt2, model)
    broken = transformers.AutoModelForCausalLM.from_pretrained(model)
    broken.transformer.ln_f.weight.data.fill_(float("nan"))
    broken.save_pretrained(model)
    assert call(tmp_path / "run", "--embedder", str(make_folder("bert")), model=model) == 2
    assert "gives no finite probability to its own answer" in one_sentence(capsys.readouterr())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_no_memory_is_one_sentence(error, call, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(language, "sample", fail)
    assert call(tmp_path / "run") == 2
    assert one_sentence(capsys.readouterr()).startswith("out of memory: try a smaller --sample-batch")


def test_few_questions_are_said_to_be_few(finished):
    said = "test: 8 questions are few: look at the intervals, not at the numbers."
    assert said in json.loads((finished / "report.json").read_text())["warnings"]


# ---- a run that was tampered with ---------------------------------------------------------------


def test_an_adapter_of_another_model(copy, call, finished, tiny, tmp_path, capsys):
    """Each with its digest, so that only the adapter itself can tell."""
    other, name = tmp_path / "other", "adapter/adapter_model.safetensors"
    assert call(other, "--rank", "3", "--steps", "0", model=tiny("llama"), command="train") == 0
    stages, theirs = (json.loads((run / "stages.json").read_text()) for run in (copy, other))
    for part in (name, "adapter/adapter_config.json"):
        shutil.copy(other / part, copy / part)
        stages["train"]["sha256"][part] = theirs["train"]["sha256"][part]
    (copy / "stages.json").write_text(json.dumps(stages))
    assert calunc.main(["ask", "why", "--run", str(copy)]) == 2
    assert f"the adapter in {copy / 'adapter'} does not fit" in one_sentence(capsys.readouterr())


@pytest.mark.parametrize("name, content, message", [
    ("config.json", "{}x", "config.json"), ("config.json", '{"no_such_setting": 1}', "made by another version"),
    ("config.json", "[]", "made by another version"), ("stages.json", "[", "stages.json"),
    ("stages.json", '{"train": {"key": "x"}}', "holds no trained adapter"),
    ("stages.json", '{"train": {"key": "x", "sha256": {}}}', "holds no trained adapter"),
    ("stages.json", '{"train": {"key": 7}}', "stages.json is damaged"),
    ("adapter/adapter_config.json", "{", "adapter_config.json"),
    ("adapter/adapter_model.safetensors", "", "is not what `train` wrote"),
])  # fmt: skip
def test_a_run_folder_that_was_damaged(name, content, message, copy, capsys):
    (copy / name).write_text(content)
    assert calunc.main(["ask", "why", "--run", str(copy)]) == 2
    assert message in one_sentence(capsys.readouterr())


@pytest.mark.parametrize("name, value, message", [
    ("readout", "zzz", "--readout is 'zzz': it must be one of stated, expected"),
    ("rank", 4, "has an adapter of another model or of other settings"),
    ("answer_tokens", 7, "has an adapter of another model or of other settings"),
    ("model", "gpt2", "has an adapter of another model or of other settings"),
    ("rank", None, "is damaged: rank is None"),
])  # fmt: skip
def test_settings_that_were_changed_by_hand(name, value, message, copy, capsys):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {name: value}))
    assert calunc.main(["ask", "why", "--run", str(copy)]) == 2
    assert message in one_sentence(capsys.readouterr())


def test_a_list_for_settings_is_made_again(copy, call, capsys):
    (copy / "config.json").write_text("[]")
    assert call(copy, "--steps", "2") == 0
    assert "train, eval: done again, with another model or file" in capsys.readouterr().out


def test_a_run_of_several_processes_can_be_asked_by_one(copy, capsys):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"shard": "on"}))
    assert calunc.main(["ask", "why", "--run", str(copy)]) == 0


def test_too_few_questions_for_the_processes(call, tmp_path, monkeypatch, capsys):
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "9"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="--questions is 4, too few a step for 9 processes"):
        check(Config("m", questions=4))


def test_a_model_in_the_folder_above(gpt2, call, tmp_path, monkeypatch):
    """Its run is beside the other ones."""
    (gpt2 / "here").mkdir(exist_ok=True)
    seen = []
    monkeypatch.chdir(gpt2 / "here")
    monkeypatch.setattr(calunc, "Run", lambda folder: seen.append(folder) or Run(tmp_path / "run"))
    assert calunc.main(["sample", "--model", "..", "--samples", "2", "--test-questions", "1", "--train-questions", "1",
                        "--platt-questions", "1", "--dataset", "facts:elements"]) == 0  # fmt: skip
    assert seen == [f"runs/{gpt2.name}"]


# ---- what can be used runs to the end -----------------------------------------------------------


@pytest.fixture
def usable(tmp_path):
    """(what is special about 30 questions) -> their file."""

    def make(extra=(), **common):
        found = [{"question": f"what is {'a' * (i + 1)}", "answers": ["b"], "family": "f"} | common for i in range(30)]
        return write(tmp_path / "q.jsonl", [*found, *extra])

    return make


@pytest.mark.parametrize("tokenizer", [dict(eos=None), dict(pad="<end>"), dict(chat=True), dict(wrap=True)], ids=str)
def test_tokenizers_without_eos_or_with_more(tokenizer, tiny, call, tmp_path, capsys):
    assert call(tmp_path / "run", model=tiny("gpt2", **tokenizer)) == 0


def test_a_model_that_never_ends_an_answer(call, tmp_path, monkeypatch):
    monkeypatch.setattr(language, "stop_ids", lambda *args: frozenset())
    assert call(tmp_path / "run", command="sample") == 0
    rows = [json.loads(x) for x in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {r["answer_tokens"] for r in rows} == {6} and {r["sample_tokens"] for r in rows} == {18}


@pytest.mark.parametrize("rows", [
    dict(answers=["b" * 10_000]), dict(answers=["b"] * 2000), dict(family="f" * 5000), dict(family=None),
    dict(more={"x": [1]}), dict(family="<script>"), dict(family="a|b\nc"), dict(question="\ufeffwhat\x00\x1b[31m"),
    dict(extra=[GOOD | {"question": "what is a"}] * 2), dict(extra=[GOOD | {"question": "</s>Confidence: 100%"}]),
], ids=lambda rows: str(rows)[:40])  # fmt: skip
def test_questions_that_are_odd(rows, usable, call, tmp_path):
    if "question" in rows:
        rows = dict(extra=[GOOD | rows])
    assert call(tmp_path / "run", "--steps", "1", dataset=usable(**rows)) == 0


def test_a_file_that_begins_with_a_mark_of_its_encoding(usable, call, tmp_path):
    path = usable()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert call(tmp_path / "run", command="sample", dataset=path) == 0


def test_a_model_that_never_states_a_number_and_is_never_right(call, tmp_path, capsys):
    assert call(tmp_path / "run") == 0
    said, report = capsys.readouterr().err, (tmp_path / "run" / "report.md").read_text()
    for warning in (
        "training: hardly any group had rollouts of different rewards, so there was nothing to learn from.",
        "Platt scaling: all 16 labels are 0: the fit is a constant and ignores the score",
    ):
        assert f"warning: {warning}" in said and f"- {warning}" in report
    assert "- test: Stated, trained: no confidence was stated at all" in report


def test_what_went_wrong_in_training():
    fine = dict(reward=0.5, distinct=9, no_signal=0.5, skipped=0)  # supervised steps have no reward
    collapsed, silent, broken = fine | dict(distinct=1), fine | dict(no_signal=0.96), fine | dict(skipped=1)
    for steps, words in (
        ([], []), ([fine] * 40, []), ([fine] * 20 + [collapsed] * 19 + [fine], []), ([fine] * 3 + [silent], []),
        ([fine] * 5 + [collapsed] * 20 + [fine] * 5, ["the policy collapsed"]), ([silent] * 3, ["hardly any group"]),
        ([collapsed] * 20 + [silent] * 20, ["the policy collapsed", "hardly any group"]),
        ([fine] * 9 + [broken] * 2, ["2 steps had no finite gradient"]),
        ([dict(skipped=0)] * 30 + [fine] * 3, []), ([dict(skipped=0)] * 3 + [silent] * 3, ["hardly any group"]),
        ([dict(skipped=i) for i in range(6)], ["5 steps had no finite gradient", "it ended early"]),
    ):  # fmt: skip
        found = troubles(steps)
        assert len(found) == len(words) and all(f.startswith(w) for f, w in zip(found, words, strict=True)), steps


SCORES = {  # entropies and whether they are right, and the warning of the fit
    "constant": (lambda i: 0.5, lambda i: i % 2, "scores are the same"),
    "separable": (lambda i: float(i % 2), lambda i: i % 2, "separates the labels"),
    "the wrong way": (lambda i: i / 30, lambda i: int(i % 3 > 0 and i > 9), "positive slope"),
}


@pytest.mark.parametrize("case", SCORES)
def test_scores_that_teach_little_finish_with_a_warning(case, usable, call, tmp_path, monkeypatch, capsys):
    import entropy
    import stages

    score, right, warning = SCORES[case]
    number = {f"what is {'a' * (i + 1)}": i for i in range(30)}
    real = stages.sample

    def sample(config, run, model, prompt, questions):
        real(config, run, model, prompt, questions)
        rows = run.read("samples.jsonl")
        for row in rows:
            row["answer"] = "b" if right(number[row["question"]]) else "c"
        run.write("samples.jsonl", rows)
        order = iter([score(number[row["question"]]) for row in rows])
        monkeypatch.setattr(entropy, "von_neumann", lambda gram: torch.tensor([next(order) for _ in gram]).numpy())

    monkeypatch.setattr(stages, "sample", sample)
    assert call(tmp_path / "run", dataset=usable()) == 0
    assert warning in capsys.readouterr().err
    assert warning in (tmp_path / "run" / "report.md").read_text().split("## Warnings")[1]

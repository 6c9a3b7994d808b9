"""experiments/: the grid is made of flags that exist, and the tables say what the runs said."""

import itertools
import json
import shlex
import shutil
from dataclasses import replace
from operator import itemgetter

import numpy as np
import pytest
import torch
from helpers import ASKED, plain_logits, randomise
from scipy.stats import norm, spearmanr

import eval as ev
import lm
import lora
import platt
import rl
from beyond.readouts import log_odds
from data import Prompt
from experiments import __main__ as main
from experiments import controls, folds, grid, pictures, primary, probes, replication, scores, tables, thoughts
from experiments.grid import TABLES, Table, slug
from infra.cli import parse
from infra.folder import Run, key
from report.tables import METHODS
from settings import Config, check


@pytest.mark.parametrize("name", TABLES)
def test_every_arm_is_a_run_that_could_be_started(name):
    """With the seed that it says; no two arms are the same, and those of a seed share its samples."""
    table = TABLES[name]
    assert set(table.references) <= set(table.arms) and len({slug(arm) for arm in table.arms}) == len(table.arms)
    found = {arm: parse(shlex.split(table.call(arm, 7)))[1] for arm in table.arms}
    assert len({(config, table.programs.get(arm)) for arm, config in found.items()}) == len(table.arms)
    assert {config.seed for config in found.values()} == {7} and set(table.programs) <= set(table.arms)
    for config in found.values():
        check(config)
    assert len({key("sample", config) for arm, config in found.items() if "questions" not in arm}) == 1


def test_holm():
    """By hand; R's p.adjust says the same."""
    p = [0.01, 0.02, 0.03, 0.04, 0.05]
    assert primary.holm(p) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert primary.holm([0.5, 0.004, 0.9, 0.004]) == pytest.approx([1, 0.016, 1, 0.016])


def test_a_primary_comparison_has_the_interval_and_p_of_its_resamples():
    """Of a normal difference: d ~ N(1, s), so that p is that of the z-test; shared questions are drawn for all seeds at
    once, and so their spread is no smaller for having three seeds."""
    rng, p, spread = np.random.default_rng(0), {}, {}
    found = {part: {"rows": {t: {"mean": {"brier": m}} for t, m in (("a", 1.0), ("b", 0.0))}, "n": 9, "accuracy": [1]}
             for part in ("test", "x")}  # fmt: skip
    noise = rng.normal(0, 0.5, 4000)
    draws = {part: {"a": [{"brier": 1 + noise}] * 3, "b": [{"brier": 0 * noise}] * 3} for part in ("test", "x")}
    both = [("a", "b", "test", "brier"), ("b", "a", "unseen", "brier")]
    for row in primary.compare(both, found, draws, ["x"]):
        p[row["where"]], spread[row["where"]] = row["p"], np.ptp(row["interval"])
        assert abs(row["difference"]) == 1 and row["holm"] >= row["p"]
    assert p["unseen"] == pytest.approx(2 * norm.sf(2), rel=0.2) and p["test"] < 0.02
    assert spread["unseen"] == pytest.approx(2 * 1.96 * 0.5, rel=0.06)
    # seeds are drawn with replacement: the mean of 3 draws of 3 has the variance 1 / 3 + (1 - 1 / 3) / 3
    assert spread["test"] == pytest.approx(2 * 1.96 * 0.5 * (5 / 9) ** 0.5, rel=0.1)
    (row,) = primary.compare([("a", "b", "unseen", "auroc")], found, draws, ["x"])  # nothing is wrong
    assert np.isnan(row["difference"]) and row["p"] == row["holm"] == 1


def test_folds_have_test_parts_without_a_question_in_common(tmp_path):
    sizes = {"platt": 2, "train": 7, "test": 3, "unseen": 2}
    rows = [{"part": part, "id": f"{part}{i}"} for part, n in sizes.items() for i in range(n)]
    folders = [tmp_path / str(seed) for seed in (1, 2, 3)]
    for seed, folder in enumerate(folders, 1):
        run, config = Run(folder), Config(seed=seed)
        if seed == 1:
            run.start("sample", config)
            run.write("environment.json", {})
            with run.stage("sample", config):
                run.write("samples.jsonl", rows)
        folds.make(folders[0], folder, config)
        assert run.done("sample", config) and not run.done("sample", Config(seed=seed + 1))
    found = [Run(folder).read("samples.jsonl") for folder in folders]
    assert found[0] == rows
    for of in found:
        assert [row["part"] for row in of] == [row["part"] for row in rows] and of[-2:] == rows[-2:]
        assert {row["id"] for row in of} == {row["id"] for row in rows}
    tested = [row["id"] for of in found for row in of if row["part"] == "test"]
    assert len(set(tested)) == len(tested) == 9


def test_controls_change_the_targets_of_training_alone(tmp_path):
    rng, config = np.random.default_rng(0), Config(folds=4)
    rows = [{"part": part, "target": None if part == "platt" else i / 999, "correct": int(rng.random() < i / 999),
             "entropy": rng.random(), "similarity": rng.random(), "probability": i / 999}
            for i, part in enumerate(["platt"] * 100 + ["train"] * 600 + ["test"] * 300)]  # fmt: skip
    parts = {part: [i for i, row in enumerate(rows) if row["part"] == part] for part in ("platt", "train", "test")}
    (run := Run(tmp_path)).write("targets.jsonl", rows)
    before, seen = [row["target"] for row in rows], []

    def train(config, run, model, prompt):
        seen.append([row["target"] for row in run.read("targets.jsonl")])
        assert run.read("targets.jsonl")[0].keys() == rows[0].keys()
        return 7  # sampled tokens

    for change in (controls.shuffled, controls.teacher):
        assert controls.with_targets(train, change, config, run, None, None) == 7
    assert run.read("targets.jsonl") == rows  # on the disk
    others, better = seen
    assert others[700:] == before[700:] == better[700:]
    own = [others[i] for i in parts["train"]]
    assert sorted(own) == [before[i] for i in parts["train"]] != own
    assert abs(spearmanr(own, [before[i] for i in parts["train"]]).statistic) < 0.15
    truth = [i / 999 for i in parts["train"]]
    assert spearmanr([better[i] for i in parts["train"]], truth).statistic > 0.9  # no target was its feature
    # each target is of a fit that did not see its question: another label changes those of the other folds alone
    flipped = [row | ({"correct": 1 - row["correct"]} if i == 104 else {}) for i, row in enumerate(rows)]
    changed = [row["target"] for row in controls.teacher(flipped, config)]
    moved = {i % 4 for i in parts["train"] if abs(changed[i] - better[i]) > 1e-12}
    assert moved == {1, 2, 3}


def test_the_probe_reads_the_states_before_the_confidence(tiny):
    """Against a plain forward pass over each whole prompt."""
    model = lm.load(tiny("llama"))
    prompt, asked = Prompt(model, "fewshot", ()), (("Why?", "Because"), ("Who was it?", "x"), ("A", "b"))
    rows = [{"question": question, "answer": answer, "thought": ""} for question, answer in asked]
    found = probes.states(model, prompt, rows, Config(sample_batch=2))
    layers = len(model.model.base_model.layers)
    for row, got in zip(rows, found, strict=True):
        ids = torch.tensor([sum(prompt.second_turn(row["question"], row["answer"]), [])])
        every = model.model(ids, output_hidden_states=True).hidden_states
        want = torch.cat([every[layers * part // 6][0, -1] for part in (3, 4)])
        np.testing.assert_allclose(got[: len(want)], want, atol=1e-4)


def test_a_probe_finds_what_is_linear_and_is_never_fitted_on_what_it_judges():
    rng = np.random.default_rng(0)
    hidden, hint = rng.normal(size=(900, 40)), rng.random(900)
    target = np.clip(0.4 + hidden[:, 0] / 10 + (hint - 0.5) / 3, 0, 1)
    parts = ["platt"] * 100 + ["train"] * 500 + ["test"] * 300
    rows = [{"part": p, "probability": h, "target": None if p == "platt" else t}
            for p, h, t in zip(parts, hint, target, strict=True)]  # fmt: skip
    found = probes.columns(rows, hidden)
    near = {name: spearmanr(of, target[600:]).statistic for name, of in found.items()}
    assert near["probe, told"] > 0.98 > near["probe"] + 0.1 and all(len(of) == 300 for of in found.values())
    other = probes.columns([r | ({"target": 0.0} if r["part"] == "test" else {}) for r in rows], hidden)
    np.testing.assert_array_equal(other["probe"], found["probe"])


TINY = Table("Title", "Text.", {"one": "--lr 1", "other": "--lr 2"}, (1, 2), ("other",), resamples=200)


@pytest.fixture
def runs(tmp_path):
    """Two arms on two seeds: `one` says the truth, `other` is too sure, and some of its statements are malformed."""
    root = tmp_path / "runs"
    for seed in TINY.seeds:
        rng = np.random.default_rng(seed)
        truth = rng.random(120)
        correct = (rng.random(120) < truth).astype(int).tolist()
        for arm, said in (("one", truth), ("other", 0.5 + truth / 2)):
            run = Run(root / f"{arm}-{seed}")
            run.start("sample", Config(reward="brier"))
            stated = [None if arm == "other" and i % 10 == 0 else c for i, c in enumerate(said.tolist())]
            run.write("predictions.jsonl", [
                {"part": "test" if i < 100 else "unseen", "id": str(i), "family": "ab"[i % 2], "correct": y,
                 "truth": t, "probability": t, "trained": s, "expected": e, "target": t, "base rate": 0.5,
                 "untrained": 0.7 + 0.3 * t, "alone": 1 - 0.1 * t, "consistency, scaled": t, "p-true, scaled": t}
                for i, (y, t, s, e) in enumerate(zip(correct, truth.tolist(), stated, said.tolist(), strict=True))
            ])  # fmt: skip
            log = [{"reward": 0.5, "mean_confidence": 0.1 * seed, "correlation": i / 40 or None} for i in range(39)]
            log = [*log, {"reward": 0.9, "mean_confidence": None, "correlation": 1.0}] if arm == "one" else []
            run.write("metrics.jsonl", log)
            cost = dict(answer=2, target=22, untrained=8, trained=3 + seed, expected=2, alone=3) | {"p-true": 5}
            run.write("report.json", {"cost": {way: {"tokens": n} for way, n in cost.items()}})
            run.write("stages.json", {"train": {"seconds": 1.5, "tokens": 7, "files": {}}})
            run.write("environment.json", {"cores": 2, "machine": "x", "device": "cpu", "torch": "2"})
        shutil.copytree(run.folder, root / f"samples-{seed}")
        labelled = [row | {"part": "train"} for row in run.read("predictions.jsonl")]
        Run(root / f"samples-{seed}").write("targets.jsonl", labelled)
    return root


def test_the_sequence_probability_with_an_offset_for_each_family():
    """Known offsets come back; what maximises the likelihood has each family's mean target, and an unseen family the
    average offset."""
    rng = np.random.default_rng(0)
    offset = {"a": -2.0, "b": 0.0, "c": 1.0}
    rows = [{"family": f, "probability": p} for f, n in (("a", 3000), ("b", 1000), ("c", 1000)) for p in rng.random(n)]
    truth = platt.sigmoid(np.array([0.8 * log_odds(r["probability"]) + offset[r["family"]] for r in rows]))
    labelled = [row | {"correct": int(y)} for row, y in zip(rows, rng.random(5000) < truth, strict=True)]
    right = sum(row["correct"] for row in labelled)
    found, smooth = probes.with_family(labelled, rows), [1 / (5002 - right), (right + 1) / (right + 2)]
    assert abs(found - truth).max() < 0.05
    for f in offset:
        p, y = zip(*((p, r["correct"]) for p, r in zip(found, labelled, strict=True) if r["family"] == f), strict=True)
        assert np.mean(p) == pytest.approx(np.mean(np.array(smooth)[list(y)]), abs=1e-9)
    (new,) = probes.with_family(labelled, [{"family": "new", "probability": 0.5}])
    assert new == pytest.approx(platt.sigmoid(0.6 * -2.0 + 0.2 * 1.0), abs=0.03)
    alone = [row | {"family": "a"} for row in labelled]
    odds = log_odds([row["probability"] for row in alone])
    one = platt.fit(odds, [row["correct"] for row in alone]).predict(odds)
    np.testing.assert_allclose(probes.with_family(alone, alone), one, atol=1e-6)


def test_probes_have_rows_of_their_own(runs):
    """One that knows the truth is as good as the teacher, which says it here."""
    for run in map(Run, runs.glob("samples-*")):
        rows = [{"part": r["part"], "id": r["id"], "probe": r["truth"]} for r in run.read("predictions.jsonl")]
        run.write("probes.jsonl", rows)
    found, _ = tables.collect(TINY, runs)
    row, teacher = (found["test"]["rows"][title] for title in (tables.PROBES["probe"], METHODS["target"]))
    assert row["seeds"] == teacher["seeds"] and row["tokens"] == 2 and row["agreement"] == {}


def asked(runs, arm, seed):
    return [r for r in Run(runs / f"{arm}-{seed}").read("predictions.jsonl") if r["part"] == "test"]


def change(runs, which, altered):
    for run in map(Run, sorted(runs.glob(which))):
        run.write("predictions.jsonl", [r | altered(r) for r in run.read("predictions.jsonl")])


def test_a_table_from_its_runs(runs):
    found, _ = tables.collect(TINY, runs)
    assert list(found) == ["test", "unseen"] and found["test"]["n"] == 100
    rows = found["test"]["rows"]
    assert {"one, expected", "Teacher: samples, entropy, Platt", "Known probability"} < rows.keys() and len(rows) == 13
    assert rows["other, stated"]["malformed"] == pytest.approx(0.1) and rows["one, stated"]["malformed"] == 0
    assert [row["tokens"] for row in rows.values()] == [4.5, 2, 4.5, 2, 3, 8, 2, 5, 22, 22, 2, 2, 2]  # none is unknown
    near = rows["other, stated"]["agreement"]["target"]  # what bounds a student
    for i, seed in enumerate(TINY.seeds):
        of = map(itemgetter("trained", "correct", "target", "family"), asked(runs, "other", seed))
        said, correct, target, family = zip(*of, strict=True)
        want = ev.metrics(*ev.with_missing(said, correct)[1], family)
        want["spearman"] = spearmanr(ev.with_missing(said, correct)[1][0], target).statistic
        assert rows["other, stated"]["seeds"][i] == pytest.approx({m: want[m] for m in tables.MEASURED})
        apart = [abs(c - p) for c, p in zip(said, target, strict=True) if c is not None]
        assert near["mean_absolute_difference"][i] == pytest.approx(np.mean(apart)) and near["spearman"][i] > 0.999
    teacher = rows["Teacher: samples, entropy, Platt"]["agreement"]["truth"]
    assert teacher["mean_absolute_difference"] == [0, 0] and rows["Base rate"]["agreement"] == {}


def test_every_row_has_its_tokens():
    """Those of the answer, of the answer with its samples, or its own, with what a report has the cost of."""
    own = ("alone", "untrained", "zero-shot", "p-true", "trained", "expected")
    cost = {name: {"tokens": i} for i, name in enumerate(("answer", "target", *own))}
    found = {field: tables.tokens(cost, field) for field in METHODS | tables.PROBES}
    assert found["probability, scaled"] == found["probe"] == found["base rate"] == 0
    assert found["samples, scaled"] == found["all, scaled"] == found["clusters, scaled"] == found["target"] == 1
    assert [found[name] for name in own] == [2, 3, 4, 5, 6, 7] and found["p-true, scaled"] == found["p-true"]


def test_differences_are_paired(runs):
    """Each arm is held against each reference and not against itself; from the other side it has another sign."""
    found = tables.collect(replace(TINY, references=("other", "one")), runs)[0]["test"]
    differences, kinds = found["differences"], ("stated", "expected")
    base, alone = METHODS["untrained"], METHODS["alone"]
    best = "one, expected"
    assert list(differences) == ["other", "one", "teacher", base, best, alone] and len(differences["teacher"]) == 4
    assert list(differences[base]) == ["one, stated", "other, stated"] and list(differences[alone]) == [base]
    for kind in kinds:
        one, other = (found["rows"][f"{arm}, {kind}"]["mean"] for arm in TINY.arms)
        for name, (difference, low, high) in differences["other"][f"one, {kind}"].items():
            assert difference == pytest.approx(one[name] - other[name]) and low <= high
            assert differences["one"][f"other, {kind}"][name] == pytest.approx([-difference, -high, -low])
    assert differences["teacher"]["one, expected"]["brier"] == pytest.approx([0] * 3)  # it says what its teacher says
    mean = [found["rows"][of]["mean"]["brier"] for of in ("Base rate", best)]
    assert differences[best]["Base rate"]["brier"][0] == pytest.approx(mean[0] - mean[1])  # of every baseline
    found = differences["other"]["one, expected"]  # the same order, other confidences
    assert found["auroc"] == pytest.approx([0] * 3) and found["ece"][2] < 0


def test_arms_with_other_questions_are_not_paired_and_other_targets_are_shown(runs):
    change(runs, "one-2", lambda r: {"id": "x" + r["id"]} if r["part"] == "test" else {})
    change(runs, "other-1", lambda r: {"target": 0.5})
    found, _ = tables.collect(TINY, runs)
    assert found["test"]["differences"]["other"] == {} and found["unseen"]["differences"]["other"]
    assert found["test"]["rows"]["Teacher of: other"]["seeds"][0]["auroc"] == pytest.approx(0.5)


def test_reward_and_course_of_training(runs):
    found = tables.generalisation(TINY, runs)
    want = [np.mean([1 - (r["trained"] - r["correct"]) ** 2 for r in asked(runs, "one", s)]) for s in TINY.seeds]
    assert list(found) == ["one"] and found["one"] == pytest.approx([0.7, np.mean(want)])  # of the last two of 40 steps
    found = tables.curves(TINY, runs)
    assert found.keys() == {"one"} and found["one"]["mean_confidence"] == pytest.approx([0.15] * 10)  # None left out
    tenths = [[1, 2, 3], *([4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i in range(1, 9)), [36, 37, 38, 40]]
    assert found["one"]["correlation"] == pytest.approx([np.mean(of) / 40 for of in tenths])


def test_verdicts_medians_and_intervals_over_seeds():
    found = [tables._verdict(*x).split()[-1] for x in (("ece", -2, -3, -1), ("auroc", -2, -3, -1), ("ece", -1, -2, 0))]
    assert found == ["**better**", "worse", "tie"]

    def mean(value):
        return {"mean": dict.fromkeys(tables.SHOWN, value)}

    sets = {"test": {"a": 9, "b": 9}, "x": {"a": 1, "b": 5}, "y": {"a": 3}, "z": {"a": 5, "b": 5}}
    parts = {part: {"rows": {title: mean(value) for title, value in of.items()}, "n": 100, "accuracy": [0.3, 0.05]}
             for part, of in sets.items()}  # fmt: skip
    assert primary.over_unseen(parts) == {"a": dict.fromkeys(primary.UNSEEN, 3.0)}
    assert primary.over_unseen({"test": {}, "x": {}}) == {}
    parts["z"]["accuracy"] = [0.3, 0.04]  # too few right answers for AUROC, but not for the others
    assert [*primary.over_unseen(parts)["a"].values()] == [2, 2, 3, 3]
    # two seeds that disagree by far: an interval over both reaches from one to the other
    a, b = ([{m: np.full(500, value) for m in tables.SHOWN} for value in of] for of in ((0.1, 0.5), (0, 0)))
    assert tables._difference(a, b, mean(0.3), mean(0.0))["ece"] == pytest.approx([0.3, 0.1, 0.5])


@pytest.mark.parametrize("known", [True, False])
def test_what_is_written(runs, tmp_path, known):
    """The report, its page with pictures, and the tables in two documents; also without known probabilities."""
    page, readme, target = (tmp_path / name for name in ("docs/experiments.md", "results/README.md", "results/tiny"))
    target.mkdir(parents=True)
    page.parent.mkdir()
    page.write_text("a <!-- results:tiny -->\nold\n<!-- end --> b <!-- results:other --> c <!-- end -->")
    readme.write_text("<!-- brief:tiny --><!-- end -->")
    change(runs, "*", lambda r: {} if known else {"truth": None})
    tables.write("tiny", TINY, runs, tmp_path / "results")
    report, text = json.loads((target / "report.json").read_text()), (target / "report.md").read_text()
    assert report["seconds"]["one-1"] == report["seconds"]["one-2"] == {"train": 1.5}
    assert set(report["training tokens"].values()) == {7} and "Training took 2 to 2 s a run." in text
    rows, shown = report["parts"]["test"]["rows"], page.read_text()
    assert shown.startswith("a <!--") and shown.endswith("b <!-- results:other --> c <!-- end -->")
    assert "](../results/tiny/report.md)" in shown and "old" not in shown and "](differences.png)" in text
    found = shown.split("| other | ")[1].split(" | ")[0].split(", ")
    row, far = readme.read_text().split("| other | ")[1], report["parts"]["unseen"]["rows"]["other, expected"]["mean"]
    assert row.startswith(", ".join(found)) and f", {far['auroc']:.3f} | 4, 2 |\n" in row
    found.append(text.split("## test")[1].split("| one, stated | ")[1].split(" ± ")[0])
    want = [rows[title]["mean"]["ece"] for title in ("other, stated", "other, expected", "one, stated")]
    assert list(map(float, found)) == pytest.approx(want, abs=1e-3)
    assert " 10.0% | 4.5 |" in text and "| one | `--lr 1` |" in text and "nan" not in text
    assert ("| Known probability |" in text) == ("known probability: Spearman" in text) == known
    assert all((target / name).stat().st_size > 10_000 for name in ("differences.png", "tokens.png"))
    tables.write("tiny", replace(TINY, arms={"one": "--lr 1"}, references=()), runs, tmp_path / "results")
    text = (target / "report.md").read_text()
    to = ("the teacher", *(f"*{METHODS[way]}*" for way in ("untrained", "alone")))
    assert all(text.count(f"Differences to {name},") == 2 for name in to)  # of both sets
    assert text.count("Differences to *one, expected*,") == 1 and text.count("Differences to") == 3 * 2 + 1


def test_a_table_has_the_arms_that_are_finished_for_all_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "done", lambda run, stage, config: run.folder.name != f"other-{config.seed // 2 * 2}")
    assert main.finished(TINY, tmp_path) == ({"one": "--lr 1"}, ["other-2"])


def test_an_interrupted_copy_of_the_samples_is_no_obstacle(tmp_path, monkeypatch):
    calls, folder = [], tmp_path / "one-1"
    monkeypatch.setattr(main, "calunc", lambda *args: calls.append(args))
    (tmp_path / "one-1.tmp").mkdir()
    Run(tmp_path / "samples-1").start("sample", Config())
    for _ in range(2):  # what is there is not copied again
        main.arm(tmp_path / "samples-1", folder, "--lr 1", 1, "")
    assert calls == [(folder, "eval", "--lr 1", 1, "")] * 2 and (folder / "config.json").exists()


def test_what_is_not_in_the_grid_is_refused_before_anything_is_run(monkeypatch, capsys):
    monkeypatch.setattr(main, "calunc", lambda *args: pytest.fail("a run was started"))
    for argv, said in (("--arms exact", "no 'exact' in this table"), ("--seeds 1 6", "no '6' in this table")):
        monkeypatch.setattr("sys.argv", ["experiments", "toy-arms", *argv.split()])
        with pytest.raises(SystemExit, match="2"):
            main.main()
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("program", ["", "experiments.thoughts constant"])
def test_a_run_that_fails_says_why(program, tmp_path):
    with pytest.raises(ValueError, match="run ended with 2: error: unrecognized arguments: --nothing.*run.log"):
        main.calunc(tmp_path / "run", "sample", "--nothing 1", 1, program)


def test_reflections_that_are_not_the_trained_models_own(world):
    """Constant words are part of what is asked; a frozen reflection is the base model's, and the number is not."""
    lm, prompt = world(reflection=3)
    context, turn = thoughts.constant(Prompt.second_turn)(replace(prompt, reflection=0), "banner of Zorva", "red")
    assert lm.decode(turn) == "\nReflection: red red red red\nConfidence:" and lm.decode(context[-1:]) == " red"
    randomise(lora.add_lora(lm, rank=2))
    asked, how = rl.second_turns(lm, prompt, ASKED, Config()), (2, 0.0, range(len(ASKED)))
    with lora.adapter(lm, False):
        base = rl.rollout(lm, prompt, asked, *how)
    found = thoughts.frozen(rl.rollout, lm, prompt, asked, *how)
    for pair, group, of_base in zip(ASKED, found, base, strict=True):
        (context, turn), r = prompt.second_turn(*pair), group[1]
        assert r.forced == of_base[1].reflection + of_base[1].forced and r.reflection == []
        logits = plain_logits(lm, context, turn + r.tokens)[-len(r.number) - 1 : -1]
        assert logits.argmax(-1).tolist() == r.number and sum(r.actions) == len(r.number)  # of the adapter


def test_the_claims_are_those_of_the_table(runs):
    """`one` in the place of the paper's reward, which says the truth, and `other` in that of the Brier reward."""
    table = replace(TINY, arms={grid.PAPER: "", grid.BRIER: ""}, references=(grid.PAPER,))
    for seed, (arm, name) in itertools.product(TINY.seeds, zip(TINY.arms, table.arms, strict=True)):
        shutil.copytree(runs / f"{arm}-{seed}", runs / f"{slug(name)}-{seed}")
    parts, _ = tables.collect(table, runs)
    rows = {title: row["mean"] for title, row in parts["test"]["rows"].items()}
    ours, brier = (rows[f"{name}, stated"] for name in (grid.PAPER, grid.BRIER))
    base, alone = rows[METHODS["untrained"]], rows[METHODS["alone"]]
    claims, words = zip(*replication.claims(parts), strict=True)
    assert claims[0].startswith(" / ".join(f"{r['ece']:.3f}" for r in (ours, brier, base, alone)))
    assert f"entropy - Brier {ours['ece'] - brier['ece']:+.3f} [" in claims[0] and words[0] == "holds"
    assert f"Brier - entropy {brier['auroc'] - ours['auroc']:+.3f} [" in claims[1]
    assert words[1].startswith("Brier ahead: reversed") and words[3] == "holds"  # the malformed ones cost it ranks
    assert claims[3].startswith(f"{ours['spearman']:.2f} / {brier['spearman']:.2f}; ")
    assert f"ECE {base['ece'] - alone['ece']:+.3f} [" in claims[4] and words[4] == "ECE: holds; AUROC: holds"
    assert claims[5].startswith("4 tokens a question instead of 22;") and len(claims) == len(replication.PUBLISHED)
    found = [replication.verdict(d, low) for low in (True, False) for d in ((-1, -2, 0), (-1, -2, -0.1), (1, 0.1, 2))]
    assert found == ["a tie", "holds", "reversed", "a tie", "reversed", "holds"]
    for row in (f"{grid.PAPER}, stated", METHODS["untrained"]):  # a constant, as a collapsed policy is, has no ranks
        parts["test"]["differences"][grid.PAPER][f"{grid.BRIER}, stated"]["spearman"] = [np.nan, -1.0, -0.5]
        parts["test"]["rows"][row]["mean"]["spearman"] = np.nan
    assert list(replication.claims(parts))[3] == (f"n/a / {brier['spearman']:.2f}; n/a", "not defined")


@pytest.fixture(scope="module")
def samples():
    """400 questions whose samples' embeddings agree the more, the likelier the answer is to be right."""
    rng = np.random.default_rng(0)
    truth = rng.random(400)
    right = rng.random((400, 20)) < truth[:, None]
    found = object.__new__(scores.Samples)
    found.embeddings = np.where(right[..., None], np.eye(40)[0], np.eye(40)[rng.integers(1, 40, (400, 20))])
    found.config, found.correct = Config(gamma=16.0), (rng.random(400) < truth).astype(int)
    found.labelled, found.test = np.arange(400) < 200, np.arange(400) >= 200
    found.rows = [
        {"answer": "0", "samples": [str(int(r)) for r in row], "answer_logprob": np.log(p), "answer_tokens": 1,
         "truth": {"x": p, "y": 1 - p}} for p, row in zip(np.clip(truth, 0.01, 0.99), ~right, strict=True)
    ]  # fmt: skip
    found.family, found.embed = np.array(["a", "b"] * 100), lambda texts: np.eye(2)[[int(t == "y") for t in texts]]
    return found


def test_the_plug_in_entropy_is_biased_low_and_the_jackknife_less(samples):
    """And the limit is the entropy of the known distribution: two answers, nearly orthogonal under a narrow kernel."""
    found = scores.counts(samples)
    plug_in, jackknife = ([found[n][kind] for n in scores.COUNTS] for kind in ("plug-in", "jackknife"))
    assert plug_in == sorted(plug_in) and all(j > p for j, p in zip(jackknife, plug_in, strict=True))
    assert jackknife[-1] - jackknife[1] < plug_in[-1] - plug_in[1]
    assert found[20]["of plug-in"]["auroc"] > found[3]["of plug-in"]["auroc"] > 0.6
    p = np.array([list(r["truth"].values()) for r, t in zip(samples.rows, samples.test, strict=True) if t])
    assert scores.limit(samples) == pytest.approx(-(p * np.log(p)).sum(1).mean(), abs=1e-6)


def test_calibrators():
    """Temperature scaling against the definition, by a grid; each calibrator repairs a score that is too sure."""
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, 3000)
    labels = (rng.random(3000) < 1 / (1 + np.exp(-odds / 2.5))).astype(int)
    p = scores.temperature(odds, labels, odds)
    assert np.log(p / (1 - p)) / odds == pytest.approx(1 / 2.5, abs=0.03)
    for calibrate in (scores.temperature, scores.isotonic, scores.newton):
        assert ev.ece(calibrate(odds, labels, odds), labels) < ev.ece(1 / (1 + np.exp(-odds)), labels) / 3


def test_the_pages_and_pictures(monkeypatch, samples):
    drawn, metrics = [], list(pictures.METRICS)
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure))
    monkeypatch.setattr(scores, "Samples", lambda folder, embedder: samples)
    found = {"title": "T", "flags": "--samples 20", "seeds": [1, 2]} | scores.measure(["a", "b"], ["self"])
    text = scores.markdown({"toy": found})
    assert "| 20 | " in text and "| self, cosine |" in text and "| sequence probability, temperature |" in text
    pictures.counts({"toy": found, "other": found | {"limit": None}}, None)
    above, other, auroc = drawn[0].axes[:3]
    assert [len(above.lines), len(other.lines)] == [3, 2]  # with and without the limit
    for i, kind in enumerate(("plug-in", "jackknife")):
        np.testing.assert_allclose(above.lines[i].get_xydata(), [(n, of[kind]) for n, of in found["counts"].items()])
        want = [(n, of[f"of {kind}"]["auroc"]) for n, of in found["counts"].items()]
        np.testing.assert_allclose(auroc.lines[i].get_xydata(), want)
    # of differences: each interval and its middle, beside the name of its arm, hollow where stated
    values, parts = np.random.default_rng(0).normal(size=(2, 2, 2, 3, 3)), {"test": {}, "unseen": {}}
    for p, a, k in np.ndindex(2, 2, 2):
        title = f"{('one, b', 'two')[a]}, {('stated', 'expected')[k]}"
        parts[list(parts)[p]][title] = dict(zip(metrics, values[p, a, k].tolist(), strict=True))
    pictures.differences(parts, "other", None)
    for i, axes in enumerate(drawn[1].axes):
        lines = [line for line in axes.lines[1:] if len(line.get_xdata())]
        intervals, middles, want = lines[::2], lines[1::2], values[..., i, :].reshape(-1, 3)
        np.testing.assert_allclose([line.get_xdata() for line in intervals], want[:, 1:])
        np.testing.assert_allclose([line.get_xdata() for line in middles], want[:, :1])
        assert [line.get_markerfacecolor() == "white" for line in middles] == [True, False] * 4
        assert np.round([line.get_ydata()[0] for line in middles]).tolist() == [0, 0, 1, 1] * 2
    # of tokens: an arm has one colour, a score and its scaled form one marker
    titles = ["one, b, stated", "one, b, expected", "two, stated", "P(True)", "P(True), Platt", "Base rate"]
    pictures.tokens({t: {"tokens": 2 + i, "mean": {"auroc": i / 9, "ece": i / 7}} for i, t in enumerate(titles)}, None)
    for lines, whole in zip((axes.lines[:6] for axes in drawn[2].axes), (9, 7), strict=True):
        assert [(*line.get_xydata()[0],) for line in lines] == [(2 + i, i / whole) for i in range(6)]
        assert [x.get_marker() for x in lines] == list("oooooD") and len({x.get_color() for x in lines}) == 3
        assert [line.get_markerfacecolor() == "white" for line in lines] == [True, False, True, True, False, True]
    assert [text.get_text() for text in drawn[2].legends[0].get_texts()][:3] == ["one, b", "two", "P(True)"]

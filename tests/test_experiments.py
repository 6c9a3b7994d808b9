"""experiments/: the grid is made of flags that exist, and the tables say what the runs said."""

import json
import shlex

import numpy as np
import pytest

import calunc
import eval as ev
from experiments import tables
from experiments.grid import TABLES, Table, slug
from run import Run, check


@pytest.mark.parametrize("name", TABLES)
def test_every_arm_is_a_run_that_could_be_started(name):
    table, seen = TABLES[name], set()
    assert table.reference in table.arms and len({slug(arm) for arm in table.arms}) == len(table.arms)
    for flags in table.arms.values():
        _, config = calunc.parse(shlex.split(f"{table.flags} {flags} --seed 7"))
        check(config)
        seen.add(config)
    assert len(seen) == len(table.arms)  # no two arms are the same


TINY = Table("Title", "Text.", {"one": "--lr 1", "other": "--lr 2"}, (1, 2), "other", resamples=200)


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
            run.folder.mkdir(parents=True)
            stated = [None if arm == "other" and i % 10 == 0 else c for i, c in enumerate(said.tolist())]
            run.write("predictions.jsonl", [
                {"part": "test" if i < 100 else "unseen", "id": str(i), "family": "ab"[i % 2], "correct": y,
                 "truth": t, "trained": s, "expected": e, "target": t, "base rate": 0.5}
                for i, (y, t, s, e) in enumerate(zip(correct, truth.tolist(), stated, said.tolist(), strict=True))
            ])  # fmt: skip
            run.write("report.json", {"cost": {"trained": {"tokens": 3.0 + seed}, "target": {"tokens": 22.0}}})
            run.write("stages.json", {"train": {"seconds": 1.5, "flops": 1}})
            run.write("environment.json", {"cores": 2})
    return root


def part(rows, name):
    return [r for r in rows if r["part"] == name]


def test_a_table_from_its_runs(runs):
    found = tables.collect(TINY, runs)
    assert list(found) == ["test", "unseen"] and found["test"]["n"] == 100
    rows = found["test"]["rows"]
    assert set(rows) == {
        "one, stated", "one, expected", "other, stated", "other, expected",
        "Teacher: samples, entropy, Platt", "Base rate", "Known probability",
    }  # fmt: skip
    assert rows["other, stated"]["malformed"] == 0.1 and rows["one, stated"]["malformed"] == 0
    assert rows["one, stated"]["tokens"] == 4.5 and rows["one, expected"]["tokens"] is None
    for arm in TINY.arms:
        for i, seed in enumerate(TINY.seeds):
            asked = part(Run(runs / f"{arm}-{seed}").read("predictions.jsonl"), "test")
            said = ev.with_missing([r["trained"] for r in asked], [r["correct"] for r in asked])[1]
            want = ev.metrics(*said, [r["family"] for r in asked])
            assert rows[f"{arm}, stated"]["seeds"][i] == {name: want[name] for name in tables.SHOWN}
        mean = np.mean([s["ece"] for s in rows[f"{arm}, stated"]["seeds"]])
        assert rows[f"{arm}, stated"]["mean"]["ece"] == pytest.approx(mean)


def test_differences_are_paired(runs):
    found = tables.collect(TINY, runs)["test"]
    assert list(found["differences"]) == ["one, stated", "one, expected"]
    for kind in ("stated", "expected"):
        one, other = (found["rows"][f"{arm}, {kind}"]["mean"] for arm in TINY.arms)
        for name, (difference, low, high) in found["differences"][f"one, {kind}"].items():
            assert difference == pytest.approx(one[name] - other[name]) and low <= high
    # the same order, so there is no difference in AUROC, in no resample; but the confidences are other ones
    assert found["differences"]["one, expected"]["auroc"] == [0, 0, 0]
    assert found["differences"]["one, expected"]["ece"][2] < 0


def test_intervals_of_several_seeds_hold_the_spread_between_them():
    """Two seeds that disagree by far: an interval over both reaches from one to the other."""
    a = [{name: np.full(500, value) for name in tables.SHOWN} for value in (0.1, 0.5)]
    b = [{name: np.zeros(500) for name in tables.SHOWN}] * 2
    mine, theirs = ({"mean": dict.fromkeys(tables.SHOWN, v)} for v in (0.3, 0.0))
    assert tables._difference(a, b, mine, theirs)["ece"] == [0.3, 0.1, 0.5]


@pytest.mark.parametrize(
    "name, low, high, word",
    [("ece", -0.2, -0.1, "**better**"), ("ece", 0.1, 0.2, "worse"), ("auroc", 0.1, 0.2, "**better**"),
     ("auroc", -0.2, -0.1, "worse"), ("auroc", -0.1, 0.1, "tie"), ("brier", -0.1, 0.0, "tie")],
)  # fmt: skip
def test_verdicts(name, low, high, word):
    assert tables._verdict(name, (low + high) / 2, low, high).endswith(word)


def test_what_is_written(runs, tmp_path):
    tables.write("tiny", TINY, runs, tmp_path / "results")
    report = json.loads((tmp_path / "results/tiny/report.json").read_text())
    assert report["seconds"]["one-1"] == {"train": 1.5} and report["arms"] == TINY.arms
    text = (tmp_path / "results/tiny/report.md").read_text()
    row = report["parts"]["test"]["rows"]["one, stated"]
    assert f"| one, stated | {row['mean']['ece']:.3f} ± " in text
    assert "| other, stated |" in text and " 10.0% | 4.5 |" in text and "`python -m experiments tiny`" in text

"""experiments/: the grid is made of flags that exist, and the tables say what the runs said."""

import json
import re
import shlex
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest

import calunc
import eval as ev
from experiments import __main__ as main
from experiments import pictures, scores, tables
from experiments.grid import TABLES, Table, slug
from run import Run, key
from settings import Config, check


@pytest.mark.parametrize("name", TABLES)
def test_every_arm_is_a_run_that_could_be_started(name):
    table, seen = TABLES[name], set()
    assert set(table.references) <= set(table.arms) and len({slug(arm) for arm in table.arms}) == len(table.arms)
    for flags in table.arms.values():
        _, config = calunc.parse(shlex.split(f"{table.flags} {flags} --seed 7"))
        check(config)
        seen.add(config)
    assert len(seen) == len(table.arms)  # no two arms are the same


def test_the_arms_of_a_seed_share_its_samples():
    for name, table in TABLES.items():
        configs = [calunc.parse(shlex.split(table.call(arm, 1)))[1] for arm in table.arms if "questions" not in arm]
        assert len({key("sample", config) for config in configs}) == 1, name


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
            run.folder.mkdir(parents=True)
            stated = [None if arm == "other" and i % 10 == 0 else c for i, c in enumerate(said.tolist())]
            run.write("predictions.jsonl", [
                {"part": "test" if i < 100 else "unseen", "id": str(i), "family": "ab"[i % 2], "correct": y,
                 "truth": t, "trained": s, "expected": e, "target": t, "base rate": 0.5}
                for i, (y, t, s, e) in enumerate(zip(correct, truth.tolist(), stated, said.tolist(), strict=True))
            ])  # fmt: skip
            log = [{"reward": 0.5, "mean_confidence": 0.1 * seed, "correlation": i / 40 if i else None}
                   for i in range(39)]  # fmt: skip
            log.append({"reward": 0.9, "mean_confidence": None, "correlation": 1.0})
            run.write("metrics.jsonl", log if arm == "one" else [])
            run.write("config.json", asdict(Config(reward="brier")))
            run.write("report.json", {"cost": {"trained": {"tokens": 3.0 + seed}, "target": {"tokens": 22.0}}})
            run.write("stages.json", {"train": {"seconds": 1.5, "flops": 1}})
            run.write("environment.json", {"cores": 2, "machine": "x", "device": "cpu", "torch": "2"})
        shutil.copytree(run.folder, root / f"samples-{seed}")
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
            assert rows[f"{arm}, stated"]["seeds"][i] == {name: want[name] for name in tables.MEASURED}
        mean = np.mean([s["ece"] for s in rows[f"{arm}, stated"]["seeds"]])
        assert rows[f"{arm}, stated"]["mean"]["ece"] == pytest.approx(mean)


def test_differences_are_paired(runs):
    found = tables.collect(TINY, runs)["test"]
    every = [f"{arm}, {kind}" for arm in TINY.arms for kind in ("stated", "expected")]
    assert list(found["differences"]["teacher"]) == every
    assert found["differences"]["teacher"]["one, expected"]["brier"] == [0, 0, 0]  # it says what its teacher says
    found["differences"] = found["differences"]["other"]
    assert list(found["differences"]) == ["one, stated", "one, expected"]
    for kind in ("stated", "expected"):
        one, other = (found["rows"][f"{arm}, {kind}"]["mean"] for arm in TINY.arms)
        for name, (difference, low, high) in found["differences"][f"one, {kind}"].items():
            assert difference == pytest.approx(one[name] - other[name]) and low <= high
    # the same order, so there is no difference in AUROC, in no resample; but the confidences are other ones
    assert found["differences"]["one, expected"]["auroc"] == [0, 0, 0]
    assert found["differences"]["one, expected"]["ece"][2] < 0


def test_two_references(runs):
    """Each arm is held against both, and not against itself; seen from the other side a difference has another sign."""
    found = tables.collect(replace(TINY, references=("other", "one")), runs)["test"]["differences"]
    assert list(found) == ["other", "one", "teacher"] and list(found["one"]) == ["other, stated", "other, expected"]
    for kind in ("stated", "expected"):
        for name, (difference, low, high) in found["other"][f"one, {kind}"].items():
            assert found["one"][f"other, {kind}"][name] == pytest.approx([-difference, -high, -low])


def test_what_bounds_a_student(runs):
    """Its distances to the teacher and to the truth against their definitions, where a statement is there."""
    rows = tables.collect(TINY, runs)["test"]["rows"]
    for i, seed in enumerate(TINY.seeds):
        asked = part(Run(runs / f"other-{seed}").read("predictions.jsonl"), "test")
        said, target = np.array([(r["trained"], r["target"]) for r in asked if r["trained"] is not None]).T
        near = rows["other, stated"]["agreement"]["target"]
        assert near["mean_absolute_difference"][i] == pytest.approx(np.abs(said - target).mean())
        assert near["spearman"][i] == pytest.approx(1)
    teacher = rows["Teacher: samples, entropy, Platt"]["agreement"]
    assert teacher == {"truth": {"mean_absolute_difference": [0, 0], "spearman": pytest.approx([1, 1])}}
    assert rows["Base rate"]["agreement"] == rows["Known probability"]["agreement"] == {}
    murphy = rows["Base rate"]["mean"]
    assert murphy["resolution"] == 0 and murphy["reliability"] + murphy["uncertainty"] == pytest.approx(murphy["brier"])


@pytest.mark.parametrize("known", [True, False])
def test_the_page_of_a_table_with_and_without_known_probabilities(runs, known):
    for arm in TINY.arms:
        for seed in TINY.seeds:
            run = Run(runs / f"{arm}-{seed}")
            rows = run.read("predictions.jsonl")
            run.write("predictions.jsonl", [r if known else r | {"truth": None} for r in rows])
    found = tables.collect(TINY, runs)
    text = tables.markdown("tiny", TINY, found, {"one": [0.9, 0.8]}, {}, ["x"])
    assert ("| Known probability |" in text) == ("known probability: Spearman" in text) == known
    near = found["test"]["rows"]["other, stated"]["agreement"]
    cells = [np.mean(of[m]) for of in near.values() for m in tables.DISTANCES]
    assert len(cells) == (4 if known else 2)
    assert re.search("^" + re.escape("| other, stated | ") + r" ± \S+ \| ".join(f"{c:.3f}" for c in cells), text, re.M)
    murphy = [found["test"]["rows"]["one, stated"]["mean"][m] for m in tables.MURPHY]
    assert "| one, stated | " + " | ".join(f"{m:.3f}" for m in murphy) + " |\n" in text
    assert "nan" not in text and text.count("Differences to *other* with the same readout") == len(found)


def test_arms_that_were_asked_other_questions_are_not_paired(runs):
    run = Run(runs / "one-2")
    rows = run.read("predictions.jsonl")
    run.write("predictions.jsonl", [r | {"id": "x" + r["id"]} if r["part"] == "test" else r for r in rows])
    found = tables.collect(TINY, runs)
    assert found["test"]["differences"]["other"] == {}
    assert len(found["unseen"]["differences"]["other"]) == 2
    assert "one, stated" in found["test"]["rows"]


def test_an_arm_with_targets_of_its_own_shows_its_teacher(runs):
    run = Run(runs / "other-1")
    run.write("predictions.jsonl", [r | {"target": 0.5} for r in run.read("predictions.jsonl")])
    rows = tables.collect(TINY, runs)["test"]["rows"]
    assert rows["Teacher of: other"]["seeds"][0]["auroc"] == 0.5


def test_an_interrupted_copy_of_the_samples_is_no_obstacle(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(main, "calunc", lambda *args: calls.append(args))
    base, folder = tmp_path / "samples-1", tmp_path / "tolerance-0.1-1"
    base.mkdir()
    (base / "samples.jsonl").write_text("whole")
    (tmp_path / "tolerance-0.1-1.tmp").mkdir()
    main.arm(base, folder, "--lr 1", 1)
    assert (folder / "samples.jsonl").read_text() == "whole" and calls == [(folder, "eval", "--lr 1", 1)]
    main.arm(base, folder, "--lr 1", 1)  # and what is there is not copied again
    assert len(calls) == 2 and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    "argv, said",
    [("toy-arms --arms", "no 'exact gradeint' in this table; did you mean 'exact gradient'?"),
     ("toy-arms --seeds 1 6 --arms", "--seeds: no '6' in this table; choose from '1', '2', '3', '4', '5'"),
     ("toy-adapter --arms", "choose from \"calibrated reward (the paper's)\", 'adapter everywhere'"),
     ("scores --arms", "scores takes neither")],
)  # fmt: skip
def test_what_is_not_in_the_grid_is_refused_before_anything_is_run(argv, said, monkeypatch, capsys):
    monkeypatch.setattr(main, "calunc", lambda *args: pytest.fail("a run was started"))
    monkeypatch.setattr("sys.argv", ["experiments", *argv.split(), "exact gradeint"])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_a_run_that_fails_says_why(tmp_path):
    """The last line of its log, which is its error."""
    with pytest.raises(ValueError, match="run ended with 2: error: --samples is 1: .* .*run.log"):
        main.calunc(tmp_path / "run", "sample", "--samples 1", 1)


# ---- scores --------------------------------------------------------------------------------------


SAMPLES = scores.Samples


def stub(n=400, samples=20):
    """Samples whose embeddings agree the more, the likelier the answer is to be right."""
    rng = np.random.default_rng(0)
    truth = rng.random(n)
    right = rng.random((n, samples)) < truth[:, None]
    embeddings = np.where(right[..., None], np.eye(40)[0], np.eye(40)[rng.integers(1, 40, (n, samples))])
    found = object.__new__(SAMPLES)
    found.config, found.embeddings, found.correct = Config(gamma=16.0), embeddings, (rng.random(n) < truth).astype(int)
    found.labelled, found.test = np.arange(n) < n // 2, np.arange(n) >= n // 2
    found.family = np.array(["a", "b"] * (n // 4))
    found.rows = [
        {"answer": "0", "samples": [str(int(r)) for r in row], "answer_logprob": np.log(p), "answer_tokens": 1,
         "truth": {"x": p, "y": 1 - p}} for p, row in zip(np.clip(truth, 0.01, 0.99), ~right, strict=True)
    ]  # fmt: skip
    found.embed = lambda texts: np.eye(2)[[int(t == "y") for t in texts]]
    return found


def test_the_plug_in_entropy_is_biased_low_and_the_jackknife_less():
    found = scores.counts(stub())
    plug_in, jackknife = ([found[n][kind] for n in scores.COUNTS] for kind in ("plug-in", "jackknife"))
    assert plug_in == sorted(plug_in) and all(j > p for j, p in zip(jackknife, plug_in, strict=True))
    assert jackknife[-1] - jackknife[1] < plug_in[-1] - plug_in[1]
    assert found[20]["of plug-in"]["auroc"] > found[3]["of plug-in"]["auroc"] > 0.6


def test_the_limit_is_the_entropy_of_the_known_distribution():
    """Two answers that are nearly orthogonal under a narrow kernel."""
    samples = stub()
    p = np.array([list(r["truth"].values()) for r, t in zip(samples.rows, samples.test, strict=True) if t])
    assert scores.limit(samples) == pytest.approx(-(p * np.log(p)).sum(1).mean(), abs=1e-6)


def test_calibrators():
    """Temperature scaling against the definition, by a grid; each calibrator repairs a score that is too sure."""
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, 3000)
    labels = (rng.random(3000) < 1 / (1 + np.exp(-odds / 2.5))).astype(int)
    p = scores.temperature(odds, labels, odds)
    ratio = np.log(p / (1 - p)) / odds
    assert ratio == pytest.approx(1 / 2.5, abs=0.03) and np.ptp(ratio) < 1e-6
    for calibrate in (scores.temperature, scores.isotonic, scores.newton):
        assert ev.ece(calibrate(odds, labels, odds), labels) < ev.ece(1 / (1 + np.exp(-odds)), labels) / 3


def test_the_page_of_scores(monkeypatch):
    monkeypatch.setattr(scores, "Samples", lambda folder, embedder: stub())
    found = {"toy": {"title": "T", "flags": "--samples 20", "seeds": [1, 2]} | scores.measure(["a", "b"], ["self"])}
    text = scores.markdown(found)
    assert f"| 20 | {found['toy']['counts'][20]['plug-in']:.3f} |" in text and "| self, cosine |" in text
    assert "| sequence probability, temperature |" in text and f"is {found['toy']['limit']:.3f} nats" in text


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


def test_reward_in_training_and_on_new_questions(runs):
    found = tables.generalisation(TINY, runs)
    asked = [part(Run(runs / f"one-{s}").read("predictions.jsonl"), "test") for s in TINY.seeds]
    want = [np.mean([1 - (r["trained"] - r["correct"]) ** 2 for r in of]) for of in asked]
    assert list(found) == ["one"] and found["one"] == pytest.approx([0.7, np.mean(want)])  # of the last two of 40 steps


def test_the_course_of_training(runs):
    found = tables.curves(TINY, runs)
    assert list(found) == ["one"]
    assert found["one"]["reward"] == pytest.approx([0.5] * 9 + [0.6])
    assert found["one"]["mean_confidence"] == pytest.approx([0.15] * 10)  # what was not defined does not count
    tenths = [[1, 2, 3], *([4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i in range(1, 9)), [36, 37, 38, 40]]
    assert found["one"]["correlation"] == pytest.approx([np.mean(of) / 40 for of in tenths])


def test_the_median_of_several_unseen_sets():
    def part(**ece):
        return {"rows": {title: {"mean": dict.fromkeys(tables.SHOWN, value)} for title, value in ece.items()}}

    sets = {"test": part(a=9, b=9), "x": part(a=1, b=5), "y": part(a=3), "z": part(a=2, b=5)}
    assert tables._medians(sets) == {"a": dict.fromkeys(tables.SHOWN, 2.0)}
    assert tables._medians(dict(list(sets.items())[:2])) == tables._medians({"test": part(a=1)}) == {}


def test_what_is_written(runs, tmp_path):
    blocks = "<!-- results:tiny -->\nold\n<!-- end --> b <!-- results:other --> c <!-- end -->"
    (tmp_path / "README.md").write_text(f"a {blocks}")
    tables.write("tiny", TINY, runs, tmp_path / "results")
    report = json.loads((tmp_path / "results/tiny/report.json").read_text())
    assert report["seconds"]["one-1"] == {"train": 1.5} and report["arms"] == TINY.arms
    readme = (tmp_path / "README.md").read_text()
    means = [report["parts"]["test"]["rows"][f"other, {kind}"]["mean"]["ece"] for kind in ("stated", "expected")]
    assert f"| other | {means[0]:.3f}, {means[1]:.3f} | " in readme and "old" not in readme
    assert readme.startswith("a <!--") and readme.endswith("b <!-- results:other --> c <!-- end -->")
    text = (tmp_path / "results/tiny/report.md").read_text()
    row = report["parts"]["test"]["rows"]["one, stated"]
    assert f"| one, stated | {row['mean']['ece']:.3f} ± " in text
    assert "| other, stated |" in text and " 10.0% | 4.5 |" in text and "| one | `--lr 1` |" in text
    assert "`python -m experiments tiny`, seeds 1, 2." in text and "Training took 2 to 2 s a run." in text
    assert "](differences.png)" in text and (tmp_path / "results/tiny/differences.png").stat().st_size > 10_000


def test_what_an_interrupted_run_took_is_not_known(runs, tmp_path):
    """The seconds and operations of its last call are not those of the stage."""
    (tmp_path / "README.md").touch()
    Run(runs / "one-1").write("stages.json", {"train": {"seconds": 0.5, "flops": 1, "resumed": True}})
    tables.write("tiny", TINY, runs, tmp_path / "results")
    report = json.loads((tmp_path / "results/tiny/report.json").read_text())
    assert report["seconds"]["one-1"] == {} and report["seconds"]["one-2"] == {"train": 1.5}
    assert "one-1" not in report["training flops"] and "one-2" in report["training flops"]
    assert "took 2 to 2 s" in (tmp_path / "results/tiny/report.md").read_text()
    for run in map(Run, runs.iterdir()):
        run.write("stages.json", {"train": {"seconds": 0.5, "flops": 1, "resumed": True}})
    tables.write("tiny", TINY, runs, tmp_path / "results")
    assert "took unknown seconds" in (tmp_path / "results/tiny/report.md").read_text()


def test_a_table_of_one_arm_is_compared_with_its_teacher(runs, tmp_path):
    (tmp_path / "README.md").touch()
    tables.write("tiny", replace(TINY, arms={"one": "--lr 1"}, references=()), runs, tmp_path / "results")
    report = json.loads((tmp_path / "results/tiny/report.json").read_text())
    assert list(report["parts"]["test"]["differences"]) == ["teacher"]
    assert (tmp_path / "results/tiny/differences.png").exists()


def drawn(monkeypatch):
    """The figures that are saved from now on."""
    figures = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: figures.append(figure))
    return figures


def test_the_picture_of_differences(monkeypatch):
    """Each interval and its middle is in the panel of its metric, hollow where stated, and no two at one height."""
    found, values = drawn(monkeypatch), np.random.default_rng(0).normal(size=(2, 2, 2, 3, 3))
    parts = {
        part: {f"{arm}, {kind}": {m: values[p, a, k, i].tolist() for i, m in enumerate(pictures.METRICS)}
               for a, arm in enumerate(("one, b", "two")) for k, kind in enumerate(("stated", "expected"))}
        for p, part in enumerate(("test", "unseen"))
    }  # fmt: skip
    pictures.differences(parts, "other", None)
    assert "Difference to: other." in found[0].get_suptitle()
    titles = [axes.get_title() for axes in found[0].axes]
    assert titles == ["ECE: left is better", "Brier score: left is better", "AUROC: right is better"]
    for i, axes in enumerate(found[0].axes):
        lines = [line for line in axes.lines[1:] if len(line.get_xdata())]
        intervals, middles = lines[::2], lines[1::2]
        want = values[..., i, :].reshape(-1, 3)
        assert np.allclose([line.get_xdata() for line in intervals], want[:, 1:])
        assert np.allclose([line.get_xdata() for line in middles], want[:, :1])
        assert [line.get_markerfacecolor() == "white" for line in middles] == [True, False] * 4
        heights = [line.get_ydata()[0] for line in middles]
        assert len(set(heights)) == 8 and heights == [line.get_ydata()[0] for line in intervals]
        assert np.round(heights).tolist() == [0, 0, 1, 1] * 2  # beside the name of its arm
    assert [label.get_text() for label in found[0].axes[0].get_yticklabels()] == ["one, b", "two"]


def test_the_picture_of_samples(monkeypatch):
    found, counts = drawn(monkeypatch), scores.counts(stub())
    pictures.counts({"toy": {"title": "T", "seeds": [1, 2], "limit": 0.5, "counts": counts}}, None)
    pictures.counts({name: {"title": "T", "seeds": [0], "limit": None, "counts": counts} for name in "ab"}, None)
    assert [axes.get_title() for axes in found[1].axes[:2]] == ["T\none seed"] * 2 and len(found[1].axes[0].lines) == 2
    above, *below = found[0].axes
    for i, kind in enumerate(("plug-in", "jackknife")):
        assert above.lines[i].get_xydata().tolist() == [[n, row[kind]] for n, row in counts.items()]
        for axes, metric in zip(below, ("auroc", "ece"), strict=True):
            want = [[n, row[f"of {kind}"][metric]] for n, row in counts.items()]
            assert axes.lines[i].get_xydata().tolist() == want
    assert above.lines[2].get_ydata()[0] == 0.5

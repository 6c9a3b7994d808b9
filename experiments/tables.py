"""What the runs of a table say: metrics of each arm over the seeds, and paired differences with intervals.

    d_s = metric of one arm - metric of the other, on the same questions of seed s
    mean over s of d_s, with the 2.5% and 97.5% quantiles of a bootstrap that draws seeds, and questions within each

A difference whose interval has 0 in it is a tie. What was malformed counts as worst. The fewer the seeds, the more the
intervals are too narrow; with one seed they hold for these adapters alone, and say nothing about training again.

What bounds a student is shown beside it: its distance to its teacher, that of both to the known probability where there
is one, and Murphy's terms of the Brier score.
"""

import re

import numpy as np

from beyond import rewards
from eval import interval, metrics, resampled, spearman, with_missing
from experiments import pictures, primary, probes
from experiments.grid import slug
from infra.files import LABELLED
from infra.folder import Run
from report.build import agreement, rl_steps
from report.tables import METHODS, lines, number
from rl import Item

SHOWN = {"ece": "ECE", "brier": "Brier", "auroc": "AUROC", "auroc_within": "AUROC within", "ece_within": "ECE within",
         "spearman": "Spearman to the target"}  # fmt: skip
MURPHY = ("brier", "reliability", "resolution", "uncertainty")
MEASURED = dict.fromkeys([*SHOWN, *MURPHY])  # each once
CURVES = {"reward": "reward", "mean_confidence": "mean confidence", "correlation": "correlation with the target"}
DISTANCES = {"mean_absolute_difference": "mean absolute difference", "spearman": "Spearman"}
CEILINGS = {"target": "teacher", "truth": "known probability"}
TRAINED = {"trained": "stated", "expected": "expected"}
BEFORE = ("sample", "calibrate")  # the stages that the arms of a seed share
PROBES = {"probe": "Probe of the hidden state", "probe, told": "Probe of state and sequence probability",
          "family, told": "Sequence probability and family, Platt"}  # fmt: skip
LOW_IS_GOOD = {"ece", "brier", "ece_within"}
COSTS = {  # like the samples, or like the answer alone; all others are in the report of the run
    **dict.fromkeys(("consistency", "clusters", "samples", "all"), "target"),
    **dict.fromkeys(("probability", "base rate", "family prior", "truth", *PROBES), "answer"),
}


def collect(table, root):
    """-> {part: {"n", "rows": {name: ...}, "differences": {to: ...}}}, all that the documents say, as JSON values; and
    the table's primary comparisons."""
    runs = {arm: {s: Run(root / f"{slug(arm)}-{s}") for s in table.seeds} for arm in table.arms}
    rows = {arm: {s: run.read("predictions.jsonl") for s, run in of.items()} for arm, of in runs.items()}
    cost = {arm: [run.read("report.json")["cost"] for run in of.values()] for arm, of in runs.items()}
    first, seed = next(iter(table.arms)), table.seeds[0]
    for s, of in rows[first].items():
        sampled = Run(root / f"samples-{s}")
        labelled = [row for row in sampled.read("targets.jsonl") if row["part"] in LABELLED]
        rows[first][s] = [row | {"family, told": float(p)}
                          for row, p in zip(of, probes.with_family(labelled, of), strict=True)]  # fmt: skip
        if sampled.path("probes.jsonl").exists():
            rows[first][s] = [a | b for a, b in zip(rows[first][s], sampled.read("probes.jsonl"), strict=True)]
    methods = {(arm, field): f"{arm}, {kind}" for arm in table.arms for field, kind in TRAINED.items()}
    methods |= {(first, field): title for field, title in (METHODS | PROBES).items() if field not in TRAINED}
    for arm in table.arms:
        if [r["target"] for r in rows[arm][seed]] != [r["target"] for r in rows[first][seed]]:
            methods[arm, "target"] = f"Teacher of: {arm}"
    found, every, shared = {}, {}, []
    for part in dict.fromkeys(r["part"] for r in rows[first][table.seeds[0]]):
        values, draws = {}, every.setdefault(part, {})
        asked = {arm: [[r for r in of if r["part"] == part] for of in rows[arm].values()] for arm in table.arms}
        ids = {arm: [[r["id"] for r in e] for e in each] for arm, each in asked.items()}  # other ones are not paired
        shared += [part] * all(i == ids[first][0] for i in ids[first])
        agreements = {arm: [agreement(e) for e in each] for arm, each in asked.items()}
        for (arm, field), title in methods.items():
            each = asked[arm]
            if field not in each[0][0] or field == "truth" and each[0][0]["truth"] is None:
                continue
            scored = [(*_worst(e, field), [r["family"] for r in e]) for e in each]
            target = [np.array([r["target"] for r in e]) for e in each]
            got = [metrics(*x) | {"spearman": spearman(x[0], t)} for x, t in zip(scored, target, strict=True)]
            values[title] = {
                "malformed": float(np.mean([[r[field] is None for r in e] for e in each])),
                "tokens": float(np.mean([tokens(c, field) for c in cost[arm]])),
                "seeds": [{name: g[name] for name in MEASURED} for g in got],
                "mean": {name: float(np.mean([g[name] for g in got])) for name in MEASURED},
                "agreement": _distances(agreements[arm], field),
            }
            draws[title] = [resampled(*x, table.resamples, 0) | {"spearman": _ranked(x[0], t)}
                            for x, t in zip(scored, target, strict=True)]  # fmt: skip
        trained = [(arm, kind) for arm in table.arms for kind in TRAINED.values()]
        pairs = {
            other: [(f"{arm}, {kind}", f"{other}, {kind}") for arm, kind in trained
                    if arm != other and ids[arm] == ids[other]]
            for other in table.references
        }  # fmt: skip
        pairs["teacher"] = [(f"{arm}, {kind}", methods.get((arm, "target"), METHODS["target"])) for arm, kind in trained
                            if (arm, "target") in methods or ids[arm] == ids[first]]  # fmt: skip
        pairs[METHODS["untrained"]] = [(f"{arm}, stated", METHODS["untrained"]) for arm in table.arms
                                       if ids[arm] == ids[first]]  # fmt: skip
        pairs[f"{first}, expected"] = [(title, f"{first}, expected") for (arm, field), title in methods.items()
                                       if arm == first and field not in TRAINED and part == "test"]  # fmt: skip
        pairs[METHODS["alone"]] = [(METHODS["untrained"], METHODS["alone"])]
        found[part] = {
            "n": len(asked[first][0]), "accuracy": [float(np.mean([r["correct"] for r in e])) for e in asked[first]],
            "rows": values,
            "differences": {
                to: {one: _difference(draws[one], draws[other], values[one], values[other]) for one, other in of
                     if one in draws and other in draws}
                for to, of in pairs.items()
            },
        }  # fmt: skip
    return found, primary.compare(table.primary, found, every, shared)


def tokens(cost, field):
    """Generated for an answer and one of METHODS, mean of the questions. cost: that of a run's report"""
    method = field.removesuffix(", scaled")
    return cost[COSTS.get(method, method)]["tokens"]


def generalisation(table, root):
    """Reward at the end of training, and what the greedy statements on the test part would earn. -> {arm: [a, b]}

    A large gap is memory: what was learned is the questions' labels, not when the model is right.
    """
    found = {}
    for arm in table.arms:
        pairs = []
        for seed in table.seeds:
            run = Run(root / f"{slug(arm)}-{seed}")
            log, config = rl_steps(run.read("metrics.jsonl")), run.config()
            if not log:
                continue
            score = rewards.chosen(config)
            last = [step["reward"] for step in log[-max(1, len(log) // 20) :]]
            new = [score(r["trained"], Item("", "", r["target"], r["correct"])) for r in run.read("predictions.jsonl")
                   if r["part"] == "test"]  # fmt: skip
            pairs.append((np.mean(last), np.mean(new)))
        if pairs:
            found[arm] = np.mean(pairs, axis=0).tolist()
    return found


def curves(table, root):
    """How training went: each of CURVES in each tenth of the steps, mean over the seeds. -> {arm: {name: [10]}}"""
    found = {}
    for arm in table.arms:
        logs = [rl_steps(Run(root / f"{slug(arm)}-{seed}").read("metrics.jsonl")) for seed in table.seeds]
        if all(len(log) >= 10 for log in logs):
            found[arm] = {
                name: np.mean([[_mean([step[name] for step in tenth]) for tenth in np.array_split(log, 10)]
                               for log in logs], axis=0).tolist()
                for name in CURVES
            }  # fmt: skip
    return found


def _mean(values):
    return np.mean([value for value in values if value is not None] or [np.nan])


def _distances(agreements, field):
    """What the agreements of each seed say of one method. -> {"target": {measure: [of each seed]}, "truth": ...}"""
    names = {other: f"{METHODS.get(field)} v {METHODS[other].lower()}" for other in CEILINGS}  # of a probe, none
    return {
        other: {measure: [a[name][measure] for a in agreements] for measure in DISTANCES}
        for other, name in names.items() if all(name in a for a in agreements)
    }  # fmt: skip


def _ranked(confidence, target, resamples=200):
    """Spearman's correlation with the target in resamples of the questions, the same ones for each method. -> (R,)"""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(target), size=(resamples, len(target)))
    return np.array([spearman(confidence[i], target[i]) for i in drawn])


def _worst(rows, field):
    return with_missing([r[field] for r in rows], [r["correct"] for r in rows])[1]


def _difference(one, other, mine, theirs):
    """-> {metric: [difference, lo, hi]}"""
    rng, found, seeds = np.random.default_rng(0), {}, len(one)
    for name in SHOWN:
        d = np.array([a[name] - b[name] for a, b in zip(one, other, strict=True)])  # (S, R)
        drawn = d[rng.integers(seeds, size=(seeds, d.shape[1])), rng.integers(d.shape[1], size=(seeds, d.shape[1]))]
        found[name] = [mine["mean"][name] - theirs["mean"][name], *interval(drawn.mean(axis=0))]
    return found


def markdown(name, table, found, named, earned, course, machine):
    seeds = ", ".join(map(str, table.seeds))
    out = [f"# {table.title}", "", f"`python -m experiments {name}`, seeds {seeds}. {table.text}", ""]
    out += ["| arm | flags |", "|---|---|"]
    for arm, flags in table.arms.items():
        both = f"{table.flags} {flags}".strip()
        out.append(f"| {arm} | `{both}` |" if both else f"| {arm} | (default) |")
    out += ["", *machine, "", "![Paired differences with intervals](differences.png)", ""]
    out += ["![AUROC and ECE against the tokens of a question](tokens.png)", ""]
    heads = ["reward, mean over the seeds", "end of training", "test, greedy", "gap"]
    out += [*lines(heads, {arm: [number(a), number(b), f"{a - b:+.3f}"] for arm, (a, b) in earned.items()}), ""]
    for measure, title in CURVES.items():
        cells = {arm: [number(value, 2) for value in of[measure]] for arm, of in course.items()}
        out += [*lines([f"{title}, each tenth of training", *map(str, range(1, 11))], cells), ""]
    if named:
        out += ["Named before the runs and corrected for their number; all other differences are exploration:", ""]
        out += [*lines(*_primary(named)), ""]
    unseen = primary.over_unseen(found)
    if unseen:
        out += [f"Over the unseen sets; AUROC over those with at least {primary.FEW} right and wrong answers:", ""]
        out += [*lines(["", *primary.UNSEEN], {t: map(number, of.values()) for t, of in unseen.items()}), ""]
    for part, of in found.items():
        accuracy = ", ".join(f"{a:.2f}" for a in of["accuracy"])
        out += [f"## {part}", "", f"{of['n']} questions; accuracy {accuracy}. Mean over the seeds ± deviation.", ""]
        cells = {
            title: [*(_cell([s[m] for s in row["seeds"]]) for m in SHOWN), f"{row['malformed']:.1%}",
                    number(row["tokens"], 1)] for title, row in of["rows"].items()
        }  # fmt: skip
        out += [*lines(["", *SHOWN.values(), "malformed", "tokens"], cells), ""]
        for caption, *of_ceilings in _ceilings(of["rows"]):
            out += [caption, "", *lines(*of_ceilings), ""]
        shown = [m for m in SHOWN if m != "ece_within"]
        for other, rows in of["differences"].items():
            if not rows:
                continue
            to = "the teacher" if other == "teacher" else f"*{other}*"
            cells = {title: [_verdict(m, *d[m]) for m in shown] for title, d in rows.items()}
            out += [f"Differences to {to}, paired, 95% intervals:", ""]
            out += [*lines(["", *(SHOWN[m] for m in shown)], cells), ""]
    return "\n".join(out)


def _primary(named):
    """The primary comparisons. -> heads, {title: cells}"""
    cells = {
        f"{row['one']} v {row['other']}: {SHOWN[row['metric']]}, {row['where']}": [
            _verdict(row["metric"], row["difference"], *row["interval"]), number(row["p"]), number(row["holm"])]
        for row in named
    }  # fmt: skip
    return ["primary comparison", "difference [95%]", "p", "p, Holm"], cells


def _ceilings(rows):
    """What bounds the rows of a part. -> (caption, heads, {title: cells}) of each table"""
    yield ("Murphy's decomposition, mean over the seeds: Brier score ≈ reliability (low is good) - resolution (high is "
           "good) + uncertainty.", ["", *map(str.capitalize, MURPHY)],
           {title: [number(row["mean"][m]) for m in MURPHY] for title, row in rows.items()})  # fmt: skip
    near = {title: row["agreement"] for title, row in rows.items() if row["agreement"]}
    known = [c for c in CEILINGS if any(c in of for of in near.values())]
    yield ("Distillation error: student v its own teacher. Teacher error: teacher v the known probability.",
           ["", *(f"{CEILINGS[c]}: {measure}" for c in known for measure in DISTANCES.values())],
           {title: [_cell(of[c][m]) if c in of else "" for c in known for m in DISTANCES]
            for title, of in near.items()})  # fmt: skip


def summary(name, table, found):
    """The tables of docs/experiments.md: each arm on the test questions, as it states its confidence and as it expects
    it; and its expected confidence on what was never trained on."""
    test, *unseen = found
    rows = _titles(table, found)

    def shown(first, columns, readouts):
        """columns: {title: (part, metric)}; readouts: which of the rows of an arm."""
        cells = {
            title: [
                ", ".join(f"{found[part]['rows'][one]['mean'][m]:.3f}" for one in of[readouts] or of)
                for part, m in columns.values()
            ] for title, of in rows.items()
        }  # fmt: skip
        return lines([first, *columns], cells)

    head = {SHOWN[m]: (test, m) for m in ("ece", "brier", "auroc", "auroc_within")}
    out = list(shown(f"{test}: stated, expected", head, slice(0, 2)))
    if len(unseen) > len(pictures.PARTS):  # too many for a column each
        far = primary.over_unseen(found)
        of_all = {title: [f"{x:.3f}" for x in far[of[-1]].values()] for title, of in rows.items()}
        out += ["", *lines(["never trained on: expected", *primary.UNSEEN], of_all)]
    elif unseen:
        head = {f"{SHOWN[m]}, {part}": (part, m) for part in unseen for m in ("ece", "auroc")}
        out += ["", *shown("never trained on: expected", head, slice(1, 2))]
    sizes = "; ".join(f"{part}: {of['n']}, {np.mean(of['accuracy']):.2f}" for part, of in found.items())
    return "\n".join([*out, "", f"Questions and accuracy: {sizes}. {_seeds(table)}; `python -m experiments {name}`; "
                      f"intervals, paired differences and settings: [results/{name}](../results/{name}/report.md)."])


def brief(name, table, found):
    """The table of results/README.md: as stated and as expected; of the unseen sets the mean."""
    test, cells = next(iter(found.values()))["rows"], {}
    unseen = {m: [found[part]["rows"] for part in primary.parts_of("unseen", m, found)] for m in ("brier", "auroc")}
    for title, of in _titles(table, found).items():
        far = [[float(np.mean([rows[one]["mean"][m] for rows in of_m])) for one in of] for m, of_m in unseen.items()]
        of_test = [[test[one]["mean"][m] for one in of] for m in ("ece", "brier", "auroc")]
        cells[title] = [", ".join(f"{x:.3f}" for x in values) for values in (*of_test, *far)]
        cells[title].append(", ".join(f"{test[one]['tokens']:.0f}" for one in of))
    heads = ["two numbers: stated, expected", "ECE", "Brier", "AUROC", "Brier, unseen", "AUROC, unseen", "tokens"]
    return "\n".join([*lines(heads, cells), "", f"{_seeds(table)}: [{name}]({name}/report.md)."])


def _titles(table, found):
    """The rows of the short tables. -> {title: titles in a report}: of an arm both readouts, then what one compares"""
    rows = {arm: (f"{arm}, stated", f"{arm}, expected") for arm in table.arms}
    others = ["untrained", "target", "probability, scaled", "all, scaled", *PROBES]
    others = [(METHODS | PROBES)[field] for field in (*others, "base rate", "family prior", "truth")]
    known = [title for title in others if all(title in of["rows"] for of in found.values())]
    return rows | {f"*{title}*": (title,) for title in known}


def _seeds(table):
    return f"Mean of {len(table.seeds)} seeds" if len(table.seeds) > 1 else "One seed"


def _cell(values):
    if np.isnan(values).any():
        return "n/a"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def _verdict(name, difference, low, high):
    """A difference in words: whose interval spans 0 is a tie."""
    if np.isnan(difference):
        return "n/a"
    word = "tie" if low <= 0 <= high else "**better**" if (high < 0) == (name in LOW_IS_GOOD) else "worse"
    return f"{difference:+.3f} [{low:+.3f}, {high:+.3f}] {word}"


def write(name, table, root, results):
    """results/NAME: report.json and report.md, with the settings, the machine, and the seconds of every stage, and two
    pictures; and the tables of this name in docs/experiments.md and, with unseen sets, results/README.md."""
    (found, named), earned, course = collect(table, root), generalisation(table, root), curves(table, root)
    names = [f"samples-{s}" for s in table.seeds] + [f"{slug(arm)}-{s}" for arm in table.arms for s in table.seeds]
    stages = {name: Run(root / name).read("stages.json") for name in sorted(names)}
    machines = {name: Run(root / name).read("environment.json") for name in stages}
    whole = {  # of what was interrupted only the last call is known
        run: {s: of for s, of in each.items() if ("samples" in run) == (s in BEFORE)} for run, each in stages.items()
    }
    seconds = {run: {s: of["seconds"] for s, of in each.items()} for run, each in whole.items()}
    target = results / name
    target.mkdir(parents=True, exist_ok=True)
    Run(target).write("report.json", {
        "flags": table.flags, "arms": table.arms, "seeds": table.seeds, "seconds": seconds,
        "training tokens": {run: each["train"]["tokens"] for run, each in whole.items() if "train" in each},
        "environment": next(iter(machines.values())), "parts": found, "reward": earned, "curves": course,
        "over the unseen": primary.over_unseen(found), "primary": named,
    })  # fmt: skip
    train = [of["train"] for of in seconds.values() if "train" in of]
    each = {}
    for run, e in machines.items():
        each.setdefault(f"{e['cores']} {e['machine']} core(s) ({e['device']}), torch {e['torch']}", []).append(run)
    hardware = [of if len(each) == 1 else f"{of}: {', '.join(runs)}" for of, runs in each.items()]
    machine = [f"{'; '.join(hardware)}. Training took {min(train):.0f} to {max(train):.0f} s a run."]
    Run(target).write("report.md", markdown(name, table, found, named, earned, course, machine))
    other = next(iter(next(iter(found.values()))["differences"]))  # the first reference, or the teacher
    shown = list(found)[: len(found) if len(found) <= len(pictures.PARTS) else 1]
    differences = {part: found[part]["differences"][other] for part in shown}
    pictures.differences(differences, other, target / "differences.png")
    pictures.tokens(next(iter(found.values()))["rows"], target / "tokens.png")
    fill(results.parent / "docs" / "experiments.md", f"results:{name}", summary(name, table, found))
    if len(found) > 1:  # it has columns of unseen sets
        fill(results / "README.md", f"brief:{name}", brief(name, table, found))
    print(f"wrote {target}")


def fill(path, mark, content):
    """Replace the text between `<!-- mark -->` and `<!-- end -->` in a document, if there is such a place."""
    block = f"<!-- {mark} -->\n{content}\n<!-- end -->"
    pattern, text = f"<!-- {re.escape(mark)} -->.*?<!-- end -->", path.read_text(encoding="utf-8")
    path.write_text(re.sub(pattern, lambda _: block, text, flags=re.DOTALL), encoding="utf-8")

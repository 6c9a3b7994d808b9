"""Run a table of experiments from its grid, and write what came out.

    pip install -r requirements-dev.txt
    python -m experiments toy-arms --jobs 2      every arm on five toy worlds
    python -m experiments smollm2-arms           the main arms with a real model and real questions
    python -m experiments scores                 samples, kernels, embedders and calibrators; no training

The last two need the models and questions that scripts/fetch_*.py fetch.

A run that is finished is not made again, so an interrupted table goes on where it was; it has the arms that are
finished for all seeds. Runs are in runs/experiments, results in results/TABLE.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from experiments import folds, tables
from experiments.grid import SCORES, TABLES, slug
from infra.cli import parse
from infra.folder import Run
from report.build import cores

ROOT = Path(__file__).parent.parent


def calunc(folder, command, flags, threads, program=""):
    """One call of the command line. Its output goes to a file beside the run."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, *(["-m", *program.split()] if program else ["calunc.py"])]
    argv += [command, "--out", str(folder), *shlex.split(flags)]
    with folder.with_name(f"{folder.name}.log").open("a") as log:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        code = subprocess.run(argv, cwd=ROOT, env=environment, stdout=log, stderr=log).returncode
    if code:
        last = Path(log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise ValueError(f"{folder.name} ended with {code}: {''.join(last)} ({log.name})")


def arm(base, folder, flags, threads, program):
    """Train and evaluate one arm on the samples of its seed."""
    if not folder.exists():
        temporary = folder.with_name(f"{folder.name}.tmp")
        shutil.copytree(base, temporary, dirs_exist_ok=True)
        temporary.rename(folder)
    calunc(folder, "eval", flags, threads, program)
    print(folder.name, flush=True)


def scores(root, threads):
    """Sample where nothing is there yet, and measure."""
    from experiments.pictures import counts
    from experiments.scores import markdown, measure

    found, target = {}, ROOT / "results" / "scores"
    for name, of in SCORES.items():
        shared = root.parent / name / "samples-{}" if name in TABLES else root / f"{name}-{{}}"
        folders = [Path(str(shared).format(seed)) for seed in of["seeds"]]
        for seed, folder in zip(of["seeds"], folders, strict=True):
            calunc(folder, "sample", f"{of['flags']} --seed {seed}", threads)
        found[name] = of | measure(folders, of["embedders"])
    target.mkdir(parents=True, exist_ok=True)
    Run(target).write("report.json", found)
    Run(target).write("report.md", markdown(found))
    counts(found, target / "counts.png")
    print(f"wrote {target}")


def refuse_unknown(parser, option, given, known):
    """What is not in the grid is an error now, and not after hours of sampling."""
    known = [str(one) for one in known]
    for one in map(str, given or []):
        if one not in known:
            parser.error(f"{option}: no {one!r} in this table; choose from {', '.join(map(repr, known))}")


def finished(table, root):
    """-> the arms with a finished run for every seed, {name: flags}; the folders of the other runs"""
    arms, missing = dict(table.arms), []
    for name in table.arms:
        for seed in table.seeds:
            _, config = parse(shlex.split(table.call(name, seed)))
            run = Run(root / f"{slug(name)}-{seed}")
            if not run.done("eval", config):
                missing.append(run.folder.name)
                arms.pop(name, None)
    return arms, missing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*TABLES, "scores"])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default: 1)")
    parser.add_argument("--seeds", type=int, nargs="*", help="only these (default: all of the grid)")
    parser.add_argument("--arms", nargs="*", help="only these")
    args = parser.parse_args()
    threads = max(1, cores() // args.jobs)
    if args.table == "scores":
        if args.seeds or args.arms:
            parser.error("scores takes neither --seeds nor --arms")
        return scores(ROOT / "runs" / "experiments" / args.table, threads)
    table = TABLES[args.table]
    root = ROOT / "runs" / "experiments" / (table.runs_of or args.table)
    refuse_unknown(parser, "--seeds", args.seeds, table.seeds)
    refuse_unknown(parser, "--arms", args.arms, table.arms)
    seeds = args.seeds or table.seeds
    arms = args.arms or list(table.arms)
    with ThreadPoolExecutor(args.jobs) as pool:
        bases = {seed: root / f"samples-{seed}" for seed in seeds}
        if table.folds:
            first = root / "samples-1"
            calunc(first, "sample", f"{table.flags} --seed 1", cores())
            for seed in table.seeds:
                _, config = parse(shlex.split(f"{table.flags} --seed {seed}"))
                folds.make(first, root / f"samples-{seed}", config)
        made = {s: pool.submit(calunc, b, "calibrate", f"{table.flags} --seed {s}", threads) for s, b in bases.items()}
        for future in made.values():
            future.result()
        runs = []
        for seed in seeds:
            for name in arms:
                folder = root / f"{slug(name)}-{seed}"
                program = table.programs.get(name, "")
                runs.append(pool.submit(arm, bases[seed], folder, table.call(name, seed), threads, program))
        for future in runs:
            future.result()
    arms, missing = finished(table, root)
    if missing:
        print(f"not finished: {', '.join(missing)}")
    if {next(iter(table.arms)), *table.references} <= arms.keys():
        tables.write(args.table, replace(table, arms=arms), root, ROOT / "results")
    else:
        print("no table without its first arm and those that it compares others with")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

"""calunc: teach a language model to say how sure it is.

    python calunc.py                                              the toy world, all stages, a few minutes
    python calunc.py --model M --dataset D --out runs/x           any causal language model, any questions
    python calunc.py ask "What is the capital of Peru?" --run runs/x
    CalibratedLM("runs/x").ask("What is the capital of Peru?")    the same from Python

The pipeline, top to bottom: `sample` answers, `calibrate` their entropy into P(correct), `train` the model to say that
number in one short generation, `eval` what it says. Each stage reads the files of the one before from the run folder
and is skipped when its own are there and were made with the same settings.
"""

import argparse
import contextlib
import gc
import itertools
import os
import re
import shlex
import signal
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

from safetensors import SafetensorError

from calibrated import Answer, CalibratedLM, again, trained_run  # noqa: F401, part of what this module offers
from run import STAGES, Run, first
from settings import TOY, Config, check, nearest, one_spelling, option, processes, usual


class Parser(argparse.ArgumentParser):
    def error(self, message):
        """argparse's message, and the flag, command or choice that was probably meant."""
        choice, flag, word = re.search(
            r"(?:invalid choice: '(.*?)'|unrecognized arguments: (?:(-\S+)|(.*)))?$", message.split(" (")[0]
        ).groups()  # fmt: skip
        near = ""
        if choice:
            near = nearest(choice, [str(name) for action in self._actions for name in action.choices or ()])
        if flag:
            near = nearest(flag, [name for action in self._actions for name in action.option_strings])
        if word:
            near = "a question of several words stands in quotes"
        self.exit(2, f"error: {message}; {near or '--help shows all flags'}\n")


def parse(argv):
    """-> the command and its arguments, with what was `given` of the settings; Config"""
    parser = Parser(
        prog="calunc.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", default="eval", metavar="COMMAND",
                        choices=(*STAGES, "ask", "predict", "merge"),
                        help="sample, calibrate, train or eval: go on up to this stage (default: eval, everything); "
                        "ask: answer one question; predict: answer a file of them; "
                        "merge: write an ordinary model")  # fmt: skip
    parser.add_argument("question", nargs="?", help="the question for `ask`")
    parser.add_argument("--out", help="run folder to write (default: runs/MODEL, or runs/MODEL-SEED); for predict, the "
                        "JSONL file; for merge, the folder of the model")  # fmt: skip
    parser.add_argument("--run", help="run folder that ask, predict and merge use (default: runs/toy)")
    parser.add_argument("--in", dest="input", help="JSONL file with a `question` per line, for `predict`")
    for f in fields(Config):
        default = f"default: {f.default}" + (f"; toy: {TOY[f.name]}" if f.name in TOY else "")
        text = f.metadata["help"].replace("%", "%%") + (f" ({default})" if f.default != "" else "")
        parser.add_argument(option(f.name), type=f.type, default=argparse.SUPPRESS, help=text,
                            choices=f.metadata.get("choices"))  # fmt: skip
    known = [name for action in parser._actions for name in action.option_strings]
    for flag in itertools.takewhile(lambda x: x != "--", argv):  # before argparse takes what follows for a command
        if flag.startswith("--") and not any(name.startswith(flag.partition("=")[0]) for name in known):
            parser.error(f"unrecognized arguments: {flag}")
    # intermixed: flags may stand between the command and the question
    args = parser.parse_intermixed_args(argv)
    args.given = {f.name: getattr(args, f.name) for f in fields(Config) if hasattr(args, f.name)}
    for name in {"model", "embedder", "dataset", "ood"} & args.given.keys():
        args.given[name] = one_spelling(args.given[name])
    return args, Config(**(usual(args.given.get("model", "toy")) | args.given))


def pipeline(args, config):
    """All stages up to the one that was asked for, without those that are done."""
    check(config)
    for name, value in (("question", args.question), ("--run", args.run), ("--in", args.input)):
        if value:
            raise ValueError(f"{args.command} takes no {name} ({value!r}); --out names the run folder")
    of_seed = f"-{config.seed}" if config.seed else ""
    run = Run(args.out or f"runs/{Path(config.model).resolve().name}{of_seed}")
    if run.foreign():
        raise ValueError(f"{run.folder} is there already, and no run folder: name another --out")
    wanted = STAGES[: STAGES.index(args.command) + 1]
    done = list(itertools.takewhile(lambda stage: run.done(stage, config), wanted))
    for stage in done:
        print(f"{stage}: done before with the same settings")
        run.tidy(stage)
    todo = wanted[len(done) :]  # what comes after a stage that is done again is done again too
    changed = changes(run, config, args.given) if todo else []
    if run.stages().keys() & set(todo):
        why = ", ".join(map(option, changed)) or "model or file, or without one"
        print(f"{', '.join(todo)}: done again, with another {why}; this replaces what {run.folder} has of them")
    elif changed:
        print(f"{', '.join(todo)}: begun again, with another {', '.join(map(option, changed))}")
    if todo:
        go_on(run, config, todo)
    elif not run.path("config.json").exists():
        run.write("config.json", asdict(config))
    if config.tensorboard == "on" and "train" in done and not run.path("tensorboard").exists() and first():
        import stages

        board = stages.Board(run)
        for record in run.rows("metrics.jsonl"):
            board.add(record)
        board.close()
    if args.command == "eval":
        import tables

        report = run.read("report.json")
        print("\n" + tables.summary(report) + "\n")
        for warning in report["warnings"] if first() else ():
            print(f"warning: {warning}", file=sys.stderr)
        print(f"Everything is in {run.folder}: report.html (for a browser), report.md, report.json, the pictures")
        print(f'Ask it: python calunc.py ask "..." --run {shlex.quote(str(run.folder))}')


def go_on(run, config, todo):
    """Run these stages, of which the first one finds what it needs in the run folder."""
    import compare  # only here, because torch takes seconds to import and --help should not
    import parallel
    import stages

    parallel.wait()  # until all have seen what is done
    start = time.perf_counter()
    # whatever cannot be loaded is found before anything is written
    questions = stages.load_questions(config) if "sample" in todo else None
    compare.baselines.chosen(config.baselines)
    if config.embedder != "self":
        stages.lm.find(config.embedder)
    model, prompt = stages.load_model(config, run)  # and, in a new run of the toy world, train it
    if questions:
        stages.check_lengths(config, model, prompt, questions)
    gc.collect()
    gc.freeze()  # so that the garbage collector does not look through all of torch again and again
    loading = time.perf_counter() - start
    run.folder.mkdir(parents=True, exist_ok=True)
    run.start(todo[0])
    run.write("config.json", asdict(config))
    run.write("environment.json", compare.report.environment(model.device, model.model.dtype))
    run_stage = {
        "sample": lambda: stages.sample(config, run, model, prompt, questions),
        "calibrate": lambda: stages.calibrate(config, run, model, prompt),
        "train": lambda: stages.train(config, run, model, prompt),
        "eval": lambda: compare.evaluate(config, run, model, prompt),
    }
    for stage in todo:
        run.start(stage)
        resumed = run.resumes(stage, config)
        start = time.perf_counter()
        run_stage[stage]()
        cost = parallel.totals(**model.work.take()) | {"resumed": resumed}
        run.finish(stage, config, loading, time.perf_counter() - start, cost)
        parallel.wait()
        loading = 0.0


def changes(run, config, given):
    """The settings that the run was begun with otherwise. -> names

    Raises ValueError for one that was not given: a forgotten flag must not cost a trained adapter, or half of one.
    """
    old = run.begun_with()
    stage = {f.name: f.metadata["stage"] for f in fields(Config)}
    changed = [name for name, value in asdict(config).items() if stage[name] and old.get(name, value) != value]
    default = usual(old.get("model"))
    forgotten = [f"{option(name)} {shlex.quote(str(old[name]))}" for name in changed
                 if name not in given and old[name] != default[name]]  # fmt: skip
    if forgotten:
        raise ValueError(f"{run.folder} was made with {' '.join(forgotten)}, which this call does not say: give these "
                         "flags the value that you want, or name another --out")  # fmt: skip
    return changed


def ask(args):
    if not args.question:
        raise ValueError('ask needs a question: python calunc.py ask "What is the capital of Peru?" --run runs/x')
    if args.out or args.input:
        raise ValueError("ask takes no --out and no --in; --run names the run folder")
    answer = CalibratedLM(args.run or "runs/toy", **args.given).ask(args.question)
    said = "no confidence stated" if answer.confidence is None else f"confidence {answer.confidence:.0%}"
    print(f"{answer.text}  ({said})")


def writable(args):
    """Where predict and merge write to. Raises ValueError if they cannot."""
    out = Path(args.out)
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to write {out.name} to")
    if out.exists():
        raise ValueError(f"{out} is there already: give --out a new name")
    return out


def predict(args):
    if not args.input or not args.out:
        raise ValueError("predict needs --in questions.jsonl and --out answers.jsonl")
    out = writable(args)
    import data

    asked = [row for _, row in data.read_jsonl(args.input)]
    questions = [row["question"].strip() for row in asked]
    pairs = zip(asked, CalibratedLM(args.run or "runs/toy", **args.given).ask_all(questions), strict=True)
    rows = [row | {"answer": a.text, "confidence": a.confidence} for row, a in pairs]
    Run(out.parent).write(out.name, rows)
    print(f"{len(rows)} answers in {out}")


def merge(args):
    if not args.out:
        raise ValueError("merge needs --out, a new folder for the model; --run names the run folder")
    out = writable(args)
    config, run = trained_run(args.run or "runs/toy", args.given)
    if not run.finished("eval"):
        raise ValueError(f"{run.folder} has no report yet: go on with `{again(run.config(), run)}`")
    import stages

    stages.merge(config, run, out)
    print(f"the merged model is in {out}")


def together(config):
    """With the other processes that torchrun started, if it did."""
    if processes() == 1:
        return contextlib.nullcontext()
    if not first():
        os.environ["TQDM_DISABLE"] = "1"  # which is read on import
    import parallel

    return parallel.joined(config.device)


@contextlib.contextmanager
def heard():
    """Ctrl-C, and once more each second until the call ends: a library may swallow one, as while it is imported."""
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return

    def interrupt(*_):
        signal.setitimer(signal.ITIMER_REAL, 1)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv=None):
    args, config = parse(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with heard():
            if args.command == "ask":
                ask(args)
            elif args.command == "predict":
                predict(args)
            elif args.command == "merge":
                merge(args)
            else:
                with together(config):
                    pipeline(args, config)
    except (ValueError, OSError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not re.search("out of memory|allocate memory", str(error)) and not isinstance(error, MemoryError):
            raise
        print("error: out of memory: try a smaller --sample-batch or --micro-batch, or --recompute on; what is "
              "finished is kept", file=sys.stderr)  # fmt: skip
        return 2
    except KeyboardInterrupt:
        print("stopped: what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130  # as shells have it: 128 + SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())

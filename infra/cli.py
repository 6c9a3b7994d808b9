"""The command line: flags and their help, what a call will do, errors in one sentence."""

import argparse
import functools
import itertools
import os
import re
import shlex
import signal
import sys
from dataclasses import fields
from pathlib import Path

from infra.files import first, names, nearest
from infra.folder import STAGES, Run
from infra.hub import HUB
from settings import PAPER, RECIPES, TOY, Config, check, option, usual

USES = {  # what a command needs and what it may have, beside settings that change no result
    "ask": (("question",), ("fit", "show_reflection")), "predict": (("input", "out"), ("fit", "max_error")),
    "recalibrate": (("labels",), ("fit",)), "merge": (("out",), ()),
}  # fmt: skip
SHOWN = {"question": "question", "run": "--run", "input": "--in", "out": "--out", "labels": "--labels", "fit": "--fit",
         "max_error": "--max-error", "show_reflection": "--show-reflection"}  # fmt: skip
GROUPS = {"sample": "questions and samples", "calibrate": "entropy and Platt scaling", "train": "training",
          "eval": "evaluation", None: "how it runs and what it returns; the trained model is the same"}  # fmt: skip


def parse(argv, about=None):
    """-> the command and its arguments, with what was `given` of the settings; Config"""
    parser = argparse.ArgumentParser("calunc.py", "python calunc.py [COMMAND] [--FLAG VALUE ...]")
    parser.description = about and about.partition("\nFrom infra:")[0]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.error = lambda message: parser.exit(2, f"error: {message}; --help shows all flags\n")
    parser.add_argument("command", nargs="?", default="eval", metavar="COMMAND", choices=(*STAGES, *USES),
                        help="sample, calibrate, train or eval: go on up to this stage (default: eval, everything); "
                        "ask: answer one question; predict: answer a file of them, or judge its answers; "
                        "recalibrate: refit a readout to other questions; merge: write an ordinary model")  # fmt: skip
    parser.add_argument("question", nargs="?", help="the question for `ask`")
    parser.add_argument("--out", help="run folder to write (default: runs/MODEL, or runs/MODEL-SEED); for predict, the "
                        "JSONL file; for merge, the folder of the model")  # fmt: skip
    parser.add_argument("--run", help="run folder that ask, predict, recalibrate and merge use (default: runs/toy)")
    parser.add_argument("--show-reflection", action="store_true", help="ask prints the reflection too")
    parser.add_argument("--recipe", choices=RECIPES, help="many settings at once, which other flags override; paper: "
                        "what the paper states, but for its judge; small: for two CPU cores")  # fmt: skip
    parser.add_argument("--print-settings", action="store_true", help="print every setting that changes a "
                        "result, and who chose it, and exit")  # fmt: skip
    parser.add_argument("--in", dest="input", help="JSONL file with a `question` per line, for `predict`; an `answer` "
                        "beside it is judged, instead of the model's own")  # fmt: skip
    parser.add_argument("--max-error", type=float, metavar="SHARE", help="predict marks with `abstain` the answers not "
                        "to act on, so that at most this share of the others is wrong")  # fmt: skip
    parser.add_argument("--fit", metavar="NAME", help="a refit of the readout to other questions: recalibrate makes "
                        "it (default: named like its --labels), ask and predict use it")  # fmt: skip
    groups = {stage: parser.add_argument_group(title) for stage, title in GROUPS.items()}
    for f in fields(Config):
        values = {"default": f.default, "toy": TOY.get(f.name, ""), "paper": PAPER.get(f.name, "")}
        values = [f"{who}: {value}" for who, value in values.items()
                  if value != "" and (who == "default" or value != f.default)]  # fmt: skip
        text = f.metadata["help"].replace("%", "%%") + (f" ({'; '.join(values)})" if values else "")
        choices = f.metadata["choices"]
        groups[f.metadata["stage"]].add_argument(option(f.name), type=f.type, default=argparse.SUPPRESS, help=text,
            choices=choices, metavar=None if choices else f.type.__name__.upper())  # fmt: skip
    known = list(parser._option_string_actions)
    for flag in [word.partition("=")[0] for word in argv if word.startswith("--")]:
        if not any(name.startswith(flag) for name in known):  # argparse would take what follows for a command
            parser.error(f"unrecognized arguments: {flag}; {nearest(flag, known)}".rstrip("; "))
    # intermixed: flags may stand between the command and the question
    args = parser.parse_intermixed_args(argv)
    args.given = {f.name: getattr(args, f.name) for f in fields(Config) if hasattr(args, f.name)}
    recipe = dict(RECIPES.get(args.recipe, {}))
    if args.given.get("grader", "judge") != "judge":
        recipe.pop("judge", None)  # no other grader takes one
    args.given = recipe | args.given
    for name in {"model", "embedder", "judge", "labels", "dataset", "ood"} & args.given.keys():  # one spelling
        words = names(args.given[name]) if name in ("dataset", "ood") else [args.given[name].strip()]
        args.given[name] = ",".join(map(spelled, words))
    return args, Config(**(usual(args.given.get("model", "toy")) | args.given))


def spelled(word):
    """One spelling of a path that is there; ./toy stays, since toy is the built-in world."""
    path = os.path.normpath(word)
    return path if os.path.exists(word) and path.partition(":")[0] not in ("toy", "self", "facts", *HUB) else word


def check_arguments(args):
    """Raises ValueError for an argument that the command needs and has not, and for one that it does not take."""
    uses = args.command in USES
    must, may = USES.get(args.command, ((), ("out",)))
    for name, shown in SHOWN.items():
        value = getattr(args, name, None)
        if isinstance(value, str) and not value.strip():  # as an unset variable of a shell is
            raise ValueError(f"{shown} is empty")
        there = bool(value) or name == "max_error" and value == 0
        if there and name not in (*must, *may, "run" if uses else "", "labels"):
            given, folder = "" if value is True else f" ({value!r})", "--run" if uses else "--out"
            raise ValueError(f"{args.command} takes no {shown}{given}; {folder} names the run folder")
        if not there and name in must:
            every = " and ".join(SHOWN[name] for name in must).replace("question", "a question")
            raise ValueError(f"{args.command} needs {every}")
    args.run = args.run or ("runs/toy" if uses else None)


def start(about):
    """Read the flags before torch is imported, which takes seconds: --help should not. Ctrl-C ends the call at once."""
    args, _ = parse(sys.argv[1:], about)
    signal.signal(signal.SIGINT, lambda *_: os._exit(_stopped(args.command)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not first():
        os.environ["TQDM_DISABLE"] = "1"  # which is read on import


def _stopped(command):
    kept = "no result was written" if command in USES else "what is finished is kept, and the same command goes on"
    print(f"stopped: {kept}", file=sys.stderr, flush=True)
    return 130  # as shells have it: 128 + SIGINT


def in_one_sentence(main):
    """main(argv) -> exit code; what users and machines do wrong is no traceback."""

    @functools.wraps(main)
    def guarded(argv=None):
        argv = sys.argv[1:] if argv is None else argv
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for stream in (sys.stdout, sys.stderr):  # of a terminal that has no σ
            getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
        try:
            main(argv)
            return 0
        except KeyboardInterrupt:
            return _stopped(parse(argv)[0].command)
        except (ValueError, OSError) as error:
            sentence = str(error)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
                raise
            sentence = "out of memory: try a smaller --sample-batch or --micro-batch, or --recompute on"
        print(f"error: {sentence}", file=sys.stderr)
        return 2

    return guarded


def plan(args, config):
    """The run folder, and the stages that this call has to do; says what is done already, and what will be replaced.

    Raises ValueError where the call cannot be meant.
    """
    check(config)
    of_seed = f"-{config.seed}" if config.seed != Config.seed else ""
    run = Run(args.out or f"runs/{Path(config.model).resolve().name}{of_seed}")
    if run.foreign():
        raise ValueError(f"{run.folder} is there already, and no run folder: name another --out")
    wanted = STAGES[: STAGES.index(args.command) + 1]
    done = list(itertools.takewhile(lambda stage: run.done(stage, config), wanted))
    todo = wanted[len(done) :]  # what comes after a stage that is done again is done again too
    for stage in done:
        print(f"{stage}: done before with the same settings")
        run.tidy(stage)
    changed = run.changed(config, args.given) if todo else []
    if changed or run.stages().keys() & set(todo):
        why = f"with another {', '.join(map(option, changed))}" if changed else "because a model or a file changed"
        print(f"{', '.join(todo)}: done again, {why}; this replaces what {run.folder} has of them")
    if not todo:
        run.keep(config, args.given)
    return run, todo


def show_settings(config):
    """Every setting that changes a result, and who chose it."""
    for f in fields(config) if first() else ():
        value, origin = getattr(config, f.name), "our choice: not stated in the paper"
        if f.name in PAPER:
            origin = "paper" if value == PAPER[f.name] else f"our choice; paper: {PAPER[f.name]}"
        if f.metadata["stage"]:
            print(f"{option(f.name)} {value}  ({origin})")
    if first():
        print(f"LoRA alpha {2 * config.rank}, twice the rank  ({'paper' if config.rank == 16 else 'paper: 32'})")


def goodbye(run, summary, warnings):
    print("\n" + summary + "\n")
    for warning in warnings if first() else ():
        print(f"warning: {warning}", file=sys.stderr)
    print(f"Everything is in {run.folder}: report.html (for a browser), report.md, report.json, the pictures")
    print(f'Ask it: python calunc.py ask "..." --run {shlex.quote(str(run.folder))}')

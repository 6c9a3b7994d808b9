"""The courtesies of the command line: flags and their help, what a call will do, errors in one sentence."""

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

from infra.files import first
from infra.folder import STAGES, Run, changed_settings
from infra.hints import nearest, one_spelling
from settings import TOY, Config, check, option, usual

USES = ("ask", "predict", "merge")
GROUPS = {"sample": "questions and samples", "calibrate": "entropy and Platt scaling", "train": "training",
          "eval": "evaluation", None: "anywhere, without changing a result"}  # fmt: skip


class Parser(argparse.ArgumentParser):
    def error(self, message):
        """argparse's message, and the flag that was probably meant."""
        flags = [name for action in self._actions for name in action.option_strings]
        near = nearest(message.split(": ")[-1].split()[0], flags)
        self.exit(2, f"error: {message}; {near or '--help shows all flags'}\n")


def parse(argv, about=None):
    """-> the command and its arguments, with what was `given` of the settings; Config"""
    parser = Parser(prog="calunc.py", usage="python calunc.py [COMMAND] [--FLAG VALUE ...]", description=about,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("command", nargs="?", default="eval", metavar="COMMAND", choices=(*STAGES, *USES),
                        help="sample, calibrate, train or eval: go on up to this stage (default: eval, everything); "
                        "ask: answer one question; predict: answer a file of them; "
                        "merge: write an ordinary model")  # fmt: skip
    parser.add_argument("question", nargs="?", help="the question for `ask`")
    parser.add_argument("--out", help="run folder to write (default: runs/MODEL, or runs/MODEL-SEED); for predict, the "
                        "JSONL file; for merge, the folder of the model")  # fmt: skip
    parser.add_argument("--run", help="run folder that ask, predict and merge use (default: runs/toy)")
    parser.add_argument("--in", dest="input", help="JSONL file with a `question` per line, for `predict`")
    groups = {stage: parser.add_argument_group(title) for stage, title in GROUPS.items()}
    for f in fields(Config):
        default = f"default: {f.default}" + (f"; toy: {TOY[f.name]}" if f.name in TOY else "")
        text = f.metadata["help"].replace("%", "%%") + (f" ({default})" if f.default != "" else "")
        groups[f.metadata["stage"]].add_argument(
            option(f.name), type=f.type, default=argparse.SUPPRESS, help=text, choices=f.metadata["choices"],
            metavar=None if f.metadata["choices"] else f.type.__name__.upper(),
        )  # fmt: skip
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


def start(about):
    """Read the flags before torch is imported, which takes seconds: --help should not. Ctrl-C ends the call at once."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(_stopped()))
    parse(sys.argv[1:], about)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not first():
        os.environ["TQDM_DISABLE"] = "1"  # which is read on import


def _stopped():
    print("stopped: what is finished is kept, and the same command goes on from there", file=sys.stderr, flush=True)
    return 130  # as shells have it: 128 + SIGINT


def in_one_sentence(main):
    """main(argv) -> exit code; what users and machines do wrong is no traceback."""

    @functools.wraps(main)
    def guarded(argv=None):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            main(sys.argv[1:] if argv is None else argv)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except (MemoryError, RuntimeError) as error:
            if not re.search("out of memory|allocate memory", str(error)) and not isinstance(error, MemoryError):
                raise
            print("error: out of memory: try a smaller --sample-batch or --micro-batch, or --recompute on; what is "
                  "finished is kept", file=sys.stderr)  # fmt: skip
            return 2
        except KeyboardInterrupt:
            return _stopped()
        return 0

    return guarded


def plan(args, config):
    """The run folder, and the stages that this call has to do; says what is done already, and what will be replaced.

    Raises ValueError where the call cannot be meant.
    """
    check(config)
    for name, value in (("question", args.question), ("--run", args.run), ("--in", args.input)):
        if value:
            raise ValueError(f"{args.command} takes no {name} ({value!r}); --out names the run folder")
    of_seed = f"-{config.seed}" if config.seed != Config.seed else ""
    run = Run(args.out or f"runs/{Path(config.model).resolve().name}{of_seed}")
    if run.foreign():
        raise ValueError(f"{run.folder} is there already, and no run folder: name another --out")
    wanted = STAGES[: STAGES.index(args.command) + 1]
    done = list(itertools.takewhile(lambda stage: run.done(stage, config), wanted))
    for stage in done:
        print(f"{stage}: done before with the same settings")
        run.tidy(stage)
    todo = wanted[len(done) :]  # what comes after a stage that is done again is done again too
    changed = changed_settings(run, config, args.given) if todo else []
    if run.stages().keys() & set(todo):
        why = ", ".join(map(option, changed)) or "model or file, or without one"
        print(f"{', '.join(todo)}: done again, with another {why}; this replaces what {run.folder} has of them")
    elif changed:
        print(f"{', '.join(todo)}: begun again, with another {', '.join(map(option, changed))}")
    if not todo and not run.path("config.json").exists():
        run.write_config(config)
    return run, todo


def goodbye(run, summary, warnings):
    print("\n" + summary + "\n")
    for warning in warnings if first() else ():
        print(f"warning: {warning}", file=sys.stderr)
    print(f"Everything is in {run.folder}: report.html (for a browser), report.md, report.json, the pictures")
    print(f'Ask it: python calunc.py ask "..." --run {shlex.quote(str(run.folder))}')

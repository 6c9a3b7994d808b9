"""The report of a run. Here: what a running program needs of it, without the pictures of build.py."""

import os
import platform
from importlib.metadata import version

from infra.loop import PATIENCE

WINDOW = 20  # training steps in a row that must go wrong before there is a warning


def cores():
    """The number of cores that this process may use; only Linux tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def environment(device="cpu"):
    """-> {name: value} of what the numbers were made on"""
    found = {name: version(name) for name in ("torch", "transformers", "numpy", "datasets")}
    return found | {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": cores(),
        "device": str(device),
    }


def rl_steps(log):
    """The log without the supervised steps before RL."""
    return [record for record in log if "reward" in record]


def troubles(log):
    """-> sentences about what went wrong in training: in all steps, or in any WINDOW of them in a row"""
    found, steps, skipped = [], rl_steps(log), sum(record["skipped"] > 0 for record in log)
    if _lasting(record["distinct"] <= 1 for record in steps):
        found.append("the policy collapsed: it stated one confidence for everything.")
    if _lasting(record["no_signal"] >= 0.95 for record in steps):
        found.append("hardly any group had rollouts of different rewards, so there was little to learn from.")
    if skipped:
        found.append(f"{skipped} steps had no finite gradient and were skipped.")
    if log and log[-1]["skipped"] >= PATIENCE:
        found.append("it ended early: no gradient was finite any more.")
    return found


def _lasting(flags):
    marks = "".join("x" if flag else "." for flag in flags)
    return "x" * min(max(len(marks), 1), WINDOW) in marks

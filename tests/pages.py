"""What the tests of the report share: questions, a report of them, its page, and one in which all text is hostile."""

import random

from platt import Platt
from report import build, figures, page
from settings import Config

PLATT = Platt(-2.95, 2.54)
HOSTILE = (
    "</script><script>window.hit = 1</script>",
    '<img src="x" onerror="window.hit = 1">',
    "\"><svg onload='window.hit = 1'>",
    "<!-- <script>",  # after which </script> would not end the data
    "]]> &lt;b&gt; &amp; {{data}} {{script_digest}} \\u003c",
    "a\u2028b\u2029c\x00d\ud800e\u202ef",
    "java`script:${window.hit = 1}",
)


def questions(n, seed=0, words=("banner", "São Tomé", "Zürich", "crown of", "50%", "ЖУК", "نهر")):
    """-> predictions and samples of n held-out questions of two sets, some without a stated confidence"""
    rng, rows, samples = random.Random(seed), [], []
    for i in range(n):
        part, family = ("test", "unseen")[i % 3 == 2], rng.choice(("odd", "even"))
        stated = [rng.choice([None, *(c / 100 for c in range(0, 101, 5))]) for _ in range(2)]
        rows.append({
            "part": part, "id": f"q{i}", "family": family, "correct": rng.randint(0, 1), "truth": rng.random(),
            "entropy": rng.choice((0.0, 0.5, rng.random() * 2)), "target": rng.random(), "untrained": stated[0],
            "trained": stated[1], "expected": rng.random(), "base rate": 0.5, "family prior": 0.5, "alone": 0.9,
            "reflection, untrained": "" if i == 7 else f"perhaps {i}", "reflection, trained": f"surely نهر {i}",
        })  # fmt: skip
        rows[-1]["exact"] = rows[-1]["correct"] ^ (i % 5 == 0)  # what exact match says, where something else graded
        samples.append({
            "part": part, "id": f"q{i}", "question": f"{rng.choice(words)} {rng.choice(words)} {i}?",
            "answer": rng.choice(words), "answers": rng.sample(words, 2), "samples": rng.choices(words, k=10),
            "thought": f"I think {i}" if i % 2 else "",
        })  # fmt: skip
    return rows, samples


def steps(n, **values):
    """-> the log of n steps of RL"""
    rng, keys = random.Random(n), [key for _, _, names in figures.PANELS for key in names]
    return [
        {"step": i, "skipped": 0} | {key: rng.random() for key in keys} | {"distinct": 9} | values for i in range(n)
    ]


STAGES = {
    "sample": {"key": "x", "loading": 1.0, "seconds": 65.4, "tokens": 12345, "files": {}},
    "train": {"key": "x", "loading": 1.0, "seconds": 2.0, "tokens": 99, "files": {}},
}
COST = {name: {"tokens": 22.3, "seconds": 0.01} for name in ("answer", "target", "untrained", "trained", "expected")}


def built(rows, log=(), **options):
    config = Config(**{"model": "m", "resamples": 20, **options})
    return build.build(rows, PLATT, list(log), COST, STAGES, config, build.environment())


def rendered(rows, samples, report=None):
    pictures = dict.fromkeys(figures.NAMES, b"\x89PNG\r\n\x1a\n" + bytes(16))
    return page.render(report or built(rows), rows, samples, pictures)


def evil():
    """Questions, and a report, in which all text from outside is hostile."""
    rows, samples = questions(3 * len(HOSTILE))
    for i, (r, s) in enumerate(zip(rows, samples, strict=True)):
        bad = HOSTILE[i % len(HOSTILE)]
        r |= {"part": f"set {bad}" if i % 2 else "test", "family": bad, "id": f"{i} {bad}"}
        s |= {"question": f"{i} {bad}", "answer": bad, "answers": [bad, "x"], "samples": [bad, bad, "y"]}
        s["thought"] = r["reflection, untrained"] = r["reflection, trained"] = bad
    pairs = sorted(zip(rows, samples, strict=True), key=lambda pair: pair[0]["part"] != "test")
    rows, samples = (list(column) for column in zip(*pairs, strict=True))
    report = built(rows, model=" ".join(HOSTILE), dataset=HOSTILE[0])
    report["warnings"] += HOSTILE
    return rows, samples, report


ROWS, SAMPLES = questions(260)

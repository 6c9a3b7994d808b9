"""Anything at all as input: no exception but the documented one, and the invariants."""

import contextlib
import json
import re
import shutil
import string

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import data
import eval
import platt
from beyond import graders
from infra.folder import STAGES, Run
from infra.grading import grade, normalise
from infra.setup import usable_run
from settings import Config, check


def often(*what):
    """A property test with many examples; what tmp_path holds is written anew by each of them."""
    many = settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
    return lambda test: many(given(*what)(test))


numbers = st.floats(-1e6, 1e6)
texts = st.text() | st.sampled_from(["Confidence: 70%", "Confidence:", "</s>", "5%", "٧٠%", "1,000", "-5", "$5",
                                     "Uncertainty: 0.3", "Uncertainty:", "1.0"])  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda x: st.lists(x, max_size=4) | st.dictionaries(texts, x, max_size=4), max_leaves=8,
)  # fmt: skip


# ---- confidences and answers --------------------------------------------------------------------


@often(st.lists(texts, max_size=4).map("".join))
def test_a_confidence_is_none_or_a_probability(text):
    for form, sign in zip(data.STATEMENTS.values(), ("%", ""), strict=True):
        found = form.read(text)
        if found is not None:
            assert 0 <= found <= 1 and text.count(form.label) == 1
            number = text.split(form.label)[1].rstrip(". \n")
            assert number.count("%") == len(sign) and sum(c in string.digits for c in number) >= 1


@often(texts, st.lists(texts, min_size=1, max_size=3), st.sampled_from(["exact", "contains"]))
def test_grading(answer, accepted, grader):
    got = grade(answer, accepted, grader)
    assert got in (0, 1) and got == grade(answer, accepted[::-1], grader)
    assert got <= grade(answer, [*accepted, "x"], grader)  # one more accepted answer makes none wrong
    if normalise(answer):
        assert grade(answer, [answer], grader) == 1


# ---- Platt scaling, metrics ---------------------------------------------------------------------


@often(st.lists(st.tuples(st.floats(), st.sampled_from([0, 1])), max_size=30))
def test_a_fit_is_monotone_or_refused(pairs):
    scores, labels = [s for s, _ in pairs], [y for _, y in pairs]
    try:
        fit = platt.fit(scores, labels)
    except ValueError:
        return
    p = fit.predict(np.sort(np.r_[scores, np.linspace(-1e3, 1e3, 9)]))
    assert ((0 <= p) & (p <= 1)).all() and ((np.diff(p) >= 0).all() or (np.diff(p) <= 0).all())
    again = platt.fit(scores[::-1], labels[::-1])
    assert again.predict(scores) == pytest.approx(fit.predict(scores), abs=1e-6)


@often(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0, 1])), min_size=1, max_size=40), st.randoms(),
       st.integers(1, 20), st.sampled_from(["width", "mass"]))  # fmt: skip
def test_metrics_are_in_their_range_and_do_not_see_the_order(pairs, rng, bins, scheme):
    def all_of(pairs):
        c, y = np.array([c for c, _ in pairs]), np.array([y for _, y in pairs])
        return np.array([eval.ece(c, y, bins, scheme), eval.brier(c, y), eval.auroc(c, y), eval.aurc(c, y)])

    found = all_of(pairs)
    assert ((0 <= found) & (found <= 1) | np.isnan(found)).all() and not np.isnan(found[[0, 1, 3]]).any()
    assert np.isnan(found[2]) == (len({y for _, y in pairs}) == 1)
    rng.shuffle(pairs)
    np.testing.assert_allclose(all_of(pairs)[:3], found[:3], atol=1e-12)


# ---- files --------------------------------------------------------------------------------------


@often(st.binary() | st.lists(values | st.binary(max_size=9), max_size=4))
@example([{"question": "a", "answers": ["b"], "id": float("nan")}])
@example([{"question": "\ud800", "answers": ["b"]}])
def test_question_files(tmp_path, content):
    path = tmp_path / "q.jsonl"
    if isinstance(content, list):
        content = b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in content)
    path.write_bytes(content)
    try:
        found = data.from_jsonl(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert found and len({q.id for q in found}) == len(found)
    assert all(q.question.strip() and all(a.strip() for a in q.answers) for q in found)


@often(st.dictionaries(st.sampled_from(["question", "answers", "id", "family"]), values))
def test_rows_of_a_question_file(tmp_path, row):
    test_question_files.hypothesis.inner_test(tmp_path, [row])


@often(st.lists(values | st.fixed_dictionaries({"id": values, "correct": values | st.integers(0, 1)}), max_size=4))
@example([{"id": "a", "correct": True}])
def test_label_files(tmp_path, found):
    """A label for each question, or a sentence about the file."""
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in found))
    ids = list(dict.fromkeys(str(row["id"]) for row in found if isinstance(row, dict) and "id" in row))
    with contextlib.suppress(ValueError):
        assert graders.labels(Config("m", labels=str(path)), dict.fromkeys(ids)) == [row["correct"] for row in found]
        assert len(ids) == len(found) and {row["correct"] for row in found} <= {0, 1}
        return
    with pytest.raises(ValueError, match=re.escape(str(path))):
        graders.labels(Config("m", labels=str(path)), dict.fromkeys(ids))


NAMES = ("config.json", "stages.json", "metrics.jsonl", "samples.jsonl", "platt.json", "adapter/adapter_config.json",
         "adapter/adapter_model.safetensors")  # fmt: skip


@often(st.sampled_from(NAMES), st.binary() | values.map(lambda x: json.dumps(x).encode()))
def test_a_run_folder_with_anything_in_a_file(finished, tmp_path, name, content):
    # other content of the same size is not noticed in what a stage has finished
    assume(name in ("config.json", "stages.json") or len(content) != (finished / name).stat().st_size)
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        usable_run(folder, {})
        for stage in STAGES[:3]:
            Run(folder).finished(stage)


REAL = ("temperature", "lr", "kl", "gamma", "alpha", "tolerance", "dropout")
WHOLE = ("steps", "questions", "rollouts", "samples", "folds", "rank", "reflection", "thought_tokens")


@often(st.builds(Config, st.just("m"), **{name: numbers | st.sampled_from([np.nan, np.inf]) for name in REAL},
                 **{name: st.integers(-3, 5) for name in WHOLE}))  # fmt: skip
def test_settings_are_refused_or_can_be_used(config):
    try:
        check(config)
    except ValueError as error:
        assert str(error).startswith("--")
        return
    assert config.samples >= 2 <= config.rollouts and config.lr > 0 and 0 <= config.alpha <= 1
    assert 0 <= config.dropout < 1 and config.reflection >= 0 and config.thought_tokens > 0

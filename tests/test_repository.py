"""The rules of the house: how modules depend on one another, how long they are, what is pinned, what documents say."""

import ast
import graphlib
import importlib
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bench.__main__
import calunc
import data
import experiments.grid
import experiments.tables
import lm
from infra.cli import parse
from report import tables
from settings import check

ROOT = Path(lm.__file__).parent
sys.path.insert(0, str(ROOT / "scripts"))
publish, models = map(importlib.import_module, ("publish", "list_models"))
LIMITS = "calunc 300 settings 180 data 300 lm 260 entropy 90 platt 190 lora 130 rl 300 eval 280 toy 200 use 200".split()
LINES = dict(zip(LIMITS[::2], map(int, LIMITS[1::2]), strict=True))  # of each module of the root, at most
PACKAGES, TOOLS = ("beyond", "infra", "report"), ("experiments", "bench", "scripts")
FILES = {path.stem: path for path in sorted(ROOT.glob("*.py"))}  # module -> its file
for package in PACKAGES:
    FILES |= {f"{package}.{path.stem}": path for path in sorted((ROOT / package).glob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
CODE = [*FILES.values(), *(path for folder in TOOLS for path in sorted((ROOT / folder).glob("*.py")))]
README, PAGE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "results/README.md"))
REPORTS = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in ROOT.glob("results/*/report.json")}


def imported(tree, everywhere=True):
    """What a file imports, inside functions too, as dotted names: `from infra.files import first` is both."""
    found = []
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def module_of(name):
    """A dotted name -> the module of ours that it belongs to, or None."""
    names = (name, name.rpartition(".")[0], name.split(".")[0])
    return next((x for n in names for x in (n, f"{n}.__init__") if x in FILES), None)


def count(paths):
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def top(tree):
    return {name.split(".")[0] for name in imported(tree)}


def test_the_root_is_eleven_short_modules():
    found = {name: count([path]) for name, path in FILES.items() if "." not in name}
    assert found.keys() == LINES.keys() and not (ROOT / "calunc").exists()
    assert not {name: lines for name, lines in found.items() if lines > LINES[name]}


@pytest.mark.parametrize("limit, folders", [(2300, ["."]), (5700, [".", *PACKAGES]), (9150, ["tests", "tests/slow"])])
def test_all_of_it_is_short(limit, folders):
    assert count(path for folder in folders for path in (ROOT / folder).glob("*.py")) <= limit


def test_imports_run_one_way():
    """No circle, not even through packages; nothing imports `calunc`."""
    graph = {}
    for name, tree in TREES.items():
        graph[name] = {module_of(x) for x in imported(tree, everywhere=False)} - {None, name}
        assert "calunc" not in top(tree), name
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("name", LINES)
def test_what_a_module_of_the_root_imports(name):
    """Of packages, what its docstring names; pinned packages, or those that come with torch and transformers."""
    used = [x.split(".") for x in imported(TREES[name]) if x.startswith("infra.")]
    (named,) = re.findall(r"^From infra: (.*?)(?:\n\n|\Z)", ast.get_docstring(TREES[name]), re.S | re.M) or [""]
    assert {part for _, part, *_ in used} <= set(re.findall(r"\w+", named)) and bool(used) == bool(named)
    packages = top(TREES[name]) - sys.stdlib_module_names - set(LINES)
    if name in ("entropy", "platt", "eval"):
        assert packages == {"numpy"} and not top(TREES[name]) & set(LINES)
    if name not in ("calunc", "use"):
        assert not packages & {"beyond", "report", *TOOLS}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0] for line in lines if re.fullmatch(r"[a-z]+==\d+(\.\d+)+", line)}
    assert packages - set(PACKAGES) <= pinned | {"tokenizers", "safetensors", "tqdm", "huggingface_hub"}


PUBLIC = """
    entropy.gram(embeddings, kernel='rbf', gamma=1.0)           entropy.von_neumann(gram)
    platt.fit(scores, labels)                                   platt.Platt.predict(self, scores)
    rl.calibration_reward(confidence, target, tolerance=0.05)   rl.group_advantages(rewards, kind='loo')
    rl.policy_loss(logp, old_logp, advantages, mask, clip=0.2)  eval.ece(confidence, correct, bins=10, scheme='width')
    eval.brier(confidence, correct)                             eval.nll(confidence, correct)
    eval.auroc(confidence, correct)                             eval.aurc(confidence, correct)
    data.parse_confidence(text)                                 lm.load(name_or_path)
    lm.sample(lm, prompts, temperatures, max_new_tokens, stop, seeds)
    lm.completion_logprobs(lm, prompts, completions)            calunc.CalibratedLM.ask(self, question)
"""


def test_public_names_take_what_they_promise():
    for signature in re.split(r"\s{2,}", PUBLIC.strip()):
        module, *names = signature.split("(")[0].split(".")
        found = importlib.import_module(module)
        for name in names:
            found = getattr(found, name)
        assert f"{signature.split('(')[0]}{inspect.signature(found)}".startswith(signature[:-1])
        more = list(inspect.signature(found).parameters.values())[signature.count(",") + 1 :]
        assert all(parameter.default is not parameter.empty for parameter in more), signature
    assert list(calunc.Answer.__dataclass_fields__) == ["text", "confidence", "reflection"]


def test_no_file_knows_where_it_was_written_or_what_is_left_to_do():
    places = re.compile(r"(?<![\w./])/(work|root|home|Users|tmp)/|\bTODO\b|\bFIXME\b")
    folders = ["*", ".ci/*", "docs/*", "facts/*", "results/**/*", "tests/**/*", *(f"{f}/*" for f in PACKAGES + TOOLS)]
    files = [p for folder in folders for p in ROOT.glob(folder) if p.is_file() and p.suffix not in (".png", ".pyc")]
    assert len(files) > 80
    for path in files:
        assert path == Path(__file__) or not places.search(path.read_text(encoding="utf-8")), path


def test_every_file_says_what_it_is_for_and_runs_nothing_foreign():
    """No module or call that unpickles; every model and tokenizer is loaded without the code of its folder."""
    for path in CODE:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert path.name == "__init__.py" or len(ast.get_docstring(tree).split()) > 5, path
        assert not top(tree) & {"dill", "joblib", "shelve", "marshal", "cloudpickle"}, path
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert called not in ("eval", "exec", "np.load", "numpy.load", "compile"), path
            assert not re.match(r"pickle\.(loads?|Unpickler)$", called), path
            assert called != "torch.load" or given.get("weights_only") == "True", path
            assert given.get("trust_remote_code", "False") == "False" and "allow_pickle" not in given, path
            if called.endswith("from_pretrained") and path in FILES.values():
                assert "trust_remote_code" in given, f"{path}: {called}"


@pytest.mark.parametrize("what", ["pickled weights", "own code"])
def test_a_model_folder_is_data(tmp_path, make_folder, monkeypatch, what):
    """Nothing in it is run or unpickled, and no connection is opened for what is there."""
    folder, ran = shutil.copytree(make_folder("gpt2"), tmp_path / "model"), tmp_path / "ran"
    for name in ("socket.socket.connect", "socket.getaddrinfo"):
        monkeypatch.setattr(name, lambda *args, **kwargs: pytest.fail(f"a connection to {args}"))
    assert lm.load(folder) and data.load("facts")
    if what == "pickled weights":
        torch.save({}, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    else:
        (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nfrom transformers import GPT2Config as Own\n")
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, OSError), match="model"):
        lm.load(folder)
    assert not ran.exists()


def same_text(one, other):
    """Equal but for the last digit of a decimal number, which rounding may move."""
    number = r"\d+\.\d+"
    if re.split(number, one) != re.split(number, other):
        return False
    pairs = zip(re.findall(number, one), re.findall(number, other), strict=True)
    return all(len(a) == len(b) and abs(float(a) - float(b)) < 1.5 * 10.0 ** -len(a.split(".")[1]) for a, b in pairs)


def blocks(document):
    """{name: content} of what scripts fill in."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- ([\w:-]+) -->\n(.*?)\n<!-- end -->", text, re.DOTALL))


def test_the_tables_of_the_documents_are_those_of_the_reports_and_benchmarks():
    assert same_text(blocks("README.md")["results:toy"], publish.summary("toy"))
    for mark, shown in (blocks("docs/experiments.md") | blocks("results/README.md")).items():
        kind, name = mark.split(":")
        write = {"results": experiments.tables.summary, "brief": experiments.tables.brief}[kind]
        ran = {field: REPORTS[name][field] for field in ("arms", "seeds")}  # those that are finished
        table = replace(experiments.grid.TABLES[name], **ran)
        assert same_text(shown, write(name, table, REPORTS[name]["parts"])), mark
    found = json.loads((ROOT / "results" / "bench.json").read_text(encoding="utf-8"))
    assert same_text((ROOT / "results" / "bench.md").read_text(encoding="utf-8"), bench.__main__.page(found))
    assert same_text(blocks("docs/cost.md")["bench:cost"], "\n".join([*found["prediction"], "", *found["check"]]))
    assert same_text(blocks("docs/cost.md")["bench:recipe"], "\n".join(found["recipe"]))


def quotable(name):
    """What a page may quote of a table. -> {metric: means, medians, and differences with intervals, from both sides}"""
    report, found = REPORTS[name], {}
    rows = [row for of in report["parts"].values() for row in of["rows"].values()]
    means = [row["mean"] for row in rows] + list(report.get("median of the unseen", {}).values())
    for of in report.get("over the unseen", {}).values():  # "auroc median" and "auroc mean" are both of AUROC
        means += [{name.split()[0]: value} for name, value in of.items()]
    apart = [d for of in report["parts"].values() for to in of["differences"].values() for d in to.values()]
    for title, m in (("AUROC", "auroc"), ("ECE", "ece"), ("Brier score", "brier")):
        of = [d[m] for d in apart if None not in d[m]]
        of += [[row["difference"], *row["interval"]] for row in report.get("primary", ()) if row["metric"] == m]
        found[title] = [[mean[m]] for mean in means if m in mean] + of + [[-d, -high, -low] for d, low, high in of]
    seconds = [[of["train"]] for of in report["seconds"].values() if "train" in of]
    return found | {"tokens": [[row["tokens"]] for row in rows], "s": seconds}


def foreign(section):
    """Numbers that no report to which a section links has, of the metric named last or the unit named next."""
    known, metric, unknown = [quotable(name) for name in re.findall(r"\]\(([\w-]+)/report\.md\)", section)], None, []
    number = r"[+-]?\d+(?:\.\d+)?(?!\.?\w)"
    words = rf"(AUROC|ECE|Brier score)|(?<![\w.-])({number}(?:\s\[{number},\s{number}\])?)(?:\s(tokens|s)\b)?"
    for title, said, unit in re.findall(words, re.sub(r"`[^`]*`|\]\([^)]*\)", "", section)):
        metric, values, digits = title or unit or metric, re.findall(number, said), 3 if "." in said else 0
        of_metric = [[float(f"{x:.{digits}f}") for x in of if x is not None] for found in known for of in found[metric]]
        unknown += [f"{metric} {said}"] if said and [*map(float, values)] not in of_metric else []
    return unknown


def test_each_number_of_the_eight_answers_is_that_of_a_report():
    _, *sections = PAGE.split("\n## ")
    commands = [re.findall(r"`python -m (?:experiments )?([\w-]+)", section) for section in sections]
    assert len(sections) == 8 and all(commands) and {*sum(commands, [])} <= {*experiments.grid.TABLES, "bench"}
    assert [found for section in sections for found in foreign(section)] == []
    wrong = "AUROC 0.811, 0.812, ECE 0.811; 5 tokens, 6 tokens; AUROC +0.042 [+0.023, +0.064] [x](toy-told/report.md)"
    assert foreign(wrong) == ["AUROC 0.812", "ECE 0.811", "tokens 6", "AUROC +0.042 [+0.023, +0.064]"]


def help_of(path):
    done = subprocess.run([sys.executable, str(path), "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and done.stdout.startswith("usage: ")
    return done.stdout


def test_commands_flags_and_names_of_the_readme_and_help_of_the_scripts():
    assert len(README.split()) <= 1500 and len(PAGE.split()) <= 1200
    fenced = "".join(re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    for line in fenced.replace("&&", "\n").splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["python", "calunc.py"]:
            args, config = parse(words[2:])
            if args.command not in ("ask", "predict"):
                check(config)
    for path in (ROOT / "scripts").glob("*.py"):
        assert len(help_of(path).split()) > 15
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", help_of(ROOT / "calunc.py")))
    assert set(re.findall(r"`(--[a-z][a-z-]*)", README)) <= known
    for module, name in re.findall(r"`([a-z]+)\.([a-z_]+)`", README):
        assert module not in FILES or name == "py" or hasattr(importlib.import_module(module), name)


def test_the_list_of_models_has_what_is_known_of_some():
    """A small model that is refused for its size, or not made, ends scripts/list_models.py with an error."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\S+) \| \w+ \| (.+)", page, re.M))
    assert [title for title, known in models.CERTAIN.items() if known not in rows.get(title, "")] == []
    name, good = "deepseek_v2", ("C", "both", 0.0, 0.0)
    for found in ({}, {name: ("C", "refused", "strides")}, {name: ("C", "plain", 0.0, 0.0)}, {"jamba": good}):
        assert models.surprises(found, [*found, name])
    jamba = {"jamba": ("C", "refused", "gives other probabilities with cached prompts than without")}
    assert models.surprises({name: good, "llama": good} | jamba, [name, "llama", "xlm", "jamba"]) == []


def test_links_and_tests_that_documents_name_exist():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "results" / "README.md"]:
        for link, anchor in re.findall(r"\]\((?!\w+://)([^)#\s]*)#?([^)\s]*)\)", path.read_text(encoding="utf-8")):
            target = path.parent / link if link else path
            heads = re.findall("^#+ (.*)", target.read_text(encoding="utf-8").lower(), re.M) if anchor else [""]
            assert target.exists() and anchor in [re.sub(r"[^\w -]", "", h).replace(" ", "-") for h in heads], link
    assert "2603.06317" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "docs" / "promises.md").read_text(encoding="utf-8"))
    assert len(named) > 8 and all((ROOT / name).is_file() for name in named), named


def test_names_from_outside_are_text_in_the_report_and_stay_in_their_folder(monkeypatch):
    for name in ("<script>alert(1)</script>", "a|b", "a\nb", "[x](http://y)", "`c`", "\x1b[31m", "&amp;"):
        said = tables.plain(name)
        assert not set("<>\n\x1b") & set(said) and not re.search(r"(?<!\\)[|`\[\]]", said)
        assert set(re.findall(r"\w+", name)) <= set(re.findall(r"\w+", said))
    for name in ("../x", "/x", "a/b", "..", ""):
        monkeypatch.setattr("sys.argv", ["publish.py", "nowhere", name])
        with pytest.raises(SystemExit, match="2"):
            publish.main()


def test_a_published_run_has_no_question_and_no_answer(finished, tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("<!-- results:x -->\n<!-- end -->\n")
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["publish.py", str(finished), "x"])
    publish.main()
    report = json.loads((tmp_path / "results" / "x" / "report.json").read_text())
    assert report["labels"]["graders"] and "Stated, trained" in (tmp_path / "README.md").read_text()
    for path in (tmp_path / "results" / "x").iterdir():
        assert path.suffix == ".png" or not re.search("what is|nothing of the kind", path.read_text()), path

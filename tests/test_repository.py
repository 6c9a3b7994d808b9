"""What holds for the repository as a whole: how modules depend on one another, what is pinned, what the README says."""

import ast
import graphlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import calunc
import data
import experiments.grid
import experiments.tables
import lm
import tables

ROOT = Path(calunc.__file__).parent
MODULES = {path.stem: path for path in sorted(ROOT.glob("*.py"))}
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def imports(path):
    """The top-level names that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module.split(".")[0])
    return found


def test_the_modules_are_there():
    names = "calunc stages run data toy lm prefix lora cost entropy platt rewards rl baselines eval report figures page"
    assert set(names.split()) <= set(MODULES)


def test_imports_run_one_way():
    graph = {name: imports(path) & set(MODULES) for name, path in MODULES.items()}
    assert sum(map(len, graph.values())) > 10
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert order[-1] == "calunc"


def test_nothing_imports_the_command_line():
    for path in [*MODULES.values(), *SCRIPTS]:
        assert "calunc" not in imports(path), path.name


@pytest.mark.parametrize("name", ["entropy", "platt", "eval"])
def test_the_mathematics_needs_numpy_alone(name):
    assert imports(MODULES[name]) - sys.stdlib_module_names == {"numpy"}


def test_only_pinned_packages_are_imported():
    pinned = {line.split("==")[0] for line in requirements()}
    # these come with transformers and torch
    others = {"tokenizers", "safetensors", "tqdm", "huggingface_hub"}
    for name, path in MODULES.items():
        assert imports(path) - sys.stdlib_module_names - set(MODULES) <= pinned | others, name


def requirements():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_five_packages_are_pinned():
    assert {line.split("==")[0] for line in requirements()} == {
        "torch", "transformers", "numpy", "datasets", "matplotlib"
    }  # fmt: skip
    for line in requirements():
        assert re.fullmatch(r"[a-z]+==\d+(\.\d+)+", line)


@pytest.mark.parametrize("path", [*MODULES.values(), *SCRIPTS], ids=lambda path: path.name)
def test_every_file_says_what_it_is_for(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text and len(text.split()) > 5


def test_no_file_knows_where_it_was_written():
    places = re.compile(r"(?<![\w./])/(work|root|home|Users|tmp)/")
    folders = (".", "tests", "scripts", "facts", ".ci", "results")
    paths = [p for folder in folders for p in sorted((ROOT / folder).rglob("*") if folder == "results" else
                                                     (ROOT / folder).glob("*"))]  # fmt: skip
    text = {".py", ".md", ".txt", ".toml", ".sh", ".json", ".jsonl", ".yml", ".html", ""}
    files = [p for p in paths if p.is_file() and p.suffix in text]
    assert len(files) > 30
    for path in files:
        assert not places.search(path.read_text(encoding="utf-8")), path


# security


def test_nothing_is_unpickled_and_no_foreign_code_is_run():
    """No module or call that could; every model and tokenizer is loaded without the code of its folder."""
    for path in [*MODULES.values(), *SCRIPTS, *sorted((ROOT / "experiments").glob("*.py"))]:
        assert not imports(path) & {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert called not in ("eval", "exec", "torch.load", "np.load", "numpy.load", "compile"), path
            assert given.get("trust_remote_code", "False") == "False" and "allow_pickle" not in given, path
            if called.endswith("from_pretrained") and path.parent == ROOT:
                assert "trust_remote_code" in given, f"{path}: {called}"


def test_weights_that_would_be_unpickled_are_refused(tmp_path, make_folder):
    folder = shutil.copytree(make_folder("gpt2"), tmp_path / "model")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises((ValueError, OSError), match="model"):
        lm.load(folder)


def test_code_in_a_model_folder_is_not_run(tmp_path, make_folder):
    folder, ran = shutil.copytree(make_folder("gpt2"), tmp_path / "model"), tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nfrom transformers import GPT2Config as Own\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no model at"):
        lm.load(folder)
    assert not ran.exists()


def test_the_network_is_not_asked_for_what_is_there(tmp_path, make_folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a connection to {args}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    lm.load(make_folder("gpt2"))
    assert data.load("facts")
    with pytest.raises(ValueError, match="no model at"):
        lm.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ""])
def test_results_stay_in_their_folder(name, tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "publish.py"), str(tmp_path), name]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "the name of a folder" in done.stderr


def test_names_from_outside_are_text_in_the_report():
    for name in ("<script>alert(1)</script>", "a|b", "a\nb", "[x](http://y)", "`c`", "\x1b[31m", "&amp;"):
        said = tables.plain(name)
        assert not set("<>\n\x1b") & set(said) and not re.search(r"(?<!\\)[|`\[\]]", said)
        assert set(re.findall(r"\w+", name)) <= set(re.findall(r"\w+", said))


# the README


def commands():
    """The lines of its fenced bash blocks, cut at &&, as lists of words."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines for part in line.split("&&") if (words := shlex.split(part, comments=True))]


def test_commands_of_the_readme_parse():
    ours = [words[2:] for words in commands() if words[:2] == ["python", "calunc.py"]]
    assert len(ours) >= 4
    for argv in ours:
        args, config = calunc.parse(argv)
        if args.command not in ("ask", "predict"):
            calunc.check(config)


def test_scripts_of_the_readme_exist():
    named = [words[1] for words in commands() if words[0] == "python" and words[1] != "calunc.py"]
    named += re.findall(r"python (scripts/\w+\.py)", README)
    assert named
    for name in named:
        assert (ROOT / name).is_file(), name


def test_flags_that_the_readme_names_exist():
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", help_of(ROOT / "calunc.py")))
    used = set(re.findall(r"`(--[a-z][a-z-]*)`", README))
    assert used and used <= known


def test_links_of_the_readme_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link


def test_public_names_of_the_readme_exist():
    """`module.function` in its text is a function of that module."""
    found = re.findall(r"`([a-z]+)\.([a-z_]+)`", README)
    found = [(module, name) for module, name in found if name not in ("py", "md", "json", "jsonl", "html")]
    assert len(found) >= 5
    for module, name in found:
        defined = {n.name for n in ast.parse(MODULES[module].read_text()).body if hasattr(n, "name")}
        assert name in defined, f"{module}.{name}"


# the scripts


def help_of(path):
    done = subprocess.run([sys.executable, str(path), "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    return done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_answer_help(path):
    said = help_of(path)
    assert said.startswith(f"usage: {path.name}")
    assert len(said.split()) > 15


def test_the_line_counts_of_the_readme_are_about_right():
    rows = re.findall(r"^\| \[([\w./]+)\]\([\w./]+\) \| (\d+) \| ", README, re.MULTILINE)
    assert {f"{name}.py" for name in MODULES} <= {name for name, _ in rows}
    for name, lines in rows:
        count = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        assert abs(count - int(lines)) <= max(9, 0.1 * count), (name, count)


def test_the_tables_of_the_readme_are_those_of_the_reports():
    for name in re.findall(r"<!-- results:([\w-]+) -->", README):
        shown = README.split(f"<!-- results:{name} -->\n")[1].split("\n<!-- end -->")[0]
        found = json.loads((ROOT / "results" / name / "report.json").read_text(encoding="utf-8"))
        if "parts" in found:
            assert shown == experiments.tables.summary(name, experiments.grid.TABLES[name], found["parts"])
        else:
            assert shown.startswith(tables.summary(found))


def test_the_citation_is_whole():
    import yaml

    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found["license"] == "MIT" and "2603.06317" in json.dumps(found, default=str)
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")

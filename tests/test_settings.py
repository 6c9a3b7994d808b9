"""settings.py and its flags: what reaches the configuration, recipes, who chose a value."""

import shlex
from dataclasses import asdict, fields

import pytest

import calunc
from infra import cli
from infra.folder import STAGES, Run
from settings import RECIPES, Config, check, flags, option


def test_settings_reach_the_configuration():
    assert {f.metadata["stage"] for f in fields(Config)} == {*STAGES, None} == cli.GROUPS.keys()
    free = {f.name for f in fields(Config) if f.metadata["stage"] is None}  # the others name their first stage
    assert free == {"sample_batch", "micro_batch", "recompute", "readout", "engine", "device"}
    _, config = cli.parse(["--model", "m", "--train-questions", "7", "--ood", "a,b", "--lr", "2e-3"])
    assert (config.model, config.dataset, config.train_questions) == ("m", "facts", 7)
    assert (config.ood, config.lr) == ("a,b", 2e-3)
    for argv, gamma in (([], 16.0), (["--gamma", "3"], 3.0)):
        _, config = cli.parse(argv)
        assert (config.model, config.dataset, config.gamma, config.seed) == ("toy", "toy", gamma, 1)
        check(config)
    changed = Config("m m", lr=0.5, ood="a,b", every=5, adapter="everywhere")
    assert cli.parse(shlex.split(flags(asdict(changed))))[1] == changed


STATED = dict(text.split() for text in """
    --model Qwen/Qwen2.5-7B-Instruct  --dataset trivia_qa,nq_open  --ood gsm8k  --prompt chat  --train-questions 18000
    --test-questions 2000  --temperature 1.0  --answer-temperature 0.1  --answer reasoned  --shown answer
    --statement uncertainty  --grader judge  --judge GPT-4o-mini  --target question  --reward calibrated
    --tolerance 0.05  --gradient sampled  --advantage zscore  --steps 1000  --questions 32  --rollouts 16
    --rollout-temperature 1.5  --rank 16  --dropout 0.05  --warmup 0
""".replace("\n", "  ").split("  ") if text)  # by arXiv 2603.06317, copied by hand  # fmt: skip


@pytest.mark.parametrize("argv", [
    "", "--recipe paper", "--recipe small --reflection 0", "ask why --steps 7", "--recipe paper --judge GPT-4o-mini",
    "--model m --out x",
])  # fmt: skip
def test_every_setting_is_printed_with_who_chose_it_and_nothing_is_run(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert calunc.main([*argv.split(), "--print-settings"]) == 0
    config, expected = cli.parse(argv.split())[1], []
    for f in (f for f in fields(Config) if f.metadata["stage"]):
        flag, value = option(f.name), str(getattr(config, f.name))
        ours = f"our choice; paper: {STATED[flag]}" if flag in STATED else "our choice: not stated in the paper"
        expected.append(f"{flag} {value}  ({'paper' if value == STATED.get(flag) else ours})")
    alpha = "LoRA alpha 32, twice the rank  (paper)"
    assert capsys.readouterr().out.splitlines() == [*expected, alpha] and not list(tmp_path.iterdir())
    assert argv != "--recipe paper" or "\n".join(expected).count("  (paper)") == len(STATED) - 1  # its judge is sold


@pytest.mark.parametrize("name", RECIPES)
def test_flags_override_a_recipe_which_counts_as_given(name, tmp_path):
    """A run goes on with the recipe's name, and not without it."""
    out = ["--out", str(tmp_path / "run")]
    args, config = cli.parse(["--recipe", name, "--steps", "7", *out])
    check(config)
    assert config == Config(**RECIPES[name] | {"steps": 7}) and args.given == RECIPES[name] | {"steps": 7}
    Run(tmp_path / "run").start("sample", config)
    for argv in (["--recipe", name, "--steps", "7"], ["--recipe", name]):  # and with the steps of the recipe
        assert cli.plan(*cli.parse([*argv, *out]))[1] == STAGES
    for argv in (["--model", config.model, "--steps", "7"], ["--steps", "8"]):
        with pytest.raises(ValueError, match="was made with .*--reflection .*, which this call does not say"):
            cli.plan(*cli.parse([*argv, *out]))

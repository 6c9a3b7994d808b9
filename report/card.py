"""The model card of an adapter or a merged model, in the hub's format. `huggingface-cli upload` puts it on the hub."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from report.tables import METHODS, cells, lines, number, plain

SHOWN = {"ece": "ECE", "brier": "Brier score", "auroc": "AUROC"}


def adapter(report):
    """-> README.md of the adapter's folder"""
    where = {"turn": "on from the confidence turn on, and off while question and answer are read (an activated LoRA). "
                     "`peft` loads this folder, but not that of a mixture of experts; `AutoModelForCausalLM` loads it "
                     "and never switches it on",
             "everywhere": "on for the whole confidence turn, and off while the model answers. `peft` loads this "
                           "folder, so does `AutoModelForCausalLM`"}  # fmt: skip
    return _card(report, "peft", f"The adapter is {where[report['config']['adapter']]}. calunc also asks, answers and "
                 "reads the number:\n\n"
                 "```python\nfrom calunc import CalibratedLM\n\n"
                 'answer = CalibratedLM("runs/x").ask("What is the capital of Peru?")\n```')  # fmt: skip


def merged(report, prompt):
    """-> README.md of the merged model's folder. prompt: the text that the model continues"""
    what = "a reflection and a number" if report["config"]["reflection"] else "a number"
    return _card(report, "transformers", "The adapter is merged into the weights. This model states the confidence of "
                 "answers that the base model gave; its own answers were not measured. It continues this text with "
                 f"{what}:\n\n```text\n{prompt}\n```")  # fmt: skip


def _card(report, library, text):
    config, results = report["config"], []
    base = Path(config["model"]).name if Path(config["model"]).exists() else config["model"]
    rows = {part: s["methods"][METHODS["trained"]] for part, s in report["sets"].items()}
    for part, row in rows.items():
        results += [EvalResult("text-generation", config["dataset"], part, metric, round(row[metric], 4),
                               dataset_split=part, metric_name=name)
                    for metric, name in SHOWN.items() if number(row[metric]) != "n/a"]  # fmt: skip
    name = f"{base} that states its confidence"
    data = ModelCardData(base_model=base, library_name=library, model_name=name, eval_results=results,
                         tags=["calibration", "uncertainty"])  # fmt: skip
    table = "\n".join(lines(["stated confidence, trained", "n", *SHOWN.values()], cells(rows, ["n", *SHOWN])))
    return (f"---\n{data.to_yaml()}\n---\n\n# {plain(name)}\n\nTrained by calunc on {plain(config['dataset'])} to "
            f"state how likely its own answer is right.\n\n{text}\n\n{table}\n\n"
            "Statements that could not be parsed count as worst.\n")  # fmt: skip

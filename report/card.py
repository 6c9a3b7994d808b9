"""The model card of an adapter or a merged model, in the hub's format. `huggingface-cli upload` puts it on the hub."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from report.tables import METHODS, cells, lines, number, plain

SHOWN = {"ece": "ECE", "brier": "Brier score", "auroc": "AUROC"}


def adapter(report):
    """-> README.md of the adapter's folder"""
    where = {"turn": "on from the confidence turn on, and off while question and answer are read (an activated LoRA)",
             "everywhere": "on for the whole confidence turn, and off while the model answers"}  # fmt: skip
    return _card(report, "peft", f"The adapter is {where[report['config']['adapter']]}. `peft` loads this folder, so "
                 "does `AutoModelForCausalLM`. calunc also asks, answers and reads the number:\n\n"
                 "```python\nfrom calunc import CalibratedLM\n\n"
                 'answer = CalibratedLM("runs/x").ask("What is the capital of Peru?")\n'
                 "answer.text, answer.confidence\n```")  # fmt: skip


def merged(report, prompt):
    """-> README.md of the merged model's folder. prompt: the text that the model continues with a percentage"""
    return _card(report, "transformers", "The adapter is merged into the weights. This model states the confidence of "
                 "answers that the base model gave; its own answers were not measured. It continues this text with a "
                 f"percentage:\n\n```text\n{prompt}\n```")  # fmt: skip


def _card(report, library, text):
    config, results = report["config"], []
    base = Path(config["model"]).name if Path(config["model"]).exists() else config["model"]
    rows = {part: s["methods"][METHODS["trained"]] for part, s in report["sets"].items()}
    for part, row in rows.items():
        for metric in [metric for metric in SHOWN if number(row[metric]) != "n/a"]:
            results.append(EvalResult(task_type="text-generation", dataset_type=config["dataset"], dataset_name=part,
                                      dataset_split=part, metric_type=metric, metric_name=SHOWN[metric],
                                      metric_value=round(row[metric], 4)))  # fmt: skip
    data = ModelCardData(library_name=library, base_model=base, tags=["calibration", "uncertainty"],
                         model_name=f"{base} that states its confidence", eval_results=results)  # fmt: skip
    table = "\n".join(lines(["stated confidence, trained", "n", *SHOWN.values()], cells(rows, ["n", *SHOWN])))
    return (f"---\n{data.to_yaml()}\n---\n\n# {plain(base)} that states its confidence\n\nTrained by calunc on "
            f"{plain(config['dataset'])} to state, in percent, how likely its own answer is right.\n\n{text}\n\n{table}"
            "\n\nStatements that could not be parsed count as worst.\n")  # fmt: skip

"""The model card of an adapter, in the hub's format: what it is, how to use it, and the metrics of its run.

Left out: pushing it to the hub, which `huggingface-cli upload` does.
"""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from tables import METHODS, number, plain

SHOWN = {"ece": "ECE", "brier": "Brier score", "auroc": "AUROC"}


def adapter(report):
    """report.json's content -> README.md of the adapter's folder"""
    where = {
        "turn": "on from the confidence turn on, and off while question and answer are read (an activated LoRA)",
        "everywhere": "on for the whole of the confidence turn, and off while the model answers",
    }
    text = [f"The adapter is {where[report['config']['adapter']]}. `peft` and `AutoModelForCausalLM` load this folder;",
            "calunc asks, answers and reads the number:", "", "```python", "from calunc import CalibratedLM", "",
            'answer = CalibratedLM("runs/x").ask("What is the capital of Peru?")', "answer.text, answer.confidence",
            "```"]  # fmt: skip
    return _card(report, "peft", text)


def merged(report, prompt):
    """The same for the merged model. prompt: what it was trained to go on from, with a percentage"""
    text = ["The adapter is a part of the weights. This model states confidences, and reads answers that the base "
            "model gave; its own answers are not what was measured. It goes on with a percentage from", "",
            "```text", prompt, "```"]  # fmt: skip
    return _card(report, "transformers", text)


def _card(report, library, text):
    config, results, rows = report["config"], [], []
    base = Path(config["model"]).name if Path(config["model"]).exists() else config["model"]
    for part, of in report["sets"].items():
        row = of["methods"][METHODS["trained"]]
        rows.append(f"| {plain(part)} | {of['n']} | " + " | ".join(number(row[m]) for m in SHOWN) + " |")
        results += [
            EvalResult(task_type="text-generation", dataset_type=config["dataset"], dataset_name=part,
                       dataset_split=part, metric_type=metric, metric_name=name, metric_value=round(row[metric], 4))
            for metric, name in SHOWN.items() if number(row[metric]) != "n/a"
        ]  # fmt: skip
    data = ModelCardData(library_name=library, base_model=base, tags=["calibration", "uncertainty"],
                         model_name=f"{base} that says how sure it is", eval_results=results)  # fmt: skip
    return "\n".join([
        "---", data.to_yaml(), "---", "", f"# {plain(base)}, that says how sure it is", "",
        f"Trained by calunc on {plain(config['dataset'])} to state, in percent, how likely its own answer is right.",
        "", *text, "", "| stated confidence, trained | n | " + " | ".join(SHOWN.values()) + " |",
        "|---|---:|" + "---:|" * len(SHOWN), *rows, "", "What could not be parsed counts as worst.", "",
    ])  # fmt: skip

"""The model card, printed from the manifests and the evaluation: not one number in it is typed.

It opens with the metadata that Hugging Face reads, and says what the model is, what it learned from and how, what was measured
with its uncertainty, what the gate said, and the way back to the rows of the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from preftune.progress import counted, duration
from preftune.release.gate import Gate, change, nats, percent, points
from preftune.release.provenance import Manifest, Origin

# What the evaluation measures of the answers, in the order of the card: (its key, its name, how it is printed).
MEASURES = (
    ("style", "style adherence", percent),
    ("style_gain", "gain in style over the base", points),
    ("win_rate", "win rate against the base, by the reward model", percent),
    ("fully_adherent", "answers that follow every convention", percent),
    ("parses", "answers whose code parses", percent),
    ("passes_check", "answers that run and pass their check", percent),
    ("ends_by_itself", "answers that end by themselves", percent),
    ("mean_tokens", "tokens an answer", lambda e: f"{e['value']:.1f} (95 % interval {e['low']:.1f} to {e['high']:.1f}, n = {e['n']:,})"),
    (
        "reward",
        "score by the reward model",
        lambda e: f"{e['value']:.2f} (95 % interval {e['low']:.2f} to {e['high']:.2f}, n = {e['n']:,})",
    ),
    ("kl", "KL from the base", nats),
)

LOADING = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = [{"role": "user", "content": "Write a function that adds two numbers."}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
outputs = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(outputs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def card(
    chain: Origin,
    evaluation: Mapping[str, Any],
    gate: Gate,
    override: str | None,
    *,
    release_id: str,
    evaluation_id: str,
    licence: str | None = None,
    gguf: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of README.md.

    chain: the run with all before it. override: why it is released against the gate, or None. licence: the base's, as
    its own card names it. gguf: what was found when the GGUF files were read back, where there are any.
    """
    sections = [
        _metadata(chain, evaluation, release_id, licence),
        _opening(chain, evaluation, release_id),
        _override(gate, override),
        _results(evaluation, evaluation_id),
        _retention(evaluation),
        _gate(gate),
        _data(chain),
        _training(chain),
        _limits(evaluation, licence),
        _gguf(gguf),
        f"## How to load it\n\n```python\n{LOADING}```",
        _way_back(chain, release_id, evaluation_id),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def base_name(chain: Origin) -> str:
    """Return the name of the model at the beginning of the chain, without its folder."""
    return Path(chain.base.name).name


def _metadata(chain: Origin, evaluation: Mapping[str, Any], release_id: str, licence: str | None) -> str:
    snapshots = chain.snapshots
    dataset = {"type": "preftune-snapshot", "name": f"snapshot {snapshots[0].hash}, held out" if snapshots else "held out"}
    metrics = [
        {"type": key, "name": name, "value": evaluation[key]["value"]} for key, name, _ in MEASURES if evaluation.get(key) is not None
    ]
    values: dict[str, Any] = {
        "base_model": base_name(chain),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["preftune", *(str(run["kind"]) for run in chain.stages)])),
        "model-index": [
            {
                "name": f"{base_name(chain)}-{release_id}",
                "results": [{"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}],
            }
        ],
    }
    if licence:
        values["license"] = licence
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _opening(chain: Origin, evaluation: Mapping[str, Any], release_id: str) -> str:
    stages = ", then ".join(str(run["kind"]).upper() for run in chain.stages)
    lines = [
        f"# {base_name(chain)}, tuned by {stages}: release {release_id}",
        "",
        f"This is {base_name(chain)} after {stages} on a team's own preferences, made with preftune. The adapter, where one was",
        "trained, is merged; the weights are float32. Every number here is printed from the manifests of the runs and the evaluation.",
    ]
    if evaluation.get("style_gain"):
        lines += ["", f"Style adherence against the base: {points(evaluation['style_gain'])}."]
    if chain.manifest and chain.manifest["config"].get("adapter"):
        under = next(origin for origin in chain.origins if origin.role == "model")
        lines += ["", f"`adapter/` holds what the last stage trained alone, to be put on {_called(under)}."]
    return "\n".join(lines)


def _override(gate: Gate, override: str | None) -> str:
    if override is None:
        return ""
    given = " ".join(override.split())
    return "\n".join(
        [
            "> **Released against the gate.** The gate refused this model:",
            ">",
            *(f"> - {reason}" for reason in gate.reasons),
            ">",
            f"> It was released all the same, for this reason: **{given}**",
        ]
    )


def _results(evaluation: Mapping[str, Any], evaluation_id: str) -> str:
    rows = [(name, show(evaluation[key])) for key, name, show in MEASURES if evaluation.get(key) is not None]
    conventions = [
        (name, f"{counts['followed']:,} of {counts['applies']:,}")
        for name, counts in (evaluation.get("conventions") or {}).items()
        if counts["applies"]
    ]
    parts = [
        "## Results",
        f"On held-out requests, evaluation `{evaluation_id}`, seed {evaluation['seed']}. Score and win rate are the reward model's: "
        f"`{evaluation['reward_model'] or 'none'}`.",
        _table(("measure", "value"), rows),
    ]
    if conventions:
        parts += ["Each convention, of the answers that it applies to:", _table(("convention", "followed"), conventions)]
    return "\n\n".join(parts)


def _retention(evaluation: Mapping[str, Any]) -> str:
    verdict = (evaluation["retention"] or {}).get("verdict")
    if verdict is None:
        return "## What was kept\n\nRetention was not measured against the base."
    rows = [
        (
            task["name"],
            f"{task['n']:,}",
            f"{task['before']:.4f}",
            f"{task['after']:.4f}",
            change(task, "difference"),
            change(task, "lower") if task["gated"] else "–",
            change(task, "margin") if task["gated"] else "–",
            task["verdict"] if task["gated"] else "reported, not gated",
        )
        for task in verdict["tasks"]
    ]
    heads = ("task", "n", "base", "this model", "change", "at worst (one-sided 95 %)", "margin", "verdict")
    return "\n\n".join(
        [
            "## What was kept",
            f"Verdict: **{verdict['overall']}**. The same items before and after; a positive change is better. A task is kept when a "
            "paired test proves that the loss is within its margin.",
            _table(heads, rows),
        ]
    )


def _gate(gate: Gate) -> str:
    told = "passed" if gate.passed else "refused"
    rows = [(check.name, "passed" if check.passed else "not passed", check.text) for check in gate.checks]
    return f"## The gate\n\nThe gate {told}.\n\n{_table(('check', 'outcome', 'why'), rows)}"


def _data(chain: Origin) -> str:
    rows = []
    for snapshot in chain.snapshots:
        assert snapshot.manifest is not None
        counts = snapshot.manifest["counts"]
        train, held_out, dropped = counts["train"], counts["held_out"], counts["dropped"]
        left_out = f"{counted(dropped['pairs'], 'pairs')} ({dropped['reason']})" if dropped["pairs"] else "none"
        learned = f"{counted(train['pairs'], 'pairs')}, {counted(train['demonstrations'], 'demonstrations')}"
        rows.append(
            (f"`{snapshot.hash}`", learned, f"{counted(held_out['pairs'], 'pairs')}, {counted(held_out['prompts'], 'prompts')}", left_out)
        )
    if not rows:
        return "## Data\n\nThe snapshot that it learned from is not there any more."
    split = "Prompts that are nearly alike are never on both sides."
    return f"## Data\n\n{split}\n\n{_table(('snapshot', 'to learn from', 'held out', 'left out'), rows)}"


def _training(chain: Origin) -> str:
    parts = ["## Training"]
    for run in chain.stages:
        parts.append(f"### {str(run['kind']).upper()}: run `{run['id']}`")
        parts.append(_table(("", ""), _run_rows(run)))
        settings = {key: value for key, value in run["config"].items() if key not in ("data", "model", "reward_model")}
        parts.append(f"```yaml\n{yaml.safe_dump(settings, sort_keys=True, allow_unicode=True)}```")
    return "\n\n".join(parts)


def _run_rows(run: Manifest) -> list[tuple[str, str]]:
    rows = [("started", str(run["started"])), ("time", duration(run["training_seconds"] if "training_seconds" in run else run["seconds"]))]
    if "seed" in run["config"]:
        rows.append(("seed", str(run["config"]["seed"])))
    if "steps" in run:
        rows.append(("steps", f"{run['steps']:,}"))
    if "trained_parameters" in run:
        rows.append(("trained parameters", f"{run['trained_parameters']:,}"))
    if "data" in run:
        left_out = ", ".join(f"{count:,} {why}" for why, count in run["data"]["left_out"].items()) or "none"
        rows += [
            ("prompts learned from", f"{run['data']['groups']:,}"),
            ("left out", left_out),
            ("oldest turns dropped to fit", f"{run['data']['turns_dropped']:,}"),
        ]
    if "peak_memory_gib" in run:
        rows.append(("peak memory", f"{run['peak_memory_gib']:.2f} GiB"))
    rows.append(("hardware", ", ".join(f"{key} {value}" for key, value in run["hardware"].items())))
    rows.append(("versions", ", ".join(f"{key} {value}" for key, value in run["versions"].items())))
    return rows


def _gguf(made: Mapping[str, Any] | None) -> str:
    if made is None:
        return ""
    rows = [
        (f"`gguf/{name}`", f"{found['max_logit_diff']:.2g}", f"{found['perplexity_ratio']:.4f}", f"{found['strings']:,}, all alike")
        for name, found in made["files"].items()
    ]
    told = ["Each was read back and compared with this folder before the release was done."]
    if made["composed"]:
        told.append("The tokenizer composes its text first (Unicode NFC); llama.cpp does not, so give it composed text.")
    if made["modelfile"]:
        told.append("For Ollama: `cd gguf && ollama create NAME -f Modelfile`.")
    else:
        told.append(f"For Ollama {made['no_modelfile']}.")
    heads = ("file", "largest difference of a logit", "perplexity, times this folder's", "strings cut into tokens")
    return f"## GGUF files\n\n{' '.join(told)}\n\n{_table(heads, rows)}"


def _limits(evaluation: Mapping[str, Any], licence: str | None) -> str:
    lines = [
        "What is measured above is all that was measured: safety, other languages and long conversations were not, unless a row says so.",
        "An interval speaks of more requests of the same kind, not of other kinds, and of this seed alone.",
    ]
    if licence is None:
        lines.append("The base's licence is not known here, as no card lies beside it: find it out before you pass this model on.")
    if evaluation.get("win_rate") is not None:
        lines.append("Score and win rate are a reward model's word, learned from the same team's preferences, and no person's.")
    if evaluation["size"] != "full":
        lines.append(f"The evaluation is of size {evaluation['size']}: a part of the requests, facts and texts that there are.")
    for task in ((evaluation["retention"] or {}).get("verdict") or {"tasks": []})["tasks"]:
        if not task["gated"]:
            lines.append(f"The task {task['name']} is reported with n = {task['n']:,} and does not count for the verdict.")
        elif task["verdict"] != "kept":
            lines.append(f"The task {task['name']} is {task['verdict']}.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _way_back(chain: Origin, release_id: str, evaluation_id: str) -> str:
    lines = [f"- release `{release_id}`, judged by evaluation `{evaluation_id}`"]
    for origin in chain.walk():
        trouble = "" if origin.state == "same" else f" ({origin.state} since)"
        lines.append(f"- {origin.role}: {_called(origin)}{trouble}")
        if origin.prompt_ids and origin.manifest:
            store = origin.manifest["inputs"]["store"]
            lines.append(
                f"- store `{store}`: the judgements on {counted(len(origin.prompt_ids), 'prompts')}, by their ids in `provenance.json`"
            )
    told = "From this release back to the rows of the store; `provenance.json` holds the manifests and the ids of the prompts."
    return f"## Where it comes from\n\n{told}\n\n" + "\n".join(lines)


def _called(origin: Origin) -> str:
    return f"{origin.manifest['kind'] if origin.manifest else Path(origin.name).name} `{origin.hash}`"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |" for line in lines)

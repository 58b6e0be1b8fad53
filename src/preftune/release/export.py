"""Release a run: the gate, then a folder that plain transformers loads, read back and compared before it gets its name.

releases/<id>/  config.json, model.safetensors (merged, float32), tokenizer, chat_template.jinja, generation_config.json
                adapter/ where one was trained, README.md (the card), the base's licence, provenance.json,
                sha256sums.txt (`sha256sum -c sha256sums.txt`), manifest.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from preftune.data.template import Renderer
from preftune.errors import ConfigError, ModelError, PreftuneError, Refused
from preftune.manifest import begin, disk_errors, hash_file, read_manifest, write_json
from preftune.models.checkpoint import save_model
from preftune.models.load import load_causal_lm, load_renderer, max_context, quiet
from preftune.progress import Progress, Silent
from preftune.records import Message
from preftune.release.card import card
from preftune.release.gate import EVALUATION, check_same_run, judge
from preftune.release.provenance import Origin, origin_of

TUNED = ("sft", "dpo", "ppo")  # the stages whose result writes answers
CHECKSUMS = "sha256sums.txt"
MAX_LOGIT_DIFFERENCE = 1e-4  # float32 read back: the same numbers, so only the order of sums could differ
READ_BACK_TOKENS = 48
READ_BACK_REQUESTS = ("Write a function that adds two numbers.", "Hi", "Ends in a space ")


def release(
    run: Path,
    evaluation: Path,
    out: Path = Path("releases"),
    *,
    force_reason: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write `out/<id>` from a run that its evaluation lets through, and return it; one that is there already is returned.

    evaluation: the folder that `evaluate` wrote for this very run. force_reason: release it although the gate refuses; the card
    then carries the reason. Raises Refused with the gate's reasons, ConfigError where the evaluation is of another model, and
    PreftuneError where the written folder does not read back as the same model: then nothing is left.
    """
    progress = progress or Silent()
    if force_reason is not None and not force_reason.strip():
        raise ConfigError("the reason is empty", "--force-reason", "Say in a sentence why this model is released against the gate.")
    if read_manifest(run)["kind"] not in TUNED:
        raise ConfigError(f"this is a {read_manifest(run)['kind']} folder", str(run), "Give a run of preftune train sft, dpo or ppo.")
    check_same_run(run, evaluation)
    measured = _read_evaluation(evaluation)
    gate = judge(measured)
    if not gate.passed and force_reason is None:
        raise Refused(f"the gate refuses this model. {' '.join(gate.reasons)}", str(run), "To release it all the same, give a reason.")
    reason = None if gate.passed else force_reason
    inputs = {"run": str(read_manifest(run)["id"]), "evaluation": str(read_manifest(evaluation)["id"])}
    final, work = begin(out, "release", inputs, {"force_reason": reason})
    if work is None:
        return final
    chain = origin_of(run)
    try:
        _empty(work.path)
        with progress.stage("release", 3, "parts") as task:
            renderer, expected = _write_model(run, work.path)
            task.advance()
            difference = read_back(work.path, renderer, expected)
            task.advance()
            text = card(
                chain, measured, gate, reason, release_id=work.id, evaluation_id=inputs["evaluation"], licence=_licence(chain.base.path)
            )
            _write_papers(work.path, run, chain, text)
            task.advance()
        facts = {"gate": asdict(gate), "read_back": {"prompts": len(expected), "max_logit_difference": difference}}
        return work.finish(final, run=run.name, checksums=hash_file(work.path / CHECKSUMS), **facts)
    except BaseException:
        shutil.rmtree(work.path, ignore_errors=True)
        raise


def _read_evaluation(folder: Path) -> dict[str, Any]:
    path = folder / EVALUATION
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise PreftuneError(f"this is not JSON ({error})", str(path), "Run preftune evaluate anew.") from error


def _empty(folder: Path) -> None:
    # A release that was killed is begun anew: nothing half written may slip in.
    shutil.rmtree(folder)
    folder.mkdir()


@dataclass(frozen=True)
class _Expected:
    # What the model in memory says to one request: the prompt's ids, the logits after each of its tokens, the greedy answer.
    messages: tuple[Message, ...]
    ids: list[int]
    logits: Tensor
    completion: list[int]


def _write_model(run: Path, folder: Path) -> tuple[Renderer, list[_Expected]]:
    renderer = load_renderer(run)
    model = load_causal_lm(run, device=torch.device("cpu"), dtype=torch.float32)
    save_model(model, renderer, folder)
    requests = [(Message(role="user", content=text),) for text in READ_BACK_REQUESTS]
    expected = []
    for messages in requests:
        ids = renderer.prompt_ids(messages)
        expected.append(_Expected(messages, ids, _logits(model, ids), _greedy(model, ids)))
    return renderer, expected


def read_back(folder: Path, renderer: Renderer, expected: list[Any]) -> float:
    """Return the largest difference of a logit between the model in memory and the folder as plain transformers loads it.

    Raises ModelError where that is more than 1e-4, where a likeliest token, a greedy answer or a rendered prompt differs, or
    where weights, the chat template or the end-of-turn token did not arrive.
    """
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, info = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    model.eval()
    _insist(not info["missing_keys"], f"weights are missing: {', '.join(sorted(info['missing_keys'])[:3])}", folder)
    _insist(model.dtype == torch.float32, f"the weights came back as {model.dtype}", folder)
    ends = model.generation_config.eos_token_id
    _insist(isinstance(ends, list) and set(ends) == renderer.stop_ids, f"generation stops at {ends}", folder)
    _insist(tokenizer.chat_template == renderer.template, "the chat template came back changed", folder)
    worst = 0.0
    for case in expected:
        turns = [{"role": m.role, "content": m.content} for m in case.messages]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        _insist(tokenizer(text, add_special_tokens=False)["input_ids"] == case.ids, f"{turns[-1]['content']!r} is rendered anew", folder)
        logits = _logits(model, case.ids)
        difference = float((logits - case.logits).abs().max())
        _insist(difference <= MAX_LOGIT_DIFFERENCE, f"a logit differs by {difference:.2g}", folder)
        _insist(bool((logits.argmax(-1) == case.logits.argmax(-1)).all()), "a likeliest token differs", folder)
        _insist(_greedy(model, case.ids) == case.completion, f"the greedy answer to {turns[-1]['content']!r} differs", folder)
        worst = max(worst, difference)
    return worst


def _insist(holds: bool, trouble: str, folder: Path) -> None:
    if not holds:
        raise ModelError(f"the written model does not read back as the same: {trouble}", str(folder), "Nothing was released.")


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([ids])).logits[0]
    return logits.float()


@torch.no_grad()
def _greedy(model: Any, ids: list[int]) -> list[int]:
    # The model's own generation config says where an answer ends; both models have the one that the release carries.
    room = min(READ_BACK_TOKENS, max_context(model) - len(ids))
    prompt = torch.tensor([ids])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=room)
    completion: list[int] = out[0, len(ids) :].tolist()
    return completion


def _write_papers(folder: Path, run: Path, chain: Origin, text: str) -> None:
    with disk_errors(folder):
        (folder / "README.md").write_text(text, encoding="utf-8")
        write_json(folder / "provenance.json", _provenance(chain))
        for licence in _licence_files(chain.base.path):
            shutil.copyfile(licence, folder / licence.name)
        if (run / "adapter").exists():
            (folder / "adapter").mkdir()
            for file in sorted((run / "adapter").glob("adapter_*")):
                shutil.copyfile(file, folder / "adapter" / file.name)  # without its mode: others may read it
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        sums = "".join(f"{hash_file(folder / name)}  {name}\n" for name in files)
        (folder / CHECKSUMS).write_text(sums, encoding="utf-8")


def _provenance(chain: Origin) -> list[dict[str, Any]]:
    keys = ("role", "name", "hash", "state", "manifest", "prompt_ids")
    return [{key: getattr(origin, key) for key in keys} for origin in chain.walk()]


def _licence_files(base: Path) -> Iterator[Path]:
    if not base.exists():
        return
    folder = base if base.is_dir() else base.parent  # beside a GGUF file
    names = ("license", "licence", "notice", "copying")
    yield from sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().startswith(names))


def _licence(base: Path) -> str | None:
    """Return the licence that the base's own card names in its metadata, if it has one."""
    path = base / "README.md"
    if not path.is_file():
        return None
    head = path.read_text(encoding="utf-8").split("---\n")
    if len(head) < 3 or head[0]:
        return None
    try:
        values = yaml.safe_load(head[1])
    except yaml.YAMLError:
        return None  # a card that cannot be read names no licence
    named = values.get("license") if isinstance(values, Mapping) else None
    return named if isinstance(named, str) else None

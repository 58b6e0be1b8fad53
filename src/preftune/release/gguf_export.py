"""The GGUF files of a release: each written, read back and compared before the next, and a Modelfile for Ollama beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from preftune.data.template import Renderer
from preftune.errors import ConfigError, ModelError
from preftune.evaluate.texts import texts
from preftune.manifest import disk_errors
from preftune.release.folder import Expected
from preftune.release.gguf_check import check_gguf, mean_nll
from preftune.release.gguf_write import Kind, context_of, write_gguf
from preftune.release.ollama import modelfile

PLACE = "gguf"  # a folder of its own: beside config.json transformers would take the tokenizer's settings from there
MODELFILE = "Modelfile"
PASSAGES, PASSAGE_TOKENS = 2, 192  # of prose and of code, to measure perplexity on


@dataclass(frozen=True)
class Measured:
    """What a GGUF file is compared with: the answers of the model in memory, texts as token ids, and its mean loss on them."""

    expected: Sequence[Expected]
    texts: Sequence[Sequence[int]]
    nll: float


def kinds_of(names: Sequence[str]) -> tuple[Kind, ...]:
    """Return the kinds that were asked for, each once. Raises ConfigError for one that is not written."""
    known: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
    for name in names:
        if name.lower() not in known:
            told = f"Use one of {', '.join(known)}. For Q4_K_M and its kin run llama.cpp's llama-quantize on the f16 file."
            raise ConfigError(f'no GGUF of the kind "{name}" is written', "--gguf", told)
    return tuple(dict.fromkeys(known[name.lower()] for name in names))


def measure_before(model: Any, renderer: Renderer, expected: Sequence[Expected]) -> Measured:
    """Measure the model in memory on what each file will be measured on."""
    room = min(PASSAGE_TOKENS, context_of(model.config))
    ids = [renderer.raw_ids(text.text)[:room] for text in texts(PASSAGES)]
    return Measured(expected, ids, mean_nll(model, ids))


def write_ggufs(
    folder: Path, kinds: Sequence[Kind], renderer: Renderer, measured: Measured, *, name: str, told: Callable[[], None]
) -> dict[str, Any]:
    """Write `gguf/` in a release's folder and return what was found when it was read back.

    told: called after each file. Raises ModelError where a file does not read back as the model.
    """
    (folder / PLACE).mkdir()
    files: dict[str, Any] = {}
    for kind in kinds:
        path = folder / PLACE / f"{name}-{kind}.gguf"
        vocabulary = write_gguf(folder, path, kind, renderer=renderer, name=name)
        files[path.name] = check_gguf(path, kind, folder, vocabulary, renderer, measured.expected, measured.texts, measured.nll)
        told()
    facts: dict[str, Any] = {"files": files, "modelfile": None, "composed": vocabulary.composed}
    try:
        text = modelfile(renderer, vocabulary, next(iter(files)))
    except ModelError as error:
        return facts | {"no_modelfile": error.what}
    with disk_errors(folder):
        (folder / PLACE / MODELFILE).write_text(text, encoding="utf-8")
    return facts | {"modelfile": f"{PLACE}/{MODELFILE}"}

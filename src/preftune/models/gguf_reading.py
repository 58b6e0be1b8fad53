"""GGUF files as transformers reads them, in less than half of its time, and with plain weights whatever the family."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gguf
import numpy as np
import transformers


class PlainReader(gguf.GGUFReader):
    """Reads a file through a plain array: a tokenizer is half a million slices, and numpy takes its time over each of a memmap."""

    @property
    def data(self) -> Any:
        """The file's bytes."""
        return self._data

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._data = np.asarray(mapped)


@contextmanager
def read_once() -> Iterator[None]:
    """Let transformers read a GGUF file once within this block, and make its table of names once.

    By itself it reads the whole file anew for the config and for the weights, and makes the table anew for each module of the model,
    397 times for SmolLM2: 24 of 32 seconds on two cores. Both depend on nothing but their arguments.
    """
    by_itself = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(PlainReader), functools.cache(gguf.get_tensor_name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = by_itself


def with_plain_weights() -> dict[str, Any]:
    """Return what `from_pretrained` is to be told, so that no weight stays packed, as newer transformers leave those of some families."""
    settings = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": settings(dequantize=True)} if settings else {}

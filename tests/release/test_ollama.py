"""The Modelfile's Go template gives the very text that the model's own template gives; else there is none."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from preftune.data.template import Renderer
from preftune.errors import ModelError
from preftune.records import Message
from preftune.release.ollama import FORMS, modelfile

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for message in rest %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' + (first if loop.first else '')"
    " + message['content'] + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def go(template: str, messages: list[Message]) -> str:
    """Render the small part of Go's templates that is used: range, if, else, variables, fields."""
    parts = re.split(r"\{\{ (.*?) \}\}", template)
    state: dict[str, bool] = {}

    def true(condition: str, dot: Message | None) -> bool:
        if condition.startswith("not "):
            return not state[condition.removeprefix("not ")]
        assert dot is not None
        return dot.role == re.fullmatch(r'eq \.Role "(\w+)"', condition)[1]

    def run(at: int, dot: Message | None, *, live: bool) -> tuple[str, int]:
        # From a piece of text on, to the action that closes the block: (what was written, that action's place).
        out = ""
        while True:
            out += parts[at] if live else ""
            at += 1
            if at >= len(parts) or parts[at] == "end" or parts[at].startswith("else"):
                return out, at
            action = parts[at]
            if action == "range .Messages":
                end = run(at + 1, messages[0], live=False)[1]
                out += "".join(run(at + 1, message, live=True)[0] for message in messages)
                at = end
            elif action.startswith("if "):
                done = False
                while True:
                    chosen = live and not done and (action == "else" or true(action.removeprefix("else ").removeprefix("if "), dot))
                    text, at = run(at + 1, dot, live=chosen)
                    out, done, action = out + text, done or chosen, parts[at]
                    if action == "end":
                        break
            elif live and "=" in action:
                name, value = re.fullmatch(r"(\$\w+) :?= (true|false)", action).groups()
                state[name] = value == "true"
            elif live:
                out += {".Content": dot.content, ".Role": dot.role}[action]
            at += 1

    return run(0, None, live=True)[0]


def talk(*turns: str) -> list[Message]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [Message(role=roles[turn[0]], content=turn[2:]) for turn in turns]


TALKS = [talk("u Hi"), talk("u Hi", "a Hello", "u {{ .Role }}\n\nMore?"), talk("s Be kind.", "u Hi", "a Yes", "u No")]


@pytest.fixture
def render(make_tokenizer):
    def made(style: str, template: str | None = None) -> Renderer:
        return Renderer(make_tokenizer(style), chat_template=template, where="model")

    return made


def written(renderer: Renderer, *, add_bos: bool) -> tuple[str, str]:
    tokens = {number: text for text, number in renderer.tokenizer.get_vocab().items()}
    text = modelfile(renderer, SimpleNamespace(add_bos=add_bos, tokens=tokens), "model.gguf")
    return text, re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)[1]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("messages", TALKS, ids=["one", "many", "system"])
def test_a_forms_go_template_is_its_text(form, messages):
    assert go(form.go(), messages) == form.text(messages)


@pytest.mark.parametrize(
    ("style", "template", "stops"),
    [
        ("chatml", None, ["<|im_end|>", "<|endoftext|>"]),
        ("llama3", None, ["<|end_of_text|>", "<|eot_id|>"]),
        ("gemma", GEMMA, ["<end_of_turn>", "<eos>"]),
        ("mistral", None, ["</s>"]),
    ],
)
def test_each_known_template_is_rendered_as_the_models_own(render, style, template, stops):
    renderer = render(style, template)
    text, template = written(renderer, add_bos=False)
    assert text.startswith("FROM ./model.gguf\n")
    assert sorted(re.findall(r'PARAMETER stop "(.*)"', text)) == sorted(stops)
    for messages in TALKS[: 2 if style == "mistral" else 3]:  # this Mistral's template knows no system message
        assert go(template, messages) == renderer.prompt_text(messages)


def test_bos_is_left_to_llama_cpp_where_the_file_says_that_it_adds_one(render):
    renderer = render("llama3")
    assert written(renderer, add_bos=False)[1].startswith("<|begin_of_text|>")
    assert "<|begin_of_text|>" not in written(renderer, add_bos=True)[1]


def test_a_templates_own_system_message_becomes_the_modelfiles(render):
    text, template = written(render("chatml", DEFAULT), add_bos=False)
    assert 'SYSTEM """You help."""' in text
    renderer = render("chatml", DEFAULT)
    assert go(template, [*talk("s You help."), *TALKS[1]]) == renderer.prompt_text(TALKS[1])


@pytest.mark.parametrize(
    ("style", "template"),
    [
        ("chatml", "plain"),
        ("gemma", None),  # this one writes a system turn, which Gemma's form does not
        ("chatml", DEFAULT.replace("message['role'] + '\n'", "message['role'] + ':\n'").replace("assistant\n", "assistant:\n")),
    ],
)
def test_a_template_of_no_known_form_is_refused(render, style, template):
    with pytest.raises(ModelError, match="no Modelfile is written: the chat template is none that Ollama would know"):
        written(render(style, template), add_bos=False)

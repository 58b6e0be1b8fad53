"""An Ollama Modelfile: the GGUF file, the conversation's form as a Go template, a default system message, and where answers end.

Ollama renders conversations by Go templates, not by the model's own Jinja template. So one is written only where a known form gives
the very text that the model's template gives; a form that is near but not the same would make a model that rambles or answers worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preftune.data.template import Renderer
from preftune.errors import ModelError
from preftune.records import Message
from preftune.release.gguf_tokens import Vocabulary

JOINED = "\n\n"  # between a system message and the user's turn that takes it in


@dataclass(frozen=True)
class Form:
    """How one family writes a conversation: what stands before and after each turn's text, and what begins an answer.

    system: None where the system message goes in front of the user's text, inside the user's turn.
    """

    name: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    generate: str

    def text(self, messages: Sequence[Message]) -> str:
        """Return a conversation as text, without BOS, up to where the answer begins."""
        parts, open_turn = [], False
        for message in messages:
            before, after = {"user": self.user, "assistant": self.assistant, "system": self.system or (self.user[0], JOINED)}[message.role]
            parts.append(("" if open_turn else before) + message.content + after)
            open_turn = message.role == "system" and self.system is None
        return "".join(parts) + self.generate

    def go(self) -> str:
        """Return the same as a Go template."""
        (user, after_user), (assistant, after_assistant) = self.user, self.assistant
        if self.system is None:
            start, opened = "{{ $open := false }}", "{{ $open = true }}"
            before, after = user, JOINED
            user = f"{{{{ if not $open }}}}{user}{{{{ end }}}}{{{{ $open = false }}}}"
        else:
            start, opened = "", ""
            before, after = self.system
        return (
            f'{start}{{{{ range .Messages }}}}{{{{ if eq .Role "system" }}}}{before}{{{{ .Content }}}}{after}{opened}'
            f'{{{{ else if eq .Role "assistant" }}}}{assistant}{{{{ .Content }}}}{after_assistant}'
            f"{{{{ else }}}}{user}{{{{ .Content }}}}{after_user}{{{{ end }}}}{{{{ end }}}}{self.generate}"
        )


def _headed(role: str) -> tuple[str, str]:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"


def _chatml(role: str) -> tuple[str, str]:
    return f"<|im_start|>{role}\n", "<|im_end|>\n"


def _gemma(role: str) -> tuple[str, str]:
    return f"<start_of_turn>{role}\n", "<end_of_turn>\n"


FORMS = (
    Form("ChatML", _chatml("system"), _chatml("user"), _chatml("assistant"), _chatml("assistant")[0]),
    Form("Llama 3", _headed("system"), _headed("user"), _headed("assistant"), _headed("assistant")[0]),
    Form("Gemma", None, _gemma("user"), _gemma("model"), _gemma("model")[0]),
    Form("Mistral", None, ("[INST] ", " [/INST]"), (" ", "</s>"), ""),
    Form("Mistral v3", None, ("[INST] ", "[/INST]"), (" ", "</s>"), ""),
)
_USER, _ANSWER, _MORE = (
    Message(role="user", content="What is two and two?"),
    Message(role="assistant", content="It is four."),
    Message(role="user", content="And now?"),
)
_SYSTEM = Message(role="system", content="Be brief.")


def modelfile(renderer: Renderer, vocabulary: Vocabulary, file: str) -> str:
    """Return the text of a Modelfile for a GGUF file beside it.

    Raises ModelError where no known form is the model's own. White space at the ends of a turn, which some templates strip and Ollama
    does not, is not compared.
    """
    bos = str(renderer.tokenizer.bos_token or "")
    for form in FORMS:
        system = _default_system(form, renderer, bos)
        if system is not None and _agrees(form, renderer, bos, system):
            break
    else:
        known = ", ".join(form.name for form in FORMS)
        raise ModelError(
            f"no Modelfile is written: the chat template is none that Ollama would know ({known})",
            renderer.where,
            "Use the GGUF file with llama.cpp or LM Studio, which read the template in it.",
        )
    # llama.cpp puts BOS first where the file says so; else the template itself has to.
    first = bos if bos and renderer.prompt_text([_USER]).startswith(bos) and not vocabulary.add_bos else ""
    stops = [vocabulary.tokens[number] for number in sorted(renderer.stop_ids)]
    lines = [f"FROM ./{file}", f'TEMPLATE """{first}{form.go()}"""']
    if system:
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join([*lines, *(f'PARAMETER stop "{stop}"' for stop in stops)]) + "\n"


def _default_system(form: Form, renderer: Renderer, bos: str) -> str | None:
    """Return the system message that the template adds by itself ("" = none), or None where it is of another form."""
    text = renderer.prompt_text([_USER]).removeprefix(bos)
    if text == form.text([_USER]):
        return ""
    before, after = form.system or (form.user[0], JOINED)
    rest = form.text([_SYSTEM, _USER]).removeprefix(before + _SYSTEM.content)
    if not text.startswith(before) or not text.endswith(rest) or len(text) <= len(before) + len(rest):
        return None
    found = text[len(before) : len(text) - len(rest)]
    return None if (after.strip() and after.strip() in found) or '"""' in found else found


def _agrees(form: Form, renderer: Renderer, bos: str, system: str) -> bool:
    default = [Message(role="system", content=system)] if system else []
    if renderer.prompt_text([_USER, _ANSWER, _MORE]).removeprefix(bos) != form.text([*default, _USER, _ANSWER, _MORE]):
        return False
    for messages in ([_SYSTEM, _USER], [_SYSTEM, _USER, _ANSWER, _MORE]):
        try:
            text = renderer.prompt_text(messages)
        except ModelError:  # the template knows no system message
            continue
        if text.removeprefix(bos) != form.text(messages):
            return False
    return True

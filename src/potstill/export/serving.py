"""How the files are served: an Ollama Modelfile and SERVING.md, written beside them.

In: the student's tokenizer, the files' names. Out: two texts. Knows nothing of figures.

Ollama reads no Jinja, so the chat template is taken apart into what stands around each role's words
and put together again in Ollama's own language. It is used only if it renders conversations with
several turns, with and without a system turn, exactly as the template does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from potstill.models.tokens import CONVERSATIONS

MARK = "\ue000"
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Pieces:
    """What a chat template writes around the words of each role."""

    start: str
    """Before the first turn, where it is not the system's."""
    start_with_system: str
    around: Mapping[str, tuple[str, str]]
    prompt: str
    """The generation prompt."""

    def rendered(self, messages: Messages) -> str:
        first = messages[0]["role"] == "system"
        text = self.start_with_system if first else self.start
        for message in messages:
            before, after = self.around[message["role"]]
            text += before + message["content"] + after
        return text + self.prompt

    def in_go(self) -> str:
        """The same as a template of Ollama's."""
        roles = [
            f'{{{{ {"if" if place == 0 else "else if"} eq .Role "{role}" }}}}{before}'
            f"{{{{ .Content }}}}{after}"
            for place, (role, (before, after)) in enumerate(self.around.items())
        ]
        turns = f"{{{{ range .Messages }}}}{''.join(roles)}{{{{ end }}}}{{{{ end }}}}"
        first = '{{ if eq (index .Messages 0).Role "system" }}'
        start = f"{first}{self.start_with_system}{{{{ else }}}}{self.start}{{{{ end }}}}"
        return (start if self.start != self.start_with_system else self.start) + turns + self.prompt


def pieces_of(tokenizer: Any) -> Pieces | None:
    """The template taken apart; None if it is not made of fixed pieces around the words."""
    user, said, again = ({"role": "user"}, {"role": "assistant"}, {"role": "user"})
    try:
        after_user = _between(tokenizer, [user])[-1]
        middle = _between(tokenizer, [user, said])
        before_assistant = _without(middle[1], after_user)
        after_assistant = middle[-1]
        before_user = _without(_between(tokenizer, [user, said, again])[2], after_assistant)
        start = _beginning(_between(tokenizer, [user])[0], before_user)
        prompt = _without(_between(tokenizer, [user], prompted=True)[-1], after_user)
        around = {"user": (before_user, after_user)}
        around["assistant"] = (before_assistant, after_assistant)
    except (TemplateError, ValueError):
        return None
    start_with_system = start
    try:
        first, second, _ = _between(tokenizer, [{"role": "system"}, user])
        after_system = _beginning(second, before_user)
        # Where the turn begins as the user's does, what stands before it is the text's beginning.
        alike = before_user.replace("user", "system")
        start_with_system = _beginning(first, alike) if alike and first.endswith(alike) else ""
        around["system"] = (_without(first, start_with_system), after_system)
    except (TemplateError, ValueError):
        pass  # a template that knows no system turn
    found = Pieces(start, start_with_system, around, prompt)
    if "{{" in "".join([start, start_with_system, prompt, *(a + b for a, b in around.values())]):
        return None  # Ollama would take it for its own
    return found if all(_as_the_template(tokenizer, found, one) for one in CONVERSATIONS) else None


def modelfile(tokenizer: Any, file: str, context: int | None) -> str:
    """Ollama's Modelfile for that GGUF file. context: the longest text in tokens, if known."""
    lines = [f"FROM ./{file}"]
    pieces = pieces_of(tokenizer)
    template = _plain(tokenizer, pieces.in_go()) if pieces else None
    if template is None or '"""' in template:
        lines.append("# The chat template is more than Ollama's own language can say; Ollama will")
        lines.append("# take the one that it knows for this model, or use llama.cpp.")
    else:
        lines.append(f'TEMPLATE """{template}"""')
    if tokenizer.eos_token:
        lines.append(f'PARAMETER stop "{tokenizer.eos_token}"')
    lines.append("PARAMETER temperature 0")
    lines += [f"PARAMETER num_ctx {context}"] if context else []
    return "\n".join(lines) + "\n"


def serving(file: str, context: int | None) -> str:
    """SERVING.md: the lines that serve the student, for each server."""
    window = f" -c {context}" if context else ""
    longest = f" --max-model-len {context}" if context else ""
    return "\n".join(
        [
            "# Serving the student\n",
            "Each line is run in this folder and starts a server with OpenAI's interface.\n",
            f"llama.cpp, `{file}`, port 8080:\n",
            f"```sh\nllama-server -m {file} --jinja{window} --port 8080\n```\n",
            f"Ollama, `{file}` by the `Modelfile` here, port 11434:\n",
            "```sh\nollama create student -f Modelfile\nollama run student\n```\n",
            "vLLM, the safetensors, port 8000:\n",
            f"```sh\nvllm serve ./safetensors --served-model-name student{longest}\n```\n",
            "Ask any of them:\n",
            "```sh\ncurl http://localhost:8080/v1/chat/completions "
            '-H \'Content-Type: application/json\' \\\n  -d \'{"model": "student", '
            '"temperature": 0, "messages": [{"role": "user", "content": "Hello"}]}\'\n```\n',
        ]
    )


def _between(
    tokenizer: Any, roles: Sequence[Mapping[str, str]], prompted: bool = False
) -> list[str]:
    """What is rendered before, between and after the words of these turns."""
    messages = [{**one, "content": MARK} for one in roles]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
    found = str(text).split(MARK)
    if len(found) != len(roles) + 1:
        raise ValueError("the template does not write every turn once")
    return found


def _without(text: str, beginning: str) -> str:
    if not text.startswith(beginning):
        raise ValueError("the template's pieces are not the same in each place")
    return text[len(beginning) :]


def _beginning(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError("the template's pieces are not the same in each place")
    return text[: len(text) - len(end)]


def _as_the_template(tokenizer: Any, pieces: Pieces, messages: Messages) -> bool:
    try:
        wanted = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
    except TemplateError:
        return True  # it refuses them, whoever serves it
    return all(one["role"] in pieces.around for one in messages) and wanted == pieces.rendered(
        messages
    )


def _plain(tokenizer: Any, template: str) -> str:
    """Without a BOS at its start, which llama.cpp adds by itself."""
    start = tokenizer.bos_token
    adds = bool(start) and list(tokenizer("").input_ids)[:1] == [tokenizer.bos_token_id]
    return template.removeprefix(start) if adds else template

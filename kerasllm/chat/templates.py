"""Chat templates: Jinja programs that come with a checkpoint, so that they are run as a stranger's code."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kerasllm.errors import InputError

ROLES = ("system", "user", "assistant")
_MOST_TEMPLATE = 2**17  # the longest published ones have some 10,000 characters
_MOST_CONTENT = 2**22  # no context holds as much
_WAIT = 60  # seconds; the process may use far less of the processor
_SANDBOX = Path(__file__).with_name("sandbox.py")
_PROGRAM = "import runpy, sys; sys.path[:] = {path!r}; runpy.run_path({file!r}, run_name='__main__')"


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
) -> str:
    """The text of a conversation, as `apply_chat_template` of transformers gives it.

    Args:
        template: Jinja, such as `tokenizer.chat_template`.
        messages: Each with `role` (system, user or assistant) and `content`.
        add_generation_prompt: End with what stands before an answer.
        bos_token: How the template spells the first token.
        eos_token: How it spells the last one.

    Returns:
        The text.

    Raises:
        InputError: A message or the template is impossible, or the template needs too much time or memory.
    """
    variables = {"add_generation_prompt": add_generation_prompt, "bos_token": bos_token, "eos_token": eos_token}
    return render_conversations(template, [messages], variables)[0]


def render_conversations(
    template: str,
    conversations: Sequence[Sequence[Mapping[str, str]]],
    variables: Mapping[str, Any],
    *,
    trusted: bool = False,
) -> list[str]:
    """Render several conversations, in a process of its own unless the template is trusted.

    That process runs Jinja's sandbox with little memory and time, and can open no file.

    Args:
        template: Jinja.
        conversations: Lists of messages.
        variables: What else the template can name.
        trusted: Whether the template is our own.

    Returns:
        The texts.

    Raises:
        InputError: See `render`.
    """
    if len(template) > _MOST_TEMPLATE:
        raise InputError(f"chat template: {len(template)} characters are more than {_MOST_TEMPLATE}; use another one")
    plain = [checked(messages) for messages in conversations]
    if trusted:
        from kerasllm.chat.sandbox import render_all

        return render_all(template, plain, variables)
    answer = _ask([template, plain, dict(variables)])
    if "error" in answer:
        raise InputError(f"chat template: {_shown(answer['error'])}; use a template that takes this conversation")
    return answer["texts"]


def checked(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The messages, if they are any.

    Args:
        messages: Each with `role` and `content`.

    Returns:
        Dictionaries of these two.

    Raises:
        InputError: One has another role, no content, or a content that is far too long.
    """
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            shown = _shown(f"{message!r:.80}")
            raise InputError(f"message: needs 'role' ({', '.join(ROLES)}) and 'content' (a string), received {shown}")
        if len(content) > _MOST_CONTENT:
            raise InputError(f"message: {len(content)} characters are more than {_MOST_CONTENT}; shorten it")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _ask(request: list[Any]) -> dict[str, Any]:
    """The answer of `sandbox.main`."""
    command = [sys.executable, "-c", _PROGRAM.format(path=[str(path) for path in sys.path], file=str(_SANDBOX))]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "timeout": _WAIT}
    too_much = "chat template: takes too much time or memory; use another one"
    try:
        done = subprocess.run(command, input=json.dumps(request).encode(), check=False, **options)
    except subprocess.TimeoutExpired:
        raise InputError(too_much) from None
    except OSError as error:
        raise InputError(
            f"chat template: {sys.executable or 'Python'} cannot be started to render it ({error.strerror}); "
            "run kerasllm with a Python that can"
        ) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise InputError(too_much) from None
    if not isinstance(answer, dict) or not answer.keys() & {"texts", "error"}:
        raise InputError(too_much)
    return answer


def _shown(message: str) -> str:
    """What a template says of itself, as one short line without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    return line if len(line) <= 200 else f"{line[:200]}..."

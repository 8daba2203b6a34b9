"""The chat in the terminal."""

import contextlib
import io
import os
import re
import sys
from typing import Any

from kerasllm.chat.conversation import Chat
from kerasllm.errors import InputError

HELP = """\
/system TEXT  change the system message; without TEXT, back to the model's own
/reset        forget what was said
/help         this list
/exit         leave, as Ctrl-D does; Ctrl-C stops an answer"""

_PROMPT = "> "
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


def open_chat(path_or_name: str | os.PathLike[str], **options: Any) -> Chat:
    """Begin a conversation with a model on disk.

    Args:
        path_or_name: A `.tflite` file, which runs without TensorFlow, or what `kerasllm.load` takes.
        **options: Those of `Chat`.

    Returns:
        The conversation.

    Raises:
        InputError: There is no such model, or it cannot chat.
    """
    from kerasllm.folder import find

    path = find(path_or_name)
    if path.suffix == ".tflite" and path.is_file():
        from kerasllm.edge import EdgeModel

        return Chat(EdgeModel(path), **options)
    from kerasllm.folder import load

    return Chat(*load(path), **options)


def run_chat(path_or_name: str | os.PathLike[str], **options: Any) -> None:
    """Chat in the terminal, or with a pipe: then every line is a message, and answers alone are printed.

    Args:
        path_or_name: See `open_chat`.
        **options: Those of `Chat`: `system`, `max_new_tokens`, `temperature`, `top_k`, `top_p`, `min_p`, `seed`.

    Raises:
        InputError: See `open_chat`; with a pipe also for a message that cannot be answered.
    """
    for stream in (sys.stdin, sys.stdout):
        # Text that is no UTF-8, or that the terminal cannot show, is no reason to end.
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(io.UnsupportedOperation):
                stream.reconfigure(errors="replace")
    chat = open_chat(path_or_name, **options)
    if sys.stdin.isatty() and sys.stdout.isatty():
        _interactive(chat)
    else:
        for line in sys.stdin:
            if not _turn(chat, line, interactive=False):
                return


def _interactive(chat: Chat) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives `input` its line editing and history)
    if chat.prompts.plain:
        print("This model was not made for conversations: it continues a plain transcript.")
    print("/help lists the commands.")
    while True:
        try:
            line = input(_PROMPT)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        try:
            if not _turn(chat, line, interactive=True):
                return
        except InputError as error:
            print(f"Error: {error}")
        except KeyboardInterrupt:
            print(" [stopped]")


def _turn(chat: Chat, line: str, *, interactive: bool) -> bool:
    """Do what a line says; whether to go on."""
    line = line.strip()
    if not line:
        return True
    command = _COMMAND.fullmatch(line)
    if command is None:
        _answer(chat, line, interactive)
        return True
    name, text = command[1], command[2]
    if name == "exit":
        return False
    if name == "reset":
        chat.reset()
    elif name == "system":
        chat.set_system(text)
    elif name != "help":
        raise InputError(f"/{name:.20}: is no command; /help lists them")
    elif interactive:
        print(HELP)
    return True


def _answer(chat: Chat, text: str, interactive: bool) -> None:
    with contextlib.closing(chat.stream(text)) as pieces:
        for piece in pieces:
            print(_printable(piece) if interactive else piece, end="", flush=True)
    print(flush=True)


def _printable(text: str) -> str:
    """What a model writes, without the control characters that would command the terminal."""
    return "".join("\ufffd" if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 else c for c in text)

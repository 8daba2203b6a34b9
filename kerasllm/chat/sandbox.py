"""Rendering Jinja templates that somebody else wrote: the program of the process in which `templates` does it.

Names, filters and whitespace are those of transformers (`apply_chat_template`). Nothing but Jinja is imported: that
process runs this file by its path, without the package around it.
"""

import contextlib
import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.debug  # used where a template fails; by then no file can be opened
import jinja2.ext
import jinja2.sandbox

MEMORY, CPU_SECONDS, CHARACTERS = 512 * 2**20, 2, 2**24
"""Most bytes and seconds that the process may take, and most characters that it may write."""


_WARM = r"{{ 'a\n\u4e00' | wordwrap | pprint }}{{ strftime_now('%c %Z') }}{{ [1] | tojson(indent=1) }}{{ lipsum(1) }}"
"""Python loads some modules when they are first used; that must be before files are out of reach."""


class _Dict:
    """The name `dict` in a template: calls alone, no class whose attributes lead anywhere."""

    def __call__(self, *arguments: Any, **items: Any) -> dict[Any, Any]:
        return dict(*arguments, **items)


class _Namespace(jinja2.utils.Namespace):
    """The name `namespace` in a template, which holds no names that Python uses itself."""

    def __init__(*arguments: Any, **items: Any) -> None:
        self, *given = arguments
        attributes = dict(*given, **items)
        for name in attributes:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, with which training templates mark what the model said, changes nothing here."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.exceptions.TemplateError(str(message))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter writes HTML entities."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The Jinja environment of chat templates."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = _tojson
    made.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
    )
    return made


def render_all(
    template: str, conversations: Sequence[Sequence[Mapping[str, str]]], variables: Mapping[str, Any]
) -> list[str]:
    """Render each conversation.

    Args:
        template: Jinja.
        conversations: Messages with `role` and `content`.
        variables: What else the template can name.

    Returns:
        The texts.

    Raises:
        Exception: Whatever the template does wrong.
    """
    compiled, texts, left = environment().from_string(template), [], CHARACTERS
    # Templates ask `tools is not none`, which is true of a name that is not given.
    given = {"tools": None, "documents": None, **variables}
    for messages in conversations:
        pieces = []
        for piece in compiled.generate(messages=[dict(message) for message in messages], **given):
            left -= len(piece)
            if left < 0:
                raise ValueError(f"it writes more than {CHARACTERS} characters")
            pieces.append(piece)
        texts.append("".join(pieces))
    return texts


def main() -> None:
    """Read a request from standard input and write the answer to standard output, both JSON."""
    request = json.load(sys.stdin)
    _limit()
    try:
        answer: dict[str, Any] = {"texts": render_all(*request)}
    except MemoryError:
        sys.exit(1)  # no answer says that it was too much
    except Exception as error:  # whatever a template can do is its author's mistake
        answer = {"error": f"{type(error).__name__}: {error}"[:1000]}
    json.dump(answer, sys.stdout)


def _limit() -> None:
    """From here on: little memory and time, no file, no socket, no process."""
    try:
        import resource
    except ImportError:  # Windows: what remains is the time that the caller waits
        return
    environment().from_string(_WARM).render()
    limits = {"AS": MEMORY, "CPU": CPU_SECONDS, "FSIZE": 0, "NOFILE": 0, "NPROC": 0, "CORE": 0}
    for name, most in limits.items():
        with contextlib.suppress(ValueError, OSError, AttributeError):  # not every system has every limit
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


if __name__ == "__main__":
    main()

"""Where a continuation ends, as plain text and ids: shared by the loop on Keras and the one on a phone."""

from collections.abc import Sequence


def strings(stop: str | Sequence[str]) -> list[str]:
    """One stop string or several as a list, without empty ones."""
    return [s for s in ([stop] if isinstance(stop, str) else stop) if s]


def until(tokens: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """The tokens before the first of `stop_ids`."""
    for place, token in enumerate(tokens):
        if token in stop_ids:
            return list(tokens[:place])
    return list(tokens)


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before a stop string, and whether there was one.

    The string that is complete first ends the text: so it does not matter how often one looks.
    """
    found = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    return (text[: min(found)[1]], True) if found else (text, False)


def settled(text: str, stop: Sequence[str]) -> int:
    """How many characters of an unfinished text no later token will change, and begin no stop string."""
    ready = text.rstrip("\ufffd")
    begun = [n for s in stop for n in range(1, len(s)) if ready.endswith(s[:n])]
    return len(ready) - max(begun, default=0)

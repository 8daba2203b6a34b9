"""Braces of wikitext: templates and tables go, and the few templates that are part of a sentence become text.

A dump holds calls of templates, not their output. Most of them draw boxes, notes and navigation, and go. Some carry
words of the sentence they stand in ("a distance of {{convert|1300|mi|km}}"), and dropping them leaves holes. The tables
below name those that are frequent in the English Wikipedia; each is documented at
`https://en.wikipedia.org/wiki/Template:<name>`. Everything else renders as None: dropped.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

# Longer contents are boxes, not parts of a sentence; the bound also keeps nested calls linear in time.
MAX_LENGTH = 4000

# name -> the positional argument that is shown.
_ARGUMENT = {
    **dict.fromkeys(("nowrap", "nobr", "small", "smaller", "big", "larger", "midsize", "nobold", "noitalic", "em"), 1),
    **dict.fromkeys(
        ("strong", "sc", "smallcaps", "uc", "lc", "nq", "not a typo", "sic", "as written", "lead", "var"), 1
    ),
    **dict.fromkeys(
        ("ipa", "unicode", "script", "abbr", "tooltip", "angbr", "angle bracket", "vr", "keypress", "key"), 1
    ),
    **dict.fromkeys(("val", "nihongo", "flag", "flagcountry", "us$", "gbp", "mvar", "math", "quote", "blockquote"), 1),
    **dict.fromkeys(("cquote", "quotation", "bq", "poemquote", "interlanguage link", "ill", "hlist", "legend"), 1),
    **dict.fromkeys(("lang", "legend", "longitem", "bibleverse", "color", "colour"), 2),
    **dict.fromkeys(("transl", "transliteration"), -1),
}
_AFFIX = {"circa": ("c. ", ""), "c.": ("c. ", ""), "as of": ("as of ", ""), "us$": ("US$", ""), "gbp": ("£", "")}
_FIXED = {
    **dict.fromkeys(("ndash", "en dash", "–"), "–"),
    **dict.fromkeys(("mdash", "em dash", "—"), "—"),
    **dict.fromkeys(("snd", "spnd", "spaced ndash", "spaced en dash"), " – "),
    **dict.fromkeys(("nbsp", "space", "spaces", "thinsp"), " "),
    **{"pi": "π", "'": "'", "`": "'", "'s": "'s", "=": "=", "carbon": "C", "hydrogen": "H", "oxygen": "O"},
}
_RANGE = {"-": "–", "–": "–", "to": " to ", "to(-)": " to ", "and": " and ", "or": " or ", "x": " × ", "by": " by "}
_UNITS = {"sqmi": "sq mi", "sqft": "sq ft", "C": "°C", "F": "°F", "K": "K", "cuft": "cu ft", "impgal": "imp gal"}
_NAME = re.compile(r"[\w -]{1,40}")
_BRACES = re.compile(r"\{\{+|\}\}+|\{\||\|\}(?!\})")


@dataclass
class _Open:
    """An opening mark: `count` braces of a template or parameter, 0 for a table; `parts` is the text since then."""

    count: int
    parts: list[str]


def replace_braces(text: str, gap: str) -> str:
    """Take out templates `{{ }}`, parameters `{{{ }}}` and tables `{| |}`, nested in any way.

    Tables open and close only at the start of a line (https://www.mediawiki.org/wiki/Help:Tables); templates are
    matched first, as in MediaWiki's preprocessor. Marks without a partner are removed and their content stays.

    Args:
        text: Wikitext without comments, references and literal parts.
        gap: What to leave in place of what is taken out.
    """
    root = _Open(0, [])
    stack = [root]
    braces: list[int] = []  # where on the stack templates and tables are, so that finding the last one is one step
    tables: list[int] = []
    done = 0
    for match in _BRACES.finditer(text):
        token, start = match[0], match.start()
        if "|" in token and not _starts_line(text, start):
            continue
        stack[-1].parts.append(text[done:start])
        done = match.end()
        if token[0] == "{":
            (tables if token == "{|" else braces).append(len(stack))
            stack.append(_Open(0 if token == "{|" else len(token), []))
        elif token == "|}":
            if tables:
                place = tables.pop()
                _cut(braces, place)
                del stack[place:]
                stack[-1].parts.append(gap)
        else:
            _close_braces(len(token), stack, braces, tables, gap)
    stack[-1].parts.append(text[done:])
    return "".join(part for frame in stack for part in frame.parts)


def _close_braces(count: int, stack: list[_Open], braces: list[int], tables: list[int], gap: str) -> None:
    """Match `count` closing braces with the opening ones on the stack, innermost first."""
    while count >= 2 and braces:
        place = braces[-1]
        frame = stack[place]
        used = 3 if min(count, frame.count) >= 3 else 2
        result = gap
        parts = [part for opened in stack[place:] for part in opened.parts]
        if used == 2 and sum(map(len, parts)) <= MAX_LENGTH:
            rendered = render("".join(parts))
            result = gap if rendered is None else rendered
        del stack[place + 1 :]
        _cut(tables, place)
        count -= used
        frame.count -= used
        frame.parts = [result]
        if frame.count < 2:
            braces.pop()
            stack.pop()
            stack[-1].parts.append("{" * frame.count + result)
    if count == 1:
        stack[-1].parts.append("}")


def _cut(places: list[int], limit: int) -> None:
    while places and places[-1] > limit:
        places.pop()


def _starts_line(text: str, position: int) -> bool:
    before = text[max(0, position - 16) : position]
    line = before.rpartition("\n")[2]
    return not line.strip(" \t:*#;") and (line != before or len(before) < 16 or before[:1] == "\n")


def render(content: str) -> str | None:
    """The text that a template call shows, for the templates in the tables above.

    Args:
        content: What stands between the double braces, with inner templates already rendered: `"lang|fr|mot"`.

    Returns:
        Wikitext to put in place of the call, or None for a template that is to be dropped.
    """
    if len(content) > MAX_LENGTH:
        return None
    name, *arguments = _split(content)
    name = name.strip().replace("_", " ").lower()
    if name in _FIXED:
        return _FIXED[name]
    positional = _positional(arguments)
    rule = _RULES.get(name)
    if rule is not None:
        return rule(positional)
    if name.startswith("lang-") and positional:
        return positional[0]
    if name in _AFFIX:
        before, after = _AFFIX[name]
        return before + "".join(positional[:1]) + after
    place = _ARGUMENT.get(name)
    if place is None or len(positional) < abs(place):
        return None
    return positional[place - 1 if place > 0 else place]


def _split(content: str) -> list[str]:
    """Split at the bars that stand outside links."""
    if "[[" not in content:
        return content.split("|")
    parts, depth = [""], 0
    for token in re.split(r"(\[\[|\]\]|\|)", content):
        if token == "|" and depth <= 0:
            parts.append("")
            continue
        depth += (token == "[[") - (token == "]]")
        parts[-1] += token
    return parts


def _positional(arguments: list[str]) -> list[str]:
    """Arguments by position: `2=b` counts as the second, other named ones are settings and left out."""
    values: dict[int, str] = {}
    place = 0
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = name.strip()
        # An address or a link may hold "=", and is not a name then.
        if not equals or not _NAME.fullmatch(name):
            place += 1
            values[place] = argument.strip()
        elif name.isascii() and name.isdecimal() and len(name) < 3:
            values[int(name)] = value.strip()
        elif name == "text":
            values.setdefault(1, value.strip())
    return [values[key] for key in sorted(values)]


def _convert(arguments: list[str]) -> str | None:
    """`{{convert|1300|mi|km}}` -> "1300 mi": the measure as the author wrote it, without the conversion."""
    if len(arguments) < 2:
        return None
    text = arguments[0]
    rest = arguments[1:]
    while len(rest) >= 2 and rest[0] in _RANGE:
        text += _RANGE[rest[0]] + rest[1]
        rest = rest[2:]
    if rest:
        text += " " + _UNITS.get(rest[0], rest[0])
    # Feet and inches, pounds and ounces: number, unit, number, unit.
    if len(rest) >= 3 and rest[1].isdecimal():
        text += f" {rest[1]} {_UNITS.get(rest[2], rest[2])}"
    return text


def _fraction(arguments: list[str]) -> str:
    whole = arguments[0] + " " if len(arguments) > 2 else ""
    return whole + "/".join(arguments[-2:] if len(arguments) > 1 else ["1", *arguments])


def _chemical(arguments: list[str]) -> str:
    return "".join(arguments)


def _items(arguments: list[str]) -> str:
    return "\n" + "".join(f"* {argument}\n" for argument in arguments)


_RULES: dict[str, Callable[[list[str]], str | None]] = {
    "convert": _convert,
    "cvt": _convert,
    "frac": _fraction,
    "sfrac": _fraction,
    "chem": _chemical,
    "chem2": _chemical,
    "ordered list": _items,
    "unordered list": _items,
    "bulleted list": _items,
}

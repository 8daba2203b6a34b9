"""The few templates whose output is part of a sentence, as text.

A dump holds calls of templates, not their output. Most of them draw boxes, notes and navigation, and go. Some carry words
of the sentence they stand in ("a distance of {{convert|1300|mi|km}}"), and dropping them leaves holes. The tables below
name the ones that matter in the English Wikipedia (in the default corpus they are nine out of ten templates in running
text); each is documented at `https://en.wikipedia.org/wiki/Template:<name>`. Everything else renders as None: dropped.
"""

import re
from collections.abc import Callable

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
    **dict.fromkeys(("pi",), "π"),
    **dict.fromkeys(("'", "`"), "'"),
    **dict.fromkeys(("'s",), "'s"),
    **dict.fromkeys(("=",), "="),
}
_RANGE = {"-": "–", "–": "–", "to": " to ", "to(-)": " to ", "and": " and ", "or": " or ", "x": " × ", "by": " by "}
_UNITS = {"sqmi": "sq mi", "sqft": "sq ft", "C": "°C", "F": "°F", "K": "K", "cuft": "cu ft", "impgal": "imp gal"}
_NAMED = re.compile(r"\s*([\w -]+?)\s*=(.*)", re.DOTALL)


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
        named = _NAMED.fullmatch(argument)
        # An address or a link may hold "=", and is not a name then.
        if named is None:
            place += 1
            values[place] = argument.strip()
        elif named[1].isdecimal() and len(named[1]) < 3:
            values[int(named[1])] = named[2].strip()
        elif named[1] == "text":
            values.setdefault(1, named[2].strip())
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


_RULES: dict[str, Callable[[list[str]], str | None]] = {
    "convert": _convert,
    "cvt": _convert,
    "frac": _fraction,
    "sfrac": _fraction,
    "chem": _chemical,
    "chem2": _chemical,
}

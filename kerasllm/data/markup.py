r"""Wikitext to readable plain text, in linear time.

The language has no grammar, only an implementation (https://www.mediawiki.org/wiki/Help:Formatting and
https://www.mediawiki.org/wiki/Specs/wikitext/1.0.0). A full parser such as mwparserfromhell makes a tree of everything
and then throws most of it away; here each construct is taken out by one pass of a scanner, which is several times
faster. The tests compare the words that are left with those that mwparserfromhell finds.

Every pattern below is linear: it either has no repetition that can overlap with what follows, or it is possessive
(`*+`, which never tries again). A page of a million unclosed braces therefore takes no longer than any other.
"""

import html
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kerasllm.data.templates import replace_braces

# Unicode non-characters never occur in text, so they serve as marks inside this module (and are removed from input).
_GAP = "\ufdd0"  # where a template, formula or picture was taken out: punctuation around it may need tidying
_BREAK = "\ufdef"  # before a line end that stays one; others only wrap the source of a paragraph
_LITERAL = "[]{}|'<>=&*#:;-_! "  # characters of <nowiki>, <pre> and code that must not be read as markup
_PROTECT = {ord(char): 0xFDD1 + index for index, char in enumerate(_LITERAL)}
_RESTORE = {code: chr(char) for char, code in _PROTECT.items()}
_PROTECTED = re.compile("[\ufdd1-\ufdee]")
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]")

_TAG_END = r"\b([^<>]*)>"
_LITERAL_TAGS = re.compile(r"<(?:(!)--|(/?)(nowiki|pre|source|syntaxhighlight)" + _TAG_END + ")", re.IGNORECASE)
_DROPPED_TAGS = re.compile(
    r"<()(/?)(ref|references|math|chem|ce|gallery|timeline|imagemap|score|hiero|graph|mapframe|maplink|table|inputbox"
    r"|templatestyles|templatedata|categorytree|includeonly|style|script|section|indicator|dynamicpagelist)" + _TAG_END,
    re.IGNORECASE,
)
_POEM = re.compile(r"<()(/?)(poem)" + _TAG_END)
_SUPERSCRIPT = re.compile(
    r"<sup(?<=[\w)\]']<sup)\b[^<>]*>[ '{]*+([-+−–]?[ ]?\d++|[nmkxyi])[ '}]*+</sup *>", re.IGNORECASE
)
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)" + _TAG_END)
_INLINE = re.compile(
    "abbr|b|bd[io]|big|cite|code|data|del|dfn|em|font|i|ins|kbd|mark|nobr|noinclude|onlyinclude|q|rb|rp|rt|rtc|ruby|s|samp"
    "|small|span|strike|strong|su[bp]|time|tt|u|var|wbr|references|ref|math|nowiki|score|section"
)
_BLOCK = re.compile(
    "blockquote|center|d[dltiv]+|h[1-6r]|li|[ou]l|p|poem|pre|source|syntaxhighlight|table|tbody|t[dhr]|thead|caption|gallery"
    "|includeonly"
)

_VARIANT = re.compile(r"-\{((?:[^{}]++)*+)\}-")
_VARIANT_RULE = re.compile(r"(?:^|;)\s*(zh(?:-[a-z]+)?|sr-\w+)\s*:([^;]*)")
_EXTERNAL = re.compile(
    r"\[(?:(?:https?|ftps?|irc|news|gopher)://|//|mailto:)[^\s\[\]<>\"]*+"
    r"[ \t]*+((?:[^\[\]\n]++|\[\[[^\[\]\n]*+\]\]|\[[^\[\]\n]*+\])*+)\]",
    re.IGNORECASE,
)
_LINK = re.compile(r"\[\[((?:[^\[\]]++|\[(?!\[)|\](?!\]))*+)\]\]")
_UNCLOSED_LINK = re.compile(r"\[\[([^\[\]\n]*+)|\]\]")
_LINK_DEPTH = 8
_MEDIA_FILE = re.compile(r"[^:|]+:[^|]+\.(?:jpe?g|png|svg|gif|tiff?|webp|og[gav]|webm|mp[34]|pdf|djvu)", re.IGNORECASE)
_LANGUAGE = re.compile(r"(?:[a-z]{2,3}|simple)(?:-[a-z]+)*")
_NOT_LANGUAGES = frozenset(("wikt", "voy", "wmf", "mw", "cvs", "doi", "rfc", "iso", "rev", "wp", "mos", "foldoc"))

_QUOTES = re.compile("''+")
_SWITCH = re.compile(r"__[^\W\d_a-z]{3,}__")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")
_SPACES = re.compile("[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f]{2,}|[\t\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_LINE_ENDS = re.compile("[\r\x0b\x0c\x85\u2028\u2029]")

_TIDY: tuple[tuple[re.Pattern[str], str], ...] = (
    # Parentheses that held nothing but what was taken out, separators included: "( ; )".
    (re.compile(rf" ?[(（](?:[ ,;:/–—-]*+{_GAP})+[ ,;:/–—-]*+[)）]"), ""),
    (re.compile(rf"([(（])(?:[ ,;:/–—-]*+{_GAP})+[ ,;:/–—-]*"), r"\1"),
    (re.compile(rf"(?<![ ,;:{_GAP}])(?:[ ,;:]*+{_GAP})++[ ,;:]*+([)）])"), r"\1"),
    # A list of alternatives that lost one: "a, , b".
    (re.compile(rf"([,;]) ?{_GAP}+ ?(?=[,;.])"), ""),
    (re.compile(rf" {_GAP}+(?=[,.;:!?)\]’”])"), ""),
    (re.compile(rf"(?<!{_GAP}) ?{_GAP}++ "), " "),
    (re.compile(rf"{_GAP}+"), ""),
)
_LIST = re.compile(r"[*#:;]+ *")
_TABLE_ROW = re.compile(r"\{\||\|[-+}]|\|\||\|(?= ?[\w'\[])")
_CJK = re.compile("[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]")
_WORD = re.compile(r"[^\W_]")


@dataclass(frozen=True)
class Site:
    """The names a wiki gives to its namespaces, in lower case.

    Attributes:
        files: Prefixes of links that show a picture or play a sound ("file", "datei").
        categories: Prefixes of links that put the page into a category.
    """

    files: frozenset[str] = frozenset(("file", "image", "media"))
    categories: frozenset[str] = frozenset(("category",))

    @classmethod
    def from_namespaces(cls, namespaces: Iterable[tuple[int, str]]) -> "Site":
        """Make the names from `<siteinfo>` (https://www.mediawiki.org/wiki/Manual:Namespace).

        Args:
            namespaces: Pairs of number and local name; -2 is media, 6 files and 14 categories. The English names are
                valid on every wiki and always included.
        """
        pairs = [(number, name.strip().lower()) for number, name in namespaces if name.strip()]
        english = cls()
        return cls(
            files=english.files | {name for number, name in pairs if number in (-2, 6)},
            categories=english.categories | {name for number, name in pairs if number == 14},
        )


ENGLISH = Site()


def clean(wikitext: str, site: Site = ENGLISH) -> str:
    """Plain text of a page: paragraphs, headings and lists without their markup.

    Templates (but see `kerasllm.data.templates`), tables, references, comments, formulas, galleries, pictures,
    categories, interlanguage links, tags and magic words go. Links become their text. Paragraphs, headings and lists
    are separated by one blank line; an item of a list is a line. Headings with nothing under them go.

    Never raises, whatever the markup, and takes time proportional to its length.

    Args:
        wikitext: Source of the page, as in `<text>` of a dump.
        site: Namespace names of the wiki, for pictures and categories.

    Returns:
        The text without a line end after it; empty when nothing readable is left.
    """
    text = _FORBIDDEN.sub("", _LINE_ENDS.sub("\n", wikitext.replace("\r\n", "\n")))
    text = _elements(text, _LITERAL_TAGS, _literal)
    text = _elements(text, _DROPPED_TAGS, _dropped)
    if "<poem" in text:
        text = _elements(text, _POEM, lambda _, content: "\n\n" + content.replace("\n", _BREAK + "\n") + "\n\n")
    text = replace_braces(text, _GAP)
    if "-{" in text:
        text = _VARIANT.sub(_variant, text)
    text = _unlink(text, site)
    if "<" in text:
        text = _TAG.sub(_tag, _SUPERSCRIPT.sub(r"^\1", text))
    text = _SWITCH.sub("", _QUOTES.sub(_quotes, text))
    text = _SPACES.sub(" ", _INVISIBLE.sub("", _ENTITY.sub(_entity, text)))
    text = _blocks(text)
    return text.translate(_RESTORE) if _PROTECTED.search(text) else text


def _elements(text: str, tags: re.Pattern[str], replace: Callable[[str, str], str]) -> str:
    """Replace whole elements, from their opening to their closing tag.

    Args:
        text: Wikitext.
        tags: Pattern with the groups comment mark, slash, name, attributes.
        replace: Called with the element's name ("!" for a comment) and content.
    """
    parts: list[str] = []
    done = position = 0
    unclosed: set[str] = set()
    while match := tags.search(text, position):
        position = match.end()
        name = (match[1] or match[3]).lower()
        if match[2] or name in unclosed:
            continue  # a tag without a partner; the later pass over all tags removes it
        if name != "!" and match[4].rstrip().endswith("/"):
            parts += text[done : match.start()], replace(name, "")
            done = position
            continue
        end = _closing(text, name, position)
        if end is None and name == "!":
            end = (len(text), len(text))  # MediaWiki, too, reads an unclosed comment to the end of the page
        if end is None:
            unclosed.add(name)
            continue
        parts += text[done : match.start()], replace(name, text[position : end[0]])
        done = position = end[1]
    parts.append(text[done:])
    return "".join(parts)


def _closing(text: str, name: str, position: int) -> tuple[int, int] | None:
    """Span of the tag that closes an element opened before `position`; only tables nest."""
    if name == "!":
        end = text.find("-->", position)
        return None if end < 0 else (end, end + 3)
    depth = 1
    for match in re.compile(rf"<(/?){name}\b[^<>]*>", re.IGNORECASE).finditer(text, position):
        if match[1]:
            depth -= 1
        elif name == "table":
            depth += 1
        if not depth:
            return match.span()
    return None


def _literal(name: str, content: str) -> str:
    if name == "!":
        return ""
    content = content.translate(_PROTECT)
    # Code and preformatted text are blocks of their own.
    return content if name == "nowiki" else f"\n\n{content}\n\n"


def _dropped(name: str, content: str) -> str:
    # A note hangs on the word before it; the others leave a hole in the sentence.
    return "" if name in ("ref", "references", "section", "indicator") else _GAP


def _variant(match: re.Match[str]) -> str:
    """`-{zh-hans:a; zh-hant:b}-` -> "a" (https://www.mediawiki.org/wiki/Writing_systems/Syntax)."""
    flags, bar, content = match[1].rpartition("|")
    if bar and {flag.strip() for flag in flags.split(";")} & {"H", "T", "-", "D", "N"}:
        return ""  # rules for the rest of the page, and its title
    rules = {rule[1]: rule[2].strip() for rule in _VARIANT_RULE.finditer(content)}
    if not rules:
        return content
    for language in ("zh-cn", "zh-hans", "zh"):
        if language in rules:
            return rules[language]
    return next(iter(rules.values()))


def _unlink(text: str, site: Site) -> str:
    """Links become their text; pictures, categories and interlanguage links go."""

    def link(match: re.Match[str]) -> str:
        return _link_text(match[1] or "", site)

    if "[" in text:
        text = _EXTERNAL.sub(lambda match: match[1] if match[1].strip() else _GAP, text)
    # Each pass takes the innermost links; captions of pictures hold links, and deeper nesting is not legal anyway.
    for _ in range(_LINK_DEPTH):
        if "[[" not in text:
            break
        text, count = _LINK.subn(link, text)
        if not count:
            break
    return _UNCLOSED_LINK.sub(link, text) if "[[" in text or "]]" in text else text


def _link_text(content: str, site: Site) -> str:
    target, bar, label = content.partition("|")
    target = target.strip()
    prefix, colon, rest = target.partition(":")
    if colon and prefix:
        name = prefix.strip().lower().replace("_", " ")
        if name in site.files or name in site.categories or _MEDIA_FILE.fullmatch(target):
            return ""
        if _LANGUAGE.fullmatch(prefix) and prefix not in _NOT_LANGUAGES:
            return ""
    if label.strip():
        return label
    if target.startswith(":"):
        # ":Category:Trees" is a link to the category's page; its own name is all a reader wants.
        return target.rpartition(":")[2]
    if bar and len(target) < 256:  # the longest title; "[[Mercury (planet)|]]" is shown as "Mercury"
        return re.sub(r" *\([^()]*\)$|,.*$", "", rest or target)
    return rest if prefix in _NOT_LANGUAGES else target


def _tag(match: re.Match[str]) -> str:
    name = match[2].lower()
    if name == "br":
        return _BREAK + "\n"
    if _INLINE.fullmatch(name):
        return ""
    return "\n\n" if _BLOCK.fullmatch(name) else match[0]  # unknown names are not tags: "#include <stdio.h>"


def _quotes(match: re.Match[str]) -> str:
    """Italic (2), bold (3) and both (5); four are bold after an apostrophe, more than five leave the surplus."""
    count = len(match[0])
    return "" if count in (2, 3, 5) or count > 6 else "'"


def _entity(match: re.Match[str]) -> str:
    return html.unescape(match[0])


def _blocks(text: str) -> str:
    """Arrange lines into paragraphs, lists and headings, and drop the headings of empty sections."""
    blocks: list[tuple[int, list[str]]] = []  # heading level (0 for text), and pieces to join
    open_block = in_list = wraps = False
    for raw in text.split("\n"):
        line = (_tidy(raw) if _GAP in raw else raw).strip()
        breaks = raw[:1] == " " or line.endswith(_BREAK) or _PROTECTED.search(raw) is not None
        line = line.replace(_BREAK, "").rstrip()
        if _TABLE_ROW.match(line) or not (_WORD.search(line) or _PROTECTED.search(line)):
            # Rules, empty items and what is left of broken tables hold no word; a line of code may do without.
            wraps = False
            open_block = open_block and breaks
            continue
        level, heading = _heading(line)
        if level:
            blocks.append((level, [heading]))
            open_block = in_list = False
            continue
        item = _LIST.match(line)
        if item:
            line = _item(line, item)
        if not open_block or (in_list and not item):
            blocks.append((0, [line]))
        else:
            # A line end within a paragraph is a space (https://www.mediawiki.org/wiki/Help:Formatting).
            last = blocks[-1][1][-1]
            space = "" if _CJK.match(last[-1:]) or _CJK.match(line) else " "
            blocks[-1][1].extend((space if wraps and not item and not in_list else "\n", line))
        open_block, in_list, wraps = True, item is not None, not breaks
    return "\n\n".join("".join(pieces) for _, pieces in _without_empty_sections(blocks))


def _heading(line: str) -> tuple[int, str]:
    """Level and words of `== Heading ==`; level 0 for any other line."""
    words = line.strip("= ")
    if not words or line[0] != "=" or line[-1] != "=":
        return 0, line
    return min(len(line) - len(line.lstrip("=")), len(line) - len(line.rstrip("=")), 6), words


def _tidy(line: str) -> str:
    """Mend the punctuation around what was taken out of a line."""
    for pattern, replacement in _TIDY:
        line = pattern.sub(replacement, line)
    return line


def _item(line: str, item: re.Match[str]) -> str:
    text = line[item.end() :]
    return text.replace(" : ", ": ", 1) if item[0].startswith(";") else text


def _without_empty_sections(blocks: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    kept: list[tuple[int, list[str]]] = []
    next_level = -1  # of the block that follows: -1 at the end of the page, 0 for text, else the level of a heading
    for level, lines in reversed(blocks):
        if level and (next_level == -1 or 0 < next_level <= level):
            continue
        next_level = level
        kept.append((level, lines))
    return kept[::-1]

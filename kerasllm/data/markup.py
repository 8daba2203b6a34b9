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

from kerasllm.data.templates import MAX_LENGTH, render

# Unicode non-characters never occur in text, so they serve as marks inside this module (and are removed from input).
_GAP = "\ufdd0"  # where a template, formula or picture was taken out: punctuation around it may need tidying
_LITERAL = "[]{}|'<>=&*#:;-_! "  # characters of <nowiki>, <pre> and code that must not be read as markup
_PROTECT = {ord(char): 0xFDD1 + index for index, char in enumerate(_LITERAL)}
_RESTORE = {code: chr(char) for char, code in _PROTECT.items()}
_PROTECTED = re.compile("[\ufdd1-\ufdef]")
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]")

_TAG_END = r"\b([^<>]*)>"
_LITERAL_TAGS = re.compile(r"<(?:(!)--|(/?)(nowiki|pre|source|syntaxhighlight)" + _TAG_END + ")", re.IGNORECASE)
_DROPPED_TAGS = re.compile(
    r"<()(/?)(ref|references|math|chem|ce|gallery|timeline|imagemap|score|hiero|graph|mapframe|maplink|table|inputbox"
    r"|templatestyles|templatedata|categorytree|includeonly|style|script|section|indicator|dynamicpagelist)" + _TAG_END,
    re.IGNORECASE,
)
_SUPERSCRIPT = re.compile(
    r"<sup(?<=[\w)\]']<sup)\b[^<>]*>[ '{]*+([-+−–]?[ ]?\d++|[nmkxyi])[ '}]*+</sup *>", re.IGNORECASE
)
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)" + _TAG_END)
_INLINE = frozenset(
    "abbr b bdi bdo big cite code data del dfn em font i ins kbd mark nobr noinclude onlyinclude q rb rp rt rtc ruby s "
    "samp small span strike strong sub sup time tt u var wbr ref references math nowiki score section".split()
)
_BLOCK = frozenset(
    "blockquote center dd div dl dt h1 h2 h3 h4 h5 h6 hr li ol p poem pre source syntaxhighlight table tbody td th thead "
    "tr ul caption gallery includeonly".split()
)

_BRACES = re.compile(r"\{\{+|\}\}+|\{\||\|\}(?!\})")
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
    (re.compile(rf"(?<![ ,;:])[ ,;:]*+(?:{_GAP}[ ,;:]*+)+([)）])"), r"\1"),
    # A list of alternatives that lost one: "a, , b".
    (re.compile(rf"([,;]) ?{_GAP}+ ?(?=[,;.])"), ""),
    (re.compile(rf" {_GAP}+(?=[,.;:!?)\]’”])"), ""),
    (re.compile(rf" ?{_GAP}+ "), " "),
    (re.compile(rf"{_GAP}+"), ""),
)
_HEADING = re.compile(r"(={1,6})(.*[^=\s].*?)(={1,6})")
_LIST = re.compile(r"[*#:;]+ *")
_TABLE_ROW = re.compile(r"\{\||\|[-+}]|\|\||\|(?= ?[\w'\[])")
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
    text = _drop_braces(text)
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


@dataclass
class _Open:
    """An opening mark: `count` braces of a template or parameter, 0 for a table; `parts` is the text since then."""

    count: int
    parts: list[str]


def _drop_braces(text: str) -> str:
    """Take out templates `{{ }}`, parameters `{{{ }}}` and tables `{| |}`, nested in any way.

    Tables open and close only at the start of a line (https://www.mediawiki.org/wiki/Help:Tables); templates are
    matched first, as in MediaWiki's preprocessor. Marks without a partner are removed and their content stays.
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
                stack[-1].parts.append(_GAP)
        else:
            _close_braces(len(token), stack, braces, tables)
    stack[-1].parts.append(text[done:])
    return "".join(part for frame in stack for part in frame.parts)


def _close_braces(count: int, stack: list[_Open], braces: list[int], tables: list[int]) -> None:
    """Match `count` closing braces with the opening ones on the stack, innermost first."""
    while count >= 2 and braces:
        place = braces[-1]
        frame = stack[place]
        used = 3 if min(count, frame.count) >= 3 else 2
        result = _GAP
        parts = [part for opened in stack[place:] for part in opened.parts]
        if used == 2 and sum(map(len, parts)) <= MAX_LENGTH:
            rendered = render("".join(parts))
            result = _GAP if rendered is None else rendered
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
    if bar:
        return re.sub(r" *\([^()]*\)$|,.*$", "", rest or target)  # the "pipe trick"
    return rest if prefix in _NOT_LANGUAGES else target


def _tag(match: re.Match[str]) -> str:
    name = match[2].lower()
    if name in _INLINE:
        return ""
    if name == "br":
        return "\n"
    return "\n\n" if name in _BLOCK else match[0]  # unknown names are not tags: "#include <stdio.h>"


def _quotes(match: re.Match[str]) -> str:
    """Italic (2), bold (3) and both (5); four are bold after an apostrophe, more than five leave the surplus."""
    count = len(match[0])
    return "" if count in (2, 3, 5) or count > 6 else "'"


def _entity(match: re.Match[str]) -> str:
    return html.unescape(match[0])


def _blocks(text: str) -> str:
    """Arrange lines into paragraphs, lists and headings, and drop the headings of empty sections."""
    blocks: list[tuple[int, list[str]]] = []  # heading level (0 for text) and lines
    open_block = in_list = False
    for raw in text.split("\n"):
        line = _tidy(raw).strip() if _GAP in raw else raw.strip()
        if not _WORD.search(line) or _TABLE_ROW.match(line):
            # Rules, empty items and what is left of broken tables have no word; code between blank lines may.
            if line and _PROTECTED.search(line) and open_block:
                blocks[-1][1].append(line)
            open_block = open_block and bool(line)
            continue
        heading = _HEADING.fullmatch(line)
        if heading:
            blocks.append((min(len(heading[1]), len(heading[3])), [heading[2].strip("= ")]))
            open_block = in_list = False
            continue
        item = _LIST.match(line)
        if item:
            line = _item(line, item)
        if not open_block or (in_list and not item):
            blocks.append((0, []))
        blocks[-1][1].append(line)
        open_block, in_list = True, item is not None
    return "\n\n".join("\n".join(lines) for _, lines in _without_empty_sections(blocks))


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

"""A font for Chinese in pictures: one that is installed, or one out of a package, and never boxes."""

import functools
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from matplotlib import font_manager, rcParams
from matplotlib.ft2font import FT2Font

from kerasllm.errors import InputError
from kerasllm.text.words import CHINESE_SPLIT, OTHER_ASIAN

# Looked at first, of those installed: the fonts of the systems, and those that people add. Sans before serif.
_USUAL = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Noto Sans CJK TC",
    "Noto Sans CJK JP",
    "Droid Sans Fallback",
    "Heiti TC",
    "SimHei",
    "Arial Unicode MS",
)
# Packages of PyPI that carry a font, and the font's file in them; they are looked at without running their code.
_PACKAGED = (
    ("pylopdf_fonts_zh_cn", "NotoSansSC-Regular.otf"),
    ("mplfonts", "fonts/NotoSansCJKsc-Regular.otf"),
)
_SOME = "中文数学數學，。"
_WANTED = re.compile(f"[{CHINESE_SPLIT.chinese}{OTHER_ASIAN}]")


def cjk_font(text: str = _SOME) -> str:
    """Find a font that has the Chinese and Japanese characters of a text.

    Fonts that matplotlib finds on the system come first, then those in a package; a font of a package is made known to
    matplotlib.

    Args:
        text: What is to be drawn; other characters in it do not matter, and where it has none, common ones do.

    Returns:
        Name of the font's family, for matplotlib's `font.family` or `family=`.

    Raises:
        InputError: There is none; the message says what to install.
    """
    return _find("".join(dict.fromkeys(_WANTED.findall(text) or _SOME)))


def font_families(texts: Iterable[str | None]) -> list[str]:
    """What to give matplotlib as `font.family` so that some texts can be drawn.

    Args:
        texts: Titles, labels and names; None and texts without Chinese need nothing.

    Returns:
        The families of now, and where a text needs it a Chinese one behind them: matplotlib takes each character from
        the first family that has it.

    Raises:
        InputError: No font has the characters.
    """
    now = rcParams["font.family"]
    families = [now] if isinstance(now, str) else list(now)
    wanted = _WANTED.findall("".join(text for text in texts if text))
    return [*families, cjk_font("".join(wanted))] if wanted else families


@functools.lru_cache(maxsize=64)
def _find(characters: str) -> str:
    best: tuple[int, str] = (-1, "")
    for family, path in _candidates():
        count = _count(path, characters)
        if count == len(characters):
            return family
        best = max(best, (count, path))
    lacking = "".join(c for c in characters if not _count(best[1], c)) if best[0] > 0 else characters
    raise InputError(
        f"fonts: none has the characters {lacking[:20]!r}; pip install 'kerasllm[zh]', or install one for the system "
        "(Debian and Ubuntu: apt install fonts-noto-cjk)"
    )


def _candidates() -> Iterable[tuple[str, str]]:
    """Family and file of the fonts worth looking at, the best first."""
    plain = [f for f in font_manager.fontManager.ttflist if f.style == "normal" and f.stretch == "normal"]
    # Of each family the weight that is nearest to that of ordinary text.
    plain.sort(key=lambda font: (abs(_weight(font.weight) - 400), font.name, font.fname))
    files: dict[str, str] = {}
    for font in plain:
        files.setdefault(font.name, font.fname)
    for family in (*(name for name in _USUAL if name in files), *sorted(set(files) - set(_USUAL))):
        yield family, files[family]
    for package, name in _PACKAGED:
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin or "").parent / name if spec else Path()
        if path.is_file() and str(path) not in files.values():
            font_manager.fontManager.addfont(path)
            yield font_manager.FontProperties(fname=path).get_name(), str(path)


def _weight(weight: int | str) -> int:
    return weight if isinstance(weight, int) else int(font_manager.weight_dict.get(weight, 400))


def _count(path: str, characters: str) -> int:
    """How many of the characters the font has; none if it cannot be read, or has one picture for all characters."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return 0
    # Last Resort, which matplotlib brings, has every character: as a box.
    if 0 < font.get_char_index(ord("一")) == font.get_char_index(ord("丁")):
        return 0
    return sum(font.get_char_index(ord(character)) != 0 for character in characters)

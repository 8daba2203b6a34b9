"""Chinese in one script: simplified or traditional characters throughout (OpenCC)."""

from collections.abc import Callable

from kerasllm.errors import InputError

# OpenCC's conversions without words of a region: characters, and the phrases that decide between several.
_CONFIGS = {"simplified": "t2s", "traditional": "s2t"}


def script_converter(script: str | None) -> Callable[[str], str]:
    """Make a function that writes Chinese text in one script and leaves all other text as it is.

    It is OpenCC (https://github.com/BYVoid/OpenCC), which looks at phrases, for one simplified character may stand for
    several traditional ones: 发 is 發 in 发展 and 髮 in 头发.

    Args:
        script: "simplified", "traditional", or None for no conversion.

    Returns:
        The function.

    Raises:
        InputError: There is no such script, or OpenCC is not installed.
    """
    if script is None:
        return lambda text: text
    if script not in _CONFIGS:
        raise InputError(f"script: {script!r} is none of {', '.join(_CONFIGS)}")
    try:
        import opencc
    except ImportError:
        raise InputError(f"script {script!r}: OpenCC is not installed; pip install 'kerasllm[zh]'") from None
    return opencc.OpenCC(_CONFIGS[script]).convert

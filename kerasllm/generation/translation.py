"""Texts in, other texts out: what an encoder-decoder is for."""

from collections.abc import Sequence
from typing import Any

from kerasllm.generation.continuations import Prompt, TextCodec, as_list
from kerasllm.generation.loop import generate
from kerasllm.generation.sequences import generate_sequences
from kerasllm.models import LanguageModel


def translate(
    model: LanguageModel,
    tokenizer: TextCodec,
    sources: Prompt | Sequence[Prompt],
    *,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    prompt: Prompt = "",
    **options: Any,
) -> Any:
    """Write the target of each source: its translation, its summary, whatever the model was trained to write.

    A batch gives what each source alone would give.

    Args:
        model: An encoder-decoder.
        tokenizer: Its tokenizer.
        sources: One text or several. Token ids will do for a text, with whatever they begin and end with; those of a
            text are `source_ids`.
        num_beams: Hypotheses that a search keeps, whose best is given; 1 takes token after token.
        length_penalty: With beams, exponent of the length, see `generate_sequences`.
        prompt: Beginning of every target; as a text it begins with the start token.
        **options: Those of `generate`; with beams `max_new_tokens`, `stop`, `jit_compile` and `source_tokenizer`.

    Returns:
        The target without the prompt: a string for one source, a list for several.

    Raises:
        InputError: A source does not fit the context, an option is out of range, or a tokenizer is another model's.
    """
    rows, alone = as_list(sources)
    prompts, options = [prompt] * len(rows), {**options, "sources": rows}
    if num_beams == 1:
        texts = generate(model, tokenizer, prompts, **options)
    else:
        search: dict[str, Any] = {"num_beams": num_beams, "length_penalty": length_penalty}
        found = generate_sequences(model, tokenizer, prompts, **search, **options)
        texts = [hypotheses[0].text for hypotheses in found]
    return texts[0] if alone else texts

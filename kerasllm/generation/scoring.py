"""Log probabilities of given tokens."""

from typing import Any

import numpy as np
from keras import ops

from kerasllm import backend
from kerasllm.errors import InputError
from kerasllm.models import EncoderDecoder, LanguageModel


def score_tokens(model: LanguageModel, tokens: Any, targets: Any) -> tuple[Any, Any]:
    """Log probability of each target after its inputs; a pure function of tensors.

    Args:
        model: A language model.
        tokens: int32 `(batch, length)`.
        targets: int32 `(batch, length)`.

    Returns:
        float32 `(batch, length)` natural log probabilities, and int32 `(batch, length)` most likely tokens.
    """
    logits = model(tokens, training=False)
    log_probs = ops.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - ops.logsumexp(logits, axis=-1)
    return log_probs, ops.cast(ops.argmax(logits, axis=-1), "int32")


def score_windows(model: LanguageModel, tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`score_tokens`, compiled, numpy in and out.

    Raises:
        InputError: The model is an encoder-decoder.
    """
    if isinstance(model, EncoderDecoder):
        raise InputError("an encoder-decoder gives no probability to a text alone; evaluate it on pairs")
    function = backend.compiled(model, score_tokens, "score_tokens")
    log_probs, top_1 = function(tokens, targets)
    return np.array(log_probs), np.array(top_1)

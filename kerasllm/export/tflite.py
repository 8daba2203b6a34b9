"""TFLite (LiteRT): a model as one file for phones, with its state as named inputs and outputs."""

import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kerasllm.errors import InputError
from kerasllm.export import seq2seq
from kerasllm.export.endpoints import edge_functions
from kerasllm.export.saved_model import check_pair, without_cudnn
from kerasllm.files import atomic_file
from kerasllm.models import EncoderDecoder, LanguageModel, merged
from kerasllm.state import SOURCE_PADDING_MASK, carried
from kerasllm.text import Tokenizer, load_tokenizer

QUANTIZATIONS = (None, "float16", "int8")

_PREFILL_LENGTHS, _SCORE_LENGTH = (8, 64), 128
_PAIR_LENGTH = 64
"""Tokens of source and of target where neither anybody nor the model says."""
_BYTES_PER_WEIGHT = {None: 4, "float16": 2, "int8": 1}
# How far the logits of the finished file may be from Keras': rounding, and what the quantization is known to cost, for
# logits that span 10. Those of large models span more, and so does what is lost of them.
_TOLERANCE = {None: 1e-4, "float16": 0.1, "int8": 2.0}


def export_tflite(
    model: LanguageModel,
    path: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    quantization: str | None = None,
    context_length: int | None = None,
    prefill_lengths: Sequence[int] | None = None,
    score_lengths: Sequence[int] | None = None,
    overwrite: bool = False,
    source_tokenizer: Tokenizer | None = None,
    source_length: int | None = None,
) -> Path:
    """Write a model as a TFLite file of builtin operations, and its tokenizer beside it.

    Signatures, all for one text at a time: `prefill_<n>` reads n prompt tokens, `decode` reads one and gives `logits`,
    `score_<n>` gives `log_probs` and `top_1` of n `targets`. Each takes and returns the state by name; a Transformer's
    inputs and outputs are those of the LiteRT-LM engine. `kerasllm.edge.EdgeModel` runs the file. The file is loaded
    and its logits compared with Keras' before it gets its name.

    The signatures of an encoder-decoder are `encode` and `decode`, see `export.seq2seq.edge_functions`.

    Args:
        model: A built language model, causal; adapters are merged.
        path: The file, such as `model.tflite`; it must end so.
        tokenizer: Its tokenizer, written beside the file where given.
        quantization: `None` (float32), `"float16"` (weights) or `"int8"` (weights, dynamic range).
        context_length: Slots of a Transformer's KV caches, in tokens; the model's own context by default.
        prefill_lengths: Chunks in which a prompt can be read; the rest goes through `decode` one by one. 8 and 64 by
            default, as far as they fit the context.
        score_lengths: Chunks in which a text can be scored; 128, or the context if that is less, by default.
        overwrite: Replace what is there.
        source_tokenizer: Of an encoder-decoder's sources, where it is another; written into `source_tokenizer/`.
        source_length: Tokens in an encoder-decoder's source; the model's context, or 64, by default.

    Returns:
        The path.

    Raises:
        InputError: The file or another tokenizer exists, the name does not end in `.tflite`, a length does not fit, the
            model needs operations that TFLite lacks, or the file does not answer as Keras does.
    """
    path = Path(path)
    _check_place(path, tokenizer, overwrite)
    if quantization not in QUANTIZATIONS:
        raise InputError(f"quantization must be one of {QUANTIZATIONS}, received {quantization!r}")
    check_pair(model, tokenizer, source_tokenizer)
    lengths = _lengths(model, context_length, prefill_lengths, score_lengths, source_length)
    model = _as_float32(merged(model))
    with without_cudnn(model), _fused_lookup(model):
        functions = seq2seq.edge_functions if isinstance(model, EncoderDecoder) else edge_functions
        content = _convert(model, functions(model, *lengths), quantization)
    _check(content, model, quantization, *lengths)
    with atomic_file(path) as file:
        file.write(content)
        # Before the file gets its name, or an interruption could leave a new model beside the old tokenizer, which
        # would run and answer nonsense. An old model beside the new tokenizer is what remains; `--overwrite` again.
        _save_tokenizers(path.parent, tokenizer, source_tokenizer)
    return path


def _save_tokenizers(folder: Path, tokenizer: Tokenizer | None, source_tokenizer: Tokenizer | None) -> None:
    for place, one in ((folder, tokenizer), (folder / "source_tokenizer", source_tokenizer)):
        if one is not None:
            one.save(place)


def _check_place(path: Path, tokenizer: Tokenizer | None, overwrite: bool) -> None:
    """Refuse an output of another kind, one that exists, and a folder with a tokenizer that another file needs."""
    if path.suffix != ".tflite":
        raise InputError(f"{path}: must end in .tflite; rename the output")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; choose another output")
    if overwrite:
        return
    if path.exists():
        raise InputError(f"{path}: exists already; choose another output or pass overwrite (--overwrite)")
    folder = path.parent
    if tokenizer is None or not (folder / "tokenizer.json").exists():
        return
    if load_tokenizer(folder).fingerprint != tokenizer.fingerprint:
        raise InputError(f"{folder}: holds another model's tokenizer; choose another folder, or pass overwrite")


def _lengths(
    model: LanguageModel,
    asked: int | None,
    prefill: Sequence[int] | None,
    score: Sequence[int] | None,
    source: int | None,
) -> tuple[Any, ...]:
    """What `edge_functions` need: context length, and chunk lengths or that of a source, which must fit each other."""
    if isinstance(model, EncoderDecoder):
        return _lengths_of_pairs(model, asked, prefill, score, source)
    if source is not None:
        raise InputError("the model reads no sources; leave source_length out")
    limit = model.max_sequence_length
    if asked is not None and asked < 1:
        raise InputError(f"context_length must be at least 1, received {asked}")
    if asked is not None and limit is not None and asked > limit:
        raise InputError(f"context_length {asked} is more than the model's {limit}; lower it")
    default = asked or limit or max([_SCORE_LENGTH, *(prefill or ()), *(score or ())])
    prefill = tuple(length for length in _PREFILL_LENGTHS if length <= default) if prefill is None else tuple(prefill)
    score = (min(_SCORE_LENGTH, default),) if score is None else tuple(score)
    chunks = prefill + score
    if min(chunks, default=1) < 1:
        raise InputError(f"prefill and score lengths must be at least 1, received {min(chunks)}")
    if max(chunks, default=1) > default:
        raise InputError(f"context_length {default} is less than a chunk of {max(chunks)}; lower the chunk lengths")
    return default, prefill, score


def _lengths_of_pairs(
    model: LanguageModel, asked: int | None, prefill: Any, score: Any, source: int | None
) -> tuple[int, int]:
    """Lengths of target and source, asked for or by default."""
    if prefill or score:
        raise InputError("an encoder-decoder reads a source and writes token after token; leave the chunk lengths out")
    limit = model.max_sequence_length
    found = tuple(limit or _PAIR_LENGTH if length is None else length for length in (asked, source))
    for name, length in zip(("context_length", "source_length"), found, strict=True):
        if length < 1:
            raise InputError(f"{name} must be at least 1, received {length}")
        if limit is not None and length > limit:
            raise InputError(f"{name} {length} is more than the model's {limit}; lower it")
    return found[0], found[1]


def _as_float32(model: LanguageModel) -> LanguageModel:
    """The model itself, or a copy that computes in float32: TFLite has no mixed precision."""
    if model.compute_dtype == "float32":
        return model
    copy = type(model)(model.config, dtype="float32")
    copy.build()
    for target, source in zip(copy.weights, model.weights, strict=True):
        target.assign(source)
    return copy


@contextlib.contextmanager
def _fused_lookup(model: LanguageModel) -> Iterator[None]:
    """Trace the embedding of tokens as TFLite's EMBEDDING_LOOKUP.

    In int8 the lookup then shares one table, with a scale for each row, with the projection; a GATHER would be given a
    copy of its own, with one scale for all rows.
    """

    # The name under which the converter knows the operation.
    @tf.function(experimental_implements="embedding_matmul", autograph=False)
    def lookup(table: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        return tf.gather(table, ids)

    def call(embedding: Any, plain: Any, inputs: tf.Tensor, **options: Any) -> tf.Tensor:
        if options.get("reverse"):
            return plain(inputs, **options)
        rows = lookup(tf.convert_to_tensor(embedding.embeddings), tf.reshape(inputs, [-1]))
        return tf.reshape(rows, (*inputs.shape, rows.shape[-1]))

    layers = seq2seq.embeddings(model) if isinstance(model, EncoderDecoder) else [model.embedding]
    for layer in layers:
        layer.call = functools.partial(call, layer, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call


def _convert(model: LanguageModel, functions: dict[str, Any], quantization: str | None) -> bytes:
    """A SavedModel in between: the converter's direct way from functions fails at run time on Keras 3 variables."""
    module = tf.Module()
    # A tf.Module does not see the variables of a Keras 3 model; without them the file is tiny and answers NaN.
    module.kept = [variable.value for variable in model.variables]
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if quantization is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantization == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:  # the converter raises several kinds, all with many lines
            lacking = sorted(set(re.findall(r"'(tf\.\w+)' op", str(error))))
            first = ", ".join(lacking) or (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"the model cannot be written with TFLite's builtin operations: {first}; "
                "replace the layer that needs others"
            ) from error


def _check(content: bytes, model: LanguageModel, quantization: str | None, context_length: int, *others: Any) -> None:
    """Load the file as a phone would and compare two steps with Keras; `others` begin with the length of a source."""
    from ai_edge_litert.interpreter import Interpreter

    least = sum(int(np.prod(w.shape)) for w in model.weights) * _BYTES_PER_WEIGHT[quantization]
    if len(content) < least:
        raise InputError(
            f"the TFLite file has {len(content)} bytes, less than its weights' {least}; report this as a bug"
        )
    try:
        interpreter = Interpreter(model_content=content, num_threads=2)
        runner = interpreter.get_signature_runner("decode")
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the TFLite file does not load ({str(error).splitlines()[0]}); report this as a bug"
        ) from error
    inputs: dict[str, Any]
    if isinstance(model, EncoderDecoder):
        # A source of three tokens, the rest being padding.
        source = np.arange(others[0], dtype="int32")[None] % model.source_vocabulary_size
        mask = np.arange(others[0])[None] < 3
        state = model.encode_source(source, mask, length=context_length, training=False)
        inputs = interpreter.get_signature_runner("encode")(source=source, source_padding_mask=mask)
        inputs |= {SOURCE_PADDING_MASK: mask} if SOURCE_PADDING_MASK in state else {}
    else:
        state = model.initial_state(1, context_length)
        inputs = {name: np.array(value) for name, value in carried(state).items()}
    for step, token in enumerate((1, model.config.vocabulary_size - 1)):
        tokens = np.array([[token]], "int32")
        place = {"input_pos": np.array([step], "int32")} if model.max_sequence_length is not None else {}
        outputs = runner(tokens=tokens, **place, **inputs)
        expected, state = model(tokens, state=state, training=False)
        difference = float(np.abs(outputs.pop("logits") - np.array(expected)).max())
        tolerance = _TOLERANCE[quantization] * max(1.0, float(np.ptp(expected)) / 10)
        if not difference <= tolerance:
            remedy = "report this as a bug" if quantization is None else "export without quantization"
            raise InputError(
                f"the TFLite file's logits differ from Keras' by {difference:.2g}, more than {tolerance:.2g}; {remedy}"
            )
        inputs |= outputs

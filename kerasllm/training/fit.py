"""Training on a prepared corpus: plain `compile` and `fit` with the callbacks of this room."""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from kerasllm.data import Corpus
from kerasllm.errors import InputError
from kerasllm.generation import generate
from kerasllm.models import LanguageModel
from kerasllm.text import Tokenizer
from kerasllm.training.callbacks import BestWeights, StopOnNaN
from kerasllm.training.tensorboard import TensorBoard

BEST = "best.safetensors"
"""Name of the file with a training's best weights."""


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        epochs: Times the training tokens are seen, a fraction allowed.
        batch_size: Windows in a step.
        sequence_length: Tokens in a window.
        learning_rate: Peak of the schedule: linear warm-up over the first twentieth of the steps, then a cosine to a
            tenth (Loshchilov and Hutter 2017, arXiv:1608.03983).
        weight_decay: Of AdamW.
        evaluations: Validations, spread evenly; each may end the training early or keep the weights.
        patience: Validations without progress before training ends.
        seed: Of the order of windows, and of everything random when the caller sets Keras' seed to it.
    """

    epochs: float = 3.0
    batch_size: int = 16
    sequence_length: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    evaluations: int = 6
    patience: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "sequence_length", "learning_rate", "evaluations", "patience"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, received {getattr(self, name)}")


def train(
    model: LanguageModel,
    corpus: Corpus,
    folder: str | os.PathLike[str],
    options: TrainingOptions | None = None,
    *,
    prompts: Sequence[str] = (),
    verbose: Any = "auto",
) -> dict[str, list[float]]:
    """Train a model on a prepared corpus and leave its best weights in it.

    Args:
        model: A language model; it is compiled here.
        corpus: A prepared corpus.
        folder: Where `best.safetensors` and `logs/` for TensorBoard go; those of an earlier training are removed.
        options: How to train.
        prompts: Continued after each validation, as text in TensorBoard.
        verbose: As in `fit`.

    Returns:
        The history of `fit`, a value for each validation, with `tokens` seen by then.

    Raises:
        InputError: The corpus does not fit the model or is too short, the model is bidirectional, or the loss is not a
            number.
    """
    options = options or TrainingOptions()
    _check(model, corpus, options)
    shape: dict[str, Any] = {"batch_size": options.batch_size, "sequence_length": options.sequence_length}
    training = corpus.dataset("train", **shape, seed=options.seed, repeat=True)
    validation = corpus.dataset("validation", **shape)
    tokens_per_step = options.batch_size * options.sequence_length
    steps = max(1, round(options.epochs * len(corpus.tokens("train")) / tokens_per_step))
    evaluations = min(options.evaluations, steps)
    if not model.built:
        model.build()
    model.compile(optimizer=optimizer(options, steps))
    folder = _cleared(Path(folder))

    with BestWeights(folder / BEST) as best:
        history = model.fit(
            training,
            validation_data=validation,
            epochs=evaluations,
            steps_per_epoch=steps // evaluations,
            shuffle=False,  # the windows are
            verbose=verbose,
            callbacks=[
                StopOnNaN(),
                best,
                keras.callbacks.EarlyStopping("val_loss", patience=options.patience),
                TensorBoard(folder / "logs", sample=lambda: _continued(model, corpus.tokenizer, prompts)),
            ],
        ).history
    seen = range(1, len(history["loss"]) + 1)
    return {**history, "tokens": [float(n * (steps // evaluations) * tokens_per_step) for n in seen]}


def _cleared(folder: Path) -> Path:
    """The folder without an earlier training: an interruption would find its weights, TensorBoard draw both as one."""
    (folder / BEST).unlink(missing_ok=True)
    shutil.rmtree(folder / "logs", ignore_errors=True)
    return folder


def _continued(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int = 48
) -> dict[str, str]:
    """Continuations by prompt; prompts that need more than half of the context are cut short."""
    if not prompts:
        return {}
    limit = model.max_sequence_length
    if limit is None:
        starts = list(prompts)
    elif limit < 2:
        return {}
    else:
        starts = [_shortened(prompt, tokenizer, limit // 2) for prompt in prompts]
        max_new_tokens = min(max_new_tokens, limit - limit // 2)
    # Sampled: greedy continuations of a young model are one phrase over and over.
    texts = generate(model, tokenizer, starts, max_new_tokens=max_new_tokens, temperature=0.7, top_p=0.9)
    return dict(zip(starts, texts, strict=True))


def _shortened(prompt: str, tokenizer: Tokenizer, limit: int) -> str:
    while prompt and 1 + len(tokenizer.encode(prompt)) > limit:
        prompt = prompt[: len(prompt) // 2]
    return prompt


def _check(model: LanguageModel, corpus: Corpus, options: TrainingOptions) -> None:
    if not getattr(model.config, "causal", True):
        raise InputError("a bidirectional model sees the token it is to predict; train one with causal true")
    if corpus.tokenizer.vocabulary_size != model.config.vocabulary_size:
        raise InputError(
            f"the corpus has {corpus.tokenizer.vocabulary_size} tokens but the model {model.config.vocabulary_size}; "
            "set the model's vocabulary_size"
        )
    limit = model.max_sequence_length
    if limit is not None and options.sequence_length > limit:
        raise InputError(f"sequence_length {options.sequence_length} is more than the model's {limit}; lower it")


def optimizer(options: TrainingOptions, steps: int) -> keras.optimizers.Optimizer:
    """AdamW with warm-up, cosine decay and the global gradient norm clipped to 1.

    Args:
        options: Learning rate and weight decay.
        steps: Length of the schedule.
    """
    warm_up = max(1, steps // 20)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=options.learning_rate / warm_up,
        warmup_target=options.learning_rate,
        warmup_steps=warm_up,
        decay_steps=max(1, steps - warm_up),
        alpha=0.1,
    )
    return keras.optimizers.AdamW(schedule, weight_decay=options.weight_decay, global_clipnorm=1.0)

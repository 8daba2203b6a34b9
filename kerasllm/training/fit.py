"""Training on a prepared corpus: plain `compile` and `fit` with the callbacks of this room."""

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
from kerasllm.training.averages import AveragedWeights
from kerasllm.training.callbacks import StopOnNaN
from kerasllm.training.checkpoint import Checkpoint
from kerasllm.training.options import TrainingOptions, optimizer
from kerasllm.training.tensorboard import TensorBoard

CHECKPOINTS = "checkpoints"
"""Name of the folder of a training's checkpoints."""


def train(
    model: LanguageModel,
    corpus: Corpus,
    folder: str | os.PathLike[str],
    options: TrainingOptions | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    prompts: Sequence[str] = (),
    verbose: Any = "auto",
) -> dict[str, list[float]]:
    """Train a model on a prepared corpus and leave its best weights in it.

    Args:
        model: A language model; it is compiled here.
        corpus: A prepared corpus.
        folder: Where `checkpoints/`, and `logs/` for TensorBoard go.
        options: How to train.
        resume: Go on from the newest checkpoint, in the middle of an epoch if need be; begin where there is none.
        overwrite: Remove checkpoints and logs of an earlier training; otherwise they are refused.
        prompts: Continued after each validation, as text in TensorBoard.
        verbose: As in `fit`.

    Returns:
        The history of `fit`, a value for each validation, with `tokens` seen by then.

    Raises:
        InputError: The corpus does not fit the model or is too short, the model is bidirectional, the loss is not a
            number, the folder holds an earlier training, or what is to be resumed was begun with other data or options.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written.
        SystemExit: SIGTERM, with exit code 143; a checkpoint was written.
    """
    options = options or TrainingOptions()
    _check(model, corpus, options)
    if options.deterministic:
        make_deterministic()
    tokens_per_step = options.batch_size * options.sequence_length
    steps = max(1, round(options.epochs * len(corpus.tokens("train")) / tokens_per_step))
    evaluations = min(options.evaluations, steps)
    with Checkpoint(
        Path(folder) / CHECKPOINTS,
        resume=resume,
        overwrite=overwrite,
        every=options.save_every,
        keep=options.keep,
        tokenizer=corpus.tokenizer,
        identity={"options": options.identity(), "data": corpus.identity},
    ) as checkpoint:
        if checkpoint.finished:
            checkpoint.restore_weights(model)
        else:
            if not checkpoint.step:  # TensorBoard would draw two trainings as one
                shutil.rmtree(Path(folder) / "logs", ignore_errors=True)
            _prepare(model, options, steps)
            samples = TensorBoard(Path(folder) / "logs", sample=lambda: _continued(model, corpus.tokenizer, prompts))
            _fit(model, corpus, options, checkpoint, samples, (evaluations, steps // evaluations), verbose)
        history = checkpoint.history
    seen = range(1, len(history["loss"]) + 1)
    return {**history, "tokens": [float(n * (steps // evaluations) * tokens_per_step) for n in seen]}


def _fit(
    model: LanguageModel,
    corpus: Corpus,
    options: TrainingOptions,
    checkpoint: Checkpoint,
    samples: TensorBoard,
    length: tuple[int, int],
    verbose: Any,
) -> None:
    """Keras' `fit`, for so many epochs of so many steps."""
    training, validation = _datasets(corpus, options, checkpoint.step)
    watching = [
        StopOnNaN(skip=options.skip_nonfinite, explosion=options.explosion or None, checkpoint=checkpoint),
        keras.callbacks.EarlyStopping("val_loss", mode="min", patience=options.patience),
        samples,
        *([AveragedWeights()] if options.average else []),
    ]
    model.fit(
        training,
        validation_data=validation,
        epochs=length[0],
        initial_epoch=checkpoint.epoch,
        steps_per_epoch=length[1],
        shuffle=False,  # the windows are
        verbose=verbose,
        callbacks=checkpoint.together_with(watching),
    )
    if options.carry_state:
        model.carry_state(None)


def make_deterministic() -> None:
    """Let TensorFlow compute the same bits each time, which is slower and switches XLA off.

    Set Keras' seed (`keras.utils.set_random_seed`) before the model is made. The promise is for one machine with one
    number of threads and one version of each library.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def _prepare(model: LanguageModel, options: TrainingOptions, steps: int) -> None:
    """Build and compile."""
    if not model.built:
        model.build()
    if options.carry_state:
        model.carry_state(options.batch_size)
    scaled = model.dtype_policy.name == "mixed_float16"
    model.compile(optimizer=optimizer(options, steps, scaled=scaled))


def _datasets(corpus: Corpus, options: TrainingOptions, start: int) -> tuple[Any, Any]:
    """Training data from a step on, and validation data."""
    shape: dict[str, Any] = {"batch_size": options.batch_size, "sequence_length": options.sequence_length}
    shape["columns"] = options.carry_state
    seed = None if options.carry_state else options.seed
    return corpus.dataset("train", **shape, seed=seed, repeat=True, start=start), corpus.dataset("validation", **shape)


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
    if options.carry_state and not hasattr(model, "carry_state"):
        raise InputError(f"carry_state: a {type(model).__name__} has no state to carry; leave it out")
    _datasets(corpus, options, 0)  # refuses a text that is too short, before anything is overwritten

"""How to train, as one frozen dataclass, and the Keras objects that follow from it."""

import dataclasses
from typing import Any, Literal

import keras
from keras import ops

from kerasllm.errors import InputError

SCHEDULES = ("cosine", "linear", "step", "constant")


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        epochs: Times the training tokens are seen, a fraction allowed.
        batch_size: Windows in a step.
        sequence_length: Tokens in a window.
        learning_rate: Peak of the schedule.
        schedule: After the warm-up: `"cosine"` to a tenth (Loshchilov and Hutter 2017, arXiv:1608.03983), `"linear"` to
            a tenth, `"step"` (a tenth of the peak after half, a hundredth after three quarters), or `"constant"`.
        warm_up: Share of the steps in which the learning rate rises linearly.
        weight_decay: Of AdamW.
        clip_norm: Largest global norm of the gradients (Pascanu et al. 2013, arXiv:1211.5063); 0 clips nothing.
        gradient_accumulation: Steps whose mean gradient makes one update.
        average: Momentum of the moving average of weights (Polyak and Juditsky 1992) that is validated and kept; 0
            keeps the weights themselves.
        carry_state: LSTMs continue their state from window to window (`LSTMLanguageModel.carry_state`).
        skip_nonfinite: Steps with a loss or gradient that is no number to leave out before training ends with an
            error.
        explosion: A loss of so many times the first one ends the training; 0 lets it be.
        evaluations: Validations, spread evenly; each may end the training early or keep the weights.
        patience: Validations without progress before training ends.
        seed: Of the order of windows, and of everything random when the caller sets Keras' seed to it.
        deterministic: Bit for bit the same result each time, interrupted or not; slower, and without XLA.
        save_every: Steps between checkpoints; `None` chooses by time, see `Checkpoint`.
        keep: Newest checkpoints to keep besides the best.
    """

    epochs: float = 3.0
    batch_size: int = 16
    sequence_length: int = 128
    learning_rate: float = 3e-3
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    warm_up: float = 0.05
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    gradient_accumulation: int = 1
    average: float = 0.0
    carry_state: bool = False
    skip_nonfinite: int = 0
    explosion: float = 2.0
    evaluations: int = 6
    patience: int = 2
    seed: int = 0
    deterministic: bool = False
    save_every: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "sequence_length", "learning_rate", "gradient_accumulation", "evaluations")
        for name in (*positive, "patience", "keep"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, received {getattr(self, name)}")
        for name in ("weight_decay", "clip_norm", "skip_nonfinite", "explosion"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative, received {getattr(self, name)}")
        for name in ("warm_up", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and less than 1, received {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule {self.schedule!r} is none of {', '.join(SCHEDULES)}")

    def identity(self) -> dict[str, Any]:
        """What must not change when a training goes on: all but how often it is saved."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("save_every", "keep")}


@keras.saving.register_keras_serializable(package="kerasllm")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule after a linear rise to its first value (Vaswani et al. 2017, arXiv:1706.03762, section 5.3).

    Args:
        schedule: What follows; its step 0 is the first after the rise.
        steps: Length of the rise; step `s` has the share `(s + 1) / steps`.
    """

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, steps: int) -> None:
        super().__init__()
        self.schedule = schedule
        self.steps = steps

    def __call__(self, step: Any) -> Any:
        """The learning rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        share = ops.minimum((step + 1) / max(1, self.steps), 1.0)
        return share * self.schedule(ops.maximum(step - self.steps, 0.0))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WarmUp":
        """Make one from what `get_config` gave."""
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["steps"])


def learning_rate(options: TrainingOptions, steps: int) -> WarmUp:
    """The schedule of the options.

    Args:
        options: Peak, kind and share of the warm-up.
        steps: Of the whole training.
    """
    schedules = keras.optimizers.schedules
    rise = max(1, round(options.warm_up * steps)) if options.warm_up else 0
    peak, rest = options.learning_rate, max(1, steps - rise)
    after: keras.optimizers.schedules.LearningRateSchedule
    if options.schedule == "cosine":
        after = schedules.CosineDecay(peak, rest, alpha=0.1)
    elif options.schedule == "linear":
        after = schedules.PolynomialDecay(peak, rest, end_learning_rate=peak / 10)
    elif options.schedule == "step":
        after = schedules.PiecewiseConstantDecay([rest // 2, rest * 3 // 4], [peak, peak / 10, peak / 100])
    else:
        after = schedules.PolynomialDecay(peak, rest, end_learning_rate=peak)
    return WarmUp(after, rise)


def optimizer(options: TrainingOptions, steps: int, *, scaled: bool = False) -> keras.optimizers.Optimizer:
    """AdamW with the options' schedule, clipping, accumulation and averaging.

    Args:
        options: How to train.
        steps: Of the whole training.
        scaled: Whether the precision is float16, whose loss must be scaled.
    """
    inner = keras.optimizers.AdamW(
        learning_rate(options, steps),
        weight_decay=options.weight_decay,
        global_clipnorm=options.clip_norm or None,
        gradient_accumulation_steps=options.gradient_accumulation if options.gradient_accumulation > 1 else None,
        use_ema=options.average > 0,
        ema_momentum=options.average or 0.99,
    )
    if options.skip_nonfinite and not scaled:
        # This wrapper leaves out steps whose gradients are not finite; a scale of 1 changes nothing else.
        return keras.optimizers.LossScaleOptimizer(inner, initial_scale=1.0, dynamic_growth_steps=2**30)
    return inner

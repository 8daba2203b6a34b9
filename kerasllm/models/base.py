"""What every language model of the zoo can do: one forward path, defaults for `compile`, configs and presets."""

from typing import Any, ClassVar, Self

import keras

from kerasllm.config import ModelConfig
from kerasllm.errors import InputError
from kerasllm.presets import preset
from kerasllm.state import DecodeState


class LanguageModel(keras.Model):
    """Base class: token ids in, float32 logits of the next token out.

    A subclass implements `encode`, `project`, `initial_state` and `build`; all else follows from them.

    Args:
        config: The family's config, or its fields as a dictionary.
        **kwargs: `name` and `dtype` (a policy such as `"mixed_bfloat16"`) of `keras.Model`.

    Call arguments:
        tokens: int32 `(batch, length)`.
        padding_mask: Optional boolean `(batch, length)`, true where a token is real; not together with `state`.
        segment_ids: Optional int32 `(batch, length)`, for models with segments.
        state: Optional decode state (`kerasllm.state`): the tokens continue what it holds.
        training: Whether dropout is on.

    Returns:
        float32 logits `(batch, length, vocabulary_size)`; with `state` also the next state.
    """

    config_class: ClassVar[type[ModelConfig]]
    max_sequence_length: int | None = None
    """Longest context in tokens; `None` where there is no limit."""
    reads_source: ClassVar[bool] = False
    """Whether it continues a target given a source (`EncoderDecoder`)."""

    config: Any  # the family's own class; each subclass says which

    def __init__(self, config: ModelConfig | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(config, self.config_class):
            if not isinstance(config, dict):
                raise InputError(f"{type(self).__name__} needs a {self.config_class.__name__}, received {config!r}")
            config = self.config_class.from_dict(config)
        self.config = config

    def encode(
        self,
        tokens: Any,
        padding_mask: Any = None,
        segment_ids: Any = None,
        state: DecodeState | None = None,
        training: Any = None,
    ) -> Any:
        """Hidden states of tokens.

        Args:
            tokens: int32 `(batch, length)`.
            padding_mask: Optional boolean `(batch, length)`; not together with `state`, which knows its padding.
            segment_ids: Optional int32 `(batch, length)`, for models with segments; others refuse it.
            state: Optional decode state.
            training: Whether dropout is on.

        Returns:
            `(batch, length, width)` in the compute dtype; with `state` also the next state.
        """
        raise RuntimeError(f"{type(self).__name__} must implement encode")

    def _check_mask(self, padding_mask: Any, state: DecodeState | None) -> None:
        if padding_mask is not None and state is not None:
            raise ValueError(f"{self.name}: with a state, give padding to initial_state instead of a padding_mask")

    def project(self, hidden: Any) -> Any:
        """Logits of hidden states.

        Args:
            hidden: `(..., width)`.

        Returns:
            float32 `(..., vocabulary_size)`.
        """
        raise RuntimeError(f"{type(self).__name__} must implement project")

    def initial_state(self, batch_size: Any, length: Any, padding: Any = None) -> DecodeState:
        """The state before the first token.

        Args:
            batch_size: Number of rows.
            length: Number of tokens, prompt and continuation, that the state must hold.
            padding: Optional int32 `(batch,)`, empty slots on the left of each row.

        Returns:
            A decode state, see `kerasllm.state`.
        """
        raise RuntimeError(f"{type(self).__name__} must implement initial_state")

    def call(
        self,
        tokens: Any,
        padding_mask: Any = None,
        segment_ids: Any = None,
        state: DecodeState | None = None,
        training: Any = None,
    ) -> Any:
        """See the class."""
        inputs = {"padding_mask": padding_mask, "segment_ids": segment_ids}
        if state is None:
            return self.project(self.encode(tokens, training=training, **inputs))
        hidden, state = self.encode(tokens, state=state, training=training, **inputs)
        return self.project(hidden), state

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        metrics: Any = "auto",
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """`keras.Model.compile` with the defaults of language modelling.

        Args:
            optimizer: `"auto"` is AdamW with global gradient norm clipped to 1.
            loss: `"auto"` is cross-entropy of the next token, in nats.
            metrics: `"auto"` is perplexity, where there are no `weighted_metrics` either.
            weighted_metrics: Metrics that honour `sample_weight`, such as perplexity where some positions are padding.
            **kwargs: See Keras. `jit_compile` is off on TensorFlow unless asked for: there XLA makes these models
                slower on a CPU and cannot compile cuDNN's LSTM.
        """
        if keras.backend.backend() == "tensorflow":
            kwargs.setdefault("jit_compile", False)
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = keras.optimizers.AdamW(1e-3, global_clipnorm=1.0)
        if isinstance(loss, str) and loss == "auto":
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if isinstance(metrics, str) and metrics == "auto":
            metrics = None
            if weighted_metrics is None:
                from kerasllm.metrics import Perplexity

                weighted_metrics = [Perplexity()]
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, weighted_metrics=weighted_metrics, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as a saved model was compiled; Keras calls this when it loads one."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """`(batch, length, vocabulary_size)`."""
        return (*input_shape, self.config.vocabulary_size)

    def compute_output_spec(self, inputs: Any, *_: Any, **__: Any) -> keras.KerasTensor:
        """float32 `(batch, length, vocabulary_size)`."""
        return keras.KerasTensor((*inputs.shape, self.config.vocabulary_size), "float32")

    def get_config(self) -> dict[str, Any]:
        """The config's fields, name and dtype policy."""
        return {
            "config": self.config.to_dict(),
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Make a model from what `get_config` gave."""
        values = dict(config)
        if isinstance(values.get("dtype"), dict):
            values["dtype"] = keras.dtype_policies.deserialize(values["dtype"])
        return cls(**values)

    @classmethod
    def from_preset(cls, name: str, /, **kwargs: Any) -> Self:
        """A model with random weights in a named configuration.

        Args:
            name: A key of `kerasllm.presets.PRESETS`.
            **kwargs: Config fields to change (such as `vocabulary_size`), and `name` or `dtype` of the model.

        Raises:
            InputError: The preset is unknown or belongs to another class.
        """
        entry = preset(name)
        if entry["class"] != cls.__name__:
            raise InputError(f"preset {name!r} is a {entry['class']}; call {entry['class']}.from_preset")
        model_arguments = {key: kwargs.pop(key) for key in ("name", "dtype") if key in kwargs}
        return cls(cls.config_class.from_dict({**entry["config"], **kwargs}), **model_arguments)


def variable_name(variable: Any) -> str:
    """Name of a model's variable, without the model's own name: `block_0/attention/query/kernel`."""
    return variable.path.split("/", 1)[1]

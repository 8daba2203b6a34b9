"""Task heads over any language model of the zoo: classification, spans, masked words, sentence embeddings."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import keras
from keras import ops

from kerasllm import backend
from kerasllm.errors import InputError
from kerasllm.models.base import LanguageModel, variable_name
from kerasllm.models.head_configs import (
    HeadConfig,
    MaskedLanguageModelConfig,
    SentenceEmbedderConfig,
    SequenceClassifierConfig,
    SpanExtractorConfig,
    TokenClassifierConfig,
)
from kerasllm.models.lora import merged
from kerasllm.models.lstm import LSTMLanguageModel
from kerasllm.models.transformer import TransformerLanguageModel
from kerasllm.presets import preset

BACKBONES: dict[str, type[LanguageModel]] = {
    model.__name__: model for model in (LSTMLanguageModel, TransformerLanguageModel)
}
"""What a head can stand on."""

_PADDING_LOGIT = -1e9


class Head(keras.Model):
    """Base class: a language model without its projection, named `backbone`, and the layers of one task.

    Args:
        config: The head's config, or its fields as a dictionary.
        **kwargs: `name` and `dtype` (a policy such as `"mixed_bfloat16"`) of `keras.Model`.

    Call arguments:
        tokens: int32 `(batch, length)`; or a dictionary of `tokens`, `padding_mask` and `segment_ids`.
        padding_mask: Optional boolean `(batch, length)`, true where a token is real.
        segment_ids: Optional int32 `(batch, length)`, for backbones with segments.
        training: Whether dropout is on.
    """

    config_class: ClassVar[type[HeadConfig]]
    config: Any  # each subclass says which

    def __init__(self, config: HeadConfig | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(config, self.config_class):
            if not isinstance(config, dict):
                raise InputError(f"{type(self).__name__} needs a {self.config_class.__name__}, received {config!r:.80}")
            config = self.config_class.from_dict(config)
        self.config = config
        self.backbone = BACKBONES[config.backbone_class](config.backbone, dtype=self.dtype_policy, name="backbone")
        if isinstance(self.backbone, LSTMLanguageModel):
            self.backbone.projects = False
        self.dropout = keras.layers.Dropout(config.dropout, dtype=self.dtype_policy, name="dropout")

    @property
    def max_sequence_length(self) -> int | None:
        """Longest input in tokens; `None` where there is no limit."""
        return self.backbone.max_sequence_length

    @classmethod
    def from_backbone(cls, backbone: "LanguageModel | Head", *, name: str | None = None, **settings: Any) -> Self:
        """A new head over the weights of a language model, which are copied.

        Args:
            backbone: A built model, such as `kerasllm.load` gives, or a head, whose backbone is meant; it stays as it
                is. Adapters are merged.
            name: Of the new model.
            **settings: Fields of the head's config but `backbone`.

        Returns:
            The built model; what the backbone lacks has random weights.

        Raises:
            InputError: A setting is unknown or refused.
        """
        if isinstance(backbone, Head):
            backbone = backbone.backbone
        if not isinstance(backbone, LanguageModel):
            raise InputError(f"{cls.__name__} needs a language model under it, received a {type(backbone).__name__}")
        backbone = merged(backbone)
        config = cls.config_class.from_dict({"backbone": backbone.config, **settings})
        with backend.deferred():
            model = cls(config, dtype=backbone.dtype_policy, name=name)
            model.build()
        # Either may be the backbone of a head, which is a part of its variables' names.
        values = {variable_name(weight).removeprefix("backbone/"): weight.value for weight in backbone.weights}
        for weight in model.backbone.weights:
            backend.set_value(weight, values[variable_name(weight).removeprefix("backbone/")])
        backend.initialize_rest(model)
        return model

    @classmethod
    def from_preset(cls, name: str, /, **kwargs: Any) -> Self:
        """A model with random weights in a named configuration.

        Args:
            name: A key of `kerasllm.presets.PRESETS`.
            **kwargs: Config fields to change, `vocabulary_size` of the backbone, and `name` or `dtype` of the model.

        Raises:
            InputError: The preset is unknown or belongs to another class.
        """
        entry = preset(name)
        if entry["class"] != cls.__name__:
            raise InputError(f"preset {name!r} is a {entry['class']}; call {entry['class']}.from_preset")
        model_arguments = {key: kwargs.pop(key) for key in ("name", "dtype") if key in kwargs}
        backbone = entry["config"]["backbone"]
        if "vocabulary_size" in kwargs:
            size = {"vocabulary_size": kwargs.pop("vocabulary_size")}
            backbone = {**backbone, "config": {**backbone["config"], **size}}
        config = cls.config_class.from_dict({**entry["config"], "backbone": backbone, **kwargs})
        return cls(config, **model_arguments)

    def build(self, input_shape: Any = None) -> None:
        """Makes every variable; the shape of the input does not matter."""
        self.backbone.build()
        self._build_head((None, None, self.config.width))
        self.built = True

    def _build_head(self, shape: Any) -> None:
        """Makes the head's variables for hidden states of a shape."""

    def call(self, tokens: Any, padding_mask: Any = None, segment_ids: Any = None, training: Any = None) -> Any:
        """See the class."""
        if isinstance(tokens, Mapping):
            inputs = dict(tokens)
            if "tokens" not in inputs:
                raise ValueError(f"{self.name}: needs an input 'tokens', received {', '.join(map(str, inputs))}")
            tokens, padding_mask = inputs.pop("tokens"), inputs.pop("padding_mask", padding_mask)
            segment_ids = inputs.pop("segment_ids", segment_ids)
            if inputs:
                raise ValueError(f"{self.name}: has no input {sorted(inputs)[0]!r}")
        extra = {} if segment_ids is None else {"segment_ids": segment_ids}
        hidden = self.backbone.encode(tokens, padding_mask=padding_mask, training=training, **extra)
        return self._head(hidden, padding_mask, training)

    def _head(self, hidden: Any, padding_mask: Any, training: Any) -> Any:
        """What the head makes of hidden states `(batch, length, width)`."""
        raise RuntimeError(f"{type(self).__name__} must implement _head")

    def _pool(self, hidden: Any, padding_mask: Any) -> Any:
        """`(batch, width)` of `(batch, length, width)`, by the config's `pooling`."""
        kind = self.config.pooling
        if kind == "pooler":
            return self.backbone.pool(hidden)
        if padding_mask is None:
            return {"first": lambda: hidden[:, 0], "last": lambda: hidden[:, -1]}.get(
                kind, lambda: ops.mean(hidden, axis=1)
            )()
        mask = ops.cast(padding_mask, "int32")
        if kind == "mean":
            weights = ops.cast(mask, hidden.dtype)[:, :, None]
            return ops.sum(hidden * weights, axis=1) / ops.maximum(ops.sum(weights, axis=1), 1)
        slots = ops.arange(ops.shape(mask)[1], dtype="int32")
        index = ops.argmax(mask if kind == "first" else mask * (slots + 1), axis=1)
        return ops.take_along_axis(hidden, index[:, None, None], axis=1)[:, 0]

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        metrics: Any = None,
        weighted_metrics: Any = "auto",
        **kwargs: Any,
    ) -> None:
        """`keras.Model.compile` with the defaults of fine-tuning.

        Args:
            optimizer: `"auto"` is AdamW at 5e-5 with weight decay 0.01 (none for biases and norms) and global gradient
                norm clipped to 1 (Devlin et al. 2019, section A.2).
            loss: `"auto"` is cross-entropy of logits with integer labels.
            metrics: See Keras.
            weighted_metrics: `"auto"` is accuracy, which honours `sample_weight`, where `loss` is `"auto"` too.
            **kwargs: See Keras. `jit_compile` is off on TensorFlow unless asked for.
        """
        if keras.backend.backend() == "tensorflow":
            kwargs.setdefault("jit_compile", False)
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = keras.optimizers.AdamW(5e-5, weight_decay=0.01, global_clipnorm=1.0)
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "scale"])
        automatic = isinstance(loss, str) and loss == "auto"
        if automatic:
            loss = self._loss()
        if isinstance(weighted_metrics, str) and weighted_metrics == "auto":
            weighted_metrics = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")] if automatic else None
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, weighted_metrics=weighted_metrics, **kwargs)

    def _loss(self) -> Any:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as a saved model was compiled; Keras calls this when it loads one."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

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


class _Classifier(Head):
    """What both classifiers have in common: dropout, another dense layer where asked for, the last one."""

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.dense: keras.layers.Dense | None = None
        if self.config.dense_dim is not None:
            activation = None if self.config.dense_activation == "linear" else self.config.dense_activation
            self.dense = keras.layers.Dense(
                self.config.dense_dim, activation=activation, dtype=self.dtype_policy, name="dense"
            )
        self.classifier = _dense(self.config.num_classes, "classifier")

    def _build_head(self, shape: Any) -> None:
        if self.dense is not None:
            self.dense.build(shape)
            shape = (*shape[:-1], self.config.dense_dim)
        self.classifier.build(shape)

    def _classify(self, x: Any, training: Any) -> Any:
        x = self.dropout(x, training=training)
        if self.dense is not None:
            x = self.dropout(self.dense(x), training=training)
        return self.classifier(x)


@keras.saving.register_keras_serializable(package="kerasllm")
class SequenceClassifier(_Classifier):
    """Classes of whole texts: pooling, dropout, dense (Devlin et al. 2019, arXiv:1810.04805, section 4.1).

    Arguments and call arguments are those of `Head`.

    Returns:
        float32 logits `(batch, num_classes)`.
    """

    config_class = SequenceClassifierConfig
    config: SequenceClassifierConfig

    def _head(self, hidden: Any, padding_mask: Any, training: Any) -> Any:
        return self._classify(self._pool(hidden, padding_mask), training)


@keras.saving.register_keras_serializable(package="kerasllm")
class TokenClassifier(_Classifier):
    """A class of each token: dropout, dense (Devlin et al. 2019, section 5.3).

    Give positions without a label `sample_weight` 0, `(batch, length)`. Arguments and call arguments are those of
    `Head`.

    Returns:
        float32 logits `(batch, length, num_classes)`.
    """

    config_class = TokenClassifierConfig
    config: TokenClassifierConfig

    def _head(self, hidden: Any, padding_mask: Any, training: Any) -> Any:
        return self._classify(hidden, training)


@keras.saving.register_keras_serializable(package="kerasllm")
class SpanExtractor(Head):
    """First and last token of the answer to a question about a text (Devlin et al. 2019, section 4.2).

    Labels are int32 `(batch, 2)`, the positions of both. Arguments and call arguments are those of `Head`.

    Returns:
        float32 logits `(batch, 2, length)`, of starts and of ends; -1e9 at padding.
    """

    config_class = SpanExtractorConfig
    config: SpanExtractorConfig

    def __init__(self, config: SpanExtractorConfig | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.span = _dense(2, "span")

    def _build_head(self, shape: Any) -> None:
        self.span.build(shape)

    def _head(self, hidden: Any, padding_mask: Any, training: Any) -> Any:
        logits = ops.transpose(self.span(self.dropout(hidden, training=training)), (0, 2, 1))
        return logits if padding_mask is None else ops.where(padding_mask[:, None, :], logits, _PADDING_LOGIT)


@keras.saving.register_keras_serializable(package="kerasllm")
class MaskedLanguageModel(Head):
    """BERT's head of pretraining: dense, activation, layer norm, the embedding table as projection, a bias.

    Devlin et al. 2019, section 3.1. Give positions that are not masked `sample_weight` 0. Arguments and call arguments
    are those of `Head`. A pooler of the backbone is kept as it is, for the heads that are made of this model later.

    Returns:
        float32 logits `(batch, length, vocabulary_size)`.
    """

    config_class = MaskedLanguageModelConfig
    config: MaskedLanguageModelConfig

    def __init__(self, config: MaskedLanguageModelConfig | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        backbone, policy = self.config.backbone, self.dtype_policy
        if self.backbone.pooler is not None:
            self.backbone.pooler.trainable = False  # no loss reaches it here
        approximate = backbone.activation == "gelu_approximate"
        self.transform = keras.layers.Dense(
            backbone.hidden_dim, kernel_initializer=_initializer(), dtype=policy, name="transform"
        )
        self.activation = (
            ops.relu if backbone.activation == "relu" else lambda x: keras.activations.gelu(x, approximate=approximate)
        )
        self.transform_norm = keras.layers.LayerNormalization(
            epsilon=backbone.norm_epsilon, dtype=policy, name="transform_norm"
        )

    def _build_head(self, shape: Any) -> None:
        self.transform.build(shape)
        self.transform_norm.build(shape)
        size = (self.config.vocabulary_size,)
        self.output_bias = self.add_weight(
            shape=size, initializer="zeros", dtype="float32", autocast=False, name="output_bias"
        )

    def _head(self, hidden: Any, padding_mask: Any, training: Any) -> Any:
        x = self.activation(self.transform(self.dropout(hidden, training=training)))
        return self.backbone.project(self.transform_norm(x)) + self.output_bias


@keras.saving.register_keras_serializable(package="kerasllm")
class SentenceEmbedder(Head):
    """One vector of each text, alike for texts of like meaning (Reimers and Gurevych 2019, arXiv:1908.10084).

    `compile` needs a loss. Arguments and call arguments are those of `Head`.

    Returns:
        float32 `(batch, width)`, of length 1 where the config says `normalize`.
    """

    config_class = SentenceEmbedderConfig
    config: SentenceEmbedderConfig

    def _head(self, hidden: Any, padding_mask: Any, training: Any) -> Any:
        vectors = ops.cast(self._pool(ops.cast(hidden, "float32"), padding_mask), "float32")
        vectors = self.dropout(vectors, training=training)
        if not self.config.normalize:
            return vectors
        return vectors / ops.maximum(ops.sqrt(ops.sum(ops.square(vectors), axis=-1, keepdims=True)), 1e-12)

    def _loss(self) -> Any:
        raise InputError("a sentence embedder has no usual loss; give compile one")


HEADS: dict[str, type[Head]] = {
    head.__name__: head
    for head in (SequenceClassifier, TokenClassifier, SpanExtractor, MaskedLanguageModel, SentenceEmbedder)
}
"""The closed list of heads that a model folder may name."""


def _dense(units: int, name: str) -> keras.layers.Dense:
    """A head's last layer; float32 whatever the backbone computes in."""
    return keras.layers.Dense(units, kernel_initializer=_initializer(), dtype="float32", name=name)


def _initializer() -> keras.initializers.Initializer:
    """Normal with standard deviation 0.02, as in BERT."""
    return keras.initializers.TruncatedNormal(stddev=0.02)

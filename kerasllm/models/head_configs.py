"""What task heads are made of: the backbone's config and the head's own fields, JSON in and out."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from kerasllm.config import LSTMConfig, ModelConfig, TransformerConfig
from kerasllm.errors import InputError

DENSE_ACTIVATIONS = ("tanh", "relu", "gelu", "linear")
POOLINGS = ("pooler", "first", "mean", "last")

_BACKBONES: dict[str, type[ModelConfig]] = {
    "LSTMLanguageModel": LSTMConfig,
    "TransformerLanguageModel": TransformerConfig,
}


@dataclasses.dataclass(frozen=True)
class HeadConfig(ModelConfig):
    """What every head's config can do.

    Args:
        backbone: Config of the language model under the head. A mapping of its `class` and `config`, as `to_dict` gives
            it, will do. What the head has no use for (a pooler, a projection of its own) is left out of it.
        dropout: Share of features dropped in training before the head's last layer.

    Raises:
        InputError: A value is out of range.
    """

    vocabulary_size: int = dataclasses.field(init=False, default=0)
    backbone: Any = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.backbone, Mapping):
            object.__setattr__(self, "backbone", _backbone(self.backbone))
        if type(self.backbone) not in _BACKBONES.values():
            raise InputError(f"backbone must be the config of a language model, received {self.backbone!r:.80}")
        rate = self.dropout
        if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not 0 <= rate < 1:
            raise InputError(f"dropout must be at least 0 and less than 1, received {rate!r}")
        self._check()
        if isinstance(self.backbone, TransformerConfig):
            used = dataclasses.replace(self.backbone, **self._unused(self.backbone))
            object.__setattr__(self, "backbone", used)
        config: Any = self.backbone
        object.__setattr__(self, "vocabulary_size", config.vocabulary_size)

    def _check(self) -> None:
        """Refuse values of the head's own fields."""

    def _unused(self, backbone: TransformerConfig) -> dict[str, Any]:
        """What the backbone can do without: its own projection to the vocabulary, its bias, and the pooler."""
        return {"tie_embeddings": True, "output_bias": False, "pooler": False}

    @property
    def backbone_class(self) -> str:
        """Name of the backbone's class."""
        return next(name for name, config in _BACKBONES.items() if type(self.backbone) is config)

    @property
    def causal(self) -> bool:
        """Whether the model can continue a text: no head can."""
        return False

    @property
    def width(self) -> int:
        """Width of the backbone's hidden states."""
        backbone = self.backbone
        return backbone.output_dim if isinstance(backbone, LSTMConfig) else backbone.hidden_dim

    def to_dict(self) -> dict[str, Any]:
        """See `ModelConfig.to_dict`."""
        own = [f.name for f in dataclasses.fields(self) if f.init and f.name != "backbone"]
        values = {name: getattr(self, name) for name in own}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"backbone": {"class": self.backbone_class, "config": self.backbone.to_dict()}, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """See `ModelConfig.from_dict`."""
        if "vocabulary_size" in values:
            raise InputError(f"{cls.__name__}: unknown vocabulary_size; it is the backbone's")
        return super().from_dict(values)


def _backbone(values: Mapping[str, Any]) -> ModelConfig:
    config, name = values.get("config"), values.get("class")
    if set(values) != {"class", "config"} or not isinstance(config, Mapping) or name not in _BACKBONES:
        raise InputError(f"backbone must have a config and a class, one of {', '.join(_BACKBONES)}")
    return _BACKBONES[str(name)].from_dict(config)


def _check_pooling(config: Any) -> None:
    if config.pooling not in POOLINGS:
        raise InputError(f"pooling must be one of {', '.join(POOLINGS)}, received {config.pooling!r}")
    if config.pooling == "pooler" and not getattr(config.backbone, "pooler", False):
        raise InputError("pooling 'pooler' needs a backbone with a pooler; choose first, mean or last")


def _check_dense(config: Any) -> None:
    size = config.dense_dim
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise InputError(f"dense_dim must be a positive integer, received {size!r}")
    if config.dense_activation not in DENSE_ACTIVATIONS:
        raise InputError(
            f"dense_activation must be one of {', '.join(DENSE_ACTIVATIONS)}, received {config.dense_activation!r}"
        )


def _check_labels(config: Any) -> None:
    _check_dense(config)
    count = config.num_classes
    if not isinstance(count, int) or isinstance(count, bool) or count < 2:
        raise InputError(f"num_classes must be an integer of at least 2, received {count!r}")
    labels = config.labels
    if labels is None:
        return
    fits = isinstance(labels, list | tuple) and all(isinstance(label, str) for label in labels)
    if not fits or len(labels) != count or len(set(labels)) != count:
        raise InputError(f"labels must be {count} different strings, one for each class, received {labels!r:.80}")
    object.__setattr__(config, "labels", tuple(labels))


@dataclasses.dataclass(frozen=True)
class SequenceClassifierConfig(HeadConfig):
    """Config of `SequenceClassifier`.

    Args:
        backbone: See `HeadConfig`.
        dropout: See `HeadConfig`.
        num_classes: Number of classes.
        labels: Name of each class.
        dense_dim: Width of another dense layer before the last (Liu et al. 2019, RoBERTa, arXiv:1907.11692); `None`
            for none.
        dense_activation: Its activation: `"tanh"` (RoBERTa), `"relu"`, `"gelu"` or `"linear"`.
        pooling: One vector of many: BERT's `"pooler"`, the `"first"` or `"last"` real token, or their `"mean"`.

    Raises:
        InputError: A value is out of range.
    """

    num_classes: int = 2
    labels: tuple[str, ...] | None = None
    dense_dim: int | None = None
    dense_activation: str = "tanh"
    pooling: str = "pooler"

    def _check(self) -> None:
        _check_labels(self)
        _check_pooling(self)

    def _unused(self, backbone: TransformerConfig) -> dict[str, Any]:
        return {**super()._unused(backbone), "pooler": self.pooling == "pooler"}


@dataclasses.dataclass(frozen=True)
class TokenClassifierConfig(HeadConfig):
    """Config of `TokenClassifier`.

    Args:
        backbone: See `HeadConfig`.
        dropout: See `HeadConfig`.
        num_classes: Number of classes.
        labels: Name of each class.
        dense_dim: See `SequenceClassifierConfig`.
        dense_activation: See `SequenceClassifierConfig`.

    Raises:
        InputError: A value is out of range.
    """

    num_classes: int = 2
    labels: tuple[str, ...] | None = None
    dense_dim: int | None = None
    dense_activation: str = "tanh"

    def _check(self) -> None:
        _check_labels(self)


@dataclasses.dataclass(frozen=True)
class SpanExtractorConfig(HeadConfig):
    """Config of `SpanExtractor`; see `HeadConfig`."""


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModelConfig(HeadConfig):
    """Config of `MaskedLanguageModel`; see `HeadConfig`. The backbone is a bidirectional Transformer.

    A pooler is kept although this head does not use it: other heads are made of the model once it is trained.
    """

    def _check(self) -> None:
        if not isinstance(self.backbone, TransformerConfig) or self.backbone.causal:
            raise InputError("a masked language model needs a bidirectional Transformer; make it with causal=False")

    def _unused(self, backbone: TransformerConfig) -> dict[str, Any]:
        return {"output_bias": False}


@dataclasses.dataclass(frozen=True)
class SentenceEmbedderConfig(HeadConfig):
    """Config of `SentenceEmbedder`.

    Args:
        backbone: See `HeadConfig`.
        dropout: See `HeadConfig`.
        pooling: See `SequenceClassifierConfig`.
        normalize: Whether embeddings have length 1.

    Raises:
        InputError: A value is out of range.
    """

    pooling: str = "mean"
    normalize: bool = True

    def _check(self) -> None:
        _check_pooling(self)
        if not isinstance(self.normalize, bool):
            raise InputError(f"normalize must be true or false, received {self.normalize!r}")

    def _unused(self, backbone: TransformerConfig) -> dict[str, Any]:
        return {**super()._unused(backbone), "pooler": self.pooling == "pooler"}

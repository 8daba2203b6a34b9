"""What a model is made of: one frozen dataclass per family, validated, JSON in and out.

Names are those of Keras and KerasHub. A field is here because a paper or a published checkpoint varies it and a test
turns it on.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Self

from kerasllm.errors import InputError

ALIGNMENTS = ("general", "additive")
ACTIVATIONS = ("gelu", "gelu_approximate", "relu", "swiglu")
CELLS = ("lstm", "gru", "rnn")
INITIALIZERS = ("normal", "uniform")
NORMS = ("layer_norm", "rms_norm")
POSITIONS = ("rotary", "learned", "sine")


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, received {value!r}")


def _positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be a positive integer, received {value!r}")


def _rate(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise InputError(f"{name} must be at least 0 and less than 1, received {value!r}")


def _more_than(config: Any, name: str, least: float) -> None:
    value = getattr(config, name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least < value < float("inf"):
        raise InputError(f"{name} must be a number greater than {least}, received {value!r}")


def _switches(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, received {value!r}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What every family's config can do."""

    vocabulary_size: int

    def to_dict(self) -> dict[str, Any]:
        """The config as plain JSON values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The config as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a config from JSON values.

        Args:
            values: Field name to value.

        Raises:
            InputError: A key is unknown or missing, or a value is refused.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        missing = sorted(name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in values)
        if unknown or missing:
            problems = [
                f"{word} {', '.join(names)}" for word, names in (("unknown", unknown), ("missing", missing)) if names
            ]
            raise InputError(f"{cls.__name__}: {'; '.join(problems)}; known fields are {', '.join(fields)}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make a config from what `to_json` wrote.

        Raises:
            InputError: The text is not a JSON object, or a key or value is refused.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InputError(f"{cls.__name__}: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise InputError(f"{cls.__name__}: needs a JSON object, received {values!r}")
        return cls.from_dict(values)


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """How Llama 3.1 and later stretch rotary wavelengths beyond the context they were first trained on.

    Wavelengths longer than `original_length / low_frequency_factor` are multiplied by `factor`, those shorter than
    `original_length / high_frequency_factor` stay, and between them the rate is interpolated (Grattafiori et al. 2024,
    arXiv:2407.21783, section 3.2; the formula is that of the published reference code).

    Args:
        factor: By how much long wavelengths grow.
        low_frequency_factor: See above.
        high_frequency_factor: See above; greater than `low_frequency_factor`.
        original_length: Context of the first training, in tokens.

    Raises:
        InputError: A value is out of range.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int

    def __post_init__(self) -> None:
        _more_than(self, "factor", 0)
        _more_than(self, "low_frequency_factor", 0)
        _more_than(self, "high_frequency_factor", self.low_frequency_factor)
        _positive(self, "original_length")


@dataclasses.dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """A Transformer: GPT-2, LLaMA, BERT and the published variants between them are switches of one block.

    Args:
        vocabulary_size: Number of token ids.
        num_layers: Number of Transformer blocks.
        num_heads: Query heads of each attention; divides `hidden_dim`.
        hidden_dim: Width of the residual stream.
        intermediate_dim: Width inside the feed-forward layer.
        num_key_value_heads: Key-value heads; fewer than `num_heads` is grouped-query attention (Ainslie et al. 2023,
            arXiv:2305.13245). `None` means `num_heads`.
        max_sequence_length: Longest context in tokens.
        positions: `"rotary"` (Su et al. 2021, arXiv:2104.09864), `"learned"` (GPT-2) or `"sine"` (Vaswani et al. 2017).
        rotary_base: Base of the rotary wavelengths.
        rotary_scaling: How long wavelengths are stretched (Llama 3.1); `None` where they are not. A mapping of its
            fields will do.
        norm: `"layer_norm"` or `"rms_norm"` (Zhang and Sennrich 2019, arXiv:1910.07467).
        norm_first: Normalise before each sublayer (GPT-2) rather than after it (Vaswani et al. 2017).
        norm_epsilon: Added to the variance.
        activation: `"gelu"`, `"gelu_approximate"`, `"relu"` or `"swiglu"` (Shazeer 2020, arXiv:2002.05202).
        causal: Whether a position sees only itself and earlier ones.
        use_bias: Whether projections and layer norms have a bias.
        attention_bias: Whether the projections of attention have one; `None` means `use_bias` (published LLaMA variants
            differ in it).
        num_segments: Kinds of segments that have a vector of their own, added to the tokens' (Devlin et al. 2019,
            arXiv:1810.04805: 2); 0 for none.
        embedding_norm: Whether the sum of the embeddings is normalised (BERT).
        pooler: Whether the model has BERT's pooler, a dense layer with tanh over the first token.
        final_norm: Whether there is a norm behind the last block; `None` means `norm_first` (PyTorch's `nn.Transformer`
            has one in any case).
        embedding_scale: Whether embeddings of tokens are multiplied by `sqrt(hidden_dim)` (Vaswani et al. 2017, 3.4).
        tie_embeddings: Whether the output projection is the embedding table (Press and Wolf 2017, arXiv:1608.05859).
        output_bias: Whether logits have a bias, as in PyTorch's own Transformer language model and in Marian's
            checkpoints (Junczys-Dowmunt et al. 2018, arXiv:1804.00344).
        initializer: `"normal"` with standard deviation 0.02 (GPT-2), or `"uniform"`: embeddings and projection between
            -0.1 and 0.1 (Zaremba et al. 2014, arXiv:1409.2329, section 4.1), kernels as by Glorot and Bengio 2010.
        dropout: Share of activations dropped in training, after the embedding and after each sublayer.

    Raises:
        InputError: A value is out of range.
    """

    num_layers: int
    num_heads: int
    hidden_dim: int
    intermediate_dim: int
    num_key_value_heads: int | None = None
    max_sequence_length: int = 512
    positions: str = "rotary"
    rotary_base: float = 10_000.0
    rotary_scaling: RotaryScaling | None = None
    norm: str = "rms_norm"
    norm_first: bool = True
    norm_epsilon: float = 1e-5
    activation: str = "swiglu"
    causal: bool = True
    use_bias: bool = False
    attention_bias: bool | None = None
    num_segments: int = 0
    embedding_norm: bool = False
    pooler: bool = False
    tie_embeddings: bool = True
    dropout: float = 0.0
    final_norm: bool | None = None
    embedding_scale: bool = False
    output_bias: bool = False
    initializer: str = "normal"

    def __post_init__(self) -> None:
        _positive(
            self, "vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length"
        )
        _choice("positions", self.positions, POSITIONS)
        _choice("norm", self.norm, NORMS)
        _choice("activation", self.activation, ACTIVATIONS)
        _rate("dropout", self.dropout)
        _more_than(self, "rotary_base", 1)
        _more_than(self, "norm_epsilon", 0)
        _choice("initializer", self.initializer, INITIALIZERS)
        _switches(self, "norm_first", "causal", "use_bias", "embedding_norm", "pooler", "tie_embeddings")
        _switches(self, "embedding_scale", "output_bias")
        for name in ("attention_bias", "final_norm"):
            if getattr(self, name) is not None:
                _switches(self, name)
        if self.num_segments != 0:
            _positive(self, "num_segments")
        if isinstance(self.rotary_scaling, Mapping):
            object.__setattr__(self, "rotary_scaling", _scaling(self.rotary_scaling))
        if self.rotary_scaling is not None and self.positions != "rotary":
            raise InputError(f"rotary_scaling needs rotary positions, received {self.positions!r}")
        if self.hidden_dim % self.num_heads:
            raise InputError(f"num_heads must divide hidden_dim {self.hidden_dim}, received {self.num_heads}")
        if self.num_key_value_heads is not None:
            _positive(self, "num_key_value_heads")
            if self.num_heads % self.num_key_value_heads:
                raise InputError(
                    f"num_key_value_heads must divide num_heads {self.num_heads}, received {self.num_key_value_heads}"
                )
        if self.positions == "rotary" and self.head_dim % 2:
            raise InputError(f"rotary positions need an even head size, received {self.head_dim}")

    @property
    def normalizes_last(self) -> bool:
        """Whether there is a norm behind the last block."""
        return self.norm_first if self.final_norm is None else self.final_norm

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_dim // self.num_heads


def _scaling(values: Mapping[str, Any]) -> RotaryScaling:
    names = [field.name for field in dataclasses.fields(RotaryScaling)]
    if different := sorted(set(values) ^ set(names)):
        raise InputError(f"rotary_scaling must have exactly the fields {', '.join(names)}; {different[0]} does not fit")
    return RotaryScaling(**values)


@dataclasses.dataclass(frozen=True)
class LSTMConfig(ModelConfig):
    """An LSTM language model (Zaremba et al. 2014, arXiv:1409.2329; Merity et al. 2017, arXiv:1708.02182).

    Args:
        vocabulary_size: Number of token ids.
        embedding_dim: Width of the token embedding.
        hidden_dim: Width of every LSTM layer but the last, which is `embedding_dim` wide where embeddings are tied.
        num_layers: Number of LSTM layers.
        tie_embeddings: Whether the output projection is the embedding table.
        dropout: Share of features dropped in training, the same ones at every time step (Gal and Ghahramani 2016,
            arXiv:1512.05287): after the embedding and after each LSTM layer.
        cell: `"lstm"`, or its relatives `"gru"` (Cho et al. 2014, arXiv:1406.1078) and `"rnn"`, the network of Mikolov
            et al. 2010, "Recurrent neural network based language model", with tanh.
        bidirectional: Whether a second layer reads from the end (Graves and Schmidhuber 2005, "Framewise phoneme
            classification with bidirectional LSTM"): for task heads, since such a model cannot continue a text.

    Raises:
        InputError: A value is out of range.
    """

    embedding_dim: int
    hidden_dim: int
    num_layers: int = 1
    tie_embeddings: bool = False
    dropout: float = 0.0
    cell: str = "lstm"
    bidirectional: bool = False

    def __post_init__(self) -> None:
        _positive(self, "vocabulary_size", "embedding_dim", "hidden_dim", "num_layers")
        _switches(self, "tie_embeddings", "bidirectional")
        _rate("dropout", self.dropout)
        _choice("cell", self.cell, CELLS)
        if self.bidirectional and self.tie_embeddings:
            raise InputError("tie_embeddings needs a model of one direction, received bidirectional True")

    @property
    def causal(self) -> bool:
        """Whether the model can continue a text."""
        return not self.bidirectional

    @property
    def layer_dims(self) -> tuple[int, ...]:
        """Width of each LSTM layer, first to last; of each of its directions where there are two."""
        last = self.embedding_dim if self.tie_embeddings else self.hidden_dim
        return (self.hidden_dim,) * (self.num_layers - 1) + (last,)

    @property
    def output_dim(self) -> int:
        """Width of the hidden states."""
        return self.layer_dims[-1] * (2 if self.bidirectional else 1)


@dataclasses.dataclass(frozen=True)
class TransformerSeq2SeqConfig(TransformerConfig):
    """An encoder-decoder Transformer (Vaswani et al. 2017); the fields of `TransformerConfig` are the decoder's.

    The encoder has the same widths and switches, and sees all of a source.

    Args:
        num_encoder_layers: Blocks of the encoder; `num_layers` by default.
        source_vocabulary_size: Token ids of sources, which then have an embedding of their own; `None` where sources
            and targets share vocabulary and embedding (Vaswani et al. 2017, section 3.4).

    Raises:
        InputError: A value is out of range.
    """

    num_encoder_layers: int | None = None
    source_vocabulary_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_encoder_layers", "source_vocabulary_size"):
            if getattr(self, name) is not None:
                _positive(self, name)
        for name, only in (("causal", True), ("num_segments", 0), ("pooler", False)):
            if getattr(self, name) != only:
                raise InputError(f"{name} must be {only} in an encoder-decoder, received {getattr(self, name)!r}")

    @property
    def encoder(self) -> TransformerConfig:
        """Config of the encoder."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(TransformerConfig)}
        values |= {"causal": False, "tie_embeddings": True, "output_bias": False}
        values["vocabulary_size"] = self.source_vocabulary_size or self.vocabulary_size
        return TransformerConfig(**{**values, "num_layers": self.num_encoder_layers or self.num_layers})


@dataclasses.dataclass(frozen=True)
class LSTMEncoderDecoderConfig(LSTMConfig):
    """An LSTM encoder-decoder (Sutskever et al. 2014, arXiv:1409.3215); the fields of `LSTMConfig` are the decoder's.

    The encoder has as many layers of the same widths, and the decoder begins with its final state.

    Args:
        attention: `"general"` (Luong et al. 2015, arXiv:1508.04025) or `"additive"` (Bahdanau et al. 2015,
            arXiv:1409.0473), see `layers.GlobalAttention`; `None` where the final state is all the decoder knows.
        bidirectional_encoder: Whether the encoder reads in both directions, each half as wide (OpenNMT, Klein et al.
            2017, arXiv:1701.02810).
        source_vocabulary_size: Token ids of sources, which then have an embedding of their own; `None` where sources
            and targets share vocabulary and embedding.

    Raises:
        InputError: A value is out of range.
    """

    attention: str | None = "general"
    bidirectional_encoder: bool = False
    source_vocabulary_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention is not None:
            _choice("attention", self.attention, ALIGNMENTS)
        _switches(self, "bidirectional_encoder")
        if self.source_vocabulary_size is not None:
            _positive(self, "source_vocabulary_size")
        if self.bidirectional:
            raise InputError("bidirectional must be False in an encoder-decoder, received True")
        odd = [width for width in self.layer_dims if width % 2]
        if self.bidirectional_encoder and odd:
            raise InputError(f"bidirectional_encoder needs even widths, received {odd[0]}")

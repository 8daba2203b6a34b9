"""Bytes on one device: what training and serving keep of a model, by use."""

import dataclasses

from kerasllm.config import LSTMConfig, ModelConfig, TransformerConfig
from kerasllm.errors import InputError
from kerasllm.plan import counts

DTYPES: dict[str, tuple[int, str]] = {
    "float32": (4, "float32"),
    "mixed_bfloat16": (4, "bfloat16"),
    "mixed_float16": (4, "float16"),
    "bfloat16": (2, "bfloat16"),
    "float16": (2, "float16"),
}
"""Keras dtype policy to bytes of a variable and compute dtype. Under a mixed policy the variables themselves are the
float32 master weights (Micikevicius et al. 2018, arXiv:1710.03740); under a plain one there are none."""

_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights: Variables of the model.
        gradients: One for each parameter, in the dtype of its variable; twice that where gradients are accumulated.
        optimizer: AdamW's two moments, in the dtype of the variables (Loshchilov and Hutter 2019, arXiv:1711.05101).
        copies: Weights in the compute dtype (mixed policies), the output projection in float32 (16-bit policies), and
            what a device gathers of a layer whose weights are sharded.
        activations: What the backward pass needs of the forward pass; in serving, the largest layer's intermediates.
        logits: float32; in training also their gradient. None of an encoder with a pooler.
        cache: Decode state.
    """

    weights: int
    gradients: int = 0
    optimizer: int = 0
    copies: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0

    @property
    def total(self) -> int:
        """Sum of all, in bytes."""
        return sum(dataclasses.astuple(self))


def dtype_sizes(dtype: str) -> tuple[int, str, int]:
    """Bytes of a variable, compute dtype and its bytes, of a dtype policy.

    Args:
        dtype: A key of `DTYPES`.

    Raises:
        InputError: The policy is unknown.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    variable, compute = DTYPES[dtype]
    return variable, compute, _SIZES[compute]


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of a model's variables.

    Args:
        config: A Transformer's or an LSTM's.
        dtype: Dtype policy.
    """
    variable, _, _ = dtype_sizes(dtype)
    wide = counts.float32_parameters(config)
    return variable * (counts.parameter_count(config) - wide) + 4 * wide


def copy_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of weights that a step casts or transposes and keeps until its end.

    Args:
        config: A Transformer's or an LSTM's.
        dtype: Dtype policy.
    """
    variable, _, compute = dtype_sizes(dtype)
    cast = compute * sum(counts.layer_matrices(config)) if variable != compute else 0
    # A tied table is transposed to project, in float32; so is cast what is not float32 already.
    own = isinstance(config, LSTMConfig) and not config.tie_embeddings
    projection = config.tie_embeddings or (variable == 2 and not own)  # type: ignore[attr-defined]
    return cast + (4 * counts.projection_parameters(config) if projection else 0)


_KEPT = {"swiglu": 4, "gelu": 4, "gelu_approximate": 5, "relu": 1}
"""Values that each inner unit keeps for the backward pass of an activation made of plain operations."""


def layer_activations(config: ModelConfig, dtype: str, rows: int, length: int, training: bool = True) -> list[int]:
    """Bytes that each layer keeps of a forward pass for its backward pass, term by term.

    The method is that of Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1). Their `s b h (34 + 5 a s / h)` is a
    GPT layer of fused 16-bit kernels; these are the terms of our block, whose softmax and norms are float32 and made of
    plain operations, as TensorFlow keeps them (a test counts the tensors of a traced step).

    Args:
        config: A Transformer's or an LSTM's.
        dtype: Dtype policy.
        rows: Sequences.
        length: Tokens in each.
        training: Whether dropout is on.

    Returns:
        Bytes of each layer, first to last.
    """
    _, _, size = dtype_sizes(dtype)
    drop = 1 if config.dropout and training else 0  # type: ignore[attr-defined]
    tokens = rows * length
    if isinstance(config, TransformerConfig):
        width, shared = config.hidden_dim, counts.key_value_width(config)
        # Two norms: input and normalised input in float32, and the output, which is the input of a projection.
        per_token = 2 * width * (8 + size)
        # Queries, keys, values and the input of the output projection.
        per_token += size * 2 * (width + shared)
        per_token += size * _KEPT[config.activation] * config.intermediate_dim
        # Masks of dropout after both sublayers.
        per_token += 2 * drop * width
        # Softmax in float32; what meets the values, where that is another tensor; a mask of dropout.
        per_score = 4 + (size if size < 4 or drop else 0) + drop
        return [tokens * (per_token + config.num_heads * length * per_score)] * config.num_layers
    assert isinstance(config, LSTMConfig)
    ways = 2 if config.bidirectional else 1
    inputs = [config.embedding_dim, *(ways * units for units in config.layer_dims)]
    # Input, and of an LSTM four gates, cell, its tanh and the output, of a GRU three gates, what is reset and the
    # output; the mask of locked dropout has no time axis.
    kept = ways * {"lstm": 7, "gru": 5, "rnn": 1}[config.cell]
    return [tokens * size * (width + kept * units) for width, units in zip(inputs, config.layer_dims, strict=False)]


def activation_bytes(config: ModelConfig, dtype: str, rows: int, length: int, *, recompute: bool = False) -> int:
    """Bytes of a forward pass that training keeps, without logits.

    Args:
        config: A Transformer's or an LSTM's.
        dtype: Dtype policy.
        rows: Sequences.
        length: Tokens in each.
        recompute: Keep only the input of each layer, and recompute one layer at a time (Chen et al. 2016,
            arXiv:1604.06174; `keras.RematScope`).
    """
    _, _, size = dtype_sizes(dtype)
    layers = layer_activations(config, dtype, rows, length)
    tokens = rows * length
    if isinstance(config, TransformerConfig):
        width, inputs = config.hidden_dim, [config.hidden_dim] * config.num_layers
        norms = (1 if config.embedding_norm else 0) + (1 if config.normalizes_last else 0)
        mask = width if config.dropout else 0
    else:
        assert isinstance(config, LSTMConfig)
        ways = 2 if config.bidirectional else 1
        width, inputs = config.output_dim, [config.embedding_dim, *(ways * units for units in config.layer_dims[:-1])]
        norms, mask = 0, 0
    # Outside of the layers: norms as above, and the input of the projection in float32.
    around = tokens * (width * (8 * norms + (4 if counts.makes_logits(config) else 0)) + mask)
    if recompute:
        return around + max(layers) + tokens * size * sum(inputs)
    return around + sum(layers)


def training_memory(
    config: ModelConfig,
    dtype: str,
    batch_size: int,
    length: int,
    devices: int = 1,
    *,
    recompute: bool = False,
    sharded: bool = False,
    accumulate: bool = False,
) -> Memory:
    """Bytes on each device while training with AdamW, the batch split over devices.

    Args:
        config: A Transformer's or an LSTM's.
        dtype: Dtype policy.
        batch_size: Sequences in a step, on all devices together.
        length: Tokens in each.
        devices: Number of devices.
        recompute: See `activation_bytes`.
        sharded: Whether weights, gradients and moments are split over the devices (ZeRO stage 3, Rajbhandari et al.
            2020, arXiv:1910.02054) rather than held by each.
        accumulate: Whether the optimizer accumulates gradients over steps, which takes one more gradient.
    """
    weights, rows, ways = weight_bytes(config, dtype), -(-batch_size // devices), devices if sharded else 1
    return Memory(
        weights=-(-weights // ways),
        gradients=-(-weights * (2 if accumulate else 1) // ways),
        optimizer=-(-2 * weights // ways),
        copies=-(-copy_bytes(config, dtype) // ways) + (_gathered(config, dtype) if ways > 1 else 0),
        activations=activation_bytes(config, dtype, rows, length, recompute=recompute),
        logits=8 * logit_values(config, rows, length),
    )


def serving_memory(
    config: ModelConfig, dtype: str, batch_size: int, length: int, devices: int = 1, *, sharded: bool = False
) -> Memory:
    """Bytes on each device while continuing prompts of up to `length` tokens, the batch split over devices.

    Args:
        config: A Transformer's or an LSTM's.
        dtype: Dtype policy.
        batch_size: Sequences at a time, on all devices together.
        length: Tokens in each, prompt and continuation.
        devices: Number of devices.
        sharded: Whether weights are split over the devices rather than held by each.
    """
    _, _, size = dtype_sizes(dtype)
    rows, ways = -(-batch_size // devices), devices if sharded else 1
    working = max(layer_activations(config, dtype, rows, length, training=False))
    if isinstance(config, TransformerConfig):
        working += 4 * rows * config.num_heads * length * length  # scores, beside their softmax
    causal = getattr(config, "causal", True)
    return Memory(
        weights=-(-weight_bytes(config, dtype) // ways),
        copies=-(-copy_bytes(config, dtype) // ways) + (_gathered(config, dtype) if ways > 1 else 0),
        activations=working,
        logits=4 * logit_values(config, rows, 1 if causal else length),
        cache=size * rows * counts.cache_values(config, length),
    )


def logit_values(config: ModelConfig, rows: int, length: int) -> int:
    """Number of logits of a batch.

    Args:
        config: A Transformer's or an LSTM's.
        rows: Sequences.
        length: Tokens in each that are projected to the vocabulary.
    """
    return config.vocabulary_size * rows * length if counts.makes_logits(config) else 0


def _gathered(config: ModelConfig, dtype: str) -> int:
    """Bytes of the largest layer, or of the projection, that a device gathers to use it."""
    _, _, size = dtype_sizes(dtype)
    return max(size * max(counts.layer_matrices(config)), 4 * counts.projection_parameters(config))

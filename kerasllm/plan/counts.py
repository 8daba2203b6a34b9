"""Parameters, values of the cache and floating-point operations of a config, exactly."""

from kerasllm.config import LSTMConfig, ModelConfig, TransformerConfig
from kerasllm.errors import InputError


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """Parameters by part of the model.

    Args:
        config: A Transformer's or an LSTM's.

    Returns:
        Part to number of parameters, in the order of the model; parts that are of one kind in every layer are summed.

    Raises:
        InputError: The config is of another kind.
    """
    # An encoder-decoder's config is one of these too, but of more than this page counts.
    if type(config) is TransformerConfig:
        return _transformer_table(config)
    if type(config) is LSTMConfig:
        return _lstm_table(config)
    raise InputError(f"only a TransformerConfig or an LSTMConfig can be planned, received {type(config).__name__}")


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters, as `count_params` of the built model gives it.

    Args:
        config: A Transformer's or an LSTM's.
    """
    return sum(parameter_table(config).values())


def _transformer_table(config: TransformerConfig) -> dict[str, int]:
    width, inner, layers = config.hidden_dim, config.intermediate_dim, config.num_layers
    norm = width * (2 if config.norm == "layer_norm" and config.use_bias else 1)
    bias = 1 if (config.use_bias if config.attention_bias is None else config.attention_bias) else 0
    shared = key_value_width(config)
    into = 2 if config.activation == "swiglu" else 1
    table = {
        "embedding": config.vocabulary_size * width,
        "positions": config.max_sequence_length * width if config.positions == "learned" else 0,
        "segments": config.num_segments * width,
        "embedding norm": norm if config.embedding_norm else 0,
        "attention": layers * (2 * (width + bias) * width + 2 * (width + bias) * shared),
        "feed-forward": layers * (into * width * inner + inner * width),
        "feed-forward biases": layers * (into * inner + width) if config.use_bias else 0,
        "norms of blocks": layers * 2 * norm,
        "final norm": norm if config.normalizes_last else 0,
        "pooler": width * (width + 1) if config.pooler else 0,
        "projection": 0 if config.tie_embeddings else config.vocabulary_size * width,
        "output bias": config.vocabulary_size if config.output_bias else 0,
    }
    return {part: count for part, count in table.items() if count}


def _lstm_table(config: LSTMConfig) -> dict[str, int]:
    # A GRU's gates have two biases each, as cuDNN wants them.
    biases = _GATES[config.cell] * (2 if config.cell == "gru" else 1) * _directions(config) * sum(config.layer_dims)
    table = {
        "embedding": config.vocabulary_size * config.embedding_dim,
        config.cell: sum(layer_matrices(config)) + biases,
        "projection": 0 if config.tie_embeddings else config.vocabulary_size * config.output_dim,
        "output bias": config.vocabulary_size,
    }
    return {part: count for part, count in table.items() if count}


_GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def _directions(config: LSTMConfig) -> int:
    return 2 if config.bidirectional else 1


def key_value_width(config: TransformerConfig) -> int:
    """Width of a token's keys, and of its values, in all heads of one layer."""
    return (config.num_key_value_heads or config.num_heads) * config.head_dim


def float32_parameters(config: ModelConfig) -> int:
    """Parameters that stay float32 whatever the dtype policy: an LSTM's own projection, and a projection's bias.

    Args:
        config: A Transformer's or an LSTM's.
    """
    table = parameter_table(config)
    own = table.get("projection", 0) if isinstance(config, LSTMConfig) else 0
    return own + table.get("output bias", 0)


def makes_logits(config: ModelConfig) -> bool:
    """Whether tokens are projected to the vocabulary: an encoder with a pooler is one for heads, which do not.

    Args:
        config: A Transformer's or an LSTM's.
    """
    return not getattr(config, "pooler", False)


def projection_parameters(config: ModelConfig) -> int:
    """Size of the matrix that makes logits, tied or not; 0 where none are made.

    Args:
        config: A Transformer's or an LSTM's.
    """
    if not makes_logits(config):
        return 0
    table = parameter_table(config)
    return table.get("projection", table["embedding"])


def layer_matrices(config: ModelConfig) -> list[int]:
    """Size of the matrices of each layer, first to last: what its tokens are multiplied with.

    Args:
        config: A Transformer's or an LSTM's.
    """
    if isinstance(config, TransformerConfig):
        width = config.hidden_dim
        into = 2 if config.activation == "swiglu" else 1
        block = 2 * width * (width + key_value_width(config)) + (into + 1) * width * config.intermediate_dim
        return [block] * config.num_layers
    assert isinstance(config, LSTMConfig)
    gates, ways = _GATES[config.cell], _directions(config)
    inputs = [config.embedding_dim, *(ways * units for units in config.layer_dims)]
    return [ways * gates * units * (width + units) for width, units in zip(inputs, config.layer_dims, strict=False)]


def projected_parameters(config: ModelConfig) -> int:
    """Parameters a token is multiplied with: every matrix but look-up tables; biases and norms are left out.

    A tied table counts once, as the projection. BERT's pooler does not count: it sees one token of a sequence.

    Args:
        config: A Transformer's or an LSTM's.
    """
    return sum(layer_matrices(config)) + projection_parameters(config)


def forward_flops(config: ModelConfig, length: int) -> int:
    """Floating-point operations of matrix products for one token of a forward pass, a multiply-add being two.

    `2 N + 4 L d s`: Kaplan et al. 2020 (arXiv:2001.08361, table 1) with N the parameters a token is multiplied with,
    and attention over all s keys, as Chowdhery et al. 2022 (PaLM, arXiv:2204.02311, appendix B) counts it and as the
    block computes it: what causality hides is computed too.

    Args:
        config: A Transformer's or an LSTM's.
        length: Keys each token meets.
    """
    flops = 2 * projected_parameters(config)
    if isinstance(config, TransformerConfig):
        flops += 4 * config.num_layers * config.hidden_dim * length
    return flops


def training_flops(config: ModelConfig, length: int) -> int:
    """Floating-point operations for one token of training: the backward pass costs two forward passes.

    `6 N + 12 L d s` (Kaplan et al. 2020, section 2.1; Hoffmann et al. 2022, arXiv:2203.15556, appendix F; PaLM,
    appendix B). Recomputed activations are not counted, so that utilisation compares with published figures.

    Args:
        config: A Transformer's or an LSTM's.
        length: Tokens in a sequence.
    """
    return 3 * forward_flops(config, length)


def cache_values(config: ModelConfig, length: int) -> int:
    """Values that a row of a batch carries from token to token, the decode state of `kerasllm.state`.

    Args:
        config: A Transformer's or an LSTM's.
        length: Tokens the state must hold; an LSTM's has the same size for all.

    Returns:
        Keys and values of every layer, `2 L (key-value heads) (head size) s`; of an LSTM h and c, of other cells h; 0
        where the model is bidirectional.
    """
    assert isinstance(config, TransformerConfig | LSTMConfig)
    if not config.causal:
        return 0
    if isinstance(config, TransformerConfig):
        return 2 * config.num_layers * key_value_width(config) * length
    return (2 if config.cell == "lstm" else 1) * sum(config.layer_dims)

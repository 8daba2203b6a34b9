"""The weight tables: our variable paths, their tensor names, a transform. Data, and nothing else.

Both directions read the same rows. `{i}` is the number of a block.
"""

from kerasllm.convert.weights import Row, Table


def _dense(ours: str, theirs: str, kernel: str = "transpose", bias: str = "same") -> tuple[Row, Row]:
    """A dense layer: kernel and bias."""
    return Row(f"{ours}/kernel", f"{theirs}.weight", kernel), Row(f"{ours}/bias", f"{theirs}.bias", bias)


def _norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """A layer norm: scale and offset, under the names of PyTorch or, as in Google's own files, of TensorFlow."""
    return (
        Row(f"{ours}/gamma", f"{theirs}.weight"),
        Row(f"{ours}/beta", f"{theirs}.bias"),
        Row(f"{ours}/gamma", f"{theirs}.gamma"),
        Row(f"{ours}/beta", f"{theirs}.beta"),
    )


def _fused(ours: tuple[str, ...], theirs: str) -> tuple[Row, ...]:
    """Dense layers whose kernels (in, out) and biases lie side by side in one."""
    rows = []
    for k, layer in enumerate(ours):
        rows.append(Row(f"{layer}/kernel", f"{theirs}.weight", part=(k, len(ours))))
        rows.append(Row(f"{layer}/bias", f"{theirs}.bias", part=(k, len(ours))))
    return tuple(rows)


_ATTENTION = "block_{i}/attention"
_FEEDFORWARD = "block_{i}/feedforward"
_QKV = tuple(f"{_ATTENTION}/{name}" for name in ("query", "key", "value"))

HF_LLAMA = Table(
    prefix="model.",
    rows=(
        Row("embedding/embeddings", "model.embed_tokens.weight"),
        *_dense(f"{_ATTENTION}/query", "model.layers.{i}.self_attn.q_proj"),
        *_dense(f"{_ATTENTION}/key", "model.layers.{i}.self_attn.k_proj"),
        *_dense(f"{_ATTENTION}/value", "model.layers.{i}.self_attn.v_proj"),
        *_dense(f"{_ATTENTION}/output", "model.layers.{i}.self_attn.o_proj"),
        Row("block_{i}/attention_norm/scale", "model.layers.{i}.input_layernorm.weight"),
        *_dense(f"{_FEEDFORWARD}/gate", "model.layers.{i}.mlp.gate_proj"),
        *_dense(f"{_FEEDFORWARD}/up", "model.layers.{i}.mlp.up_proj"),
        *_dense(f"{_FEEDFORWARD}/down", "model.layers.{i}.mlp.down_proj"),
        Row("block_{i}/feedforward_norm/scale", "model.layers.{i}.post_attention_layernorm.weight"),
        Row("final_norm/scale", "model.norm.weight"),
        Row("embedding/reverse_embeddings", "lm_head.weight", "transpose"),
    ),
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    unused=(r".*\.rotary_emb\.inv_freq",),
)

HF_GPT2 = Table(
    prefix="transformer.",
    rows=(
        Row("embedding/embeddings", "transformer.wte.weight"),
        Row("positions/embeddings", "transformer.wpe.weight"),
        # GPT-2's dense layers are convolutions of width 1, whose kernels are (in, out) as ours.
        *_fused(_QKV, "transformer.h.{i}.attn.c_attn"),
        *_dense(f"{_ATTENTION}/output", "transformer.h.{i}.attn.c_proj", "same"),
        *_norm("block_{i}/attention_norm", "transformer.h.{i}.ln_1"),
        *_dense(f"{_FEEDFORWARD}/up", "transformer.h.{i}.mlp.c_fc", "same"),
        *_dense(f"{_FEEDFORWARD}/down", "transformer.h.{i}.mlp.c_proj", "same"),
        *_norm("block_{i}/feedforward_norm", "transformer.h.{i}.ln_2"),
        *_norm("final_norm", "transformer.ln_f"),
        Row("embedding/reverse_embeddings", "lm_head.weight", "transpose"),
    ),
    copies={"lm_head.weight": "transformer.wte.weight"},
    unused=(r".*\.attn\.(bias|masked_bias)",),  # the causal mask, as a buffer
)

HF_BERT = Table(
    prefix="bert.",
    rows=(
        Row("embedding/embeddings", "bert.embeddings.word_embeddings.weight"),
        Row("positions/embeddings", "bert.embeddings.position_embeddings.weight"),
        Row("segments/embeddings", "bert.embeddings.token_type_embeddings.weight"),
        *_norm("embedding_norm", "bert.embeddings.LayerNorm"),
        *_dense(f"{_ATTENTION}/query", "bert.encoder.layer.{i}.attention.self.query"),
        *_dense(f"{_ATTENTION}/key", "bert.encoder.layer.{i}.attention.self.key"),
        *_dense(f"{_ATTENTION}/value", "bert.encoder.layer.{i}.attention.self.value"),
        *_dense(f"{_ATTENTION}/output", "bert.encoder.layer.{i}.attention.output.dense"),
        *_norm("block_{i}/attention_norm", "bert.encoder.layer.{i}.attention.output.LayerNorm"),
        *_dense(f"{_FEEDFORWARD}/up", "bert.encoder.layer.{i}.intermediate.dense"),
        *_dense(f"{_FEEDFORWARD}/down", "bert.encoder.layer.{i}.output.dense"),
        *_norm("block_{i}/feedforward_norm", "bert.encoder.layer.{i}.output.LayerNorm"),
        *_dense("pooler", "bert.pooler.dense"),
    ),
    unused=(r".*embeddings\.position_ids",),
)

_POOLER = r"bert\.pooler\..*"

# Heads of BERT. Those without a pooler leave the one that older files have; a masked language model keeps it.
HF_BERT_CLASSIFIER = HF_BERT.under_head(*_dense("classifier", "classifier"))
HF_BERT_TOKENS = HF_BERT.under_head(*_dense("classifier", "classifier"), unused=(_POOLER,))
HF_BERT_SPANS = HF_BERT.under_head(*_dense("span", "qa_outputs"), unused=(_POOLER,))
HF_BERT_MASKED = HF_BERT.under_head(
    *_dense("transform", "cls.predictions.transform.dense"),
    *_norm("transform_norm", "cls.predictions.transform.LayerNorm"),
    Row("output_bias", "cls.predictions.bias"),
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    unused=(_POOLER, r"cls\.seq_relationship\..*"),
)


def _torch_attention(ours: str, theirs: str) -> tuple[Row, ...]:
    """PyTorch's `nn.MultiheadAttention`: query, key and value one below the other in one matrix."""
    rows = []
    for k, name in enumerate(("query", "key", "value")):
        rows.append(Row(f"{ours}/{name}/kernel", f"{theirs}.in_proj_weight", "transpose", part=(k, 3)))
        rows.append(Row(f"{ours}/{name}/bias", f"{theirs}.in_proj_bias", part=(k, 3)))
    return (*rows, *_dense(f"{ours}/output", f"{theirs}.out_proj"))


def _torch_block(ours: str, theirs: str, cross: bool = False) -> tuple[Row, ...]:
    """PyTorch's `nn.TransformerEncoderLayer`, or with `cross` its `nn.TransformerDecoderLayer`."""
    attentions = (
        {"attention": "self_attn", "cross_attention": "multihead_attn"} if cross else {"attention": "self_attn"}
    )
    rows = [
        row for name, torch in attentions.items() for row in _torch_attention(f"{ours}/{name}", f"{theirs}.{torch}")
    ]
    rows += [*_dense(f"{ours}/feedforward/up", f"{theirs}.linear1")]
    rows += [*_dense(f"{ours}/feedforward/down", f"{theirs}.linear2")]
    for number, name in enumerate((*attentions, "feedforward"), 1):
        rows += _norm(f"{ours}/{name}_norm", f"{theirs}.norm{number}")
    return tuple(rows)


# The Transformer language model of PyTorch's tutorial: an encoder with a causal mask.
TORCH_LANGUAGE_MODEL = Table(
    rows=(
        Row("embedding/embeddings", "encoder.weight"),
        *_torch_block("block_{i}", "transformer_encoder.layers.{i}"),
        *_norm("final_norm", "transformer_encoder.norm"),
        Row("embedding/reverse_embeddings", "decoder.weight", "transpose"),
        Row("output_bias", "decoder.bias"),
    ),
    unused=(r"pos_encoder\.pe",),
)

# The translation model of PyTorch's tutorial: `nn.Transformer` between two embeddings and a linear layer.
TORCH_SEQ2SEQ = Table(
    rows=(
        Row("encoder/embedding/embeddings", "src_tok_emb.embedding.weight"),
        Row("embedding/embeddings", "tgt_tok_emb.embedding.weight"),
        *_torch_block("encoder/block_{i}", "transformer.encoder.layers.{i}"),
        *_norm("encoder/final_norm", "transformer.encoder.norm"),
        *_torch_block("block_{i}", "transformer.decoder.layers.{i}", cross=True),
        *_norm("final_norm", "transformer.decoder.norm"),
        Row("embedding/reverse_embeddings", "generator.weight", "transpose"),
        Row("output_bias", "generator.bias"),
    ),
    unused=(r"positional_encoding\.(pos_embedding|pe)",),
)

_PAIRS = ("rotary_pairs", "rotary_pairs")

# llama.cpp; llama2.c's files are read under the same names.
GGUF_LLAMA = Table(
    rows=(
        Row("embedding/embeddings", "token_embd.weight"),
        *_dense(f"{_ATTENTION}/query", "blk.{i}.attn_q", *_PAIRS),
        *_dense(f"{_ATTENTION}/key", "blk.{i}.attn_k", *_PAIRS),
        *_dense(f"{_ATTENTION}/value", "blk.{i}.attn_v"),
        *_dense(f"{_ATTENTION}/output", "blk.{i}.attn_output"),
        Row("block_{i}/attention_norm/scale", "blk.{i}.attn_norm.weight"),
        *_dense(f"{_FEEDFORWARD}/gate", "blk.{i}.ffn_gate"),
        *_dense(f"{_FEEDFORWARD}/up", "blk.{i}.ffn_up"),
        *_dense(f"{_FEEDFORWARD}/down", "blk.{i}.ffn_down"),
        Row("block_{i}/feedforward_norm/scale", "blk.{i}.ffn_norm.weight"),
        Row("final_norm/scale", "output_norm.weight"),
        Row("embedding/reverse_embeddings", "output.weight", "transpose"),
    ),
    copies={"output.weight": "token_embd.weight"},
)

_HUB = "transformer_layer_{i}"


def _hub_dense(ours: str, theirs: str) -> tuple[Row, Row]:
    """A dense layer of Keras, whose kernel is (in, out) as ours."""
    return Row(f"{ours}/kernel", f"{theirs}/kernel"), Row(f"{ours}/bias", f"{theirs}/bias")


def _hub_norm(ours: str, theirs: str) -> tuple[Row, Row]:
    return Row(f"{ours}/gamma", f"{theirs}/gamma"), Row(f"{ours}/beta", f"{theirs}/beta")


def _hub_attention(theirs: str) -> tuple[Row, ...]:
    return (
        *_hub_dense(f"{_ATTENTION}/query", f"{theirs}/query"),
        *_hub_dense(f"{_ATTENTION}/key", f"{theirs}/key"),
        *_hub_dense(f"{_ATTENTION}/value", f"{theirs}/value"),
        *_hub_dense(f"{_ATTENTION}/output", f"{theirs}/attention_output"),
    )


KERAS_HUB_LLAMA = Table(
    rows=(
        Row("embedding/embeddings", "token_embedding/embeddings"),
        Row("embedding/reverse_embeddings", "token_embedding/reverse_embeddings"),
        *_hub_attention(f"{_HUB}/self_attention"),
        Row("block_{i}/attention_norm/scale", f"{_HUB}/self_attention_layernorm/scale"),
        *_hub_dense(f"{_FEEDFORWARD}/gate", f"{_HUB}/feedforward_gate_dense"),
        *_hub_dense(f"{_FEEDFORWARD}/up", f"{_HUB}/feedforward_intermediate_dense"),
        *_hub_dense(f"{_FEEDFORWARD}/down", f"{_HUB}/feedforward_output_dense"),
        Row("block_{i}/feedforward_norm/scale", f"{_HUB}/feedforward_layernorm/scale"),
        Row("final_norm/scale", "sequence_output_layernorm/scale"),
    )
)

KERAS_HUB_GPT2 = Table(
    rows=(
        Row("embedding/embeddings", "token_embedding/embeddings"),
        Row("positions/embeddings", "position_embedding/embeddings"),
        *_hub_attention(f"{_HUB}/self_attention"),
        *_hub_norm("block_{i}/attention_norm", f"{_HUB}/self_attention_layer_norm"),
        *_hub_dense(f"{_FEEDFORWARD}/up", f"{_HUB}/feedforward_intermediate_dense"),
        *_hub_dense(f"{_FEEDFORWARD}/down", f"{_HUB}/feedforward_output_dense"),
        *_hub_norm("block_{i}/feedforward_norm", f"{_HUB}/feedforward_layer_norm"),
        *_hub_norm("final_norm", "layer_norm"),
    )
)

KERAS_HUB_BERT = Table(
    rows=(
        Row("embedding/embeddings", "token_embedding/embeddings"),
        Row("positions/embeddings", "position_embedding/embeddings"),
        Row("segments/embeddings", "segment_embedding/embeddings"),
        *_hub_norm("embedding_norm", "embeddings_layer_norm"),
        *_hub_attention(f"{_HUB}/self_attention_layer"),
        *_hub_norm("block_{i}/attention_norm", f"{_HUB}/self_attention_layer_norm"),
        *_hub_dense(f"{_FEEDFORWARD}/up", f"{_HUB}/feedforward_intermediate_dense"),
        *_hub_dense(f"{_FEEDFORWARD}/down", f"{_HUB}/feedforward_output_dense"),
        *_hub_norm("block_{i}/feedforward_norm", f"{_HUB}/feedforward_layer_norm"),
        *_hub_dense("pooler", "pooled_dense"),
    )
)

"""Whatever `config.json` and the metadata of a GGUF file say is a config, or refused in one line."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoint_files import one_line
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kerasllm.config import TransformerConfig
from kerasllm.convert.hf_config import read_config
from kerasllm.convert.readers import TensorInfo, about
from kerasllm.convert.single_files import from_gguf
from kerasllm.errors import InputError

PUBLISHED = json.loads((Path(__file__).parent / "references" / "published-configs.json").read_text())
CONFIGS = [published["config.json"] for published in PUBLISHED.values()]
SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["llama", "bert", "gpt2", "llama3", "default", "gelu", "silu", "1", "x" * 1300, 10**400])
)
ROPE = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["llama3", "default"]) | SCALAR},
    optional=dict.fromkeys(
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "rope_theta"), SCALAR
    ),
)
VALUE = SCALAR | st.lists(SCALAR, max_size=2) | st.dictionaries(st.text(max_size=2), SCALAR, max_size=2)
OPTIONAL = {"rope_parameters", "mlp_bias", "n_inner", "pruned_heads"}
KEYS = sorted({key for config in CONFIGS for key in config} | OPTIONAL)
CHANGES = st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=3) | st.fixed_dictionaries(
    {}, optional={"rope_parameters": ROPE | SCALAR, "rope_scaling": ROPE | SCALAR, "rope_theta": SCALAR}
)
INFINITE = {
    "rope_type": "llama3",
    "factor": 8,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": float("inf"),
}


@settings(max_examples=600, deadline=None)
@example(CONFIGS[-1], {"rope_scaling": INFINITE}, ())
@example(CONFIGS[-1], {"num_attention_heads": 0}, ())
@given(st.sampled_from(CONFIGS), CHANGES, st.lists(st.sampled_from(KEYS), max_size=1))
def test_whatever_a_config_json_says_is_a_config_or_refused(config, changes, removed):
    content = {key: value for key, value in {**config, **changes}.items() if key not in removed}
    try:
        family, read = read_config(content)
    except InputError as error:
        one_line(about("config.json", error))
    else:
        assert isinstance(read, TransformerConfig) and family == content["model_type"]


@settings(max_examples=50, deadline=None)
@given(VALUE)
def test_whatever_json_is_a_config(content):
    with pytest.raises(InputError) as caught:
        read_config(content)
    one_line(about("config.json", caught.value))


METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.embedding_length": 16,
    "llama.feed_forward_length": 32,
    "llama.context_length": 64,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10_000.0,
    "llama.rope.dimension_count": 8,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁a", "a"],
    "tokenizer.ggml.scores": [0.0] * 261,
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
OTHERS = ("llama.rope.scaling.type", "llama.rope.scale_linear", "llama.expert_count", "llama.attention.key_length")
TOKENIZER = ("eot_token_id", "add_bos_token", "add_space_prefix")
GGUF_KEYS = sorted({*METADATA, *OTHERS, *(f"tokenizer.ggml.{name}" for name in TOKENIZER)})


def gguf(metadata, shape=(261, 16)):
    """An open GGUF file with nothing but a table of embeddings."""
    tensors = {"token_embd.weight": TensorInfo(tuple(shape), "float32", 0)}
    return SimpleNamespace(path=Path("m.gguf"), metadata=metadata, tensors=tensors)


def test_metadata_of_a_sound_file_are_read():
    with pytest.raises(InputError, match=r"lacks tensor blk\.0\.|too few"):  # all but the weights is there
        from_gguf(gguf(METADATA))


@settings(max_examples=400, deadline=None)
@example({"llama.rope.freq_base": "x"}, (261, 16), ())
@example({"llama.rope.freq_base": [1]}, (261, 16), ())
@example({}, (), ())
@given(
    st.dictionaries(st.sampled_from(GGUF_KEYS), VALUE, max_size=3),
    st.just((261, 16)) | st.lists(st.integers(0, 300), max_size=3),
    st.lists(st.sampled_from(GGUF_KEYS), max_size=1),
)
def test_whatever_the_metadata_of_a_gguf_say_is_refused_in_one_line(changes, shape, removed):
    metadata = {key: value for key, value in {**METADATA, **changes}.items() if key not in removed}
    with pytest.raises(InputError) as caught:
        from_gguf(gguf(metadata, shape))
    assert one_line(caught.value).startswith("m.gguf: ")

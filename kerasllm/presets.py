"""Named configurations, as data and nothing else. Nothing reads a preset's name to decide behaviour."""

from typing import Any

from kerasllm.errors import InputError

PRESETS: dict[str, dict[str, Any]] = {
    # The two models of `make quickstart`: small enough to train on two CPU cores in about two minutes each, in which
    # they see so little text that dropout would only slow them.
    "lstm_quickstart": {
        "class": "LSTMLanguageModel",
        "config": {
            "vocabulary_size": 2048,
            "embedding_dim": 256,
            "hidden_dim": 256,
            "tie_embeddings": True,
        },
    },
    "transformer_quickstart": {
        "class": "TransformerLanguageModel",
        "config": {
            "vocabulary_size": 2048,
            "num_layers": 3,
            "num_heads": 4,
            "hidden_dim": 128,
            "intermediate_dim": 384,
            "max_sequence_length": 512,
        },
    },
    # A small LSTM over words: 10,000 words, embedding 64, 128 units.
    "lstm_small": {
        "class": "LSTMLanguageModel",
        "config": {"vocabulary_size": 10_000, "embedding_dim": 64, "hidden_dim": 128},
    },
    # GPT-2 (Radford et al. 2019), 124,439,808 parameters.
    "gpt2_base": {
        "class": "TransformerLanguageModel",
        "config": {
            "vocabulary_size": 50_257,
            "num_layers": 12,
            "num_heads": 12,
            "hidden_dim": 768,
            "intermediate_dim": 3072,
            "max_sequence_length": 1024,
            "positions": "learned",
            "norm": "layer_norm",
            "activation": "gelu_approximate",
            "use_bias": True,
            "dropout": 0.1,
        },
    },
    # LLaMA 7B (Touvron et al. 2023, arXiv:2302.13971), 6,738,415,616 parameters.
    "llama_7b": {
        "class": "TransformerLanguageModel",
        "config": {
            "vocabulary_size": 32_000,
            "num_layers": 32,
            "num_heads": 32,
            "hidden_dim": 4096,
            "intermediate_dim": 11_008,
            "max_sequence_length": 2048,
            "norm_epsilon": 1e-6,
            "tie_embeddings": False,
        },
    },
}


def preset(name: str) -> dict[str, Any]:
    """Class name and config values of a preset.

    Args:
        name: A key of `PRESETS`.

    Raises:
        InputError: There is no preset of that name.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise InputError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}") from None

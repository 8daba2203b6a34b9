"""Named configurations, as data and nothing else. Nothing reads a preset's name to decide behaviour."""

from typing import Any

from kerasllm.errors import InputError

# What the members of a family share.
_GPT2 = {
    "vocabulary_size": 50_257,
    "max_sequence_length": 1024,
    "positions": "learned",
    "norm": "layer_norm",
    "activation": "gelu_approximate",
    "use_bias": True,
    "dropout": 0.1,
}
_BERT = {
    "max_sequence_length": 512,
    "positions": "learned",
    "norm": "layer_norm",
    "norm_first": False,
    "norm_epsilon": 1e-12,
    "activation": "gelu",
    "causal": False,
    "use_bias": True,
    "num_segments": 2,
    "embedding_norm": True,
    "pooler": True,
    "dropout": 0.1,
}
_SMALL_LSTM = {"vocabulary_size": 10_000, "embedding_dim": 64, "hidden_dim": 128}
_WIDE_LSTM = {"vocabulary_size": 10_000, "embedding_dim": 128, "hidden_dim": 1024}
_LSTM_CLASSIFIER = {"num_classes": 2, "dense_dim": 1024, "dense_activation": "linear"}
_VASWANI = {
    "positions": "sine",
    "norm": "layer_norm",
    "norm_first": False,
    "activation": "relu",
    "use_bias": True,
    "embedding_scale": True,
}
_LLAMA = {"vocabulary_size": 32_000, "max_sequence_length": 2048, "norm_epsilon": 1e-6, "tie_embeddings": False}
_SMOLLM2 = {"vocabulary_size": 49_152, "max_sequence_length": 8192, "rotary_base": 100_000.0}

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
    # The models of tutorials, in their sizes. A small LSTM over words, 2,028,816 parameters.
    "lstm_small": {"class": "LSTMLanguageModel", "config": _SMALL_LSTM},
    # Its ancestor, the network of Mikolov et al. 2010, 1,954,704 parameters.
    "rnn_small": {"class": "LSTMLanguageModel", "config": {**_SMALL_LSTM, "cell": "rnn"}},
    # A class of each word by an LSTM and two dense layers with nothing between, 7,054,338 parameters.
    "lstm_token_classifier": {
        "class": "TokenClassifier",
        "config": {**_LSTM_CLASSIFIER, "backbone": {"class": "LSTMLanguageModel", "config": _WIDE_LSTM}},
    },
    # A class of each text by one that reads in both directions, 12,825,602 parameters.
    "lstm_classifier": {
        "class": "SequenceClassifier",
        "config": {
            **_LSTM_CLASSIFIER,
            "dense_activation": "tanh",
            "pooling": "mean",
            "backbone": {"class": "LSTMLanguageModel", "config": {**_WIDE_LSTM, "bidirectional": True}},
        },
    },
    # An LSTM that begins with the final state of another (Sutskever et al. 2014, arXiv:1409.3215),
    # 2,767,632 parameters.
    "lstm_encoder_decoder": {
        "class": "LSTMEncoderDecoder",
        "config": {**_SMALL_LSTM, "source_vocabulary_size": 10_000, "attention": None},
    },
    # The same with attention (Luong et al. 2015, arXiv:1508.04025) and an encoder of two directions, 2,784,016
    # parameters.
    "lstm_attention": {
        "class": "LSTMEncoderDecoder",
        "config": {**_SMALL_LSTM, "source_vocabulary_size": 10_000, "bidirectional_encoder": True},
    },
    # PyTorch's own Transformer language model on the words of WikiText-2 (Merity et al. 2017, arXiv:1609.07843), in the
    # sizes of its tutorial, 13,828,478 parameters.
    "transformer_pytorch": {
        "class": "TransformerLanguageModel",
        "config": {
            **_VASWANI,
            "vocabulary_size": 33_278,
            "num_layers": 2,
            "num_heads": 2,
            "hidden_dim": 200,
            "intermediate_dim": 200,
            "max_sequence_length": 5000,
            "tie_embeddings": False,
            "output_bias": True,
            "initializer": "uniform",
            "dropout": 0.2,
        },
    },
    # One block over ten symbols, to try an idea of `llama_7b` in, 34,762 parameters.
    "decoder_demo": {
        "class": "TransformerLanguageModel",
        "config": {
            **_VASWANI,
            "vocabulary_size": 10,
            "num_layers": 1,
            "num_heads": 4,
            "hidden_dim": 64,
            "intermediate_dim": 128,
            "tie_embeddings": False,
            "output_bias": True,
        },
    },
    # The encoder-decoder Transformer, base (Vaswani et al. 2017, arXiv:1706.03762, table 3: 65 million), 63,082,496
    # parameters.
    "transformer_base": {
        "class": "TransformerSeq2Seq",
        "config": {
            **_VASWANI,
            "vocabulary_size": 37_000,
            "num_layers": 6,
            "num_heads": 8,
            "hidden_dim": 512,
            "intermediate_dim": 2048,
            "dropout": 0.1,
        },
    },
    # GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners", table 2; heads as in the
    # published checkpoints), 124,439,808 parameters.
    "gpt2_base": {
        "class": "TransformerLanguageModel",
        "config": {
            **_GPT2,
            "num_layers": 12,
            "num_heads": 12,
            "hidden_dim": 768,
            "intermediate_dim": 3072,
        },
    },
    # 354,823,168 parameters.
    "gpt2_medium": {
        "class": "TransformerLanguageModel",
        "config": {
            **_GPT2,
            "num_layers": 24,
            "num_heads": 16,
            "hidden_dim": 1024,
            "intermediate_dim": 4096,
        },
    },
    # 774,030,080 parameters.
    "gpt2_large": {
        "class": "TransformerLanguageModel",
        "config": {
            **_GPT2,
            "num_layers": 36,
            "num_heads": 20,
            "hidden_dim": 1280,
            "intermediate_dim": 5120,
        },
    },
    # 1,557,611,200 parameters.
    "gpt2_xl": {
        "class": "TransformerLanguageModel",
        "config": {
            **_GPT2,
            "num_layers": 48,
            "num_heads": 25,
            "hidden_dim": 1600,
            "intermediate_dim": 6400,
        },
    },
    # BERT base, uncased English (Devlin et al. 2019, arXiv:1810.04805), 109,482,240 parameters with the pooler, without
    # a masked-LM head.
    "bert_base": {
        "class": "TransformerLanguageModel",
        "config": {
            **_BERT,
            "vocabulary_size": 30_522,
            "num_layers": 12,
            "num_heads": 12,
            "hidden_dim": 768,
            "intermediate_dim": 3072,
        },
    },
    # BERT large, uncased English (the same paper), 335,141,888 parameters.
    "bert_large": {
        "class": "TransformerLanguageModel",
        "config": {
            **_BERT,
            "vocabulary_size": 30_522,
            "num_layers": 24,
            "num_heads": 16,
            "hidden_dim": 1024,
            "intermediate_dim": 4096,
        },
    },
    # BERT base, Chinese: 21,128 characters and word-pieces (the authors' release of November 2018), 102,267,648
    # parameters.
    "bert_base_chinese": {
        "class": "TransformerLanguageModel",
        "config": {
            **_BERT,
            "vocabulary_size": 21_128,
            "num_layers": 12,
            "num_heads": 12,
            "hidden_dim": 768,
            "intermediate_dim": 3072,
        },
    },
    # all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; every second layer of its 12-layer model, fine-tuned as in
    # Reimers and Gurevych 2019, arXiv:1908.10084), 22,713,216 parameters with the pooler.
    "minilm_l6": {
        "class": "TransformerLanguageModel",
        "config": {
            **_BERT,
            "vocabulary_size": 30_522,
            "num_layers": 6,
            "num_heads": 12,
            "hidden_dim": 384,
            "intermediate_dim": 1536,
        },
    },
    # The shape of LLaMA in miniature, to try with `examples/train_7b.py` what that plans for 7B: 1,118,080 parameters.
    "llama_tiny": {
        "class": "TransformerLanguageModel",
        "config": {
            **_LLAMA,
            "vocabulary_size": 2048,
            "num_layers": 3,
            "num_heads": 4,
            "hidden_dim": 128,
            "intermediate_dim": 344,
            "max_sequence_length": 512,
        },
    },
    # LLaMA 7B (Touvron et al. 2023, arXiv:2302.13971, table 2), 6,738,415,616 parameters.
    "llama_7b": {
        "class": "TransformerLanguageModel",
        "config": {
            **_LLAMA,
            "num_layers": 32,
            "num_heads": 32,
            "hidden_dim": 4096,
            "intermediate_dim": 11_008,
        },
    },
    # LLaMA 13B (the same paper), 13,015,864,320 parameters.
    "llama_13b": {
        "class": "TransformerLanguageModel",
        "config": {
            **_LLAMA,
            "num_layers": 40,
            "num_heads": 40,
            "hidden_dim": 5120,
            "intermediate_dim": 13_824,
        },
    },
    # Llama 3.2 1B (Grattafiori et al. 2024, arXiv:2407.21783, for the architecture; sizes of the published checkpoint),
    # 1,235,814,400 parameters.
    "llama3_2_1b": {
        "class": "TransformerLanguageModel",
        "config": {
            "vocabulary_size": 128_256,
            "num_layers": 16,
            "num_heads": 32,
            "num_key_value_heads": 8,
            "hidden_dim": 2048,
            "intermediate_dim": 8192,
            "max_sequence_length": 131_072,
            "rotary_base": 500_000.0,
            "rotary_scaling": {
                "factor": 32.0,
                "low_frequency_factor": 1.0,
                "high_frequency_factor": 4.0,
                "original_length": 8192,
            },
        },
    },
    # SmolLM2 (Ben Allal et al. 2025, arXiv:2502.02737; sizes of the published checkpoints), 134,515,008 parameters.
    "smollm2_135m": {
        "class": "TransformerLanguageModel",
        "config": {
            **_SMOLLM2,
            "num_layers": 30,
            "num_heads": 9,
            "num_key_value_heads": 3,
            "hidden_dim": 576,
            "intermediate_dim": 1536,
        },
    },
    # 361,821,120 parameters.
    "smollm2_360m": {
        "class": "TransformerLanguageModel",
        "config": {
            **_SMOLLM2,
            "num_layers": 32,
            "num_heads": 15,
            "num_key_value_heads": 5,
            "hidden_dim": 960,
            "intermediate_dim": 2560,
        },
    },
    # stories260K of llama2.c (A. Karpathy 2023), trained on TinyStories (Eldan and Li 2023, arXiv:2305.07759), 260,032
    # parameters.
    "stories260k": {
        "class": "TransformerLanguageModel",
        "config": {
            "vocabulary_size": 512,
            "num_layers": 5,
            "num_heads": 8,
            "num_key_value_heads": 4,
            "hidden_dim": 64,
            "intermediate_dim": 172,
            "max_sequence_length": 512,
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

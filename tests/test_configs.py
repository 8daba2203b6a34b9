"""Configs, presets and the Keras side of models: refusals, JSON, parameter counts, compile, fit, save, summary."""

import dataclasses
import io
import math
import re
import warnings

import keras
import numpy as np
import pytest
from model_cases import ALL, LSTMS, TRANSFORMERS, VOCABULARY, make, model_class, tokens

from kerasllm.config import LSTMConfig, RotaryScaling, TransformerConfig
from kerasllm.errors import InputError
from kerasllm.models import HEADS, REGISTRY, SEQ2SEQ, LSTMLanguageModel, TransformerLanguageModel, variable_name
from kerasllm.presets import PRESETS

SHALLOW = {name: dataclasses.replace(ALL[name], num_layers=1) for name in ("grouped", "lstm")}


def of(configs):
    return pytest.mark.parametrize("config", configs.values(), ids=configs.keys())


REFUSED = [
    *((config, name, value) for config in ("llama", "lstm") for name in ("vocabulary_size", "hidden_dim", "num_layers")
      for value in (0, -3, 2.5, "8", None, True)),
    *(("llama", name, 0) for name in ("num_heads", "intermediate_dim", "max_sequence_length")),
    *((config, "dropout", value) for config in ("llama", "lstm") for value in (-0.1, 1, 1.5, math.nan, "half", True)),
    *((config, "tie_embeddings", value) for config in ("llama", "lstm") for value in (1, "yes", None)),
    *(("llama", name, value) for name in ("norm_first", "causal", "use_bias") for value in (0, "no")),
    *(("llama", "final_norm", value) for value in (0, "no")),
    *(("llama", name, value) for name in ("embedding_scale", "output_bias") for value in (1, None)),
    *(("lstm", "bidirectional", value) for value in (1, None)),
    *((config, name, value) for config, name in (("llama", "initializer"), ("lstm", "cell")) for value in ("no", None)),
    *(("llama", name, value) for name in ("positions", "norm", "activation") for value in ("none", None, 3)),
    *(("llama", "rotary_base", value) for value in (0, 1, -2.0, math.inf, "1e4")),
    *(("llama", "norm_epsilon", value) for value in (0, -1e-5, math.nan)),
    *(("llama", name, value) for name in ("attention_bias", "embedding_norm", "pooler") for value in (2, "yes")),
    *(("llama", "num_segments", value) for value in (-1, 1.5, True)),
    ("llama", "num_heads", 3),
    ("llama", "num_key_value_heads", 3),
    ("llama", "num_key_value_heads", 0),
    ("lstm", "embedding_dim", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "field", "value"), REFUSED, ids=lambda value: str(value))
def test_bad_values_are_refused_in_one_line_naming_field_and_value(name, field, value):
    with pytest.raises(InputError) as error:
        dataclasses.replace(ALL[name], **{field: value})
    message = str(error.value)
    assert message.startswith(field)
    assert message.endswith(f"received {value!r}")
    assert "\n" not in message


def test_rotary_positions_need_an_even_head_size():
    with pytest.raises(InputError, match="even head size, received 3"):
        TransformerConfig(5, num_layers=1, num_heads=2, hidden_dim=6, intermediate_dim=4)
    TransformerConfig(5, num_layers=1, num_heads=2, hidden_dim=6, intermediate_dim=4, positions="learned")


def test_two_directions_have_no_tied_embeddings():
    with pytest.raises(InputError, match="tie_embeddings needs a model of one direction"):
        dataclasses.replace(ALL["lstm_stack"], bidirectional=True)


def test_initializers_draw_what_they_say():
    for name, table, kernel in (("normal", 0.02, 0.02), ("uniform", 0.1 / 3**0.5, (2 / 128) ** 0.5)):
        size = {"hidden_dim": 64, "vocabulary_size": 500, "num_layers": 1, "tie_embeddings": False}
        model = TransformerLanguageModel(dataclasses.replace(ALL["gpt2"], initializer=name, **size))
        model.build()
        for path, deviation in (("embeddings", table), ("reverse_embeddings", table), ("query/kernel", kernel)):
            values = np.array(next(v for v in model.weights if v.path.endswith(path)).value)
            assert values.std() == pytest.approx(deviation, rel=0.1), (name, path)
            if name == "uniform":
                assert np.abs(values).max() <= deviation * 3**0.5 + 1e-6


def test_scaling_is_checked_and_needs_rotary_positions():
    good = {"factor": 8.0, "low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_length": 16}
    changed = dataclasses.replace(ALL["llama"], rotary_scaling=good)
    assert changed.rotary_scaling == RotaryScaling(**good)
    for wrong, word in (
        ({**good, "factor": 0}, "factor must"),
        ({**good, "high_frequency_factor": 1.0}, "high_frequency_factor must"),
        ({**good, "original_length": 1.5}, "original_length must"),
        ({**good, "more": 1}, "more does not fit"),
        ({"factor": 2.0}, "does not fit"),
    ):
        with pytest.raises(InputError, match=word):
            dataclasses.replace(ALL["llama"], rotary_scaling=wrong)
    with pytest.raises(InputError, match="rotary_scaling needs rotary positions, received 'learned'"):
        dataclasses.replace(ALL["gpt2"], rotary_scaling=good)


@of(ALL)
def test_json_there_and_back(config):
    again = type(config).from_json(config.to_json())
    assert again == config
    assert type(config).from_dict(config.to_dict()) == config
    assert again.to_json() == config.to_json()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_dim = 1


def test_json_that_is_no_config_is_refused():
    values = TRANSFORMERS["llama"].to_dict()
    for wrong, message in (
        ({**values, "window": 3}, "unknown window; known fields are vocabulary_size, num_layers"),
        ({"vocabulary_size": 3}, "missing hidden_dim, intermediate_dim, num_heads, num_layers"),
        ({"vocabulary_size": 3, "heads": 2}, "unknown heads; missing hidden_dim"),
    ):
        with pytest.raises(InputError, match=f"^TransformerConfig: {message}"):
            TransformerConfig.from_dict(wrong)
    for text in ("", "{", "[1]", "null", '"text"'):
        with pytest.raises(InputError, match="^LSTMConfig: (not JSON|needs a JSON object)"):
            LSTMConfig.from_json(text)


def transformer_parameters(c):
    """By arithmetic: tables, then four projections, two or three dense layers and two norms a block."""
    width, inner, bias = c.hidden_dim, c.intermediate_dim, int(c.use_bias)
    shared = width * (c.num_key_value_heads or c.num_heads) // c.num_heads
    norm = width * (1 + (c.norm == "layer_norm" and bias))
    biased = bias if c.attention_bias is None else int(c.attention_bias)
    attention = 2 * width * (width + biased) + 2 * shared * (width + biased)
    dense_in = 2 if c.activation == "swiglu" else 1
    feedforward = dense_in * inner * (width + bias) + width * (inner + bias)
    tables = c.vocabulary_size * width * (1 if c.tie_embeddings else 2)
    tables += c.max_sequence_length * width if c.positions == "learned" else 0
    tables += c.vocabulary_size if c.output_bias else 0
    tables += c.num_segments * width + (norm if c.embedding_norm else 0) + (width * (width + 1) if c.pooler else 0)
    return tables + c.num_layers * (attention + feedforward + 2 * norm) + (norm if c.normalizes_last else 0)


def recurrent_parameters(cell, units, width):
    gates, biases = {"lstm": (4, 1), "gru": (3, 2), "rnn": (1, 1)}[cell]
    return gates * units * (width + units + biases)


def lstm_parameters(c):
    total, width, ways = c.vocabulary_size * (c.embedding_dim + 1), c.embedding_dim, 1 + c.bidirectional
    for units in c.layer_dims:
        total, width = total + ways * recurrent_parameters(c.cell, units, width), ways * units
    return total + (0 if c.tie_embeddings else c.vocabulary_size * width)


def parameters(config):
    return transformer_parameters(config) if isinstance(config, TransformerConfig) else lstm_parameters(config)


@of(ALL)
def test_parameter_counts_are_the_arithmetic(config):
    assert make(config).count_params() == parameters(config)


def test_presets_have_the_published_sizes():
    known = {name: p for name, p in PRESETS.items() if p["class"] in REGISTRY}
    sizes = {name: parameters(REGISTRY[p["class"]].config_class.from_dict(p["config"])) for name, p in known.items()}
    assert sizes["gpt2_base"] == 124_439_808
    assert sizes["llama_7b"] == 6_738_415_616
    assert all(sizes[name] < 2_000_000 for name in sizes if name.endswith("quickstart"))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_models_without_weights_of_their_own(name):
    cls = {**REGISTRY, **SEQ2SEQ, **HEADS}[PRESETS[name]["class"]]
    model = cls.from_preset(name, vocabulary_size=11, name="mine", dtype="mixed_bfloat16")
    assert not model.built
    expected, found = cls.config_class.from_dict(PRESETS[name]["config"]).to_dict(), model.config.to_dict()
    if cls.__name__ in HEADS:
        expected["backbone"]["config"]["vocabulary_size"] = 11
    assert found == {**expected, **({} if cls.__name__ in HEADS else {"vocabulary_size": 11})}
    assert (model.name, model.dtype_policy.name) == ("mine", "mixed_bfloat16")


def test_presets_are_refused_where_they_do_not_fit():
    with pytest.raises(InputError, match="preset 'gpt3' is unknown; choose one of .*gpt2_base"):
        TransformerLanguageModel.from_preset("gpt3")
    with pytest.raises(InputError, match="'gpt2_base' is a TransformerLanguageModel"):
        LSTMLanguageModel.from_preset("gpt2_base")
    with pytest.raises(InputError, match="'lstm_classifier' is a SequenceClassifier"):
        HEADS["TokenClassifier"].from_preset("lstm_classifier")
    with pytest.raises(InputError, match="unknown heads"):
        TransformerLanguageModel.from_preset("gpt2_base", heads=3)
    with pytest.raises(InputError, match="needs a LSTMConfig, received TransformerConfig"):
        LSTMLanguageModel(TRANSFORMERS["llama"])
    with pytest.raises(InputError, match="needs a TransformerConfig, received 'llama_7b'"):
        TransformerLanguageModel("llama_7b")


@of(ALL)
def test_keras_config_makes_the_same_model_again(config):
    model = model_class(config)(config, name="mine", dtype="mixed_bfloat16")
    for again in (
        type(model).from_config(model.get_config()),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model)),
    ):
        assert again.get_config() == model.get_config()
        assert again.config == config
        assert (again.name, again.dtype_policy.name) == ("mine", "mixed_bfloat16")


@of(ALL)
def test_variable_names_depend_on_the_config_only(config):
    first, second = ([variable_name(v) for v in make(config).weights] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(first)
    assert "embedding/embeddings" in first
    for name in first:
        assert re.fullmatch(
            r"(embedding|positions|segments|embedding_norm|block_\d+|final_norm|pooler|lstm|head|output_bias)(/[a-z_0-9]+)*",
            name,
        )


@of(SHALLOW)
def test_a_keras_file_gives_the_same_model_and_training_goes_on(config, tmp_path):
    model, text = make(config), tokens(4, 9)
    model.compile()
    model.fit(text[:, :-1], text[:, 1:], verbose=0)
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is type(model)
    assert again.config == config
    np.testing.assert_allclose(again(text), model(text), atol=1e-6)
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert int(again.optimizer.iterations) == 1
    for mine, other in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.array(mine.value), np.array(other.value))
    evaluated = [m.evaluate(text[:, :-1], text[:, 1:], verbose=0, return_dict=True) for m in (model, again)]
    assert evaluated[0] == pytest.approx(evaluated[1])
    assert set(evaluated[0]) == {"loss", "perplexity"}
    again.fit(text[:, :-1], text[:, 1:], verbose=0)
    assert int(again.optimizer.iterations) == 2


@of(SHALLOW)
def test_compile_has_defaults_and_fit_learns(config):
    keras.utils.set_random_seed(0)
    model = model_class(config)(config)
    model.compile()
    assert type(model.optimizer).__name__ == "AdamW"
    assert model.optimizer.global_clipnorm == 1
    text = np.tile(np.arange(9, dtype="int32"), (32, 1))
    history = model.fit(text[:, :-1], text[:, 1:], batch_size=8, epochs=20, verbose=0).history
    assert set(history) == {"loss", "perplexity"}
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert history["perplexity"] == pytest.approx(np.exp(history["loss"]), rel=1e-5)


@of(SHALLOW)
def test_plain_keras_compile_works_and_weights_hide_padding(config):
    model, text = make(config), tokens(4, 9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    assert type(model.optimizer).__name__ == "Adam"
    assert set(model.fit(text[:, :-1], text[:, 1:], verbose=0).history) == {"loss", "accuracy"}
    model.compile("sgd", loss, run_eagerly=True)
    weight = np.ones((4, 8), "float32")
    weight[:, 5:] = 0
    changed = text.copy()
    changed[:, 6:] = tokens(4, 3, seed=9)
    logs = [
        model.evaluate(t[:, :-1], t[:, 1:], sample_weight=weight, verbose=0, return_dict=True) for t in (text, changed)
    ]
    assert logs[0] == pytest.approx(logs[1])
    assert set(logs[0]) == {"loss", "perplexity"}
    model.compile("sgd", loss, weighted_metrics=["accuracy"], run_eagerly=True)
    assert set(model.evaluate(text[:, :-1], text[:, 1:], verbose=0, return_dict=True)) == {"loss", "accuracy"}


@of({name: ALL[name] for name in ("gpt2", "vaswani", "lstm", "lstm_stack")})
def test_summary_shows_every_layer_with_shape_and_parameters(config):
    model, text = make(config), io.StringIO()
    model.summary(print_fn=lambda line: text.write(line + "\n"))
    lines = [line for line in text.getvalue().splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line[1:-1].split("│")] for line in lines]
    rows = [row for row in rows if row[2]]  # a long name goes on in a line of its own
    assert len(rows) == len(model.layers)
    assert all(re.fullmatch(r"\(None, None, \d+\)", shape) for _, shape, _ in rows), rows
    counted = sum(int(count.replace(",", "")) for *_, count in rows)
    own = VOCABULARY if isinstance(config, LSTMConfig) else 0  # the model's own output bias
    assert counted + own == parameters(config)


@of({name: ALL[name] for name in ("llama", "lstm")})
def test_models_are_layers_of_functional_models(config):
    model = make(config)
    assert model.compute_output_shape((4, 9)) == (4, 9, VOCABULARY)
    assert model.compute_output_shape((None, None)) == (None, None, VOCABULARY)
    inputs = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="bool")
    outputs = model(inputs[0], padding_mask=inputs[1])
    assert (outputs.shape, outputs.dtype) == ((None, None, VOCABULARY), "float32")
    mask = np.arange(7)[None] < np.array([[7], [3]])
    functional = keras.Model(inputs, outputs)
    np.testing.assert_allclose(functional([tokens(2, 7), mask]), model(tokens(2, 7), mask), atol=1e-5)


def test_tied_lstms_end_at_the_width_of_the_embedding():
    assert LSTMS["lstm_stack"].layer_dims == (12, 12, 8)
    assert LSTMS["lstm"].layer_dims == (12,)

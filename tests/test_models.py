"""Both models in every configuration: causality, one forward path however it is cut, padding, precision, parity."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import state as names
from kerasllm.config import LSTMConfig, TransformerConfig
from kerasllm.errors import InputError
from kerasllm.layers import RotaryEmbedding
from kerasllm.models import LanguageModel, TransformerLanguageModel, variable_name

pytest.register_assert_rewrite("oracles")
import oracles  # noqa: E402
from model_cases import ALL, BIDIRECTIONAL, CAUSAL, TRANSFORMERS, VOCABULARY, make, tokens  # noqa: E402


def of(configs):
    return pytest.mark.parametrize("config", configs.values(), ids=configs.keys())


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(np.array(actual), np.array(expected), rtol=tolerance, atol=tolerance)


def test_every_field_of_every_config_is_switched_on():
    for config_class in (TransformerConfig, LSTMConfig):
        configs = [config for config in ALL.values() if isinstance(config, config_class)]
        for field in dataclasses.fields(config_class):
            if field.default is not dataclasses.MISSING:
                assert any(getattr(config, field.name) != field.default for config in configs), field.name
                assert any(getattr(config, field.name) == field.default for config in configs), field.name


@of(CAUSAL)
def test_a_token_changes_nothing_before_it_and_everything_from_it_on(config):
    model, text = make(config), np.repeat(tokens(1, 7), 8, axis=0)
    changed = np.arange(7)
    text[changed, changed] = (text[changed, changed] + 1) % VOCABULARY  # row r differs in token r, the last row in none
    logits = np.array(model(text))
    difference = np.abs(logits[:7] - logits[7]).max(-1)
    earlier = np.tri(7, k=-1, dtype=bool)
    assert (difference[earlier] < 1e-6).all()
    assert (difference[~earlier] > 1e-4).all()


@of(BIDIRECTIONAL)
def test_without_causal_every_token_changes_everything(config):
    model, before = make(config), tokens(1, 7)
    after = before.copy()
    after[0, -1] = (after[0, -1] + 1) % VOCABULARY
    assert (np.abs(np.array(model(after)) - np.array(model(before))).max(-1) > 1e-4).all()


@of(CAUSAL)
def test_order_matters(config):
    """Swapping two earlier tokens changes what comes after: positions are seen."""
    model, before = make(config), tokens(1, 7)
    before[0, :2] = 3, 4
    after = before.copy()
    after[0, :2] = 4, 3
    assert np.abs(np.array(model(after)) - np.array(model(before)))[0, 2:].max(-1).min() > 1e-4


@of(CAUSAL)
@pytest.mark.parametrize("pieces", [(9,), (1,) * 9, (4, 2, 3)], ids=str)
def test_pieces_with_a_state_are_the_whole(config, pieces):
    model, text = make(config), tokens(2, 9)
    # The state may have room for more tokens than come.
    state, start, logits = model.initial_state(2, 12), 0, []
    for size in pieces:
        part, state = model(text[:, start : start + size], state=state)
        logits.append(part)
        start += size
        assert int(state["position"]) == start
    close(np.concatenate(logits, 1), model(text))


@of(CAUSAL)
@pytest.mark.parametrize("pieces", [(6, 3), (2,) + (1,) * 7], ids=str)
def test_a_left_padded_batch_is_each_row_alone(config, pieces):
    model, text, padding = make(config), tokens(4, 9), np.array([0, 5, 1, 8], "int32")
    state, start, logits = model.initial_state(4, 16, padding), 0, []
    for size in pieces:
        part, state = model(text[:, start : start + size], state=state)
        logits.append(part)
        start += size
    logits = np.concatenate(logits, 1)
    assert np.isfinite(logits).all()
    for row, empty in enumerate(padding):
        close(logits[row, empty:], model(text[row : row + 1, empty:])[0])


@of(ALL)
def test_padding_on_the_right_is_invisible(config):
    model, lengths = make(config), [7, 3, 1]
    mask = np.arange(7)[None, :] < np.array(lengths)[:, None]
    logits = [np.array(model(tokens(3, 7, seed=seed) * ~mask + tokens(3, 7) * mask, mask)) for seed in (1, 2)]
    for row, length in enumerate(lengths):
        close(logits[0][row, :length], logits[1][row, :length], 1e-6)
        close(logits[0][row, :length], model(tokens(3, 7)[row : row + 1, :length])[0])


@of(CAUSAL)
def test_states_are_what_state_py_says(config):
    model = make(config)
    expected = {names.POSITION: (()), names.PADDING: (2,)}
    if isinstance(config, TransformerConfig):
        shape = (2, config.num_key_value_heads or config.num_heads, 6, config.head_dim)
        for index in range(config.num_layers):
            expected |= {f"kv_cache_k_{index}": shape, f"kv_cache_v_{index}": shape}
    else:
        for index, width in enumerate(config.layer_dims):
            expected |= {f"lstm_{part}_{index}": (2, width) for part in ("hc" if config.cell == "lstm" else "h")}
    state = model.initial_state(2, 6, np.zeros(2, "int32"))
    assert names.PADDING not in model.initial_state(2, 6)
    for moment in (state, model(tokens(2, 3), state=state)[1]):
        assert {name: tuple(value.shape) for name, value in moment.items()} == expected
        assert set(names.carried(moment)) == set(expected) - {"position", "padding"}


@of(ALL)
def test_mixed_precision_keeps_logits_in_float32_and_near(config):
    model = make(config, dtype="mixed_bfloat16")
    reference = make(config)
    text = tokens(2, 9)
    logits = model(text)
    assert logits.dtype == model.project(model.encode(text)).dtype == "float32"
    assert model.encode(text).dtype == "bfloat16"
    scale = float(ops.std(reference(text)))
    assert float(ops.std(logits - reference(text))) < 0.06 * scale
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    if config in CAUSAL.values():
        stepped, state = model(text, state=model.initial_state(2, 9))
        assert stepped.dtype == "float32"
        assert {str(ops.dtype(value)) for value in names.carried(state).values()} == {"bfloat16"}
        assert float(ops.std(stepped - reference(text))) < 0.06 * scale


@pytest.mark.parametrize("positions", ["rotary", "learned", "sine"])
def test_positions_do_not_collapse_in_bfloat16_beyond_512(positions):
    """bfloat16 cannot tell 513 from 514: positions must not pass through it."""
    config = dataclasses.replace(TRANSFORMERS["llama"], positions=positions, max_sequence_length=640, num_layers=1)
    exact, mixed = make(config), make(config, dtype="mixed_bfloat16")
    text = tokens(1, 640)
    expected, found = np.array(exact(text)), np.array(mixed(text))
    late = np.abs(found - expected)[:, 512:].std() / expected.std()
    early = np.abs(found - expected)[:, :128].std() / expected.std()
    assert late < 0.03
    assert late < 2 * early
    if positions == "rotary":
        vectors = ops.cast(ops.ones((1, 1, 640, 16)), "bfloat16")
        turned = ops.convert_to_numpy(ops.cast(RotaryEmbedding(dtype="bfloat16")(vectors), "float32"))[0, 0]
    else:
        turned = ops.convert_to_numpy(ops.cast(mixed.positions(ops.zeros((1, 640, 16), "bfloat16")), "float32"))[0]
    assert len(np.unique(turned[512:600], axis=0)) == 88
    # Where one step turns the fastest feature by a radian, neighbours are far apart.
    assert np.abs(np.diff(turned[512:600], axis=0)).max(-1).min() > 0.1


def numpy_transformer(model, text):
    config, w = model.config, {variable_name(v): np.array(v.value, "float64") for v in model.trainable_variables}
    x, (rows, length) = w["embedding/embeddings"][text], text.shape
    if config.embedding_scale:
        x = x * np.sqrt(config.hidden_dim)
    if config.positions == "learned":
        x = x + w["positions/embeddings"][:length]
    if config.positions == "sine":
        x = x + oracles.sine_positions(length, config.hidden_dim)

    def rotate(heads):
        settings = (config.rotary_base, config.rotary_scaling)
        return oracles.rotate(heads, np.arange(length), *settings) if config.positions == "rotary" else heads

    def norm(name, x):
        return oracles.normalize(w, name, x, config.norm, config.norm_epsilon)

    if config.num_segments:
        x = x + w["segments/embeddings"][0]
    if config.embedding_norm:
        x = norm("embedding_norm", x)

    visible = np.broadcast_to(np.tril(np.ones((length, length))) if config.causal else 1, (rows, length, length))
    groups = config.num_key_value_heads or config.num_heads
    for block in (f"block_{index}/" for index in range(config.num_layers)):
        for name, sublayer in (
            ("attention", lambda x, p: oracles.attention(w, x, x, config.num_heads, groups, visible, p, rotate)[0]),
            ("feedforward", lambda x, p: oracles.feedforward(w, config.activation, x, p)),
        ):
            if config.norm_first:
                x = x + sublayer(norm(f"{block}{name}_norm", x), f"{block}{name}/")
            else:
                x = norm(f"{block}{name}_norm", x + sublayer(x, f"{block}{name}/"))
    x = norm("final_norm", x) if config.normalizes_last else x
    table = w["embedding/embeddings"].T if config.tie_embeddings else w["embedding/reverse_embeddings"]
    return x @ table + w.get("output_bias", 0)


def numpy_lstm(model, text):
    config, w = model.config, {variable_name(v): np.array(v.value, "float64") for v in model.trainable_variables}
    x, options = w["embedding/embeddings"][text], {"prefix": "lstm/", "both": config.bidirectional}
    x, _ = oracles.recurrent_stack(w, config.cell, config.num_layers, x, **options)
    return x @ (w["embedding/embeddings"].T if config.tie_embeddings else w["head/kernel"]) + w["output_bias"]


@of(ALL)
def test_the_whole_model_is_its_numpy_twin(config):
    model, text = make(config), tokens(2, 8)
    twin = numpy_transformer if isinstance(config, TransformerConfig) else numpy_lstm
    close(model(text), twin(model, text), 1e-4)


def test_segments_and_the_pooler_are_their_numpy_twins():
    model, text = make(ALL["bert"]), tokens(2, 8)
    w = {variable_name(v): np.array(v.value, "float64") for v in model.trainable_variables}
    ids = np.array([[0] * 8, [0, 0, 1, 1, 1, 0, 1, 1]], "int32")
    one, other = (np.array(model.encode(text, segment_ids=segment)) for segment in (None, ids))
    close(one[0], other[0], 1e-6)
    assert np.abs(one[1] - other[1]).max() > 1e-2
    # Segment 1 in place of segment 0 is what its row of the table says.
    moved = make(ALL["bert"])
    table = w["segments/embeddings"]
    moved.segments.embeddings.assign(np.stack([table[1], table[0]]))
    close(moved.encode(text, segment_ids=1 - ids), other, 1e-6)
    close(model.pool(other), np.tanh(other[:, 0] @ w["pooler/kernel"] + w["pooler/bias"]), 1e-5)
    with pytest.raises(ValueError, match="has no pooler"):
        make(ALL["llama"]).pool(other)
    with pytest.raises(ValueError, match="has no segments"):
        make(ALL["llama"]).encode(text, segment_ids=ids)


@of({name: ALL[name] for name in ("multi_query", "lstm_stack")})
def test_dropout_is_on_in_training_only(config):
    keras.utils.set_random_seed(0)
    model, text = make(config), tokens(2, 8)
    assert not np.allclose(model(text, training=True), model(text, training=True))
    close(model(text, training=False), model(text), 0)
    quiet = make(dataclasses.replace(config, dropout=0.0))
    close(quiet(text, training=True), model(text), 1e-6)


@of({name: ALL[name] for name in ("multi_query", "lstm_stack")})
def test_every_dropout_has_the_configs_rate_and_drops(config):
    model, text = make(config), tokens(2, 8)
    kinds = keras.layers.Dropout, keras.layers.SpatialDropout1D
    dropouts = [layer for layer in model._flatten_layers() if isinstance(layer, kinds)]
    # After the embedding, and in each block on weights and on sublayers; an LSTM stack has one for all layers.
    assert len(dropouts) == (1 + 2 * config.num_layers if isinstance(config, TransformerConfig) else 2)
    assert {layer.rate for layer in dropouts} == {config.dropout}
    for only in dropouts:
        for layer in dropouts:
            layer.rate = config.dropout if layer is only else 0.0
        assert not np.allclose(model(text, training=True), model(text)), only.path


def test_calls_that_cannot_work_are_refused():
    model = make(TRANSFORMERS["gpt2"])
    with pytest.raises(ValueError, match="25 tokens are more than the model's max_sequence_length 24"):
        model(tokens(1, 25))
    for name in ("bidirectional", "bidirectional_lstm"):
        with pytest.raises(ValueError, match="bidirectional model has no decode state"):
            make(BIDIRECTIONAL[name]).initial_state(1, 4)
    with pytest.raises(InputError, match="only a language model of one direction carries its state"):
        make(BIDIRECTIONAL["bidirectional_lstm"]).carry_state(4)
    for config in (TRANSFORMERS["llama"], CAUSAL["lstm"]):
        model = make(config)
        with pytest.raises(ValueError, match="give padding to initial_state"):
            model(tokens(1, 2), np.ones((1, 2), bool), state=model.initial_state(1, 2))


def test_the_base_class_says_what_a_subclass_must_implement():
    class Empty(LanguageModel):
        config_class = LSTMConfig

    model = Empty(LSTMConfig(5, 2, 2))
    for call, name in (
        (lambda: model.encode(None), "encode"),
        (lambda: model.project(None), "project"),
        (lambda: model.initial_state(1, 1), "initial_state"),
    ):
        with pytest.raises(RuntimeError, match=f"Empty must implement {name}"):
            call()


def test_fresh_models_start_near_the_uniform_distribution():
    model = TransformerLanguageModel(TRANSFORMERS["llama"])
    text = tokens(4, 16)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(tokens(4, 16, seed=1), model(text))
    assert float(loss) == pytest.approx(np.log(VOCABULARY), abs=0.1)

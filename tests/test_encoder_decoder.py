"""Encoder-decoders in every configuration: causality, one forward path, padding, numpy and PyTorch, training."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm import state as names
from kerasllm.config import LSTMEncoderDecoderConfig, TransformerConfig, TransformerSeq2SeqConfig
from kerasllm.errors import InputError
from kerasllm.models import (
    SEQ2SEQ,
    EncoderDecoder,
    LSTMLanguageModel,
    SequenceClassifier,
    enable_lora,
    merged,
    variable_name,
)

pytest.register_assert_rewrite("oracles")
import oracles  # noqa: E402
from seq2seq_cases import SEQ2SEQS, SOURCE_VOCABULARY, VOCABULARY, make, mask_of, tokens  # noqa: E402


def of(configs):
    return pytest.mark.parametrize("config", configs.values(), ids=configs.keys())


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(np.array(actual), np.array(expected), rtol=tolerance, atol=tolerance)


ready = functools.cache(make)
"""A model that a test leaves as it is."""


def inputs(rows=3, source_length=6, length=7, lengths=(6, 3, 1)):
    return {
        "source": tokens(rows, source_length, seed=1),
        "target": tokens(rows, length, seed=2),
        "source_padding_mask": mask_of(lengths, source_length),
    }


def test_every_field_of_every_config_is_switched_on():
    for config_class in (TransformerSeq2SeqConfig, LSTMEncoderDecoderConfig):
        configs = [config for config in SEQ2SEQS.values() if isinstance(config, config_class)]
        for name in set(config_class.__annotations__):
            default = config_class.__dataclass_fields__[name].default
            assert any(getattr(config, name) != default for config in configs), name
            assert any(getattr(config, name) == default for config in configs), name


@of(SEQ2SEQS)
def test_a_target_token_changes_nothing_before_it_and_everything_from_it_on(config):
    model, text = ready(config), np.repeat(tokens(1, 7), 8, axis=0)
    changed = np.arange(7)
    text[changed, changed] = (text[changed, changed] + 1) % VOCABULARY
    logits = np.array(model((np.repeat(tokens(1, 5, seed=1), 8, axis=0), text)))
    difference = np.abs(logits[:7] - logits[7]).max(-1)
    earlier = np.tri(7, k=-1, dtype=bool)
    assert (difference[earlier] < 1e-6).all()
    assert (difference[~earlier] > 1e-4).all()


@of(SEQ2SEQS)
def test_every_source_token_changes_every_logit_and_its_order_matters(config):
    model, source = ready(config), np.repeat(tokens(1, 5, seed=1), 7, axis=0)
    changed = np.arange(5)
    source[0, :2] = 3, 4
    source[:] = source[0]
    source[changed, changed] = (source[changed, changed] + 1) % VOCABULARY
    source[6, :2] = 4, 3
    logits = np.array(model((source, np.repeat(tokens(1, 4), 7, axis=0))))
    difference = np.abs(logits - logits[5]).max(-1)
    assert (difference[[0, 1, 2, 3, 4, 6]] > 1e-5).all()


@of(SEQ2SEQS)
@pytest.mark.parametrize("pieces", [(6,), (1,) * 6, (3, 1, 2)], ids=str)
def test_pieces_with_a_state_are_the_whole(config, pieces):
    model, given = ready(config), inputs(length=6)
    state, start, logits = model.encode_source(given["source"], given["source_padding_mask"], length=8), 0, []
    for size in pieces:
        part, state = model(given["target"][:, start : start + size], state=state)
        logits.append(part)
        start += size
        assert int(state["position"]) == start
    close(np.concatenate(logits, 1), model(given))


@of(SEQ2SEQS)
def test_a_batch_is_each_pair_alone_whatever_pads_it(config):
    model, given = ready(config), inputs(rows=4, length=9, lengths=(6, 3, 1, 4))
    padding, mask = np.array([0, 5, 1, 8], "int32"), given["source_padding_mask"]
    logits = []
    for seed in (5, 6):  # what stands in the empty slots is not seen
        source = np.where(mask, given["source"], tokens(4, 6, seed=seed))
        state = model.encode_source(source, mask, length=16, padding=padding)
        first, state = model(given["target"][:, :6], state=state)
        logits.append(np.concatenate([first, model(given["target"][:, 6:], state=state)[0]], 1))
    for row, (empty, length) in enumerate(zip(padding, mask.sum(1), strict=True)):
        close(logits[0][row, empty:], logits[1][row, empty:], 1e-6)
        alone = given["source"][row : row + 1, :length], given["target"][row : row + 1, empty:]
        close(logits[0][row, empty:], model(alone)[0])


@of(SEQ2SEQS)
def test_states_are_what_state_py_says(config):
    model, given = ready(config), inputs(rows=2, lengths=(6, 2))
    expected = {names.POSITION: (), names.PADDING: (2,), names.SOURCE_PADDING_MASK: (2, 6)}
    if isinstance(config, TransformerConfig):
        heads = config.num_key_value_heads or config.num_heads
        for part, i in np.ndindex(2, config.num_layers):
            expected[f"kv_cache_{'kv'[part]}_{i}"] = (2, heads, 9, config.head_dim)
            expected[f"memory_{'kv'[part]}_{i}"] = (2, heads, 6, config.head_dim)
    else:
        for index, width in enumerate(config.layer_dims):
            expected |= {f"lstm_{part}_{index}": (2, width) for part in ("hc" if config.cell == "lstm" else "h")}
        if config.attention is None:
            del expected[names.SOURCE_PADDING_MASK]
        else:
            expected |= {f"memory_{part}_0": (2, 6, config.output_dim) for part in "kv"}
    mask = given["source_padding_mask"]
    state = model.encode_source(given["source"], mask, length=9, padding=np.zeros(2, "int32"))
    for moment in (state, model(given["target"][:, :3], state=state)[1]):
        assert {name: tuple(value.shape) for name, value in moment.items()} == expected
        for name in expected:
            same = np.array_equal(np.array(moment[name]), np.array(state[name]))
            assert not names.constant(name) or same, name
    assert not {names.PADDING, names.SOURCE_PADDING_MASK} & set(model.encode_source(given["source"]))


def numpy_stack(w, config, x, prefix, causal, context=None, visible=None):
    """Blocks of a Transformer with their final norm, over a memory where there is one."""
    rows, length = x.shape[:2]
    seen = np.broadcast_to(np.tril(np.ones((length, length))) if causal else visible[:, None], (rows, length, length))
    groups = config.num_key_value_heads or config.num_heads

    def norm(name, x):
        return oracles.normalize(w, name, x, config.norm, config.norm_epsilon)

    def attend(p, x, context, visible, rotate):
        return oracles.attention(w, x, context, config.num_heads, groups, visible, p, rotate)[0]

    def rotate(heads):
        return oracles.rotate(heads, np.arange(length), config.rotary_base) if config.positions == "rotary" else heads

    for index in range(config.num_layers if causal else config.encoder.num_layers):
        block = f"{prefix}block_{index}/"
        sublayers = {
            "attention": lambda x, p: attend(p, x, x, seen, rotate),
            "cross_attention": lambda x, p: attend(p, x, context, np.repeat(visible[:, None], length, 1), lambda q: q),
            "feedforward": lambda x, p: oracles.feedforward(w, config.activation, x, p),
        }
        for name, sublayer in sublayers.items():
            if name == "cross_attention" and not causal:
                continue
            if config.norm_first:
                x = x + sublayer(norm(f"{block}{name}_norm", x), f"{block}{name}/")
            else:
                x = norm(f"{block}{name}_norm", x + sublayer(x, f"{block}{name}/"))
    return norm(f"{prefix}final_norm", x) if config.normalizes_last else x


def numpy_transformer(w, config, source, target, mask):
    def embed(text, prefix=""):
        x = w.get(f"{prefix}embedding/embeddings", w["embedding/embeddings"])[text]
        x = x * np.sqrt(config.hidden_dim) if config.embedding_scale else x
        if config.positions == "learned":
            x = x + w[f"{prefix}positions/embeddings"][: text.shape[1]]
        return x + oracles.sine_positions(text.shape[1], config.hidden_dim) if config.positions == "sine" else x

    memory = numpy_stack(w, config, embed(source, "encoder/"), "encoder/", False, visible=mask)
    x = numpy_stack(w, config, embed(target), "", True, memory, mask)
    table = w["embedding/embeddings"].T if config.tie_embeddings else w["embedding/reverse_embeddings"]
    return x @ table + w.get("output_bias", 0)


def numpy_lstm(w, config, source, target, mask):
    table, layers = w["embedding/embeddings"], config.num_layers
    x = w.get("source_embedding/embeddings", table)[source]
    both = config.bidirectional_encoder
    memory, final = oracles.recurrent_stack(w, config.cell, layers, x, "encoder/", mask, both=both)
    x, _ = oracles.recurrent_stack(w, config.cell, layers, table[target], "lstm/", states=final)
    if config.attention is not None:
        x, _ = oracles.global_attention(w, config.attention, x, memory, mask, "attention/")
    return x @ (table.T if config.tie_embeddings else w["head/kernel"]) + w["output_bias"]


@of(SEQ2SEQS)
def test_the_whole_model_is_its_numpy_twin(config):
    model, given = ready(config), inputs()
    w = {variable_name(v): np.array(v.value, "float64") for v in model.trainable_variables}
    twin = numpy_transformer if isinstance(config, TransformerConfig) else numpy_lstm
    close(model(given), twin(w, config, *given.values()), 1e-4)


@of(SEQ2SEQS)
def test_the_gradient_reaches_every_variable(config):
    model, given = ready(config), inputs()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(given, training=False) ** 2)
    for variable, gradient in zip(
        model.trainable_variables, tape.gradient(loss, [v.value for v in model.trainable_variables]), strict=True
    ):
        # A key bias adds the same to every score of a query: the softmax takes it away.
        if not variable.path.endswith("key/bias"):
            assert np.abs(np.array(tf.convert_to_tensor(gradient))).max() > 1e-7, variable.path


@of(SEQ2SEQS)
def test_attention_scores_are_those_that_make_the_logits(config):
    model, given = ready(config), inputs()
    scores = [np.array(layer) for layer in model.attention_scores(given)]
    if not isinstance(config, TransformerConfig):
        heads, layers = 1, 0 if config.attention is None else 1
    else:
        heads, layers = config.num_heads, config.num_layers
    assert [layer.shape for layer in scores] == [(3, heads, 7, 6)] * layers
    for layer in scores:
        close(layer.sum(-1), 1)
        assert (layer[np.broadcast_to(~given["source_padding_mask"][:, None, None], layer.shape)] < 1e-6).all()
        assert layer[0].std() > 1e-3
    if isinstance(config, TransformerConfig):
        # The same blocks give the logits.
        memory = model.encoder.encode(given["source"], padding_mask=given["source_padding_mask"])
        x = model._embed(given["target"], None, np.arange(7, dtype="int32"))
        for block, expected in zip(model.blocks, scores, strict=True):
            options = {"context": memory, "context_mask": given["source_padding_mask"]}
            x, own, cross = block(x, **options, return_attention_scores=True)
            assert own.shape == (3, heads, 7, 7)
            close(cross, expected)
        close(model.project(model._normalize(x)), model(given), 1e-4)
    elif layers:
        memory = np.array(model.encode_source(given["source"], given["source_padding_mask"])["memory_v_0"])
        state = model.encode_source(given["source"], given["source_padding_mask"])
        hidden = LSTMLanguageModel.encode(model, given["target"], state=state)[0]
        read = np.concatenate([scores[0][:, 0] @ memory, np.array(hidden)], -1)
        outputs = np.tanh(read @ np.array(model.attention.output_projection.kernel))
        close(model.project(outputs), model(given), 1e-4)


@of(SEQ2SEQS)
def test_mixed_precision_keeps_logits_in_float32_and_near(config):
    model, reference, given = make(config, dtype="mixed_bfloat16"), ready(config), inputs()
    logits = model(given)
    assert logits.dtype == "float32"
    assert float(keras.ops.std(logits - reference(given))) < 0.08 * float(keras.ops.std(reference(given)))
    state = model.encode_source(given["source"], length=7)
    kept = {str(keras.ops.dtype(value)) for value in names.carried(state).values()}
    assert kept == {"bfloat16"}


@of(SEQ2SEQS)
def test_labels_without_weight_do_not_count(config):
    model, given, weight = make(config), inputs(), np.ones((3, 7), "float32")
    weight[:, 4:] = 0
    model.compile("sgd", run_eagerly=True)
    logs = []
    for seed in (7, 8):
        labels = tokens(3, 7)
        labels[:, 4:] = tokens(3, 3, seed=seed)
        changed = {**given, "target": np.concatenate([given["target"][:, :4], tokens(3, 3, seed=seed)], 1)}
        logs.append(model.evaluate(changed, labels, sample_weight=weight, verbose=0, return_dict=True))
    assert logs[0] == pytest.approx(logs[1])
    assert set(logs[0]) == {"loss", "perplexity"}


@of({name: SEQ2SEQS[name] for name in ("grouped", "luong")})
def test_dropout_is_on_in_training_only(config):
    keras.utils.set_random_seed(0)
    model, given = ready(config), inputs()
    assert not np.allclose(model(given, training=True), model(given, training=True))
    close(model(given, training=False), model(given), 0)
    assert not np.allclose(
        *(model.encode_source(given["source"], training=True)["memory_v_0"] for _ in range(2))
    )  # in the encoder, too


@of(SEQ2SEQS)
def test_json_keras_files_and_functional_models_give_the_same(config, tmp_path):
    assert type(config).from_json(config.to_json()) == config
    model, given = make(config), inputs()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.config == config
    close(again(given), model(given), 1e-6)
    symbols = {name: keras.Input((None,), dtype=str(value.dtype), name=name) for name, value in given.items()}
    outputs = model(symbols)
    assert (outputs.shape, outputs.dtype) == ((None, None, VOCABULARY), "float32")
    assert model.compute_output_shape({"source": (2, 6), "target": (2, 7)}) == (2, 7, VOCABULARY)
    close(keras.Model(symbols, outputs)(given), model(given), 1e-6)
    close(model(tuple(given.values())), model(given), 0)
    paths = [variable_name(v) for v in model.weights]
    assert len(set(paths)) == len(paths) and paths == [variable_name(v) for v in again.weights]
    shared = not config.source_vocabulary_size
    assert sum(v.shape == (VOCABULARY, v.shape[-1]) for v in model.weights if "embeddings" in v.path) == 1
    assert shared == (not any(v.shape[0] == SOURCE_VOCABULARY for v in model.weights))


REFUSED = {
    "causal must be True": ("vaswani", {"causal": False}),
    "num_segments must be 0": ("vaswani", {"num_segments": 2}),
    "pooler must be False": ("vaswani", {"pooler": True}),
    "num_encoder_layers must be a positive": ("vaswani", {"num_encoder_layers": 0}),
    "source_vocabulary_size must be a positive": ("luong", {"source_vocabulary_size": -1}),
    "attention must be one of general, additive": ("luong", {"attention": "dot"}),
    "bidirectional must be False": ("luong", {"bidirectional": True}),
    "bidirectional_encoder must be true or false": ("luong", {"bidirectional_encoder": 1}),
    "bidirectional_encoder needs even widths, received 13": ("luong", {"hidden_dim": 13}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_configs_that_cannot_be_are_refused_in_one_line(message):
    name, changes = REFUSED[message]
    with pytest.raises(InputError) as error:
        dataclasses.replace(SEQ2SEQS[name], **changes)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@of({name: SEQ2SEQS[name] for name in ("vaswani", "luong")})
def test_calls_that_cannot_work_are_refused(config):
    model, given = ready(config), inputs()
    with pytest.raises(ValueError, match="needs the state that encode_source gives"):
        model.encode(given["target"])
    with pytest.raises(ValueError, match="the state that encode_source gives"):
        model.initial_state(2, 4)
    for wrong in (given["target"], {"source": given["source"]}, {**given, "mask": given["source"]}, (given["source"],)):
        with pytest.raises(ValueError, match="needs source and target"):
            model(wrong)
    with pytest.raises(InputError, match="backbone must be the config of a language model"):
        SequenceClassifier({"backbone": config})
    # Without caches a whole target is read at once, and nothing can follow.
    if isinstance(config, TransformerConfig):
        assert model(given["target"], state=model.encode_source(given["source"]))[1] is None
        with pytest.raises(ValueError, match="513 tokens are more than the model's max_sequence_length 512"):
            model.encode_source(tokens(1, 513))


def test_the_base_class_says_what_a_subclass_must_implement():
    class Empty(EncoderDecoder):
        config_class = LSTMEncoderDecoderConfig

    with pytest.raises(RuntimeError, match="Empty must implement encode_source"):
        Empty(SEQ2SEQS["plain"]).encode_source(None)
    assert set(SEQ2SEQ) == {"LSTMEncoderDecoder", "TransformerSeq2Seq"}


def test_adapters_reach_encoder_and_decoder_and_merge():
    model, given = make(SEQ2SEQS["grouped"]), inputs()
    before = np.array(model(given))
    enable_lora(model, rank=2)
    adapted = {variable_name(v).rsplit("/", 1)[0] for v in model.trainable_variables}
    assert {"block_0/attention/query", "block_0/cross_attention/query", "encoder/block_0/attention/query"} < adapted
    close(model(given), before, 1e-6)
    model.compile(keras.optimizers.Adam(0.05))
    model.fit(given, tokens(3, 7), verbose=0)
    after = np.array(model(given))
    assert np.abs(after - before).max() > 1e-3
    close(merged(model)(given), after, 1e-4)


@pytest.mark.parametrize("name", ["vaswani", "luong"])
def test_formats_of_language_models_refuse_it_in_one_line(name, tmp_path):
    from kerasllm.convert.huggingface import to_huggingface
    from kerasllm.evaluation.runners import KerasModel
    from kerasllm.plan import parameter_count
    from kerasllm.text import ByteTokenizer

    model = make(dataclasses.replace(SEQ2SEQS[name], vocabulary_size=258))
    text = np.zeros((1, 3), "int32")
    for call, message in (
        (lambda: to_huggingface(model, ByteTokenizer(), tmp_path / "m"), "."),
        (lambda: KerasModel(model, ByteTokenizer()).score_tokens(text, text), "no probability to a text alone"),
        (lambda: parameter_count(model.config), "can be planned"),
    ):
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    if name == "luong":
        model.carry_state(None)
        with pytest.raises(InputError, match="only a language model of one direction carries its state"):
            model.carry_state(4)

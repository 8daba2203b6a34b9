"""A TFLite file holds what its documentation promises, runs without TensorFlow, and says what Keras says."""

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from artefacts import (
    CHUNKS,
    CONTEXT,
    NAMES,
    NEW_TOKENS,
    PROMPTS,
    SCORED,
    greedy,
    leftovers,
    one_line,
    pair,
    randomized,
    run_fresh,
    tflite,
)

from kerasllm.errors import InputError
from kerasllm.export import export_tflite
from kerasllm.models import LSTMLanguageModel, TransformerLanguageModel
from kerasllm.text import ByteTokenizer

FRESH = """
import json, sys
from kerasllm.edge import EdgeModel
prompts = json.loads(sys.argv[1])
texts = {path: EdgeModel(path).generate(prompts, max_new_tokens=int(sys.argv[2])) for path in sys.argv[3:]}
print(json.dumps({"texts": texts, "modules": sorted({module.split(".")[0] for module in sys.modules})}))
"""
TINY = {"vocabulary_size": 258, "embedding_dim": 8, "hidden_dim": 8}
SMALL_LENGTHS = {"prefill_lengths": (2,), "score_lengths": ()}


def graphs(path):
    """Signature name to the operations of its graph, each as (name, input shapes, output shapes); and the model."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    found = {}
    for signature in model.signatureDefs:
        graph = model.subgraphs[signature.subgraphIndex]
        shapes = [tuple(map(int, t.shape)) if t.shape is not None else () for t in graph.tensors]
        operations = []
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            inputs = [shapes[i] for i in operator.inputs if i >= 0]
            operations.append((name, inputs, [shapes[i] for i in operator.outputs]))
        found[signature.signatureKey.decode()] = operations
    return found, model


def stored(model):
    """Elements of each constant with at least as many as a small weight, once for each place where it is stored."""
    used = {t.buffer: int(np.prod(t.shape)) for g in model.subgraphs for t in g.tensors if t.shape is not None}
    return [size for buffer, size in used.items() if model.buffers[buffer].data is not None]


@pytest.fixture(scope="module")
def fresh():
    """What a process without TensorFlow gets from the files."""
    import json

    return run_fresh(FRESH, json.dumps(PROMPTS), NEW_TOKENS, *map(tflite, NAMES))


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """Files of a model with many more weights than graph, by quantization, and the model."""
    config = {"vocabulary_size": 4000, "num_layers": 1, "num_heads": 2, "hidden_dim": 192, "intermediate_dim": 256}
    model = TransformerLanguageModel({**config, "max_sequence_length": 16})
    model.build()
    # As after training: rows of very different length, so that one scale for all of them would show.
    table = model.embedding.embeddings
    model.final_norm.scale.assign(np.linspace(0.5, 1.5, 192, dtype="float32"))  # which must not be folded into a copy
    table.assign(table.numpy() * np.exp(np.random.default_rng(0).normal(0, 0.7, (4000, 1))).astype("float32"))
    folder = tmp_path_factory.mktemp("heavy")
    for quantization in (None, "float16", "int8"):
        export_tflite(model, folder / f"{quantization}.tflite", quantization=quantization, **SMALL_LENGTHS)
    return model, folder


def test_the_phone_process_has_neither_tensorflow_nor_keras(fresh):
    assert {"ai_edge_litert", "numpy"} <= set(fresh["modules"])
    assert not {"tensorflow", "tensorflow_text", "keras", "jax"} & set(fresh["modules"])


@pytest.mark.parametrize("name", NAMES)
class TestFiles:
    def test_greedy_text_is_that_of_keras(self, fresh, name):
        assert fresh["texts"][str(tflite(name))] == greedy(name)

    def test_signatures_and_tensors_are_as_promised(self, name):
        config = pair(name)[0].config
        if name == "lstm":
            widths = enumerate(config.layer_dims)
            state = {f"lstm_{part}_{i}": ((1, width), np.float32) for i, width in widths for part in "hc"}
        else:
            heads = config.num_key_value_heads or config.num_heads
            cache = (1, heads, CONTEXT, config.head_dim), np.float32
            state = {f"kv_cache_{part}_{i}": cache for i in range(config.num_layers) for part in "kv"}
        outputs = {
            "decode": {"logits": ((1, 1, config.vocabulary_size), np.float32)},
            f"score_{SCORED}": {"log_probs": ((1, SCORED), np.float32), "top_1": ((1, SCORED), np.int32)},
            **{f"prefill_{n}": {} for n in CHUNKS},
        }
        interpreter = Interpreter(str(tflite(name)))
        assert set(interpreter.get_signature_list()) == set(outputs)
        for signature, expected in outputs.items():
            length = 1 if signature == "decode" else int(signature.split("_")[1])
            inputs = {"tokens": ((1, length), np.int32), **state}
            if name != "lstm":
                inputs["input_pos"] = (length,), np.int32
            if signature.startswith("score"):
                inputs["targets"] = (1, length), np.int32
            runner = interpreter.get_signature_runner(signature)
            assert described(runner.get_input_details()) == inputs
            assert described(runner.get_output_details()) == {**expected, **state}

    def test_builtin_operations_suffice(self, name):
        resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = Interpreter(str(tflite(name)), experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        operations, model = graphs(tflite(name))
        assert not [code for code in model.operatorCodes if code.customCode]
        assert not [op for graph in operations.values() for op, _, _ in graph if op == "CUSTOM"]

    def test_a_step_writes_its_cache_and_never_copies_it(self, name):
        config, decode = pair(name)[0].config, graphs(tflite(name))[0]["decode"]
        assert "TRANSPOSE" not in [op for op, _, _ in decode]
        if name == "lstm":
            return
        heads = config.num_key_value_heads or config.num_heads

        def caches(shapes):
            return any(len(shape) > 2 and np.prod(shape) == heads * CONTEXT * config.head_dim for shape in shapes)

        makers = [op for op, _, outputs in decode if caches(outputs)]
        assert makers == ["DYNAMIC_UPDATE_SLICE"] * 2 * config.num_layers
        readers = {op for op, inputs, _ in decode if caches(inputs)}
        assert readers == {"DYNAMIC_UPDATE_SLICE", "BATCH_MATMUL"}

    def test_an_existing_file_is_refused(self, name):
        before = tflite(name).read_bytes()
        with pytest.raises(InputError) as caught:
            export_tflite(pair(name)[0], tflite(name))
        assert "exists already" in one_line(caught)
        assert tflite(name).read_bytes() == before


def described(details):
    return {name: (tuple(map(int, detail["shape"])), detail["dtype"]) for name, detail in details.items()}


def step_logits(path, tokens, state_shapes, placed=True):
    """Logits after each token, by `decode` alone."""
    runner = Interpreter(str(path), num_threads=1).get_signature_runner("decode")
    state = {name: np.zeros(shape, "float32") for name, shape in state_shapes.items()}
    rows = []
    for place, token in enumerate(tokens):
        inputs = {"input_pos": np.array([place], "int32")} if placed else {}
        state = runner(tokens=np.array([[token]], "int32"), **inputs, **state)
        rows.append(state.pop("logits")[0, 0])
    return np.stack(rows)


@pytest.mark.parametrize(("quantization", "width"), [(None, 4), ("float16", 2), ("int8", 1)])
def test_weights_are_stored_once(heavy, quantization, width):
    model, folder = heavy
    size = (folder / f"{quantization}.tflite").stat().st_size
    assert width * model.count_params() <= size <= 1.15 * width * model.count_params() + 300_000
    operations, content = graphs(folder / f"{quantization}.tflite")
    assert stored(content).count(4000 * 192) == 1
    # Nothing makes the whole table anew at each token, but from a constant, which is done once.
    if quantization == "int8":
        assert "DEQUANTIZE" not in [op for op, _, _ in operations["decode"]]


@pytest.mark.parametrize(("quantization", "part"), [(None, 1e-5), ("float16", 0.001), ("int8", 0.04)])
def test_quantization_costs_little(heavy, quantization, part):
    model, folder = heavy
    tokens = np.random.default_rng(1).integers(0, 4000, 16)
    expected = np.array(model(tokens[None], training=False))[0]
    state = dict.fromkeys(("kv_cache_k_0", "kv_cache_v_0"), (1, 2, 16, 96))
    difference = step_logits(folder / f"{quantization}.tflite", tokens, state) - expected
    assert np.sqrt((difference**2).mean()) <= part * expected.std()


def test_a_mixed_precision_model_becomes_float32(tmp_path):
    model = randomized(LSTMLanguageModel(TINY, dtype="mixed_bfloat16"))
    twin = LSTMLanguageModel(TINY)
    twin.build()
    for target, source in zip(twin.weights, model.weights, strict=True):
        target.assign(source)
    path = export_tflite(model, tmp_path / "m.tflite", **SMALL_LENGTHS)
    logits = step_logits(path, [1, 2, 3], {"lstm_h_0": (1, 8), "lstm_c_0": (1, 8)}, placed=False)
    np.testing.assert_allclose(logits, np.array(twin(np.array([[1, 2, 3]])))[0], rtol=0, atol=1e-4)
    assert model.compute_dtype == "bfloat16"


def test_exporting_leaves_the_model_as_it_was(tmp_path):
    model = randomized(LSTMLanguageModel(TINY))
    before = np.array(model(np.array([[1, 2, 3]])))
    export_tflite(model, tmp_path / "m.tflite", **SMALL_LENGTHS)
    np.testing.assert_array_equal(np.array(model(np.array([[1, 2, 3]]))), before)
    assert "call" not in vars(model.embedding)


class Odd(LSTMLanguageModel):
    """A model with an operation that TFLite lacks."""

    def project(self, hidden):
        return super().project(tf.math.igamma(tf.abs(hidden) + 1.0, tf.abs(hidden)))


def test_an_operation_that_tflite_lacks_is_named_in_one_line(tmp_path):
    with pytest.raises(InputError) as caught:
        export_tflite(randomized(Odd(TINY)), tmp_path / "m.tflite", **SMALL_LENGTHS)
    assert "tf.Igamma" in one_line(caught)
    assert len(one_line(caught)) < 150
    assert leftovers(tmp_path) == []


def test_a_file_that_answers_differently_is_refused_and_not_left(tmp_path, monkeypatch):
    other = tflite("lstm").read_bytes()
    model, _ = pair("lstm")
    twin = randomized(LSTMLanguageModel(model.config), seed=99)
    monkeypatch.setattr("kerasllm.export.tflite._convert", lambda *_: other)
    with pytest.raises(InputError) as caught:
        export_tflite(twin, tmp_path / "m.tflite", **SMALL_LENGTHS)
    assert "differ" in one_line(caught) and one_line(caught).endswith("; report this as a bug")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"TFL3", bytes(1 << 20)])
def test_a_file_that_is_too_small_or_broken_is_refused_and_not_left(tmp_path, monkeypatch, content):
    monkeypatch.setattr("kerasllm.export.tflite._convert", lambda *_: content)
    with pytest.raises(InputError) as caught:
        export_tflite(pair("lstm")[0], tmp_path / "m.tflite", **SMALL_LENGTHS)
    assert "TFLite file" in one_line(caught)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": CONTEXT + 1}, "more than the model's 128"),
        ({"context_length": 32, "prefill_lengths": (64,), "score_lengths": ()}, "less than a chunk of 64"),
        ({"quantization": "int4"}, "quantization must be one of"),
        ({"prefill_lengths": (0,)}, "at least"),
        ({"score_lengths": (-1,)}, "at least"),
        ({"context_length": -5}, "context_length"),
        ({"context_length": 0}, "context_length"),
        ({"prefill_lengths": (), "score_lengths": (), "context_length": 0}, "context_length"),
    ],
)
def test_lengths_and_quantizations_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(InputError) as caught:
        export_tflite(pair("grouped")[0], tmp_path / "m.tflite", **options)
    assert message in one_line(caught)
    assert leftovers(tmp_path) == []


def test_chunks_are_by_default_those_that_fit_the_context(tmp_path):
    config = {"vocabulary_size": 258, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8}
    model = TransformerLanguageModel({**config, "max_sequence_length": 40})
    path = export_tflite(randomized(model), tmp_path / "m.tflite", ByteTokenizer(), context_length=24)
    assert set(Interpreter(str(path)).get_signature_list()) == {"decode", "prefill_8", "score_24"}


def test_a_model_without_a_context_takes_chunks_of_any_length(tmp_path):
    lengths = {"prefill_lengths": (200,), "score_lengths": ()}
    path = export_tflite(randomized(LSTMLanguageModel(TINY)), tmp_path / "m.tflite", **lengths)
    assert set(Interpreter(str(path)).get_signature_list()) == {"decode", "prefill_200"}


def test_a_bidirectional_model_is_refused(tmp_path):
    config = {"vocabulary_size": 258, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8}
    with pytest.raises(InputError) as caught:
        export_tflite(TransformerLanguageModel({**config, "causal": False}), tmp_path / "m.tflite", **SMALL_LENGTHS)
    assert "causal" in one_line(caught)


@pytest.mark.parametrize(("name", "message"), [("m.tflite", "is a folder"), ("m.bin", "end in .tflite"), ("m", "end")])
def test_a_path_that_no_file_can_have_is_refused_first(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr("kerasllm.export.tflite.check_pair", None)
    (tmp_path / "m.tflite").mkdir()
    with pytest.raises(InputError) as caught:
        export_tflite(pair("lstm")[0], tmp_path / name, overwrite=True)
    assert message in one_line(caught)
    assert leftovers(tmp_path) == ["m.tflite"]


def test_an_interrupted_export_leaves_no_new_model_beside_the_old_tokenizer(tmp_path, monkeypatch):
    model, tokenizer = pair("lstm")
    (tmp_path / "m.tflite").write_bytes(b"old")
    ByteTokenizer().save(tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tokenizer), "save", interrupted)
    monkeypatch.setattr("kerasllm.export.tflite._convert", lambda *_: tflite("lstm").read_bytes())
    with pytest.raises(KeyboardInterrupt):
        export_tflite(model, tmp_path / "m.tflite", tokenizer, overwrite=True, **SMALL_LENGTHS)
    assert (tmp_path / "m.tflite").read_bytes() == b"old"
    assert leftovers(tmp_path) == ["m.tflite", "tokenizer.json"]


def test_the_tokenizer_of_another_model_beside_the_file_is_not_overwritten(tmp_path):
    ByteTokenizer().save(tmp_path)
    with pytest.raises(InputError) as caught:
        export_tflite(pair("lstm")[0], tmp_path / "m.tflite", pair("lstm")[1], **SMALL_LENGTHS)
    assert "tokenizer" in one_line(caught)
    assert leftovers(tmp_path) == ["tokenizer.json"]

"""Task heads: equal to those of `transformers`, trained by plain `fit`, saved and loaded, blind to padding."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from artefacts import one_line
from model_cases import ALL, VOCABULARY, make, tokens

import kerasllm
from kerasllm.convert.huggingface import read_huggingface_model, to_huggingface
from kerasllm.errors import InputError
from kerasllm.models import (
    HEADS,
    MaskedLanguageModel,
    SentenceEmbedder,
    SequenceClassifier,
    SpanExtractor,
    TokenClassifier,
    variable_name,
)
from kerasllm.text import ByteTokenizer

LABELS = ("negative", "neutral", "positive")
HEAD_SETTINGS = {
    SequenceClassifier: {"num_classes": 3, "labels": LABELS, "pooling": "mean"},
    TokenClassifier: {"num_classes": 3, "dense_dim": 7, "dense_activation": "linear"},
    SpanExtractor: {},
    MaskedLanguageModel: {},
    SentenceEmbedder: {},
}
CASES = [
    (head, name)
    for head in HEAD_SETTINGS
    for name in ("bert", "llama", "lstm", "bidirectional_lstm", "gru")
    if not (head is MaskedLanguageModel and name != "bert")
]
of_cases = pytest.mark.parametrize(("head", "name"), CASES, ids=lambda value: getattr(value, "__name__", value))


def made(head, name, seed=0, **changes):
    return head.from_backbone(make(ALL[name], seed=seed), **{**HEAD_SETTINGS[head], **changes})


def padded():
    """A batch whose rows have 9, 5 and 1 real tokens."""
    mask = np.arange(9)[None, :] < np.array([[9], [5], [1]])
    return tokens(3, 9), mask


def labels(head, batch=3, length=9):
    rng = np.random.default_rng(1)
    shape = {SequenceClassifier: (batch,), SpanExtractor: (batch, 2), MaskedLanguageModel: (batch, length)}
    return rng.integers(0, 3, shape.get(head, (batch, length))).astype("int32")


def test_every_head_is_tested():
    assert set(HEADS.values()) == set(HEAD_SETTINGS)
    assert all(HEADS[name].__name__ == name for name in HEADS)


@of_cases
def test_padding_is_invisible(head, name):
    model = made(head, name)
    text, mask = padded()
    together = np.array(model(text, padding_mask=mask))
    for row, count in enumerate((9, 5, 1)):
        alone = np.array(model(text[row : row + 1, :count]))[0]
        got = together[row]
        if head is SpanExtractor:
            assert (got[:, count:] < -1e8).all()
            got = got[:, :count]
        elif head in (TokenClassifier, MaskedLanguageModel):
            got = got[:count]
        np.testing.assert_allclose(got, alone, atol=1e-5)
    assert together.dtype == np.float32


@of_cases
def test_fit_learns_from_datasets_of_dictionaries_and_honours_weights(head, name):
    keras.utils.set_random_seed(0)
    model = made(head, name)
    text, mask = padded()
    if head is SentenceEmbedder:
        targets = np.random.default_rng(0).normal(size=(3, model.config.width)).astype("float32")
        model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
        weight = np.ones(3)
    else:
        targets = labels(head)
        model.compile(optimizer=keras.optimizers.Adam(1e-2))
        weight = np.ones(targets.shape) if head is not SpanExtractor else np.ones((3, 2))
    inputs = {"tokens": text, "padding_mask": mask}
    data = tf.data.Dataset.from_tensor_slices((inputs, targets, weight.astype("float32"))).batch(3).repeat(15)
    history = model.fit(data, steps_per_epoch=5, epochs=3, shuffle=False, verbose=0).history["loss"]
    assert np.isfinite(history).all() and history[-1] < history[0]
    before = [np.array(v.value) for v in model.trainable_variables]
    nothing = tf.data.Dataset.from_tensors((inputs, targets, np.zeros_like(weight, "float32")))
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="auto" if head is not SentenceEmbedder else "mse")
    model.fit(nothing, shuffle=False, verbose=0)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(np.array(variable.value), old)


@of_cases
def test_configs_files_and_folders_come_back(head, name, tmp_path):
    model = made(head, name)
    text, mask = padded()
    expected = np.array(model(text, padding_mask=mask))
    assert type(model.config).from_json(model.config.to_json()) == model.config
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(np.array(again(text, padding_mask=mask)), expected, atol=1e-6)
    names = [variable_name(v) for v in model.weights]
    assert names == [variable_name(v) for v in again.weights] and len(set(names)) == len(names)


def test_a_model_folder_holds_a_head(tmp_path):
    config = {**ALL["bert"].to_dict(), "vocabulary_size": 258}
    settings = {"num_classes": 3, "labels": list(LABELS), "pooling": "first"}
    backbone = {"class": "TransformerLanguageModel", "config": config}
    model = SequenceClassifier({"backbone": backbone, **settings})
    folder = kerasllm.save(model, ByteTokenizer(), tmp_path / "m")
    loaded, tokenizer = kerasllm.load(folder)
    assert type(loaded) is SequenceClassifier and loaded.config == model.config
    assert loaded.config.labels == LABELS
    text = np.array([tokenizer.encode("fine")], "int32")
    np.testing.assert_array_equal(np.array(loaded(text)), np.array(model(text)))
    with pytest.raises(InputError, match="cannot continue text"):
        kerasllm.generate(loaded, tokenizer, "a")


def test_mixed_precision_keeps_float32_logits():
    model = SequenceClassifier.from_backbone(make(ALL["bert"], dtype="mixed_bfloat16"), num_classes=2, pooling="pooler")
    assert model.compute_dtype == "bfloat16"
    assert keras.backend.standardize_dtype(model(tokens(2, 5)).dtype) == "float32"


@pytest.mark.parametrize("pooling", ["first", "last", "mean", "pooler"])
def test_poolings_are_what_they_say(pooling):
    model = made(SequenceClassifier, "bert", pooling=pooling)
    text, mask = padded()
    hidden = np.array(model.backbone.encode(text, padding_mask=mask))
    picked = {
        "first": hidden[:, 0],
        "last": hidden[np.arange(3), [8, 4, 0]],
        "mean": np.stack([row[:count].mean(0) for row, count in zip(hidden, (9, 5, 1), strict=True)]),
        "pooler": None,
    }[pooling]
    if picked is None:
        picked = np.array(model.backbone.pool(hidden))
    w = {variable_name(v): np.array(v.value) for v in model.weights}
    expected = picked @ w["classifier/kernel"] + w["classifier/bias"]
    np.testing.assert_allclose(np.array(model(text, padding_mask=mask)), expected, atol=1e-5)


REFUSED = [
    (SequenceClassifier, {"num_classes": 1}, "num_classes must"),
    (SequenceClassifier, {"labels": ("a", "a", "b")}, "labels must"),
    (SequenceClassifier, {"pooling": "max"}, "pooling must"),
    (TokenClassifier, {"dropout": 1.0}, "dropout must"),
    (SentenceEmbedder, {"normalize": "yes"}, "normalize must"),
    (TokenClassifier, {"window": 3}, "window"),
]


@pytest.mark.parametrize(("head", "change", "word"), REFUSED)
def test_bad_settings_are_refused(head, change, word):
    with pytest.raises(InputError) as error:
        made(head, "bert", **change)
    assert word in one_line(error)


def test_inputs_without_tokens_are_refused():
    model = made(SequenceClassifier, "bert")
    with pytest.raises(ValueError, match="needs an input 'tokens', received padding_mask"):
        model({"padding_mask": np.ones((1, 3), bool)})
    with pytest.raises(ValueError, match="has no input 'windows'"):
        model({"tokens": tokens(1, 3), "windows": tokens(1, 3)})


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="needs a backbone with a pooler"):
        made(SequenceClassifier, "llama", pooling="pooler")
    with pytest.raises(InputError, match="bidirectional"):
        made(MaskedLanguageModel, "llama")
    with pytest.raises(InputError, match="no usual loss"):
        made(SentenceEmbedder, "bert").compile()
    with pytest.raises(InputError, match="backbone must have a config and a class"):
        SpanExtractor({"backbone": {"class": "os.system", "config": {}}})


# transformers ------------------------------------------------------------------------------------------------------

_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
_NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
THEIRS = {
    "BertForSequenceClassification": (SequenceClassifier, _NAMES),
    "BertForTokenClassification": (TokenClassifier, _NAMES),
    "BertForQuestionAnswering": (SpanExtractor, {}),
    "BertForMaskedLM": (MaskedLanguageModel, {}),
    "BertForPreTraining": (MaskedLanguageModel, {}),
}


def their_logits(model, text, mask, segments):
    import torch

    arguments = {"input_ids": text, "attention_mask": mask, "token_type_ids": segments}
    with torch.no_grad():
        outputs = model(**{name: torch.tensor(value.astype("int64")) for name, value in arguments.items()})
    if "start_logits" in outputs:
        return np.stack([outputs.start_logits.numpy(), outputs.end_logits.numpy()], axis=1)
    return (outputs.prediction_logits if "prediction_logits" in outputs else outputs.logits).numpy()


@pytest.mark.parametrize("kind", THEIRS)
def test_heads_are_those_of_transformers_both_ways(kind, tmp_path):
    import torch
    import transformers

    head, settings = THEIRS[kind]
    torch.manual_seed(0)
    theirs = getattr(transformers, kind)(transformers.BertConfig(**_BERT, **settings)).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    model = read_huggingface_model(tmp_path / "theirs")
    assert type(model) is head
    if settings:
        assert model.config.labels == LABELS
    text, mask = padded()
    segments = text % 2
    expected = their_logits(theirs, text, mask, segments)
    ours = np.array(model({"tokens": text, "padding_mask": mask, "segment_ids": segments}))
    if head is SpanExtractor:
        real = np.broadcast_to(mask[:, None, :], expected.shape)
    else:
        real = mask if expected.ndim == 3 else np.ones(3, bool)
    np.testing.assert_allclose(ours[real], expected[real], atol=1e-4)
    folder = to_huggingface(model, tmp_path / "ours")
    cls = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    again, report = cls.from_pretrained(folder, output_loading_info=True)
    # As in published files, where BertForMaskedLM leaves the pooler to those who want it.
    pooler = {f"bert.pooler.dense.{name}" for name in ("weight", "bias")} if kind == "BertForPreTraining" else set()
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert set(report["unexpected_keys"]) == pooler
    np.testing.assert_allclose(their_logits(again.eval(), text, mask, segments)[real], expected[real], atol=1e-4)


def test_a_masked_language_model_of_a_checkpoint_becomes_a_classifier_with_its_pooler(tmp_path):
    """As bert-base-*, which declare BertForMaskedLM and hold a pooler."""
    import torch
    import transformers

    torch.manual_seed(1)
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**_BERT)).eval()
    theirs.save_pretrained(tmp_path / "m")
    content = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**content, "architectures": ["BertForMaskedLM"]}))
    model = read_huggingface_model(tmp_path / "m")
    assert not {v.path for v in model.trainable_variables} & {v.path for v in model.backbone.pooler.weights}
    text, mask = padded()
    with torch.no_grad():
        arguments = {"input_ids": torch.tensor(text.astype("int64")), "attention_mask": torch.tensor(mask).long()}
        expected = theirs.bert(**arguments).pooler_output.numpy()
    again = read_huggingface_model(to_huggingface(model, tmp_path / "again"))
    for source in (model, model.backbone, again, again.backbone):
        classifier = SequenceClassifier.from_backbone(source, num_classes=2)
        hidden = classifier.backbone.encode(text, padding_mask=mask)
        np.testing.assert_allclose(np.array(classifier.backbone.pool(hidden)), expected, atol=1e-5)
        assert len(classifier.backbone.pooler.trainable_variables) == 2
    averaged = SequenceClassifier.from_backbone(model.backbone, num_classes=2, pooling="mean")
    assert averaged.backbone.pooler is None
    np.testing.assert_array_equal(np.array(averaged.backbone.encode(text)), np.array(model.backbone.encode(text)))


def test_heads_that_transformers_lacks_are_refused(tmp_path):
    for model in (made(SequenceClassifier, "bert", pooling="mean"), made(TokenClassifier, "llama")):
        with pytest.raises(InputError, match="transformers has no|counterpart"):
            to_huggingface(model, tmp_path / "out")
    with pytest.raises(InputError, match="counterpart"):
        to_huggingface(made(TokenClassifier, "lstm"), tmp_path / "out")


def test_a_head_copies_the_weights_of_its_backbone():
    backbone = make(ALL["bert"])
    before = backbone.get_weights()
    model = SequenceClassifier.from_backbone(backbone, num_classes=2, pooling="mean")
    model.compile(keras.optimizers.SGD(0.5))
    model.fit(np.ones((4, 5), "int32"), np.array([0, 1, 1, 1]), verbose=0)
    assert any((a != b).any() for a, b in zip(model.backbone.get_weights(), before, strict=False) if a.shape == b.shape)
    for weight, value in zip(backbone.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)

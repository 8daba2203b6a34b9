"""Checkpoints of LLaMA, GPT-2 and BERT: logits equal those of `transformers`, both ways; refusals name the culprit."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from artefacts import one_line

from kerasllm.convert.hf_config import FAMILIES, read_config, write_config
from kerasllm.convert.huggingface import from_huggingface, read_huggingface_model, to_huggingface
from kerasllm.errors import InputError
from kerasllm.models import TransformerLanguageModel

VOCABULARY, LENGTH = 37, 12
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2}
_LLAMA = {**_SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}
_BERT = {**_SIZES, "num_attention_heads": 4, "max_position_embeddings": 48, "type_vocab_size": 3}
CASES = {
    "llama-grouped": ("LlamaForCausalLM", _LLAMA),
    "llama-multi-head-tied": ("LlamaForCausalLM", {**_LLAMA, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-3": ("LlamaForCausalLM", {**_LLAMA, "rope_parameters": _LLAMA3, "rms_norm_eps": 1e-3}),
    "llama-biases": ("LlamaForCausalLM", {**_LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-attention-bias": ("LlamaForCausalLM", {**_LLAMA, "attention_bias": True, "num_key_value_heads": 1}),
    "llama-without-head": ("LlamaModel", {**_LLAMA, "tie_word_embeddings": True}),
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "gpt2-inner": ("GPT2LMHeadModel", {**_GPT2, "n_inner": 40, "layer_norm_epsilon": 1e-3}),
    "gpt2-without-head": ("GPT2Model", _GPT2),
    "bert": ("BertModel", _BERT),
    "bert-relu": ("BertModel", {**_BERT, "hidden_act": "relu", "num_hidden_layers": 1}),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Tiny random models of `transformers` and their folders, each made when first asked for."""
    import torch
    import transformers

    made = {}

    def original(name):
        if name not in made:
            kind, values = CASES[name]
            cls = getattr(transformers, kind)
            torch.manual_seed(len(name))
            model = cls(cls.config_class(**values)).eval()
            for parameter in model.parameters():  # biases and norms of a new model are zeros and ones
                parameter.data.add_(torch.randn_like(parameter) * 0.2)
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            made[name] = (model, folder)
        return made[name]

    return original


def batch(segments):
    """Tokens and a mask; the second row has padding on the right."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH)).astype("int32")
    mask = np.arange(LENGTH)[None, :] < np.array([[LENGTH], [7]])
    return tokens, mask, (tokens % 3 if segments else None)


def their_outputs(model):
    import torch

    tokens, mask, segments = batch(model.config.model_type == "bert")
    inputs = {"input_ids": torch.tensor(tokens.astype("int64")), "attention_mask": torch.tensor(mask.astype("int64"))}
    if segments is not None:
        inputs["token_type_ids"] = torch.tensor(segments.astype("int64"))
    with torch.no_grad():
        outputs = model(**inputs)
    if segments is not None:
        return [outputs.last_hidden_state.numpy()[mask], outputs.pooler_output.numpy()]
    if "logits" in outputs:
        return [outputs.logits.numpy()[mask]]
    return [(outputs.last_hidden_state @ model.get_input_embeddings().weight.T).detach().numpy()[mask]]


def our_outputs(model):
    tokens, mask, segments = batch(not model.config.causal)
    if segments is None:
        return [np.array(model(tokens, padding_mask=mask))[mask]]
    hidden = model.encode(tokens, padding_mask=mask, segment_ids=segments)
    return [np.array(hidden)[mask], np.array(model.pool(hidden))]


def check_equal(ours, theirs, tolerance=1e-4):
    for mine, wanted in zip(ours, theirs, strict=True):
        assert np.abs(wanted).max() > 0.3
        np.testing.assert_allclose(mine, wanted, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers_both_ways(name, originals, tmp_path):
    import transformers

    theirs, folder = originals(name)
    expected = their_outputs(theirs)
    model = read_huggingface_model(folder)
    check_equal(our_outputs(model), expected)
    # Padding is invisible: each row alone gives the same.
    tokens, mask, segments = batch(not model.config.causal)
    alone = model.encode(tokens[1:, :7], segment_ids=None if segments is None else segments[1:, :7])
    together = model.encode(tokens, padding_mask=mask, segment_ids=segments)
    np.testing.assert_allclose(np.array(together)[1, :7], np.array(alone)[0], atol=1e-5)
    # And back: a folder that transformers loads without a word about weights it lacks or has no use for.
    for shards in (10**9, 20_000):
        written = to_huggingface(model, tmp_path / f"{shards}", max_shard_bytes=shards)
        assert (written / "model.safetensors.index.json").exists() == (shards < 10**9)
        cls = getattr(transformers, json.loads((written / "config.json").read_text())["architectures"][0])
        again, report = cls.from_pretrained(written, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
        check_equal(our_outputs(model), their_outputs(again.eval()))
    check_equal(our_outputs(read_huggingface_model(written)), our_outputs(model), 0)


def test_every_family_is_covered():
    kinds = {CASES[name][0].split("For")[0].removesuffix("Model").removesuffix("LMHead").lower() for name in CASES}
    assert kinds == set(FAMILIES)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "mixed_bfloat16"])
def test_weights_come_in_the_dtype_asked_for(dtype, originals):
    theirs, folder = originals("llama-3")
    model = read_huggingface_model(folder, dtype=dtype)
    stored = "float32" if dtype.startswith("mixed") else dtype
    assert {weight.dtype for weight in model.weights} == {stored}
    difference = np.abs(our_outputs(model)[0] - their_outputs(theirs)[0]).max()
    assert 1e-5 < difference < 0.3
    assert model(np.array([[1, 2]], "int32")).dtype == "float32"


def test_a_bfloat16_folder_is_read_and_a_read_model_trains(originals, tmp_path):
    theirs, _ = originals("llama-multi-head-tied")
    import copy

    import torch

    copy.deepcopy(theirs).to(torch.bfloat16).save_pretrained(tmp_path)
    model = read_huggingface_model(tmp_path)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (8, LENGTH)).astype("int32")
    model.compile()
    losses = model.fit(tokens[:, :-1], tokens[:, 1:], epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def changed(folder, target, name=None, edit=None, **config):
    """A copy of a folder with other config keys (`None` removes one), and one tensor edited or removed."""
    shutil.copytree(folder, target)
    path = target / "config.json"
    content = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    if name is not None:
        tensors = safetensors.numpy.load_file(target / "model.safetensors")
        if edit is None:
            del tensors[name]
        else:
            tensors[name] = edit(tensors.get(name))
        safetensors.numpy.save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


_Q = "model.layers.1.self_attn.q_proj.weight"
DAMAGED = {
    "missing tensor": ({"name": _Q}, _Q),
    "surplus tensor": ({"name": "model.extra", "edit": lambda _: np.zeros(3, "float32")}, "model.extra"),
    "wrong shape": ({"name": _Q, "edit": lambda a: a[:-1]}, f"{_Q} has shape (31, 32)"),
    "wrong dtype": ({"name": _Q, "edit": lambda a: a.astype("int8")}, f"{_Q} is of dtype int8"),
    "unknown architecture": ({"model_type": "mamba"}, "model_type 'mamba'"),
    "unknown key": ({"sliding_window": 512}, "sliding_window"),
    "unknown activation": ({"hidden_act": "relu6"}, "hidden_act 'relu6'"),
    "unknown scaling": ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
    "other head size": ({"head_dim": 16}, "head_dim 16"),
    "missing key": ({"vocab_size": None}, "vocabulary_size"),
    "no number": ({"hidden_size": "many"}, "config.json"),
    "too many layers": ({"num_hidden_layers": 10**9}, "too few for a model of 1000000000 layers"),
    "more layers": ({"num_hidden_layers": 3}, "model.layers.2."),
    "too few layers": ({"num_hidden_layers": 1}, "model.layers.1."),
    "other vocabulary": ({"vocab_size": 10**12}, "embed_tokens.weight has shape"),
    "tied by the config only": ({"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_what_does_not_fit_is_named(fault, originals, tmp_path):
    arguments, word = DAMAGED[fault]
    folder = changed(originals("llama-grouped")[1], tmp_path / "changed", **arguments)
    with pytest.raises(InputError) as error:
        read_huggingface_model(folder)
    assert word in one_line(error)
    assert str(folder) in str(error.value)


def test_a_model_larger_than_memory_is_refused_before_it_is_read(originals, monkeypatch):
    from kerasllm.convert import memory

    monkeypatch.setattr(memory, "available_memory", lambda: 10_000)
    with pytest.raises(InputError) as error:
        read_huggingface_model(originals("gpt2")[1])
    assert "of memory" in one_line(error)


def test_the_tokenizer_of_another_model_is_refused_before_weights_are_read(originals, tmp_path, monkeypatch):
    monkeypatch.setattr("kerasllm.convert.safetensors_folder.SafetensorsFolder.read", None)
    folder = shutil.copytree(originals("bert")[1], tmp_path / "m")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(VOCABULARY))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    with pytest.raises(InputError) as error:
        from_huggingface(folder)
    assert f"{len(words)} tokens" in one_line(error) and str(folder) in str(error.value)


def test_memory_is_checked_before_tied_copies_are_compared(originals, tmp_path, monkeypatch):
    folder = changed(originals("llama-grouped")[1], tmp_path / "m", tie_word_embeddings=True)
    monkeypatch.setattr("kerasllm.convert.safetensors_folder.SafetensorsFolder.read", None)
    monkeypatch.setattr("kerasllm.convert.memory.available_memory", lambda: 10_000)
    with pytest.raises(InputError, match="of memory"):
        read_huggingface_model(folder)


_CLASSIFIER = ["BertForSequenceClassification"]
IMPOSSIBLE_HEADS = [
    {"architectures": 5},
    {"architectures": [["x"]]},
    {"architectures": "BertForMaskedLM"},
    {"architectures": _CLASSIFIER, "classifier_dropout": "x"},
    {"architectures": _CLASSIFIER, "id2label": 3},
    {"architectures": _CLASSIFIER, "id2label": {"0": "a", "1": "a"}},
    {"architectures": _CLASSIFIER, "id2label": {"0": "a"}},
    {"architectures": _CLASSIFIER, "id2label": {"1": "a", "2": "b"}},
]


@pytest.mark.parametrize("change", IMPOSSIBLE_HEADS, ids=str)
def test_heads_that_cannot_be_are_refused_with_the_file(change, originals, tmp_path):
    folder = changed(originals("bert")[1], tmp_path / "m", **change)
    with pytest.raises(InputError) as error:
        read_huggingface_model(folder)
    assert one_line(error).startswith(f"{folder / 'config.json'}: ")


def test_a_head_of_bert_on_another_family_is_refused(originals, tmp_path):
    folder = changed(originals("gpt2")[1], tmp_path / "m", architectures=["BertForMaskedLM"])
    with pytest.raises(InputError, match=r"config\.json: architecture BertForMaskedLM is BERT's"):
        read_huggingface_model(folder)


@pytest.mark.parametrize("name", CASES)
def test_configs_go_both_ways(name, originals):
    content = json.loads((originals(name)[1] / "config.json").read_text())
    family, config = read_config(content)
    again, written = write_config(config)
    assert (family, config) == (again, read_config(written)[1])


@pytest.mark.parametrize(("change", "word"), [({"positions": "sine"}, "sine"), ({"norm_first": False}, "norm_first")])
def test_what_transformers_cannot_express_is_refused(change, word, tmp_path):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8}
    model = TransformerLanguageModel({"vocabulary_size": 5, **sizes, **change})
    model.build()
    with pytest.raises(InputError) as error:
        to_huggingface(model, tmp_path / "out")
    assert word in one_line(error)
    assert not list(tmp_path.iterdir())


def test_names_of_older_files_are_understood(originals, tmp_path):
    theirs, folder = originals("bert")
    target = tmp_path / "old"
    shutil.copytree(folder, target)
    tensors = safetensors.numpy.load_file(target / "model.safetensors")
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    old["bert.embeddings.position_ids"] = np.arange(48)[None]
    safetensors.numpy.save_file(old, target / "model.safetensors")
    check_equal(our_outputs(read_huggingface_model(target)), their_outputs(theirs))

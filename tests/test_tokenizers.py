"""Both faces of every tokenizer agree, nothing is lost, and what is saved comes back."""

import json
import subprocess
import sys
import textwrap

import pytest
from byte_pairs import trained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerasllm.errors import InputError
from kerasllm.text import (
    BytePairTokenizer,
    ByteTokenizer,
    JiebaTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordPieceTokenizer,
    WordTokenizer,
    load_tokenizer,
)
from kerasllm.text.tokenizer import _CLASSES

TEXTS = [
    'The quick brown fox, who was (very) tired, didn\'t jump over 12,345 lazy dogs.\nIt slept; the dogs "laughed".',
    "数学是利用符号语言研究数量、结构、变化以及空间等概念的一门学科。\n維基百科，自由的百科全書！",
    "Ünïcödé naïve café — façade… 50 % of $3.50 is well-known;\tthe rest [see above] isn't {clear}: e.g. a_b/c.",
] * 5

NASTY = [
    "",
    " ",
    "\n",
    "  leading, trailing  and   inner   ",
    "\n\na\n \nb\r\nc\rd\te\x0b\x0cf\n",
    "▁",
    "▁▁",
    "a▁b ▁ c▁",
    " ▁<0x41><unk><s></s> x",
    "\0",
    "a\0b\0",
    "\x01\x1b[0m\x1c\x1f\x7f\x85",
    "😀👨‍👩‍👧🏳️‍🌈🇨🇳",
    "e\u0301 é ﬁ ① Å ａｂｃ ｶﾞ",
    "\ufeffBOM\ufeff",
    "\ufffd\ufffe\uffff\U0010ffff\ue000\U000f0000",
    "\u00a0\u1680\u2003\u2028\u2029\u202f\u3000\u200b\u200f\u2060",
    "▅⁇ ⁇",
    "数学 is 数学，「數學」。",
    "مرحبا שלום नमस्ते ภาษาไทย 한국어 にほんご カタカナ",
    "a" * 5000,
    "x-y'z ’tis $5, 50%! (a) [b] {c} “d” \\ ^ ` ~ _",
    "𠀀𪛟 a𠀀b",
]

MAKERS = {
    "unigram": lambda: SentencePieceTokenizer.train(TEXTS, 369),
    "bpe": lambda: SentencePieceTokenizer.train(TEXTS, 369, model_type="bpe"),
    "characters": lambda: SentencePieceTokenizer.train(TEXTS, 310, model_type="char"),
    "jieba": lambda: JiebaTokenizer.train(TEXTS, 70),
    "word": lambda: WordTokenizer.train(TEXTS, 70),
    "whitespace": lambda: WordTokenizer.train(TEXTS, 30, split="whitespace"),
    "byte": ByteTokenizer,
    "byte pairs": lambda: BytePairTokenizer.from_tokenizer_json(trained("smollm", TEXTS)),
    "word pieces": lambda: WordPieceTokenizer(
        ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", *"abe数学.", "##a", "##b"]
    ),
}


@pytest.fixture(scope="module")
def made():
    return {name: make() for name, make in MAKERS.items()}


@pytest.fixture(params=MAKERS)
def tokenizer(request, made):
    return made[request.param]


def graph_encode(tokenizer, texts):
    import tensorflow as tf

    return tokenizer.tokenize(tf.constant([text.encode() for text in texts], tf.string)).to_list()


def graph_decode(tokenizer, rows):
    import tensorflow as tf

    ids = tf.ragged.constant(rows, dtype=tf.int32, ragged_rank=1, row_splits_dtype=tf.int64)
    return [text.decode() for text in tokenizer.detokenize(ids).numpy()]


def test_every_class_is_tested(made):
    assert {type(tokenizer).__name__ for tokenizer in made.values()} == set(_CLASSES)
    assert {cls.__name__ for cls in Tokenizer.__subclasses__()} == set(_CLASSES)


def test_faces_agree_on_nasty_texts(tokenizer):
    rows = [tokenizer.encode(text) for text in NASTY]
    assert graph_encode(tokenizer, NASTY) == rows
    decoded = [tokenizer.decode(row) for row in rows]
    assert graph_decode(tokenizer, rows) == decoded
    assert all(0 <= i < tokenizer.vocabulary_size for row in rows for i in row)
    assert not {tokenizer.bos_id, tokenizer.eos_id} & {i for row in rows for i in row}
    if tokenizer.lossless:
        assert decoded == NASTY
        assert tokenizer.unk_id is None


UNICODE = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t\0▁▅é数，.'-\u3000😀")), max_size=40)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(UNICODE, min_size=1, max_size=20))
def test_faces_agree_on_random_texts(tokenizer, texts):
    rows = [tokenizer.encode(text) for text in texts]
    assert graph_encode(tokenizer, texts) == rows
    decoded = [tokenizer.decode(row) for row in rows]
    assert graph_decode(tokenizer, rows) == decoded
    assert decoded == texts or not tokenizer.lossless


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(st.integers(-3, 500), max_size=30), min_size=1, max_size=20))
def test_any_ids_decode_alike(tokenizer, rows):
    assert graph_decode(tokenizer, rows) == [tokenizer.decode(row) for row in rows]


def test_broken_utf8_becomes_replacement_characters(made):
    assert made["byte"].decode([0xE2, 0x96, 65]) == "\ufffdA"
    pieces = [made["unigram"]._processor.piece_to_id(f"<0x{byte:02X}>") for byte in (0xE2, 0x96, 0x41)]
    assert made["unigram"].decode(pieces) == "\ufffd\ufffdA"


def test_special_and_unknown_ids_vanish(tokenizer):
    assert tokenizer.decode([tokenizer.bos_id, tokenizer.eos_id, -1, tokenizer.vocabulary_size, 10**9]) == ""
    assert graph_decode(tokenizer, [[], [tokenizer.bos_id, tokenizer.eos_id, -1, tokenizer.vocabulary_size]]) == [
        "",
        "",
    ]


def test_empty_batch(tokenizer):
    import tensorflow as tf

    ids = tokenizer.tokenize(tf.constant([], tf.string))
    assert ids.dtype == tf.int32
    assert ids.to_list() == []
    assert tokenizer.detokenize(ids).shape == (0,)


def test_lone_surrogate_counts_as_replacement_character(tokenizer):
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")


def test_newline_is_one_token(tokenizer):
    if isinstance(tokenizer, WordPieceTokenizer):
        assert tokenizer.encode("\n") == []  # BERT sees no blanks
        return
    assert len(tokenizer.encode("\n")) == 1
    assert tokenizer.encode("a\n\nb").count(tokenizer.encode("\n")[0]) == 2


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    loaded = load_tokenizer(tmp_path / "t")
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert [loaded.encode(text) for text in NASTY] == [tokenizer.encode(text) for text in NASTY]
    assert {path.name for path in (tmp_path / "t").iterdir()} == {"tokenizer.json", *tokenizer.file_names}


def test_fingerprints_differ(made):
    assert len({tokenizer.fingerprint for tokenizer in made.values()}) == len(made)
    assert WordTokenizer(["a"]).fingerprint != WordTokenizer(["a"], split="whitespace").fingerprint


@pytest.mark.parametrize("name", ["unigram", "bpe", "characters", "jieba", "word", "byte pairs"])
def test_training_is_deterministic(made, name):
    assert MAKERS[name]().fingerprint == made[name].fingerprint


def export(tokenizer, path):
    import tensorflow as tf

    signature = [tf.TensorSpec([None], tf.string)]
    module = tf.Module()
    module.tokenizer = tokenizer.trackables()
    module.tokenize = tf.function(lambda texts: tokenizer.tokenize(texts).to_tensor(-1), signature)
    module.round_trip = tf.function(lambda texts: tokenizer.detokenize(tokenizer.tokenize(texts)), signature)
    tf.saved_model.save(module, path)


def test_saved_model_in_a_fresh_process(made, tmp_path):
    for name, tokenizer in made.items():
        export(tokenizer, str(tmp_path / name))
    (tmp_path / "nasty.json").write_text(json.dumps(NASTY))
    script = """
        import json, pathlib, sys
        import tensorflow as tf, tensorflow_text
        folder = pathlib.Path(sys.argv[1])
        texts = tf.constant([text.encode() for text in json.loads((folder / "nasty.json").read_text())])
        result = {}
        for name in sys.argv[2:]:
            module = tf.saved_model.load(str(folder / name))
            rows = [[i for i in row if i >= 0] for row in module.tokenize(texts).numpy().tolist()]
            result[name] = rows, [text.decode() for text in module.round_trip(texts).numpy()]
        assert "kerasllm" not in sys.modules
        (folder / "result.json").write_text(json.dumps(result))
    """
    command = [sys.executable, "-I", "-c", textwrap.dedent(script), str(tmp_path), *made]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120, capture_output=True)
    result = json.loads((tmp_path / "result.json").read_text())
    for name, tokenizer in made.items():
        rows = [tokenizer.encode(text) for text in NASTY]
        assert result[name] == [rows, [tokenizer.decode(row) for row in rows]]


def test_python_face_does_not_import_tensorflow(made, tmp_path):
    for name, tokenizer in made.items():
        tokenizer.save(tmp_path / name)
    script = """
        import sys
        from kerasllm.text import load_tokenizer
        for folder in sys.argv[1:]:
            tokenizer = load_tokenizer(folder)
            tokenizer.decode(tokenizer.encode("a▁b"))
            tokenizer.fingerprint
        assert "tensorflow" not in sys.modules and "keras" not in sys.modules
    """
    folders = [str(tmp_path / name) for name in made]
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), *folders], check=True, timeout=60)


def test_plain_sentencepiece_library_agrees(made, tmp_path):
    """What a phone has: the model file, and the library without this package."""
    import sentencepiece

    for name in ("unigram", "bpe"):
        made[name].save(tmp_path)
        plain = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
        for text in NASTY:
            assert "▁" in text or plain.encode(text) == made[name].encode(text)
            assert plain.decode(made[name].encode(text)) == text
        assert (plain.unk_id(), plain.bos_id(), plain.eos_id()) == (0, 1, 2)
        assert plain.decode([0, 1, 2]) == ""


def test_foreign_model_is_not_called_lossless():
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=110, minloglevel=2
    )
    tokenizer = SentencePieceTokenizer(model.getvalue())
    assert not tokenizer.lossless
    assert tokenizer.unk_id == 0
    texts = [text for text in NASTY if len(text) < 1000]
    rows = [tokenizer.encode(text) for text in texts]
    assert graph_encode(tokenizer, texts) == rows
    assert graph_decode(tokenizer, rows) == [tokenizer.decode(row) for row in rows]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_too_large_vocabulary_says_the_largest(model_type):
    with pytest.raises(InputError, match=r"too large .* largest possible is (\d+)$") as caught:
        SentencePieceTokenizer.train(TEXTS, 50_000, model_type=model_type)
    largest = int(str(caught.value).rsplit(" ", 1)[1])
    assert SentencePieceTokenizer.train(TEXTS, largest, model_type=model_type).vocabulary_size == largest


def test_bad_training_arguments():
    with pytest.raises(InputError, match="too small"):
        SentencePieceTokenizer.train(TEXTS, 265)
    with pytest.raises(InputError, match="no text to train on"):
        SentencePieceTokenizer.train(["", " \n "], 300)
    with pytest.raises(InputError, match="model_type"):
        SentencePieceTokenizer.train(TEXTS, 300, model_type="wordpiece")
    with pytest.raises(InputError, match="give 4 to 6$"):
        WordTokenizer.train(["a b c"], 7)
    with pytest.raises(InputError, match="split"):
        WordTokenizer([], split="lines")
    with pytest.raises(InputError, match="different"):
        WordTokenizer(["a", "a"])


def test_long_lines_are_trained_on():
    """The library alone drops a line of more than 4,192 bytes without a word."""
    tokenizer = SentencePieceTokenizer.train(["zebra quagga " * 2000, "数学" * 5000], 280)
    assert len(tokenizer.encode("zebra quagga 数学")) < 12


def test_sample_is_bounded_and_deterministic():
    from kerasllm.text.sentencepiece_training import sample

    texts = [f"line {i}\n" for i in range(20_000)]
    lines = sample(iter(texts), 20_000, seed=1)
    assert 10_000 < sum(map(len, lines)) <= 20_000
    assert lines == sample(texts, 20_000, seed=1)
    assert lines != sample(texts, 20_000, seed=2)
    numbers = [int(line.split()[1]) for line in lines]
    assert numbers == sorted(numbers)
    assert 8_000 < sum(numbers) / len(numbers) < 12_000
    assert len(sample(texts, 2**25, seed=1)) == 20_000


def test_word_tokenizer_splits_and_joins():
    text = 'It isn\'t 50% (well-known), e.g. 数学 is 「好」.\nNew "line"'
    tokenizer = WordTokenizer.train([text], 4)
    tokenizer = WordTokenizer(sorted(set(tokenizer._split(text))))
    assert "数" in tokenizer.words
    assert "数学" not in tokenizer.words
    assert "isn" in tokenizer.words
    assert tokenizer.unk_id not in tokenizer.encode(text)
    expected = 'It isn\'t 50% (well-known), e. g.数学is「好」.\nNew " line "'
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    assert tokenizer.decode(tokenizer.encode("unheard New")) == "<unk> New"


def test_whitespace_split_reads_tokenized_text():
    text = " = Title = \n \n the <unk> of </s> 5 @,@ 000 \n"
    tokenizer = WordTokenizer.train([text], 4, split="whitespace")
    assert tokenizer.words[3] == "\n"
    tokenizer = WordTokenizer(["\n", "the", "of", "=", "Title", "5", "@,@", "000"], split="whitespace")
    assert tokenizer.encode(text) == [6, 7, 6, 3, 3, 4, 0, 5, 0, 8, 9, 10, 3]
    assert tokenizer.decode(tokenizer.encode("the of\nthe 5 @,@ 000")) == "the of\nthe 5 @,@ 000"


def test_out_of_vocabulary_rate():
    tokenizer = WordTokenizer(["a", "b"])
    assert tokenizer.out_of_vocabulary_rate(["a b", "a c"]) == 0.25
    assert tokenizer.out_of_vocabulary_rate([]) == 0


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("unigram", "tokenizer.model", None, "cannot be read"),
        ("unigram", "tokenizer.model", b"", "no bos|not a SentencePiece"),
        ("unigram", "tokenizer.model", b"\x80broken", "not a SentencePiece model"),
        ("word", "vocabulary.json", b"{}", "list of words"),
        ("word", "vocabulary.json", b"\xff", "not a usable WordTokenizer"),
        ("byte", "tokenizer.json", None, "no such file"),
        ("byte", "tokenizer.json", b"[]", "format None"),
        ("byte", "tokenizer.json", b"{", "not valid JSON"),
        ("byte", "tokenizer.json", b'{"format": 1, "class": "os.system", "settings": {}}', "unknown tokenizer class"),
        ("byte", "tokenizer.json", b'{"format": 1, "class": [], "settings": {}}', "unknown tokenizer class"),
        ("byte", "tokenizer.json", b'{"format": 1, "class": "ByteTokenizer"}', "settings"),
        ("byte", "tokenizer.json", b'{"format": 1, "class": "ByteTokenizer", "settings": {"x": 1}}', "not a usable"),
    ],
)
def test_loading_checks(made, tmp_path, name, file, content, message):
    made[name].save(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", MAKERS)
def test_first_use_inside_a_graph(name):
    import tensorflow as tf

    tokenizer = MAKERS[name]()
    texts = tf.data.Dataset.from_tensor_slices(["a b", "数学", "", "▁"]).batch(3)
    ids = texts.map(tokenizer.tokenize)
    assert [row for batch in ids for row in batch.to_list()] == [tokenizer.encode(t) for t in ["a b", "数学", "", "▁"]]
    assert [len(batch.numpy()) for batch in ids.map(tokenizer.detokenize)] == [3, 1]

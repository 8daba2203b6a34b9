"""Chinese: words as jieba finds them, characters, one script, and pictures without boxes."""

import json
import random
import re
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from tokenizer_harness import UGLY, UNICODE, check_faces, graph_encode

from kerasllm.data import Article, load_corpus, prepare
from kerasllm.data.script import script_converter
from kerasllm.errors import InputError
from kerasllm.text import JiebaTokenizer, SentencePieceTokenizer, fonts, load_tokenizer
from kerasllm.text.segmentation import jieba_dictionary
from kerasllm.training import plot_curves

SENTENCE = "我爱北京天安门"
TEXTS = [
    "我爱北京天安门，天安门上太阳升。\n数学是利用符号语言研究数量、结构、变化以及空间等概念的一门学科。",
    "维基百科，自由的百科全书！小明硕士毕业于中国科学院计算所，后在日本京都大学深造。",
    "T恤 3.14 元，iPhone 15 在 2023 年发售：Hello world, it isn't 数学。",
] * 3
CHINESE = re.compile("[\u4e00-\u9fff]+")


@pytest.fixture(scope="module")
def words():
    return JiebaTokenizer.train(TEXTS, 60)


@pytest.fixture(scope="module")
def characters():
    return SentencePieceTokenizer.train(TEXTS, 330, model_type="char")


@pytest.fixture(scope="module")
def jieba():
    """The library itself, with its dictionary but without its cache in a folder that all users share."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports
        import jieba
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(jieba_dictionary().open("rb"))
    tokenizer.initialized = True
    return tokenizer


def articles(texts):
    return [Article(title=f"第{i}篇 臺灣", text=text) for i, text in enumerate(texts)]


def test_words_are_those_of_jieba(words, jieba):
    assert list(words.split(SENTENCE)) == ["我", "爱", "北京", "天安门"]
    draw = random.Random(0)
    entries = [word for word, count in jieba.FREQ.items() if count and CHINESE.fullmatch(word)]
    runs = ["".join(draw.choices(entries, k=8)) for _ in range(1500)]  # words, and chances to cut them otherwise
    runs += ["".join(chr(draw.randrange(0x4E00, 0x9FD6)) for _ in range(20)) for _ in range(100)]
    assert [list(words.split(run)) for run in runs] == [jieba.lcut(run, HMM=False) for run in runs]


def test_words_of_wikipedia_are_those_of_jieba(words, jieba, data_dir):
    lines = (data_dir / "wikipedia-zh" / "zhwiki_simplified.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    runs = [run for line in lines for run in CHINESE.findall(json.loads(line)["text"])]
    assert len(runs) > 3000
    assert [list(words.split(run)) for run in runs] == [jieba.lcut(run, HMM=False) for run in runs]


def test_words_and_all_else(words):
    assert list(words.split("T恤 3.14，it isn't\n〇數")) == [
        *("T", "恤", "3", ".", "14", "，", "it", "isn", "'", "t", "\n", "〇", "數")
    ]
    assert words.encode(f"{SENTENCE}，大象 Hello Mars").count(words.unk_id) == 2
    assert words.decode(words.encode(f"{SENTENCE}，天安门")) == f"{SENTENCE}，天安门"
    assert words.out_of_vocabulary_rate(["天安门 大象"]) == 0.5
    assert not words.lossless


@pytest.mark.parametrize("name", ["words", "characters"])
def test_faces_agree_on_ugly_texts(name, request):
    tokenizer = request.getfixturevalue(name)
    texts = [*UGLY, *TEXTS, "天安门\0北京", "\ud7ff\ue000北京\U00020000京", "北京▁天安门", "鿕鿖鿿㐀〇"]
    rows = [tokenizer.encode(text) for text in texts]
    check_faces(tokenizer, texts, rows, texts if tokenizer.lossless else [tokenizer.decode(row) for row in rows])


@settings(max_examples=25, deadline=None)
@given(texts=UNICODE.flatmap(lambda a: UNICODE.map(lambda b: [a + "北京天安门" + b, b])))
def test_faces_agree_on_random_texts(words, characters, texts):
    for tokenizer in (words, characters):
        assert graph_encode(tokenizer, texts) == [tokenizer.encode(text) for text in texts]
    assert [characters.decode(characters.encode(text)) for text in texts] == texts


def test_characters(characters):
    assert characters.lossless and characters.unk_id is None
    assert len(characters.encode("数学，")) == 3
    assert len(characters.encode("餃")) == 3  # bytes
    with pytest.raises(InputError, match=r"too large .* largest possible is (\d+)$") as caught:
        SentencePieceTokenizer.train(TEXTS, 5000, model_type="char")
    largest = int(str(caught.value).rsplit(" ", 1)[1])
    full = SentencePieceTokenizer.train(TEXTS, largest, model_type="char")
    assert all(len(full.encode(text)) == len(text) for text in TEXTS)
    with pytest.raises(InputError, match=r"too small .* smallest possible is 262"):
        SentencePieceTokenizer.train(TEXTS, 261, model_type="char")


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char"])
def test_text_without_blanks_leaves_the_blank_lossless(model_type):
    tokenizer = SentencePieceTokenizer.train(["数学是数学。", "科学。"] * 9, 266, model_type=model_type)
    texts = ["  a 数学 \n", "▁ "]
    rows = [tokenizer.encode(text) for text in texts]
    assert tokenizer.lossless
    check_faces(tokenizer, texts, rows, texts)


def test_bad_dictionaries_and_segmenters(words, tmp_path):
    file = tmp_path / "dict.txt"
    for content, message in [
        ("北京 5 ns\n天安门\n".encode(), r"dict\.txt:2: '天安门' is not a word and its count"),
        (b"abc 5\n", "has no Chinese word"),
        (b"\xff\xfe", "cannot be read"),
    ]:
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            JiebaTokenizer.train(TEXTS, 60, dictionary=file)
    with pytest.raises(InputError, match="cannot be read"):
        JiebaTokenizer.train(TEXTS, 60, dictionary=tmp_path / "none")
    file.write_text("我爱 9\n北 5\n", encoding="utf-8")
    other = JiebaTokenizer.train(TEXTS, 60, dictionary=file)
    assert list(other.split(SENTENCE)) == ["我爱", *"北京天安门"]

    words.save(tmp_path / "saved")
    model = tmp_path / "saved" / "segmenter.model"
    for content, message in [
        (b"\x80broken", "not a SentencePiece model"),
        (SentencePieceTokenizer.train(TEXTS, 300, model_type="char")._files()["tokenizer.model"], r"no piece for '丁'"),
    ]:
        model.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_tokenizer(tmp_path / "saved")


def test_missing_packages_are_named_before_anything_is_read(tmp_path, monkeypatch):
    def source():
        pytest.fail("read the source first")
        yield

    monkeypatch.setitem(sys.modules, "opencc", None)
    with pytest.raises(InputError, match=r"OpenCC is not installed; pip install 'kerasllm\[zh\]'$"):
        prepare(source(), tmp_path / "c", script="simplified")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'jieba': it is not installed; pip install 'kerasllm\[zh\]'$"):
        prepare(source(), tmp_path / "c", tokenizer="jieba")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "size"), [("jieba", 50), ("character", 280)])
def test_prepare(kind, size, tmp_path):
    corpus = prepare(articles(TEXTS), tmp_path / "c", tokenizer=kind, vocabulary_size=size, validation=0, test=0.4)
    again = load_corpus(tmp_path / "c", verify=True)
    assert again.tokenizer.vocabulary_size == size
    assert corpus.manifest["script"] is None
    texts = [article.text for article in corpus.articles("test")]
    counts = corpus.manifest["splits"]["test"]
    assert texts
    for text, document in zip(texts, corpus.documents("test"), strict=True):
        np.testing.assert_array_equal(document[1:-1], again.tokenizer.encode(text))
    if kind == "jieba":
        assert counts["out_of_vocabulary_rate"] == pytest.approx(again.tokenizer.out_of_vocabulary_rate(texts))
        assert counts["out_of_vocabulary_rate"] > 0
    else:
        assert "out_of_vocabulary_rate" not in counts
        assert [again.tokenizer.decode(document) for document in corpus.documents("test")] == texts


def test_script_of_known_sentences():
    simplified, traditional = script_converter("simplified"), script_converter("traditional")
    # One simplified character, several traditional ones: phrases decide.
    assert traditional("头发发展，皇后以后，一只只有几里") == "頭髮發展，皇后以後，一隻只有幾里"
    assert simplified("頭髮發展，皇后以後，乾燥的乾隆") == "头发发展，皇后以后，干燥的乾隆"
    assert script_converter(None)("數学") == "數学"
    for text in UGLY:
        if not re.search("[数數]", text):
            assert simplified(text) == traditional(text) == text


def test_script_of_a_corpus(tmp_path):
    source = articles(["數學與維基百科", "数学与维基百科", "plain text\0"] * 4)
    options = {"tokenizer": "byte", "validation": 0, "test": 0.4}
    made = {
        script: prepare(source, tmp_path / str(script), script=script, **options) for script in (None, "simplified")
    }
    assert made["simplified"].manifest["script"] == "simplified"
    for split in ("train", "test"):
        before, after = (list(corpus.articles(split)) for corpus in made.values())
        assert len(before) == len(after) > 0
        assert {article.text for article in after} <= {"数学与维基百科", "plain text\0"}
        assert [article.title.replace("臺灣", "台湾") for article in before] == [article.title for article in after]
    size = made["simplified"].manifest["splits"]["train"]
    texts = [article.text for article in made["simplified"].articles("train")]
    assert size["bytes"] == sum(len(text.encode()) for text in texts)
    with pytest.raises(InputError, match="script: 'Hans' is none of simplified, traditional"):
        prepare(source, tmp_path / "bad", script="Hans", **options)


@pytest.fixture
def only_latin(monkeypatch):
    """A system without a Chinese font, and none of the packages."""
    fonts._find.cache_clear()
    manager = fonts.font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", [f for f in manager.ttflist if "DejaVu" in f.name or "Last" in f.name])
    monkeypatch.setattr(fonts, "_PACKAGED", ())
    yield
    fonts._find.cache_clear()


HISTORY = {"loss": [5.0, 4.0], "val_loss": [4.9, 4.2]}


def test_a_font_has_the_characters():
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    family = fonts.cjk_font("中文數學，")
    font = FT2Font(findfont(FontProperties(family=family), fallback_to_default=False))
    pictures = {font.get_char_index(ord(character)) for character in "中文數學，"}
    assert len(pictures) == 5 and 0 not in pictures
    assert fonts.font_families(["loss", None]) == fonts.font_families([])
    assert fonts.font_families(["loss", "损失"]) == [*fonts.font_families([]), fonts.cjk_font("损失")]


def test_curves_draw_chinese_without_boxes(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of each glyph that is missing
        plot_curves({"循环网络": HISTORY, "變換器": HISTORY}, tmp_path / "zh.png", title="维基百科")
        plot_curves({"LSTM": HISTORY, "Transformer": HISTORY}, tmp_path / "en.png", title="Wikipedia")
    assert (tmp_path / "zh.png").read_bytes() != (tmp_path / "en.png").read_bytes()


def test_a_missing_font_is_an_error_with_a_remedy(only_latin, tmp_path):
    with pytest.raises(InputError, match=r"none has the characters '损失'; pip install 'kerasllm\[zh\]', or install"):
        plot_curves({"LSTM": HISTORY}, tmp_path / "zh.png", title="损失")
    assert list(tmp_path.iterdir()) == []
    plot_curves({"LSTM": HISTORY}, tmp_path / "en.png", title="loss")
    with pytest.raises(InputError, match="none has the characters"):
        fonts.cjk_font()

"""A prepared corpus is whole or absent, the same for any number of workers, and says exactly what it holds."""

import importlib.util
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from kerasllm.data import Article, Corpus, default_corpus, load_corpus, prepare, read_articles
from kerasllm.data import corpus as corpus_module
from kerasllm.data import encoding as encoding_module
from kerasllm.errors import InputError
from kerasllm.text import BytePairTokenizer, ByteTokenizer, WordTokenizer
from kerasllm.text.bpe_files import byte_alphabet

WORDS = [
    *["the", "of", "and", "in", "to", "was", "is", "for", "as", "on", "with", "by", "that", "he", "it", "from"],
    *"数学\n\t▁é,.-",
    "",
]


def make_articles(count=60, seed=0):
    draw = random.Random(seed)
    for i in range(count):
        yield Article(f"Article {i}", " ".join(draw.choices(WORDS, k=draw.randrange(5, 200))))


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def quick(source, out, **more):
    return prepare(source, out, **{"tokenizer": "byte", "progress": False, "workers": 1, **more})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return quick(
        make_articles(), tmp_path_factory.mktemp("corpus") / "c", tokenizer="sentencepiece", vocabulary_size=300
    )


@pytest.fixture
def copy(prepared, tmp_path):
    return Path(shutil.copytree(prepared.folder, tmp_path / "copy"))


def test_splits_are_complete_and_disjoint(prepared):
    texts = {article.title: article.text for article in make_articles()}
    titles = {split: [article.title for article in prepared.articles(split)] for split in corpus_module.SPLITS}
    assert all(titles.values())
    assert sorted(sum(titles.values(), [])) == sorted(texts)
    for split, names in titles.items():
        # The order of the source stays.
        assert names == [name for name in texts if name in names]
        documents = list(prepared.documents(split))
        assert len(documents) == len(names) == prepared.manifest["splits"][split]["articles"]
        for article, ids in zip(prepared.articles(split), documents, strict=True):
            assert article.text == texts[article.title] == prepared.tokenizer.decode(ids)
            assert (ids[0], ids[-1]) == (prepared.tokenizer.bos_id, prepared.tokenizer.eos_id)
        np.testing.assert_array_equal(np.concatenate(documents), prepared.tokens(split))


def test_manifest_counts(prepared):
    for split in corpus_module.SPLITS:
        texts = [article.text for article in prepared.articles(split)]
        assert prepared.manifest["splits"][split] == {
            "articles": len(texts),
            "bytes": sum(len(text.encode()) for text in texts),
            "characters": sum(map(len, texts)),
            "words": sum(len(text.split()) for text in texts),
            "tokens": len(prepared.tokens(split)),
        }
    assert prepared.tokens("train").dtype == np.dtype("<u2")
    assert str(prepared.folder) not in json.dumps(prepared.manifest)


@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_documents_over_block_edges(prepared, monkeypatch, block):
    """Documents are read in blocks, and those of a corpus without lengths, as they once were, found by bos."""
    monkeypatch.setattr(corpus_module, "_BLOCK", block)
    files = {name: entry for name, entry in prepared.manifest["files"].items() if not name.endswith(".lengths")}
    for split in corpus_module.SPLITS:
        expected = [[1, *prepared.tokenizer.encode(article.text), 2] for article in prepared.articles(split)]
        assert [ids.tolist() for ids in prepared.documents(split)] == expected
        old = Corpus(prepared.folder, {**prepared.manifest, "files": files}, prepared.tokenizer)
        assert [ids.tolist() for ids in old.documents(split)] == expected


@pytest.mark.parametrize("bos", ["<|end|>", "<|start|>"])
def test_bos_may_be_eos_and_stand_in_a_text(tmp_path, bos):
    """GPT-2 has one token for both, and a byte-level tokenizer reads special tokens in a text as such."""
    tokens = [*byte_alphabet(), "<|start|>", "<|end|>"]
    tokenizer = BytePairTokenizer(tokens, [], special_tokens=tokens[256:], bos_token=bos, eos_token="<|end|>")
    texts = ["", "one", "<|end|>", "two<|end|><|end|>", "<|start|>user<|end|><|start|>", "", "", "three"]
    source = [Article(f"{i}", text) for i, text in enumerate(texts)]
    corpus = quick(source, tmp_path / "c", tokenizer=tokenizer, validation=0, test=0)
    expected = [[tokenizer.bos_id, *tokenizer.encode(text), 257] for text in texts]
    assert [ids.tolist() for ids in load_corpus(corpus.folder).documents("train")] == expected
    assert expected[2] == [tokenizer.bos_id, 257, 257]
    assert list(corpus.documents("test")) == []


def test_tokenizer_is_trained_on_train_alone(tmp_path):
    def articles(other):
        for i in range(40):
            title = f"t{i}"
            train = corpus_module._split_of(title, 0.2, 0.2, 0) == "train"
            yield Article(title, "alpha beta gamma" if train else other)

    one = quick(articles("delta"), tmp_path / "1", tokenizer="word", vocabulary_size=6, validation=0.2, test=0.2)
    two = quick(articles("omega"), tmp_path / "2", tokenizer="word", vocabulary_size=6, validation=0.2, test=0.2)
    assert one.tokenizer.fingerprint == two.tokenizer.fingerprint
    assert one.manifest["splits"]["train"]["out_of_vocabulary_rate"] == 0
    assert one.manifest["splits"]["test"]["out_of_vocabulary_rate"] == 1
    assert "out_of_vocabulary_rate" not in quick(articles(""), tmp_path / "3").manifest["splits"]["train"]


def test_same_for_any_number_of_workers_and_every_time(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding_module, "_PIECE", 700)
    for workers in (1, 2):
        out = tmp_path / str(workers)
        quick(make_articles(), out, tokenizer="sentencepiece", vocabulary_size=300, workers=workers)
        assert content(out) == content(prepared.folder)


@pytest.mark.parametrize("piece", [1, 50, 10_000])
def test_every_article_is_encoded_once_whatever_the_pieces(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(encoding_module, "_PIECE", piece)
    texts = ["", "a", "\u2028\n\r\x85", "数" * 30, "b" * 200, ""]
    path, tokenizer, done = tmp_path / "a.jsonl", ByteTokenizer(), []
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), newline="\n")
    tokenizer.save(tmp_path / "t")
    out = tmp_path / "o", tmp_path / "l"
    counts = encoding_module.encode_articles(path, tmp_path / "t", *out, workers=1, progress=done.append)
    expected = [i for text in texts for i in (256, *text.encode(), 257)]
    assert np.fromfile(tmp_path / "o", "<u2").tolist() == expected
    assert np.fromfile(tmp_path / "l", "<u4").tolist() == [len(text.encode()) + 2 for text in texts]
    assert counts == (len(expected), 0)
    assert sum(done) == path.stat().st_size


def test_split_depends_on_title_and_seed_alone():
    splits = [corpus_module._split_of(f"{i}", 0.1, 0.2, 0) for i in range(5000)]
    assert 400 < splits.count("validation") < 600
    assert 850 < splits.count("test") < 1150
    assert splits != [corpus_module._split_of(f"{i}", 0.1, 0.2, 1) for i in range(5000)]
    # Pinned: published splits must stay what they are.
    assert [corpus_module._split_of(t, 0.4, 0.4, 0) for t in ("Anarchism", "数学", "")] == [
        "validation",
        "test",
        "validation",
    ]


def test_given_splits(tmp_path):
    source = {"train": [Article("a", "x y")], "test": [Article("a", "z")]}
    corpus = quick(source, tmp_path / "c")
    assert [article.text for article in corpus.articles("test")] == ["z"]
    assert list(corpus.articles("validation")) == []
    assert list(corpus.documents("validation")) == []
    with pytest.raises(InputError, match="needs 'train'"):
        quick({"test": []}, tmp_path / "d")
    with pytest.raises(InputError, match="'test' would be empty"):
        quick({"train": [Article("a", "x")], "test": []}, tmp_path / "d")


@pytest.mark.parametrize("kind", ["sentencepiece", "sentencepiece-bpe", "word", "whitespace", "byte"])
def test_every_kind_of_tokenizer(tmp_path, kind):
    size = 25 if kind in ("word", "whitespace") else 300
    corpus = quick(make_articles(), tmp_path / "c", tokenizer=kind, vocabulary_size=size)
    assert corpus.tokenizer.vocabulary_size == (258 if kind == "byte" else size)
    assert ("out_of_vocabulary_rate" in corpus.manifest["splits"]["train"]) == (kind in ("word", "whitespace"))
    again = quick(make_articles(), tmp_path / "d", tokenizer=corpus.tokenizer)
    np.testing.assert_array_equal(again.tokens("train"), corpus.tokens("train"))


def test_large_vocabulary_takes_four_bytes(tmp_path):
    tokenizer = WordTokenizer([str(i) for i in range(70_000)], split="whitespace")
    corpus = quick([Article("a", "69999 5")], tmp_path / "c", tokenizer=tokenizer, validation=0, test=0)
    assert corpus.tokens("train").dtype == np.dtype("<u4")
    assert corpus.tokens("train").tolist() == [1, 70_002, 8, 2]


def test_lone_surrogates_do_not_stop_it(tmp_path):
    corpus = quick([Article("a\ud800", "b\udfffc")], tmp_path / "c", validation=0, test=0)
    assert list(corpus.articles("train")) == [Article("a\ufffd", "b\ufffdc")]


def test_bad_arguments(tmp_path):
    for arguments, message in [
        ({"tokenizer": "wordpiece"}, "none of sentencepiece"),
        ({"validation": 0.5, "test": 0.5}, "fractions"),
        ({"validation": -0.1}, "fractions"),
        ({"workers": 0}, "workers: 0 is too few"),
        ({"tokenizer": "sentencepiece", "vocabulary_size": 50_000}, "largest possible is"),
        ({"tokenizer": "word", "vocabulary_size": 50_000}, "different words"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            quick(make_articles(), tmp_path / "c", **arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="'validation' would be empty, for the source has only 3 articles"):
        quick(make_articles(3), tmp_path / "c", validation=0.001, test=0)
    with pytest.raises(InputError, match="'train' would be empty"):
        quick([], tmp_path / "c")
    with pytest.raises(InputError, match="no such file"):
        quick(tmp_path / "absent.jsonl", tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_an_error_and_overwrite_replaces(copy):
    before = content(copy)
    with pytest.raises(InputError, match="exists already"):
        quick(make_articles(), copy)
    assert content(copy) == before
    assert quick(make_articles(), copy, overwrite=True).tokenizer.fingerprint == ByteTokenizer().fingerprint


@pytest.mark.parametrize("place", ["source", "train", "encode", "manifest"])
def test_a_crash_leaves_nothing_or_the_old(copy, monkeypatch, place):
    def crash(*args, **kwargs):
        raise KeyboardInterrupt(place)

    def broken():
        yield from make_articles()
        crash()

    if place == "train":
        monkeypatch.setitem(corpus_module._TRAINERS, "byte", crash)
    if place == "encode":
        monkeypatch.setattr(ByteTokenizer, "encode", crash)
    if place == "manifest":
        monkeypatch.setattr(corpus_module, "write_json", crash)
    before = content(copy)
    for out in (copy, copy.with_name("new")):
        with pytest.raises(KeyboardInterrupt):
            quick(broken() if place == "source" else make_articles(), out, overwrite=True)
    assert content(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def rewrite(path, change):
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json: no such file"),
        (lambda f: (f / "manifest.json").write_text("[]"), "format None"),
        (lambda f: (f / "manifest.json").write_text('{"format": 1}'), "not the manifest"),
        (lambda f: rewrite(f / "manifest.json", lambda m: m.update(format=2)), "format 2 is not 1"),
        (lambda f: rewrite(f / "manifest.json", lambda m: m["splits"]["test"].update(tokens=1)), "contradict"),
        (lambda f: rewrite(f / "manifest.json", lambda m: m["tokenizer"].update(dtype="?!")), "not the manifest"),
        (lambda f: rewrite(f / "manifest.json", lambda m: m["splits"]["test"].update(articles=99)), "contradict"),
        (lambda f: (f / "train.lengths").unlink(), "train.lengths: is missing"),
        (lambda f: (f / "train.tokens").unlink(), "train.tokens: is missing"),
        (lambda f: (f / "train.tokens").write_bytes(b"ab"), "train.tokens: has 2 bytes instead of"),
        (lambda f: (f / "test.jsonl").write_bytes(b""), "test.jsonl: has 0 bytes"),
        (lambda f: (f / "tokenizer" / "tokenizer.json").unlink(), "tokenizer.json: is missing"),
        (
            lambda f: rewrite(f / "manifest.json", lambda m: m["tokenizer"].update(fingerprint="0")),
            "not the tokenizer of these tokens",
        ),
    ],
)
def test_loading_checks(copy, damage, message):
    damage(copy)
    before = content(copy)
    with pytest.raises(InputError, match=message) as caught:
        load_corpus(copy)
    assert "\n" not in str(caught.value)
    assert content(copy) == before


def test_another_tokenizer_of_the_same_size_is_noticed(copy):
    model = copy / "tokenizer" / "tokenizer.model"
    changed = bytearray(model.read_bytes())
    changed[-1] ^= 1
    model.write_bytes(changed)
    with pytest.raises(InputError):
        load_corpus(copy)


def test_verify_reads_every_byte(copy):
    assert load_corpus(copy, verify=True).manifest["format"] == 1
    tokens = bytearray((copy / "train.tokens").read_bytes())
    tokens[100] ^= 1
    (copy / "train.tokens").write_bytes(tokens)
    load_corpus(copy)
    with pytest.raises(InputError, match="train.tokens: its SHA-256"):
        load_corpus(copy, verify=True)


def test_dataset(prepared):
    stream = prepared.tokens("train")
    dataset = prepared.dataset("train", batch_size=4, sequence_length=16)
    seen = np.concatenate([x.numpy().ravel() for x, _ in dataset])
    np.testing.assert_array_equal(seen, stream[: len(seen)])
    assert len(stream) - len(seen) <= 16
    with pytest.raises(InputError, match="split 'test'.*do not fill"):
        prepared.dataset("test", batch_size=4, sequence_length=100_000, seed=0)
    with pytest.raises(InputError, match="'dev' is none of train, validation, test"):
        prepared.dataset("dev", batch_size=4, sequence_length=16)


def test_default_corpus(tmp_path):
    corpus = quick(default_corpus(), tmp_path / "c", tokenizer="sentencepiece-bpe", vocabulary_size=1000)
    assert corpus.manifest["sources"]["all"]["report"]["articles"] == 106
    assert sum(count["articles"] for count in corpus.manifest["splits"].values()) == 106
    for split in corpus_module.SPLITS:
        for article, ids in zip(corpus.articles(split), corpus.documents(split), strict=True):
            assert corpus.tokenizer.decode(ids) == article.text


@pytest.mark.parametrize(
    ("name", "count"), [("bgwiki-latest-pages-articles-shortened", None), ("enwiki-table-markup", 5)]
)
def test_utf16_and_table_dumps(tmp_path, name, count):
    spec = importlib.util.find_spec("gensim")
    path = Path(spec.submodule_search_locations[0]) / "test" / "test_data" / f"{name}.xml.bz2"
    articles = list(read_articles(path, workers=1))
    assert count in (None, len(articles))
    corpus = quick(path, tmp_path / "c", tokenizer="sentencepiece", vocabulary_size=500, validation=0, test=0)
    assert list(corpus.articles("train")) == articles
    assert [corpus.tokenizer.decode(ids) for ids in corpus.documents("train")] == [a.text for a in articles]


@pytest.mark.parametrize("name", ["zhwiki_simplified.jsonl", "zhwiki_traditional.jsonl"])
def test_chinese_comes_back_exactly(tmp_path, name):
    data = os.environ.get("KERASLLM_DATA")
    if not data:
        pytest.skip("KERASLLM_DATA names no folder of data sets")
    path = Path(data) / "wikipedia-zh" / name
    if not path.is_file():
        pytest.skip(f"KERASLLM_DATA has no {path.name}")
    texts = {article.title: article.text for article in read_articles(path, workers=1)}
    corpus = quick(path, tmp_path / "c", tokenizer="sentencepiece-bpe", vocabulary_size=4096, validation=0.1, test=0.1)
    seen = {}
    for split in corpus_module.SPLITS:
        for article, ids in zip(corpus.articles(split), corpus.documents(split), strict=True):
            assert corpus.tokenizer.decode(ids) == article.text
            seen[article.title] = article.text
        counts = corpus.manifest["splits"][split]
        # A character takes less than one token: the vocabulary holds the characters, and words too.
        assert counts["tokens"] < counts["characters"]
    assert seen == texts


def test_what_came_before_the_damage_may_be_kept(tmp_path):
    whole = default_corpus().read_bytes()
    dump = tmp_path / "cut.xml.bz2"
    dump.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="--on-error stop"):
        quick(dump, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    kept = quick(dump, tmp_path / "kept", validation=0.2, test=0.2, on_error="stop")
    report = kept.manifest["sources"]["all"]["report"]
    assert report["stopped"] and 20 < report["articles"] < 106
    assert sum(split["articles"] for split in kept.manifest["splits"].values()) == report["articles"]

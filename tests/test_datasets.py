"""Named data sets: every one that is here loads, says the truth about itself, and keeps its splits apart."""

import collections
import csv
import io
import itertools
import json
import subprocess
import sys
import zipfile
from urllib.parse import urlsplit

import pytest

from kerasllm.data import as_tf_dataset, dataset_articles, dataset_names, dataset_paths, describe, load_dataset
from kerasllm.data.dataset_info import COLUMNS, SPLITS
from kerasllm.data.dataset_registry import evidence, registry
from kerasllm.errors import InputError

# Rows by split where all are at hand; from the papers, less what the origin has in two splits.
COUNTS = {
    "enwiki_sample": {"train": 92, "validation": 6, "test": 8},
    "wikipedia_en": {"train": 3122, "validation": 342, "test": 412},
    "wikipedia_zh_simplified": {"train": 48, "validation": 7, "test": 9},
    "wikipedia_zh_traditional": {"train": 177, "validation": 25, "test": 20},
    "wikipedia_zh_paragraphs": {"train": 1593, "validation": 200, "test": 207},
    "wikitext_2": {"train": 629, "validation": 60, "test": 62},
    "sentence_polarity": {"train": 8528, "validation": 1067, "test": 1067},
    "vader_tweets": {"train": 3360, "validation": 420, "test": 420},
    "chnsenticorp": {"train": 9600 - 691, "validation": 1200 - 39, "test": 1200},
    "ag_news": {"test": 7600},
    "thucnews_titles": {"validation": 10_000 - 9, "test": 10_000},
    "wikigold": {"train": 1304, "validation": 174, "test": 218},
    "wnut_17": {"train": 3394, "validation": 1009, "test": 1287},
    "cluener": {"train": 10_748, "validation": 1343},
    "squad": {"validation": 10_570},
    "squad_dev": {"train": 8227, "validation": 1103, "test": 1240},
    "cmrc_2018": {"validation": 3219},
    "drcd": {"validation": 3524, "test": 3493},
    "tatoeba_en_zh": {"train": 23_322, "validation": 2916, "test": 2917},
    "ntrex_en_zh": {"test": 1997},
    "scitldr": {"train": 1992 - 3, "validation": 619 - 1, "test": 618},
    "csl": {"validation": 1000, "test": 1000},
    "schema_guided": {"train": 5659, "validation": 2098, "test": 2921},
    "kdconv": {"validation": 450, "test": 450},
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASLLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def frames(data_dir):
    """Frames of a data set by split, read once."""
    read = {}

    def get(name):
        if name not in read:
            whole = set(COUNTS[name]) == set(describe(name).splits)
            read[name] = dict(list(load_dataset(name).groupby("split"))) if whole else {}
            read[name] = read[name] or {split: load_dataset(name, split) for split in COUNTS[name]}
        return read[name]

    return get


def test_the_registry_is_well_formed():
    for name, info in registry().items():
        assert name == info.name == name.lower()
        assert info.title and info.licence and info.language and urlsplit(info.homepage).scheme == "https"
        assert info.splits == tuple(split for split in SPLITS if split in info.splits)
        assert set(COLUMNS[info.task]) <= set(info.columns)
        assert not info.group_by or info.group_by in info.columns
        for file in itertools.chain.from_iterable(info.files.values()):
            assert not file.path.startswith(("/", "."))
            assert len(file.sha256) in (0, 64) and len(file.git_blob) in (0, 40)
            if file.origin:
                assert all(urlsplit(url).scheme == "https" for url in file.origin.urls)
                assert file.origin.evidence in ("", *evidence())
                # what was checked has something to compare a download with
                assert not file.origin.evidence or file.sha256 or file.git_blob


def test_every_file_of_the_test_data_is_known(data_dir):
    known = {file.path: file for info in registry().values() for files in info.files.values() for file in files}
    known |= {file.twin.path: file.twin for file in list(known.values()) if file.twin}
    lines = [line.split("\t") for line in (data_dir / "SHA256SUMS.tsv").read_text(encoding="utf-8").splitlines()]
    data = [line for line in lines if not line[2].startswith(("checkpoints/", "tokenizers/"))]
    assert len(data) > 30
    for sha256, size, path in data:
        assert (known[path].sha256, known[path].size) == (sha256, int(size))


def test_names_and_descriptions():
    assert {"enwiki", "zhwiki", "simplewiki"} <= set(dataset_names("articles")) < set(dataset_names())
    assert set(COUNTS) < set(dataset_names())
    assert describe("WikiText-2") is describe("wikitext_2")
    text = str(describe("simplewiki"))
    assert "not checked" in text and "CC BY-SA 4.0" in text and "made here" in text
    assert "negative, positive" in str(describe("chnsenticorp"))
    with pytest.raises(InputError, match="'chnsenticrop' is unknown; did you mean chnsenticorp"):
        describe("chnsenticrop")
    with pytest.raises(InputError, match="choose one of enwiki, "):
        load_dataset("????")
    with pytest.raises(InputError, match="'ner' is unknown; choose one of articles"):
        dataset_names("ner")
    with pytest.raises(InputError, match="cluener has no 'test'; choose one of train, validation"):
        load_dataset("cluener", "test")
    with pytest.raises(InputError, match="limit: 0"):
        load_dataset("cluener", limit=0)


@pytest.mark.parametrize("name", COUNTS)
def test_data_set(frames, name):
    info, parts = describe(name), frames(name)
    assert {split: len(frame) for split, frame in parts.items()} == COUNTS[name]
    for frame in parts.values():
        columns = [column for column in frame.columns if column != "split"]
        assert tuple(columns) == info.columns
        check_columns(info, frame)
    check_apart(info, parts)


def check_columns(info, frame):
    for column in {"text", "source", "target", "summary", "question", "context"} & set(frame.columns):
        assert (frame[column].str.strip() != "").all()
        assert not frame[column].isna().any()
    for column in {"turns", "tokens", "answers", "summaries"} & set(frame.columns):
        assert all(values and all(map(str.strip, values)) for values in frame[column])
    if info.task == "classification":
        assert set(frame["label"]) == set(range(len(info.labels)))
    if info.task == "dialogue":
        assert frame["turns"].map(len).min() >= 2
    if info.task == "tagging":
        for tokens, tags in zip(frame["tokens"], frame["tags"], strict=True):
            assert len(tokens) == len(tags)
            for before, tag in itertools.pairwise(["O", *tags]):
                kind, _, label = tag.partition("-")
                assert tag == "O" or label in info.labels
                assert kind != "I" or before in (f"B-{label}", f"I-{label}")
        assert {tag[2:] for tags in frame["tags"] for tag in tags} == {"", *info.labels}
    if info.task == "question_answering":
        assert frame["id"].is_unique
        for row in frame.itertuples():
            for answer, start in zip(row.answers, row.answer_starts, strict=True):
                assert row.context[start : start + len(answer)] == answer


def check_apart(info, parts):
    """By plain comparison of strings, which the library does not do."""

    def texts(frame, column):
        return {"".join("".join(value).split()) for value in frame[column]}

    columns = {"question_answering": ["context"], "translation": ["source", "target"], "tagging": ["tokens"]}
    for column in columns.get(info.task, ["turns" if info.task == "dialogue" else "text"]):
        for one, other in itertools.combinations([texts(frame, column) for frame in parts.values()], 2):
            assert not one & other


def test_groups_stay_together(frames):
    for name, column in (("squad_dev", "title"), ("wikigold", "document")):
        parts = [set(frame[column]) for frame in frames(name).values()]
        assert sum(map(len, parts)) == len(set.union(*parts)) == {"title": 48, "document": 145}[column]


def test_labels_are_those_of_the_files(frames, data_dir):
    with zipfile.ZipFile(data_dir / "sentiment" / "sentence_polarity.zip") as archive:
        negative = archive.read("sentence_polarity/rt-polarity.neg").decode().split("\n")
    negative = {line.strip() for line in negative}
    for frame in frames("sentence_polarity").values():
        assert [label == 0 for label in frame["label"]] == [text in negative for text in frame["text"]]
    for frame in frames("vader_tweets").values():
        assert all(frame["label"] == (frame["rating"] > 0.5) * 1 + (frame["rating"] >= -0.5) * 1)
    rows = csv.reader(io.StringIO((data_dir / "sentiment" / "ag_news.test.csv").read_text(encoding="utf-8")))
    assert [int(row[0]) - 1 for row in rows] == list(frames("ag_news")["test"]["label"])
    example = frames("ag_news")["test"].iloc[0]
    assert "Turner   Newall" in example["text"] and describe("ag_news").labels[example["label"]] == "business"


def test_entities_are_those_of_the_files(frames, data_dir):
    lines = (data_dir / "ner" / "cluener.dev.jsonl").read_text(encoding="utf-8").splitlines()
    for line, row in zip(lines, frames("cluener")["validation"].itertuples(), strict=True):
        found = collections.defaultdict(set)
        for i, tag in enumerate(row.tags):
            if tag.startswith("B-"):
                end = next((j for j in range(i + 1, len(row.tags)) if row.tags[j][0] != "I"), len(row.tags))
                found[tag[2:]].add("".join(row.tokens[i:end]))
        assert found == {kind: set(names) for kind, names in json.loads(line)["label"].items()}
    entities = [tag for frame in frames("wikigold").values() for tags in frame["tags"] for tag in tags if tag[0] == "B"]
    text = (data_dir / "ner" / "wikigold.conll.txt").read_text(encoding="utf-8").splitlines()
    tags = [(line.split() or [""])[-1] for line in text]
    assert len(entities) == sum(tag[:1] == "I" and tag != before for before, tag in itertools.pairwise(["", *tags]))


def test_answers_that_are_out_of_place(frames, data_dir):
    data = json.loads((data_dir / "qa" / "cmrc2018_dev.json").read_text(encoding="utf-8"))["data"]
    questions = [(p["context"], q) for article in data for p in article["paragraphs"] for q in p["qas"]]
    answers = sum(len(question["answers"]) for _, question in questions)
    kept = sum(map(len, frames("cmrc_2018")["validation"]["answers"]))
    assert (answers, answers - kept) == (9657, 193)


def test_wikitext_is_complete(frames, data_dir):
    """Nothing of a file is lost but titles and the blanks around articles: 2,088,628 tokens with the ends of lines."""
    lines = (data_dir / "wikitext-2" / "train.txt").read_text(encoding="utf-8").split("\n")
    assert sum(len(line.split()) + 1 for line in lines[:-1]) == 2_088_628
    words = sum(len(text.split()) for text in frames("wikitext_2")["train"]["text"])
    titles = sum(len(title.split()) + 2 for title in frames("wikitext_2")["train"]["title"])
    assert words + titles == sum(len(line.split()) for line in lines)


def test_a_split_alone_is_the_same(data_dir, frames):
    for name in ("chnsenticorp", "tatoeba_en_zh", "wikipedia_zh_simplified"):
        for split in describe(name).splits:
            alone = load_dataset(name, split)
            together = frames(name)[split].drop(columns="split").reset_index(drop=True)
            assert alone.equals(together)


def test_limit(data_dir):
    assert len(load_dataset("wikipedia_en", "train", limit=3)) == 3
    assert len(load_dataset("wikitext_2", limit=2)) == 6
    frame = load_dataset("thucnews_titles", "test", limit=500)  # whose file is sorted by class
    assert frame["label"].value_counts().min() > 20
    assert load_dataset("thucnews_titles", "test", limit=500).equals(frame)
    assert len(load_dataset("wikigold", "test", limit=10**9)) == COUNTS["wikigold"]["test"]


def test_articles_one_by_one(frames, data_dir):
    stream = dataset_articles("wikipedia_zh_traditional", "validation")
    assert [article.text for article in stream] == list(frames("wikipedia_zh_traditional")["validation"]["text"])
    assert len(list(dataset_articles("wikipedia_zh_paragraphs"))) == 2000
    assert len(list(dataset_articles("wikitext_2", "test"))) == 62
    with pytest.raises(InputError, match="squad_dev: holds no articles"):
        dataset_articles("squad_dev")


def test_the_sample_needs_no_data(monkeypatch):
    monkeypatch.delenv("KERASLLM_DATA", raising=False)
    assert len(list(dataset_articles("enwiki_sample", workers=1))) == 106
    (path,) = dataset_paths("enwiki_sample")
    assert path.is_file()


def test_articles_that_do_not_fit(monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("", (), {"available": 10**6}))
    with pytest.raises(
        InputError, match=r"enwiki_sample: takes some 0\.0 GB .* give a limit, or read dataset_articles"
    ):
        load_dataset("enwiki_sample")
    assert len(load_dataset("enwiki_sample", "train", limit=2)) == 2


@pytest.mark.parametrize("name", ["sentence_polarity", "wikigold", "squad_dev", "ntrex_en_zh", "kdconv"])
def test_tf_dataset(frames, name):
    frame = frames(name)["test"].head(50).reset_index(drop=True)
    rows = list(as_tf_dataset(frame))
    batches = list(as_tf_dataset(frame, batch_size=16))
    assert len(rows) == 50 and len(batches) == 4
    for column in frame.columns:
        expected = frame[column].tolist()
        assert [plain(row[column]) for row in rows] == expected
        joined = [value for batch in batches for value in plain_batch(batch[column])]
        assert joined == expected


def plain(tensor):
    value = tensor.numpy()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [item.decode() if isinstance(item, bytes) else item for item in value]
    return value.decode() if isinstance(value, bytes) else value


def plain_batch(tensor):
    return [plain(row) for row in tensor]


def test_tf_dataset_for_fit(frames):
    frame = frames("chnsenticorp")["test"]
    dataset = as_tf_dataset(frame, "text", "label", batch_size=100, seed=3)
    epochs = [[(plain(t), int(y)) for x, ys in dataset for t, y in zip(x, ys, strict=True)] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(zip(frame["text"], frame["label"], strict=True))
    assert epochs[0] != epochs[1]
    assert {y for _, y in epochs[0]} == {0, 1}
    assert [plain(text) for text in as_tf_dataset(frame, "text").take(2)] == list(frame["text"][:2])
    for arguments, words in (
        ({"targets": "label"}, "inputs: is missing"),
        ({"inputs": "txt"}, "no column 'txt'; choose one of"),
    ):
        with pytest.raises(InputError, match=words):
            as_tf_dataset(frame, **arguments)
    with pytest.raises(InputError, match="no row"):
        as_tf_dataset(frame.head(0))


def test_frames_need_no_tensorflow():
    code = (
        "import sys; from kerasllm.data import load_dataset; assert len(load_dataset('enwiki_sample', limit=1)) == 3; "
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

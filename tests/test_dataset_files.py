"""Where the files of data sets are found, what is made of archives and parts, how rows are split, and bad files."""

import bz2
import hashlib
import io
import json
import random
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from local_server import Server

from kerasllm.data import dataset_articles, dataset_paths, dataset_registry, default_corpus, load_dataset
from kerasllm.data.dataset_files import cache_folder
from kerasllm.data.dataset_info import DataFile, DatasetInfo, Origin
from kerasllm.data.dataset_readers import READERS
from kerasllm.data.dataset_table import update
from kerasllm.errors import InputError

ROWS = b"".join(b"text %d\t%d\n" % (i, i % 2) for i in range(50))
SHA = hashlib.sha256(ROWS).hexdigest()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """An empty folder of data and an empty cache."""
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("KERASLLM_DATA", str(data))
    monkeypatch.setenv("KERASLLM_CACHE", str(tmp_path / "cache"))
    return data, tmp_path / "cache" / "datasets"


@pytest.fixture
def register(monkeypatch):
    """Makes one data set the only one; `files` are those of all splits, or a mapping."""

    def use(*files, reader="text_label", task="classification", labels=("no", "yes"), **more):
        mapping = files[0] if isinstance(files[0], dict) else {"all": files}
        info = DatasetInfo("mine", "Mine", task, "en", "CC0-1.0", "https://e.org", mapping, reader, labels, **more)
        monkeypatch.setattr(dataset_registry, "registry", lambda: {"mine": info})
        return info

    return use


def origin(server, name="a.tsv", content=ROWS, **more):
    server.files[name] = content
    return Origin((server.url(name),), **more)


def fails(words, call, *arguments, **more):
    with pytest.raises(InputError, match=words) as caught:
        call(*arguments, **more)
    assert "\n" not in str(caught.value)


def test_data_folder_before_cache_before_origin(server, folders, register):
    data, cache = folders
    register(DataFile("sub/a.tsv", SHA, len(ROWS), origin=origin(server)))
    assert dataset_paths("mine") == [cache / "sub" / "a.tsv"]
    assert len(server.requests) == 1
    assert len(load_dataset("mine")) == 50
    assert len(server.requests) == 1  # in the cache now
    (data / "a.tsv").write_bytes(ROWS)
    assert dataset_paths("mine") == [data / "a.tsv"]
    (data / "sub").mkdir()
    (data / "sub" / "a.tsv").write_bytes(ROWS)
    assert dataset_paths("mine") == [data / "sub" / "a.tsv"]
    (data / "sub" / "a.tsv").unlink()
    (data / "a.tsv").write_bytes(b"somebody's other file of that name")
    assert dataset_paths("mine") == [cache / "sub" / "a.tsv"]
    assert len(server.requests) == 1


def test_broken_files(server, folders, register):
    data, cache = folders
    register(DataFile("a.tsv", SHA, len(ROWS), origin=origin(server)))
    (path,) = dataset_paths("mine")
    path.write_bytes(ROWS[:-1])
    assert dataset_paths("mine") == [path]  # downloaded anew
    assert path.read_bytes() == ROWS
    (data / "a.tsv").write_bytes(ROWS[:-1])
    fails(f"SHA-256 is .*, expected {SHA}; .*KERASLLM_DATA", load_dataset, "mine")
    assert (data / "a.tsv").exists()  # the user's, not ours
    (data / "a.tsv").unlink()
    path.unlink()
    server.files["a.tsv"] = ROWS.replace(b"text", b"TEXT")
    fails(f"expected {SHA}; it was removed", load_dataset, "mine")
    assert not any(item.is_file() for item in cache.rglob("*"))


def test_git_checksum(server, folders, register):
    blob = hashlib.sha1(b"blob %d\0" % len(ROWS) + ROWS).hexdigest()
    register(DataFile("a.tsv", git_blob=blob, origin=origin(server)))
    assert len(load_dataset("mine")) == 50
    register(DataFile("a.tsv", git_blob="0" * 40, origin=origin(server)))
    fails("git SHA-1 is .*, expected 0", load_dataset, "mine")


def test_folders(tmp_path, folders, register, monkeypatch):
    register(DataFile("a.tsv"))
    fails("mine: a.tsv is not in the folder .* published nowhere", load_dataset, "mine")
    monkeypatch.setenv("KERASLLM_DATA", str(tmp_path / "nowhere"))
    fails("KERASLLM_DATA: .*nowhere is no folder", load_dataset, "mine")
    monkeypatch.delenv("KERASLLM_DATA")
    fails("published nowhere", load_dataset, "mine")
    assert cache_folder() == tmp_path / "cache" / "datasets"
    monkeypatch.delenv("KERASLLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert "kerasllm" in cache_folder().parts and cache_folder().name == "datasets"


def packed(kind, members):
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives(server, folders, register, kind):
    data, cache = folders
    content = packed(kind, {"../../evil": b"x", "in/a.tsv": ROWS, "in/b.tsv": ROWS.upper()})
    place = origin(server, f"some/all.{kind}", content, member="in/a.tsv")
    register(DataFile("a.tsv", SHA, origin=place), DataFile("b.tsv", origin=Origin(place.urls, member="in/b.tsv")))
    assert len(load_dataset("mine")) == 100
    assert (cache / "a.tsv").read_bytes() == ROWS
    assert len(server.requests) == 1  # one archive for both
    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == ["a.tsv", f"all.{kind}", "b.tsv"]
    assert not list(data.parent.rglob("evil"))
    for path in cache.rglob("*.tsv"):
        path.unlink()
    register(DataFile("c.tsv", origin=Origin(place.urls, member="in/c.tsv")))
    fails("holds no in/c.tsv", load_dataset, "mine")
    register(DataFile("a.tsv", "0" * 64, origin=place))
    fails("in/a.tsv made of it is not the expected file: SHA-256 is .*, expected 0", load_dataset, "mine")
    assert not any(path.is_file() for path in cache.rglob("*"))
    server.files[f"some/all.{kind}"] = content[: len(content) // 2]
    fails("is no archive, or a damaged one", load_dataset, "mine")
    assert not any(path.is_file() for path in cache.rglob("*"))


def test_parts_are_joined(server, folders, register):
    _, cache = folders
    for i in range(3):
        turns = [{"utterance": f"Hello  {i}"}, {"utterance": "line\nbreak"}]
        server.files[f"{i}/d.json"] = json.dumps([{"turns": turns}]).encode()
    place = Origin(tuple(server.url(f"{i}/d.json") for i in range(3)), build="dialogues")
    register({"train": (DataFile("d.txt", origin=place),)}, reader="turns", task="dialogue", labels=())
    assert load_dataset("mine", "train")["turns"].tolist() == [[f"Hello {i}", "line break"] for i in range(3)]
    (cache / "d.txt").unlink()
    server.files["0/d.json"] = b'[{"turns": 3}]'
    next((cache / "origins").rglob("0/d.json")).unlink()
    fails("is not in Schema-Guided's format", load_dataset, "mine")
    assert not (cache / "d.txt").exists()


def test_shards_and_twins(folders, register):
    data, _ = folders
    halves = ROWS[:210], ROWS[210:]
    assert halves[0].endswith(b"\n")
    for i, half in enumerate(halves):
        (data / f"part_{i}.tsv").write_bytes(half)
    register(DataFile("x/part_*.tsv", SHA))
    assert len(load_dataset("mine")) == 50
    (data / "x").mkdir()
    (data / "x" / "part_0.tsv").write_bytes(halves[0])  # under the very path it must be whole
    fails("SHA-256", load_dataset, "mine")
    question = {"id": "1", "question": "Who?", "answers": [{"text": "me", "answer_start": 0}]}
    squad = {"data": [{"title": "t", "paragraphs": [{"context": "me and you", "qas": [question]}]}]}
    content = packed("zip", {"dev.json": json.dumps(squad).encode()})
    (data / "dev.json.zip").write_bytes(content)
    twin = DataFile("dev.json.zip", hashlib.sha256(content).hexdigest())
    register({"test": (DataFile("dev.json", "0" * 64, twin=twin),)}, reader="squad", task="question_answering")
    assert load_dataset("mine", "test").iloc[0].to_dict() == {
        **{"id": "1", "title": "t", "context": "me and you", "question": "Who?"},
        **{"answers": ["me"], "answer_starts": [0]},
    }


def test_a_dump_from_its_origin(server, folders, register, monkeypatch):
    """What `load_dataset("simplewiki")` does, with the dump of the gensim package in place of the real one."""
    info = dataset_registry.describe("simplewiki")
    (file,) = info.files["all"]
    assert urls_of(file) == ("https://dumps.wikimedia.org/simplewiki/latest/simplewiki-latest-pages-articles.xml.bz2",)
    place = origin(server, "dump.xml.bz2", default_corpus().read_bytes())
    server.cuts = [500_000]
    register(DataFile(file.path, origin=place), reader=info.reader, task=info.task, labels=())
    assert len(list(dataset_articles("mine", workers=1))) == 106
    assert server.requests[1][1:] == (f"bytes={500_000 // 16384 * 16384}-", '"1"')
    frame = load_dataset("mine", "test")
    assert frame["text"].tolist() == [article.text for article in dataset_articles("mine", "test", workers=1)]
    assert len(server.requests) == 2


def urls_of(file):
    return file.origin.urls


def test_splits_that_are_made_here(folders, register):
    """A tenth each; the same texts together, whatever their order and spaces; nothing lost."""
    data, _ = folders
    draw = random.Random(0)
    texts = [f"text {i}" for i in range(1000)] + [f"text  {i} " for i in range(300)] * 2
    lines = [f"{text}\t{i % 2}" for i, text in enumerate(texts)]

    def split(lines):
        (data / "a.tsv").write_text("\n".join(lines), encoding="utf-8")
        frame = load_dataset("mine")
        return {key: sorted(part["text"]) for key, part in frame.groupby("split")}

    register(DataFile("a.tsv"))
    parts = split(lines)
    assert sorted(sum(parts.values(), [])) == sorted(text.strip() for text in texts)
    plain = [{text.replace(" ", "") for text in part} for part in parts.values()]
    assert sum(map(len, plain)) == len(set.union(*plain)) == 1000
    assert all(160 <= len(parts[key]) <= 163 for key in ("validation", "test"))
    draw.shuffle(lines)
    assert split(lines) == parts


def test_what_is_tied_together_stays_together(folders, register):
    """a-1, b-1, b-2 ... are one chain; no part of it may be on another side."""
    data, _ = folders
    chains = [f"en{c}.{(i + 1) // 2}\tzh{c}.{i // 2}\tme" for c in range(100) for i in range(6)]
    random.Random(1).shuffle(chains)
    (data / "a.tsv").write_text("\n".join(chains), encoding="utf-8")
    register(DataFile("a.tsv"), reader="attributed_pairs", task="translation", more_columns=("attribution",))
    frame = load_dataset("mine")
    frame["chain"] = frame["source"].str.extract(r"en(\d+)\.")
    assert frame.groupby("chain")["split"].nunique().max() == 1
    assert frame["split"].value_counts().to_dict() == {"train": 480, "validation": 60, "test": 60}


def test_texts_in_two_splits_of_the_origin(folders, register):
    data, _ = folders
    for name, texts in (("train", "abcde"), ("validation", "defg"), ("test", "gha")):
        (data / f"{name}.tsv").write_text("".join(f"{text} {text}\t0\n" for text in texts), encoding="utf-8")
    register({name: (DataFile(f"{name}.tsv"),) for name in ("train", "validation", "test")})
    found = {name: "".join(load_dataset("mine", name)["text"].str[0]) for name in ("train", "validation", "test")}
    assert found == {"train": "bc", "validation": "def", "test": "gha"}
    assert "".join(load_dataset("mine")["text"].str[0]) == "bcdefgha"


BAD = {
    "text_label": [b"no tab\n", b"a\tb\tc\n", b"text\t2\n", b"text\tx\n", b"\xff\t0\n"],
    "label_text": [b"label\ttext\nx\ttext\n", b"label\ttext\n1 text\n"],
    "title_text": [b"only a title\n"],
    "ag_news": [b'"1","a"\n', b'"5","a","b"\n', b'"0","a","b"\n', b'"1","a","b\n', b'"x","a","b"\n'],
    "conll": [b"token\n", b"token X-LOC\n", b"a b c\n", b"token\tB-no-type\n"],
    "spans": [
        b"{\n",
        b"[]\n",
        b'{"text": "ab"}\n',
        b'{"text": "ab", "label": {"LOC": {"ab": [[0, 2]]}}}\n',
        b'{"text": "ab", "label": {"LOC": {"ab": [[1, 0]]}}}\n',
        b'{"text": "ab", "label": {"other": {"ab": [[0, 1]]}}}\n',
        b'{"text": "ab", "label": {"LOC": {"ab": [["0", 1]]}}}\n',
    ],
    "squad": [b"", b"[]", b"{}", b'{"data": [{"title": 1}]}', b'{"data": 3}', b"\xff", b"[" * 10**5],
    "attributed_pairs": [b"a\tb\n"],
    "scitldr": [b'{"source": ["a"]}\n', b'{"source": ["a"], "target": [], "title": ""}\n', b"3\n"],
    "csl": [b"a\tb\n"],
    "turns": [b"a\t\tb\n", b"\n"],
    "kdconv": [b"3", b"[3]", b'[{"messages": [{}]}]'],
    "tweets": [
        b"not a tar",
        packed("tar.gz", {"other": b""}),
        packed("tar.gz", {"hutto_ICWSM_2014/tweets_GroundTruth.txt": b"1\tx\ta"}),
    ],
    "polarity": [b"not a zip", packed("zip", {"other": b""}), packed("zip", {"s/rt-polarity.neg": b"\xff"})],
    "articles": [b"", b"\x00\x01", bz2.compress(b"text " * 100)[:-10], b"<mediawiki><page>"],
}


@pytest.mark.parametrize(
    ("reader", "content"),
    # names of their own: archives hold the time, and every process must find the same tests
    [pytest.param(reader, bad, id=f"{reader}-{i}") for reader in BAD for i, bad in enumerate(BAD[reader])],
)
def test_files_of_another_form(tmp_path, reader, content):
    path = tmp_path / {"polarity": "a.zip", "tweets": "a.tar.gz"}.get(reader, "a.txt")
    path.write_bytes(content)
    fails(re.escape(str(path)), list, READERS[reader]([path], ("LOC", "PER")))


def test_every_reader_meets_bad_files():
    assert set(BAD) | {"parallel"} == set(READERS)


def test_parallel_files_of_different_length(tmp_path):
    (tmp_path / "a").write_text("1\n2\n", encoding="utf-8")
    (tmp_path / "b").write_text("1\n", encoding="utf-8")
    fails("has 2 lines, but .*b 1", list, READERS["parallel"]([tmp_path / "a", tmp_path / "b"], ()))


def test_tags_become_bio(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text(
        "-DOCSTART- O\n\na I-LOC\nb I-LOC\nc I-PER\nd O\ne B-PER,I-LOC\nf I-PER\n\n\ng I-PER\n", encoding="utf-8"
    )
    rows = list(READERS["conll"]([path], ("LOC", "PER")))
    assert [row["tags"] for row in rows] == [["B-LOC", "I-LOC", "B-PER", "O", "B-PER", "I-PER"], ["B-PER"]]
    assert [row["tokens"] for row in rows] == [list("abcdef"), ["g"]]
    assert [row["document"] for row in rows] == [1, 1]


def test_overlapping_spans(tmp_path):
    path = tmp_path / "a.jsonl"
    spans = {"LOC": {"bcd": [[1, 3]], "b": [[1, 1]]}, "PER": {"de": [[3, 4]], "e": [[4, 4]]}}
    path.write_text(json.dumps({"text": "abcde", "label": spans}), encoding="utf-8")
    (row,) = READERS["spans"]([path], ("LOC", "PER"))
    assert row["tags"] == ["O", "B-LOC", "I-LOC", "I-LOC", "B-PER"]


PAGE = Path(__file__).parent.parent / "docs" / "datasets.md"


def test_the_code_of_the_page(data_dir, tmp_path, monkeypatch):
    """As it stands, but for the dump, which is the one in the gensim package."""
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(
        "\n".join(code).replace("simplewiki", "enwiki_sample").replace('"corpus")', '"corpus", progress=False)'), names
    )
    assert len(names["everything"]) == len(names["train"]) + 1161 + 1200
    texts, labels = next(iter(names["batches"]))
    assert texts.shape == labels.shape == (32,)
    assert names["article"].text
    assert (tmp_path / "corpus" / "manifest.json").is_file()


def test_the_page_is_current():
    page = PAGE.read_text(encoding="utf-8")
    assert update(page) == page, "python -m kerasllm.data.dataset_table docs/datasets.md"
    assert all(f"`{name}`" in page for name in dataset_registry.registry())
    fails("lacks the line", update, "no table")

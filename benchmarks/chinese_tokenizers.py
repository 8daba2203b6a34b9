"""Five vocabularies of Chinese on the same articles: bytes, characters, words of jieba, SentencePiece unigram and BPE.

    KERASLLM_DATA=... python benchmarks/chinese_tokenizers.py

writes benchmarks/results/chinese_tokenizers.json and the tables of docs/chinese.md and docs/chinese.zh-CN.md, in an
estimated ten minutes on two idle CPU cores; `--passes 0` leaves the LSTM out and takes a minute. `--table` writes the
tables alone, from the results that are there.

The articles are those of wikipedia-zh, simplified and mixed, all converted to simplified characters and split by title:
every vocabulary is trained on the same training articles and every model tested on the same test articles. The budget
is the text: an interpolated 5-gram model counts the training articles once; an LSTM, the same but for its embedding
table (which is also its projection), reads them the same number of times in windows of the same number of tokens, and
the weights of the pass with the best validation loss are scored. Where a vocabulary makes more tokens of a text, that
is more updates and more time.

A vocabulary with `<unk>` has no bits per byte: a model that predicts `<unk>` has not said which word it was. Its
perplexity is that of a word of its own kind, `<unk>` among them, and compares with nothing here.
"""

import argparse
import datetime
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras

import kerasllm
from kerasllm.data import Article, Corpus, prepare, read_articles
from kerasllm.evaluation import KerasModel, NGramModel, compression_bits_per_byte, evaluate
from kerasllm.files import atomic_file, read_json, write_json
from kerasllm.models import LSTMLanguageModel
from kerasllm.quickstart import commit, device
from kerasllm.text import JiebaTokenizer, Tokenizer

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "chinese_tokenizers.json"
KINDS = ("byte", "character", "jieba", "sentencepiece", "sentencepiece-bpe")
FILES = ("zhwiki_simplified.jsonl", "zhwiki_traditional.jsonl")
ORDER = 5
BATCH, LENGTH, WIDTH, DTYPE = 16, 128, 256, "mixed_bfloat16"
BLOCK = re.compile(r"<!-- results -->.*<!-- /results -->", re.DOTALL)
PAGES = {
    "chinese.md": {
        "head": "| tokenizer | ids | tokens per character | out of vocabulary | 5-gram: bits per byte "
        "| 5-gram: bits per character | 5-gram: token perplexity |",
        "lstm head": " LSTM: bits per byte | LSTM: bits per character | LSTM: token perplexity "
        "| parameters | updates |",
        "none": "none",
        "note": "Test: {articles} articles, {characters:,} characters, {bytes:,} bytes; training: {train:,} "
        "characters. {lstm}For scale: "
        "`xz -9e` primed with the training articles needs {xz:.3f} bits per byte. Lower is better. Measured with "
        "`{command}` ({device}, commit {commit}).",
        "lstm": "Each LSTM read the training articles {passes} times; context {context} tokens, stride {stride}. ",
        "oov": "Words that the vocabulary of `jieba` lacks, on the test articles: {rates}.",
        "rate": "{rate:.1%} with {size:,} ids",
        "separator": ", ",
    },
    "chinese.zh-CN.md": {
        "head": "| 分词器 | 词表大小 | 每字符词元数 | 未登录词比例 | 5-gram：每字节比特数 "
        "| 5-gram：每字符比特数 | 5-gram：词元困惑度 |",
        "lstm head": " LSTM：每字节比特数 | LSTM：每字符比特数 | LSTM：词元困惑度 | 参数量 | 更新次数 |",
        "none": "无",
        "note": "测试集：{articles} 篇文章，{characters:,} 个字符，{bytes:,} 字节；训练集：{train:,} 个字符。"
        "{lstm}作为参照，"
        "以训练文章预热的 `xz -9e` 需要每字节 {xz:.3f} 比特。越低越好。"
        "由 `{command}` 测得（{device}，提交 {commit}）。",
        "lstm": "每个 LSTM 把训练文章读了 {passes} 遍；上下文 {context} 个词元，步幅 {stride}。",
        "oov": "测试文章中 `jieba` 词表未收录的词所占比例：{rates}。",
        "rate": "词表 {size:,} 时为 {rate:.1%}",
        "separator": "，",
    },
}


def chinese_articles(folder: Path) -> Iterator[Article]:
    """The articles of both files, each title once."""
    seen = set()
    for name in FILES:
        for article in read_articles(folder / name):
            if article.title not in seen:
                seen.add(article.title)
                yield article


def train(corpus: Corpus, passes: int) -> tuple[LSTMLanguageModel, dict[str, Any]]:
    """The LSTM of this comparison, with the weights of its best pass, and how it was trained."""
    keras.utils.set_random_seed(0)
    config = kerasllm.LSTMConfig(
        vocabulary_size=corpus.tokenizer.vocabulary_size,
        embedding_dim=WIDTH,
        hidden_dim=WIDTH,
        tie_embeddings=True,
        dropout=0.1,
    )
    model = LSTMLanguageModel(config, dtype=DTYPE)
    model.build()
    windows = {"batch_size": BATCH, "sequence_length": LENGTH}
    dataset = corpus.dataset("train", **windows, seed=0)
    updates = passes * len(dataset)
    warm_up = updates // 20
    rate = keras.optimizers.schedules.CosineDecay(0.0, updates - warm_up, warmup_target=3e-3, warmup_steps=warm_up)
    model.compile(optimizer=keras.optimizers.AdamW(rate, global_clipnorm=1.0))
    best = keras.callbacks.EarlyStopping("val_loss", mode="min", patience=passes, restore_best_weights=True)
    start = time.perf_counter()
    history = model.fit(
        dataset, epochs=passes, validation_data=corpus.dataset("validation", **windows), callbacks=[best], verbose=2
    )
    validation = history.history["val_loss"]
    return model, {
        "parameters": model.count_params(),
        "updates": updates,
        "training_tokens": updates * BATCH * LENGTH,
        "training_seconds": round(time.perf_counter() - start, 1),
        "validation_loss_by_pass": [round(loss, 4) for loss in validation],
        "best_pass": 1 + min(range(len(validation)), key=validation.__getitem__),
    }


def ngram(corpus: Corpus) -> dict[str, Any]:
    """Scores of an interpolated 5-gram model."""
    tokenizer, counts = corpus.tokenizer, corpus.manifest["splits"]["test"]
    model = NGramModel(ORDER, vocabulary_size=tokenizer.vocabulary_size).fit(corpus.documents("train"))
    nll = -sum(float(model.log_probs(document).sum()) for document in corpus.documents("test"))
    bits = nll / math.log(2)
    return {
        "order": ORDER,
        "bits_per_byte": bits / counts["bytes"] if tokenizer.lossless else None,
        "bits_per_character": bits / counts["characters"] if tokenizer.lossless else None,
        "token_perplexity": math.exp(nll / (counts["tokens"] - counts["articles"])),
    }


def measure(corpus: Corpus, passes: int) -> dict[str, Any]:
    """Train and score the models of one vocabulary."""
    tokenizer, counts = corpus.tokenizer, corpus.manifest["splits"]["test"]
    texts = [article.text for article in corpus.articles("test")]
    per_character = counts["bytes"] / counts["characters"]
    result = {
        "class": type(tokenizer).__name__,
        "vocabulary_size": tokenizer.vocabulary_size,
        "lossless": tokenizer.lossless,
        "out_of_vocabulary_rate": counts.get("out_of_vocabulary_rate"),
        "tokens_per_character": (counts["tokens"] - 2 * counts["articles"]) / counts["characters"],
        "test_bytes": counts["bytes"],
        "ngram": ngram(corpus),
        "lstm": None,
    }
    if passes:
        model, training = train(corpus, passes)
        runner = KerasModel(model, tokenizer)
        scores, _ = evaluate(runner, corpus.documents("test"), texts, lossless=tokenizer.lossless)
        bits = scores.bits_per_byte
        per = {"bits_per_byte": bits, "bits_per_character": None if bits is None else bits * per_character}
        read = {name: getattr(scores, name) for name in ("tokens", "context", "stride", "token_perplexity")}
        result["lstm"] = {**per, **read, **training}
    return result


def unknown_rates(corpus: Corpus, sizes: tuple[int, ...] = (4096, 8192, 16384)) -> dict[str, float]:
    """What larger vocabularies of jieba would lack on the test articles, by size."""
    train, test = ([article.text for article in corpus.articles(split)] for split in ("train", "test"))
    return {str(size): JiebaTokenizer.train(train, size).out_of_vocabulary_rate(test) for size in sizes}


def run(folder: Path, work: Path, passes: int, size: int) -> dict[str, Any]:
    """Prepare, train and score every vocabulary."""
    measured, rates, corpus = {}, {}, None
    for kind in KINDS:
        options: dict[str, Any] = {"tokenizer": kind, "vocabulary_size": size, "script": "simplified"}
        corpus = prepare(chinese_articles(folder), work / kind, validation=0.05, test=0.1, **options)
        print(f"\n{kind}: {summary_of(corpus.tokenizer)}", flush=True)
        measured[kind] = measure(corpus, passes)
        print(json.dumps(measured[kind], indent=1), flush=True)
        if kind == "jieba":
            rates = unknown_rates(corpus)
    assert corpus is not None
    train_texts, test_texts = ([article.text for article in corpus.articles(s)] for s in ("train", "test"))
    splits = {
        split: {key: counts[key] for key in ("articles", "bytes", "characters")}
        for split, counts in corpus.manifest["splits"].items()
    }
    return {
        "corpus": {"files": list(FILES), "script": "simplified", "splits": splits},
        "model": {
            "class": "LSTMLanguageModel",
            "width": WIDTH,
            "dtype": DTYPE,
            "batch_size": BATCH,
            "sequence_length": LENGTH,
        },
        "passes": passes,
        "why_no_bits_per_byte": "a tokenizer with <unk> loses text: predicting <unk> does not say which word it was",
        "baselines_bits_per_byte": compression_bits_per_byte(test_texts, train_texts),
        "out_of_vocabulary_rate_of_jieba_by_vocabulary_size": rates,
        "tokenizers": measured,
    }


def summary_of(tokenizer: Tokenizer) -> str:
    return f"{type(tokenizer).__name__}, {tokenizer.vocabulary_size:,} ids, lossless {tokenizer.lossless}"


def table(results: dict[str, Any], words: dict[str, str]) -> str:
    """The block of one page."""
    entries = results["tokenizers"]
    lstm = entries["byte"]["lstm"]
    head = words["head"] + (words["lstm head"] if lstm else "")
    lines = [head, "|---|" + "---:|" * (head.count("|") - 2)]

    def figure(value: float | None, form: str) -> str:
        return words["none"] if value is None else format(value, form)

    for kind, entry in entries.items():
        cells = [
            figure(entry["vocabulary_size"], ","),
            figure(entry["tokens_per_character"], ".3f"),
            figure(entry["out_of_vocabulary_rate"], ".1%"),
            *(figure(entry["ngram"][key], ".3f") for key in ("bits_per_byte", "bits_per_character")),
            figure(entry["ngram"]["token_perplexity"], ",.1f"),
        ]
        if lstm:
            cells += [figure(entry["lstm"][key], ".3f") for key in ("bits_per_byte", "bits_per_character")]
            cells += [figure(entry["lstm"]["token_perplexity"], ",.1f")]
            cells += [figure(entry["lstm"][key], ",") for key in ("parameters", "updates")]
        lines.append(f"| `{kind}` | " + " | ".join(cells) + " |")
    rates = results["out_of_vocabulary_rate_of_jieba_by_vocabulary_size"]
    note = words["note"].format(
        **results["corpus"]["splits"]["test"],
        train=results["corpus"]["splits"]["train"]["characters"],
        lstm=words["lstm"].format(passes=results["passes"], **lstm) if lstm else "",
        xz=results["baselines_bits_per_byte"]["xz -9e primed"],
        **{key: results[key] for key in ("command", "device", "commit")},
    )
    said = words["separator"].join(words["rate"].format(size=int(size), rate=rate) for size, rate in rates.items())
    return "\n".join(["<!-- results -->", *lines, "", note, words["oov"].format(rates=said), "<!-- /results -->"])


def main() -> None:
    """Measure and write results and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=3, help="times that each LSTM reads its text; 0: no LSTM")
    parser.add_argument("--vocabulary-size", type=int, default=4096, help="ids of all but bytes")
    parser.add_argument("--table", action="store_true", help="only write the tables of the pages")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not arguments.table:
        head = commit()  # before the minutes in which it may change
        folder = Path(os.environ.get("KERASLLM_DATA", ".")) / "wikipedia-zh"
        with tempfile.TemporaryDirectory() as work:
            measured = run(folder, Path(work), arguments.passes, arguments.vocabulary_size)
        packages = {name: version(name) for name in ("tensorflow", "keras", "sentencepiece", "jieba", "opencc")}
        about = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": head,
            "command": f"python benchmarks/chinese_tokenizers.py --passes {arguments.passes} "
            f"--vocabulary-size {arguments.vocabulary_size}",
            "device": device(),
            "packages": packages,
        }
        write_json(arguments.output, {**about, **measured})
    results = read_json(arguments.output)
    for name, words in PAGES.items():
        page = ROOT / "docs" / name
        written = BLOCK.sub(lambda _, words=words: table(results, words), page.read_text(encoding="utf-8"))
        with atomic_file(page) as file:
            file.write(written.encode())


if __name__ == "__main__":
    main()

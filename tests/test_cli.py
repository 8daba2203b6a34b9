"""The command line as its users meet it: what it prints where, its exit codes, and what it leaves on the disk."""

import bz2
import contextlib
import dataclasses
import io
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

import kerasllm
from kerasllm import cli
from kerasllm.data import default_corpus

WORDS = "the a history of music science city river king war people language number theory year world large"
TRAINING = "--epochs 0.01 --batch-size 4 --sequence-length 32 --evaluations 1"
TRANSFORMER = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 24, "max_sequence_length": 128}
LSTM = {"embedding_dim": 8, "hidden_dim": 8, "tie_embeddings": True}
MAIN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from kerasllm.cli import main; main()"
KINDS = ("run", "saved/1", "edge/model.tflite")
"""Where the same model lies: a training's folder, a SavedModel, a TFLite file."""


def call(*arguments):
    """Exit code, standard output and standard error of a command, in this process."""
    output, errors = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["kerasllm", *map(str, arguments)]
    code = 0
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            cli.main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    return code, output.getvalue(), errors.getvalue()


def command(*arguments):
    """A command to be run in a process of its own, and its environment."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    return {"args": [sys.executable, "-c", MAIN, *map(str, arguments)], "env": environment, "text": True}


def refused(*arguments):
    """The one line of a command that refuses its input."""
    code, output, errors = call(*arguments)
    assert (code, output) == (2, ""), (code, output, errors)
    assert errors.startswith("kerasllm: ") and errors.count("\n") == 1, errors
    return errors.removeprefix("kerasllm: ").strip()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A corpus, a Transformer trained on it for a step, and both exports, all made by the command line."""
    folder = tmp_path_factory.mktemp("world")
    chooser = random.Random(0)
    articles = ({"title": f"{i}", "text": " ".join(chooser.choices(WORDS.split(), k=60))} for i in range(30))
    (folder / "articles.jsonl").write_text("\n".join(map(json.dumps, articles)))
    for name, config in (("Transformer", TRANSFORMER), ("LSTM", LSTM)):
        content = {"class": f"{name}LanguageModel", "config": config}
        (folder / f"{name.lower()}.json").write_text(json.dumps(content))
    split = "--vocabulary-size 300 --validation 0.1 --test 0.1"
    assert call("prepare", folder / "articles.jsonl", "--out", folder / "corpus", *split.split())[0] == 0
    options = ["--model", folder / "transformer.json", "--out", folder / "run", *TRAINING.split()]
    code, output, _ = call("train", folder / "corpus", *options)
    assert code == 0
    assert f"model in {folder / 'run' / 'model'}" in output and "tensorboard --logdir" in output
    for kind, path in zip(("saved-model", "tflite"), KINDS[1:], strict=True):
        code, output, _ = call("export", folder / "run", "--format", kind, "--out", folder / path)
        assert (code, output) == (0, f"written to {folder / path}\n")
    return folder


def names(folder):
    """Everything in a folder, hidden files too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_help_imports_nothing_heavy_and_shows_examples():
    code = "import sys; sys.argv=['kerasllm', '--help']; from kerasllm.cli import main\n"
    code += "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "keras", "jax", "ai_edge_litert"} & set(child.stderr.split())
    assert "kerasllm prepare enwiki" in child.stdout


@pytest.mark.parametrize("name", sorted(cli.cli.commands))
def test_every_command_has_help(name):
    code, output, errors = call(name, "--help")
    assert (code, errors) == (0, "")
    assert f"Usage: kerasllm {name}" in output
    assert f"  kerasllm {name}" in output.split("Examples:\n")[1]
    assert all(option.help for option in cli.cli.commands[name].params if isinstance(option, click.Option))


def test_prepare_prints_what_a_machine_may_read(world, tmp_path):
    code, output, errors = call(
        "prepare", world / "articles.jsonl", "--out", tmp_path / "c", "--tokenizer", "byte", "--json"
    )
    manifest = json.loads(output)
    assert (code, errors) == (0, "")
    assert sum(split["articles"] for split in manifest["splits"].values()) == 30
    assert manifest == json.loads((tmp_path / "c" / "manifest.json").read_text(encoding="utf-8"))


def test_train_and_export_print_what_a_machine_may_read(world, tmp_path):
    options = ["--model", world / "lstm.json", "--out", tmp_path / "run", *TRAINING.split(), "--json"]
    code, output, _ = call("train", world / "corpus", *options)
    result = json.loads(output)
    written = json.loads((tmp_path / "run" / "history.json").read_text(encoding="utf-8"))["history"]
    assert (code, result["model"]) == (0, str(tmp_path / "run" / "model"))
    assert result["history"] == {name: values[-1] for name, values in written.items()}
    for kind, name in (("saved-model", "1"), ("tflite", "model.tflite")):
        path = tmp_path / name
        code, output, _ = call("export", world / "run", "--format", kind, "--out", path, "--json")
        size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
        assert (code, json.loads(output)) == (0, {"path": str(path), "bytes": size})


def test_training_has_the_same_defaults_in_python():
    from kerasllm.training.fit import TrainingOptions

    defaults = {option.name: option.default for option in cli.cli.commands["train"].params}
    options = {field.name: field.default for field in dataclasses.fields(TrainingOptions)}
    assert {name: defaults[name] for name in options if name in defaults} == {
        name: value for name, value in options.items() if name in defaults
    }
    assert len(defaults.keys() & options.keys()) >= 7


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        ("bgwiki-latest-pages-articles-shortened.xml.bz2", "[а-я]{3}"),
        ("enwiki-table-markup.xml.bz2", "[a-z]{3}"),
    ],
)
def test_prepare_reads_the_other_dumps_of_the_wheel(name, letters, tmp_path):
    source = default_corpus().parent / name
    options = ["--tokenizer", "byte", "--validation", "0", "--test", "0"]
    code, output, _ = call("prepare", source, "--out", tmp_path / "c", *options)
    assert code == 0 and f"written to {tmp_path / 'c'}" in output
    articles = list(kerasllm.data.load_corpus(tmp_path / "c").articles("train"))
    assert articles and not any(mark in article.text for article in articles for mark in ("[[", "{{", "{|", "'''"))
    assert all(re.search(letters, article.text) for article in articles)


def test_evaluate_gives_the_same_for_every_kind(world):
    scores = []
    for kind in KINDS:
        code, output, _ = call("evaluate", world / kind, world / "corpus", "--json")
        assert code == 0
        scores.append(json.loads(output))
    # The model sees 128 tokens; windows are never longer than that.
    assert all((score["context"], score["stride"]) == (128, 64) for score in scores)
    assert all(abs(score["bits_per_byte"] - scores[0]["bits_per_byte"]) < 1e-3 for score in scores)
    assert len({(score["tokens"], score["bytes"], score["documents"]) for score in scores}) == 1
    code, output, _ = call("evaluate", world / "run", world / "corpus", "--context", "64", "--stride", "32")
    assert code == 0 and "context 64, stride 32" in output and "token perplexity" in output


def test_generate_writes_the_continuation_and_nothing_else(world):
    prompt, options = "the history", ["--max-new-tokens", "12"]
    expected = kerasllm.generate(*kerasllm.load(world / "run"), prompt, max_new_tokens=12)
    for kind in KINDS:
        assert call("generate", world / kind, "--prompt", prompt, *options) == (0, expected + "\n", "")
    sampled = [call("generate", world / "run", "--prompt", prompt, "--temperature", "1", *options) for _ in range(2)]
    assert sampled[0] == sampled[1] and sampled[0][1] != expected + "\n"


def test_a_process_of_its_own_prints_one_line_or_one_text(world):
    """None of TensorFlow's, SentencePiece's or LiteRT's notes get through."""
    for kind in KINDS[1:]:
        child = subprocess.run(
            **command("generate", world / kind, "--prompt", "a", "--max-new-tokens", 4), capture_output=True
        )
        assert (child.returncode, child.stderr) == (0, ""), child.stderr
    options = ["--model", "none", "--out", world / "never"]
    child = subprocess.run(**command("train", world / "corpus", *options), capture_output=True)
    assert child.returncode == 2 and child.stderr.count("\n") == 1 and "transformer_quickstart" in child.stderr


def damaged(kind, folder):
    """A source that cannot be read, and what is said of it."""
    packed = default_corpus().read_bytes()
    page = "<mediawiki><page><title>A</title><ns>0</ns><revision><text>Words.</text></revision></page>"
    files = {
        "missing": (None, "missing: no such file or folder"),
        "truncated bz2": (packed[:200_000], "the end of the stream is missing"),
        "corrupt bz2": (packed[:100_000] + b"X" * 10 + packed[100_010:], "damaged near byte"),
        "early end of XML": (bz2.compress(page.encode()), "the XML ends early"),
        "page without text": ((page.replace("Words.", "") + "</mediawiki>").encode(), "1 without text"),
        "invalid UTF-8": (b"one\ntwo \xff", "line 2 is not UTF-8"),
        "empty": (b"", "is empty"),
        "JSON": (b'{"title": 1}', "line 1 has no string"),
    }
    content, message = files[kind]
    path = folder / (kind if kind != "JSON" else "x.jsonl")
    if content is not None:
        path.write_bytes(content)
    return path, message


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "truncated bz2",
        "corrupt bz2",
        "early end of XML",
        "page without text",
        "invalid UTF-8",
        "empty",
        "JSON",
    ],
)
def test_prepare_refuses_damaged_sources(kind, tmp_path):
    path, message = damaged(kind, tmp_path)
    (tmp_path / "out").mkdir()
    assert message in refused("prepare", path, "--out", tmp_path / "out" / "c", "--tokenizer", "byte")
    assert names(tmp_path / "out") == []


def test_a_page_without_text_is_skipped_and_counted_and_a_huge_one_is_kept(tmp_path):
    page = "<page><title>{}</title><ns>0</ns><revision><text>{}</text></revision></page>"
    pages = page.format("A", "") + page.format("B", "long words " * 300_000) + page.format("C", "Words.")
    (tmp_path / "dump.xml").write_text(f"<mediawiki>{pages}</mediawiki>")
    options = ["--tokenizer", "byte", "--validation", "0", "--test", "0", "--json"]
    code, output, _ = call("prepare", tmp_path / "dump.xml", "--out", tmp_path / "c", *options)
    report = json.loads(output)["sources"]["all"]["report"]
    assert code == 0
    assert {key: report[key] for key in ("pages", "empty", "articles")} == {"pages": 3, "empty": 1, "articles": 2}
    assert report["bytes"] > 3_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prepare {w}/articles.jsonl --out {t}/x --vocabulary-size 9999", "the largest possible is"),
        ("prepare {w}/articles.jsonl --out {t}/x --vocabulary-size 0", "'--vocabulary-size'"),
        ("prepare {w}/articles.jsonl --out {t}/x --test 1.5", "'--test'"),
        ("prepare {w}/articles.jsonl --out {w}/corpus", "exists already"),
        ("prepare {w}/articles.jsonl --out {w}/articles.jsonl/x", "choose another path"),
        ("prepare {w}/articles.jsonl", "Missing option '--out'"),
        ("train {w}/corpus --model nothing --out {t}/x", "choose one of|give a JSON file or one of"),
        ("train {w}/nothing --model lstm_small --out {t}/x", "manifest.json: no such file"),
        ("train {w}/corpus --model {w}/lstm.json --out {w}/run", "exists already"),
        (
            "train {w}/corpus --model {w}/transformer.json --out {t}/x --sequence-length 129",
            "more than the model's 128",
        ),
        ("train {w}/corpus --model {w}/lstm.json --out {t}/x --epochs nan", "nan is not a number"),
        ("train {w}/corpus --model {w}/lstm.json --out {t}/x --sequence-length 99999", "do not fill"),
        ("evaluate {w}/run {w}/corpus --context 129", "more than the model's context of 128"),
        ("evaluate {w}/run {w}/corpus --context 64 --stride 65", "stride 65"),
        ("evaluate {w}/articles.jsonl {w}/corpus", "is no model"),
        ("evaluate {w}/corpus {w}/corpus", "has neither config.json nor saved_model.pb"),
        ("generate nothing --prompt a", "no such folder or published model"),
        ("generate {w}/run --prompt a --temperature -1", "'--temperature'"),
        ("generate {w}/run --prompt a --top-p 0", "'--top-p'"),
        ("generate {w}/run --prompt a --seed -1", "'--seed'"),
        ("generate {w}/run --prompt a --seed 2147483648", "'--seed'"),
        ("generate {w}/run --prompt a --top-k 99999999999", "'--top-k'"),
        ("generate {w}/run --prompt a --max-new-tokens 99999999999", "'--max-new-tokens'"),
        ("generate {w}/run --prompt a --max-new-tokens 500", "context of 128; shorten the prompt"),
        ("generate {w}/saved/1 --prompt a --max-new-tokens 500", "context of 128 tokens; shorten the prompt"),
        ("generate {w}/edge/model.tflite --prompt a --max-new-tokens 500", "context of 128; shorten the prompt"),
        ("export {w}/run --format tflite --out {w}/edge/model.tflite", "exists already"),
        ("export {w}/run --format saved-model --out {w}/saved/1", "exists already"),
        ("export {w}/run --format saved-model --out {t}/x --quantization int8", "for --format tflite"),
        ("export {w}/run --format tflite --out {t}/x.tflite --context-length 129", "more than the model's 128"),
        ("nothing", "No such command 'nothing'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, world, tmp_path):
    before = names(world)
    said = refused(*arguments.format(w=world, t=tmp_path).split())
    assert re.search(message, said), said
    assert names(tmp_path) == []
    assert names(world) == before


@pytest.fixture
def small_disk():
    """Call with a number of bytes: no file can grow beyond it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ("prepare {w}/articles.jsonl --out {t}/x --tokenizer byte", 4_000),
        ("export {w}/run --format tflite --out {t}/model.tflite", 10_000),
        ("export {w}/run --format saved-model --out {t}/1", 10_000),
        ("export {w}/run --format saved-model --out {t}/1", 60_000),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(arguments, size, world, tmp_path, small_disk):
    small_disk(size)
    said = refused(*arguments.format(w=world, t=tmp_path).split())
    assert said.endswith("; free some space") and "{{" not in said
    assert names(tmp_path) == []


def test_a_reader_that_has_had_enough_ends_a_command_quietly(world):
    process = subprocess.Popen(
        **command("prepare", "--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) in (0, 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_that_is_told_to_stop_saves_and_the_same_command_goes_on(number, code, world, tmp_path):
    options = "--epochs 1000 --evaluations 100 --patience 100 --batch-size 4 --sequence-length 32 --save-every 7"
    arguments = ["train", world / "corpus", "--model", world / "lstm.json", "--out", tmp_path / "run", *options.split()]
    folder = tmp_path / "run" / "checkpoints"
    with subprocess.Popen(**command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        limit = time.monotonic() + 120
        while not any(folder.glob("step-*")) and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.1)
        process.send_signal(number)
        errors = process.stderr.read()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    newest = max(folder.glob("step-*"))
    assert f"{newest} is complete: go on with resume=True (--resume)" in errors
    assert not [name for name in names(tmp_path) if name.endswith((".tmp", ".old"))]
    loaded, tokenizer = kerasllm.load(newest)
    assert isinstance(kerasllm.generate(loaded, tokenizer, "a", max_new_tokens=2), str)
    said = refused(*map(str, arguments))
    assert "pass --resume to go on with it" in said
    said = refused(*map(str, arguments), "--resume", "--learning-rate", "0.5")
    assert "learning_rate: 0.003 -> 0.5" in said


def test_ctrl_c_in_preparing_leaves_nothing(world, tmp_path):
    code = (
        "import os, signal; import kerasllm.data.corpus as c\n"
        "c._check_splits = lambda *a: os.kill(os.getpid(), signal.SIGINT)\n" + MAIN
    )
    arguments = ["prepare", world / "articles.jsonl", "--out", tmp_path / "c"]
    child = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert child.returncode == 130, child.stderr
    assert "Traceback" not in child.stderr
    assert names(tmp_path) == []


def test_the_command_is_installed():
    assert Path(sys.executable).with_name("kerasllm").exists()

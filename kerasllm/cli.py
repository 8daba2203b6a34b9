"""The command line: parse, import one thing, call it."""

import contextlib
import errno
import faulthandler
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from kerasllm import __version__
from kerasllm.errors import InputError

_EXAMPLES = """
\b
Examples:
  kerasllm quickstart
  kerasllm prepare enwiki-latest-pages-articles.xml.bz2 --out corpora/enwiki --vocabulary-size 16000
  kerasllm train corpora/enwiki --model transformer_quickstart --out runs/mine
  kerasllm evaluate runs/mine corpora/enwiki --split test
  kerasllm generate runs/mine --prompt "The history of" --temperature 0.8
  kerasllm export runs/mine --format tflite --out runs/mine/edge/model.tflite
"""


@click.group(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kerasllm")
def cli() -> None:
    """From raw Wikipedia text to language models on GPU servers and phones, without leaving TensorFlow."""


class _Number(click.FloatRange):
    """A range of real numbers, among which NaN and infinity are not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or a usage error."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number", param, ctx)
        return number


class _Integer(click.IntRange):
    """A range of integers that numpy and TensorFlow can hold in 32 bits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The integer, or a usage error."""
        number = super().convert(value, param, ctx)
        if number >= 2**31:
            self.fail(f"{value} is more than {2**31 - 1}", param, ctx)
        return number


_POSITIVE = _Number(min=0, min_open=True)
_SHARE = _Number(min=0, max=1, max_open=True)
_COUNT = _Integer(min=1)
_NATURAL = _Integer(min=0)


def _examples(*lines: str) -> str:
    """An epilog that click does not wrap."""
    return "\n  ".join(["\b\nExamples:", *lines])


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text for people.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")


@cli.command(
    epilog=_examples(
        "kerasllm prepare default --out corpora/excerpt --vocabulary-size 2048",
        "kerasllm prepare enwiki-latest-pages-articles.xml.bz2 --out corpora/enwiki --vocabulary-size 16000",
    )
)
@click.argument("source")
@click.option("--out", required=True, help="Folder to make.")
@click.option(
    "--tokenizer",
    default="sentencepiece",
    show_default=True,
    type=click.Choice(["sentencepiece", "sentencepiece-bpe", "word", "whitespace", "byte"]),
    help="What to train on the training split.",
)
@click.option("--vocabulary-size", default=4096, type=_COUNT, show_default=True, help="Number of token ids.")
@click.option("--validation", default=0.05, type=_SHARE, show_default=True, help="Share of articles for validation.")
@click.option("--test", default=0.05, type=_SHARE, show_default=True, help="Share of articles for testing.")
@click.option("--seed", default=0, show_default=True, help="Salt of the hash of the title that splits.")
@click.option(
    "--on-error",
    default="raise",
    show_default=True,
    type=click.Choice(["raise", "stop"]),
    help="At damage in SOURCE: end with an error, or keep what came before.",
)
@click.option("--workers", type=_COUNT, help="Processes; all cores by default.")
@_overwrite
@_json
def prepare(source: str, out: str, as_json: bool, **options: Any) -> None:
    """Turn SOURCE into a tokenized corpus.

    SOURCE is a MediaWiki dump (.xml, .xml.bz2), a wikiextractor folder, a JSON lines or text file, or a folder of
    those; "default" is the English Wikipedia excerpt that is installed with kerasllm.
    """
    from kerasllm.data import default_corpus, prepare

    corpus = prepare(default_corpus() if source == "default" else source, out, progress=not as_json, **options)
    if as_json:
        click.echo(json.dumps(corpus.manifest, ensure_ascii=False))
        return
    for split, counts in corpus.manifest["splits"].items():
        click.echo(
            f"{split:12}{counts['articles']:>10,} articles{counts['bytes']:>14,} bytes{counts['tokens']:>12,} tokens"
        )
    click.echo(f"written to {out}")


@cli.command(
    epilog=_examples(
        "kerasllm train corpora/excerpt --model transformer_quickstart --out runs/mine --epochs 2",
        "kerasllm train corpora/enwiki --model my-model.json --out runs/large --json > result.json",
    )
)
@click.argument("corpus")
@click.option("--model", "model_name", required=True, help="A preset, or a JSON file with `class` and `config`.")
@click.option(
    "--out", required=True, help="Folder for the model folder `model/`, the best weights and TensorBoard logs."
)
@click.option("--epochs", default=3.0, type=_POSITIVE, show_default=True, help="Times the training tokens are seen.")
@click.option("--batch-size", default=16, type=_COUNT, show_default=True, help="Windows in a step.")
@click.option("--sequence-length", default=128, type=_COUNT, show_default=True, help="Tokens in a window.")
@click.option("--learning-rate", default=3e-3, type=_POSITIVE, show_default=True, help="Peak of the schedule.")
@click.option("--evaluations", default=6, type=_COUNT, show_default=True, help="Validations during the training.")
@click.option(
    "--patience", default=2, type=_COUNT, show_default=True, help="Validations without progress before training ends."
)
@click.option("--seed", default=0, type=_NATURAL, show_default=True, help="Of weights, dropout and order of the data.")
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "mixed_bfloat16", "mixed_float16"]),
    help="Dtype policy.",
)
@_overwrite
@_json
def train(corpus: str, model_name: str, out: str, as_json: bool, **options: Any) -> None:
    """Train a model on CORPUS, a folder that `kerasllm prepare` made.

    With --json the progress goes to standard error, and the object has the model folder and the last value of every
    figure in `history.json`.
    """
    from kerasllm.training.job import train_to_folder

    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        folder = train_to_folder(corpus, model_name, out, **options)
    if as_json:
        history = json.loads((Path(out) / "history.json").read_text(encoding="utf-8"))["history"]
        last = {name: values[-1] for name, values in history.items()}
        click.echo(json.dumps({"model": str(folder), "history": last}, ensure_ascii=False))
        return
    click.echo(f"model in {folder}; watch it with: tensorboard --logdir {out}")


@cli.command(
    epilog=_examples(
        "kerasllm evaluate runs/mine corpora/enwiki --split test",
        "kerasllm evaluate runs/mine/edge/model.tflite corpora/enwiki --json",
    )
)
@click.argument("model")
@click.argument("corpus")
@click.option(
    "--split",
    default="test",
    show_default=True,
    type=click.Choice(["train", "validation", "test"]),
    help="Which articles.",
)
@click.option(
    "--context", type=_COUNT, help="Tokens in a window; 256 by default, or the model's context if that is less."
)
@click.option("--stride", type=_COUNT, help="Tokens between the starts of two windows; half the context by default.")
@_json
def evaluate(model: str, corpus: str, split: str, context: int | None, stride: int | None, as_json: bool) -> None:
    """Perplexity and bits per byte of MODEL on a split of CORPUS.

    MODEL is a model folder, a SavedModel, a .tflite file or the name of a published model.
    """
    from kerasllm.data import load_corpus
    from kerasllm.evaluation import evaluate, open_model
    from kerasllm.evaluation.runners import documents

    texts = [article.text for article in load_corpus(corpus).articles(split)]
    runner = open_model(model)
    tokenizer = runner.tokenizer
    evaluation, _ = evaluate(
        runner, documents(texts, tokenizer), texts, context=context, stride=stride, lossless=tokenizer.lossless
    )
    click.echo(json.dumps(evaluation.to_dict()) if as_json else evaluation.summary())


@cli.command(
    epilog=_examples(
        'kerasllm generate runs/mine --prompt "The history of" --temperature 0.8 --top-p 0.9',
        'kerasllm generate quickstart-lstm --prompt "In 1925" --max-new-tokens 16',
    )
)
@click.argument("model")
@click.option("--prompt", required=True, help="Text to continue.")
@click.option("--max-new-tokens", default=64, type=_COUNT, show_default=True, help="Most tokens to add.")
@click.option("--temperature", default=0.0, type=_Number(min=0), show_default=True, help="0 is greedy.")
@click.option(
    "--top-k", default=0, type=_NATURAL, show_default=True, help="Keep the k most likely tokens; 0 keeps all."
)
@click.option(
    "--top-p",
    default=1.0,
    type=_Number(min=0, min_open=True, max=1),
    show_default=True,
    help="Keep the most likely tokens with this share.",
)
@click.option("--seed", default=0, type=_NATURAL, show_default=True, help="Of the random numbers.")
def generate(model: str, prompt: str, **options: Any) -> None:
    """Write a continuation of a prompt to standard output, and nothing else.

    MODEL is a model folder, a SavedModel, a .tflite file or the name of a published model.
    """
    from kerasllm.evaluation import open_model

    click.echo(open_model(model).generate(prompt, **options))


@cli.command(
    epilog=_examples(
        "kerasllm export runs/mine --format saved-model --out saved_models/mine/1",
        "kerasllm export runs/mine --format tflite --out runs/mine/edge/model.tflite --quantization int8",
    )
)
@click.argument("model")
@click.option(
    "--format",
    "kind",
    required=True,
    type=click.Choice(["saved-model", "tflite"]),
    help="For a server: strings in and out. For a phone: one file, the tokenizer beside it.",
)
@click.option("--out", required=True, help="Folder of the SavedModel (such as my-model/1), or the .tflite file.")
@click.option("--quantization", type=click.Choice(["float16", "int8"]), help="Of a TFLite file; float32 by default.")
@click.option("--context-length", type=_COUNT, help="KV cache of a TFLite file in tokens; the model's own by default.")
@_overwrite
@_json
def export(
    model: str,
    kind: str,
    out: str,
    quantization: str | None,
    context_length: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write MODEL as a SavedModel or a TFLite file.

    MODEL is a model folder, a SavedModel that kerasllm exported, or the name of a published model. With --json the
    object has the path and the bytes of what was written.
    """
    import kerasllm

    loaded, tokenizer = kerasllm.load(model)
    if kind == "tflite":
        options: dict[str, Any] = {
            "quantization": quantization,
            "context_length": context_length,
            "overwrite": overwrite,
        }
        path = kerasllm.export_tflite(loaded, out, tokenizer, **options)
    elif quantization or context_length:
        raise InputError("--quantization and --context-length are for --format tflite; leave them out")
    else:
        path = kerasllm.export_saved_model(loaded, tokenizer, out, overwrite=overwrite)
    if as_json:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        click.echo(
            json.dumps({"path": str(path), "bytes": sum(file.stat().st_size for file in files)}, ensure_ascii=False)
        )
        return
    click.echo(f"written to {path}")


@cli.command(
    epilog=_examples(
        "kerasllm quickstart",
        "kerasllm quickstart --source simplewiki-latest-pages-articles.xml.bz2 --out runs/simple --epochs 1",
    )
)
@click.option("--source", default="default", show_default=True, help="What `kerasllm prepare` takes.")
@click.option(
    "--out", default="runs/quickstart", show_default=True, help="Folder for everything; what is there is replaced."
)
@click.option("--vocabulary-size", default=2048, type=_COUNT, show_default=True, help="Number of token ids.")
@click.option(
    "--epochs", default=1.25, type=_POSITIVE, show_default=True, help="Passes of each model over the training text."
)
def quickstart(source: str, out: str, vocabulary_size: int, epochs: float) -> None:
    """Dump in, two trained, exported and verified language models out."""
    from kerasllm.quickstart import quickstart

    quickstart(source, out, vocabulary_size=vocabulary_size, epochs=epochs)


def main() -> None:
    """Run the command line; one line and exit code 2 for what the user can put right, 130 after Ctrl-C."""
    _quiet_libraries()
    try:
        cli.main(prog_name="kerasllm", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        message = error.format_message()
        message += "" if message.endswith((".", "?")) else "."
        _fail(message + (f" See {context.command_path} --help" if context else ""))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of our output has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(1)
        if error.errno not in _OUTSIDE:
            raise
        remedy = "free some space" if error.errno in _FULL else "choose another path"
        _fail(f"{Path(error.filename) if error.filename else 'output'}: {error.strerror}; {remedy}")
    except Exception as error:
        # TensorFlow writes event files and SavedModels itself and has exceptions of its own for a full disk.
        lines = [line for line in str(error).splitlines() if any(os.strerror(code) in line for code in _FULL)]
        if not lines:
            raise
        _fail(re.sub(r"\{\{.*?\}\}|\[Op:\w+\]", "", lines[0]).strip() + "; free some space")


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OUTSIDE = (
    *_FULL,
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG),
)
"""What goes wrong outside of the program."""


def _quiet_libraries() -> None:
    """Spare people who call a command the notes that TensorFlow, SentencePiece and LiteRT write when they start.

    They come from C++ straight to file descriptor 2, some before any setting is read; Python keeps standard error.
    Whoever sets TF_CPP_MIN_LOG_LEVEL sees all of it.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.stderr.flush()
    encoding = sys.stderr.encoding
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=encoding, errors="backslashreplace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.enable(sys.stderr)


def _fail(message: str) -> None:
    click.echo(f"kerasllm: {' '.join(message.split())}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()

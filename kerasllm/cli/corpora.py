"""Commands that make models: prepare, train, quickstart."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import click

from kerasllm.cli.group import COUNT, NATURAL, POSITIVE, SHARE, Number, cli, examples, json_option, overwrite_option


@cli.command(
    epilog=examples(
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
    type=click.Choice(["sentencepiece", "sentencepiece-bpe", "character", "jieba", "word", "whitespace", "byte"]),
    help="What to train on the training split.",
)
@click.option(
    "--script", type=click.Choice(["simplified", "traditional"]), help="Write Chinese in one script (OpenCC)."
)
@click.option("--vocabulary-size", default=4096, type=COUNT, show_default=True, help="Number of token ids.")
@click.option("--validation", default=0.05, type=SHARE, show_default=True, help="Share of articles for validation.")
@click.option("--test", default=0.05, type=SHARE, show_default=True, help="Share of articles for testing.")
@click.option("--seed", default=0, show_default=True, help="Salt of the hash of the title that splits.")
@click.option(
    "--on-error",
    default="raise",
    show_default=True,
    type=click.Choice(["raise", "stop"]),
    help="At damage in SOURCE: end with an error, or keep what came before.",
)
@click.option("--workers", type=COUNT, help="Processes; all cores by default.")
@overwrite_option
@json_option
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
    epilog=examples(
        "kerasllm train corpora/excerpt --model transformer_quickstart --out runs/mine --epochs 2",
        "kerasllm train corpora/excerpt --model transformer_quickstart --out runs/mine --epochs 2 --resume",
        "kerasllm train corpora/enwiki --model my-model.json --out runs/large --json > result.json",
    )
)
@click.argument("corpus")
@click.option("--model", "model_name", required=True, help="A preset, or a JSON file with `class` and `config`.")
@click.option("--out", required=True, help="Folder for the model folder `model/`, `checkpoints/` and TensorBoard logs.")
@click.option("--resume", is_flag=True, help="Go on where the same command was interrupted; begin if it was not.")
@click.option("--epochs", default=3.0, type=POSITIVE, show_default=True, help="Times the training tokens are seen.")
@click.option("--batch-size", default=16, type=COUNT, show_default=True, help="Windows in a step.")
@click.option("--sequence-length", default=128, type=COUNT, show_default=True, help="Tokens in a window.")
@click.option("--learning-rate", default=3e-3, type=POSITIVE, show_default=True, help="Peak of the schedule.")
@click.option(
    "--schedule",
    default="cosine",
    show_default=True,
    type=click.Choice(["cosine", "linear", "step", "constant"]),
    help="Of the learning rate, after the warm-up.",
)
@click.option("--warm-up", default=0.05, type=SHARE, show_default=True, help="Share of steps in which it rises.")
@click.option("--weight-decay", default=0.01, type=Number(min=0), show_default=True, help="Of AdamW.")
@click.option("--clip-norm", default=1.0, type=Number(min=0), show_default=True, help="Largest gradient norm; 0: none.")
@click.option(
    "--gradient-accumulation", default=1, type=COUNT, show_default=True, help="Steps whose mean makes one update."
)
@click.option(
    "--average", default=0.0, type=SHARE, show_default=True, help="Momentum of averaged weights; 0: no average."
)
@click.option(
    "--explosion", default=2.0, type=Number(min=0), show_default=True, help="Stop at so many times the first loss."
)
@click.option(
    "--carry-state", is_flag=True, default=False, help="LSTMs go on from window to window instead of from zeros."
)
@click.option(
    "--skip-nonfinite", default=0, type=NATURAL, show_default=True, help="Steps to leave out at most if they give NaN."
)
@click.option("--evaluations", default=6, type=COUNT, show_default=True, help="Validations during the training.")
@click.option(
    "--patience", default=2, type=COUNT, show_default=True, help="Validations without progress before training ends."
)
@click.option("--seed", default=0, type=NATURAL, show_default=True, help="Of weights, dropout and order of the data.")
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "mixed_bfloat16", "mixed_float16"]),
    help="Dtype policy.",
)
@click.option(
    "--deterministic", is_flag=True, default=False, help="The same result bit for bit, interrupted or not; slower."
)
@click.option(
    "--save-every",
    type=COUNT,
    default=None,
    help="Steps between checkpoints; by default as often as costs at most 2 %.",
)
@click.option("--keep", default=2, type=COUNT, show_default=True, help="Newest checkpoints to keep, besides the best.")
@overwrite_option
@json_option
def train(corpus: str, model_name: str, out: str, as_json: bool, **options: Any) -> None:
    """Train a model on CORPUS, a folder that `kerasllm prepare` made.

    Ctrl-C and SIGTERM write a checkpoint; the same command with --resume goes on from there, in the middle of an epoch.
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
    epilog=examples(
        "kerasllm quickstart",
        "kerasllm quickstart --source simplewiki-latest-pages-articles.xml.bz2 --out runs/simple --epochs 1",
    )
)
@click.option("--source", default="default", show_default=True, help="What `kerasllm prepare` takes.")
@click.option(
    "--out", default="runs/quickstart", show_default=True, help="Folder for everything; what is there is replaced."
)
@click.option("--vocabulary-size", default=2048, type=COUNT, show_default=True, help="Number of token ids.")
@click.option(
    "--epochs", default=1.25, type=POSITIVE, show_default=True, help="Passes of each model over the training text."
)
def quickstart(source: str, out: str, vocabulary_size: int, epochs: float) -> None:
    """Dump in, two trained, exported and verified language models out."""
    from kerasllm.quickstart import quickstart

    quickstart(source, out, vocabulary_size=vocabulary_size, epochs=epochs)

"""Commands that take a model: evaluate, generate, export, convert, plan, chat."""

import json
from typing import Any

import click

from kerasllm.cli.group import COUNT, NATURAL, Number, cli, examples, json_option, overwrite_option
from kerasllm.errors import InputError


@cli.command(
    epilog=examples(
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
    "--context", type=COUNT, help="Tokens in a window; 256 by default, or the model's context if that is less."
)
@click.option("--stride", type=COUNT, help="Tokens between the starts of two windows; half the context by default.")
@json_option
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
    epilog=examples(
        'kerasllm generate runs/mine --prompt "The history of" --temperature 0.8 --top-p 0.9',
        'kerasllm generate quickstart-lstm --prompt "In 1925" --max-new-tokens 16',
    )
)
@click.argument("model")
@click.option("--prompt", required=True, help="Text to continue.")
@click.option("--max-new-tokens", default=64, type=COUNT, show_default=True, help="Most tokens to add.")
@click.option("--temperature", default=0.0, type=Number(min=0), show_default=True, help="0 is greedy.")
@click.option("--top-k", default=0, type=NATURAL, show_default=True, help="Keep the k most likely tokens; 0 keeps all.")
@click.option(
    "--top-p",
    default=1.0,
    type=Number(min=0, min_open=True, max=1),
    show_default=True,
    help="Keep the most likely tokens with this share.",
)
@click.option("--seed", default=0, type=NATURAL, show_default=True, help="Of the random numbers.")
def generate(model: str, prompt: str, **options: Any) -> None:
    """Write a continuation of a prompt to standard output, and nothing else.

    MODEL is a model folder, a SavedModel, a .tflite file or the name of a published model.
    """
    from kerasllm.evaluation import open_model

    click.echo(open_model(model).generate(prompt, **options))


@cli.command(
    epilog=examples(
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
@click.option("--context-length", type=COUNT, help="KV cache of a TFLite file in tokens; the model's own by default.")
@overwrite_option
@json_option
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
    epilog=examples(
        "kerasllm convert SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2",
        "kerasllm convert runs/mine models/mine-for-transformers --to huggingface --dtype bfloat16",
    )
)
@click.argument("source")
@click.argument("out")
@click.option(
    "--to",
    "kind",
    default="kerasllm",
    show_default=True,
    type=click.Choice(["kerasllm", "huggingface"]),
    help="A model folder of kerasllm, or a folder that transformers loads.",
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of the weights.",
)
@overwrite_option
@json_option
def convert(source: str, out: str, kind: str, dtype: str, overwrite: bool, as_json: bool) -> None:
    """Read SOURCE, a model of any format, and write it to the folder OUT.

    SOURCE is a Hugging Face folder (LLaMA, GPT-2, BERT), a GGUF file, a llama2.c .bin file, or what `kerasllm generate`
    takes.
    """
    import kerasllm

    model, tokenizer = kerasllm.load(source, dtype=dtype)
    if kind == "huggingface":
        from kerasllm.convert.huggingface import to_huggingface

        path = to_huggingface(model, out, tokenizer, overwrite=overwrite)
    else:
        path = kerasllm.save(model, tokenizer, out, overwrite=overwrite)
    count = model.count_params()
    if as_json:
        click.echo(json.dumps({"path": str(path), "parameters": count}, ensure_ascii=False))
        return
    click.echo(f"{count:,} parameters written to {path}")

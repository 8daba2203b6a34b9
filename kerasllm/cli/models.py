"""Commands that take a model: evaluate, generate, export, convert, plan, chat."""

import dataclasses
import json
from typing import Any

import click

from kerasllm.cli.group import (
    COUNT,
    POSITIVE,
    Number,
    cli,
    examples,
    json_option,
    overwrite_option,
    sampling_options,
)
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

    MODEL is what `kerasllm.load` takes (a model folder, a SavedModel, a Hugging Face folder, a GGUF or llama2.c file,
    the name of a published model), or a .tflite file.
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
        'kerasllm generate smollm2-135m-instruct --prompt "Water boils at" --num-beams 4 --num-sequences 2 --json',
    )
)
@click.argument("model")
@click.option("--prompt", required=True, help="Text to continue.")
@click.option("--max-new-tokens", default=64, type=COUNT, show_default=True, help="Most tokens to add.")
@sampling_options
@click.option(
    "--repetition-penalty", default=1.0, type=POSITIVE, show_default=True, help="Above 1 avoids what was said."
)
@click.option("--stop", multiple=True, help="Text before which to end; may be given several times.")
@click.option("--num-sequences", default=1, type=COUNT, show_default=True, help="Continuations, a line each.")
@click.option(
    "--num-beams", default=1, type=COUNT, show_default=True, help="Search the likeliest text with so many beams."
)
@click.option(
    "--length-penalty",
    default=1.0,
    type=Number(),
    show_default=True,
    help="Of --num-beams: 0 prefers short texts, 1 compares means.",
)
@click.option("--json", "as_json", is_flag=True, help="Print text, tokens and log probabilities of each as JSON.")
def generate(model: str, prompt: str, as_json: bool, **options: Any) -> None:
    """Write a continuation of a prompt to standard output, and nothing else.

    MODEL is what `kerasllm.load` takes (a model folder, a SavedModel, a Hugging Face folder, a GGUF or llama2.c file,
    the name of a published model), or a .tflite file, which has neither beams nor a repetition penalty.
    """
    from kerasllm.evaluation import KerasModel, open_model
    from kerasllm.folder import load

    several = {name: options.pop(name) for name in ("num_sequences", "num_beams", "length_penalty")}
    plain = {"min_p": 0.0, "repetition_penalty": 1.0, "stop": ()}
    changed = {name for name, value in plain.items() if options[name] != value}
    if model.endswith(".tflite"):
        changed -= {"min_p", "stop"}
    if as_json or several["num_sequences"] > 1 or several["num_beams"] > 1:
        for one in KerasModel(*load(model)).generate_sequences([prompt], **options, **several)[0]:
            click.echo(json.dumps(dataclasses.asdict(one), ensure_ascii=False) if as_json else one.text)
        return
    # An exported file cannot do everything: the Keras model that is in a SavedModel can.
    runner = KerasModel(*load(model)) if changed else open_model(model)
    if not isinstance(runner, KerasModel):
        options = {name: value for name, value in options.items() if value != plain.get(name)}
    click.echo(runner.generate(prompt, **options))


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

    MODEL is what `kerasllm.load` takes: a model folder, a SavedModel that kerasllm exported, a Hugging Face folder, a
    GGUF or llama2.c file, or the name of a published model. With --json the object has the path and the bytes of what
    was written.
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
    from kerasllm.files import check_output

    check_output(out, overwrite=overwrite)  # loading may take minutes
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

"""`kerasllm train`: a prepared corpus and the name of a model in, a model folder out."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import keras

from kerasllm import folder as model_folder
from kerasllm.data import Corpus, load_corpus
from kerasllm.errors import InputError
from kerasllm.files import read_json, write_json
from kerasllm.models import REGISTRY, LanguageModel
from kerasllm.presets import PRESETS
from kerasllm.training.fit import train
from kerasllm.training.options import TrainingOptions


def train_to_folder(
    corpus: str | os.PathLike[str],
    model_name: str,
    out: str | os.PathLike[str],
    *,
    precision: str = "float32",
    overwrite: bool = False,
    resume: bool = False,
    **options: Any,
) -> Path:
    """Train a model and save it.

    Args:
        corpus: Folder of a prepared corpus; its tokens are compared with their SHA-256 first.
        model_name: A preset, or a JSON file with `class` and `config`; the vocabulary size is the corpus'.
        out: Gets the model folder `model/`, `checkpoints/`, `history.json` and `logs/`.
        precision: Dtype policy.
        overwrite: Begin anew where `out` exists; checkpoints are removed, the model is replaced in the end.
        resume: Go on where a training with the same arguments was interrupted, or begin.
        **options: Of `TrainingOptions`.

    Returns:
        The model folder.

    Raises:
        InputError: The corpus, the model or an option is wrong, `out` exists, or differs from what is to be resumed.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written.
        SystemExit: SIGTERM, with exit code 143; a checkpoint was written.
    """
    out = Path(out)
    if out.exists() and not (overwrite or resume) and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out}: exists already; choose another --out, pass --resume to go on with it or --overwrite to replace it"
        )
    if overwrite and resume:
        raise InputError("overwrite and resume contradict each other; pass one of them")
    settings = TrainingOptions(**options)
    prepared = load_corpus(corpus, verify=True)
    keras.utils.set_random_seed(settings.seed)
    model = make_model(model_name, prepared.tokenizer.vocabulary_size, precision)
    history = train(
        model, prepared, out, settings, resume=resume, overwrite=overwrite, prompts=sample_prompts(prepared)
    )
    write_json(out / "history.json", {"options": dataclasses.asdict(settings), "history": history})
    return model_folder.save(model, prepared.tokenizer, out / model_folder.MODEL, overwrite=True)


def make_model(name: str, vocabulary_size: int, precision: str = "float32") -> LanguageModel:
    """A model with random weights.

    Args:
        name: A preset, or a JSON file with `class` and `config`.
        vocabulary_size: Replaces the config's.
        precision: Dtype policy.

    Raises:
        InputError: There is no such preset or file, or the file is wrong.
    """
    if name in PRESETS:
        entry: Any = PRESETS[name]
    elif Path(name).suffix == ".json":
        entry = read_json(name)
    else:
        raise InputError(f"model {name!r} is unknown; give a JSON file or one of {', '.join(PRESETS)}")
    cls = REGISTRY.get(str(entry.get("class"))) if isinstance(entry, dict) else None
    if cls is None or not isinstance(entry.get("config"), dict):
        raise InputError(f"{name}: needs `config` and `class`, one of {', '.join(REGISTRY)}")
    return cls({**entry["config"], "vocabulary_size": vocabulary_size}, dtype=precision)


def sample_prompts(corpus: Corpus, count: int = 3) -> list[str]:
    """The first words of some validation articles, to be continued while training.

    Args:
        corpus: A prepared corpus.
        count: How many.
    """
    articles = corpus.articles("validation")
    return [article.text[:24].rsplit(" ", 1)[0] for article, _ in zip(articles, range(count), strict=False)]

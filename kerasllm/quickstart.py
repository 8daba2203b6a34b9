"""The main job: a Wikipedia dump in, two trained, exported and verified language models out."""

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pandas as pd
from tqdm import tqdm

import kerasllm
from kerasllm.data import Corpus, default_corpus, prepare
from kerasllm.errors import InputError
from kerasllm.evaluation import NGramModel, compression_bits_per_byte
from kerasllm.evaluation.runners import documents
from kerasllm.evaluation.verify import problems, verify, write_reference
from kerasllm.files import sha256, write_json
from kerasllm.folder import CARD, MODEL
from kerasllm.models import LanguageModel
from kerasllm.training import plot_curves
from kerasllm.training.fit import train
from kerasllm.training.job import make_model, sample_prompts
from kerasllm.training.options import TrainingOptions

MODELS = {"lstm": "lstm_quickstart", "transformer": "transformer_quickstart"}
"""Name of each model's folder, and its preset."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "lstm": {"batch_size": 16, "sequence_length": 64, "learning_rate": 1e-2},
    "transformer": {"batch_size": 8, "sequence_length": 128, "learning_rate": 3e-3},
}
_SAMPLE: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0.7, "top_p": 0.9, "seed": 1}


class Quickstart:
    """One run of the main job.

    Args:
        source: What `kerasllm prepare` reads, or `"default"`.
        out: Folder for everything.
        vocabulary_size: Number of token ids.
        epochs: Times the training tokens are seen by each model.
    """

    def __init__(self, source: str, out: str | os.PathLike[str], vocabulary_size: int, epochs: float) -> None:
        self.source, self.out = source, Path(out)
        self.vocabulary_size, self.epochs = vocabulary_size, epochs
        self.seconds: dict[str, float] = {}
        self.command = (
            f"kerasllm quickstart --source {Path(source).name} --vocabulary-size {vocabulary_size} --epochs {epochs:g}"
        )

    def run(self) -> dict[str, Any]:
        """Do all of it; returns the report."""
        with self._stage("read, clean, split and tokenize"):
            path = default_corpus() if self.source == "default" else self.source
            options: dict[str, Any] = {"vocabulary_size": self.vocabulary_size, "validation": 0.05, "test": 0.15}
            corpus = prepare(path, self.out / "corpus", overwrite=True, **options)
        test = [article.text for article in corpus.articles("test")]
        models, histories = {}, {}
        for name in MODELS:
            with self._stage(f"train the {name}"):
                models[name], histories[name] = self._train(name, corpus)
        plot_curves(histories, self.out / "curves.png", title="Loss of the quickstart models")
        with self._stage("score baselines"):
            baselines = score_baselines(corpus, test)
        report: dict[str, Any] = {
            "command": self.command,
            "commit": commit(),
            "device": device(),
            "corpus": corpus.manifest["splits"],
        }
        report |= {"baselines_bits_per_byte": baselines, "models": {}}
        for name, model in models.items():
            with self._stage(f"export and verify the {name}"):
                entry = self._export(name, model, corpus, test)
            entry |= {"history": histories[name], "sample": self._sample(model, corpus)}
            report["models"][name] = entry
            self._card(name, entry, corpus)
        report["seconds"] = {**self.seconds, "total": sum(self.seconds.values())}
        write_json(self.out / "report.json", report)
        print(summary(report, self.out))
        wrong = [f"{n} {kind}: {p}" for n, e in report["models"].items() for kind, p in _problems(e)]
        if wrong:
            raise InputError(f"{self.out}: not every file is the model that was trained: {'; '.join(wrong)}")
        return report

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        print(f"\n== {name}", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def _train(self, name: str, corpus: Corpus) -> tuple[LanguageModel, dict[str, list[float]]]:
        keras.utils.set_random_seed(0)
        model = make_model(MODELS[name], corpus.tokenizer.vocabulary_size)
        model.build()
        model.summary()
        options = TrainingOptions(epochs=self.epochs, **_OPTIONS[name])
        folder = self.out / "training" / name
        history = train(model, corpus, folder, options, overwrite=True, prompts=sample_prompts(corpus))
        kerasllm.save(model, corpus.tokenizer, folder / MODEL, overwrite=True)
        return model, history

    def _export(self, name: str, model: LanguageModel, corpus: Corpus, test: list[str]) -> dict[str, Any]:
        """Write both artefacts, then let each answer in a process of its own."""
        tokenizer, folder = corpus.tokenizer, self.out / name
        artefacts = {"saved_model": folder / "1", "tflite": folder / "model.tflite"}
        kerasllm.export_saved_model(model, tokenizer, artefacts["saved_model"], overwrite=True)
        kerasllm.export_tflite(model, artefacts["tflite"], tokenizer, overwrite=True)
        reference = self.out / "training" / name / "reference"
        held_out = list(documents(test, tokenizer))
        scores = {"keras": write_reference(model, tokenizer, held_out, test, reference).to_dict()}
        checks = {}
        for kind, path in tqdm(artefacts.items(), desc="artefacts", unit=" file"):
            checks[kind] = verify(path, reference)
            scores[kind] = checks[kind].pop("evaluation")
            checks[kind]["problems"] = problems(checks[kind])
        return {
            "class": type(model).__name__,
            "config": model.config.to_dict(),
            "parameters": model.count_params(),
            "bytes": {kind: size_of(path) for kind, path in artefacts.items()},
            "scores": scores,
            "verification": checks,
        }

    def _sample(self, model: LanguageModel, corpus: Corpus) -> dict[str, str]:
        prompt = sample_prompts(corpus, 1)[0]
        return {
            "prompt": prompt,
            **{k: str(v) for k, v in _SAMPLE.items()},
            "text": self._continue(model, corpus, prompt),
        }

    @staticmethod
    def _continue(model: LanguageModel, corpus: Corpus, prompt: str) -> str:
        return kerasllm.generate(model, corpus.tokenizer, prompt, **_SAMPLE)

    def _card(self, name: str, entry: dict[str, Any], corpus: Corpus) -> None:
        """What a stranger must know of the folder: how it was made, what it scores, what is in it."""
        folder = self.out / name
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD)
        card = {
            "name": f"quickstart-{name}",
            "version": kerasllm.__version__,
            "command": self.command,
            "commit": commit(),
            "device": device(),
            "seconds": self.seconds[f"train the {name}"],
            "data": {
                "source": corpus.manifest["sources"]["all"]["name"],
                "licence": "CC BY-SA (Wikipedia)" if self.source == "default" else "that of the source",
                "splits": corpus.manifest["splits"],
            },
            **{key: entry[key] for key in ("class", "config", "parameters", "scores", "verification")},
            "sha256": {path.relative_to(folder).as_posix(): sha256(path) for path in files},
        }
        write_json(folder / CARD, card)


def quickstart(
    source: str = "default",
    out: str | os.PathLike[str] = "runs/quickstart",
    *,
    vocabulary_size: int = 2048,
    epochs: float = 1.25,
) -> dict[str, Any]:
    """Train, evaluate, export and verify an LSTM and a Transformer on a corpus.

    Args:
        source: What `kerasllm prepare` reads, or `"default"`: the English Wikipedia excerpt installed with kerasllm.
        out: Folder for everything; what is there is replaced.
        vocabulary_size: Number of token ids.
        epochs: Times the training tokens are seen by each model.

    Returns:
        The report, also written to `report.json`.

    Raises:
        InputError: The source cannot be read, or an export is not the model.
    """
    return Quickstart(source, out, vocabulary_size, epochs).run()


def score_baselines(corpus: Corpus, test: list[str]) -> dict[str, float]:
    """Bits per byte of compressors and n-gram models on the test texts.

    Args:
        corpus: A prepared corpus; its training split primes or trains the baselines.
        test: Texts of its test split.
    """
    scores = compression_bits_per_byte(test, [article.text for article in corpus.articles("train")])
    for order, name in ((1, "unigram"), (5, "interpolated 5-gram")):
        model = NGramModel(order, vocabulary_size=corpus.tokenizer.vocabulary_size).fit(corpus.documents("train"))
        scores[name] = model.bits_per_byte(corpus.documents("test"), test)
    return scores


def _problems(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """Kind of artefact and problem, for all problems of a model's artefacts."""
    return [(kind, problem) for kind, check in entry["verification"].items() for problem in check["problems"]]


def summary(report: dict[str, Any], out: Path) -> str:
    """The report as text for people.

    Args:
        report: What a run returns.
        out: Where its files are.
    """
    rows = {name: {"bits/byte": f"{bits:.3f}"} for name, bits in report["baselines_bits_per_byte"].items()}
    for name, entry in report["models"].items():
        for kind, scores in entry["scores"].items():
            row = {
                "bits/byte": f"{scores['bits_per_byte']:.3f}",
                "token ppl": f"{scores['token_perplexity']:.1f}",
                "word ppl": f"{scores['word_perplexity']:,.0f}",
            }
            if kind in entry["verification"]:
                check = entry["verification"][kind]
                row |= {
                    "logits differ by": f"{check['max_logit_difference']:.1e}",
                    "greedy equal": f"{check['greedy_equal']}/{check['prompts']}",
                    "top-1 agrees": f"{check['top_1_agreement']:.2%}",
                    "MB": f"{entry['bytes'][kind] / 1e6:.1f}",
                    "verified": "; ".join(check["problems"]) or "yes",
                }
            rows[f"{name} ({kind})"] = row
    held_out = next(iter(report["models"].values()))["scores"]["keras"]
    table = pd.DataFrame.from_dict(rows, orient="index").sort_values("bits/byte", kind="stable").fillna("")
    samples = (
        f"\n{name} continues {e['sample']['prompt']!r}:\n  {e['sample']['text']!r}"
        for name, e in report["models"].items()
    )
    return "\n".join(
        [
            f"\nOn {held_out['documents']} held-out articles: {held_out['tokens']:,} tokens, {held_out['words']:,} "
            f"words, {held_out['bytes']:,} bytes; context {held_out['context']}, stride {held_out['stride']}. "
            "Lower is better.\n",
            table.to_string(),
            *samples,
            f"\nCurves:      {out / 'curves.png'}",
            f"Report:      {out / 'report.json'}",
            *(
                f"{name.capitalize() + ':':13}{out / name} (SavedModel in 1/, model.tflite, tokenizer)"
                for name in MODELS
            ),
            f"TensorBoard: tensorboard --logdir {out / 'training'}   then open http://localhost:6006",
            f"Total:       {report['seconds']['total']:.0f} s",
        ]
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


def device() -> str:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores, keras backend {keras.backend.backend()}"


def commit() -> str | None:
    """The commit of the checkout that this runs from, if it is one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()

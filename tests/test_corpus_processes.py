"""Preparing a corpus as a program of its own: what it imports, and how much memory it takes."""

import subprocess
import sys
import textwrap

import pytest

from kerasllm.data import load_corpus


def test_needs_neither_tensorflow_nor_a_main_guard(tmp_path):
    """A script as a beginner writes it: nothing below `if __name__ == "__main__"`, and two workers."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from kerasllm.data import Article, prepare
            articles = [Article(str(i), f"text {i} " * 50) for i in range(200)]
            corpus = prepare(articles, sys.argv[1], tokenizer="byte", workers=2)
            assert "tensorflow" not in sys.modules and "keras" not in sys.modules
            print(len(corpus.tokens("train")))
            """
        )
    )
    command = [sys.executable, str(script), str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(load_corpus(tmp_path / "c").tokens("train"))


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    pytest.importorskip("resource", reason="no measure of memory on this system")
    script = """
        import resource, sys
        from kerasllm.data import Article, prepare
        text = "the quick brown fox " * 2500
        for number in (100, 1000):
            articles = (Article(str(i), text) for i in range(number))
            corpus = prepare(articles, f"{sys.argv[1]}/{number}", tokenizer="byte", workers=1)
            for split in ("train", "test"):
                assert sum(len(ids) for ids in corpus.documents(split)) == len(corpus.tokens(split))
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    small, large = (int(line) / 1024 for line in done.stdout.split())
    # 5 MB against 50 MB of text (100 MB of tokens, which are mapped and so may count until the system takes them back).
    assert large - small < 130, f"{small} MB for 5 MB of text, {large} MB for 50 MB"

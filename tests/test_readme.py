"""Both READMEs say the same, their Python runs, their commands exist and their links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kerasllm import cli

ROOT = Path(__file__).parent.parent
READMES = {path.name: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("README*.md"))}
DOCUMENTS = [*READMES, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))]
PUBLISHED = ROOT / "saved_models" / "quickstart-lstm" / "card.json"


def blocks(text, language=""):
    """Code blocks of a language, or all of them, fences and all."""
    return re.findall(rf"^```{language}\w*\n.*?^```$", text, re.DOTALL | re.MULTILINE)


def code(text, language):
    return [block.split("\n", 1)[1].removesuffix("```") for block in blocks(text, language)]


def shape(text):
    """What must be alike in every language: levels of headings, rows of tables, points of lists, code blocks."""
    prose = re.sub(r"^```.*?^```$", "```", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^(#+|\|(?!-)|\* |```|<!--.*-->)", prose, re.MULTILINE)


def test_there_are_two_and_they_have_the_same_parts_and_code():
    english, chinese = READMES["README.md"], READMES["README.zh-CN.md"]
    assert len(READMES) == 2
    assert shape(english) == shape(chinese)
    assert blocks(english) == blocks(chinese)
    assert len(blocks(english, "python")) >= 4


@pytest.mark.parametrize("name", READMES)
def test_no_placeholder_is_left(name):
    text = READMES[name]
    assert not re.findall(r"<!-- output:.*?-->(?!\s*^```)", text, re.MULTILINE)
    assert "Filled from" not in text
    results = re.search(r"<!-- results -->(.*?)<!-- /results -->", text, re.DOTALL)
    assert results and re.search(r"^\|", results[1], re.MULTILINE)


@pytest.mark.parametrize("name", READMES)
def test_the_two_commands_come_first(name):
    first = code(READMES[name], "sh")[0].splitlines()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [line.split()[:2] for line in first] == [["make", "quickstart"], ["make", "test"]]
    assert {"quickstart", "test", "install"} <= set(targets)


def commands(text):
    """Commands of kerasllm in blocks and in tables, without what follows them."""
    shell = "\n".join(code(text, "sh"))
    found = re.findall(r"^kerasllm .+$", shell, re.MULTILINE) + re.findall(r"`(kerasllm [^`]+)`", text)
    assert len(found) >= 10
    return found


def test_every_command_and_option_that_is_named_exists():
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for line in commands(text) if document in READMES else re.findall(r"^kerasllm .+$", text, re.MULTILINE):
            name = line.split()[1]
            assert name in cli.cli.commands, (document, line)
            options = {option for parameter in cli.cli.commands[name].params for option in parameter.opts}
            assert set(re.findall(r"--[a-z-]+", line)) <= options, (document, line)


def test_every_command_is_named():
    named = {line.split()[1] for line in commands(READMES["README.md"])}
    assert named == set(cli.cli.commands)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", prose)
    assert all(((ROOT / document).parent / link).exists() for link in links), links


def expected_lines(text):
    """The output printed under a sample, by the index of the sample; None where there is no such block."""
    languages = re.findall(r"^```(\w+)\n", text, re.MULTILINE)
    outputs = iter(code(text, "text"))
    kinds = [kind for kind in languages if kind in ("python", "text")]
    return [
        next(outputs) if kinds[place + 1 : place + 2] == ["text"] else None
        for place, kind in enumerate(kinds)
        if kind == "python"
    ]


@pytest.mark.slow
def test_the_samples_run_and_print_what_is_shown(tmp_path):
    """One process runs them one after the other; both files hold the same, so that once is enough."""
    text = READMES["README.md"]
    samples = [
        (sample, shown)
        for sample, shown in zip(code(text, "python"), expected_lines(text), strict=True)
        if "quickstart-" not in sample or PUBLISHED.exists()
    ]
    (tmp_path / "saved_models").symlink_to(ROOT / "saved_models")
    program = "".join(f"print('\\n<sample {i}>')\n{sample}\n" for i, (sample, _) in enumerate(samples))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600
    )
    assert child.returncode == 0, child.stderr[-3000:]
    printed = re.split(r"<sample \d+>\n", child.stdout)[1:]
    assert len(printed) == len(samples) >= 2
    assert all(part.strip() for part in printed)
    for (_, shown), part in zip(samples, printed, strict=True):
        # The last digits of a training, and so the words of a continuation, differ between machines.
        if shown and "loss" not in shown:
            assert part.strip() == shown.strip()
        elif shown:
            assert len(part.strip().splitlines()) == len(shown.strip().splitlines())
            validation = float(re.search(r"'val_perplexity': ([\d.]+)", part)[1])
            assert validation < 1.3 * float(re.search(r"'val_perplexity': ([\d.]+)", shown)[1])

"""The house stands: every import goes down, and TensorFlow stays where docs/architecture.md puts it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TENSORFLOW = {"tensorflow", "tensorflow_text", "keras_nlp", "keras_hub"}
KERAS = TENSORFLOW | {"keras", "jax"}


def read_floors(text):
    """Floor by room, from the table of docs/architecture.md."""
    floors = {}
    for number, rooms in re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE):
        floors.update({room: int(number) for room in re.findall(r"`(\w+)`", rooms)})
    return floors


def imports(source, package):
    """(line, imported module, whether importing the file runs it) of every import, at any depth.

    `package` is the dotted name that relative imports start from.
    """
    found = []

    def walk(node, runs):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            runs = False
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            runs = False
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name, runs) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            # `from kerasllm import text` names a room as much as `import kerasllm.text` does
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "kerasllm" else [module]
            found.extend((node.lineno, name, runs) for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found.extend((node.lineno, a.value, runs) for a in node.args[:1] if isinstance(a, ast.Constant))
        for child in ast.iter_child_nodes(node):
            walk(child, runs)

    walk(ast.parse(source), True)
    return found


def violations(sources, floors):
    """Messages about a tree given as {path under kerasllm: source}."""
    messages, edges = [], {}
    for path, source in sources.items():
        room = path.split("/")[0].removesuffix(".py")
        if room == "__init__":
            continue
        if room not in floors:
            messages.append(f"{path}: room {room!r} is not in the table of docs/architecture.md")
            continue
        package = ".".join(["kerasllm", *path.split("/")[:-1]])
        for line, module, runs in imports(source, package):
            place, top = f"{path}:{line}", module.split(".")[0]
            if top == "kerasllm" and "." in module:
                other = module.split(".")[1]
                if other in floors and other != room:
                    edges.setdefault(room, set()).add(other)
                    if floors[other] > floors[room]:
                        messages.append(
                            f"{place}: {room} (floor {floors[room]}) imports {other} (floor {floors[other]})"
                        )
            elif why := _forbidden(room, floors[room], top, runs):
                messages.append(f"{place}: {room} (floor {floors[room]}) imports {top}: {why}")
    return messages + [f"rooms import each other in a circle: {' -> '.join(circle)}" for circle in _circles(edges)]


def _forbidden(room, floor, module, runs):
    """Why a room may not import an outside library, or an empty string."""
    if room == "backend":
        return ""
    if floor == 0 and module in KERAS:
        return "floor 0 knows no Keras"
    if floor <= 3 and module in TENSORFLOW | {"jax"}:
        return "floors 0 to 3 run on every backend"
    if room == "edge" and module in KERAS:
        return "it must run on a phone"
    if floor in (4, 5) and module in TENSORFLOW and runs:
        return "only inside functions"
    return ""


def _circles(edges):
    """Circles among the rooms (floors forbid them between floors, not on one)."""
    found = []

    def walk(room, path):
        if room in path:
            found.append([*path[path.index(room) :], room])
        else:
            for other in sorted(edges.get(room, ())):
                walk(other, [*path, room])

    for room in sorted(edges):
        walk(room, [])
    return [circle for circle in found if circle[0] == min(circle)]


def floors():
    return read_floors((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def test_no_import_goes_up():
    package = ROOT / "kerasllm"
    sources = {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert len(sources) > 20
    assert not (found := violations(sources, floors())), "\n".join(found)


def test_the_table_is_read():
    table = floors()
    assert table["cli"] > table["training"] > table["text"] > table["models"] > table["layers"] > table["errors"] == 0


def test_the_checker_can_fail():
    def bad(path, source):
        return len(violations({path: source}, floors()))

    assert bad("layers/attention.py", "from kerasllm.models import LanguageModel") == 1
    assert bad("layers/attention.py", "def f():\n    from kerasllm import text") == 1
    assert bad("layers/attention.py", "from ..models.base import LanguageModel") == 1
    assert bad("layers/attention.py", "from .masks import attention_mask\nfrom kerasllm.errors import InputError") == 0
    assert bad("config.py", "import importlib\nimportlib.import_module('kerasllm.folder')") == 1
    assert bad("config.py", "import keras") == 1
    assert bad("models/lstm.py", "import keras") == 0
    assert bad("models/lstm.py", "def f():\n    import tensorflow as tf") == 1
    assert bad("generation/loop.py", "from tensorflow.python import ops") == 1
    assert bad("backend.py", "import tensorflow as tf") == 0
    assert bad("edge/run.py", "def f():\n    import keras") == 1
    assert bad("text/words.py", "import tensorflow as tf") == 1
    assert bad("text/words.py", "def f():\n    import tensorflow as tf") == 0
    assert bad("text/words.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tensorflow as tf") == 0
    assert bad("training/loop.py", "import tensorflow as tf") == 0
    assert bad("attic.py", "") == 1


def test_circles_on_one_floor_are_found():
    sources = {
        "training/a.py": "import kerasllm.evaluation",
        "evaluation/b.py": "from kerasllm.training import TensorBoard",
    }
    assert violations(sources, floors()) == [
        "rooms import each other in a circle: evaluation -> training -> evaluation"
    ]

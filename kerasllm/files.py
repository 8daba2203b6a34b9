"""Writing files and folders so that a reader never sees half of one.

Everything kerasllm writes goes to a temporary name beside its destination, is flushed to the disk, and is then renamed:
a crash, a full disk or Ctrl-C leaves the old content (or nothing), never a part.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from kerasllm.errors import InputError

_TEMPORARY, _OLD, _REPLACED = ".tmp", ".old", ".replaced"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    r"""Open a temporary file that takes the name `path` when the block ends without an error.

    Args:
        path: Destination; replaced if it exists. Its folder is created.
        mode: `"wb"` for bytes or `"w"` for UTF-8 text with `\n` line ends.

    Yields:
        The open file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {"encoding": "utf-8", "newline": "\n"} if "b" not in mode else {}
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Fill a temporary folder that takes the name `path` when the block ends without an error.

    Args:
        path: Destination folder.
        overwrite: Replace an existing folder. Otherwise one that exists is an error, raised before any work is done.

    Yields:
        The temporary folder (beside the destination, so that the rename stays on one file system).

    Raises:
        InputError: The destination exists and `overwrite` is false, or it is a file.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent))
    try:
        yield temporary
        for file in [*temporary.rglob("*"), temporary]:
            _sync_file(file)
        temporary.chmod(0o777 & ~umask())
        _swap(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def check_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse what `atomic_folder` refuses, before long work for it is begun.

    Args:
        path: Destination folder.
        overwrite: Whether an existing folder may be replaced.

    Raises:
        InputError: The destination exists and `overwrite` is false, or it is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; choose another output")
    if path.exists() and not overwrite and any(path.iterdir()):
        raise InputError(f"{path}: exists already; choose another output or pass overwrite (--overwrite)")


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Remove a folder so that a reader finds all of it or nothing."""
    path = Path(path)
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_OLD, dir=path.parent))
    path.replace(old / path.name)
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def clear_remains(folder: str | os.PathLike[str], name: str) -> None:
    """Remove what a killed process left when it wrote or removed things called `name` (a glob pattern) in a folder.

    What it was about to replace, and had not, takes its name again. Only for whoever knows that nobody writes there.
    """
    for aside in Path(folder).glob(f".{name}.*{_REPLACED}"):
        for path in aside.iterdir():
            if not (Path(folder) / path.name).exists():
                path.replace(Path(folder) / path.name)
        shutil.rmtree(aside, ignore_errors=True)
    for suffix in (_TEMPORARY, _OLD):
        for path in Path(folder).glob(f".{name}.*{suffix}"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` atomically as indented UTF-8 JSON with readable (not escaped) Chinese."""
    with atomic_file(path, "w") as file:
        json.dump(content, file, ensure_ascii=False, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a UTF-8 JSON file.

    Raises:
        InputError: The file is missing, not UTF-8 or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}); make it anew") from None


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file as lower-case hexadecimal, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _swap(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`; an old folder there is moved aside first and removed last."""
    if not path.exists():
        temporary.replace(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_REPLACED, dir=path.parent))
    path.replace(old / path.name)
    try:
        temporary.replace(path)
    except BaseException:
        (old / path.name).replace(path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Make a rename durable; folders cannot be synced on every platform, and nothing is lost where they cannot."""
    with contextlib.suppress(OSError):
        _sync_file(path)


def umask() -> int:
    """The process' file mode creation mask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

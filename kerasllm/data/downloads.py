"""Files from the network: with a progress bar, resumed after a cut, checked, and whole or absent.

Libraries were tried first. pooch 1.9 and `keras.utils.get_file` check and show progress but begin again at the first
byte after a cut, which a dump of gigabytes does not forgive. What is here is a loop around requests.

A download grows in `<name>.part`, with what the server said about the file in `<name>.part.json`. Both stay when the
connection is cut for good or the program is stopped, and the next call goes on where they end.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import requests
from tqdm import tqdm

from kerasllm.errors import InputError
from kerasllm.files import sha256 as sha256_of
from kerasllm.files import write_json

_CHUNK = 1 << 14  # bytes: at most as many are lost at a cut
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST_PAUSE = 60.0  # seconds
_AGENT = f"kerasllm python-requests/{requests.__version__}"
_PAGE = re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE)
_MAGIC = {".zip": b"PK", ".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".bz2": b"BZh"}
_CUT = (
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
)


class _CutError(Exception):
    """The transfer ended early, or the server is busy: worth another attempt, after `pause` seconds if it says so."""

    def __init__(self, why: str, pause: float | None = None) -> None:
        super().__init__(why)
        self.pause = pause


def download(
    url: str,
    path: str | os.PathLike[str],
    *,
    sha256: str = "",
    git_blob: str = "",
    size: int | None = None,
    progress: bool = True,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: float = 1.0,
) -> Path:
    """Download a file; one that exists already is returned as it is.

    A cut connection is taken up again with `Range` (and `If-Range`, so that no two versions of a file are mixed); a
    server that knows no ranges begins again. Two processes that want the same file wait for each other.

    Args:
        url: An http or https address.
        path: Destination; its folder is created.
        sha256: Expected SHA-256; not compared where empty.
        git_blob: Expected git SHA-1, for files whose SHA-256 is not known.
        size: Expected bytes, compared before anything is transferred.
        progress: Show a bar on standard error.
        attempts: Failures in a row, without a byte between them, after which to give up.
        timeout: Seconds to wait for the server.
        pause: Seconds before the second attempt; doubles with each failure in a row.

    Returns:
        `path`.

    Raises:
        InputError: The server cannot be reached, has no such file, or another one than expected (which is removed);
            the connection was cut for good (what came is kept); the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with _exclusive(part) as file:
        transfer = _Transfer(url, path, file, size, progress, timeout, expects_checksum=bool(sha256 or git_blob))
        if path.exists():
            transfer.remove()
            return path
        resumed = transfer.have > 0
        transfer.run(attempts, pause)
        problem = _problem(part, path.name, sha256, git_blob)
        if problem and resumed:  # what was left of an earlier call may be what is wrong
            transfer.restart()
            transfer.run(attempts, pause)
            problem = _problem(part, path.name, sha256, git_blob)
        if problem:
            transfer.remove()
            raise InputError(
                f"{url}: {problem}; it was removed; try again later, or get it elsewhere and set KERASLLM_DATA"
            )
        transfer.finish()
    return path


@dataclass
class _Transfer:
    url: str
    path: Path
    file: IO[bytes]
    size: int | None
    progress: bool
    timeout: float
    expects_checksum: bool

    def __post_init__(self) -> None:
        self.part = self.path.with_name(self.path.name + ".part")
        self.note = self.path.with_name(self.path.name + ".part.json")
        self.validator = self._read_note()
        self.received = False

    @property
    def have(self) -> int:
        """Bytes so far."""
        return os.fstat(self.file.fileno()).st_size

    def run(self, attempts: int, pause: float) -> None:
        """Attempt until everything is here."""
        failures = 0
        while True:
            before = self.have
            try:
                return self._attempt()
            except _CutError as cut:
                failures = failures + 1 if self.have <= before else 1
                if failures >= attempts:
                    raise InputError(
                        f"{self.url}: cut after {self.have:,} bytes ({cut}); run it again to go on from there"
                    ) from None
                wait = cut.pause if cut.pause is not None else pause * 2 ** (failures - 1)
                time.sleep(min(wait, _LONGEST_PAUSE))

    def restart(self) -> None:
        """Forget what is here."""
        self.file.truncate(0)
        self.note.unlink(missing_ok=True)
        self.validator = ""

    def remove(self) -> None:
        """Leave nothing."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the file its name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.part.replace(self.path)
        self.note.unlink(missing_ok=True)

    def _read_note(self) -> str:
        """What identifies the version that the bytes so far are of; they are dropped where nothing does."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            validator = str(note["validator"]) if note["url"] == self.url else None
        except (OSError, ValueError, KeyError, TypeError):
            validator = None
        if validator is None or not (validator or self.expects_checksum):
            self.file.truncate(0)
        return validator or ""

    def _attempt(self) -> None:
        if self.have and not (self.validator or self.expects_checksum):
            self.restart()  # nothing would tell whether the rest is of the same file
        headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
        if self.have:
            headers["Range"] = f"bytes={self.have}-"
            headers |= {"If-Range": self.validator} if self.validator else {}
        try:
            response = requests.get(self.url, headers=headers, stream=True, timeout=self.timeout)
        except _CUT as error:
            if self.received:
                raise _CutError(_reason(error)) from None
            raise InputError(
                f"{self.url}: cannot be reached ({_reason(error)}); check the network, "
                f"or put the file into the folder that KERASLLM_DATA names"
            ) from None
        except requests.exceptions.RequestException as error:
            raise InputError(f"{self.url}: cannot be requested ({_reason(error)}); check the address") from None
        with response:
            self.received = True
            if not self._accept(response):
                return
            self._receive(response)

    def _accept(self, response: requests.Response) -> bool:
        """Check the answer; false where everything is here already."""
        status = response.status_code
        if status in _BUSY:
            raise _CutError(f"the server answers {status} {response.reason}", _retry_after(response))
        first, total = _range(response)
        if status == 416 and self.have:
            if total == self.have:
                return False
            self.restart()
            raise _CutError("the file has changed", 0.0)
        if status == 206 and first != self.have:
            self.restart()
            raise _CutError("the server sent another part than was asked for", 0.0)
        if status == 200:
            self.file.truncate(0)
        elif status != 206:
            raise InputError(
                f"{self.url}: the server answers {status} {response.reason}; the file may have moved: "
                "get it elsewhere and put it into the folder that KERASLLM_DATA names"
            )
        self._check_size(total)
        return True

    def _check_size(self, total: int | None) -> None:
        if total is None:
            return
        if self.size is not None and total != self.size:
            self.remove()
            raise InputError(
                f"{self.url}: has {total:,} bytes, expected {self.size:,}; the origin has changed: "
                "get the file elsewhere and put it into the folder that KERASLLM_DATA names"
            )
        missing, free = total - self.have, shutil.disk_usage(self.part.parent).free
        if missing > free:
            raise InputError(f"{self.part.parent}: {missing:,} bytes to come, {free:,} free; free some space")

    def _receive(self, response: requests.Response) -> None:
        _, total = _range(response)
        self.validator = _validator(response)
        write_json(self.note, {"url": self.url, "validator": self.validator, "size": total})
        # A bar for a terminal only, as a log would keep every state of it.
        off = not (self.progress and sys.stderr.isatty())
        with tqdm(total=total, initial=self.have, desc=self.path.name, unit="B", unit_scale=True, disable=off) as bar:
            try:
                for chunk in response.iter_content(_CHUNK):
                    self.file.write(chunk)
                    bar.update(len(chunk))
                self.file.flush()
            except _CUT as error:
                self.file.flush()
                raise _CutError(_reason(error)) from None
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                raise InputError(
                    f"{self.part}: the disk is full after {self.have:,} bytes; free some space and run it again"
                ) from None
        if total is not None and self.have < total:
            raise _CutError(f"{self.have:,} of {total:,} bytes came")


@contextlib.contextmanager
def _exclusive(part: Path) -> Iterator[IO[bytes]]:
    """The open, locked file of a download; waits for a process that has it."""
    while True:
        file = part.open("ab")
        _lock(file)
        # Who had it before may have given it its name, or removed it.
        if part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat()):
            break
        file.close()
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # bytes that a full disk did not take
            file.close()
        if part.exists() and not part.stat().st_size:
            part.unlink()


def _lock(file: IO[Any]) -> None:
    with contextlib.suppress(ImportError, OSError):  # Windows, or a file system without locks
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _range(response: requests.Response) -> tuple[int, int | None]:
    """The first byte of the answer, and the bytes of the whole file if the server says."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if match and response.status_code in (206, 416):
        return int(match[1] or 0), int(match[2]) if match[2] != "*" else None
    length = response.headers.get("Content-Length", "")
    plain = response.headers.get("Content-Encoding", "identity") == "identity"
    return 0, int(length) if length.isdigit() and plain and response.status_code == 200 else None


def _validator(response: requests.Response) -> str:
    """What `If-Range` may name: a strong entity tag, or else the date (RFC 9110, section 13.1.5)."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _retry_after(response: requests.Response) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else None


def _reason(error: BaseException) -> str:
    """The innermost message of an exception that wraps others, on one line."""
    while (inner := error.__cause__ or error.__context__ or getattr(error, "reason", None)) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    return " ".join(str(error).split()) or type(error).__name__


def _problem(part: Path, name: str, sha256: str, git_blob: str) -> str:
    """What is wrong with a complete file; empty where nothing is."""
    if sha256 and (actual := sha256_of(part)) != sha256:
        return f"the file's SHA-256 is {actual}, expected {sha256}"
    if git_blob and (actual := git_blob_of(part)) != git_blob:
        return f"the file's git SHA-1 is {actual}, expected {git_blob}"
    with part.open("rb") as file:
        head = file.read(512)
    if not (sha256 or git_blob) and _PAGE.match(head):
        return "is a web page, not the file"
    magic = _MAGIC.get(Path(name).suffix.lower(), b"")
    return "" if head.startswith(magic) else f"is no {Path(name).suffix} file"


def git_blob_of(path: str | os.PathLike[str]) -> str:
    """The SHA-1 that git gives a file's content (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    path = Path(path)
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

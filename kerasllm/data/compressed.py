"""Files of bytes and lines, plain or compressed (bzip2, gzip), read in pieces with errors that say where."""

import bz2
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kerasllm.errors import InputError

CHUNK = 1 << 18  # bytes
SUFFIXES = (".bz2", ".gz")
_UNSUPPORTED = {
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\xfd7zXZ": "xz",
}


def read_chunks(path: Path) -> Iterator[bytes]:
    """The unpacked content of a file, in pieces of at most `CHUNK` bytes; the first bytes tell the compression.

    Args:
        path: A file; bzip2 with any number of streams, as Wikipedia's multistream dumps have.

    Raises:
        InputError: The file is missing or unreadable, its compressed data end early or are damaged (the message says
            near which byte of the file), or it is an archive of an unsupported kind.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(6)
            for start, kind in _UNSUPPORTED.items():
                if magic.startswith(start):
                    raise InputError(
                        f"{path}: is packed with {kind}; unpack it first (bzip2 and gzip are read directly)"
                    )
            file.seek(0)
            try:
                if magic.startswith(b"BZh"):
                    yield from _read_bzip2(file)
                else:
                    unpacked = gzip.GzipFile(fileobj=file) if magic.startswith(b"\x1f\x8b") else file
                    while chunk := unpacked.read1(CHUNK):
                        yield chunk
            except (EOFError, OSError, zlib.error) as error:
                raise InputError(
                    f"{path}: the compressed data end early or are damaged near byte {file.tell()} ({error}); "
                    "get the file again and compare its checksum"
                ) from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None


def _read_bzip2(file: BinaryIO) -> Iterator[bytes]:
    """Unlike `bz2.BZ2File`, take bytes that follow a stream and are not another stream for the damage that they are."""
    unpacker = bz2.BZ2Decompressor()
    fresh = False
    while data := file.read(CHUNK):
        while data or not (unpacker.needs_input or unpacker.eof):
            if unpacker.eof:
                unpacker = bz2.BZ2Decompressor()
            # The limit keeps a small file that unpacks to gigabytes from filling the memory.
            chunk = unpacker.decompress(data, CHUNK)
            data = unpacker.unused_data if unpacker.eof else b""
            fresh = unpacker.eof
            if chunk:
                yield chunk
    if not fresh:
        raise EOFError("the end of the stream is missing")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Lines of a UTF-8 text file, with their numbers from 1, without `\n` or `\r\n`; a byte order mark is skipped.

    Raises:
        InputError: As for `read_chunks`, or a line is not UTF-8 (the message has its number and the byte in the line).
    """
    rest = b""
    number = 0
    for chunk in read_chunks(path):
        *lines, rest = (rest + chunk).split(b"\n") if b"\n" in chunk else (rest + chunk,)
        for line in lines:
            number += 1
            yield number, _decode(path, number, line)
    if rest:
        yield number + 1, _decode(path, number + 1, rest)


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        return line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: line {number} is not UTF-8 (its byte {error.start}: {error.reason}); convert the file with iconv"
        ) from None

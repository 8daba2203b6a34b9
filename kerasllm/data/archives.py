"""One member of a zip or tar archive, read in pieces; nothing is ever unpacked to a name that an archive chooses."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from kerasllm.errors import InputError

_CHUNK = 1 << 18  # bytes


def read_member(archive: Path, member: str) -> Iterator[bytes]:
    """The content of a member, in pieces.

    Args:
        archive: A zip, or a tar that is plain or packed with gzip, bzip2 or xz.
        member: Its name inside; `*` in front stands for any folder.

    Raises:
        InputError: The archive is missing, damaged or of another kind, or holds no such file.
    """
    read = _read_zip if archive.suffix.lower() == ".zip" else _read_tar
    try:
        yield from read(archive, member)
    except FileNotFoundError:
        raise InputError(f"{archive}: no such file; check the path") from None
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError, NotImplementedError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{archive}: is no archive, or a damaged one ({why}); get the file again") from None
    except RuntimeError as error:  # zipfile's word for an encrypted member
        raise InputError(f"{archive}: {member} cannot be unpacked ({error}); get the file again") from None


def _read_zip(archive: Path, member: str) -> Iterator[bytes]:
    with zipfile.ZipFile(archive) as file:
        name = _choose(archive, member, file.namelist())
        with file.open(name) as source:
            while chunk := source.read(_CHUNK):
                yield chunk


def _read_tar(archive: Path, member: str) -> Iterator[bytes]:
    with tarfile.open(archive) as file:
        source = file.extractfile(_choose(archive, member, [info.name for info in file if info.isreg()]))
        assert source is not None  # it is a regular file
        with source:
            while chunk := source.read(_CHUNK):
                yield chunk


def _choose(archive: Path, member: str, names: list[str]) -> str:
    for name in names:
        if name == member or (member.startswith("*") and f"/{name}".endswith(member[1:])):
            return name
    raise InputError(f"{archive}: holds no {member}; it is another archive than expected: get the file again")

"""The files of named data sets: in the folder that KERASLLM_DATA names, in the cache, or downloaded into it."""

import hashlib
import os
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from kerasllm.data.archives import read_member
from kerasllm.data.dataset_info import DataFile, DatasetInfo, Origin
from kerasllm.data.dataset_readers import join_dialogues
from kerasllm.data.downloads import download, git_blob_of
from kerasllm.errors import InputError
from kerasllm.files import atomic_file

_CHUNK = 1 << 18  # bytes
_checked: set[tuple[str, int, int]] = set()  # path, time and size of files whose checksum was compared already


def data_folder() -> Path | None:
    """The folder that KERASLLM_DATA names; None where it is not set.

    Raises:
        InputError: It names no folder.
    """
    value = os.environ.get("KERASLLM_DATA")
    if not value:
        return None
    if not Path(value).is_dir():
        raise InputError(f"KERASLLM_DATA: {value} is no folder; set it to the folder of your data sets, or unset it")
    return Path(value)


def cache_folder() -> Path:
    """Where downloads are kept: `datasets` in KERASLLM_CACHE, or in the platform's folder for caches."""
    import platformdirs

    value = os.environ.get("KERASLLM_CACHE")
    return (Path(value) if value else platformdirs.user_cache_path("kerasllm", appauthor=False)) / "datasets"


def find(info: DatasetInfo, file: DataFile, *, progress: bool = True) -> list[Path]:
    """The paths of a file (several where it is in shards), downloaded if need be.

    Raises:
        InputError: It is nowhere and cannot be downloaded, or is not the file that it should be.
    """
    folder, cache = data_folder(), cache_folder()
    for wanted in (file, file.twin):
        if wanted is None:
            continue
        if folder is not None and (paths := _look(folder, wanted.path)):
            if problem := _differs(paths, wanted):
                raise InputError(f"{paths[0]}: {problem}; get {info.name} again, or move it out of KERASLLM_DATA")
            return paths
        # Under its bare name a file is taken only if it is the one: train.txt may be anybody's.
        if folder is not None and (paths := _look(folder, Path(wanted.path).name)) and not _differs(paths, wanted):
            return paths
        if paths := _look(cache, wanted.path):
            if not _differs(paths, wanted):
                return paths
            for path in paths:  # ours, and broken
                path.unlink()
    if file.origin is None:
        raise InputError(
            f"{info.name}: {file.path} is not in the folder that KERASLLM_DATA names, and is published nowhere in "
            f"this form; see kerasllm.data.describe({info.name!r})"
        )
    return [_fetch(file, file.origin, cache, progress)]


def _look(folder: Path, pattern: str) -> list[Path]:
    """The files of that path in a folder."""
    if "*" in pattern:
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    return [folder / pattern] if (folder / pattern).is_file() else []


def _differs(paths: Sequence[Path], file: DataFile) -> str:
    """How the content differs from what is known of it; empty where it does not. Compared once in a process."""
    if not (file.sha256 or file.git_blob):
        return ""
    keys = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths]
    if _checked.issuperset(keys):
        return ""
    if file.sha256:
        digest = hashlib.sha256()
        for chunk in _chunks(paths):
            digest.update(chunk)
        if digest.hexdigest() != file.sha256:
            return f"SHA-256 is {digest.hexdigest()}, expected {file.sha256}"
    elif (actual := git_blob_of(paths[0])) != file.git_blob:
        return f"git SHA-1 is {actual}, expected {file.git_blob}"
    _checked.update(keys)
    return ""


def _chunks(paths: Sequence[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as source:
            while chunk := source.read(_CHUNK):
                yield chunk


def _fetch(file: DataFile, origin: Origin, cache: Path, progress: bool) -> Path:
    target = cache / file.path
    if not (origin.member or origin.build):
        return download(
            origin.urls[0],
            target,
            sha256=file.sha256,
            git_blob=file.git_blob,
            size=file.size,
            progress=progress,
        )
    parts = [download(url, _part_path(cache, url), progress=progress) for url in origin.urls]
    with atomic_file(target) as out:
        if origin.member:
            _unpack(parts[0], origin.member, out)
        else:
            _BUILDERS[origin.build](parts, out)
    if problem := _differs([target], file):
        for path in (target, *parts):
            path.unlink()
        raise InputError(
            f"{origin.urls[0]}: {origin.member or file.path} made of it is not the expected file: {problem}; it was "
            "removed; get it elsewhere and put it into the folder that KERASLLM_DATA names"
        )
    return target


_BUILDERS: dict[str, Callable[[Sequence[Path], IO[bytes]], None]] = {"dialogues": join_dialogues}


def _part_path(cache: Path, url: str) -> Path:
    """Where an archive or a part is kept: by host and path, so that parts of one name do not meet."""
    address = urllib.parse.urlsplit(url)
    names = [urllib.parse.quote(name, safe="") for name in address.path.split("/") if name not in ("", ".", "..")]
    return cache.joinpath("origins", address.netloc.replace(":", "_"), *names)


def _unpack(archive: Path, member: str, out: IO[bytes]) -> None:
    try:
        for chunk in read_member(archive, member):
            out.write(chunk)
    except InputError:
        archive.unlink()  # or the next call would meet it again
        raise

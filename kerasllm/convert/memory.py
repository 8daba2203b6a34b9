"""Refuse what does not fit into memory before it is begun."""

from pathlib import Path

from kerasllm.errors import InputError

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def check_memory(nbytes: int, what: str) -> None:
    """Refuse to begin what needs more memory than there is.

    Args:
        nbytes: Bytes that will be needed.
        what: File or model that needs them; starts the message.

    Raises:
        InputError: Less is available.
    """
    if nbytes > (available := available_memory()):
        raise InputError(
            f"{what}: needs {_size(nbytes)} of memory, {_size(available)} are available; "
            "choose a smaller dtype (bfloat16 halves float32) or model, or a larger machine"
        )


def available_memory() -> int:
    """Bytes this process can still get without swapping, of the machine and of its control groups."""
    import psutil

    return min([psutil.virtual_memory().available, *_group_rests(_GROUPS, _OWN_GROUP)])


def _group_rests(root: Path, own: Path) -> list[int]:
    """What each enclosing control group (version 2, or a container's version 1) leaves; empty where there is none."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rests = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            group = root / path.lstrip("/")
            names = ("memory.max", "memory.current", "inactive_file")
            folders = [group, *group.parents]
        elif "memory" in controllers.split(","):
            group = root / "memory" / path.lstrip("/")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            folders = [group, *group.parents]
        else:
            continue
        rests += [rest for f in folders if f.is_relative_to(root) and (rest := _rest(f, *names)) is not None]
    return rests


def _rest(folder: Path, limit: str, used: str, cache: str) -> int | None:
    """Limit less use of one group; file cache that the kernel would drop counts as free. None without a limit."""
    try:
        most = (folder / limit).read_text(encoding="ascii").strip()
        now = int((folder / used).read_text(encoding="ascii"))
        stat = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text("ascii").splitlines())
        return None if most == "max" else max(0, int(most) - now + int(stat.get(cache, 0)))
    except (OSError, ValueError):
        return None


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"

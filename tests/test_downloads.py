"""Downloads are whole or absent, go on after a cut, and say in one line what went wrong."""

import hashlib
import io
import random
import resource
import shutil
import sys
import threading

import pytest
from local_server import Server

from kerasllm.data import download
from kerasllm.data.downloads import git_blob_of
from kerasllm.errors import InputError

CONTENT = random.Random(0).randbytes(700_001)
K = 1 << 14  # what is read at once; a cut loses what is left of it
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    server = Server()
    server.files["a.bin"] = CONTENT
    yield server
    server.close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "a.bin"


def get(server, target, **more):
    return download(server.url("a.bin"), target, **{"pause": 0.0, "timeout": 10.0, **more})


def fails(server, target, *words, **more):
    with pytest.raises(InputError) as caught:
        get(server, target, **more)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def leftovers(target):
    return sorted(path.name for path in target.parent.iterdir())


def ranges(server):
    return [asked for _, asked, _ in server.requests]


def test_complete(server, target):
    assert get(server, target, sha256=SHA, size=len(CONTENT)) == target
    assert target.read_bytes() == CONTENT
    assert leftovers(target) == ["a.bin"]
    get(server, target, sha256=SHA)
    assert len(server.requests) == 1  # what is there is not asked for again
    assert leftovers(target) == ["a.bin"]


def test_cut_connections_resume(server, target):
    server.cuts = [18 * K + 5, 15 * K]
    get(server, target, sha256=SHA)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={18 * K}-", f"bytes={33 * K}-"]
    assert [condition for *_, condition in server.requests] == [None, '"1"', '"1"']
    assert leftovers(target) == ["a.bin"]


def test_without_ranges_begin_again(server, target):
    server.ranges = False
    server.cuts = [18 * K]
    get(server, target, sha256=SHA)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={18 * K}-"]


def test_cut_for_good_keeps_what_came(server, target):
    server.cuts = [18 * K, 0, 0, 0]
    message = fails(server, target, "294,912 bytes", "again", attempts=3)
    assert message.startswith(server.url("a.bin"))
    assert not target.exists()
    assert leftovers(target) == ["a.bin.part", "a.bin.part.json"]
    server.cuts, server.requests = [], []
    get(server, target)  # no checksum: the entity tag says that the rest is of the same file
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [f"bytes={18 * K}-"]
    assert leftovers(target) == ["a.bin"]


def test_progress_renews_the_attempts(server, target):
    server.cuts = [4 * K] * 12
    get(server, target, sha256=SHA, attempts=2)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("checked", [True, False])
def test_changed_file_is_not_mixed(server, target, checked):
    server.cuts = [18 * K, 0]
    fails(server, target, "cut", attempts=1)
    new = random.Random(1).randbytes(400_000)
    server.files["a.bin"], server.tags["a.bin"], server.cuts = new, '"2"', []
    get(server, target, sha256=hashlib.sha256(new).hexdigest() if checked else "")
    assert target.read_bytes() == new


def test_without_validator_only_a_checksum_allows_resuming(server, target):
    server.validators = False
    server.cuts = [18 * K]
    get(server, target)
    assert ranges(server) == [None, None]
    assert target.read_bytes() == CONTENT
    target.unlink()
    server.cuts, server.requests = [18 * K], []
    get(server, target, sha256=SHA)
    assert ranges(server) == [None, f"bytes={18 * K}-"]
    assert target.read_bytes() == CONTENT


def test_part_of_another_address_is_dropped(server, target):
    server.cuts = [18 * K]
    server.files["b.bin"] = CONTENT[::-1]
    fails(server, target, attempts=1)
    download(server.url("b.bin"), target)
    assert target.read_bytes() == CONTENT[::-1]
    assert ranges(server) == [None, None]


def test_damaged_part_is_found_out(server, target):
    server.cuts = [18 * K]
    fails(server, target, attempts=1)
    target.with_name("a.bin.part").write_bytes(b"x" * 18 * K)
    get(server, target, sha256=SHA)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={18 * K}-", None]


def test_complete_part_needs_only_its_name(server, target):
    server.cuts = [18 * K]
    fails(server, target, attempts=1)
    target.with_name("a.bin.part").write_bytes(CONTENT)
    get(server, target, sha256=SHA)
    assert target.read_bytes() == CONTENT
    assert ranges(server)[1:] == ["bytes=700001-"]


def test_part_longer_than_the_file_begins_again(server, target):
    server.cuts = [18 * K]
    fails(server, target, attempts=1)
    target.with_name("a.bin.part").write_bytes(CONTENT + b"more")
    get(server, target, sha256=SHA)
    assert target.read_bytes() == CONTENT


def test_server_that_answers_another_range(server, target):
    server.cuts = [18 * K]
    server.lie = 7
    get(server, target, sha256=SHA)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={18 * K}-", None]


def test_wrong_checksum(server, target):
    fails(server, target, SHA, "0" * 64, "removed", sha256="0" * 64)
    assert leftovers(target) == []
    blob = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    fails(server, target, blob, "f" * 40, git_blob="f" * 40)
    assert leftovers(target) == []
    assert get(server, target, git_blob=blob).exists()


def test_git_blob(tmp_path):
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    assert git_blob_of(path) == "ce013625030ba8dba906f756967f9e9ca394464a"  # printf 'hello\n' | git hash-object --stdin


def test_another_size_is_refused_at_once(server, target):
    fails(server, target, "700,001 bytes", "expected 700,000", size=700_000)
    assert leftovers(target) == []


def test_stalled_connection_resumes(server, target):
    server.stalls = [10 * K]
    get(server, target, sha256=SHA, timeout=0.3)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={10 * K}-"]


def test_forbidden(server, target):
    server.statuses = [(403, {})]
    fails(server, target, "403", "KERASLLM_DATA")
    assert leftovers(target) == []


def test_not_found(server, target):
    with pytest.raises(InputError, match="404"):
        download(server.url("other.bin"), target)
    assert leftovers(target) == []
    assert len(server.requests) == 1  # it will not come by asking again


def test_busy_server(server, target):
    server.statuses = [(503, {"Retry-After": "0"}), (429, {})]
    get(server, target, sha256=SHA)
    assert target.read_bytes() == CONTENT
    target.unlink()
    server.statuses = [(503, {})] * 3
    fails(server, target, "503", attempts=3)


def test_offline(server, target):
    server.close()
    fails(server, target, "cannot be reached", "KERASLLM_DATA")
    assert leftovers(target) == []


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/a", "no address", "http://"])
def test_no_address(url, target):
    with pytest.raises(InputError, match="cannot be"):
        download(url, target)


def test_no_room(server, target, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 5))
    fails(server, target, "700,001 bytes", "5 free", "free some space")
    assert leftovers(target) == []


def test_full_disk(server, target):
    """A limit on the size of files is refused by the system in the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        fails(server, target, "full", "free some space")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not target.exists()
    server.requests = []
    get(server, target, sha256=SHA)
    assert target.read_bytes() == CONTENT
    assert ranges(server) == ["bytes=400000-"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tsv", b"  <!DOCTYPE html><p>Please sign in", "web page"),
        ("a.zip", b"not a zip", r"no \.zip"),
        ("a.tar.gz", b"BZh", r"no \.gz"),
        ("a.xml.bz2", b"", r"no \.bz2"),
    ],
)
def test_not_the_file(server, tmp_path, name, content, words):
    server.files[name] = content
    with pytest.raises(InputError, match=words):
        download(server.url(name), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_two_at_once_share_a_download(server, target):
    done = []
    threads = [threading.Thread(target=lambda: done.append(get(server, target, sha256=SHA))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert done == [target] * 4
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert leftovers(target) == ["a.bin"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("progress", [True, False])
def test_progress(server, target, monkeypatch, progress):
    monkeypatch.setattr(sys, "stderr", Terminal())
    get(server, target, progress=progress)
    assert ("a.bin: 100%" in sys.stderr.getvalue()) is progress

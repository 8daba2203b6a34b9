"""Running the command line: what goes wrong outside of the program is one line and an exit code."""

import errno
import faulthandler
import os
import re
import sys
from pathlib import Path

import click

from kerasllm.cli.group import cli
from kerasllm.errors import InputError


def main() -> None:
    """Run the command line; one line and exit code 2 for what the user can put right, 130 after Ctrl-C."""
    _quiet_libraries()
    try:
        cli.main(prog_name="kerasllm", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        message = error.format_message()
        message += "" if message.endswith((".", "?")) else "."
        _fail(message + (f" See {context.command_path} --help" if context else ""))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of our output has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(1)
        if error.errno not in _OUTSIDE:
            raise
        remedy = "free some space" if error.errno in _FULL else "choose another path"
        _fail(f"{Path(error.filename) if error.filename else 'output'}: {error.strerror}; {remedy}")
    except Exception as error:
        # TensorFlow writes event files and SavedModels itself and has exceptions of its own for a full disk.
        lines = [line for line in str(error).splitlines() if any(os.strerror(code) in line for code in _FULL)]
        if not lines:
            raise
        _fail(re.sub(r"\{\{.*?\}\}|\[Op:\w+\]", "", lines[0]).strip() + "; free some space")


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OUTSIDE = (
    *_FULL,
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG),
)
"""What goes wrong outside of the program."""


def _quiet_libraries() -> None:
    """Spare people who call a command the notes that TensorFlow, SentencePiece and LiteRT write when they start.

    They come from C++ straight to file descriptor 2, some before any setting is read; Python keeps standard error.
    Whoever sets TF_CPP_MIN_LOG_LEVEL sees all of it.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.stderr.flush()
    encoding = sys.stderr.encoding
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=encoding, errors="backslashreplace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.enable(sys.stderr)


def _fail(message: str) -> None:
    click.echo(f"kerasllm: {' '.join(message.split())}", err=True)
    sys.exit(2)

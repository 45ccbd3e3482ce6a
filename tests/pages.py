"""Pages of the documentation as programs: their blocks of code, run in order in a folder.

What a block is, its language says:

    sh      commands, run one after another
    shell   commands that are shown only; those of continuad must parse
    text    what the block before prints, numbers aside; a line "..." stands for any lines
    python  a program; with a title it is written to that file, and not run
    others  with a title, files
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SECONDS = 900


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    text: str


def blocks(page: str) -> list[Block]:
    found = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', (DOCS / page).read_text(), re.M | re.S)
    return [Block(*each) for each in found]


def commands(text: str) -> list[str]:
    """The commands of a block; a backslash continues a line."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def run_page(page: str, folder: Path) -> None:
    """Run a page in this process, which is changed by that."""
    os.chdir(folder)
    sys.path.insert(0, "")
    printed = ""
    for block in blocks(page):
        match block.language:
            case "sh":
                printed = "".join(_run(command) for command in commands(block.text))
            case "text":
                check_printed(block.text, printed)
            case "shell":
                pass
            case "python" if not block.title:
                code = compile(block.text, page, "exec")
                printed = in_child(partial(exec, code, {"__name__": "__main__"}), page)
            case _ if block.title:
                Path(block.title).write_text(block.text)
            case other:
                raise AssertionError(f"{page}: a block of {other!r} without a title")


def check_printed(shown: str, printed: str) -> None:
    """Compare what a page shows with what was printed: the words and their order."""
    rest = _masked(printed)
    skip = True
    for line in _masked(shown):
        if line == "...":
            skip = True
            continue
        if not skip and rest[:1] != [line]:
            raise AssertionError(f"shown: {line}\nprinted: {rest[:1]}")
        if line not in rest:
            raise AssertionError(f"shown, not printed: {line}\nprinted: {rest}")
        rest = rest[rest.index(line) + 1 :]
        skip = False


def _masked(text: str) -> list[str]:
    """Lines without numbers, table lines and differences in blanks."""
    plain = re.sub(r"[─━┄]+", "", text)
    plain = re.sub(r"-?\d+([.,:]\d+)*(e-?\d+)?", "#", plain)
    return [" ".join(line.split()) for line in plain.splitlines() if line.strip()]


def _run(command: str) -> str:
    """Run a command and return what it printed."""
    words = shlex.split(command, comments=True)
    if words[0] == "continuad":
        from continuad.cli import main

        return _captured(partial(main, words[1:]), command)
    if words[0] == "python":
        # what it registers must not be there when it is started again
        return in_child(partial(runpy.run_path, words[1], run_name="__main__"), command, argv=words[1:])
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{command}\n{done.stdout}{done.stderr}")
    return done.stdout


def _captured(work: Callable[[], object], command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        try:
            work()
        except SystemExit as end:
            if end.code:
                raise AssertionError(f"{command}: exit status {end.code}\n{stream.getvalue()}") from None
    return stream.getvalue()


def in_child(work: Callable[[], object], name: str, argv: Sequence[str] = ("-",)) -> str:
    """Do something in a child, which has what this process has imported; returns what it printed.

    Raises:
        AssertionError: it failed; its last words are the message.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.alarm(SECONDS)
                sys.argv = [*argv]
                sys.stdout, sys.stderr = out, err
                work()
                status = 0
            except SystemExit as end:
                status = 1 if end.code else 0
            except BaseException:
                traceback.print_exc()
            finally:
                out.flush()
                err.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for stream in (out, err):
            stream.seek(0)
        printed = out.read()
        if status:
            raise AssertionError(f"{name} ended with {status}:\n{printed}{err.read()}"[-4000:])
    return printed


def run_forked(page: str, folder: Path) -> None:
    """Run a page in a child."""
    in_child(partial(run_page, page, folder), page)


if __name__ == "__main__":
    run_page(sys.argv[1], Path(sys.argv[2]))

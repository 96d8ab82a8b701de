"""The program: where it is, and running it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Union

from ._errors import Error, of_program

#: Is told how much of the work is done, how much there is, and what is being done.
ProgressCallback = Callable[[int, int, str], Any]
Progress = Union[bool, None, ProgressCallback]


def program() -> str:
    """The path of the program ``onnx-kprune``."""
    name = "onnx-kprune.exe" if os.name == "nt" else "onnx-kprune"
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise Error(f"the program {name} is neither in {beside.parent} nor on PATH; reinstall onnx-kprune")
    return found


def library() -> list[str]:
    """The option that names the ONNX Runtime of this interpreter, which is not imported for it."""
    found = importlib.util.find_spec("onnxruntime")
    folder = Path(found.origin).parent / "capi" if found and found.origin else None
    has_library = folder and any(folder.glob("*onnxruntime.*"))
    return ["--onnxruntime", str(folder)] if has_library else []


def run(arguments: Sequence[str], progress: Progress = None) -> str:
    """Runs the program; what it prints. An interruption ends it, and nothing is left behind."""
    command = [program(), *arguments]
    # Read at the end, so that the program never waits for somebody to read it.
    with tempfile.TemporaryFile() as printed:
        with subprocess.Popen(command, stdout=printed, stderr=subprocess.PIPE) as child:
            try:
                with _Shown(progress) as shown:
                    said = [line for line in map(_text, child.stderr) if not shown.take(line)]
                status = child.wait()
            except BaseException:
                # As Ctrl-C in a terminal: the program tidies up.
                child.send_signal(signal.SIGINT if os.name != "nt" else signal.SIGTERM)
                raise
        if status:
            raise of_program(status, said)
        printed.seek(0)
        return _text(printed.read())


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace")


class _Shown:
    """Progress as the program says it, handed on."""

    def __init__(self, progress: Progress) -> None:
        self.bar = _bar() if progress is True else None
        self.callback = progress if callable(progress) else None
        self.done, self.all, self.stage = 0, 0, ""

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def take(self, line: str) -> bool:
        """Whether a line was about progress."""
        try:
            step = json.loads(line)
        except ValueError:
            return False
        if not isinstance(step, dict):
            return False
        self.all = step.get("expect", self.all)
        self.done += step.get("advance", 0)
        self.stage = step.get("stage", self.stage)
        if self.callback is not None:
            self.callback(self.done, self.all, self.stage)
        if self.bar is not None:
            self.bar.total = self.all or None
            self.bar.set_description(self.stage, refresh=False)
            self.bar.update(self.done - self.bar.n)
        return True


def _bar() -> Any:
    """A bar of tqdm, which suits terminals and notebooks; nothing where it is not installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm(total=None, unit="step", leave=False)

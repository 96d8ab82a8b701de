"""Prunes the attention heads and FFN neurons of an ONNX encoder, without retraining.

    import onnx_kprune
    report = onnx_kprune.prune("in.onnx", "out.onnx", calibration={"input_ids": ids, "attention_mask": mask})

The work is done by the program ``onnx-kprune``, which comes with this package.
"""
import importlib.util
import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

__all__ = ["Error", "program", "prune"]


class Error(RuntimeError):
    """What the program says when it cannot do what it was asked for."""


def program():
    """The path of the program ``onnx-kprune``."""
    name = "onnx-kprune.exe" if os.name == "nt" else "onnx-kprune"
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise Error(f"the program {name} is neither in {beside.parent} nor on PATH; reinstall onnx-kprune")
    return found


def prune(input, output, calibration=None, compression=None, **options):
    """Prunes the model ``input`` and writes the result to ``output``; returns the report as a dictionary.

    calibration: samples of the task: a dictionary of one array per model input, samples along the first axis; or a
        path, or several, as the command line takes them.
    compression: share of the prunable FLOPs to remove, 0 to 0.95; 0.5 if nothing else says how much.
    options: every other option of the command line, with underscores: ``threads=1``, ``speedup=2``,
        ``sweep=[0.2, 0.4]``, ``untie=True``, ``eval=...`` (as ``calibration``), ``report="report.html"``.

    Raises Error with the program's message.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        command = [program(), os.fspath(input), os.fspath(output), "--quiet", "--report", report]
        for name, data in (("calibration", calibration), ("eval", options.pop("eval", None))):
            command += _data(name, data, folder)
        if compression is not None:
            options["compression"] = compression
        for name, value in options.items():
            command += _option("--" + name.replace("_", "-"), value)
        if "onnxruntime" not in options:
            command += _library()
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise Error(done.stderr.strip())
        with open(report, encoding="utf-8") as file:
            return json.load(file)


def _data(name, data, folder):
    """The options for data that are arrays or paths."""
    if data is None:
        return []
    if isinstance(data, dict):
        import numpy

        path = os.path.join(folder, name + ".npz")
        numpy.savez(path, **{key: numpy.asarray(array) for key, array in data.items()})
        data = path
    paths = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    return [part for path in paths for part in ("--" + name, os.fspath(path))]


def _option(name, value):
    """An option as the command line takes it: a flag, a list with commas, or a value."""
    if value is None or value is False:
        return []
    if value is True:
        return [name]
    if name in ("--sweep", "--text-columns") and not isinstance(value, str):
        return [name, ",".join(str(part) for part in value)]
    values = [value] if isinstance(value, (str, os.PathLike)) or not hasattr(value, "__iter__") else value
    return [part for item in values for part in (name, str(item))]


def _library():
    """The ONNX Runtime of this interpreter, without importing it."""
    found = importlib.util.find_spec("onnxruntime")
    folder = Path(found.origin).parent / "capi" if found and found.origin else None
    has_library = folder and any(folder.glob("*onnxruntime.*"))
    return ["--onnxruntime", str(folder)] if has_library else []

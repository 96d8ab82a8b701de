"""The functions of the package, each a call of the program."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any, Union

from . import _data, _model
from ._data import Samples
from ._errors import KPruneWarning
from ._model import Model
from ._program import Progress, library, run
from ._report import Comparison, Inspection, Report

Path = Union[str, os.PathLike]


def prune(
    model: Model,
    output: Path | None = None,
    calibration: Samples = None,
    compression: float | None = None,
    *,
    eval: Samples = None,
    tokenizer: Path | None = None,
    sweep: Sequence[float] | None = None,
    speedup: float | None = None,
    latency_ms: float | None = None,
    max_drop: float | None = None,
    of: str | None = None,
    method: str | None = None,
    distil: str | float | None = None,
    sparsity: float | None = None,
    pattern: str | None = None,
    quantise: str | None = None,
    trim_vocabulary: Path | None = None,
    plan: Path | dict | None = None,
    untie: bool = False,
    samples: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
    provider: str | None = None,
    report: Path | Sequence[Path] | None = None,
    progress: Progress = None,
    **options: Any,
) -> Report:
    """Prunes a model and writes the result to ``output``; without one, the result is the report's ``model``.

    model: a path to a file or folder, the bytes of a file, or an ``onnx.ModelProto``; it is never changed.
    calibration: samples of the task: arrays by the names of the inputs, samples along the first axis, and ``labels`` where
        there are some; texts, with a tokenizer beside the model or as ``tokenizer``; batches of arrays (a list, a loader, a
        ``CalibrationDataReader``), or rows of texts and labels; or paths, as the command line takes them.
    compression: share of the prunable FLOPs to remove, 0 to 0.95; 0.5 if nothing else says how much.
    eval: samples that the result is judged by, as ``calibration``; without them, some of those are set aside.
    sweep, speedup, latency_ms, max_drop: other ways to say how much; with ``sweep``, ``output`` names several files.
    distil: ``"on"``, ``"auto"``, or how many passes it may cost.
    plan: units chosen before: a file, or what :func:`plan` gave.
    progress: ``True`` shows a bar (tqdm), a function is told ``(done, all, stage)``.
    options: every other option of the command line, with underscores: ``batch_size=16``, ``output_kind="logits:regression"``.

    Raises UsageError where an option or a wish makes no sense, else Error, with what to do. What should be known about the
    result is a KPruneWarning.
    """
    named = dict(locals())
    for other in ("model", "output", "calibration", "eval", "plan", "progress", "options"):
        named.pop(other)
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "pruned.onnx") if output is None else os.fspath(output)
        own = _plan(plan, folder)
        arguments = _arguments({**named, **own, **options}) + _samples(calibration, eval, folder)
        done = _report([_model.path_of(model, folder, "model.onnx"), target, *arguments], folder, progress)
        if output is None:
            done.model = _model.like(model, target)
    return done


def plan(model: Model, calibration: Samples = None, compression: float | None = None, **options: Any) -> Report:
    """Chooses units as :func:`prune` does, and writes no model; takes what that takes.

    The report's ``plan`` says which units stay of every sublayer. Change it, or not, and hand it to ``prune(plan=...)``.
    """
    progress = options.pop("progress", None)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "plan.json")
        arguments = ["--dry-run", "--save-plan", path]
        arguments += _samples(calibration, options.pop("eval", None), folder)
        arguments += _arguments({**options, "compression": compression})
        done = _report([_model.path_of(model, folder, "model.onnx"), *arguments], folder, progress)
        with open(path, encoding="utf-8") as file:
            done.plan = json.load(file)
    return done


def inspect(model: Model, calibration: Samples = None, **options: Any) -> Inspection:
    """What can be pruned of a model, and what cannot and why; ``options`` are those of ``onnx-kprune inspect``."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = _data.options("calibration", calibration, folder) + _arguments(options)
        path = _model.path_of(model, folder, "model.onnx")
        return Inspection(_parsed(run(["inspect", path, "--json", *arguments]), folder))


def compare(first: Model, second: Model, data: Samples = None, **options: Any) -> Comparison:
    """Two models side by side on the same samples, given as ``calibration`` of :func:`prune`: how good each is, how near
    they are, how large and how fast; ``options`` are those of ``onnx-kprune compare``."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [_model.path_of(first, folder, "first.onnx"), _model.path_of(second, folder, "second.onnx")]
        arguments = _data.options("data", data, folder) + _arguments(options)
        return Comparison(_parsed(run(["compare", *paths, "--json", *arguments]), folder))


def _samples(calibration: Samples, evaluation: Samples, folder: str) -> list[str]:
    return _data.options("calibration", calibration, folder) + _data.options("eval", evaluation, folder)


def _plan(plan: Path | dict | None, folder: str) -> dict[str, Any]:
    if not isinstance(plan, dict):
        return {"plan": plan}
    path = os.path.join(folder, "plan.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(plan, file)
    return {"plan": path}


def _report(arguments: list[str], folder: str, progress: Progress) -> Report:
    path = os.path.join(folder, "report.json")
    run([*arguments, "--json-progress", "--report", path], progress)
    with open(path, encoding="utf-8") as file:
        report = Report(_parsed(file.read(), folder))
    for warning in report["warnings"]:
        warnings.warn(warning, KPruneWarning, stacklevel=4)
    return report


def _parsed(text: str, folder: str) -> Any:
    """What the program said; where the files of a call lay is nobody's business."""
    return json.loads(text.replace(json.dumps(os.path.join(folder, ""))[1:-1], ""))


def _arguments(options: dict[str, Any]) -> list[str]:
    """Options as the command line takes them."""
    arguments = [part for name, value in options.items() for part in _option("--" + name.replace("_", "-"), value)]
    return arguments if options.get("onnxruntime") else arguments + library()


def _option(name: str, value: Any) -> list[str]:
    """A flag, a list with commas, or a value; some options may be repeated."""
    if value is None or value is False:
        return []
    if value is True:
        return [name]
    if isinstance(value, (str, os.PathLike)) or not hasattr(value, "__iter__"):
        return [name, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    if name in ("--sweep", "--text-columns"):
        return [name, ",".join(str(part) for part in value)]
    return [part for item in value for part in (name, str(item))]

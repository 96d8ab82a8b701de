"""Samples, in the forms that people have them, as files that the program reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union

from ._errors import UsageError

#: Arrays by the names of the inputs, samples along the first axis; paths; texts; or batches, each a mapping of arrays: a list
#: or a loader of them, or a ``CalibrationDataReader`` of ONNX Runtime.
Samples = Union[Mapping[str, Any], str, os.PathLike, Iterable[Any], None]


def options(name: str, samples: Samples, folder: str) -> list[str]:
    """The options that hand samples to the program; what it needs is written into ``folder``."""
    return [part for path in _files(name, samples, Path(folder)) for part in ("--" + name, os.fspath(path))]


def _files(name: str, samples: Samples, folder: Path) -> list[Any]:
    if samples is None:
        return []
    if isinstance(samples, (str, os.PathLike)):
        return [samples]
    if isinstance(samples, Mapping):
        return [_arrays(folder / f"{name}.npz", [samples])]
    if hasattr(samples, "get_next"):
        samples = iter(samples.get_next, None)
    return _several(name, list(samples), folder)


def _several(name: str, samples: list[Any], folder: Path) -> list[Any]:
    if not samples:
        raise UsageError(f"{name}: there are no samples")
    if all(isinstance(sample, Path) or _is_file(sample) for sample in samples):
        return samples
    if all(isinstance(sample, str) for sample in samples):
        return [_rows(folder / f"{name}.jsonl", [{"text": text} for text in samples])]
    if not all(isinstance(sample, Mapping) for sample in samples):
        raise UsageError(f"{name}: expected arrays by name, texts, paths, or batches of arrays by name")
    if any(isinstance(value, str) for value in samples[0].values()):
        return [_rows(folder / f"{name}.jsonl", samples)]
    alike: dict[Any, list[Mapping[str, Any]]] = {}
    for batch in samples:
        shapes = tuple((key, _array(value).shape[1:]) for key, value in sorted(batch.items()))
        alike.setdefault(shapes, []).append(batch)
    return [_arrays(folder / f"{name}-{i}.npz", batches) for i, batches in enumerate(alike.values())]


def _is_file(sample: Any) -> bool:
    # A text may be too long for a path.
    try:
        return isinstance(sample, (str, os.PathLike)) and os.path.exists(sample)
    except (OSError, ValueError):
        return False


def _rows(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({key: _plain(value) for key, value in row.items()}, ensure_ascii=False) + "\n")
    return path


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _arrays(path: Path, batches: list[Mapping[str, Any]]) -> Path:
    import numpy

    joined = {key: numpy.concatenate([numpy.atleast_1d(_array(batch[key])) for batch in batches]) for key in batches[0]}
    numpy.savez(path, **joined)
    return path


def _array(value: Any) -> Any:
    import numpy

    # Tensors of PyTorch may lie elsewhere, or want gradients.
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return numpy.asarray(value)

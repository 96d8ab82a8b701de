"""Prunes the attention heads and FFN neurons of transformers in ONNX, without retraining.

    import onnx_kprune
    report = onnx_kprune.prune("in.onnx", "out.onnx", calibration={"input_ids": ids, "attention_mask": mask})
    print(report)

Models are paths, folders, bytes or ``onnx.ModelProto``; samples are arrays, texts, batches or paths. The work is done by the
program ``onnx-kprune``, which comes with this package, in a process of its own: what it takes of memory is given back, and
Ctrl-C ends it.
"""

from importlib import metadata as _metadata

from ._calls import compare, inspect, plan, prune
from ._errors import Error, KPruneWarning, UsageError
from ._program import program
from ._report import Comparison, Inspection, Report

try:
    __version__ = _metadata.version("onnx-kprune")
except _metadata.PackageNotFoundError:  # Run from a checkout.
    __version__ = "0"

__all__ = [
    "Comparison",
    "Error",
    "Inspection",
    "KPruneWarning",
    "Report",
    "UsageError",
    "compare",
    "inspect",
    "plan",
    "program",
    "prune",
]

"""A pass of Olive (pip install olive-ai onnx-kprune) that prunes a model on its way to where it runs.

    from olive_pass import KPrune
    smaller = create_pass_from_dict(KPrune, {"calibration": "task.jsonl", "compression": 0.5}).run(model, "smaller")

Run as a program, it does that with two paths: python examples/olive_pass.py IN.onnx OUT_FOLDER CALIBRATION
"""

import sys
from pathlib import Path

import onnx_kprune
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.pass_config import BasePassConfig, PassConfigParam


class KPrune(Pass):
    """Prunes attention heads and FFN neurons, without retraining."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "compression": PassConfigParam(type_=float, default_value=0.5, description="Share of the prunable FLOPs."),
            "calibration": PassConfigParam(type_=str, default_value=None, description="Samples of the task: a file."),
            "options": PassConfigParam(type_=dict, default_value={}, description="Other options of onnx_kprune.prune."),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        target = resolve_onnx_path(output_model_path)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        onnx_kprune.prune(model.model_path, target, config.calibration, config.compression, **config.options)
        return ONNXModelHandler(model_path=target)


if __name__ == "__main__":
    source, folder, calibration = sys.argv[1:]
    step = create_pass_from_dict(KPrune, {"calibration": calibration, "compression": 0.5}, disable_search=True)
    print(step.run(ONNXModelHandler(model_path=source), folder).model_path)

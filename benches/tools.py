#!/usr/bin/env python3
"""What other tools make of the same model, without training: writes docs/tools.md.

    python3 -m venv tools && tools/bin/pip install onnx onnxruntime onnxsim
    tools/bin/python benches/tools.py PROGRAM FOLDER PAGE.md [--heads N] [--hidden N] [--samples 512]

FOLDER holds model.onnx (a BERT), calibration.npz, and eval.npz, whose samples nothing is calibrated on. Every model is compared
with the original by `onnx-kprune compare`, which measures the two in turns.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxsim
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.transformers import optimizer

#: The share that onnxsim takes of heads and of neurons, and ours of FLOPs.
SHARES = (0.4, 0.6)

#: Samples of which onnxsim's regression is given so many mini-batches: with 64 samples it takes minutes, and gigabytes with more.
BATCHES = 2


class Bench:
    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        self.model = str(arguments.folder / "model.onnx")
        arrays = np.load(arguments.folder / "calibration.npz")
        inputs = {i.name for i in onnx.load(self.model, load_external_data=False).graph.input}
        rows = np.random.default_rng(0).permutation(len(arrays[next(iter(inputs))]))[: arguments.samples]
        self.batches = [{name: arrays[name][rows[i : i + 32]] for name in inputs} for i in range(0, len(rows), 32)]

    def path(self, name):
        return str(self.folder / f"{name}.onnx")

    def saved(self, name, model):
        onnx.save(model, self.path(name))
        return self.path(name)

    def run(self, *arguments):
        # The ONNX Runtime beside this Python serves all.
        environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
        command = [str(a) for a in (self.arguments.program.absolute(), *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr)
        return done.stdout

    def fused(self):
        """The operators of ONNX Runtime's transformer optimiser, which onnxsim finds heads in."""
        a = self.arguments
        fused = optimizer.optimize_model(self.model, "bert", num_heads=a.heads, hidden_size=a.hidden, opt_level=0)
        fused.save_model_to_file(self.path("fused"))
        return self.path("fused")

    def simplified(self, source, share):
        """Neurons and heads by onnxsim, by weights and activations, and its ridge regression after."""
        options = {"calibration_data": self.batches, "sparsity": share}
        few = self.batches[:BATCHES]
        pruned = onnxsim.apply_structured_wanda_pruning(source, **options)
        pruned = onnxsim.apply_attention_head_wanda_pruning(pruned, **options)
        return onnxsim.apply_pruning_finetune(source, pruned, calibration_data=few)

    def ours(self, source, share):
        target = self.path(f"{pathlib.Path(source).stem}-ours-{share}")
        data = self.arguments.folder / "calibration.npz"
        self.run(source, target, "--calibration", data, "--samples", self.arguments.samples, "--compression", share, "-q")
        return target

    def models(self):
        """Every model with how it was made."""
        quantised = lambda source, name: quantize_dynamic(source, self.path(name)) or self.path(name)
        fused = self.fused()
        yield "ONNX Runtime's optimiser", fused
        yield "onnxsim", self.saved("simple", onnxsim.simplify(self.model)[0])
        yield "onnxsim, structures of the plain file, 0.6", self.saved("plain", self.simplified(self.model, 0.6))
        for share in SHARES:
            pruned = self.saved(f"onnxsim-{share}", self.simplified(fused, share))
            yield f"ONNX Runtime's optimiser, then onnxsim, heads and structures, {share}", pruned
        yield "ONNX Runtime's dynamic quantisation", quantised(self.model, "int8")
        ours = {share: self.ours(self.model, share) for share in SHARES}
        for share, pruned in ours.items():
            yield f"onnx-kprune, {share}", pruned
        yield "ONNX Runtime's optimiser, then onnx-kprune, 0.6", self.ours(fused, 0.6)
        yield "onnx-kprune, 0.6, then dynamic quantisation", quantised(ours[0.6], "both")

    def row(self, name, path):
        found = json.loads(self.run("compare", self.model, path, "--data", self.arguments.folder / "eval.npz", "--json",
                                    "--threads", "1"))
        first, own = found["a"], found["b"]
        score, fidelity = own["quality"]["scores"][0], own["quality"]["fidelity"]
        low, high = own["latency"]["interval"]
        cells = [name, f"{own['bytes'] / first['bytes']:.1%}", f"{own['parameters'] / first['parameters']:.1%}",
                 f"{score['value']:.4f} ± {score['error']:.4f}", f"{fidelity['divergence']:.4f}",
                 f"{own['latency']['speedup']:.2f} ({low:.2f} to {high:.2f})"]
        return f"| {' | '.join(cells)} |", first["quality"]["scores"][0], own["quality"]["samples"]


def page(arguments):
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, pathlib.Path(folder))
        rows = [bench.row(name, path) for name, path in bench.models()]
        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("onnx", "onnxruntime", "onnxsim")]
        version = bench.run("--version").strip()
    score, samples = rows[0][1:]
    return "\n".join([
        "# What other tools make of the same model", "",
        f"Written by `benches/tools.py` on {datetime.date.today()} with {version}, {', '.join(versions)}: tools that take an ONNX",
        f"file and no training. The model is {arguments.folder.name}, calibrated on {arguments.samples} samples and judged by",
        f"{samples} others (the original's {score['name']}: {score['value']:.4f}); size and parameters are shares of the",
        "original's, the distance is the mean KL to it in nats, and the speed-up that of one sample on one thread.", "",
        "| | size | parameters | " + score["name"] + " | KL | speed-up |", "|---|---|---|---|---|---|",
        *[row for row, *_ in rows], "",
        "onnxsim's numbers are shares of heads and neurons, and ours are of FLOPs. It finds heads in fused operators alone, which is why",
        f"its other rows start from ONNX Runtime's optimiser. Its regression is given {32 * BATCHES} samples, with which it takes minutes.", ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--samples", type=int, default=512)
    arguments = parser.parse_args()
    arguments.page.write_text(page(arguments), encoding="utf-8")

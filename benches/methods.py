#!/usr/bin/env python3
"""The methods side by side, on one task: a table in Markdown.

    python benches/methods.py PROGRAM MODEL CALIBRATION EVAL [--methods kprune kwon magnitude random]
        [--sweep 0.2,0.4,0.6,0.8] [--seeds 1 2 3] [--samples 512] [--label-column NAME]

Score on the labels of EVAL with its standard error (of the samples), KL to the original in nats, and what choosing cost in
forward-equivalents, without judging; means over seeds, which draw the samples.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import tempfile


def run(arguments, method, seed):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        report = folder / "report.json"
        command = [arguments.program, arguments.model, folder / "out-{compression}.onnx", "--calibration",
                   arguments.calibration, "--eval", arguments.eval, "--method", method, "--sweep", arguments.sweep,
                   "--seed", seed, "--samples", arguments.samples, "--report", report, "-q"]
        if arguments.label_column:
            command += ["--label-column", arguments.label_column]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return json.loads(report.read_text())


def main():
    parser = argparse.ArgumentParser()
    for name in ("program", "model", "calibration", "eval"):
        parser.add_argument(name)
    parser.add_argument("--methods", nargs="*", default=["kprune", "kwon", "magnitude", "random"])
    parser.add_argument("--sweep", default="0.2,0.4,0.6,0.8")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--label-column")
    arguments = parser.parse_args()
    shares = arguments.sweep.split(",")
    print(f"| method | {' | '.join(shares)} | cost of all |\n|---|{'---|' * (len(shares) + 1)}")
    for method in arguments.methods:
        reports = [run(arguments, method, seed) for seed in arguments.seeds]
        cells = []
        for i in range(len(shares)):
            models = [r["sweep"][i]["quality"] for r in reports]
            score = statistics.mean(m["scores"][0]["value"] for m in models)
            error = math.sqrt(max(score * (1 - score), 0) / models[0]["samples"])
            divergence = statistics.mean(m["fidelity"]["divergence"] or 0.0 for m in models)
            cells.append(f"{score:.4f} ± {error:.4f} / {divergence:.4f}")
        spent = []
        for report in reports:
            stages = {s["name"]: s["seconds"] for s in report["cost"]["stages"]}
            choosing = sum(stages.get(name, 0.0) for name in ("teacher", "measure", "tune", "advance"))
            spent.append(choosing / report["cost"]["forward"])
        print(f"| {method} | {' | '.join(cells)} | {statistics.mean(spent):.1f} |", flush=True)


if __name__ == "__main__":
    main()

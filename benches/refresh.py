#!/usr/bin/env python3
"""refresh.py BINARY FOLDER EVAL.npz OUT.svg [--every 1 2 3 4 6 12] [--compression 0.4 0.6 0.8]

How accuracy and cost depend on how often knowledge is measured: prunes FOLDER/model.onnx with FOLDER/calibration.npz
for every choice, prints a table and draws OUT.svg.
"""
import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort

COLOURS = ("#2a6fdb", "#d9622b", "#2b9348", "#8338ec")


def accuracy(path, data):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    model = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in model.get_inputs()]
    logits = [model.run(None, {n: data[n][k:k + 64] for n in names})[0] for k in range(0, len(data["labels"]), 64)]
    return float((np.concatenate(logits).argmax(1) == data["labels"]).mean())


def measure(args):
    """(compression, every, forward-equivalents, accuracy), one after the other."""
    data = dict(np.load(args.eval))
    with tempfile.TemporaryDirectory() as folder:
        output, report = Path(folder) / "out.onnx", Path(folder) / "out.json"
        for compression in args.compression:
            for every in args.every:
                command = [args.binary, args.folder / "model.onnx", output, "--calibration", args.folder / "calibration.npz",
                           "--compression", compression, "--refresh", every, "--threads", 1, "--report", report, "--quiet"]
                subprocess.run([str(c) for c in command], check=True)
                cost = json.loads(report.read_text())["cost"]["forward_equivalents"]
                yield compression, every, cost, accuracy(output, data)


def draw(rows):
    """Accuracy against cost, one line for every compression."""
    costs, scores = [r[2] for r in rows], [100 * r[3] for r in rows]
    low, high, right = min(scores) - 0.5, max(scores) + 0.5, 1.08 * max(costs)
    x, y = lambda c: 60 + 560 * c / right, lambda s: 330 - 300 * (s - low) / (high - low)
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 390" font-family="sans-serif" font-size="13">',
             '<rect width="680" height="390" fill="white"/>',
             '<path d="M60 20V330H620" fill="none" stroke="#888"/>',
             '<text x="340" y="375" text-anchor="middle">cost of the run, forward-equivalents</text>',
             '<text x="18" y="180" text-anchor="middle" transform="rotate(-90 18 180)">accuracy, %</text>']
    parts += [f'<text x="{x(c):.0f}" y="348" text-anchor="middle">{c}</text>' for c in range(0, int(right) + 1, 5)]
    parts += [f'<text x="54" y="{y(s) + 4:.0f}" text-anchor="end">{s}</text>' for s in range(int(low) + 1, int(high) + 1)]
    for compression, colour in zip(sorted({r[0] for r in rows}), COLOURS):
        own = sorted((r[2], 100 * r[3], r[1]) for r in rows if r[0] == compression)
        line = " ".join(f"{x(c):.1f},{y(s):.1f}" for c, s, _ in own)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for c, s, every in own:
            parts.append(f'<circle cx="{x(c):.1f}" cy="{y(s):.1f}" r="4" fill="{colour}"/>'
                         f'<text x="{x(c):.1f}" y="{y(s) - 9:.1f}" text-anchor="middle" fill="{colour}">{every}</text>')
        parts.append(f'<text x="{x(own[-1][0]) + 12:.1f}" y="{y(own[-1][1]) + 4:.1f}" fill="{colour}">{compression}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("folder", type=Path)
    parser.add_argument("eval", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 2, 3, 4, 6, 12])
    parser.add_argument("--compression", type=float, nargs="+", default=[0.4, 0.6, 0.8])
    args = parser.parse_args()
    rows = []
    print("| compression | measured at every | forward-equivalents | accuracy |\n|---|---|---|---|")
    for row in measure(args):
        rows.append(row)
        print(f"| {row[0]} | {row[1]} | {row[2]:.1f} | {row[3]:.4f} |", flush=True)
        args.out.write_text(draw(rows))


if __name__ == "__main__":
    main()

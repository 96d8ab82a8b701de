#!/usr/bin/env python3
"""Perplexity of decoders by the share of parameters removed, for every method: the table of the K-prune authors' rebuttal.

    python benches/decoders.py PROGRAM FOLDER [--samples 128] [--seeds 0 1 2] [--shares 0.05 0.1 0.15 0.2]

FOLDER holds a decoder, calibration.txt beside it or above it, and eval.txt. Prints Markdown: relative changes of the
perplexity on eval.txt in percent, mean and range over the seeds that draw the calibration segments.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile

METHODS = {
    "`obs`": [], "`kprune`": ["--method", "kprune"], "`kwon`": ["--method", "kwon", "--uneven-heads"],
    "`besa`": ["--method", "besa", "--uneven-heads"], "`magnitude`": ["--method", "magnitude"],
    "`random`": ["--method", "random"], "`obs`, `--distil auto`": ["--distil", "auto"],
}
# OPT-125m, WikiText-2, 128 sentences of C4: relative to the dense model's 27.66.
PUBLISHED = {0.05: -2.82, 0.1: -1.27, 0.15: 4.23, 0.2: 14.68}


def beside(folder, name):
    return next(path for path in (folder / name, folder.parent / name) if path.is_file())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--samples", default="128")
    parser.add_argument("--seeds", nargs="*", default=["0", "1", "2"])
    parser.add_argument("--shares", nargs="*", type=float, default=[0.05, 0.1, 0.15, 0.2])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--threads", default="2")
    arguments = parser.parse_args()
    folder, shares = arguments.folder, arguments.shares
    found = {}
    for name in arguments.methods:
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as place:
                report = pathlib.Path(place) / "report.json"
                command = [arguments.program, folder / "model.onnx", pathlib.Path(place) / "out.onnx", "--of", "params"]
                command += ["--sweep", ",".join(map(str, shares)), "--samples", arguments.samples, "--seed", seed]
                command += ["--calibration", beside(folder, "calibration.txt"), "--eval", beside(folder, "eval.txt")]
                command += ["--report", report, "--threads", arguments.threads, "-q", *METHODS[name]]
                subprocess.run([str(c) for c in command], check=True, capture_output=True)
                written = json.loads(report.read_text())
            score = lambda model: model["quality"]["scores"][0]["value"]
            dense = score(written["original"])
            rows = written["sweep"] or [written]
            for share, row in zip(shares, rows):
                found.setdefault((name, share), []).append(100 * (score(row) / dense - 1))
                found.setdefault((name, share, "kl"), []).append(row["quality"]["fidelity"]["divergence"])
    print(f"Dense: {dense:.2f}.\n")
    print("| | " + " | ".join(f"{100 * s:.0f} %" for s in shares) + " |")
    print("|---" * (len(shares) + 1) + "|")
    if all(share in PUBLISHED for share in shares):
        print("| K-prune, OPT-125m, published | " + " | ".join(f"{PUBLISHED[s]:+.2f}" for s in shares) + " |")
    for name in arguments.methods:
        cells = []
        for share in shares:
            values, kl = found[name, share], statistics.mean(found[name, share, "kl"])
            spread = f" ({min(values):+.2f} to {max(values):+.2f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):+.2f}{spread}, {kl:.4f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

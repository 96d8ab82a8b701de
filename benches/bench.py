#!/usr/bin/env python3
"""bench.py BINARY [--only NAME] [--out FILE.md]: what pruning costs, and what it gives.

For a real classifier (../shared/sst2 if it is there, else fixtures/reviews) and a BERT-base with random weights:
the cost of a run in forward-equivalents by stage and its peak memory, with the published schedule and with the
default one; then latency (1 sample of 128 tokens) and throughput (32 samples of 32 tokens) of models pruned at
0.2 to 0.8 against the original, which take turns in one process. Ratios count; seconds are those of one machine.
"""
import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

HERE = Path(__file__).resolve().parent
COMPRESSIONS = (0.2, 0.4, 0.6, 0.8)


class Bench:
    def __init__(self, binary, out):
        self.binary, self.out = binary, out

    def say(self, line=""):
        print(line, flush=True)
        if self.out:
            with open(self.out, "a") as file:
                print(line, file=file)

    def prune(self, model, data, output, *options):
        """The report of a run."""
        report = output.with_suffix(".json")
        command = [self.binary, model, output, "--calibration", data, "--report", report, "--quiet", *options]
        subprocess.run([str(c) for c in command], check=True)
        return json.loads(report.read_text())

    def cost(self, model, data, folder):
        self.say("| schedule | threads | forward-equivalents | by stage | session set-up | peak memory |")
        self.say("|---|---|---|---|---|---|")
        for schedule, refresh in (("published", ["--refresh", "1"]), ("default", [])):
            report = self.prune(model, data, folder / "cost.onnx", "--compression", "0.6", "--threads", "1", *refresh)
            cost, megabytes = report["cost"], 1 / 2**20
            forward = cost["forward"]
            stages = (f"{s['name']} {s['seconds'] / forward:.2f}" for s in cost["stages"] if s["seconds"] > 0.01 * forward)
            limit = 3 * report["input"]["bytes"] * megabytes + 1024
            self.say(f"| {schedule} | 1 | {cost['forward_equivalents']:.1f} | {', '.join(stages)} "
                     f"| {100 * cost['sessions'] / cost['total']:.1f} % "
                     f"| {cost['peak_memory'] * megabytes:.0f} MiB (model x 3 + 1 GiB: {limit:.0f} MiB) |")
        self.say()

    def speed(self, model, data, folder, longest=128):
        shapes = {f"latency, 1 x {longest}": (1, longest), "throughput, 32 x 32": (32, 32)}
        pruned = {0.0: (model, 1.0)}
        for compression in COMPRESSIONS:
            output = folder / f"{compression}.onnx"
            report = self.prune(model, data, output, "--compression", compression)
            pruned[compression] = (output, report["flops"]["kept"] / report["flops"]["prunable"])
        for threads in sorted({1, os.cpu_count()}):
            sessions = {c: session(path, threads) for c, (path, _) in pruned.items()}
            times = {name: medians(sessions, shape) for name, shape in shapes.items()}
            self.say(f"| compression, {threads} thread{'s'[:threads - 1]} | prunable FLOPs kept | "
                     + " | ".join(shapes) + " |")
            self.say("|---|---|" + "---|" * len(shapes))
            for compression, (_, kept) in pruned.items():
                cells = []
                for name, (batch, _) in shapes.items():
                    seconds, share = times[name][compression], times[name][compression] / times[name][0.0]
                    cells.append(f"{1000 * seconds:.2f} ms, {100 * share:.0f} %" if batch == 1 else
                                 f"{batch / seconds:.0f}/s, x {1 / share:.2f}")
                self.say(f"| {compression} | {100 * kept:.0f} % | {' | '.join(cells)} |")
            self.say()


def session(path, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def medians(sessions, shape, seconds=20):
    """Median time of every model; they take turns, so that a busy machine slows all of them."""
    feeds = {i.name: np.ones(shape, np.int64) for i in next(iter(sessions.values())).get_inputs()}
    times = {name: [] for name in sessions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0.0]) < 15:
        for name, model in sessions.items():
            start = time.perf_counter()
            model.run(None, feeds)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t[2:]) for name, t in times.items()}


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--only", choices=["real", "bert"])
    parser.add_argument("--out", type=Path, help="append the tables to this file too")
    args = parser.parse_args()
    bench = Bench(args.binary, args.out)
    version = subprocess.run([args.binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    bench.say(f"## {datetime.date.today()}: {version}, ONNX Runtime {ort.__version__}, {processor()}, "
              f"{os.cpu_count()} cores\n")
    shared = HERE.parent.parent / "shared/sst2"
    real = shared if (shared / "model.onnx").exists() else HERE.parent / "fixtures/reviews"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if args.only != "bert":
            bench.say(f"### {'SST-2, MiniLM-L6' if real == shared else 'fixtures/reviews'}\n")
            data = real / "calibration.npz"
            bench.cost(real / "model.onnx", data, folder)
            bench.speed(real / "model.onnx", data, folder, 128 if real == shared else 48)
        if args.only != "real":
            bench.say("### BERT-base, random weights, 10,000 tokens\n")
            make = [sys.executable, HERE / "bert.py"]
            subprocess.run([*make, folder / "bert"], check=True)
            subprocess.run([*make, folder / "few", "--layers", "1", "--tokens", "500"], check=True)
            model, few = folder / "bert/model.onnx", folder / "few/calibration.npz"
            bench.cost(model, folder / "bert/calibration.npz", folder)
            bench.speed(model, few, folder)


if __name__ == "__main__":
    main()

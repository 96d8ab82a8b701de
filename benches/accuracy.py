#!/usr/bin/env python3
"""How accurate every method is, on several tasks: measures, and writes the page.

    python benches/accuracy.py measure PROGRAM RESULTS.jsonl FOLDER [--task TASK] [--methods obs kprune ...]
        [--sweep 0.4,0.6,0.8] [--seeds 1 2 3] [--samples 512] [--calibration FILE] [--eval FILE] [--name NAME] [-- OPTIONS]
    python benches/accuracy.py page RESULTS.jsonl PAGE.md FIGURE.svg

FOLDER holds model.onnx, calibration.npz, and eval-large.npz or eval.npz, whose samples nothing is calibrated on. TASK gives
the model other outputs (tasks.py). Each measurement is a line of RESULTS: what was measured before is not measured again.
OPTIONS go to the program; --name says what to call a method with them.
"""

import argparse
import collections
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile

import tasks

COLOURS = ("#2a6fdb", "#d9622b", "#2b9348", "#8338ec", "#b08900", "#c2185b")
CHOOSING = ("teacher", "measure", "tune", "advance", "distil")
KEY = ("set", "task", "name", "samples", "seed", "sweep")


def distance(fidelity):
    """How far from the original, and in what."""
    if fidelity["divergence"] is not None:
        return fidelity["divergence"], "KL"
    if fidelity["correlation"] is not None:
        return 1 - fidelity["correlation"], "1 - correlation"
    return 1 - fidelity["cosine"], "1 - cosine"


def run(arguments, model, method, seed):
    """The report of one sweep."""
    large = arguments.folder / "eval-large.npz"
    judged_by = arguments.eval or (large if large.exists() and not arguments.task else arguments.folder / "eval.npz")
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        command = [arguments.program, model, pathlib.Path(folder) / "out.onnx", "--calibration",
                   arguments.calibration or arguments.folder / "calibration.npz", "--eval", judged_by, "--method", method,
                   "--sweep", arguments.sweep, "--seed", seed, "--samples", arguments.samples, "--report", report, "-q",
                   "--threads", arguments.threads, *arguments.options]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return json.loads(report.read_text())


def measure(arguments):
    results = arguments.results
    known = {tuple(json.loads(line)[k] for k in KEY) for line in results.read_text().splitlines()} if results.exists() else set()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.folder / "model.onnx"
        if arguments.task:
            model = pathlib.Path(folder) / "model.onnx"
            tasks.make(arguments.folder / "model.onnx", arguments.task, model)
        for seed in arguments.seeds:
            for method in arguments.methods:
                key = dict(set=arguments.folder.name, task=arguments.task or "", name=arguments.name or method,
                           samples=arguments.samples, seed=seed, sweep=arguments.sweep)
                if tuple(key.values()) in known:
                    continue
                report = run(arguments, model, method, seed)
                spent = {s["name"]: s["seconds"] for s in report["cost"]["stages"]}
                cost = sum(spent.get(stage, 0.0) for stage in CHOOSING) / report["cost"]["forward"]
                models = []
                for one in report["sweep"]:
                    quality = one["quality"]
                    apart, unit = distance(quality["fidelity"])
                    models.append(dict(apart=apart, unit=unit, agreement=quality["fidelity"]["agreement"],
                                       judged=quality["samples"],
                                       score=quality["scores"][0]["value"] if quality["scores"] and not arguments.task else None))
                with results.open("a") as file:
                    file.write(json.dumps({**key, "cost": round(cost, 2), "models": models}) + "\n")
                print(key, [round(m["apart"], 4) for m in models], flush=True)


def mean(values):
    values = [v for v in values if v is not None]
    return statistics.mean(values) if values else None


def tables(lines):
    """For every set, task and numbers of samples: rows of methods."""
    found = collections.OrderedDict()
    for line in lines:
        place = (line["set"], line["task"], line["samples"], line["sweep"], line["models"][0]["judged"])
        found.setdefault(place, collections.OrderedDict()).setdefault(line["name"], []).append(line)
    return found


def cell(runs, i):
    models = [run["models"][i] for run in runs]
    apart, score, agreement = (mean([m[k] for m in models]) for k in ("apart", "score", "agreement"))
    parts = [f"{apart:.4f}"]
    if agreement is not None:
        parts.append(f"{agreement:.3f}")
    if score is not None:
        parts.append(f"{score:.4f} ± {math.sqrt(score * (1 - score) / models[0]['judged']):.4f}")
    return " / ".join(parts)


def page(arguments):
    lines = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    text = [arguments.page.read_text().split(BEGIN)[0] + BEGIN, ""]
    for (name, task, samples, sweep, judged), rows in tables(lines).items():
        first = next(iter(rows.values()))[0]["models"][0]
        what = [first["unit"]] + ["agreement"] * (first["agreement"] is not None)
        what += ["accuracy ± its standard error"] * (first["score"] is not None)
        text += [f"### {name}{', ' + task if task else ''}: {samples} samples", "",
                 f"{' / '.join(what)}, on {judged} others.", "",
                 f"| method | {' | '.join(sweep.split(','))} | seeds | cost of all |",
                 f"|---|{'---|' * (len(sweep.split(',')) + 2)}"]
        for method, runs in rows.items():
            cells = [cell(runs, i) for i in range(len(sweep.split(",")))]
            text.append(f"| {method} | {' | '.join(cells)} | {len(runs)} | {statistics.median(r['cost'] for r in runs):.1f} |")
        text.append("")
    arguments.page.write_text("\n".join(text))
    figure(arguments.figure, lines)


BEGIN = "<!-- What follows is made by benches/accuracy.py. -->"


def spread(heights, apart=12):
    """The same, so far apart that labels can be read."""
    placed, least = {}, -math.inf
    for method, height in sorted(heights.items(), key=lambda item: item[1]):
        placed[method] = least = max(height, least + apart)
    return placed


def figure(path, lines):
    """KL against compression, on a logarithmic scale, one line a method; one panel for every set with labels."""
    panels = [(place, rows) for place, rows in tables(lines).items() if not place[1] and len(rows) > 1]
    colours = dict(zip(dict.fromkeys(method for _, rows in panels for method in rows), COLOURS))
    width, height, across = 420, 300, 2
    whole = f'{width * min(across, len(panels))} {(height + 40) * math.ceil(len(panels) / across)}'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole}" role="img" '
             'aria-label="KL to the original against compression, by method" font-family="sans-serif" font-size="12">',
             '<rect width="100%" height="100%" fill="white"/>']
    for k, ((name, _, samples, sweep, _), rows) in enumerate(panels):
        shares = [float(s) for s in sweep.split(",")]
        points = {m: [mean([r["models"][i]["apart"] for r in runs]) for i in range(len(shares))] for m, runs in rows.items()}
        low, high = (f(math.log10(max(v, 1e-6)) for p in points.values() for v in p) for f in (min, max))
        low, high = math.floor(low * 2) / 2, math.ceil(high * 2) / 2
        x = lambda s: 60 + 220 * (s - shares[0]) / max(shares[-1] - shares[0], 1e-9)
        y = lambda v: height - 30 - (height - 70) * (math.log10(max(v, 1e-6)) - low) / (high - low)
        parts.append(f'<g transform="translate({k % across * width} {k // across * (height + 40)})">')
        parts += [f'<text x="170" y="22" text-anchor="middle" font-weight="bold">{name}, {samples} samples</text>',
                  f'<path d="M{x(shares[0]) - 10:.0f} 40V{height - 20}H{x(shares[-1]) + 10:.0f}" fill="none" stroke="#888"/>']
        parts += [f'<text x="{x(s):.0f}" y="{height - 4}" text-anchor="middle">{s:g}</text>' for s in shares]
        ticks = [10 ** (low + i / 2) for i in range(int((high - low) * 2) + 1)]
        parts += [f'<text x="{x(shares[0]) - 14:.0f}" y="{y(v) + 4:.0f}" text-anchor="end">{v:.2g}</text>' for v in ticks]
        heights = spread({method: y(values[-1]) for method, values in points.items()})
        for method, values in points.items():
            line = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(shares, values))
            parts += [f'<polyline points="{line}" fill="none" stroke="{colours[method]}" stroke-width="2"/>',
                      f'<text x="{x(shares[-1]) + 6:.0f}" y="{heights[method] + 4:.0f}" fill="{colours[method]}">{method}</text>']
        parts.append(f'<text x="170" y="{height + 16}" text-anchor="middle">FLOPs removed</text></g>')
    path.write_text("\n".join(parts + ["</svg>", ""]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    own = commands.add_parser("measure")
    for name in ("program", "results", "folder"):
        own.add_argument(name, type=pathlib.Path)
    own.add_argument("--task", choices=tasks.TASKS)
    own.add_argument("--methods", nargs="*", default=["obs", "kprune"])
    own.add_argument("--sweep", default="0.4,0.6,0.8")
    own.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    own.add_argument("--samples", type=int, default=512)
    own.add_argument("--threads", type=int, default=1)
    own.add_argument("--calibration", type=pathlib.Path)
    own.add_argument("--eval", type=pathlib.Path)
    own.add_argument("--name")
    own = commands.add_parser("page")
    for name in ("results", "page", "figure"):
        own.add_argument(name, type=pathlib.Path)
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:end])
    arguments.options = given[end + 1:]
    {"measure": measure, "page": page}[arguments.command](arguments)


if __name__ == "__main__":
    main()

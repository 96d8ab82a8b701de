"""Uses the installed package: model, arrays, texts and where to write are the arguments."""
import json
import pathlib
import sys
import threading
import warnings

import numpy as np
import onnx_kprune as kprune

model, data, texts, out = sys.argv[1:]
tokenizer = pathlib.Path(model).with_name("tokenizer.json")
arrays = {name: array[:200] for name, array in np.load(data).items()}
rows = [json.loads(line)["text"] for line in pathlib.Path(texts).read_text().splitlines()[:200]]

# Arrays and a file; the eighth that judges is set aside.
report = kprune.prune(model, out, calibration=arrays, compression=0.5, threads=1)
assert report["calibration"]["samples"] == 175, report["calibration"]
assert report["flops"]["kept"] <= 0.5 * report["flops"]["prunable"], report["flops"]
assert report["original"]["judged_on"]["origin"] == "set-aside" and report.model is None
assert "agreement" in str(report) and "<table>" in report._repr_html_()
report = kprune.prune(model, out, calibration=data, samples=100, sweep=[0.2, 0.4], untie=True)
assert [m["compression"] for m in report["sweep"]] == [0.2, 0.4], report["sweep"]

# Bytes and texts, with progress.
seen = []
content = pathlib.Path(model).read_bytes()
report = kprune.prune(content, calibration=rows, tokenizer=tokenizer, progress=lambda *step: seen.append(step))
assert isinstance(report.model, bytes) and len(report.model) < len(content)
assert seen[-1][0] == seen[-1][1] > 0 and any("sublayer" in stage for *_, stage in seen), seen[-1]
compared = kprune.compare(content, report.model, data={name: array[:64] for name, array in np.load(data).items()})
assert compared["b"]["bytes"] == len(report.model) and "speed-up" in str(compared)

# Batches of different lengths, as loaders and readers of calibration data give them.
batches = []
for start in range(0, 160, 16):
    batch = {name: array[start : start + 16] for name, array in arrays.items() if name != "labels"}
    longest = int(batch["attention_mask"].sum(1).max())
    batches.append({name: array[:, :longest] for name, array in batch.items()})


class Reader:
    def __init__(self):
        self.batches = iter(batches)

    def get_next(self):
        return next(self.batches, None)


first = kprune.prune(model, out, calibration=iter(batches))
again = kprune.prune(model, out, calibration=Reader())
assert first["calibration"]["samples"] == 140 and first["sublayers"] == again["sublayers"]
labelled = [{"text": text, "label": i % 2} for i, text in enumerate(rows)]
assert kprune.prune(model, out, calibration=labelled)["quality"]["scores"][0]["name"] == "accuracy"

# A plan, changed and applied.
chosen = kprune.plan(model, arrays, 0.4)
chosen.plan["sublayers"][0]["keep"] = "0-1, 4"
applied = kprune.prune(model, out, calibration=arrays, plan=chosen.plan)
assert applied["sublayers"][0]["kept"] == [0, 1, 4]
assert kprune.inspect(content)["prunable_parameters"] > 0

# What goes wrong is said in a line, and what should be known is a warning.
for kind, call in [
    (kprune.Error, lambda: kprune.prune("nowhere.onnx", out)),
    (kprune.UsageError, lambda: kprune.prune(model, out, compression=3)),
    (kprune.UsageError, lambda: kprune.prune(model, out, calibration=[])),
    (ValueError, lambda: kprune.prune(12, out)),
]:
    try:
        call()
    except kind as error:
        assert "\n" not in str(error) and str(error), error
    else:
        raise SystemExit(f"no {kind.__name__}")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    kprune.prune(model, out)
assert any(issubclass(w.category, kprune.KPruneWarning) and "English" in str(w.message) for w in caught), caught

# An interruption ends the program, and nothing is left behind.
stopped = pathlib.Path(out).with_name("stopped.onnx")


def interrupt(*_):
    raise KeyboardInterrupt


try:
    kprune.prune(model, stopped, calibration=arrays, progress=interrupt)
except KeyboardInterrupt:
    left = [path.name for path in stopped.parent.iterdir() if "stopped" in path.name or path.name.endswith(".tmp")]
    assert not left, left
else:
    raise SystemExit("nothing was interrupted")
assert threading.active_count() == 1
assert kprune.__version__ != "0" and (pathlib.Path(kprune.__file__).parent / "py.typed").is_file()

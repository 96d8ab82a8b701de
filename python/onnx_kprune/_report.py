"""What the program says of a run, as dictionaries that show themselves."""

from __future__ import annotations

import html
from typing import Any


class _Shown(dict):
    """A dictionary that a notebook shows as a table."""

    def rows(self) -> list[tuple[str, str]]:
        """What tells most, as names and values."""
        raise NotImplementedError

    def __str__(self) -> str:
        rows = self.rows()
        width = max((len(name) for name, _ in rows), default=0) + 2
        return "\n".join(f"{name:<{width}}{value}" for name, value in rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self.rows()
        )
        return f"<table>{rows}</table>"


class Report(_Shown):
    """What a run did: everything of its JSON report, by key, and the model where no ``output`` was named."""

    #: The pruned model, in the form that the original was given in; ``None`` where it was written to a file.
    model: Any = None

    #: The units that stay, as ``--plan`` takes them; of :func:`plan` alone.
    plan: dict | None = None

    def rows(self) -> list[tuple[str, str]]:
        flops, output = self["flops"], self.get("output")
        rows = [("removed", f"{1 - flops['kept'] / max(flops['prunable'], 1):.1%} of the prunable FLOPs")]
        if output:
            before, after = self["input"], output
            rows.append(("parameters", _change(before["parameters"], after["parameters"])))
            rows.append(("bytes", _change(before["bytes"], after["bytes"])))
            if self.model is None:
                rows.append(("written", after["path"]))
        if self.get("latency"):
            rows.append(("speed-up", _speedup(self["latency"])))
        on = (self.get("original") or {}).get("judged_on")
        if self.get("quality") and on:
            first = (self["original"].get("quality") or {}).get("scores", [])
            rows += _quality(first, self["quality"])
            how = {"given": "", "set-aside": ", set aside", "calibration": ", which it was fitted to"}
            rows.append(("judged on", f"{self['quality']['samples']} samples of {on['source']}{how[on['origin']]}"))
        return rows


class Comparison(_Shown):
    """Two models side by side: everything of the program's JSON, by key."""

    def rows(self) -> list[tuple[str, str]]:
        a, b = self["a"], self["b"]
        rows = _quality(a["quality"]["scores"], b["quality"])
        rows += [(name, _change(a[name], b[name])) for name in ("bytes", "parameters", "flops")]
        rows.append(("speed-up", _speedup(b["latency"])))
        rows.append(("judged on", f"{b['quality']['samples']} samples of {self['data']}"))
        return rows


class Inspection(_Shown):
    """What can be pruned of a model: everything of the program's JSON, by key."""

    def rows(self) -> list[tuple[str, str]]:
        rows = [
            ("model", self["path"]),
            ("parameters", f"{self['parameters']:,}, of them {self['prunable_parameters']:,} in what can be pruned"),
        ]
        rows += [(s["label"], f"{s['units']} {s['unit']}s") for s in self["sublayers"]]
        rows += [("stays", f"{d['place']}: {d['why']}") for d in self["declined"]]
        return rows


def _change(before: float, after: float) -> str:
    return f"{before:,.0f} -> {after:,.0f} ({after / max(before, 1):.1%})"


def _speedup(latency: dict) -> str:
    low, high = latency["interval"]
    return f"{latency['speedup']:.2f} ({low:.2f} to {high:.2f})"


def _number(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} \u00b1 {error:.4f}"


def _quality(first: list, own: dict) -> list[tuple[str, str]]:
    rows = []
    for before, after in zip(first, own["scores"]):
        drop = own["drop"] if not rows else None
        change = "" if not drop or drop["error"] is None else f" (drop {_number(drop['value'], drop['error'])})"
        rows.append((after["name"], f"{before['value']:.4f} -> {after['value']:.4f}{change}"))
    fidelity = own["fidelity"] or {}
    for name in ("agreement", "divergence", "correlation", "similarity", "cosine"):
        if fidelity.get(name) is not None:
            rows.append((name, _number(fidelity[name], fidelity["errors"][name])))
    return rows

"""Sections of a page about a run for measurements beside its scores: other models and test sets."""

from __future__ import annotations

from typing import Any

from finetune_jax.metrics import names
from finetune_jax.reporting import charts, html

Section = tuple[str, str]


def further(found: dict[str, Any]) -> list[Section]:
    """Sections of further measurements, for the flags that asked for them."""
    sections = []
    if "against" in found:
        rows = _compared(found["against"])
        words = f"Paired on the same examples against {found['against']['other']}."
        table = html.table(["figure", "value"], rows, numeric=(1,), scroll=False)
        sections.append(("Against another model", f"<p>{html.text(words)}</p>{table}"))
    if "corruptions" in found:
        sections.append(_corruptions(found["corruptions"]))
    if "shifts" in found:
        sections.append(_shifts(found["shifts"]))
    for key, heading in (("probes", "Probes of the features"), ("drift", "Drift of the features")):
        if key in found:
            rows = [[names.named(k).name, names.written(k, v)] for k, v in found[key].items()]
            table = html.table(["figure", "value"], rows, numeric=(1,), scroll=False)
            sections.append((heading, table))
    return sections


def _compared(found: dict[str, Any]) -> list[list[Any]]:
    """Rows of the table about another model; differences and scores as the metric is written."""
    rows = []
    for key, value in found.items():
        if not isinstance(value, int | float):
            continue
        text = html.number(value)
        if key in ("ours", "theirs") or key.startswith("difference"):
            text = names.written(found["metric"], value, sign=key.startswith("difference"))
        rows.append([names.named(key).name, text])
    return rows


def _shifts(found: dict[str, Any]) -> Section:
    columns = [("accuracy", ""), ("accuracy", "_low"), ("accuracy", "_high"),
               ("effective_robustness", "")]  # fmt: skip
    rows = [
        [name, *(names.written(k, scores.get(f"{k}{end}"), unit=False) for k, end in columns)]
        for name, scores in found.items()
        if "not_run" not in scores
    ]
    header = ["test set", "accuracy, %", "low, %", "high, %", "effective robustness, points"]
    body = html.table(header, rows, numeric=(1, 2, 3, 4), scroll=False) if rows else ""
    left = {name: scores["not_run"] for name, scores in found.items() if "not_run" in scores}
    return "Shifted test sets", body + _not_run(left)


def _not_run(reasons: dict[str, str]) -> str:
    return "".join(
        f"<p>{html.text(name)}: not run, {html.text(why)}</p>" for name, why in reasons.items()
    )


def _corruptions(found: dict[str, Any]) -> Section:
    svg = charts.corruptions(found["scores"], found["severities"], found["clean"], found["metric"])
    metric = found["metric"]
    name = names.named(metric).name
    rows = [
        [kind, *(names.written(metric, x, unit=False) for x in (*values, found["mean"][kind]))]
        for kind, values in found["scores"].items()
    ]
    unit = ", %" * names.named(metric).percent
    levels = [f"severity {s}{unit}" for s in found["severities"]]
    header = ["corruption", *levels, f"mean{unit}"]
    table = html.table(header, rows, numeric=range(1, len(header)))
    left = _not_run(found["not_run"])
    return "Common corruptions", (
        f"<p>{html.text(name[:1].upper() + name[1:])} by severity; clean "
        f"{names.written(metric, found['clean'])}, mean of {len(found['main'])} main corruptions "
        f"{names.written(metric, found['mean_corrupted'])}.</p>"
        + html.figure(svg, "score by corruption and severity")
        + f"<details><summary>All values</summary>{table}{left}</details>"
    )

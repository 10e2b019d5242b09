"""Measures differences between our models and their references: the table in docs/parity.md.

Command (needs requirements-reference.txt):
  python -m experiments.parity_table --output=docs/parity.md

Runs every case of tests/parity. The reference implementation draws random weights and writes them
in its own format; our model loads that file. Compared in f32 are the outputs of all stages, the
logits and, where the case requires them, gradients and training mode. The bounds are those of the
tests.
"""

from __future__ import annotations

import collections
import sys
from importlib.metadata import version
from pathlib import Path

from absl import app, flags

_OUTPUT = flags.DEFINE_string("output", "docs/parity.md", "File to write.")
_ONLY = flags.DEFINE_string("only", "", "Run the cases with this in their name; writes nothing.")
_REFERENCES = ("torch", "timm", "transformers", "keras")


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parity"))
    import conftest  # noqa: F401 - chooses Keras' back end
    from all_cases import CASES
    from harness import ABSOLUTE, RELATIVE, check, worst

    from finetune_jax.progress import each

    rows, beyond = [], 0
    for case in each([c for c in CASES if _ONLY.value in c.name], "cases"):
        formats: list[str] = []
        deltas = check(case, formats)
        top = worst(deltas)
        beyond += top.absolute > ABSOLUTE or top.relative > RELATIVE
        kinds = collections.Counter(d.what.split(" ")[0].rstrip(":") for d in deltas)
        gradients, training = kinds.pop("gradient", 0), kinds.pop("training", 0)
        compared = [f"{kinds.total()} outputs"]
        compared += [f"{gradients} gradients"] * bool(gradients)
        compared += [f"{training} in training mode"] * bool(training)
        rows.append(
            f"| {case.name} | {case.origin} | {formats[0]} | {', '.join(compared)} | "
            f"{max(d.absolute for d in deltas):.1e} | {max(d.relative for d in deltas):.1e} |"
        )
        print(rows[-1], flush=True)
    found = ", ".join(f"{name} {version(name)}" for name in _REFERENCES)
    text = f"""# Parity with reference implementations

Written by `python -m experiments.parity_table`. Reference: {found}; f32 on a CPU. |Δ| is the
largest difference of any output compared, relative to that output's own scale in the last column
(for gradients: its stage's). Bounds: {ABSOLUTE:g} absolute and {RELATIVE:g} relative; {beyond} of
{len(rows)} cases are beyond them.

| case | origin of the names | format | compared | max abs Δ | max rel Δ |
|---|---|---|---|---|---|
""" + "\n".join(rows)
    if not _ONLY.value:
        Path(_OUTPUT.value).write_text(text + "\n")


if __name__ == "__main__":
    app.run(main)

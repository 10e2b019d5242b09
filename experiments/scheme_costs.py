"""Compiled cost of every scheme against full fine-tuning, from shapes alone: no data, no weights.

Command:
  python -m experiments.scheme_costs [--model=vit_s16] [--batch_size=16] [--output=FILE.md]

FLOPs and temporary bytes are XLA's figures for one AdamW step; bytes of the optimizer state are
counted from its arrays. All figures are ratios to full fine-tuning. The temporary bytes on a CPU
are only an indication of the temporary bytes on an accelerator.
"""

from __future__ import annotations

from pathlib import Path

from absl import app, flags

from finetune_jax.config import default
from finetune_jax.errors import UserError
from finetune_jax.models import entry_of
from finetune_jax.progress import say
from finetune_jax.schemes.library import SCHEMES
from finetune_jax.setup import open_setup
from finetune_jax.training.cost import phase_figures
from finetune_jax.training.phase import PhaseRun

_MODEL = flags.DEFINE_string("model", "vit_s16", "A name of the registry.")
_BATCH = flags.DEFINE_integer("batch_size", 16, "Images per step.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "Markdown file to write.")

EXAMPLES = (
    "full", "linear_probe", "last_k(1)", "last_k(2)", "last_k(6)", "first_k(1) + head",
    "stages('block_5') + head", "norm_only", "bias_only", "bias_only(on='query|mlp_in')",
    "random_mask('lora(rank=8) + head')", "llrd(0.75)", "llrd(0.75) + last_k(6)",
    "discriminative(2.6)", "slice(0.1, 1.0)", "auto_rgn", "auto_snr", "lora(rank=8) + head",
    "lora(rank=8, rslora=True) + head", "lora(rank=8, dora=True) + head",
    "lora(rank=8, pissa=True) + head", "lora(rank=8, plus=16) + head",
    "lora(rank=8, on='query|value') + norm + head", "ia3 + head", "ssf + head",
    "houlsby(size=64) + head", "pfeiffer(size=64) + head", "adaptformer(size=64) + head",
    "vpt(tokens=10) + head", "vpt(tokens=10, deep=True) + head",
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    missing = set(SCHEMES) - {n for text in EXAMPLES for n in SCHEMES if n in text}
    if missing:
        raise UserError(f"no example of {', '.join(sorted(missing))}")
    rows = []
    for scheme in EXAMPLES:
        config = default()
        config.model.name = _MODEL.value
        config.data.image_size = entry_of(_MODEL.value).image_size
        config.train.batch_size = _BATCH.value
        config.optimizer.name = "adamw"
        with config.ignore_type():
            config.scheme = scheme
        say(f"compiling {scheme}")
        try:
            rows.append(phase_figures(PhaseRun(open_setup(config))))
        except UserError as error:
            say(f"  left out: {error}")
    full = rows[0]
    keys = ("flops_step", "temp_bytes", "optimizer_bytes")
    lines = [
        f"`{_MODEL.value}` at {entry_of(_MODEL.value).image_size} pixels, batch {_BATCH.value}, "
        f"AdamW. Full: {full['flops_step'] / 1e9:.1f} GFLOP, "
        f"{full['temp_bytes'] / 2**20:.0f} MiB temporary, "
        f"{full['optimizer_bytes'] / 2**20:.1f} MiB optimizer.",
        "",
        "| scheme | trainable | FLOPs | temporary | optimizer |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        ratios = " | ".join(f"{row[key] / full[key]:.3f}" for key in keys)
        lines.append(f"| `{row['scheme']}` | {row['trainable_params']:,} | {ratios} |")
    text = "\n".join(lines)
    print(text)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(text + "\n")


if __name__ == "__main__":
    app.run(main)

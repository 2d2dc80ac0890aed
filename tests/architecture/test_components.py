"""Adding a part is one module and one YAML file of the same name, and the YAML decodes into the module's Config."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import pytest
import yaml

from pipeline import component
from pipeline.component import GROUPS
from pipeline.config import packaged, read_batch, resolve

PARTS = [(group, name) for group in GROUPS for name in component.names(group)]


@pytest.mark.parametrize("group", GROUPS)
def test_each_module_has_its_yaml_file_and_each_other_file_names_a_module(group: str) -> None:
    files = packaged(group)
    assert set(component.names(group)) <= set(files)
    for name in set(files) - set(component.names(group)):
        section = yaml.safe_load(files[name].read_text())
        assert section["component"] in component.names(group)
        component.decode_config(group, section)


@pytest.mark.parametrize(("group", "name"), PARTS)
def test_a_part_has_a_summary_a_config_and_a_build(group: str, name: str) -> None:
    assert component.summary(group, name).endswith(".")
    module = component.load(group, name)
    assert callable(module.build)
    path = packaged(group)[name]
    section: dict[str, Any] = yaml.safe_load(path.read_text()) or {}
    # Some parts cannot work on defaults alone (a folder must be named); their YAML file says so by leaving them out.
    required = [n for n, f in module.Config.__dataclass_fields__.items() if f.default is f.default_factory and n not in section]
    assert set(section) <= set(module.Config.__dataclass_fields__)
    if not required:
        component.decode_config(group, {"component": name, **section})


@pytest.mark.parametrize(("group", "name"), PARTS)
def test_every_field_has_its_line_of_meaning(group: str, name: str) -> None:
    config = component.load(group, name).Config
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(tree, ast.ClassDef)
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        # A section with a Config class of its own is explained there.
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and "Config" not in ast.unparse(node.annotation):
            explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert explained, f"{group}.{name}.{node.target.id}: no line of meaning below it"


@pytest.mark.parametrize("run", sorted(packaged("run")))
def test_packaged_runs_decode(run: str) -> None:
    config = resolve(run)
    assert read_batch(config).requests
    for group in GROUPS:
        component.decode_config(group, getattr(config, group))

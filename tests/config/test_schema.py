"""The one list of keys: what recipes hold, what --help prints and what the table shows."""

from pathlib import Path

import pytest

from rvllm_jax.config import keys
from rvllm_jax.config.schema import Recipe

TABLE = Path(__file__).parents[2] / "rvllm_jax" / "config" / "KEYS.md"


def named(values: dict, schema: type = Recipe, where: str = "") -> set[str]:
    """The keys that plain values hold, as `keys.walk` names them."""
    found = {f"{where}{f.name}" for f, spec in keys.fields_of(schema) if spec and f.name in values}
    for field, spec in keys.fields_of(schema):
        if spec is None:
            each, inner = field.metadata["each"], field.metadata["schema"]
            sections = values[field.name].values() if each else [values[field.name]]
            path = f"{where}{field.name}.{each}." if each else f"{where}{field.name}."
            found |= {name for section in sections for name in named(section, inner, path)}
    return found


@pytest.mark.parametrize("arg", ["tiny", "paper", "bench"])
def test_a_recipe_holds_every_key(joint, arg):
    assert named(joint(arg).to_dict()) == {key.path for key in keys.walk(Recipe)}


def test_the_table_of_keys_is_that_of_the_schema():
    assert TABLE.read_text() == f"# Keys of a configuration\n\n{keys.markdown_table(Recipe)}"


def test_every_key_has_help_and_every_number_a_range_or_a_check():
    unbounded = {"mesh.data", "mesh.fsdp", "mesh.tensor", "tokenizer.vocab_size"}
    unbounded |= {"stages.STAGE.lora.rank", "stages.STAGE.lora.alpha"}  # config/check.py has them
    shown = keys.help_text(Recipe)
    for key in keys.walk(Recipe):
        assert key.help and not key.help.endswith("."), key.path
        if key.kind in ("int", "float", "int or None") and key.least is None:
            assert key.path in unbounded
        assert f"  --config.{key.path}: " in shown


def test_a_value_of_another_type_is_refused_by_its_key():
    table = {key.path: key for key in keys.walk(Recipe)}
    for path, value in {
        "data.frames": "6",
        "data.flip": 1,
        "data.max_bad": True,
        "data.crop": 32.0,
        "name": None,
        "stages.STAGE.table": "all",
    }.items():
        assert f"config.{path}={value!r} must be " in table[path].fault(value, path)
    assert not table["stages.STAGE.clip"].fault(1, "stages.joint.clip")
    assert not table["stages.STAGE.lora.rank"].fault(None, "stages.joint.lora.rank")

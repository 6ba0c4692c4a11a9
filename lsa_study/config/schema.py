"""What can be written in experiment files, as data: meanings of fields, and their JSON Schema."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import ModelSchema

from lsa_study.config.experiment import Resources, StudyFile
from lsa_study.config.layers import every_field
from lsa_study.config.operators import OP_KINDS
from lsa_study.config.settings import Settings

Schema = dict[str, Any]


@functools.cache
def _classes(module: str) -> dict[str, list[ast.stmt]]:
    """What stands in the classes of a module; it is parsed once for all of them."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {one.name: one.body for one in tree.body if isinstance(one, ast.ClassDef)}


@functools.cache
def meanings(kind: type[BaseModel]) -> dict[str, str]:
    """Field -> the text that stands under it in the source, as one line, marked up as Markdown."""
    found: dict[str, str] = {}
    for of in reversed(kind.__mro__[: kind.__mro__.index(BaseModel)]):
        body = _classes(of.__module__).get(of.__name__, [])
        for field, text in itertools.pairwise(body):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(said))),
                ):
                    found[name] = " ".join(said.replace("``", "`").split())
    return found


class _Described(GenerateJsonSchema):
    """Pydantic's schema, with the texts that stand under fields as their descriptions."""

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        kind: type[BaseModel] = schema["cls"]
        said = meanings(kind)
        for name, field in made.get("properties", {}).items():
            field.pop("title", None)  # the name again
            if text := said.get(name):
                field["description"] = text
        return made


def _schema_of(kind: type[BaseModel]) -> Schema:
    """The JSON Schema of a group of settings, each with its meaning."""
    return kind.model_json_schema(schema_generator=_Described)


@functools.cache
def properties_of(kind: type[BaseModel]) -> dict[str, Schema]:
    """The schema of each field of a group; references lead into that of ``Settings``."""
    found: dict[str, Schema] = _schema_of(kind)["properties"]
    return found


def study_schema() -> Schema:
    """The JSON Schema of experiment files, for editors and validators.

    ``set`` takes any dotted setting, and a group as far as it is written: other layers may hold
    the rest. What settings forbid together only ``lsa plan`` can say.
    """
    made, settings = _schema_of(StudyFile), _schema_of(Settings)
    groups: dict[str, Schema] = settings["$defs"]
    for group in groups.values():
        group["required"] = [name for name in ("kind",) if name in group["properties"]]
    fields: dict[str, list[Schema]] = {}
    for path, owner, name in every_field():
        one = properties_of(owner)[name]
        if one not in fields.setdefault(path, []):
            fields[path].append(one)
    arguments: Schema = {  # of layers that take any
        f"^{path.replace('.', r'[.]').rpartition('[.]')[0]}[.]": {}
        for path, owner, _ in every_field()
        if owner.model_config.get("extra") == "allow"
    }
    dotted = {path: ones[0] if len(ones) == 1 else {"anyOf": ones} for path, ones in fields.items()}
    groups["Dotted"] = {
        "description": "Settings by their dotted paths; `lsa explain` names them all.",
        "type": "object", "properties": dotted, "additionalProperties": False,
        "patternProperties": arguments,
    }  # fmt: skip
    groups["Resources"] = _schema_of(Resources)
    for of in (made, made["$defs"]["Variant"]):
        of["properties"]["set"]["$ref"] = "#/$defs/Dotted"
        of["properties"]["resources"]["$ref"] = "#/$defs/Resources"
    made["$defs"] |= groups
    whole: Schema = _alternatives(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}
    )
    return whole


def _alternatives(node: Any) -> Any:
    """The schema with unions of which several alternatives may fit a value.

    Beside names that are known, text is an import path, and an operator's kind none of those.
    """
    if isinstance(node, list):
        return [_alternatives(one) for one in node]
    if not isinstance(node, dict):
        return node
    found = {key: _alternatives(one) for key, one in node.items() if key != "oneOf"}
    if "oneOf" in node:
        text = {"type": "string"}
        ways = [text | {"pattern": ":"} if one == text else one for one in node["oneOf"]]
        found["anyOf"] = _alternatives(ways)
    if node.get("additionalProperties") is True and "kind" in node.get("properties", {}):
        found["properties"]["kind"]["not"] = {"enum": [*OP_KINDS]}
    return found

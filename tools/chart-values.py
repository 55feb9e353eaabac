"""Writes docs/reference/chart-values.md from the chart's values.yaml and values.schema.json: what check-docs.py compares with the file that is there.

A value is described by the comment that begins with `# -- ` above it.
"""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/reference/chart-values.md"
HEAD = """\
# Values of the Helm chart

<!-- Made from charts/dunlin/values.yaml and values.schema.json by `make chart-values`; edits here are lost. -->

The chart refuses a value that is not listed here. See [install.md](../install.md#install) for how to set them.

| value | default | type, limits | description |
|---|---|---|---|
"""


def values() -> list[tuple[str, str, str]]:
    """(dotted name, default, description) of every described value, in the order of the file."""
    found: list[tuple[str, str, str]] = []
    path: list[tuple[int, str]] = []
    words: list[str] = []
    open_map = None
    for line in (ROOT / "charts/dunlin/values.yaml").read_text().splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if open_map is not None and indent > open_map and text:
            # What is below a described key without a value of its own: its default.
            name, default, description = found[-1]
            found[-1] = (name, f"{default}, {text}" if default else text, description)
            continue
        open_map = None
        if text.startswith("# -- "):
            words = [text.removeprefix("# -- ")]
        elif text.startswith("#"):
            words += [text.removeprefix("#").strip()] if words else []
        elif match := re.fullmatch(r"(\w+):\s*(.*)", text):
            path = [(i, key) for i, key in path if i < indent] + [(indent, match[1])]
            if words:
                found.append((".".join(key for _, key in path), match[2], " ".join(words)))
                open_map = None if match[2] else indent
            words = []
    return found


def limits(schema: dict, name: str) -> str:
    """The type of the value `name`, and what it may be."""
    node = schema
    for key in name.split("."):
        node = node["properties"][key]
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    said = [node["type"]]
    items = node.get("items", node.get("additionalProperties"))
    if isinstance(items, dict) and "type" in items:
        said = [f"{ {'array': 'list', 'object': 'map'}[node['type']]} of {items['type']}"]
    if "minimum" in node and "maximum" in node:
        said.append(f"{node['minimum']} to {node['maximum']}")
    elif "minimum" in node:
        said.append(f"at least {node['minimum']}")
    if "maxItems" in node:
        said.append(f"at most {node['maxItems']} items")
    if node.get("minLength"):
        said.append("not empty")
    if "pattern" in node:
        said.append(f"`{node['pattern']}`")
    return ", ".join(said).replace("|", "\\|")


def page() -> str:
    schema = json.loads((ROOT / "charts/dunlin/values.schema.json").read_text())
    rows = [
        f"| `{name}` | `{default.replace('|', chr(92) + '|')}` | {limits(schema, name)} | {description.replace('|', chr(92) + '|')} |\n"
        for name, default, description in values()
    ]
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page())

"""What `kubectl apply -k` sends, for those fields of a kustomization that ours has; any other is refused.

By kustomize's reference: `images` sets the image of every container of that name, `replacements` copy a value into
scalars, which keep their type; a field path has dots between fields, `\\.` within one, and `[name=value]` for the
element of a list.
"""

import re
from pathlib import Path
from typing import Any

import yaml

KNOWN = {"apiVersion", "kind", "namespace", "resources", "images", "configMapGenerator", "replacements"}


def rendered(folder: Path) -> dict[str, dict[str, Any]]:
    """Kind -> object; there is one of each."""
    asked = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert asked.keys() <= KNOWN, asked.keys() - KNOWN
    objects = [yaml.safe_load((folder / name).read_text()) for name in asked["resources"]]
    for made in asked.get("configMapGenerator", []):
        data = dict(literal.split("=", 1) for literal in made["literals"])
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": made["name"]}, "data": data})
    by_kind = {found["kind"]: found for found in objects}
    assert len(by_kind) == len(objects)

    for kind, found in by_kind.items():
        if kind != "Namespace":
            found["metadata"]["namespace"] = asked["namespace"]
        for image in asked["images"]:
            _set_images(found, image)
    for replacement in asked.get("replacements", []):
        source = replacement["source"]
        value = _at(by_kind[source["kind"]], _fields(source["fieldPath"]))
        for target in replacement["targets"]:
            for path in target["fieldPaths"]:
                *way, last = _fields(path)
                parent = _at(by_kind[target["select"]["kind"]], way)
                parent[last] = type(parent[last])(value)
    return by_kind


def _set_images(found: Any, image: dict[str, str]) -> None:
    if isinstance(found, list):
        for each in found:
            _set_images(each, image)
    elif isinstance(found, dict):
        for container in found.get("containers", []):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
        for each in found.values():
            _set_images(each, image)


def _fields(path: str) -> list[str]:
    return [field.replace("\\.", ".") for field in re.split(r"(?<!\\)\.", path)]


def _at(found: Any, fields: list[str]) -> Any:
    for field in fields:
        if isinstance(found, list):
            key, value = field.strip("[]").split("=")
            (found,) = [each for each in found if each[key] == value]
        else:
            found = found[field]
    return found

"""Prints the import map: the floors of offscript's parts as tools/import_map.yaml orders them and as the code has them.

    python tools/import_map.py            # floors, circles, and how many rooms a folder shows to a newcomer
    python tools/import_map.py PACKAGE    # the same for another package folder (no map: measured only)

A *part* is a file or folder directly below the package. A part's *measured floor* is one more than the highest floor of
the parts that it imports (1 for a part that imports none); a *circle* is a set of files that import one another, at any
depth of the file.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
MAP = ROOT / "tools" / "import_map.yaml"


def imports(path: Path, top_only: bool = False) -> Iterator[str]:
    """Dotted names that a file imports, ``from a import b`` as ``a.b``; with ``top_only`` not those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.iter_child_nodes(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(path: Path, package: Path) -> str:
    """The part that a file belongs to: the name of a file or folder directly below ``package``."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def part_edges(package: Path) -> dict[str, set[str]]:
    """Part -> the other parts that it imports."""
    edges: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        here = part_of(path, package)
        names = [n.split(".") for n in imports(path) if n.startswith(f"{package.name}.")]
        edges.setdefault(here, set()).update(n[1] for n in names if n[1] != here)
    edges.pop("__init__", None)
    return {part: {n for n in used if n in edges} for part, used in edges.items()}


def file_edges(package: Path) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports."""
    modules = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    edges = {}
    for module, path in modules.items():
        names = [name for name in imports(path) if name.startswith(f"{package.name}.")]
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        edges[module] = (found & modules.keys()) - {module}
    return edges


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Sets of nodes that reach one another, each sorted (Tarjan's strongly connected components of two or more)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(members) > 1:
                found.append(sorted(members))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def measured_floors(edges: dict[str, set[str]]) -> dict[str, int]:
    """Part -> its measured floor; parts in one circle share a floor."""
    group = {part: tuple(circle) for circle in circles(edges) for part in circle}
    floors: dict[str, int] = {}

    def floor(part: str) -> int:
        if part not in floors:
            own = group.get(part, (part,))
            below = {other for member in own for other in edges[member]} - set(own)
            floors.update(dict.fromkeys(own, 1 + max(map(floor, below), default=0)))
        return floors[part]

    for part in edges:
        floor(part)
    return floors


def main() -> None:
    package = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "offscript"
    edges = part_edges(package)
    floors = measured_floors(edges)
    for number in range(max(floors.values()), 0, -1):
        print(f"{number:3}  {'  '.join(sorted(p for p, f in floors.items() if f == number))}")
    folders = [part for part in edges if (package / part).is_dir()]
    print(
        f"\n{len(edges)} parts ({len(folders)} folders, {len(edges) - len(folders)} files) "
        f"on {max(floors.values())} floors"
    )
    for name, found in (("parts", circles(edges)), ("files", circles(file_edges(package)))):
        print(f"circles of {name}: {len(found)}" + "".join(f"\n     {', '.join(c)}" for c in found))
    if len(sys.argv) == 1:
        declared = yaml.safe_load(MAP.read_text())["floors"]
        print(f"declared floors (tools/import_map.yaml): {len(declared)}")


if __name__ == "__main__":
    main()

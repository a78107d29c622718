"""Prints the import map: the floors of offscript's parts as tools/import_map.yaml orders them and as the code has them.

    python tools/import_map.py                              # floors, and circles of parts and of files
    python tools/import_map.py PACKAGE                      # the same for another package folder (measured only)
    python tools/import_map.py --draw docs/import_map.svg   # the declared floors with the imports of the code

A *part* is a file or folder directly below the package. A part's *measured floor* is one more than the highest floor of
the parts that it imports (1 for a part that imports none); a *circle* is a set of files that import one another, at any
depth of the file.
"""

import argparse
import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

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
    edges = {part: used for part, used in edges.items() if not part.startswith("__")}
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


# ---------------------------------------------------------------- drawing

WIDTH, MARGIN, LEFT = 1160, 24, 76
BOX_W, BOX_H, ROW_H, FLOOR_GAP = 250, 52, 82, 14
FONT = "font-family='Helvetica, Arial, DejaVu Sans, sans-serif'"
INK, SOFT, LINE, FAINT = "#1f2933", "#616e7c", "#3e6fb0", "#a9b8ca"
BANDS = ("#f4f7fb", "#e9eff7")

Place = tuple[float, float]
"""Left upper corner of a box, in pixels."""


def direct(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The transitive reduction of ``edges`` (without circles): those that follow from no other two."""

    def reached(part: str) -> set[str]:
        return set().union(*({other} | reached(other) for other in edges[part]))

    below = {part: reached(part) for part in edges}
    return {
        part: {one for one in used if not any(one in below[other] for other in used)}
        for part, used in edges.items()
    }


def rows_of(parts: Sequence[str], edges: Mapping[str, set[str]]) -> list[list[str]]:
    """The parts of one floor in rows, top row first: a part stands above those of its own floor that it imports."""
    depth: dict[str, int] = {}

    def level(part: str) -> int:
        if part not in depth:
            depth[part] = 1 + max((level(other) for other in edges[part] if other in parts), default=-1)
        return depth[part]

    return [[p for p in parts if level(p) == number] for number in range(max(map(level, parts)), -1, -1)]


def drawing(package: Path, rules: Mapping[str, list[list[str]] | dict[str, tuple[float, str]]]) -> str:
    """The import map as SVG: a band per declared floor, a box per part, an arrow per import of another part.

    Dark arrows are the imports that follow from no others, pale ones the rest. Pale arrows to a part that more than half
    of the others import are left out, as are all to the lowest floor; each box says how many parts import it.
    """
    edges, about = part_edges(package), rules["about"]
    assert isinstance(about, dict)
    floors: list[list[str]] = [list(floor) for floor in rules["floors"]]
    places: dict[str, Place] = {}
    bands: list[str] = []
    y = float(MARGIN + 34)
    step = (WIDTH - LEFT - MARGIN - 16 - BOX_W) / 3
    for number in range(len(floors), 0, -1):
        rows = rows_of([p for p in floors[number - 1] if not p.startswith("__")], edges)
        height = len(rows) * ROW_H
        bands.append(
            f"<rect x='{MARGIN}' y='{y:g}' width='{WIDTH - 2 * MARGIN}' height='{height}' rx='8' "
            f"fill='{BANDS[number % 2]}'/>"
            f"<text x='{MARGIN + 16}' y='{y + height / 2 + 5:g}' {FONT} font-size='15' fill='{SOFT}'>{number}</text>"
        )
        for row in rows:
            for part in row:
                places[part] = (LEFT + about[part][0] * step, y + (ROW_H - BOX_H) / 2)
            y += ROW_H
        y += FLOOR_GAP
    height = int(y - FLOOR_GAP + MARGIN)
    users = {part: sum(part in edges[other] for other in places) for part in places}
    hidden = {part for part, number in users.items() if number > len(places) / 2}
    dark = direct({part: edges[part] & places.keys() for part in places})
    shown = {
        p: {o for o in edges[p] & places.keys() - {*floors[0]} if o in dark[p] or o not in hidden}
        for p in places
    }
    boxes = [_box(package, part, about[part][1], places[part], users[part]) for part in places]
    title = (
        f"<text x='{MARGIN}' y='{MARGIN + 12}' {FONT} font-size='14' fill='{INK}'>Import map of offscript: "
        "a part imports from lower floors only. Dark arrows: imports that follow from no others. "
        "Pale arrows to much used parts are left out.</text>"
    )
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}'>",
            "<!-- drawn from the code by tools/import_map.py -->",
            f"<defs>{_head('dark', LINE)}{_head('pale', FAINT)}</defs>",
            f"<rect width='{WIDTH}' height='{height}' fill='white'/>",
            title,
            *bands,
            *_arrows(shown, dark, places),
            *boxes,
            "</svg>",
            "",
        ]
    )


def _head(name: str, colour: str) -> str:
    return (
        f"<marker id='{name}' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        f"<path d='M0 0.5 L7.5 4 L0 7.5 z' fill='{colour}'/></marker>"
    )


def _box(package: Path, part: str, text: str, place: Place, users: int) -> str:
    x, y = place
    files = [p for p in (package / part).rglob("*.py") if p.stat().st_size]
    name = f"{part}/" if files else f"{part}.py"
    notes = [f"{len(files)} files"] * bool(files) + [f"imported by {users}"] * bool(users)
    return (
        f"<rect x='{x:g}' y='{y:g}' width='{BOX_W}' height='{BOX_H}' rx='6' fill='white' stroke='{LINE}'/>"
        f"<text x='{x + 10:g}' y='{y + 21:g}' {FONT} font-size='14' font-weight='bold' fill='{INK}'>{name}</text>"
        f"<text x='{x + BOX_W - 10:g}' y='{y + 21:g}' {FONT} font-size='10.5' text-anchor='end' fill='{SOFT}'>"
        f"{', '.join(notes)}</text>"
        f"<text x='{x + 10:g}' y='{y + 40:g}' {FONT} font-size='10.5' fill='{INK}'>{escape(text)}</text>"
    )


def _arrows(
    edges: Mapping[str, set[str]], dark: Mapping[str, set[str]], places: Mapping[str, Place]
) -> list[str]:
    """Curves from the lower edge of a box to the upper edge of another; at an edge they are spread from left to right."""
    pairs = [(a, b) for a, used in edges.items() for b in sorted(used)]

    def spread(part: str, others: list[str]) -> dict[str, float]:
        ordered = sorted(others, key=lambda other: places[other])
        return {
            other: places[part][0] + BOX_W * (i + 1) / (len(ordered) + 1) for i, other in enumerate(ordered)
        }

    starts = {a: spread(a, [d for c, d in pairs if c == a]) for a in edges}
    ends = {b: spread(b, [c for c, d in pairs if d == b]) for b in edges}
    lines: list[tuple[bool, str]] = []
    for a, b in pairs:
        x1, y1, x2, y2 = starts[a][b], places[a][1] + BOX_H, ends[b][a], places[b][1] - 1
        bend = min(70.0, (y2 - y1) * 0.5)
        style = "dark" if b in dark[a] else "pale"
        colour, width = (LINE, 1.8) if style == "dark" else (FAINT, 1.1)
        curve = f"M{x1:.1f} {y1:.1f} C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} {x2:.1f} {y2:.1f}"
        lines.append(
            (
                style == "dark",
                f"<path d='{curve}' fill='none' stroke='{colour}' stroke-width='{width}' marker-end='url(#{style})'/>",
            )
        )
    return [line for _, line in sorted(lines)]


# ---------------------------------------------------------------- command


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", nargs="?", type=Path, default=ROOT / "offscript")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="write the drawing of the library to FILE")
    asked = parser.parse_args()
    package = asked.package.resolve()
    rules = yaml.safe_load(MAP.read_text(encoding="utf-8"))
    if asked.draw:
        asked.draw.write_text(drawing(package, rules), encoding="utf-8")
        return
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
    if package == ROOT / "offscript":
        print(f"declared floors (tools/import_map.yaml): {len(rules['floors'])}")


if __name__ == "__main__":
    main()

"""Prints measures of the library's code: lines, annotations that hold ``Any``, kind comparisons, ``# fmt: skip``.

    python tools/code_measures.py                      # the library
    python tools/code_measures.py PACKAGE              # another package folder (a folder ``pocket`` in it is left out)
    python tools/code_measures.py PACKAGE --by-file    # with a line for each file that has an ``Any``

An annotation is that of a parameter, of a return value, or of a variable or field. A docstring is not counted as code.
"""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Every annotation in ``tree``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            yield node.returns


def has_any(annotation: ast.expr) -> bool:
    """Whether ``annotation`` names ``Any`` at any depth, also in quotes."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name) and node.id == "Any":
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "Any" in node.value:
            return True
    return False


def kind_comparisons(tree: ast.AST) -> int:
    """Comparisons of something called ``kind`` with a string, or with a tuple of strings."""
    found = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            left = node.left
            name = (
                left.attr
                if isinstance(left, ast.Attribute)
                else left.id
                if isinstance(left, ast.Name)
                else ""
            )
            texts = [c for other in node.comparators for c in ast.walk(other) if isinstance(c, ast.Constant)]
            found += name == "kind" and any(isinstance(c.value, str) for c in texts)
    return found


def code_lines(text: str, tree: ast.AST) -> int:
    """Lines that are neither blank, nor a comment, nor part of a docstring."""
    prose: set[int] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            prose |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.split("\n"), start=1)
    return sum(1 for n, line in lines if line.strip() and not line.strip().startswith("#") and n not in prose)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", nargs="?", type=Path, default=ROOT / "offscript")
    parser.add_argument("--by-file", action="store_true")
    asked = parser.parse_args()
    totals = dict.fromkeys(("lines", "code", "annotations", "any", "kinds", "skips"), 0)
    for path in sorted(asked.package.rglob("*.py")):
        if "pocket" in path.relative_to(asked.package).parts:
            continue
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        found = list(annotations(tree))
        loose = sum(map(has_any, found))
        totals["lines"] += text.count("\n")
        totals["code"] += code_lines(text, tree)
        totals["annotations"] += len(found)
        totals["any"] += loose
        totals["kinds"] += kind_comparisons(tree)
        totals["skips"] += text.count("# fmt: skip")
        if asked.by_file and loose:
            print(f"{loose:4} of {len(found):4}  {path.relative_to(asked.package)}")
    print(
        f"lines                     {totals['lines']:6}   (code without docstrings and comments: {totals['code']})"
    )
    print(
        f"annotations with Any      {totals['any']:6}   of {totals['annotations']}: {totals['any'] / totals['annotations']:.1%}"
    )
    print(f"comparisons of a kind     {totals['kinds']:6}")
    print(f"# fmt: skip               {totals['skips']:6}")


if __name__ == "__main__":
    main()

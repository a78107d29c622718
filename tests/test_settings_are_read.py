"""Every setting is read by something: the type checker finds the reads of each field of each settings class.

The package is copied, and in the copy every field of a settings class becomes a deprecated property, so that mypy reports
each place that reads it. A text search would take ``other.name`` for a read of ``EngineSettings.name``.
"""

import ast
import re
import shutil
import subprocess
import sys

import pytest

from offscript.storage.files import HOME

MODULES = ("settings.py", "training/data/*.py", "training/methods/*.py")
READ_AS_A_WHOLE = {
    # Passed on by model_dump: Sampling(**model.sampling.model_dump(), ...).
    "SamplingSettings",
}
NOT_FOR_CODE = {
    # For people, or for the Hydra options of the same file: nothing in the library needs them.
    "PersonaSettings.order": "read from the file by storage.options",
    "StageSettings.order": "read from the file by storage.options",
    "StageSettings.compared_with": "read from the file by evaluation.order",
}


def settings_classes(tree: ast.Module, known: set[str]) -> list[ast.ClassDef]:
    """Classes that derive from ``Node``, in order; adds their names to ``known``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and known & {b.id for b in node.bases if isinstance(b, ast.Name)}:
            known.add(node.name)
            found.append(node)
    return found


def as_properties(text: str, known: set[str]) -> tuple[str, set[str]]:
    """``text`` with every field of its settings classes as a deprecated property, and the names of the fields."""
    tree = ast.parse(text)
    fields = set()
    for node in settings_classes(tree, known):
        body: list[ast.stmt] = []
        for statement in node.body:
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                body.append(statement)
                continue
            name = statement.target.id
            fields.add(f"{node.name}.{name}")
            code = f"@property\n@_deprecated('READ {node.name}.{name}.')\ndef {name}(self) -> {ast.unparse(statement.annotation)}: ..."
            body += ast.parse(code).body
        node.body = body
    return f"from typing_extensions import deprecated as _deprecated\n{ast.unparse(tree)}\n", fields


@pytest.mark.slow
def test_every_setting_is_read_by_something(tmp_path):
    package = tmp_path / "offscript"
    shutil.copytree(HOME / "offscript", package, ignore=shutil.ignore_patterns("__pycache__"))
    known, fields = {"Node"}, set()
    for pattern in MODULES:
        for path in sorted(package.glob(pattern)):
            text, own = as_properties(path.read_text(), known)
            if own:
                path.write_text(text)
                fields |= own
    assert len(fields) > 150
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--config-file", str(HOME / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache"),
            "--enable-error-code", "deprecated", "offscript",
        ],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    read = set(re.findall(r"READ (\w+\.\w+)\.", done.stdout))
    assert len(read) > 100, done.stdout[-2000:] + done.stderr
    unread = {f for f in fields - read if f.partition(".")[0] not in READ_AS_A_WHOLE}
    assert sorted(unread) == sorted(NOT_FOR_CODE), "\n".join(sorted(unread))

"""The rooms of the package stand on each other: each imports from those below it only (docs/architecture.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import inst

PACKAGE = Path(inst.__file__).parent
FROM_THE_GROUND_UP = (
    *(
        "version",
        "texts",
        "errors",
        "arguments",
        "listening",
        "serving",
        "defaults",
        "runs",
        "models",
        "demo",
        "files",
        "pictures",
        "backbone",
        "styles",
    ),
    *("sampling", "synthesis", "learning", "diffusers", "evaluation", "study", "batch", "studio", "cli"),
)


def imports(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports anywhere, such as "backbone.model"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "inst":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("inst."):
            yield (node.module or "").removeprefix("inst.")


def test_every_part_of_the_package_imports_only_from_the_parts_below_it() -> None:
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room != "__init__":
            below = FROM_THE_GROUND_UP[: FROM_THE_GROUND_UP.index(room) + 1]
            uphill = [name for name in imports(path) if name.split(".")[0] not in below]
            assert not uphill, f"{path.relative_to(PACKAGE)} imports {uphill} from above"


def test_no_files_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        graph[".".join(path.relative_to(PACKAGE).with_suffix("").parts)] = set(imports(path))
    while free := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in free}
    assert not graph, f"these files import each other: {sorted(graph)}"

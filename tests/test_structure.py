"""The house: imports run one way, no folder and no module grows too large."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the lowest: a module imports from its own layer and from those below. Of two prefixes the longer holds.
LAYERS = (
    ("kernels.base",),
    ("kernels.norm",),
    ("kernels.convolution",),
    ("kernels",),
    ("hlb.train", "hlb"),
    ("hlb.runs",),
    ("hlb.cost", "hlb.study"),
    ("hlb.cli", "hlb.commands", "hlb.__init__", "hlb.__main__"),
    ("bench",),
)
RANK = {prefix: rank for rank, prefixes in enumerate(LAYERS) for prefix in prefixes}
MODULES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
    for top in ("kernels", "hlb", "bench")
    for path in (ROOT / top).rglob("*.py")
}
MOST = 20  # modules of a folder
LONGEST = 400  # lines
# Longer, and why: a kernel page holds formula, reference, kernels, launch and bytes of an op.
PAGES = {"kernels.conv_bn_act", "kernels.muon", "kernels.norm.norm_act",
         "kernels.augment", "kernels.stem"}  # fmt: skip


def rank(module: str) -> int:
    parts = module.split(".")
    return next(
        RANK[name] for name in (".".join(parts[:n]) for n in range(len(parts), 0, -1)) if name in RANK
    )


def imported(module: str) -> set[str]:
    """The modules of ours that a module imports, or imports from; `hlb` means what its __init__ has."""
    package = module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(filter(None, (*base, node.module)))
            found |= {name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    ours = {name for name in found if name.split(".")[0] in ("kernels", "hlb", "bench")}
    return {f"{name}.__init__" if f"{name}.__init__" in MODULES else name for name in ours}


def upwards(module: str) -> set[str]:
    """What a module imports from above; hlb/__init__.py, which says what the package offers, is for all."""
    return {name for name in imported(module) - {"hlb.__init__"} if rank(name) > rank(module)}


def test_imports_run_downwards():
    assert not {module: names for module in MODULES if (names := upwards(module))}


def test_an_import_upwards_is_seen():
    assert rank("hlb.runs.ledger") > rank("hlb.train") > rank("kernels.sgd") > rank("kernels.base.launch")
    assert rank("bench.gate.cli") > rank("hlb.cost.floor") > rank("hlb.runs.ledger")
    assert "hlb.runs.ledger" in imported("bench.cli") and "hlb.execution" in imported("hlb.train")


def test_no_folder_has_more_than_20_modules():
    folders = {path.parent for path in [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]}
    counts = {folder.relative_to(ROOT).as_posix(): len(list(folder.glob("*.py"))) for folder in folders}
    assert not {folder: count for folder, count in counts.items() if count > MOST}


def test_no_module_but_a_kernel_page_is_longer_than_400_lines():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name for name, length in lengths.items() if length > LONGEST} == PAGES


def test_importing_hlb_imports_no_compiler():
    """torch._dynamo, with sympy and more, would be a third of the start-up time of every command."""
    code = "import sys, hlb.cli; print(*{'.'.join(name.split('.')[:2]) for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "hlb.cli" in run.stdout.split()
    assert not {"torch._dynamo", "torch._inductor", "sympy", "scipy", "matplotlib"} & {*run.stdout.split()}
    assert len(run.stdout.split()) < 600  # of packages and of modules just below, 470 or so

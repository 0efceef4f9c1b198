"""Holds the table of ARCHITECTURE.md: who imports whom, where torch, ray, asyncio and the environment may appear."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = Path(__file__).parent.parent / "serve_app"

FLOORS: Final = {
    "cli": 6, "demo": 6, "bench": 6, "offline": 6, "fleet": 6,
    "serving": 5, "client": 5,
    "engine": 4, "link": 4,
    "checkpoint": 3, "observability": 3, "accounts": 3,
    "model": 2, "wire": 2, "audio": 2, "admission": 2, "registry": 2,
    "config": 1,
    "errors": 0, "units": 0, "spec": 0, "budget": 0,
}  # fmt: skip
TOP_FLOOR: Final = 6
"""Rooms of the top floor may import any package."""
OPEN_FLOORS: Final = {0, TOP_FLOOR}
"""Elsewhere siblings are strangers."""

PACKAGES: Final = {
    "serving": {"ray", "fastapi", "starlette", "uvicorn", "numpy", "pydantic", "opentelemetry"},
    "client": {"websockets", "numpy"},
    "engine": {"torch", "numpy"},
    "link": {"numpy"},
    "checkpoint": {"torch", "safetensors", "huggingface_hub", "sentencepiece"},
    "model": {"torch", "triton"},
    "audio": {"sphn", "av", "numpy"},
    "accounts": {"pydantic", "yaml", "sqlalchemy"},
    "config": {"pydantic", "yaml"},
    "registry": {"pydantic", "yaml"},
}
"""Third parties that a room may import; a room that is not here imports the standard library alone."""

KERNELS: Final = "model/kernels/"
"""Where triton may be imported; everything else has to run without it."""

ASYNCIO_ROOMS: Final = {"link", "serving", "client"}
ENVIRONMENT_FILES: Final = {"config/environment.py", "serving/launcher.py"}
"""The launcher writes what must exist before Ray starts; everything else reads settings from config."""
ENVIRONMENT_NAMES: Final = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}

SOURCES: Final = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; ``from a import b`` counts as ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def needs_triton(path: Path) -> bool:
    """Whether a file imports triton, or the kernels' door to it."""
    return any(f"{module}.".startswith(("triton.", "serve_app.model.kernels.jit.")) for module in imports_of(path))


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.name != "__init__.py" or path.parent != PACKAGE], ids=name
)
def test_imports_go_downward_only(path: Path) -> None:
    room = room_of(path)
    assert room in FLOORS, f"give {room} a floor, here and in ARCHITECTURE.md"
    for module in imports_of(path):
        parts = module.split(".")
        if parts[0] != "serve_app" or len(parts) == 1 or parts[1] == room:
            continue
        assert parts[1] in FLOORS, f"{path}: {module} has no floor"
        reach = FLOORS[room] + (FLOORS[room] in OPEN_FLOORS)
        assert FLOORS[parts[1]] < reach, f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_room_imports_only_the_packages_of_its_row(path: Path) -> None:
    room = room_of(path)
    if FLOORS.get(room) == TOP_FLOOR:
        return
    allowed = PACKAGES.get(room, set()) | {"serve_app"} | sys.stdlib_module_names
    foreign = {module for module in imports_of(path) if module.split(".")[0] not in allowed}
    assert not foreign, f"{name(path)} imports {sorted(foreign)}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_triton_lives_among_the_kernels(path: Path) -> None:
    if not name(path).startswith(KERNELS):
        assert not needs_triton(path), name(path)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_asyncio_lives_in_link_serving_and_client(path: Path) -> None:
    if room_of(path) not in ASYNCIO_ROOMS:
        assert not {module for module in imports_of(path) if module.split(".")[0] == "asyncio"}, name(path)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_config_and_the_launcher_touch_the_environment(path: Path) -> None:
    if name(path) in ENVIRONMENT_FILES:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(attr=attribute):
                assert attribute not in ENVIRONMENT_NAMES, f"{name(path)}:{node.lineno} touches the environment"
            case ast.ImportFrom(module="os", names=names):
                imported = ENVIRONMENT_NAMES & {alias.name for alias in names}
                assert not imported, f"{name(path)}:{node.lineno} imports {imported}"


def modules_of(room: str) -> list[str]:
    files = [
        path for path in SOURCES if room_of(path) == room and path.name != "__main__.py" and not needs_triton(path)
    ]
    return [
        ".".join(("serve_app", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in files
    ]


def import_without(blocked: set[str], modules: list[str]) -> None:
    """Import modules in a fresh interpreter in which the blocked packages cannot be imported."""
    program = (
        f"import sys, importlib\nfor name in {sorted(blocked)!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_model_and_engine_import_without_web_ray_config_opus_or_triton() -> None:
    import_without(
        {"pydantic", "ray", "fastapi", "starlette", "uvicorn", "websockets", "sphn", "yaml", "safetensors", "triton"},
        modules_of("model") + modules_of("engine"),
    )


def test_what_a_gateway_needs_imports_without_torch() -> None:
    rooms = ("wire", "audio", "admission", "config", "link", "observability", "client", "accounts")
    modules = [module for room in rooms for module in modules_of(room)]
    import_without({"torch"}, [*modules, "serve_app.checkpoint", "serve_app.checkpoint.text"])


def test_an_engine_and_what_starts_it_import_without_the_ledgers_database_or_a_model() -> None:
    import_without({"sqlalchemy", "torch"}, ["serve_app.serving.engine_replica", "serve_app.serving.launcher"])


def test_the_benchmark_imports_with_torch_and_numpy_alone() -> None:
    import_without(
        {"pydantic", "ray", "fastapi", "starlette", "uvicorn", "websockets", "sphn", "av", "yaml", "safetensors"}
        | {"sentencepiece", "huggingface_hub", "matplotlib", "moshi"},
        ["serve_app.bench.command", "serve_app.cli"],
    )

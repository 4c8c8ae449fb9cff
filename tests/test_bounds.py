"""The bounds that keep the code readable: sizes, cycles, names, call depth, and no trace of one machine."""

import ast
import re
import subprocess
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("vla_rl", "sim", "robot", "reward_models", "tests", "launch")
PACKAGE_FOLDERS = ("vla_rl", "sim", "robot", "reward_models")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CALLS_TO_STEP = 4
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def source_files(*folders: str) -> list[Path]:
    """Every Python file once: the links inside vla_rl are not followed."""
    found = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if not any((ROOT / parent).is_symlink() for parent in relative.parents):
                found.append(relative)
    return found


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def module_name(path: Path) -> str:
    """sim/libero/tasks.py -> vla_rl.sim.libero.tasks"""
    parts = list(path.with_suffix("").parts)
    if parts[0] != "vla_rl":
        parts.insert(0, "vla_rl")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


@cache
def package() -> dict[str, Path]:
    return {module_name(path): path for path in source_files(*PACKAGE_FOLDERS)}


def test_the_source_tree_is_found() -> None:
    assert {"vla_rl.types", "vla_rl.sim.base", "vla_rl.robot"} <= set(package())


@pytest.mark.parametrize("path", source_files(*FOLDERS), ids=str)
def test_file_and_function_sizes(path: Path) -> None:
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= MAX_FILE_LINES, f"{path} has {lines} lines; split it by what it does"
    for node in ast.walk(parse(path)):
        if isinstance(node, FunctionNode):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            assert size <= MAX_FUNCTION_LINES, f"{path}:{node.lineno} {node.name} has {size} lines; give its steps names"


def test_module_names_say_what_is_inside() -> None:
    for path in source_files(*FOLDERS):
        assert not BANNED_NAMES & {part.lower() for part in path.with_suffix("").parts}, f"{path}: name it after its content"


def imports(module: str, tree: ast.AST, top_level_only: bool) -> Iterator[tuple[str, str, str]]:
    """(local name, module, attribute or "") of every import; `typing.TYPE_CHECKING` blocks do not run and do not count."""
    waiting: deque[ast.AST] = deque([tree])
    while waiting:
        node = waiting.popleft()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if top_level_only and isinstance(node, FunctionNode):
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively; write the full name"
            for alias in node.names:
                yield alias.asname or alias.name, node.module or "", alias.name
        waiting.extend(ast.iter_child_nodes(node))


def resolve(module: str, attribute: str) -> str | None:
    """The package's own module that an import loads, if any."""
    for candidate in (f"{module}.{attribute}", module):
        if candidate in package():
            return candidate
    return None


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """One cycle of a directed graph, or None (depth-first search)."""
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return None
        for successor in sorted(graph.get(node, ())):
            if cycle := visit(successor, [*path, node]):
                return cycle
        finished.add(node)
        return None

    for node in sorted(graph):
        if cycle := visit(node, []):
            return cycle
    return None


def test_find_cycle() -> None:
    assert find_cycle({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) is None
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_import_cycle() -> None:
    """Imports inside functions count too, except between a package's `__init__` and the modules that it re-exports."""
    graph: dict[str, set[str]] = {}
    for module, path in package().items():
        targets = {resolve(source, name) for _, source, name in imports(module, parse(path), top_level_only=False)}
        graph[module] = {target for target in targets if target and target != module}
    cycle = find_cycle(graph)
    assert cycle is None, "import cycle: " + " -> ".join(cycle or [])


@dataclass
class CallGraph:
    """Which function may call which: by name where the name is imported or local, by method name where it is not.

    Names inside `"module:function"` strings and plain references (a function handed over in a dict) count as calls, so
    that a registry does not hide what it leads to.
    """

    edges: dict[str, set[str]] = field(default_factory=dict)
    steps: set[str] = field(default_factory=set)
    """Functions that call `optimizer.step()` themselves."""
    methods: dict[str, set[str]] = field(default_factory=dict)
    """Method name -> all functions of that name in classes."""

    def distances(self, start: set[str]) -> dict[str, int]:
        found = dict.fromkeys(start, 0)
        waiting = deque(start)
        while waiting:
            node = waiting.popleft()
            for successor in self.edges.get(node, ()):
                if successor not in found:
                    found[successor] = found[node] + 1
                    waiting.append(successor)
        return found


def is_optimizer_step(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "step"
        and "optim" in ast.unparse(node.func.value).lower()
    )


def functions(module: str, tree: ast.Module) -> Iterator[tuple[str, str | None, FunctionNode]]:
    """(qualified name, class or None, node) of functions and methods; a nested function belongs to the one around it."""
    for node in tree.body:
        if isinstance(node, FunctionNode):
            yield f"{module}.{node.name}", None, node
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, FunctionNode):
                    yield f"{module}.{node.name}.{member.name}", node.name, member


def build_call_graph() -> CallGraph:
    graph = CallGraph()
    defined: dict[str, tuple[str, str | None, FunctionNode]] = {}
    for module, path in package().items():
        for name, owner, node in functions(module, parse(path)):
            defined[name] = (module, owner, node)
            if owner:
                graph.methods.setdefault(node.name, set()).add(name)
    for name, (module, owner, node) in defined.items():
        scope = {local: f"{source}.{attribute}" for local, source, attribute in imports(module, parse(package()[module]), False)}
        graph.edges[name] = set()
        for part in ast.walk(node):
            for target in references(part, module, owner, scope, graph.methods):
                graph.edges[name] |= {known for known in (target, f"{target}.__init__") if known in defined and known != name}
        if any(is_optimizer_step(part) for part in ast.walk(node)):
            graph.steps.add(name)
    return graph


def references(
    node: ast.AST, module: str, owner: str | None, scope: dict[str, str], methods: dict[str, set[str]]
) -> Iterator[str]:
    """Qualified names that one syntax node may call."""
    if isinstance(node, ast.Name):
        yield scope.get(node.id, f"{module}.{node.id}")
    elif isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == "self" and owner:
            yield f"{module}.{owner}.{node.attr}"
        elif isinstance(node.value, ast.Name) and node.value.id in scope:
            yield f"{scope[node.value.id]}.{node.attr}"
        yield from methods.get(node.attr, ())
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("vla_rl."):
        yield node.value.replace(":", ".")


def test_at_most_four_calls_from_the_command_line_to_the_optimizer() -> None:
    """A reader finds `optimizer.step()` quickly: at most four calls of ours lead from a command to the function
    that makes the step (train -> pipeline.train -> train_rl -> update -> step is four)."""
    graph = build_call_graph()
    assert graph.steps, "no function calls optimizer.step()"
    commands = ("vla_rl.cli.", "vla_rl.bench_commands.")
    distances = graph.distances({name for name in graph.edges if name.startswith(commands)})
    for name in sorted(graph.steps):
        assert name in distances, f"no way from the command line to {name} was found"
        assert distances[name] <= MAX_CALLS_TO_STEP, f"{name} is {distances[name]} calls below the command line"


MACHINE_TRACES = re.compile(
    r"(?<![\w.$~}-])/(?:work|root|home|Users|mnt|opt|data|scratch|workspace)/\w"  # paths of one machine
    r"|\b(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|docker\.io|ghcr\.io|quay\.io|conda\.anaconda\.org)\b"
    r"|--(?:extra-)?index-url|--find-links|-i https?:"
)


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [Path(name) for name in listed.stdout.split("\0") if name]


def test_no_machine_path_and_no_registry_host_is_committed() -> None:
    for path in tracked_files():
        full = ROOT / path
        if full.is_symlink() or not full.is_file() or path == Path("tests/test_bounds.py"):
            continue
        try:
            text = full.read_text()
        except UnicodeDecodeError:
            continue  # images, videos
        for number, line in enumerate(text.splitlines(), start=1):
            found = MACHINE_TRACES.search(line)
            assert not found, f"{path}:{number} names something of one machine or registry: {found.group() if found else ''}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(path: Path) -> None:
    from vla_rl.control_config import load_experiment

    config = load_experiment(path)
    assert config != type(config)(), f"{path.name} changes nothing"


def config_reads(section: str, section_class: str) -> set[str]:
    """Keys read as `section.key`, or as `config.key` in a module that binds `config` to this section."""
    found = set()
    for path in set(package().values()) - {Path("vla_rl/config.py"), Path("vla_rl/control_config.py")}:
        source = (ROOT / path).read_text()
        owners = {section} | ({"config"} if f".{section}" in source or section_class in source else set())
        reads = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute)]
        found |= {node.attr for node in reads if ast.unparse(node.value).rpartition(".")[2] in owners}
    return found


def test_every_config_key_is_read_somewhere() -> None:
    """A key that nothing reads would be accepted and ignored."""
    from vla_rl.config import Config
    from vla_rl.control_config import ControlConfig

    for section, info in (*Config.model_fields.items(), *ControlConfig.model_fields.items()):
        model = info.annotation
        assert model is not None
        unread = set(model.model_fields) - config_reads(section, model.__name__)
        assert not unread, f"nothing reads {section}.{', '.join(sorted(unread))}"

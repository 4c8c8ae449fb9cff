"""What the documents name must exist: commands, configuration keys, files."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from vla_rl.cli import app
from vla_rl.config import Config
from vla_rl.control_config import ControlConfig, load_experiment

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OFF_POLICY = set(ControlConfig.model_fields) - set(Config.model_fields)
SECTIONS = "|".join(Config.model_fields | ControlConfig.model_fields)


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.name)
def document(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_commands_exist(document: Path) -> None:
    verbs = set(getattr(get_command(app), "commands"))  # noqa: B009
    named = set(re.findall(r"(?:^|`|bin/)vla-rl ([a-z]\w*)", document.read_text(), flags=re.MULTILINE))
    assert named <= verbs, f"there is no vla-rl {', '.join(named - verbs)}"


def test_overrides_can_be_applied(document: Path) -> None:
    """Every `section.key=value` is accepted with its value."""
    for override in re.findall(rf"(?<![\w./])((?:{SECTIONS})\.\w+=(?:'[^']*'|[^\s`),;]+))", document.read_text()):
        if not override.endswith(("FILE_OR_FOLDER", "FOLDER", "PATH")):
            given = override.replace("'", "").rstrip(".")
            of_control = document.name in ("dsac_t.md", "wheeled.md") or given.partition(".")[0] in OFF_POLICY
            load_experiment(None, [*(["algorithm.name=dsac_t"] if of_control else []), given])


def test_configuration_keys_exist(document: Path) -> None:
    for section, key in re.findall(rf"`({SECTIONS})\.(\w+)`", document.read_text()):
        if key != "py":
            models = [kind.model_fields[section].annotation for kind in (Config, ControlConfig) if section in kind.model_fields]
            assert any(key in model.model_fields for model in models), f"{section}.{key}"  # type: ignore[union-attr]


def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
    for path in re.findall(r"\b((?:configs|vla_rl|sim|docs|robot|reward_models|tests)/[\w/.-]*\w\.(?:yaml|py|md))", text):
        found = (ROOT / path).exists() or (document.parent / path).exists()
        assert found, f"{document.name} names {path}"


def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", document.read_text(), flags=re.MULTILINE)) - {"sure"}
    assert named <= targets, f"there is no make {', '.join(named - targets)}"

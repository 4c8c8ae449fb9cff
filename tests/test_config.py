import ast
import sysconfig
from pathlib import Path

import pytest
from pydantic import BaseModel

from vla_rl.config import Config, ConfigError
from vla_rl.config_files import load_config
from vla_rl.control_config import ControlConfig, load_experiment

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_loads(path: Path) -> None:
    config = load_experiment(path)
    assert config.run.name != Config().run.name, "a shipped config names its run"


def test_overrides_win_over_the_file_and_are_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("sim:\n  num_envs: 3\nrl:\n  gamma: 0.9\n")
    config = load_config(path, ["sim.num_envs=5", "rl.learning_rate=1e-4", "task.task_ids=[0, 7]", "policy.checkpoint=null"])
    assert (config.sim.num_envs, config.rl.gamma, config.rl.learning_rate) == (5, 0.9, 1e-4)
    assert config.task.task_ids == (0, 7)
    assert config.policy.checkpoint is None
    assert load_config(None, ['run.name="1e3"']).run.name == "1e3", "text in quotes is text"


def test_a_configuration_survives_its_yaml() -> None:
    config = load_config(None, ["run.name=x", "rl.target_kl=0.1", "demonstrations.path=demos"])
    path = ROOT / "unused"
    assert load_config_text(config.to_yaml(), path) == config


def load_config_text(text: str, _: Path) -> Config:
    import yaml

    return Config.model_validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rl.iteration=3"], "did you mean 'iterations'"),
        (["rll.iterations=3"], "did you mean 'rl'"),
        (["sim.num_envs=0"], "sim.num_envs"),
        (["sim.render_quality=pretty"], "'exact' or 'fast'"),
        (["rl.iterations"], "section.key=value"),
        (["rl.iterations=4", "rl.iterations.more=3"], "iterations"),
        (["rl.lam=[1,"], "not valid YAML"),
        (["run.name=2026-02-30"], "not valid YAML; put a text in quotes"),
        (["rl.learning_rate=.inf"], "rl.learning_rate"),
        (["rl.max_grad_norm=.nan"], "rl.max_grad_norm"),
        (["rl=3"], "rl"),
    ],
)
def test_a_wrong_key_or_value_ends_in_one_line_that_names_it(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match="(?s)^[^\n]*$") as caught:
        load_config(None, overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.nam=sac"], "did you mean 'name'"),
        (["algorithm.name=ddpg"], "'dsac_t'"),
        (["algorithm.name=sac", "rl.iterations=3"], "known here: run, sim, algorithm, off_policy, evaluation"),
        (["algorithm.name=sac", "algorithm.target_entropy=.nan"], "algorithm.target_entropy"),
        (["algorithm.name=sac", "sim.num_envs=3"], "multiple of sim.num_envs"),
        (["algorithm.name=sac", "off_policy.env_steps=1500"], "multiple of off_policy.round_steps"),
        (["sim.id=Hopper-v5"], "unknown key 'sim.id'"),
    ],
)
def test_a_wrong_off_policy_setting_ends_in_one_line_that_names_it(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match="(?s)^[^\n]*$") as caught:
        load_experiment(None, overrides)
    assert message in str(caught.value)


def test_a_bound_may_be_none_and_a_whole_number_stays_one() -> None:
    config = load_experiment(None, ["rl.max_grad_norm=.inf", "objective.clip_high=.inf", "objective.clip_low=.inf"])
    assert isinstance(config, Config) and config.rl.max_grad_norm == config.objective.clip_high == float("inf")
    options = load_experiment(None, ["algorithm.name=sac", "sim.options.max_episode_steps=300"])
    assert isinstance(options, ControlConfig) and type(options.sim.options["max_episode_steps"]) is int


def test_a_section_algorithm_makes_an_experiment_off_policy() -> None:
    config = load_experiment(None, ["algorithm.name=sac", "sim.id=Hopper-v5", "off_policy.updates_per_step=0.5"])
    assert isinstance(config, ControlConfig) and (config.algorithm.name, config.sim.id) == ("sac", "Hopper-v5")
    assert isinstance(load_experiment(None, ["sim.num_envs=3"]), Config)


@pytest.mark.parametrize("text", ["- a\n", "a: [", "rl:\n  gama: 1\n", "\x00", "run: {name: 2026-02-30}"])
def test_a_malformed_file_ends_in_one_line_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"^[^\n]*wrong\.yaml[^\n]*$"):
        load_config(path)


def test_shipped_configs_are_found_without_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel puts them below the environment's data folder."""
    (tmp_path / "share/vla_rl/configs").mkdir(parents=True)
    (tmp_path / "share/vla_rl/configs/demo.yaml").write_text("run:\n  name: installed\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert load_config("configs/demo.yaml").run.name == "installed"


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        load_config("nothing.yaml")


def _fields(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            found += _fields(nested, f"{prefix}{name}.")
        else:
            found.append((prefix + name, field.description or ""))
    return found


def test_every_key_is_read_somewhere_and_documented() -> None:
    """A key that nobody reads is an error: each field's name is an attribute that some other module takes."""
    read: set[str] = set()
    for folder in ("vla_rl", "sim", "robot", "reward_models"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "config.py":
                read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    for name, description in (*_fields(Config), *_fields(ControlConfig)):
        assert name.rsplit(".", 1)[-1] in read, f"nobody reads {name}"
        assert description, f"{name} has no docstring"

"""What a study file means, and what is wrong with one, in one line."""

import json
from pathlib import Path

import pytest
import yaml

from vla_rl.config import ConfigError
from vla_rl.config_files import load_config
from vla_rl.run import differing_keys
from vla_rl.study import Study, load_study

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs" / "studies").glob("*.yaml"))


def study(tmp_path: Path, text: str, *overrides: str) -> Study:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    return load_study(path, [f"root={tmp_path}", *overrides])


PLAIN = """
name: s
seeds: [0, 1]
minutes: 30
settings: {rl.iterations: 7, evaluation.samples: 4}
variants:
  base:
  hot: {rl.temperature: 2.0}
  other_start: {sft.steps: 5, rl.learning_rate: 1e-4}
"""


def test_jobs_are_variants_by_seed_with_shared_starts_before_them(tmp_path: Path) -> None:
    jobs = study(tmp_path, PLAIN).jobs
    starts = [job for job in jobs if job.variant is None]
    # base and hot share a start; other seeds and other fine-tuning have their own.
    assert len(starts) == len({job.name for job in starts}) == 4
    assert [job.variant for job in jobs] == [None, "base", "hot", None, "other_start"] * 2
    assert jobs[1].start is jobs[2].start is jobs[0] and jobs[4].start is jobs[3]
    assert [job.name for job in jobs if job.variant] == [f"{v}_seed{s}" for s in (0, 1) for v in ("base", "hot", "other_start")]


def test_a_run_begins_at_its_start_and_has_the_budget(tmp_path: Path) -> None:
    start, base, hot, *_ = study(tmp_path, PLAIN).jobs
    assert hot.config.policy.checkpoint == tmp_path / "s" / start.name
    assert hot.config.demonstrations.path == tmp_path / "s" / start.name / "demonstrations"
    assert hot.directory == tmp_path / "s" / "hot_seed0"
    assert (hot.config.run.seed, hot.config.run.max_minutes, hot.config.rl.iterations) == (0, 30, 7)
    assert differing_keys(base.config, hot.config) == {"rl.temperature", "run.name"}
    # The start knows nothing of the budget, nor of any variant's reinforcement learning.
    assert start.config.run.max_minutes is None and start.config.rl == load_config().rl
    assert start.config.evaluation.samples == 4


def test_a_start_keeps_its_name_when_only_the_course_of_a_run_changes(tmp_path: Path) -> None:
    before = study(tmp_path, PLAIN).jobs[0].name
    reordered = PLAIN.replace("  base:\n", "").replace("variants:\n", "variants:\n  base: {rl.gamma: 0.9}\n")
    for text in (reordered, PLAIN.replace("rl.iterations: 7", "run.threads: 1"), PLAIN.replace("samples: 4", "every: 3")):
        assert study(tmp_path, text).jobs[0].name == before
    assert study(tmp_path, PLAIN, "demonstrations.noise=0.2").jobs[0].name != before


def test_given_policies_and_demonstrations_are_used(tmp_path: Path) -> None:
    text = "name: s\nsettings: {demonstrations.path: demos}\nvariants: {a: {policy.checkpoint: somewhere}, b: }\n"
    given, start, made = study(tmp_path, text).jobs
    assert given.start is None and given.config.policy.checkpoint == Path("somewhere")
    assert made.start is start and made.config.demonstrations.path == Path("demos")


def test_a_given_checkpoint_needs_no_supervised_start(tmp_path: Path) -> None:
    """`train` begins with it as it is, so a study must, too."""
    found = study(tmp_path, "name: s\nsettings: {policy.path: openvla}\nvariants: {a: , b: {rl.gamma: 0.9}}\n")
    assert [job.name for job in found.jobs] == ["a_seed0", "b_seed0"] and not any(job.start for job in found.jobs)


def test_settings_that_are_no_section_are_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^settings in [^\n]* is"):
        study(tmp_path, "name: s\nsettings: [1]\nvariants: {a: }\n", "rl.gamma=0.9")


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    text = "name: s\ngrid: {rl.temperature: [0.5, 1], curriculum.name: [uniform, dump]}\n"
    found = study(tmp_path, text)
    assert list(found.variants) == [
        "rl.temperature=0.5,curriculum.name=uniform",
        "rl.temperature=0.5,curriculum.name=dump",
        "rl.temperature=1,curriculum.name=uniform",
        "rl.temperature=1,curriculum.name=dump",
    ]
    runs = [job.config for job in found.jobs if job.variant]
    assert [(c.rl.temperature, c.curriculum.name) for c in runs][1] == (0.5, "dump")


def test_overrides_set_keys_of_the_study_and_settings_of_all_runs(tmp_path: Path) -> None:
    found = study(tmp_path, PLAIN, "seeds=[3]", "minutes=0.5", "rl.gamma=0.5")
    assert {job.config.run.seed for job in found.jobs} == {3} and found.file.minutes == 0.5
    runs = [job.config.rl for job in found.jobs if job.variant]
    assert {rl.gamma for rl in runs} == {0.5} and {rl.iterations for rl in runs} == {7}
    again = tmp_path / "again.yaml"
    again.write_text(found.definition)
    assert load_study(again).jobs == found.jobs, "the definition in the folder is the study"


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path: Path) -> None:
    assert study(tmp_path, PLAIN).jobs[4].config.rl.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: s\n", "needs either `variants` or `grid`"),
        ("name: s\nvariants: {a: }\ngrid: {rl.gamma: [1]}\n", "needs either `variants` or `grid`, and not both"),
        ("name: s\nvariant: {a: }\n", "unknown key 'variant' in .*did you mean 'variants'"),
        ("variants: {a: }\n", "name in .*Field required"),
        ("name: a/b\nvariants: {a: }\n", "name in .* is 'a/b'"),
        ("name: s\nvariants: {a/b: }\n", "the variant 'a/b' in .* becomes a folder"),
        ("name: s\nseeds: [1, 1]\nvariants: {a: }\n", "names a seed twice"),
        ("name: s\nseeds: []\nvariants: {a: }\n", "seeds in .* is"),
        ("name: s\nminutes: 0\nvariants: {a: }\n", "minutes in .* is 0"),
        ("name: s\nvariants: {a: {rl.gama: 1}}\n", "variant 'a': unknown key 'rl.gama' in .*did you mean 'gamma'"),
        ("name: s\nvariants: {a: {rl.gamma: 7}}\n", "variant 'a': rl.gamma in .* is 7"),
        ("name: s\nvariants: {a: {gamma: 1}}\n", "sets 'gamma'; settings are dotted keys"),
        ("name: s\nvariants: {a: {rl: {gamma: 1}}}\n", "variants.a.rl"),
        ("name: s\nvariants: {a: {run.seed: 1}}\n", "sets run.seed, which a study does itself: set `seeds`"),
        ("name: s\nvariants: {a: {rl.gamma: 0.9}, b: {rl.gamma: 0.90}}\n", "the variants 'a' and 'b' in .* the same values"),
        ("name: s\ngrid: {policy.checkpoint: [a/b, a_b]}\n", "two combinations of the grid in .* become one folder"),
        ("name: s\nbase: nowhere.yaml\nvariants: {a: }\n", "variant 'a': there is no configuration file nowhere.yaml"),
        ("- a\n", "must hold sections"),
        ("a: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        study(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        load_study(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_study_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = load_study(path)
    assert found.file.name == path.stem
    assert all(job.config.run.max_minutes or job.config.run.max_episodes for job in found.jobs if job.variant)
    assert json.loads(json.dumps(yaml.safe_load(found.definition))) == yaml.safe_load(found.definition)


def test_studies_are_shipped() -> None:
    assert {"ablations", "ppo_vs_grpo"} <= {path.stem for path in SHIPPED}

"""What a study starts as processes, on the pendulum: `python pendulum_worker.py sft --evaluate CONFIG`, `train CONFIG`; and the
study itself, so that tests can kill it: `study STUDY`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("policies", "sim", "trainers")]

# ruff: noqa: E402
from pendulum_run import TIME_LIMITS, pendulum_policy, pendulum_sim

from vla_rl.config_files import load_config
from vla_rl.policies import load_policy
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.run import Run
from vla_rl.study import load_study, run_study
from vla_rl.trainers import pipeline

WORKER = (sys.executable, str(Path(__file__).resolve()))


def supervised_start(run: Run) -> OpenVLAPolicy:
    if run.config.policy.checkpoint is not None:
        return load_policy(run.config.policy.checkpoint)
    policy = pendulum_policy()
    run.save("sft", 1, policy, {}, {"step": 1})
    return policy


def main(verb: str, *words: str) -> None:
    if verb == "study":
        sys.exit(len(run_study(load_study(Path(words[0])), WORKER, pipeline.check_settings)))
    config = load_config(words[-1])
    pipeline.check = lambda _: TIME_LIMITS
    pipeline.open_sim = lambda *_: pendulum_sim()
    pipeline.supervised_start = supervised_start
    pipeline.train_sft = lambda run, *_: supervised_start(run)
    if verb == "sft":
        pipeline.clone(config, evaluate="--evaluate" in words)
    else:
        pipeline.train(config)


if __name__ == "__main__":
    main(*sys.argv[1:])

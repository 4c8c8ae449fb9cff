"""The configuration of a run: one frozen model a section, one docstring a field, and no key that nobody reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bound = Annotated[float, Field(gt=0)]
"""May be `.inf`: no bound."""
Fraction = Annotated[float, Field(ge=0, le=1)]


class ConfigError(ValueError):
    """The configuration is wrong; the message names the key and says how to mend it."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TaskConfig(Section):
    suite: str = "libero_object"
    """Task suite of the simulator, such as libero_spatial."""
    task_ids: tuple[Count, ...] = (0,)
    """Tasks of the suite to learn and to evaluate; an empty list means all of them."""
    shipped_states: Fraction = 0.5
    """Share of training episodes that start in the benchmark's shipped states 0-39; the others are sampled by seed."""


class RoboTwinOptions(Section):
    """What RoboTwin alone has a choice of; read where `sim.name` is robotwin."""

    control: Literal["chunk", "action"] = "chunk"
    """chunk: a chunk is one time-optimal trajectory (RLinf, SimpleVLA-RL); action: each action is one (RoboTwin's evaluation)."""
    waypoint_stride: Positive = 1
    """Recorded steps of 0.06 s from one action of a chunk to the next: 1 as in RoboTwin's data; with more a chunk has fewer
    waypoints for the same motion, fewer tokens to learn, and the step limit counts in these actions."""
    profile: Literal["auto", "lite", "official"] = "auto"
    """official: RoboTwin's robot and assets; lite: our own arms and no meshes, whose scores compare with no published ones;
    auto: official where ROBOTWIN_ASSETS_ROOT is set."""
    shader: Literal["auto", "raster", "ray_tracing"] = "auto"
    """auto: ray tracing, as RoboTwin's own pictures, with the official robot, else raster."""
    planner: Literal["auto", "curobo", "mplib"] = "auto"
    """Of the expert with the official robot; auto: cuRobo where it is installed."""
    task_config: str = "demo_clean"
    """The runtime's configuration of the scene: demo_clean or demo_randomized."""
    instructions: Literal["seen", "unseen"] = "seen"
    """Which of the instruction templates are used."""
    privileged: bool = False
    """Whether proprioception also holds the poses of the task's objects, which no robot is told; for small experiments."""


ImageSize = Positive | tuple[Positive, Positive]


class SimOptions(Section):
    """What a simulated environment is made with, to act in it or to make demonstrations."""

    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    """Cameras that are rendered: what a policy sees, or what is recorded."""
    image_size: ImageSize = 64
    """Side of the rendered square images, or height and width, px. RoboTwin's view of 4 x 3 is squeezed into a square."""
    render_quality: Literal["exact", "fast"] = "fast"
    """exact: the benchmark's own picture; fast: visual meshes at the level of detail that the image size can show."""
    antialiasing: Positive = 4
    """Samples a pixel: MSAA in exact pictures (4 is the benchmark's own), supersampling in fast ones; 1: none."""
    controller: Literal["exact", "fast"] = "exact"
    """exact: the benchmark's arm controller, bit for bit; fast: the same up to rounding, which contacts amplify."""
    robotwin: RoboTwinOptions = RoboTwinOptions()
    """Where the simulator is RoboTwin."""
    python: str | None = None
    """Interpreter of the simulator's processes; by default ours, or the one that `vla-rl sim install` made."""


LIBERO_OPTIONS = ("cameras", "image_size", "render_quality", "antialiasing", "controller")
"""Which of these LIBERO's backend takes."""


class SimConfig(SimOptions):
    name: Literal["libero", "robotwin"] = "libero"
    """Which simulator."""
    num_envs: Positive = 16
    """Environments that advance together."""
    num_workers: Positive | None = None
    """Simulator processes; by default one a CPU core."""


class PolicyConfig(Section):
    preset: str = "tiny"
    """Architecture of a policy built from scratch."""
    path: str | None = None
    """Start from this OpenVLA or OpenVLA-OFT checkpoint, a folder or OWNER/NAME on the hub; it decides the length of a turn."""
    unnorm_key: str | None = None
    """Of `path`: data set whose statistics scale the actions; by default the only one, or that of task.suite."""
    decoding: Literal["parallel", "autoregressive"] | None = None
    """Of `path`: whether its action tokens come in one pass (OpenVLA-OFT) or one by one; by default told from its files."""
    attention: Literal["full", "causal"] | None = None
    """Of `path`, decoding in parallel: full, or causal where it was trained with stock transformers or FlashAttention-2."""
    centre_crop: bool = True
    """Of `path`: crop images as for all checkpoints that were trained with image augmentation."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the weights of `path` or `checkpoint`; by default as their files say."""
    checkpoint: Path | None = None
    """Start from this policy (a run or a checkpoint directory) instead of the supervised start."""
    server: str | None = None
    """Evaluate the policy behind this address (ws://HOST:PORT, of `vla-rl serve`) instead of a local one."""
    chunk_length: Positive = 8
    """Low-level actions a turn."""
    value_gradient: bool = False
    """Whether the value loss also trains the trunk that the policy shares, or the value head alone."""
    lora_rank: Count = 0
    """Rank of the adapters that train instead of the weights (VLA-RL: 32); 0: all weights train."""
    lora_alpha: Positive | None = None
    """Adapters are scaled by lora_alpha / lora_rank; null: min(lora_rank, 16), as OpenVLA and VLA-RL have it."""
    gradient_checkpointing: bool = False
    """Compute the transformers' activations anew in the backward pass, for a fraction of their memory."""
    compile: bool = False
    """Fuse the transformers' blocks with torch.compile: minutes in the first update of a shape, faster ones after it on a GPU."""
    sharded: bool = False
    """On several ranks (`torchrun`) each keeps a share of weights, gradients and moments (FSDP2), rather than all."""


class DemonstrationConfig(Section):
    path: Path | None = None
    """LIBERO HDF5 file, or folder of such files, to clone; by default the scripted expert makes demonstrations."""
    episodes_per_task: Positive = 20
    """Demonstrations of each task."""
    noise: Fraction = 0.1
    """Standard deviation of the noise on the expert's actions, in action units, so that cloning sees recoveries."""
    varied: bool = False
    """Whether the expert's speed and route differ from episode to episode; from few episodes, one way is easier to clone."""


class CollectSettings(SimOptions):
    """A collection of demonstrations by the scripted expert, one file a task."""

    suite: str = "libero_object"
    """Task suite."""
    task_ids: tuple[Count, ...] = ()
    """Tasks of the suite; an empty list means all of them."""
    episodes: Positive = 50
    """Successful demonstrations of each task."""
    seed: Count = 0
    """Of initial states, noise and driving style."""
    output: Path = Path("demonstrations")
    """Folder of the files."""
    image_size: ImageSize = 128
    """Side of the square frames, or height and width, px."""
    frame_stride: Positive = 1
    """Control steps between two frames; the length of a policy's chunk is enough for training it."""
    noise: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of the noise on executed actions, in action units, so that cloning sees recoveries."""
    varied: bool = True
    """Whether speed and route differ from episode to episode, or the expert always takes its plain way."""
    shipped_states: Fraction = 0.5
    """Share of episodes that begin in the benchmark's shipped states 0-39; the others are sampled by seed."""
    workers: Positive | None = None
    """Processes; by default one a CPU core. Their number does not change the data."""
    compression: Literal["gzip", "lzf"] | None = None
    """Of the frames."""


class SftConfig(Section):
    steps: Positive = 600
    """Optimiser steps of the supervised start."""
    batch_size: Positive = 64
    """Samples (turns) a step."""
    learning_rate: Rate = 1e-3
    """Peak of the warm-up and cosine schedule."""
    warmup_steps: Count = 50
    """Steps until the peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled decay."""
    max_grad_norm: Bound = 1.0
    """Gradients are scaled down to this norm."""
    log_every: Positive = 20
    """Steps between two metric records."""
    checkpoint_every: Positive = 200
    """Steps between two checkpoints."""


class RlConfig(Section):
    iterations: Positive = 40
    """Rounds of rollout and update, critic warm-up included."""
    episodes_per_iteration: Positive = 48
    """Trajectories that a round learns from."""
    max_turns: Positive | None = None
    """Cut training episodes after so many turns, as by a time limit; evaluations go on to the task's own. Where a success is
    quick and a failure fills the time limit, most of the simulation goes into what comes after the failure."""
    group_size: Positive = 1
    """Episodes that share an initial state; objectives that compare siblings need some (SimpleVLA-RL: 8)."""
    sampling_attempts: Count = 0
    """Dynamic sampling: how often a round may draw groups until enough are informative; 0: every group counts, drawn once."""
    success_low: Fraction = 0.1
    """A group is informative from this share of successes (SimpleVLA-RL: 0.1)..."""
    success_high: Fraction = 0.9
    """... to this one."""
    temperature: Rate = 1.2
    """Of the action-token distribution in rollouts, and therefore in the ratio (VLA-RL: 1.5, SimpleVLA-RL: 1.6)."""
    epochs: Positive = 2
    """Passes over a round's turns."""
    minibatch_turns: Positive = 256
    """Turns of one optimiser step; about so many where a mini-batch holds whole trajectories or groups."""
    microbatch_turns: Positive = 64
    """Turns of one forward and backward pass; the gradient does not depend on it."""
    learning_rate: Rate = 5e-5
    """Of the policy."""
    learning_rate_warmup: Count = 20
    """Optimiser steps until the policy's learning rate is reached; Adam's first steps are its largest otherwise."""
    max_grad_norm: Bound = 1.0
    """Gradients are scaled down to this norm."""
    target_kl: Rate | None = None
    """Stop a round's updates when the approximate KL divergence an action from the rollout policy exceeds this, nat."""
    gamma: Fraction = 0.99
    """Discount a turn, of the advantages `critic` and `batch`; the others compare undiscounted returns."""
    lam: Fraction = 0.95
    """GAE's lambda, of the advantage `critic`."""
    value_learning_rate: Rate = 5e-4
    """Of the value head, where the objective has a critic; so are the keys below."""
    value_clip: Bound = 0.2
    """How far a value may move from the one at rollout before its loss is clipped."""
    warmup_iterations: Count = 5
    """At most this many rounds train the value head alone."""
    warmup_epochs: Positive = 8
    """Passes over a round's turns while the value head is trained alone, which is cheap."""
    warmup_explained_variance: Fraction = 0.5
    """The warm-up ends early when the value explains this share of the returns' variance before a round's update."""
    checkpoint_every: Positive = 1
    """Iterations between two checkpoints."""


Setting = bool | int | float | str
Chosen = dict[str, float | dict[str, Setting]]
"""Parts by name: a coefficient, or `{coefficient: 0.1, ANOTHER_SETTING: 2}`; the coefficient 0 removes a part."""


class ObjectiveConfig(Section):
    """What is learned from a round. What is not given stays as the named composition has it; docs/objectives.md has them all."""

    name: str = "ppo"
    """Key of `vla_rl.algorithms.composition.OBJECTIVES`, such as ppo, grpo, rloo or lite_ppo."""
    advantage: str | dict[str, Setting] | None = None
    """Key of `estimators.ESTIMATORS`, or `{name: KEY, SETTING: VALUE}`."""
    ratio: Literal["token", "action", "trajectory"] | None = None
    """What has a ratio and a clip: a token, an action (product of its tokens), or a trajectory (geometric mean, GSPO)."""
    average: Literal["all", "trajectories"] | None = None
    """all: every executed token counts the same; trajectories: the mean within each trajectory, then over trajectories."""
    clip_low: Bound | None = None
    """The ratio is clipped below at 1 - clip_low; .inf: never."""
    clip_high: Bound | None = None
    """The ratio is clipped above at 1 + clip_high; .inf: never."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bounds the loss of a negative advantage at this many times its size (usual: 3); by default not at all."""
    token_weights: Chosen = {}
    """Keys of `token_weights.TOKEN_WEIGHTS`, with their strength as the coefficient."""
    regularisers: Chosen = {}
    """Keys of `regularisers.REGULARISERS`."""
    auxiliaries: Chosen = {}
    """Keys of `auxiliaries.AUXILIARIES`."""
    demonstration_share: Annotated[float, Field(gt=0)] | None = None
    """Demonstrated turns per turn of a round, where the objective learns from demonstrations."""
    reference_reset_every: Count | None = None
    """Rounds after which the reference becomes the current policy and the optimiser starts anew (ProRL); 0: never."""


class CurriculumConfig(Section):
    name: Literal["uniform", "success_rate", "learnability", "dump", "self", "low_likelihood"] = "uniform"
    """What decides how often a source of episodes is drawn; docs/curricula.md explains each."""
    level: Literal["state", "task"] = "state"
    """Whether each shipped initial state has statistics and weight of its own, or all episodes of a task share them."""
    tau: Rate | None = None
    """Temperature of success_rate, dump and low_likelihood: lower is more selective; null: 0.5, and 0.1 for dump."""
    forgetting: Fraction = 0.9
    """What an episode's weight in the running statistics is multiplied with in every later round; 1: nothing is forgotten."""
    prior: Rate = 1.0
    """Pseudo-episodes at the task's success rate (for a task: at 0.5) that every success rate begins with."""
    floor: Fraction = 0.1
    """Share of the episodes that is drawn uniformly, so that nothing is left out for good."""
    exploration: Annotated[float, Field(ge=0)] = 1.0
    """Weight of dump's bonus for what was drawn rarely."""
    threshold: Fraction = 0.5
    """self draws what succeeds less often than this."""


class EvaluationConfig(Section):
    episodes: Positive = 200
    """Held-out episodes a task, before and after training."""
    every: Count = 10
    """Iterations between two evaluations during training; 0: none."""
    interim_episodes: Positive = 50
    """Episodes a task of the evaluations during training; other ones than those before and after."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0: greedy; above: sampled at this temperature."""
    samples: Count = 0
    """Sampled episodes of each state that pass@k is estimated from, before and after training; 0: no pass@k."""
    sample_states: Positive = 20
    """Held-out states a task of which pass@k is estimated."""
    sample_temperature: Rate = 1.0
    """Of those episodes; the same for all runs that are compared."""
    videos: Count = 2
    """Videos of successes, and as many of failures, of the first and the last evaluation."""


class RunConfig(Section):
    name: str = "run"
    """Name of the run's directory."""
    root: Path = Path("runs")
    """Folder of all runs."""
    seed: Count = 0
    """Of everything random in training; evaluation episodes do not depend on it."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue an unfinished run of the same name and configuration; never: refuse an existing directory."""
    device: str = "auto"
    """torch device of the policy: auto, cpu, cuda, cuda:1, ..."""
    threads: Count = 0
    """CPU threads of the policy; 0: one a core."""
    keep_checkpoints: Positive = 2
    """Checkpoints kept of each phase."""
    max_minutes: Rate | None = None
    """No round of reinforcement learning begins after so many minutes of running; the final evaluation comes on top."""
    max_episodes: Positive | None = None
    """No round of reinforcement learning begins after so many training episodes."""


class Experiment(Section):
    """What every kind of experiment has."""

    run: RunConfig = RunConfig()

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class Config(Experiment):
    """One experiment with a policy that sees pictures."""

    task: TaskConfig = TaskConfig()
    sim: SimConfig = SimConfig()
    policy: PolicyConfig = PolicyConfig()
    demonstrations: DemonstrationConfig = DemonstrationConfig()
    sft: SftConfig = SftConfig()
    rl: RlConfig = RlConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

"""What the known metrics are called in words, with their units. A metric without an entry is shown under its own key."""

from __future__ import annotations

from typing import NamedTuple


class Title(NamedTuple):
    text: str
    unit: str = ""
    note: str = ""
    percent: bool = False


PHASES = {
    "sft": "Supervised fine-tuning",
    "rl": "Reinforcement learning",
    "off_policy": "Off-policy reinforcement learning",
}
STEP_NAMES = {"sft": "optimiser step", "off_policy": "control step"}
"""Elsewhere a step is an iteration: one round of rollouts and updates."""

ENVIRONMENT = {"cpu": "CPU", "cpu_cores": "CPU cores", "memory_gib": "memory (GiB)", "os": "operating system"}

GROUPS = {
    "rollout": "Rollouts",
    "policy": "Policy",
    "value": "Value function",
    "critic": "Critics",
    "update": "Updates",
    "curriculum": "Curriculum",
    "speed": "Speed",
    "time": "Time",
}

TITLES = {
    "loss": Title("Loss", "nat per token", "Cross-entropy of the demonstrated action tokens."),
    "accuracy": Title("Token accuracy", "%", "Action tokens predicted exactly.", percent=True),
    "token_accuracy": Title("Token accuracy", "%", "Action tokens predicted exactly.", percent=True),
    "learning_rate": Title("Learning rate"),
    "gradient_norm": Title("Gradient norm", "", "Before clipping."),
    "rollout/success": Title("Rollout success", "%", percent=True),
    "rollout/episodes": Title("Episodes of a round", "episodes"),
    "rollout/successes": Title("Successes of a round", "episodes"),
    "rollout/total_episodes": Title("Episodes so far", "episodes"),
    "rollout/steps_mean": Title("Episode length", "control steps", "Mean of a round; successes end early."),
    "rollout/turns": Title("Turns of a round", "turns"),
    "rollout/attempts": Title("Draws of groups in a round", "draws", "More than one where dynamic sampling looked further."),
    "rollout/groups": Title("Groups learned from in a round", "groups"),
    "rollout/surplus_groups": Title("Groups kept for the next round", "groups"),
    "rollout/mixed_groups": Title(
        "Groups with successes and failures", "%", "Only they teach objectives that compare siblings.", percent=True
    ),
    "rollout/policy_version": Title("Policy version", "updates", "Of the weights that acted."),
    "policy/loss": Title("Policy loss", "", "Clipped surrogate; its level means little, a jump does."),
    "policy/ratio_deviation": Title("Probability ratio, distance from 1", "", "Mean; 0 would mean that updates reach nobody."),
    "policy/ratio_mean": Title("Probability ratio, mean", "", "Of the new to the rollout policy; stays near 1."),
    "policy/ratio_max": Title("Probability ratio, largest"),
    "policy/ratio_min": Title("Probability ratio, smallest"),
    "policy/kl": Title("KL divergence", "nat per action", "From the policy that made the rollouts."),
    "policy/approx_kl": Title("KL divergence, estimate", "nat per action", "From the policy that made the rollouts."),
    "policy/clip_fraction": Title("Clipped ratios", "%", "Share whose ratio left the trust region.", percent=True),
    "policy/entropy": Title("Entropy", "nat per action", "A fall to zero means that exploration has ended."),
    "policy/reference_cost": Title("Divergence from the reference", "nat per token", "Of the kind in the configuration."),
    "policy/low_probability_cost": Title("Cost of lost improbable tokens", "nat per token", "Lp-Reg."),
    "policy/imitation_cost": Title("Imitation loss", "nat per token", "Of demonstrated action tokens."),
    "policy/hybrid_cost": Title("Hybrid loss on demonstrations", "", "RL-PLUS."),
    "policy/outcome_cost": Title("Outcome cross-entropy", "nat", "PACS: of predicting a trajectory's success."),
    "policy/gradient_norm": Title("Policy gradient norm", "", "Before clipping."),
    "value/loss": Title("Value loss", "", "Squared error of the predicted return, clipped."),
    "value/clip_fraction": Title("Clipped values", "%", "Share of value losses that the clip holds.", percent=True),
    "value/explained_variance": Title("Explained variance", "", "Of the returns, before a round's update; 1 is perfect."),
    "value/gradient_norm": Title("Value gradient norm", "", "Before clipping."),
    "rollout/return": Title("Return of training episodes", "", "Mean of those that ended in a round, with sampled actions."),
    "policy/alpha": Title("Temperature alpha", "", "What a nat of entropy is worth."),
    "critic/q_mean": Title("Q", "", "Mean of both critics on a batch."),
    "critic/q_disagreement": Title("Difference of the critics", "", "Mean of |Q1 - Q2|."),
    "critic/td_error": Title("Error of Q", "", "Root mean square distance from the expected target."),
    "critic/sigma_mean": Title("Sigma", "", "Mean predicted standard deviation of the soft return."),
    "critic/sigma_calibration": Title(
        "Calibration of sigma", "", "Root mean square of (target - Q) / sigma: 1 is right, above 1 sigma is too small."
    ),
    "critic/clip_share": Title("Clipped targets", "%", "Share further than 3 B from Q.", percent=True),
    "critic/bound": Title("B", "", "Moving average of sigma, which scales gradients and clips targets."),
    "update/steps": Title("Optimiser steps of a round", "steps"),
    "update/stopped_by_kl": Title("Updates stopped by the KL limit", "1 = yes"),
    "curriculum/effective_sources": Title(
        "Sources in effect", "", "Exponential of the entropy of the sampling probabilities: fewer means more selective."
    ),
    "speed/env_steps_per_s": Title("Environment steps", "per second", "Control steps of all environments a second of acting."),
    "speed/updates_per_s": Title("Updates", "per second", "Of the critics, a second of learning."),
    "speed/turns_per_s": Title("Turns", "per second", "Decisions of the policy a second of acting."),
    "speed/frames": Title("Frames rendered in a round", "frames"),
}


def title_of(key: str) -> Title:
    return TITLES.get(key) or Title(key)


def phase_title(phase: str) -> str:
    return PHASES.get(phase, phase)


def step_name(phase: str) -> str:
    return STEP_NAMES.get(phase, "iteration")

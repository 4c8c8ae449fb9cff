"""Score trajectories: success, and dense process rewards."""

if __name__ != "vla_rl.reward_models":
    raise ImportError("import it as `vla_rl.reward_models`: `reward_models` alone is another distribution's name")

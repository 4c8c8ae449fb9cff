"""What `vla-rl bench` measures: speed and fidelity of the simulator, each against what it replaces."""

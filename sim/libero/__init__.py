"""LIBERO's manipulation tasks on MuJoCo: its tasks, scenes and success predicates, with a stepping loop of our own."""

"""What the simulator, the robot and the replay of a recording must do alike: settings, observations, safety limits.

Numpy and numba only. Frames follow REP-103: x forward, y left, angles counter-clockwise; m, rad, s.
"""

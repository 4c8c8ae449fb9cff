"""RoboTwin 2.0's bimanual tasks on SAPIEN, which run in an interpreter of their own (`vla-rl sim install robotwin`).

The task code, physics settings, success checks, step limits and instructions are those of the distribution
`rlinf-robotwin-runtime`. With RoboTwin's assets (`ROBOTWIN_ASSETS_ROOT`) the robot is the official one. Without them the
lite profile has our own arms of primitive shapes, the raster shader and a planner for CPUs: real tasks, but scores that
must not be compared with published ones.
"""

"""LeRobotDataset v3.0, read and written with pyarrow and av; lerobot itself is not needed."""

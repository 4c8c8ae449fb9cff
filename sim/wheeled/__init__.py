"""A vectorised simulator of differential-drive robots with a 2-D scanner, its tasks, and a classical baseline."""

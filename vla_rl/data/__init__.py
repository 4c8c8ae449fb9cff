"""Readers and writers of demonstration datasets."""

from vla_rl.data.demonstration import DatasetError, Demonstration

__all__ = ["DatasetError", "Demonstration"]

"""Studies: variants of a configuration x seeds, run one after another or side by side, and compared on one page."""

from vla_rl.study.definition import Study, load_study
from vla_rl.study.runner import run_study, write_comparison

__all__ = ["Study", "load_study", "run_study", "write_comparison"]

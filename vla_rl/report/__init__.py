"""The page that shows what a run did: `write_report(run_dir)` makes one self-contained `report.html`."""

from vla_rl.report.page import write_report

__all__ = ["write_report"]

"""An exported policy on a robot: onnxruntime alone, one thread, no torch.

Legend: B rows, O observation size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from vla_rl.driving.manifest import ExportError, Manifest, read_manifest
from vla_rl.driving.observation import observation_size
from vla_rl.driving.settings import RobotSettings


class ExportedPolicy:
    """Acts as `WheeledCore` wants it."""

    def __init__(self, folder: Path, settings: RobotSettings | None = None) -> None:
        """The export in `folder` for a robot with `settings`; None: with those of the export.

        Raises `ExportError` in one line for what is no export, was changed, or is for another robot, and without onnxruntime.
        """
        self.manifest: Manifest = read_manifest(folder, settings)
        self.settings = self.manifest.robot
        try:
            import onnxruntime
        except ImportError:
            raise ExportError("onnxruntime is not installed: pip install 'vla_rl[ros]'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        model = folder / self.manifest.model.file
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        wanted, found = observation_size(self.settings), self._session.get_inputs()[0].shape[-1]
        if found != wanted:
            raise ExportError(f"{model} takes {found} numbers, but the observation of its manifest has {wanted}")
        # The first call allocates; no tick of a robot should wait for that.
        for _ in range(3):
            self.act(np.zeros((1, wanted), np.float32))

    @property
    def version(self) -> str:
        """For logs: updates of the policy, and the beginning of its hash."""
        return f"{self.manifest.model.version}-{self.manifest.model.sha256[:12]}"

    def act(self, observation: Float32[np.ndarray, "B O"]) -> Float32[np.ndarray, "B 2"]:
        """Actions in [-1, 1]: forward, left turn."""
        actions: Float32[np.ndarray, "B 2"] = self._session.run(["action"], {"observation": observation})[0]
        return actions

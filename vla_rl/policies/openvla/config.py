"""The shape of an OpenVLA-style policy, saved as `config.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from vla_rl.policies.base import PolicyError


@dataclass(frozen=True)
class FeaturizerConfig:
    """One vision encoder; the features of several are concatenated, as OpenVLA does with DINOv2 and SigLIP."""

    kind: Literal["conv", "siglip", "dinov2"]
    patch_size: int
    """Pixels a side of what one feature stands for; for `conv` a power of two."""
    width: int
    layers: int
    heads: int = 1
    mlp_width: int = 0
    registers: int = 0
    """Register tokens (`dinov2` only)."""
    final_norm: bool = True
    """Apply the encoder's last LayerNorm; OpenVLA takes the features before it."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    layout: Literal["transformers", "timm"] = "transformers"
    """`timm`: positions, activation and tensors as timm has them, which released OpenVLA checkpoints are made of. Their
    features are those of the last but one block, so that `layers` is one less than the published encoder has."""


@dataclass(frozen=True)
class LanguageConfig:
    """A Llama decoder."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_positions: int = 2048
    """Longest sequence; an instruction that does not fit is refused."""
    initializer_range: float = 0.02
    """Standard deviation of new weights."""
    kv_heads: int = 0
    """Heads of keys and values; 0: as many as `heads`."""


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of training images, drawn per image."""

    shift: float = 0.04
    """Largest translation, as a fraction of the image side."""
    crop: float = 0.05
    """Largest part of the side that a random crop removes before it is scaled back."""
    brightness: float = 0.15
    """Largest change, as a fraction of full scale."""
    contrast: float = 0.2
    """Largest relative change."""


@dataclass(frozen=True)
class OpenVLAConfig:
    """Everything that decides the shape and the inputs of an `OpenVLAModel`."""

    cameras: tuple[str, ...]
    """Without any, the policy sees proprioception alone and has no vision encoder."""
    chunk_length: int
    action_dim: int
    proprio_dim: int
    """0: the policy sees no proprioception."""
    vocab_size: int
    """One past the last action token; the embedding tables are padded beyond it."""
    image_size: int
    featurizers: tuple[FeaturizerConfig, ...]
    language: LanguageConfig
    proprio_centre: tuple[float, ...]
    proprio_scale: tuple[float, ...]
    """Physical scales (m, rad), NOT the data's standard deviation: where that is tiny, proprioception becomes a clock.
    A released checkpoint has half the range of its training data."""
    pad_to_multiple_of: int = 64
    image_orientation: Literal["as_is", "flip_vertical", "rotate_180"] = "rotate_180"
    """How frames are turned before the encoders; LIBERO's cameras deliver them upside down."""
    projector_layers: Literal[2, 3] = 2
    projector_pool: int = 1
    """Side of the square of neighbouring features that the projector merges into one token."""
    projector_width: int = 0
    """Width of the projector's hidden layers; 0: that of the language model."""
    camera_embedding: bool = False
    """Add a learned vector per camera to its tokens."""
    slot_embedding: Literal["zero", "learned"] = "zero"
    """What the action slots hold; `zero` (OpenVLA-OFT) tells them apart by position only."""
    attention: Literal["slots", "full", "causal"] = "slots"
    """`slots`: the prefix is causal and the action slots see everything; `full`: all see all; `causal`: an ablation."""
    proprio_noise: float = 0.02
    """Standard deviation of training noise, in units of `proprio_scale`."""
    proprio_dropout: float = 0.2
    """Probability that a training example sees no proprioception."""
    value_width: int = 256
    value_gradient: bool = True
    """Whether the value loss reaches the trunk, or the value head only."""
    augmentation: AugmentationConfig = AugmentationConfig()
    slot_holds: Literal["token", "action"] = "token"
    """`action`: all tokens of an action are read from one slot, each by a linear layer of its own, for long chunks of large
    actions: the sequence is about `action_dim` times as short. Only for parallel decoding."""
    proprio_width: int = 0
    """Width of the proprioception projector's hidden layer; 0: that of the language model."""
    logit_scale: float = 1.0
    """Factor of the action logits. With Adam, whose steps have one size, a small network from scratch learns distributions
    of 256 classes several times as fast where it is above 1; see docs/robotwin.md."""
    decoding: Literal["parallel", "autoregressive"] = "parallel"
    """`parallel`: every action token from one pass over empty slots; `autoregressive`: one after the other, each seeing those
    before it."""
    read_before: bool = False
    """Whether the logits of an action token are read one position before its slot, as a language model predicts what comes
    next, or at the slot itself."""
    stop_slot: bool = False
    """Whether </s> follows the slots, as in OpenVLA-OFT."""
    embedding_rows: int = 0
    """Rows of the embedding tables; 0: `vocab_size` rounded up to `pad_to_multiple_of`."""
    image_pipeline: Literal["bilinear", "published", "published_uncropped"] = "bilinear"
    """`bilinear`: scaled; `published`: as OpenVLA's evaluation (JPEG round trip, Lanczos, centre crop), with or without crop."""
    proprio_clip: bool = False
    """Whether scaled proprioception is clipped to [-1, 1]."""
    head: Literal["tokens", "l1"] = "tokens"
    """What chooses actions: a distribution over action tokens, or OpenVLA-OFT's regression, which has no log-probs."""

    def __post_init__(self) -> None:
        if not (self.cameras or self.proprio_dim) or min(self.chunk_length, self.action_dim) < 1 or self.proprio_dim < 0:
            raise PolicyError(
                "a policy needs a camera or proprioception, chunk_length and action_dim of at least 1, proprio_dim of 0 or more"
            )
        if not len(self.proprio_centre) == len(self.proprio_scale) == self.proprio_dim:
            raise PolicyError(f"proprio_centre and proprio_scale must have proprio_dim = {self.proprio_dim} entries")
        if min(self.proprio_scale, default=1) <= 0 or not self.logit_scale > 0:
            raise PolicyError("proprio_scale and logit_scale must be positive")
        grids = {self.image_size // f.patch_size for f in self.featurizers}
        if len(grids) != 1 or min(grids) % self.projector_pool or any(self.image_size % f.patch_size for f in self.featurizers):
            raise PolicyError(
                f"image_size {self.image_size}, the patch sizes {[f.patch_size for f in self.featurizers]} and projector_pool "
                f"{self.projector_pool} must divide evenly into one grid"
            )
        if self.decoding == "autoregressive" and (
            self.attention != "causal" or not self.read_before or self.stop_slot or self.slot_holds != "token"
        ):
            raise PolicyError(
                "autoregressive decoding needs attention=causal, read_before=true, stop_slot=false and slot_holds=token"
            )
        if self.max_prompt_tokens < 1:
            raise PolicyError(f"max_positions {self.language.max_positions} leaves no room for a prompt; raise it")

    @property
    def num_tokens(self) -> int:
        """Of a chunk."""
        return self.chunk_length * self.action_dim

    @property
    def num_slots(self) -> int:
        """Places in the sequence that a chunk's tokens are read from."""
        return self.chunk_length if self.slot_holds == "action" else self.num_tokens

    @property
    def image_tokens(self) -> int:
        """Tokens of one camera."""
        return (self.image_size // self.featurizers[0].patch_size // self.projector_pool) ** 2

    @property
    def max_prompt_tokens(self) -> int:
        """Those that images, proprioception and action slots leave free."""
        fixed = len(self.cameras) * self.image_tokens + bool(self.proprio_dim) + self.num_slots + self.stop_slot
        return self.language.max_positions - fixed

    @property
    def padded_vocab_size(self) -> int:
        return self.embedding_rows or -(-self.vocab_size // self.pad_to_multiple_of) * self.pad_to_multiple_of

    def to_dict(self) -> dict[str, Any]:
        """A record for `from_dict`; fields of `LATER` are left out where they hold their default."""
        record = _without_defaults(self)
        record["featurizers"] = tuple(_without_defaults(featurizer) for featurizer in self.featurizers)
        return record | {"language": _without_defaults(self.language)}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> OpenVLAConfig:
        """Raises `PolicyError` for keys that are missing or unknown."""
        record = dict(_checked(OpenVLAConfig, record))
        record["featurizers"] = tuple(FeaturizerConfig(**_checked(FeaturizerConfig, f)) for f in record["featurizers"])
        record["language"] = LanguageConfig(**_checked(LanguageConfig, record["language"]))
        record["augmentation"] = AugmentationConfig(**_checked(AugmentationConfig, record["augmentation"]))
        return OpenVLAConfig(**record)


LATER = {
    FeaturizerConfig: {"layout"},
    LanguageConfig: {"kv_heads"},
    AugmentationConfig: set(),
    OpenVLAConfig: {
        "decoding", "read_before", "stop_slot", "embedding_rows", "image_pipeline", "proprio_clip", "head", "slot_holds",
        "proprio_width", "logit_scale",
    },
}  # fmt: skip
"""Fields that the first saved policies do not have; they mean their default there."""


def _without_defaults(config: Any) -> dict[str, Any]:
    defaults = {f.name: f.default for f in fields(config) if f.name in LATER[type(config)]}
    return {key: value for key, value in asdict(config).items() if key not in defaults or value != defaults[key]}


def _checked(kind: Any, record: dict[str, Any]) -> dict[str, Any]:
    """The record with lists as tuples, as JSON has no tuples."""
    expected = {f.name for f in fields(kind)}
    missing, unknown = expected - set(record) - LATER[kind], set(record) - expected
    if missing or unknown:
        raise PolicyError(f"{kind.__name__}: missing keys {sorted(missing)}, unknown keys {sorted(unknown)}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}

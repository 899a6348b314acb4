"""What a D4RT is made of: one frozen config, six presets, and what a forward pass costs.

| preset | encoder (width, layers, heads, hidden) | parameters | decoder (width, layers, heads, hidden) |
|--------|----------------------------------------|------------|----------------------------------------|
| tiny   |   96,  4,  4,  384                     |  0.6M      |   96, 3,  4,  384                      |
| small  |  384, 12,  6, 1536   ViT-S             | 21.9M      |  512, 8,  8, 2048                      |
| base   |  768, 12, 12, 3072   ViT-B             | 86M        |  768, 8, 12, 3072                      |
| large  | 1024, 24, 16, 4096   ViT-L             | 304M       | 1024, 8, 16, 4096                      |
| huge   | 1280, 32, 16, 5120   ViT-H             | 632M       | 1280, 8, 16, 4480                      |
| giant  | 1408, 40, 16, 6144   ViT-g, the paper's| 1,012M     | 1280, 8, 16, 4480   144M, the paper's  |

`tiny` sees 4 frames of 64x64 in patches of 8 and trains on a laptop CPU; the others see 48 frames of 256x256 in
patches of 16. Derive a variant with `dataclasses.replace(ModelConfig.preset("base"), clip_frames=16)`.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from model.command_line import unknown

PositionLayout = Literal["flat", "resampled"]
Compat = Literal["opend4rt"]

RGB = 3
COORDINATES = 2  # u and v
TUBELET = 2  # the only temporal patch size the paper uses
OUTPUT_CHANNELS = 13  # xyz 3, uv 2, visible 1, displacement 3, normal 3, confidence 1 (paper Fig. 7)


LARGEST = {  # far beyond any model of this kind, and below what makes libraries stumble or a machine hang
    **dict.fromkeys(("encoder_width", "encoder_hidden", "decoder_width", "decoder_hidden"), 65_536),
    **dict.fromkeys(("encoder_layers", "encoder_heads", "decoder_layers", "decoder_heads"), 512),
    **dict.fromkeys(("image_size", "clip_frames"), 8_192),
    **dict.fromkeys(("patch_size", "query_patch"), 255),
    **dict.fromkeys(("tubelet", "fourier_octaves"), 64),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to build a D4RT; it travels inside every checkpoint.

    Raises ValueError, naming the field, for a combination that cannot be built.
    """

    encoder_width: int
    encoder_layers: int
    """Layers 0, 2, ... attend within two frames, layers 1, 3, ... within the whole clip. An even number, but for
    `compat`: OpenD4RT takes an odd one too, whose last layer is then local."""
    encoder_heads: int
    encoder_hidden: int
    """Width inside the encoder's MLPs."""
    decoder_width: int
    decoder_layers: int
    decoder_heads: int
    decoder_hidden: int
    """Width inside the decoder's MLPs."""
    image_size: int = 256
    """Frames are resized to this square, in pixels, without keeping their aspect ratio, for training and by recipes."""
    clip_frames: int = 48
    """The most frames one clip may have: the number of rows of the timestep tables."""
    patch_size: int = 16
    tubelet: int = TUBELET
    """Frames per video token."""
    fourier_octaves: int = 8
    """Frequencies pi, 2 pi, 4 pi, ... of the query position."""
    query_patch: int = 9
    """Side, in pixels, of the RGB patch in a query token; 0 leaves the patch out (the paper's ablation, Tab. 7)."""
    pos_layout: PositionLayout = "flat"
    """`flat`: position code of the flattened token index; `resampled`: VideoMAE's 8x14x14 table, interpolated."""
    aspect_token: bool = True
    """Tell the model the W/H of the raw frames through one extra token."""
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of ImageNet, for pixels from 0 to 1."""
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    norm_eps: float = 1e-6
    z_bias: float = 1.0
    """Initial bias of the predicted z, so that an untrained model sees everything in front of the camera."""
    compat: Compat | None = None
    """`opend4rt`: the weights get and give what OpenD4RT's do (`OPEND4RT`). What a user gives and gets is the same."""

    def __post_init__(self) -> None:
        for name in ("pixel_mean", "pixel_std"):  # JSON knows lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for field in fields(self):
            check_type(field.name, field.type, getattr(self, field.name))
            if field.type is int:
                least, most = 0 if field.name == "query_patch" else 1, LARGEST[field.name]
                if not least <= getattr(self, field.name) <= most:
                    raise ValueError(f"{field.name} ({getattr(self, field.name)}) must be from {least} to {most}")
        for part in ("encoder", "decoder"):
            width, heads = getattr(self, f"{part}_width"), getattr(self, f"{part}_heads")
            if width % heads:
                raise ValueError(f"{part}_width ({width}) must be a multiple of {part}_heads ({heads})")
        if self.encoder_width % 2:
            raise ValueError(f"encoder_width ({self.encoder_width}) must be even: the position code pairs channels")
        if self.encoder_layers % 2 and self.compat is None:
            raise ValueError(f"encoder_layers ({self.encoder_layers}) must be even: local and global layers alternate")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})")
        if self.tubelet != TUBELET:
            raise ValueError(f"tubelet ({self.tubelet}) must be {TUBELET}: odd clips are padded by one frame only")
        if self.query_patch and self.query_patch % 2 == 0:
            raise ValueError(f"query_patch ({self.query_patch}) must be odd, to have a centre, or 0 for none")
        if self.pos_layout not in get_args(PositionLayout):
            raise ValueError(f"pos_layout ({self.pos_layout!r}) must be one of {get_args(PositionLayout)}")
        for name in ("pixel_mean", "pixel_std"):
            if len(getattr(self, name)) != RGB:
                raise ValueError(f"{name} {getattr(self, name)} must have {RGB} values: red, green, blue")
            for value in getattr(self, name):
                check_type(name, float, value)
        if not all(math.isfinite(x) for x in (*self.pixel_mean, *self.pixel_std, self.norm_eps, self.z_bias)):
            raise ValueError("pixel_mean, pixel_std, norm_eps and z_bias must be finite")
        if min(self.pixel_std) <= 0 or self.norm_eps <= 0:
            raise ValueError(f"pixel_std {self.pixel_std} and norm_eps ({self.norm_eps}) must be positive")
        if self.compat not in (None, *get_args(Compat)):
            raise ValueError(f"compat ({self.compat!r}) must be one of {get_args(Compat)}, or null")
        if self.compat and (changed := [key for key, value in OPEND4RT.items() if getattr(self, key) != value]):
            pinned = ", ".join(f"{key} {OPEND4RT[key]}" for key in changed)
            raise ValueError(f"compat {self.compat!r} needs {pinned}: OpenD4RT's weights know nothing else")

    @classmethod
    def preset(cls, name: str) -> Self:
        """One of `PRESETS`; ValueError, with a suggestion, for any other name."""
        if name not in PRESETS:
            raise ValueError(unknown("model preset", name, PRESETS))
        return cls(**PRESETS[name])

    def to_dict(self) -> dict:
        """Plain numbers, strings and lists; `from_dict` brings it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> Self:
        """The config that gave `to_dict()`. Raises ValueError for unknown and for missing keys, by name."""
        known = {field.name for field in fields(cls)}
        values = {"compat": None} | values  # checkpoints from before there was a choice
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"unknown model config keys {unknown}; was this written by a newer version?")
        if missing := sorted(known - values.keys()):
            raise ValueError(f"missing model config keys {missing}; every key is needed to rebuild the same model")
        return cls(**values)

    @property
    def grid_size(self) -> int:
        """Video tokens along each side of a frame of `image_size`."""
        return self.image_size // self.patch_size

    def video_tokens(self, num_frames: int) -> int:
        """Video tokens of a clip; the aspect token is not counted."""
        return -(-num_frames // self.tubelet) * self.grid_size**2

    def flops_encode(self, num_frames: int) -> int:
        """Floating-point operations of the matrix products in `D4RT.encode` for one clip (two per multiply-add)."""
        width, tokens = self.encoder_width, self.video_tokens(num_frames)
        memory = tokens + self.aspect_token
        tokenizer = tokens * width * RGB * self.tubelet * self.patch_size**2
        linear = 4 * width**2 + 2 * width * self.encoder_hidden  # per token: q, k, v, out; the MLP
        local_layer = tokens * (linear + 2 * width * self.grid_size**2)
        global_layer = memory * (linear + 2 * width * memory)
        aspect = self.aspect_token * width * (1 + width)
        project = memory * width * self.decoder_width if width != self.decoder_width else 0
        global_layers = self.encoder_layers // 2
        layers = (self.encoder_layers - global_layers) * local_layer + global_layers * global_layer
        look = 2 * (tokenizer + layers + aspect + project)
        return look + self.flops_keys_values(num_frames)

    def flops_keys_values(self, num_frames: int) -> int:
        """The part of `flops_encode` that projects the memory to the keys and values of every decoder layer."""
        memory = self.video_tokens(num_frames) + self.aspect_token
        return 2 * memory * self.decoder_layers * 2 * self.decoder_width**2

    def flops_decode(self, num_queries: int, num_frames: int) -> int:
        """The same for `D4RT.decode` of one clip, with the keys and values already in `memory`."""
        width, memory = self.decoder_width, self.video_tokens(num_frames) + self.aspect_token
        fourier = COORDINATES * (1 + 2 * self.fourier_octaves) * width
        patch = (RGB * self.query_patch**2 + width) * width if self.query_patch else 0
        layer = 2 * width**2 + 2 * width * memory + 2 * width * self.decoder_hidden  # q and out; attention; MLP
        return 2 * num_queries * (fourier + patch + self.decoder_layers * layer + OUTPUT_CHANNELS * width)


def check_type(name: str, kind: Any, value: Any) -> None:
    """Raise ValueError, naming the field, for a value of another type: JSON's 96.0 is no whole number, true is none."""
    numbers = {int: (int, "a whole number"), float: (int | float, "a number"), bool: (bool, "true or false")}
    if kind not in numbers:
        return
    accepted, words = numbers[kind]
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"{name} ({value!r}) must be {words}")


OPEND4RT: dict = {
    "compat": "opend4rt",
    "pixel_mean": (0.0, 0.0, 0.0),
    "pixel_std": (1.0, 1.0, 1.0),
    "norm_eps": 1e-5,
    "pos_layout": "flat",
}
"""What OpenD4RT's weights were trained with, as fields of `ModelConfig`: pixels from 0 to 1, torch's LayerNorm; and by
`compat`, u = px / (W - 1) where px is 0 at the centre of the first pixel, and the aspect W/H without logarithm."""


def sizes(part: str, width: int, layers: int, heads: int, hidden: int) -> dict[str, int]:
    return {f"{part}_width": width, f"{part}_layers": layers, f"{part}_heads": heads, f"{part}_hidden": hidden}


PRESETS: dict[str, dict] = {
    "tiny": {
        **sizes("encoder", 96, 4, 4, 384),
        **sizes("decoder", 96, 3, 4, 384),
        **{"image_size": 64, "patch_size": 8, "clip_frames": 4},
    },
    "small": sizes("encoder", 384, 12, 6, 1536) | sizes("decoder", 512, 8, 8, 2048),
    "base": sizes("encoder", 768, 12, 12, 3072) | sizes("decoder", 768, 8, 12, 3072),
    "large": sizes("encoder", 1024, 24, 16, 4096) | sizes("decoder", 1024, 8, 16, 4096),
    "huge": sizes("encoder", 1280, 32, 16, 5120) | sizes("decoder", 1280, 8, 16, 4480),
    "giant": sizes("encoder", 1408, 40, 16, 6144) | sizes("decoder", 1280, 8, 16, 4480),
}
PRESETS["opend4rt"] = PRESETS["giant"] | OPEND4RT

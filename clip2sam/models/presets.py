"""Presets: a CLIP and a SAM that belong together, with the settings that suit them. No torch.

A preset of your own is a `Preset` object: `load`, `fetch` and `paths` take it where they take a
name.
"""

from dataclasses import dataclass, field

from huggingface_hub import hf_hub_url

from clip2sam.config import Config, checked_resolution
from clip2sam.errors import ConfigError, shown
from clip2sam.tiny.files import CLIP_FILE, EMBEDDED, SAM_FILE
from clip2sam.tiny.scenes import COLOURS, SHAPES

HUB_FILE = "open_clip_model.safetensors"
"""Name of the weights in a repository of open_clip's form."""


@dataclass(frozen=True)
class ClipWeights:
    """CLIP weights in a repository of the Hugging Face hub, in open_clip's form."""

    model: str
    """open_clip's name of the architecture."""
    pretrained: str
    """open_clip's name of the weights; any name if open_clip does not know them."""
    hub: str
    """The repository: "owner/name"."""
    licence: str = "MIT"
    size: int | None = None
    """Bytes of the file; None: what the hub states."""
    sha256: str | None = None
    """64 hexadecimal digits. None: not published; a download is compared with what the hub states,
    and the file with that ever after."""
    revision: str = "main"
    """The repository's commit, or a branch."""

    @property
    def file(self) -> str:
        """The file name under which it can be put into the weights folder by hand."""
        return f"{self.model}-{self.pretrained}.safetensors"

    @property
    def url(self) -> str:
        """Where the file is published."""
        return hf_hub_url(self.hub, HUB_FILE, revision=self.revision)


@dataclass(frozen=True)
class SamWeights:
    """A SAM checkpoint with its published size and hash."""

    model_type: str
    """segment-anything's name of the architecture: "vit_b", "vit_l" or "vit_h"; "vit_t" is
    MobileSAM's."""
    file: str
    """Its name in the weights folder."""
    size: int | None
    """Bytes; None: what the server states."""
    sha256: str | None
    """64 hexadecimal digits. None: as in `ClipWeights`."""
    url: str
    licence: str = "Apache-2.0"


@dataclass(frozen=True)
class EmbeddedWeights:
    """A weight file of a tiny model inside the package; `clip2sam.tiny.files.EMBEDDED` has its size
    and hash."""

    file: str
    licence: str = "Apache-2.0"
    url: str = ""

    @property
    def size(self) -> int | None:
        """Bytes."""
        return EMBEDDED[self.file][0] if self.file in EMBEDDED else None

    @property
    def sha256(self) -> str | None:
        """64 hexadecimal digits."""
        return EMBEDDED[self.file][1] if self.file in EMBEDDED else None


@dataclass(frozen=True)
class HubSamWeights:
    """Weights of a cutter of transformers: one safetensors file of the Hugging Face hub at a pinned
    commit. Its architecture is in `clip2sam.models.transformers_sam`, so nothing else is needed."""

    architecture: str
    """A name of `clip2sam.models.transformers_sam.ARCHITECTURES`."""
    hub: str
    """The repository: "owner/name"."""
    revision: str
    """The commit."""
    size: int | None = None
    """Bytes; None: what the hub states."""
    sha256: str | None = None
    """64 hexadecimal digits. None: as in `ClipWeights`."""
    licence: str = "Apache-2.0"

    @property
    def file(self) -> str:
        """Its name in the weights folder."""
        return f"{self.hub.split('/')[1].lower()}.safetensors"

    @property
    def url(self) -> str:
        """Where the file is published."""
        return hf_hub_url(self.hub, "model.safetensors", revision=self.revision)


Weights = ClipWeights | SamWeights | HubSamWeights | EmbeddedWeights


@dataclass(frozen=True)
class Preset:
    """A CLIP and a SAM that belong together, and the settings that suit them."""

    name: str
    clip: ClipWeights | EmbeddedWeights
    sam: SamWeights | HubSamWeights | EmbeddedWeights
    description: str
    """One line for `clip2sam weights list`."""
    resolution: int | None = None
    """Side of CLIP's square input in pixels; None: the model's own."""
    config: Config = field(default_factory=Config)

    def __post_init__(self) -> None:
        if self.resolution is not None:
            checked_resolution(self.resolution)


def _official_sam(model_type: str, file: str, size: int, sha256: str) -> SamWeights:
    """Source: https://github.com/facebookresearch/segment-anything#model-checkpoints."""
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{file}"
    return SamWeights(model_type, file, size, sha256, url)


_SAM_B = _official_sam(
    "vit_b",
    "sam_vit_b_01ec64.pth",
    375042383,
    "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
)
_SAM_L = _official_sam(
    "vit_l",
    "sam_vit_l_0b3195.pth",
    1249524607,
    "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
)
_SAM_H = _official_sam(
    "vit_h",
    "sam_vit_h_4b8939.pth",
    2564550879,
    "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
)
# Commits, sizes and hashes as several independent projects pin them. The sizes are, to the byte,
# those of the architectures in `clip2sam.models.transformers_sam` with the parts for video.
_SAM2_T = HubSamWeights(
    "sam2.1-t",
    "facebook/sam2.1-hiera-tiny",
    "de431c4043854a71d8101e17995dfe596bf101a5",
    155908064,
    "48c14467e5cf9e51870511feb72c89688e82dd74523142c0538b663e193ac2a7",
)
_SAM2_S = HubSamWeights(
    "sam2.1-s",
    "facebook/sam2.1-hiera-small",
    "ee5bba1d82bb8749febdf90f45e84b687142ba03",
    184305280,
    "0a4067b11ce1e23d5229203f11c718a823060d15a4b23fa2372a7d4b77cbbc60",
)
_SAM2_B = HubSamWeights(
    "sam2.1-b",
    "facebook/sam2.1-hiera-base-plus",
    "b7320756a13354e7530a63935656d35b2f91a290",
    323476296,
    "2012733a0de5d03efd1bba550a2847c4551be9ef2e0d497c83074df66189f780",
)
_SAM2_L = HubSamWeights(
    "sam2.1-l",
    "facebook/sam2.1-hiera-large",
    "665f8e2ad61cf5f53d65644ff27c8ee525124610",
    897897416,
    "dc407dce21301fd94abb395c5099b4f2c455fdc8a8f261ac3d0ea6d4cd197230",
)
_EDGETAM = HubSamWeights(
    "edgetam",
    "yonigozlan/EdgeTAM-hf",
    "c266ce53b3fc00f0f495b583f6a116c4e57f53bb",
    55912824,
    "8858f8e4757b0b96dab8763f296ecffd845efbbbf698f64163cfa20a63d5fff4",
)
# Source: https://github.com/ChaoningZhang/MobileSAM, at a commit that other projects pin too.
_MOBILE_SAM = SamWeights(
    "vit_t",
    "mobile_sam.pt",
    40728226,
    "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/"
    "f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
)
# Their hashes are not pinned by anyone that could be found: what the hub states counts.
_SAM_HQ_B = HubSamWeights("sam-hq-b", "syscv-community/sam-hq-vit-base", "main")
_SAM_HQ_L = HubSamWeights("sam-hq-l", "syscv-community/sam-hq-vit-large", "main")
_SAM_HQ_H = HubSamWeights("sam-hq-h", "syscv-community/sam-hq-vit-huge", "main")
# The published method's CLIP for every SAM: a larger CLIP is not better at localisation (L/14 is
# often worse).
_OPENAI = ClipWeights(
    "ViT-B-16-quickgelu",
    "openai",
    "timm/vit_base_patch16_clip_224.openai",
    size=598516980,
    sha256="4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
    revision="977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
)
_LAION = ClipWeights(
    "ViT-B-16",
    "laion2b_s34b_b88k",
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    size=598516980,
    revision="7288da5a0d6f0b51c4a2b27c624837a9236d0112",
)

# All shapes, colours and their pairs: with them as background prompts, a label's scores hardly
# depend on the other labels requested.
_TINY_BACKGROUND = (
    *SHAPES,
    *(f"{colour} thing" for colour in COLOURS),
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "tiny",
            EmbeddedWeights(CLIP_FILE),
            EmbeddedWeights(SAM_FILE),
            "inside the package, needs no network; it knows only drawn shapes",
            config=Config(presence_threshold=0.32, background_prompts=_TINY_BACKGROUND),
        ),
        Preset(
            "mobile",
            _OPENAI,
            _MOBILE_SAM,
            "OpenAI CLIP ViT-B/16 and MobileSAM: the one for a CPU, 0.7 s an image on two cores",
        ),
        Preset(
            "vit-b",
            _OPENAI,
            _SAM_B,
            "OpenAI CLIP ViT-B/16 and SAM ViT-B: the smallest of SAM's own, 3.3 s",
        ),
        Preset("vit-l", _OPENAI, _SAM_L, "OpenAI CLIP ViT-B/16 and SAM ViT-L: 8.5 s"),
        Preset(
            "vit-h",
            _OPENAI,
            _SAM_H,
            "OpenAI CLIP ViT-B/16 and SAM ViT-H: the published method, 15 s",
        ),
        Preset("vit-h-laion", _LAION, _SAM_H, "LAION-2B CLIP ViT-B/16 and SAM ViT-H: 15 s"),
        Preset("sam2.1-t", _OPENAI, _SAM2_T, "OpenAI CLIP ViT-B/16 and SAM 2.1 tiny: 1.4 s"),
        Preset("sam2.1-s", _OPENAI, _SAM2_S, "OpenAI CLIP ViT-B/16 and SAM 2.1 small: 1.6 s"),
        Preset("sam2.1-b", _OPENAI, _SAM2_B, "OpenAI CLIP ViT-B/16 and SAM 2.1 base+: 2.7 s"),
        Preset("sam2.1-l", _OPENAI, _SAM2_L, "OpenAI CLIP ViT-B/16 and SAM 2.1 large: 6.3 s"),
        Preset(
            "edgetam",
            _OPENAI,
            _EDGETAM,
            "OpenAI CLIP ViT-B/16 and EdgeTAM: small as MobileSAM, 0.7 s",
        ),
        Preset(
            "sam-hq-b",
            _OPENAI,
            _SAM_HQ_B,
            "OpenAI CLIP ViT-B/16 and SAM-HQ ViT-B: finer outlines, 5.7 s",
        ),
        Preset(
            "sam-hq-l", _OPENAI, _SAM_HQ_L, "OpenAI CLIP ViT-B/16 and SAM-HQ ViT-L: finer outlines"
        ),
        Preset(
            "sam-hq-h", _OPENAI, _SAM_HQ_H, "OpenAI CLIP ViT-B/16 and SAM-HQ ViT-H: finer outlines"
        ),
    )
}
"""The presets that have a name."""


def get_preset(preset: str | Preset) -> Preset:
    """The preset of that name; a `Preset` object is returned as it is.

    Raises:
        ConfigError: no preset has that name.
    """
    if isinstance(preset, Preset):
        return preset
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(
            f"no preset is called {shown(preset)}; choose one of {', '.join(PRESETS)}"
        )
    return PRESETS[preset]

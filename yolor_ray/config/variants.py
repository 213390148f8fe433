"""Name the forms of implicit knowledge that an ablation compares with each other: the paper's, and those that it left out.

The names are made for folders and flags; the titles are the paper's. FA aligns features, PR refines predictions, and a star
is the finer form of table 5.
"""

from dataclasses import dataclass

from yolor_ray.config import ImplicitConfig
from yolor_ray.config.presets import PLAIN


@dataclass(frozen=True)
class Variant:
    """One form of implicit knowledge."""

    title: str
    """What tables and plots call it."""
    implicit: ImplicitConfig
    paper: str = ""
    """The paper's own row, see `evaluate.paper`; empty where it has none."""


BASELINE = "baseline"
"""The variant that all others are compared with."""


def _aligned(**words: object) -> ImplicitConfig:
    return ImplicitConfig(**{"refine": "none", **words})  # type: ignore[arg-type]


def _refined(**words: object) -> ImplicitConfig:
    return ImplicitConfig(**{"align": "none", **words})  # type: ignore[arg-type]


VARIANTS = {
    BASELINE: Variant("baseline", PLAIN, "baseline"),
    "fa-add": Variant("+FA", _aligned(), "+iFA"),
    "fa-multiply": Variant("×FA", _aligned(align="multiply"), "×iFA"),
    "fa-concat": Variant("⊕FA", _aligned(align="concat"), "⊕iFA"),
    "fa-project": Variant("⟨⟩FA", _aligned(align="project")),
    "fa-add-pyramid": Variant("+FA on the pyramid", _aligned(align_at="pyramid")),
    "fa-multiply-anchor": Variant("×FA*", _aligned(align="multiply", align_per="anchor"), "×iFA*"),
    "fa-add-network": Variant("+FA, NN", _aligned(align_by="network"), "+wiFA"),
    "fa-add-factors": Variant("+FA, MF", _aligned(align_by="factors"), "+icFA"),
    "fa-add-std-0.2": Variant("+FA, σ 0.2", _aligned(std=0.2)),
    "pr-add": Variant("+PR", _refined(refine="add"), "+iPR"),
    "pr-multiply": Variant("×PR", _refined(), "×iPR"),
    "pr-multiply-size": Variant("×PR*", _refined(refine_what="size"), "×iPR*"),
    "fa-add-pr-multiply": Variant("+FA ×PR", ImplicitConfig()),
}
"""Every variant by name, the baseline first. Priors start with a standard deviation of 0.02 unless the title says otherwise."""

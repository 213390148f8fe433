"""Define the variants of implicit knowledge that an ablation compares: the variants of the paper, and further ones.

The names are for folders and flags; the titles are those of the paper. FA means feature alignment, PR means prediction
refinement, and a star marks the finer form of table 5.
"""

from dataclasses import dataclass
from typing import Any

from yolor_ray.config import ImplicitConfig
from yolor_ray.config.presets import PLAIN


@dataclass(frozen=True)
class Variant:
    """One variant of implicit knowledge."""

    title: str
    """Title in tables and plots."""
    implicit: ImplicitConfig
    paper: str = ""
    """Row of the paper, see `study.paper_results`; empty where the paper has none."""


BASELINE = "baseline"
"""Name of the variant that all others are compared with."""


def _alignment(**settings: Any) -> ImplicitConfig:
    return ImplicitConfig(refine="none", **settings)


def _refinement(**settings: Any) -> ImplicitConfig:
    return ImplicitConfig(align="none", **settings)


VARIANTS = {
    BASELINE: Variant("baseline", PLAIN, "baseline"),
    "fa-add": Variant("+FA", _alignment(), "+iFA"),
    "fa-multiply": Variant("×FA", _alignment(align="multiply"), "×iFA"),
    "fa-concat": Variant("⊕FA", _alignment(align="concat"), "⊕iFA"),
    "fa-project": Variant("⟨⟩FA", _alignment(align="project")),
    "fa-multiply-pyramid": Variant("×FA on the pyramid", _alignment(align="multiply", align_at="pyramid")),
    "fa-multiply-anchor": Variant("×FA*", _alignment(align="multiply", align_per="anchor"), "×iFA*"),
    "fa-add-network": Variant("+FA, NN", _alignment(align_by="network"), "+wiFA"),
    "fa-add-factors": Variant("+FA, MF", _alignment(align_by="factors"), "+icFA"),
    "fa-add-std-0.2": Variant("+FA, σ 0.2", _alignment(std=0.2)),
    "pr-add": Variant("+PR", _refinement(refine="add"), "+iPR"),
    "pr-multiply": Variant("×PR", _refinement(), "×iPR"),
    "pr-multiply-size": Variant("×PR*", _refinement(refine_what="size"), "×iPR*"),
    "pr-add-centre": Variant("+PR, centres", _refinement(refine="add", refine_what="centre")),
    "pr-add-multiply": Variant("+×PR", _refinement(refine="add_multiply")),
    "fa-add-pr-multiply": Variant("+FA ×PR", ImplicitConfig()),
}
"""Every variant by name, the baseline first. The initial standard deviation of priors is 0.02 unless the title has another."""

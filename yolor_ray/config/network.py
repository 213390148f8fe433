"""Define the settings of the network: the member of the YOLOR family, and its implicit knowledge."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_type_hints

from yolor_ray.errors import ConfigError, check

Task = Literal["detect", "classify", "embed", "segment", "pose"]
TASKS: tuple[Task, ...] = ("detect", "classify", "embed", "segment", "pose")
"""Tasks that a network can learn: boxes, labels of the whole image, identities, instance masks and keypoints."""
Precision = Literal["float32", "bfloat16"]
"""Number format of a network's computation."""


@dataclass(frozen=True)
class ImplicitConfig:
    """Implicit knowledge of each task on each level: learned constants that are folded away (YOLOR sections 3 to 5).

    The defaults are those of the published networks (+FA and xPR by vectors). At step 0 no choice changes the predictions, except `project`
    before a convolution with more outputs than the projection has channels.
    """

    align: Literal["none", "add", "multiply", "concat", "project"] = "add"
    """Feature alignment: shift, scale, extend or reduce the features; `project` replaces the C features by C/2 inner products."""
    align_at: Literal["prediction", "pyramid"] = "prediction"
    """Place of the alignment: before the prediction convolution, or on the neck's map before the head's 3x3, for multiply and project."""
    align_by: Literal["vector", "network", "factors"] = "vector"
    """Model of the alignment's constants: g = z (eq 6), g = W z (eq 7), or g = Z'c (eq 8)."""
    align_per: Literal["level", "anchor"] = "level"
    """One alignment per level, or one for each anchor's outputs (the paper's FA*)."""
    refine: Literal["none", "add", "multiply", "add_multiply"] = "multiply"
    """Prediction refinement: shift or scale the outputs; `add_multiply` shifts the centres of boxes and scales all other outputs."""
    refine_by: Literal["vector", "network", "factors"] = "vector"
    """Model of the refinement's constants, as in align_by."""
    refine_what: Literal["all", "centre", "size"] = "all"
    """Outputs of detection that are refined: all, x and y of boxes, or box width and height (the paper's PR*)."""
    std: float = 0.02
    """Standard deviation of fresh priors, 0 or more."""
    of_tasks: tuple[str, ...] = ()
    """Operators of single tasks, each as TASK=ALIGN/REFINE, such as `pose=multiply/none`; the other tasks have align and refine."""

    def __post_init__(self) -> None:
        """Check the range of std, combinations, and the operators of each task."""
        name = "network.implicit"
        check(self.std >= 0, f"{name}.std", self.std, "0 or more")
        check(self.align != "project" or self.align_by == "vector", f"{name}.align_by", self.align_by, "vector: project has its own model")
        both = self.refine == "add_multiply" and self.refine_what != "all"
        check(
            not both,
            f"{name}.refine_what",
            self.refine_what,
            "all, as network.implicit.refine add_multiply has an operator for each output",
        )
        per_anchor = self.align_per == "anchor"
        check(not per_anchor or self.align_at == "prediction", f"{name}.align_at", self.align_at, "prediction, as alignment is per anchor")
        check(not per_anchor or self.align_by == "vector", f"{name}.align_by", self.align_by, "vector, as alignment is per anchor")
        aligns_per_anchor = self.align in ("add", "multiply", "concat")
        check(not per_anchor or aligns_per_anchor, f"{name}.align", self.align, "add, multiply or concat, as alignment is per anchor")
        tasks = [task for task, _ in map(self._split_operators, self.of_tasks)]
        check(len(set(tasks)) == len(tasks), f"{name}.of_tasks", self.of_tasks, "each task at most once")
        if tasks:
            _ = self.by_task

    def _split_operators(self, text: str) -> tuple[str, dict[str, Any]]:
        """Return the task and the operators of an entry of `of_tasks`."""
        task, _, pair = text.partition("=")
        operators = dict(zip(("align", "refine"), pair.split("/", 1), strict=False))
        types = get_type_hints(ImplicitConfig)
        is_valid = task in TASKS and len(operators) == 2 and all(word in get_args(types[name]) for name, word in operators.items())
        check(is_valid, "network.implicit.of_tasks", text, "TASK=ALIGN/REFINE, such as pose=multiply/none")
        return task, operators

    @property
    def by_task(self) -> dict[str, "ImplicitConfig"]:
        """The forms of each task."""
        forms: dict[str, ImplicitConfig] = {task: replace(self, of_tasks=()) for task in TASKS}
        for task, operators in map(self._split_operators, self.of_tasks):
            try:
                forms[task] = replace(forms[task], **operators)
            except ConfigError as error:
                raise ConfigError(f"network.implicit.of_tasks: {task}: {error}") from error
        return forms

    @property
    def needs_anchors(self) -> bool:
        """True for forms that the head without anchors lacks: it has no outputs for each anchor and none for the centre of a box."""
        return self.align_per == "anchor" or self.refine == "add_multiply" or self.refine_what == "centre"


@dataclass(frozen=True)
class NetworkConfig:
    """One member of the YOLOR family; levels are ordered from fine to coarse, stride 8 first."""

    stem: Literal["conv", "csp", "reorg", "s2d", "dwt"] = "conv"
    """Layers from the image to the backbone: `conv` = 3x3, 3x3 stride 2 and a residual stage; `csp` = the same with a CSP stage;
    `reorg` = space to depth, then 3x3; `s2d` = three times space to depth, and `dwt` = three Haar wavelets, both down to stride 8."""
    stem_width: int = 32
    """Channels of the first convolution; s2d and dwt have none."""
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Channels of the backbone stages at strides 2 (conv and csp stems), 4 (not s2d and dwt), 8, 16, …; multiples of 8."""
    depths: tuple[int, ...] = (1, 2, 8, 8, 4)
    """Bottlenecks per backbone stage."""
    block: Literal["csp", "cspf"] = "csp"
    """Backbone block: `csp` has a 1x1 after the residuals, `cspf` (fusion first) has none."""
    down: Literal["conv", "downc"] = "conv"
    """Down-sampling: 3x3 stride 2, or 3x3 stride 2 beside max pooling."""
    joint_norm: bool = False
    """True: one batch norm and activation over both halves of each block (paper branch). False: one over each half that ends in a
    convolution (main branch)."""
    neck_depth: int = 2
    """Bottlenecks per neck block."""
    spp_pairs: int = 1
    """1x1 + 3x3 pairs after the pooling pyramid."""
    levels: int = 3
    """Prediction levels; the coarsest stride is 4 · 2^levels."""
    head: Literal["anchors", "free"] = "anchors"
    """Detection head: `anchors` = the published one, boxes relative to fitted anchors, with objectness; `free` = without anchors, one
    branch for boxes and one for classes, which learn from the best-aligned cells of each box."""
    distance_bins: int = 1
    """Bins of each distance of the head `free`: 16 = a distribution over 0 to 15 cells of the level, 1 = one number."""
    anchors_per_level: int = 3
    """Anchors per cell of the head `anchors`."""
    norm_eps: float = 1e-3
    """Batch norm epsilon: 1e-4 on the main branch, 1e-3 on the paper branch."""
    activation: Literal["silu", "mish"] = "silu"
    """Activation after each batch norm."""
    tasks: tuple[Task, ...] = ("detect",)
    """Tasks on the shared features. `detect` is required: masks, keypoints and identities belong to detected boxes."""
    implicit: ImplicitConfig = field(default_factory=ImplicitConfig)
    """Implicit knowledge of each task on each prediction level."""

    def __post_init__(self) -> None:
        """Check the numbers against each other."""
        stages = self.levels + {"conv": 2, "csp": 2, "reorg": 1}.get(self.stem, 0)
        check(len(self.widths) == stages, "network.widths", self.widths, f"{stages} numbers for {self.levels} levels")
        check(len(self.depths) == stages, "network.depths", self.depths, f"{stages} numbers for {self.levels} levels")
        check(all(w > 0 and w % 8 == 0 for w in self.widths), "network.widths", self.widths, "positive multiples of 8")
        check(all(d >= 0 for d in self.depths), "network.depths", self.depths, "0 or more bottlenecks")
        for name in ("stem_width", "distance_bins", "anchors_per_level", "spp_pairs"):
            check(getattr(self, name) >= 1, f"network.{name}", getattr(self, name), "1 or more")
        check(self.neck_depth >= 0, "network.neck_depth", self.neck_depth, "0 or more")
        check(self.norm_eps > 0, "network.norm_eps", self.norm_eps, "more than 0")
        check(2 <= self.levels <= 5, "network.levels", self.levels, "2 to 5")
        valid = len(set(self.tasks)) == len(self.tasks) and set(self.tasks) <= set(TASKS)
        check(valid and "detect" in self.tasks, "network.tasks", self.tasks, f"detect, and each of {', '.join(TASKS[1:])} at most once")
        if self.head == "free":
            forms = self.implicit.by_task
            for task in self.tasks:
                self._check_without_anchors(forms[task])

    def _check_without_anchors(self, implicit: ImplicitConfig) -> None:
        name = "network.implicit"
        check(implicit.align_per != "anchor", f"{name}.align_per", "anchor", "level, as network.head free has no anchors")
        expected = "{}, as network.head free predicts the distances of a box's sides and no centre"
        check(implicit.refine != "add_multiply", f"{name}.refine", "add_multiply", expected.format("none, add or multiply"))
        check(implicit.refine_what != "centre", f"{name}.refine_what", "centre", expected.format("all or size"))

    def check_trainable(self) -> None:
        """Raise ConfigError for implicit knowledge that training cannot learn; weights of version 0.2 may have it."""
        forms = self.implicit.by_task
        for implicit in (forms[task] for task in self.tasks):
            is_removed = implicit.align in ("add", "concat") and implicit.align_at == "pyramid"
            expected = f"prediction, as the batch norm behind the head's 3x3 takes out the constant of align {implicit.align}"
            check(not is_removed, "network.implicit.align_at", implicit.align_at, expected)

    @property
    def predictions_per_cell(self) -> int:
        """Predictions of each cell: one for each anchor, or one without anchors."""
        return self.anchors_per_level if self.head == "anchors" else 1

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each level."""
        return tuple(8 * 2**level for level in range(self.levels))

    def check_image_px(self, image_px: int, name: str) -> None:
        """Raise ConfigError unless an input side, pixels, is a positive multiple of the coarsest stride; `name` is the dotted flag."""
        stride = self.strides[-1]
        check(image_px > 0 and image_px % stride == 0, name, image_px, f"a multiple of the coarsest stride, {stride}")

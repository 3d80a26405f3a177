"""Metrics of answers and of SSE-U, right across ranks.

Sums, never means, are the state: a mean of per-rank means weighs a rank with three images like one with thirty. Sums
are float64 (a million images lose nothing) and are added over ranks by torchmetrics; what cannot be a sum (ranks of
values, names of groups) is gathered.

Gathered states are flat float32 on purpose. torchmetrics (1.9) stands in for a rank that has seen nothing with an empty
float32 vector, so a state of another dtype or of two dimensions would meet it in a collective and hang or crash. The
dtype is always spelled out: under Lightning's bf16-true the default is bfloat16, which cannot count past 256.

SSE-U's metrics share one signature, so that `sse_u_metrics()` can feed them together. `weight` is trust in the metadata
GSD over the parts of the image; images of weight 0 do not count. Nothing counted gives NaN, never 0.

Legend of shape suffixes: I images, B questions.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities.data import dim_zero_cat

from scaleearth_pl.core.batch import BranchInfo, TreeInfo
from scaleearth_pl.core.curves import gaussian_nll_terms, interval_half_width, weighted_spearman
from scaleearth_pl.core.errors import ConfigError

Images = Float[Tensor, " I"]
Cues = Float[Tensor, " I"] | Int[Tensor, " I"]

_FIELD, _ROW = "\x1f", "\x1e"


class GroupedAccuracy(Metric):
    """Share of right answers: overall, by effective tier, by family and by type of question.

    Groups need not be known beforehand and may differ between ranks: each update appends the names of its groups as
    characters beside their counts, and `compute` adds up equal names. `compute` returns
    `{"overall": ..., "by_tier/<tier>": ..., "by_family/<family>": ..., "by_type/<type>": ...}`.
    """

    full_state_update = False
    higher_is_better = True
    names: list[Tensor]
    counts: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(torch.float32)
        self.add_state("names", default=[], dist_reduce_fx="cat")
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, correct_B: Bool[Tensor, " B"], branches: Sequence[BranchInfo], trees: Sequence[TreeInfo]) -> None:
        """Counts one batch; `branches[b].tree` indexes `trees`. Raises ConfigError unless there is one verdict each."""
        if correct_B.numel() != len(branches):
            raise ConfigError("one verdict per question", field="correct_B", value=(correct_B.numel(), len(branches)))
        table: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for right, branch in zip(correct_B.tolist(), branches, strict=True):
            row = table[_FIELD.join((trees[branch.tree].effective_tier, branch.family, branch.type))]
            row[0] += right
            row[1] += 1
        if table:
            text = "".join(name + _ROW for name in table).encode()
            self.names.append(torch.tensor(list(text), dtype=torch.float32, device=self.device))
            self.counts.append(torch.tensor(list(table.values()), dtype=torch.float32, device=self.device).flatten())

    def compute(self) -> dict[str, Tensor]:
        """Accuracies in [0, 1] by group; only `overall`, NaN, when no question was counted."""
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
        sums["overall"] += 0
        for name, count in self._rows():
            tier, family, kind = name.split(_FIELD)
            for group in ("overall", f"by_tier/{tier}", f"by_family/{family}", f"by_type/{kind}"):
                sums[group] += count
        order = sorted(sums, key=lambda group: (group != "overall", group))
        return {group: (sums[group][0] / sums[group][1]).float() for group in order}

    def _rows(self) -> list[tuple[str, Tensor]]:
        if not len(self.names):
            return []
        text = bytes(dim_zero_cat(self.names).int().tolist()).decode()
        counts = dim_zero_cat(self.counts).reshape(-1, 2).double().cpu()
        return list(zip(text.split(_ROW)[:-1], counts, strict=True))


class _WeightedMean(Metric):
    """Numerator and denominator as float64 sums; subclasses say what is added to each."""

    full_state_update = False
    numerator: Tensor
    denominator: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("numerator", "denominator"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, weight_I: Images, above_I: Images, below_I: Images | None = None) -> None:
        """Adds weight x above over weight x below (1 if None); NaN of a weightless image is not touched."""
        known_I, weight_I = weight_I > 0, weight_I.double()
        zero = torch.zeros((), dtype=torch.float64, device=weight_I.device)
        self.numerator += torch.where(known_I, weight_I * above_I, zero).sum()
        self.denominator += torch.where(known_I, weight_I * (1.0 if below_I is None else below_I), zero).sum()

    def compute(self) -> Tensor:
        """The ratio; NaN when nothing was counted."""
        return (self.numerator / self.denominator).float()


class GaussianNll(_WeightedMean):
    """Mean -log N(s; mu, sigma^2) in nats per unit of trust, the constant log(2 pi)/2 included (Fig. 8c)."""

    higher_is_better = False

    def update(self, mu: Images, log_var: Images, log10_gsd: Images, weight: Images) -> None:
        """Adds images; `log10_gsd` is NaN where `weight` is 0."""
        self._add(weight, gaussian_nll_terms(mu, log_var, log10_gsd))


class CalibrationRatio(_WeightedMean):
    """E|mu - s| / mean sigma (Fig. 8e); sqrt(2/pi) = 0.798 is calibrated, above is overconfident."""

    def update(self, mu: Images, log_var: Images, log10_gsd: Images, weight: Images) -> None:
        """Adds images; `log10_gsd` is NaN where `weight` is 0."""
        self._add(weight, (mu - log10_gsd).abs(), torch.exp(0.5 * log_var))


class IntervalCoverage(_WeightedMean):
    """Share of images whose metadata GSD lies inside SSE-U's central interval of `level`; calibrated = `level`."""

    def __init__(self, level: float = 0.9) -> None:
        super().__init__()
        if not 0 < level < 1:
            raise ConfigError("level must lie between 0 and 1", field="level", value=level, remedy="0.9 is usual")
        self.half_width = interval_half_width(level)

    def update(self, mu: Images, log_var: Images, log10_gsd: Images, weight: Images) -> None:
        """Adds images; `log10_gsd` is NaN where `weight` is 0."""
        absolute_z = (mu - log10_gsd).abs() * torch.exp(-0.5 * log_var)
        self._add(weight, (absolute_z <= self.half_width).to(mu.dtype))


class MaeDecades(Metric):
    """Mean |mu - s| in decades: of all images, of those that show a scale cue, of those that do not.

    0.15 decades is a factor of 1.41 in metres. `compute` returns `mae_decades` (NaN if no GSD was known) and, where
    such images were seen, `mae_decades_cue` and `mae_decades_no_cue`; an unknown cue (-1) counts in the first only.
    """

    full_state_update = False
    higher_is_better = False
    error: Tensor
    mass: Tensor
    groups = ("mae_decades", "mae_decades_cue", "mae_decades_no_cue")

    def __init__(self) -> None:
        super().__init__()
        for name in ("error", "mass"):
            self.add_state(name, default=torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mu: Images, log10_gsd: Images, weight: Images, has_scale_cue: Cues) -> None:
        """Adds images; `has_scale_cue` is 1, 0 or -1 (unknown)."""
        known_I = weight > 0
        member_3I = torch.stack([known_I, known_I & (has_scale_cue == 1), known_I & (has_scale_cue == 0)])
        error_I = torch.where(known_I, (mu - log10_gsd).abs(), 0.0).double()
        mass_3I = member_3I * weight.double()
        self.error += (mass_3I * error_I).sum(1)
        self.mass += mass_3I.sum(1)

    def compute(self) -> dict[str, Tensor]:
        """Errors in decades by group."""
        means = (self.error / self.mass).float()
        return {name: means[i] for i, name in enumerate(self.groups) if i == 0 or self.mass[i] > 0}


class _Rows(Metric):
    """Rows of `width` numbers per image whose GSD is known, gathered from all ranks as one flat float32 vector."""

    full_state_update = False
    width: int
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(torch.float32)
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def _keep(self, weight_I: Images, *columns_I: Tensor) -> None:
        self.rows.append(torch.stack([c.float() for c in columns_I], dim=1)[weight_I > 0].flatten())

    def _table(self) -> Float[Tensor, "N width"]:
        rows = dim_zero_cat(self.rows) if len(self.rows) else torch.zeros(0, dtype=torch.float32, device=self.device)
        return rows.reshape(-1, self.width)


class SigmaErrorSpearman(_Rows):
    """Rank correlation of sigma with |mu - s|: does SSE-U know *which* images it reads badly? 0 it does not."""

    higher_is_better = True
    width = 3

    def update(self, mu: Images, log_var: Images, log10_gsd: Images, weight: Images) -> None:
        """Keeps three numbers per image whose GSD is known."""
        self._keep(weight, log_var, (mu - log10_gsd).abs(), weight)

    def compute(self) -> Tensor:
        """Weighted Spearman's rho in [-1, 1]; NaN below two images."""
        return weighted_spearman(*self._table().unbind(1)).float()


class GsdRecords(_Rows):
    """Every image's (s, mu, log_var, weight, has_scale_cue), gathered: what figures of SSE-U are drawn from."""

    width = 5

    def update(self, mu: Images, log_var: Images, log10_gsd: Images, weight: Images, has_scale_cue: Cues) -> None:
        """Keeps the images whose GSD is known."""
        self._keep(weight, log10_gsd, mu, log_var, weight, has_scale_cue)

    def compute(self) -> Float[Tensor, "N 5"]:
        """All ranks' rows; zero rows when nothing was kept."""
        return self._table()


def cue_number(has_scale_cue: bool | None) -> int:
    """1 scale can be read from the image, 0 it cannot, -1 nobody knows."""
    return -1 if has_scale_cue is None else int(has_scale_cue)


def cue_tensor(trees: Sequence[TreeInfo], device: torch.device) -> Float[Tensor, " I"]:
    """`cue_number` of trees."""
    return torch.tensor([cue_number(t.has_scale_cue) for t in trees], dtype=torch.float32, device=device)


def sse_u_metrics() -> MetricCollection:
    """SSE-U's part of `summary.json`: mae_decades (and by cue), nll, calibration_ratio, coverage90, spearman.

    `update(mu=, log_var=, log10_gsd=, weight=, has_scale_cue=)`: each metric takes what it needs. Compute groups are
    off: torchmetrics would merge metrics that happen to have equal states after the first batch.
    """
    return MetricCollection(
        {
            "gsd_error": MaeDecades(),
            "nll": GaussianNll(),
            "calibration_ratio": CalibrationRatio(),
            "coverage90": IntervalCoverage(0.9),
            "sigma_error_spearman": SigmaErrorSpearman(),
        },
        compute_groups=False,
    )

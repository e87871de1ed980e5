"""The sections of a spec file and of a target file, as frozen records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, Strict, model_validator

from proxy_models.config import DEFAULT_DEPTH, Parametrization, ScheduleName, WeightDecayInvariant
from proxy_models.mode import Dtype
from sweeps.spec_batch import BatchSection, CriticalBatchSection
from sweeps.spec_file import FileSection, Section
from sweeps.spec_optimizers import OptimizersTable
from sweeps.spec_types import AxesTable, Horizons, HParamsTable, ModelTable, Seeds, Widths, distinct

if TYPE_CHECKING:
    from proxy_models.data import DataSource
    from sweeps.stopping import Stopping


class DataSection(Section):
    """Where the tokens come from. A relative path is relative to the spec file's folder."""

    source: Literal["stdlib", "text", "tokens"] = "stdlib"
    path: str | None = None
    dtype: str | None = None  # of a headerless token file
    validation_frac: float = Field(default=0.05, gt=0, lt=1)

    @model_validator(mode="after")
    def _path_goes_with_source(self) -> Self:
        if (self.path is None) != (self.source == "stdlib"):
            raise ValueError(
                'path goes with source = "text" or "tokens" and not with "stdlib", '
                f"got source = {self.source!r}, path = {self.path!r}. Add or remove path."
            )
        if self.dtype is not None and self.source != "tokens":
            raise ValueError(f'dtype goes with source = "tokens" alone, got source = {self.source!r}. Remove dtype.')
        return self


class RunSection(Section):
    """What all runs share, and the widths, depths, horizons and seeds of the grid."""

    parametrization: Parametrization = "mup"
    base_width: int = Field(ge=1)
    widths: Widths
    base_depth: int | None = Field(default=None, ge=1)  # of complete_p
    depths: Widths | None = None  # None: model.depth alone
    seeds: Seeds
    train_tokens: Horizons  # a number in the file is a horizon of its own
    validation_tokens: int = Field(ge=1)
    schedule: ScheduleName = "wsd"
    decay_frac: float | None = Field(default=None, gt=0, le=1)  # of train_tokens: decay_tokens, in whole batches
    weight_decay_invariant: WeightDecayInvariant = "lr_wd"

    @model_validator(mode="after")
    def _decay_frac_goes_with_wsd(self) -> Self:
        if self.decay_frac is not None and self.schedule != "wsd":
            raise ValueError(
                f'decay_frac goes with schedule = "wsd", got schedule = "{self.schedule}". Remove decay_frac.'
            )
        return self

    @property
    def longest(self) -> int:
        """Tokens of the longest horizon, whose trials the fits are of."""
        return max(self.train_tokens)


class CheckSection(Section):
    """The coordinate check: a few steps at several widths, and at several depths."""

    widths: Widths | None = None  # None: base_width times 1, 2, 4 and 8
    depths: Widths | None = None  # None: base_depth times 1, 2, 4 and 8 under complete_p, otherwise no check over depth
    steps: int = Field(default=4, ge=1)
    seeds: Seeds = (0, 1, 2)
    tolerance: float = Field(default=0.15, gt=0)  # largest |slope| of log RMS activation against log width
    batch_tokens: int | None = Field(default=None, ge=1)


class DiagnosticsSection(Section):
    """What optimizers do to matrices, recorded while trials train; no part of a trial's identity."""

    every_steps: int = Field(ge=1)


class EngineSection(Section):
    """How trials are trained: numerics modes and packs; no part of a trial's identity."""

    executor: Literal["auto", "loop", "stacked"] = "auto"
    compile: Literal["auto", True, False] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where torch sees one
    dtype: Dtype = "float32"  # of matrix products
    pack_size: int | None = Field(default=None, ge=1)  # None: by memory, throughput and workers


class StoppingSection(Section):
    """Learning rates that cannot end near the best are stopped at rungs; no part of a trial's identity."""

    rungs: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Strict(False), AfterValidator(distinct)] = (
        0.25,
        0.5,
        0.75,
    )  # shares of a run's steps
    # Only what must end further than this above the best is stopped; parabolas are fitted within 0.1 nats of it.
    keep_nats: float = Field(default=0.15, ge=0.1)


_SEARCH_KEYS: dict[str, tuple[str, ...]] = {
    "grid": (),
    "telescope": ("points", "max_reexpansions", "shrink_bounds"),
    "optuna": ("trials", "sampler_seed"),
}


class SearchSection(Section):
    """How the learning rates are chosen: all at once from the grid, or later ones from the results of earlier ones."""

    method: Literal["grid", "telescope", "optuna"] = "grid"
    points: int = Field(default=5, ge=3)  # of a telescoped width, at least; odd, so that the center is one
    max_reexpansions: int = Field(default=4, ge=0)  # of a telescoped width; each adds twice as many points as the last
    # Exponent of width with which the spacing may shrink. Optima were seen to converge with 0.39 to 1
    # (arXiv:2512.22768, appendix); until three widths show it, the lower bound is taken.
    shrink_bounds: Annotated[tuple[float, float], Strict(False)] = (0.3, 1.0)
    trials: int = Field(default=8, ge=1)  # learning rates that Optuna tries, for each optimizer and width
    sampler_seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _keys_go_with_method(self) -> Self:
        for method, keys in _SEARCH_KEYS.items():
            for key in keys:
                if key in self.model_fields_set and method != self.method:
                    raise ValueError(
                        f'{key} goes with method = "{method}", got method = "{self.method}". Remove {key}.'
                    )
        if self.points % 2 == 0:
            raise ValueError(f"points must be odd, half of them to each side of a center, got {self.points}. Add one.")
        low, high = self.shrink_bounds
        if not 0 <= low <= high:
            raise ValueError(f"shrink_bounds must be [low, high] with 0 <= low <= high, got {[low, high]}. Change one.")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The method and its own keys, as JSON values."""
        return self.model_dump(mode="json", include={"method", *_SEARCH_KEYS[self.method]})


class SweepSpec(FileSection):
    """A whole sweep, as `load_spec` returns it: every run of its grid is known to be valid."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    data: DataSection = DataSection()
    model: ModelTable = Field(default_factory=dict)
    run: RunSection
    hparams: HParamsTable = Field(default_factory=dict)
    axes: AxesTable = Field(default_factory=dict)
    optimizers: OptimizersTable
    search: SearchSection = SearchSection()
    check: CheckSection = CheckSection()
    diagnostics: DiagnosticsSection | None = None
    stopping: StoppingSection | None = None
    batch: BatchSection | None = None
    critical_batch: CriticalBatchSection | None = None
    engine: EngineSection = EngineSection()
    _file: Path = PrivateAttr(default=Path("spec.toml"))
    _data_folder: Path | None = PrivateAttr(default=None)

    @property
    def data_folder(self) -> Path:
        """What a relative data.path starts from: the folder of the file as it was written."""
        return self._file.parent if self._data_folder is None else self._data_folder

    def with_data_folder(self, folder: Path) -> SweepSpec:
        """The same spec read from a copy of its file, which stands elsewhere."""
        moved = self.model_copy()
        moved._data_folder = folder
        return moved

    @property
    def stopping_rule(self) -> Stopping | None:
        """None where every trial is trained to its end."""
        from sweeps.stopping import Stopping

        return None if self.stopping is None else Stopping(rungs=self.stopping.rungs, keep_nats=self.stopping.keep_nats)

    @property
    def noise_every_steps(self) -> int | None:
        """None where the gradient noise is not measured."""
        wanted = self.critical_batch is not None and "noise_scale" in self.critical_batch.measure
        return self.critical_batch.noise_every_steps if self.critical_batch is not None and wanted else None

    @property
    def check_widths(self) -> tuple[int, ...]:
        return self.check.widths or tuple(self.run.base_width * factor for factor in (1, 2, 4, 8))

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths of the grid."""
        return self.run.depths or (self.model.get("depth", DEFAULT_DEPTH),)

    @property
    def check_depths(self) -> tuple[int, ...]:
        """Depths of the coordinate check over depth; () where there is none."""
        base = self.run.base_depth
        return self.check.depths or (() if base is None else tuple(base * factor for factor in (1, 2, 4, 8)))

    def data_source(self) -> DataSource:
        """Where the tokens are; a relative path is resolved against `data_folder`."""
        from proxy_models.data import DataSource

        path = None if self.data.path is None else str((self.data_folder / self.data.path).absolute())
        return DataSource(
            kind=self.data.source, path=path, dtype=self.data.dtype, validation_frac=self.data.validation_frac
        )


class TargetSpec(FileSection):
    """The large run that a sweep's hyperparameters are meant for."""

    width: int = Field(ge=1)
    depth: int | None = Field(default=None, ge=1)  # None: the proxies', where all have one
    train_tokens: int | None = Field(default=None, ge=1)  # None: as the proxies
    batch_tokens: int | None = Field(default=None, ge=1)  # None: by `overhead` where measured, else as the proxies
    # Tokens more than the smallest batches need, as a fraction of those, that a planned batch may cost.
    overhead: float = Field(default=0.2, gt=0, le=1)
    seeds: Seeds = (0,)
    _file: Path = PrivateAttr(default=Path("target.toml"))

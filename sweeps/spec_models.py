"""The sections of a spec file and of a target file, as frozen records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, Field, PrivateAttr, model_validator

from proxy_models.config import Parametrization, ScheduleName, WeightDecayInvariant
from sweeps.spec_errors import refuse_unknown_keys
from sweeps.spec_optimizers import OptimizersTable
from sweeps.spec_types import SECTION, AxesTable, HParamsTable, ModelTable, Seeds, Widths

if TYPE_CHECKING:
    from proxy_models.data import DataSource


class _Section(BaseModel):
    model_config = SECTION

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        return refuse_unknown_keys(values, cls.model_fields)


class DataSection(_Section):
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


class RunSection(_Section):
    """What all runs share, and the widths and seeds of the grid."""

    parametrization: Parametrization = "mup"
    base_width: int = Field(ge=1)
    widths: Widths
    seeds: Seeds
    train_tokens: int = Field(ge=1)
    validation_tokens: int = Field(ge=1)
    schedule: ScheduleName = "wsd"
    weight_decay_invariant: WeightDecayInvariant = "lr_wd"


class CheckSection(_Section):
    """The coordinate check: a few steps at several widths."""

    widths: Widths | None = None  # None: base_width times 1, 2, 4 and 8
    steps: int = Field(default=4, ge=1)
    seeds: Seeds = (0, 1, 2)
    tolerance: float = Field(default=0.15, gt=0)  # largest |slope| of log RMS activation against log width
    batch_tokens: int | None = Field(default=None, ge=1)


class DiagnosticsSection(_Section):
    """What optimizers do to matrices, recorded while trials train; no part of a trial's identity."""

    every_steps: int = Field(ge=1)


class SweepSpec(_Section):
    """A whole sweep, as `load_spec` returns it: every run of its grid is known to be valid."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    data: DataSection = DataSection()
    model: ModelTable = Field(default_factory=dict)
    run: RunSection
    hparams: HParamsTable = Field(default_factory=dict)
    axes: AxesTable = Field(default_factory=dict)
    optimizers: OptimizersTable
    check: CheckSection = CheckSection()
    diagnostics: DiagnosticsSection | None = None
    _file: Path = PrivateAttr(default=Path("spec.toml"))
    _text: str = PrivateAttr(default="")
    _data_folder: Path | None = PrivateAttr(default=None)

    @property
    def file(self) -> Path:
        """Where it was read from."""
        return self._file

    @property
    def text(self) -> str:
        """The TOML as it was written."""
        return self._text

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
    def check_widths(self) -> tuple[int, ...]:
        return self.check.widths or tuple(self.run.base_width * factor for factor in (1, 2, 4, 8))

    def data_source(self) -> DataSource:
        """Where the tokens are; a relative path is resolved against `data_folder`."""
        from proxy_models.data import DataSource

        path = None if self.data.path is None else str((self.data_folder / self.data.path).absolute())
        return DataSource(
            kind=self.data.source, path=path, dtype=self.data.dtype, validation_frac=self.data.validation_frac
        )


class TargetSpec(_Section):
    """The large run that a sweep's hyperparameters are meant for."""

    width: int = Field(ge=1)
    train_tokens: int | None = Field(default=None, ge=1)  # None: as the proxies
    seeds: Seeds = (0,)
    _file: Path = PrivateAttr(default=Path("target.toml"))
    _text: str = PrivateAttr(default="")

    @property
    def file(self) -> Path:
        """Where it was read from."""
        return self._file

    @property
    def text(self) -> str:
        """The TOML as it was written."""
        return self._text

"""Options of a run of `tokenbus bench pool`; they travel to the reader processes as they are."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tokenbus.engine.bench.workloads import WORKLOADS
from tokenbus.worker.errors import SettingsInvalid

ARRIVALS = ("at-once", "poisson", "burst", "closed", "trace")
WORKLOAD_NAMES = ("synthetic", "retail", *sorted(WORKLOADS))

# The mix of a shop in a burst: few who wait at the screen, many mails, some bulk work.
RETAIL_PRIORITIES = (0.1, 0.6, 0.3)
RETAIL_TENANTS = 20

_BOUNDS: dict[str, tuple[float, float]] = {
    "workers": (1, 64),
    "readers": (1, 256),
    "rate": (1e-3, 1e5),
    "load": (0.01, 100),
    "jobs": (1, 10_000_000),
    "duration_s": (0.1, 86_400),
    "burst_factor": (1, 1000),
    "burst_s": (0.1, 86_400),
    "calm_s": (0.1, 86_400),
    "users": (1, 100_000),
    "ramp_s": (0, 3600),
    "time_scale": (1e-3, 1e6),
    "length_scale": (1e-3, 1e6),
    "cap": (1, 1_000_000),
    "trace_s": (0.1, 1e7),
    "peak_factor": (1, 1000),
    "peak_s": (0, 86_400),
    "shared_tokens": (0, 1_000_000),
    "groups": (1, 100_000),
    "choice": (2, 676),
    "plain_readers": (0, 100),
    "tenants": (1, 1_000_000),
    "retries": (0, 1000),
    "patience_s": (0, 86_400),
    "repeats": (1, 100),
    "drain_s": (0, 86_400),
    "warm_up_s": (0, 86_400),
    "vocab_size": (2, 2**31),
}
_FILES = ("trace", "retail_file")
_NEW_FILES = ("json", "html")


class BenchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Load, prompts, engine and report of a run; times in s, targets in ms, sizes in tokens.

    `prompt_tokens`, `output_tokens` are inclusive ranges. `load` scales the arrivals to that share
    of a capacity that is measured first. `worker` holds settings of the workers by name.
    `vocab_size` is where drawn prompt ids end. `choice` is the number of labels of each job's
    grammar. `plain_readers` is the share of jobs, in percent, whose own channel is read too.
    """

    engine: str = "null"
    worker: dict[str, str | int | float | bool] = {}
    generate_tokenizer: bool = False
    redis: str = "embedded://"
    pool: str = ""
    workers: int = 1
    readers: int = 1
    check: bool = True
    lag: bool = True
    results: bool = False
    plain_readers: float = 0.0

    arrival: str = "poisson"
    rate: float = 10.0
    load: float | None = None
    jobs: int | None = None
    duration_s: float = 30.0
    burst_factor: float = 10.0
    burst_s: float = 60.0
    calm_s: float = 60.0
    users: int = 16
    ramp_s: float = 0.0
    trace: str | None = None
    time_scale: float = 1.0
    length_scale: float = 1.0
    cap: int = 1_000_000
    trace_s: float = 3600.0
    peak_factor: float = 1.0
    peak_at_s: float = 0.0
    peak_s: float = 0.0
    retries: int = 0
    patience_s: float = 600.0

    workload: str = "synthetic"
    retail_file: str | None = None
    as_text: bool = False
    messages: bool = False
    choice: int | None = None
    prompt_tokens: tuple[int, int] = (128, 128)
    output_tokens: tuple[int, int] = (128, 128)
    shared_tokens: int = 0
    groups: int = 1
    tenants: int = 1
    priorities: tuple[float, float, float] = (0.0, 1.0, 0.0)
    temperature: float = 0.6
    seed: int = 0
    vocab_size: int = 512
    run_idx: int = 0

    max_tenant_tokens: int | None = None
    max_pool_tokens: int | None = None
    ttft_target_ms: float = 1000.0
    itl_target_ms: float = 50.0
    warm_up_s: float = 0.0
    drain_s: float = 60.0

    offline_compare: bool = False
    repeats: int = 1
    slo: bool = False
    slo_users: tuple[int, ...] = ()

    json: str | None = None
    html: str | None = None
    plain: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work by the option's name.

        Raises: SettingsInvalid.
        """
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise SettingsInvalid(f"{_flag(name)}: {value:g} is outside {low:g}…{high:g}")
        for name in ("prompt_tokens", "output_tokens"):
            low, high = getattr(self, name)
            if not 1 <= low <= high <= 1_000_000:
                raise SettingsInvalid(f"{_flag(name)}: {low}-{high} is no range within 1…1000000")
        if self.arrival not in ARRIVALS:
            raise SettingsInvalid(f"--arrival: {self.arrival} is none of {', '.join(ARRIVALS)}")
        if self.workload not in WORKLOAD_NAMES:
            names = ", ".join(WORKLOAD_NAMES)
            raise SettingsInvalid(f"--workload: {self.workload} is none of {names}")
        if any(share < 0 for share in self.priorities) or sum(self.priorities) <= 0:
            raise SettingsInvalid("--priorities: three shares, none negative, not all zero")
        if any(users < 1 for users in self.slo_users):
            raise SettingsInvalid("--slo-users: counts from 1 on")
        self._check_files()

    def _check_files(self) -> None:
        for name in _FILES:
            value = getattr(self, name)
            if value is not None and not Path(value).is_file():
                raise SettingsInvalid(f"{_flag(name)}: there is no file {value}")
        for name in _NEW_FILES:
            value = getattr(self, name)
            if value is not None and not Path(value).absolute().parent.is_dir():
                raise SettingsInvalid(f"{_flag(name)}: the folder of {value} does not exist")
        if self.arrival == "trace" and self.trace is None:
            raise SettingsInvalid("--trace: the arrival `trace` needs a file")
        if self.workload == "retail" and self.retail_file is None:
            raise SettingsInvalid("--retail-file: the workload `retail` needs a file")

    def replace(self, **values: object) -> BenchOptions:
        """Return a copy with some values changed."""
        return msgspec.structs.replace(self, **values)

    @property
    def model_folder(self) -> str | None:
        """Return where the model lies; None for the null engine."""
        return str(self.worker["model"]) if self.engine == "paged" else None

    @property
    def is_open_loop(self) -> bool:
        """Tell whether jobs arrive at times of their own, whatever became of those before."""
        return self.arrival != "closed"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"

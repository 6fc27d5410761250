"""Everything that decides a run, in one place: the Config, its validation, its files.

Imports no jax, so that `--help` and a wrong flag are answered at once.
"""

import dataclasses
import json
import runpy
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union

from mnist_jax.errors import ConfigError


class Range(NamedTuple):
    """The allowed values of a number: `low <= value < high`, as in Python's range."""

    low: float
    high: float = float("inf")

    def __str__(self) -> str:
        return f"at least {self.low} and " + (
            "finite" if self.high == float("inf") else f"below {self.high}"
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run. The defaults are the classic Keras lesson, number for number."""

    dataset: Literal["mnist", "fashion_mnist", "mnist_sample"] = "mnist"
    """What to train on. mnist_sample: 5,000 MNIST digits that come with the package."""
    data_dir: str = "~/tensorflow_datasets"
    """Where TFDS keeps prepared datasets, and we their decoded arrays."""
    manual_dir: str | None = None
    """A directory with the four official IDX files (*-ubyte.gz), to prepare the data from."""
    require_full_data: bool = False
    """Fail rather than train on mnist_sample when mnist cannot be had."""
    validation_size: Annotated[int, Range(0)] = 0
    """Hold out this many examples from the end of the training set. They are then evaluated after
    each epoch, and the test set once, at the end."""

    hidden_sizes: tuple[Annotated[int, Range(1, 10**9)], ...] = (512,)
    """Units of each hidden layer; all have relu, Glorot-uniform kernels and zero biases."""
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """Of the matrix products, as JAX names it. Less than float32 is faster on TPUs and GPUs, and
    less exact."""

    optimizer: Literal["rmsprop", "adam", "adamw", "sgd"] = "rmsprop"
    """The update rule. A setting below that the chosen rule does not use is refused."""
    learning_rate: Annotated[float, Range(0)] = 1e-3
    """The step size: its peak, where a schedule changes it."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up; linear and cosine end at 0."""
    warmup_steps: Annotated[int, Range(0)] = 0
    """Steps over which the learning rate first rises linearly from 0."""
    decay: Annotated[float, Range(0, 1)] = 0.9
    """rmsprop: decay of the running mean of squared gradients (Keras: rho)."""
    eps: Annotated[float, Range(1e-30)] = 1e-7
    """rmsprop, adam, adamw: keeps the division by the root finite."""
    eps_in_sqrt: bool = False
    """rmsprop: add eps inside the root, as Keras 3 does; the lesson's Keras 2 adds it outside."""
    momentum: Annotated[float, Range(0, 1)] = 0.0
    """sgd, rmsprop: decay of the running sum of past updates."""
    b1: Annotated[float, Range(0, 1)] = 0.9
    """adam, adamw: decay of the running mean of gradients."""
    b2: Annotated[float, Range(0, 1)] = 0.999
    """adam, adamw: decay of the running mean of squared gradients."""
    weight_decay: Annotated[float, Range(0)] = 1e-4
    """adamw: decoupled weight decay, on kernels and biases alike."""

    batch_size: Annotated[int, Range(1)] = 128
    """Examples a step. The last batch of an epoch is padded and masked, never dropped."""
    num_epochs: Annotated[int, Range(1, 10**6)] = 5
    """Passes over the training set."""
    seed: Annotated[int, Range(0, 2**32)] = 0
    """Decides the initial parameters and the order of every epoch, and nothing else does."""
    steps_per_chunk: Annotated[int, Range(1)] = 64
    """Steps that run on the device between two looks at the numbers. Changes no result."""
    checkpoint_every_steps: Annotated[int, Range(0)] = 0
    """Save also within an epoch, after the chunk in which so many steps are full. 0: only after
    each epoch."""
    keep: Annotated[int, Range(1)] = 3
    """How many checkpoints to keep: the newest."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the extra `tensorboard`)."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(Config, include_extras=True)
        for field in dataclasses.fields(self):
            check_value(field.name, getattr(self, field.name), hints[field.name])
        _check_optimizer_settings(self)


CONFIG_FILE = "config.json"  # in a run folder

_USED_BY = {
    "decay": ("rmsprop",),
    "eps": ("rmsprop", "adam", "adamw"),
    "eps_in_sqrt": ("rmsprop",),
    "momentum": ("rmsprop", "sgd"),
    "b1": ("adam", "adamw"),
    "b2": ("adam", "adamw"),
    "weight_decay": ("adamw",),
}


def _check_optimizer_settings(config: Config) -> None:
    """Refuses a setting that would be ignored: whoever sets it believes that it counts."""
    for name, optimizers in _USED_BY.items():
        if getattr(config, name) != getattr(Config, name) and config.optimizer not in optimizers:
            raise ConfigError(
                f"{name} is set, but {config.optimizer} does not use it "
                f"(only {', '.join(optimizers)}); leave it out or change optimizer"
            )


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raises ConfigError unless `value` is of the type and in the range that `hint` states."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        check_value(name, value, args[0])
        low, high = limits = args[1]
        if value is not None and not low <= value < high:  # also for nan
            raise ConfigError(f"{name} is {value}; it must be {limits}")
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise ConfigError(f"{name} is {value!r}; it must be a tuple")
        for i, item in enumerate(value):
            check_value(f"{name}[{i}]", item, args[0])
    elif origin is Literal:
        if value not in args:
            raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(args)}")
    else:
        allowed = args if origin in (Union, types.UnionType) else (hint,)
        accepted = (*allowed, int) if float in allowed else allowed
        if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
            names = " or ".join("None" if t is type(None) else t.__name__ for t in allowed)
            raise ConfigError(f"{name} is {value!r}; it must be of type {names}")


_CHANGES_NO_NUMBER = (
    "data_dir", "manual_dir", "require_full_data", "steps_per_chunk", "checkpoint_every_steps",
    "keep", "tensorboard",
)  # fmt: skip


def deciding_fields(config: Config) -> dict[str, Any]:
    """The fields that decide a run's numbers: those that its continuation must share."""
    fields = {k: v for k, v in vars(config).items() if k not in _CHANGES_NO_NUMBER}
    if config.schedule == "constant":
        del fields["num_epochs"]  # more of them change nothing in those before
    return fields


def check_continues(config: Config, saved: Config) -> None:
    """Raises ConfigError unless a run of `saved` can go on as one of `config`."""
    different = differences(deciding_fields(saved), deciding_fields(config))
    if not different and config.num_epochs < saved.num_epochs:
        different = differences({"num_epochs": saved.num_epochs}, {"num_epochs": config.num_epochs})
    if different:
        raise ConfigError(f"the run to continue is another: {different}; name another --workdir")


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What differs between two dictionaries, for a message."""
    return "; ".join(
        f"{name} is {there.get(name)!r} there and {here.get(name)!r} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    )


def format_config(config: Config) -> str:
    """`config` as JSON, which `load_config` reads back to an equal Config."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def load_config(path: str | Path) -> Config:
    """The Config in a file: the `config` that a .py file defines, or a run folder's config.json.

    Raises:
        ConfigError: the file cannot be read or run, or does not hold a valid Config.
    """
    try:
        if Path(path).suffix == ".json":
            fields = json.loads(Path(path).read_text())
            fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            return Config(**fields)
        config = runpy.run_path(str(path)).get("config")
    except ConfigError:
        raise
    except Exception as error:  # a config file is a program: whatever it raises is its own
        raise ConfigError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{path} defines no variable `config` that is a Config")
    return config

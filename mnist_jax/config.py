"""The settings of a run: `Config`, its validation, its files."""

import dataclasses
import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mnist_jax.runtime.cli import Range, check_fields, find_preset
from mnist_jax.runtime.errors import UsageError

CONFIG_FILE = "config.json"  # in a run directory
NUM_CLASSES = 10  # the same for all datasets


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run. The defaults are exactly those of the classic Keras lesson."""

    dataset: Literal["mnist", "fashion_mnist", "mnist_sample"] = "mnist"
    """The dataset. mnist_sample is 5,000 MNIST digits that come with the package."""
    data_dir: str = "~/tensorflow_datasets"
    """Directory of prepared TFDS datasets, and of the decoded arrays that we cache."""
    manual_dir: str | None = None
    """Directory with the four official IDX files (*-ubyte.gz), to prepare the dataset from."""
    require_full_data: bool = False
    """Fail if mnist cannot be loaded, instead of training on mnist_sample."""
    validation_size: Annotated[int, Range(0)] = 0
    """Number of examples to hold out from the end of the training set. Each epoch is then tested on
    these examples, and the test set is used only once, after the last epoch."""

    hidden_sizes: tuple[Annotated[int, Range(1, 10**9)], ...] = (512,)
    """Units of each hidden layer, with relu, Glorot-uniform kernels and zero biases."""
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """Precision of the matrix products. Lower ones are faster on GPUs and TPUs, and less exact."""

    optimizer: Literal["rmsprop", "adam", "adamw", "sgd"] = "rmsprop"
    """The update rule. A setting that the rule does not use must keep its default."""
    learning_rate: Annotated[float, Range(0)] = 1e-3
    """The step size; with a schedule, its peak."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after the warm-up; linear and cosine end at 0."""
    warmup_steps: Annotated[int, Range(0)] = 0
    """Number of steps over which the learning rate first rises linearly from 0."""
    decay: Annotated[float, Range(0, 1)] = 0.9
    """rmsprop: decay of the running mean of squared gradients (rho in Keras)."""
    eps: Annotated[float, Range(1e-30)] = 1e-7
    """rmsprop, adam, adamw: small number added to the root, to avoid a division by 0."""
    eps_in_sqrt: bool = False
    """rmsprop: add eps inside the root, as Keras 3 does. Keras 2 adds it outside."""
    momentum: Annotated[float, Range(0, 1)] = 0.0
    """sgd, rmsprop: decay of the running sum of past updates."""
    b1: Annotated[float, Range(0, 1)] = 0.9
    """adam, adamw: decay of the running mean of gradients."""
    b2: Annotated[float, Range(0, 1)] = 0.999
    """adam, adamw: decay of the running mean of squared gradients."""
    weight_decay: Annotated[float, Range(0)] = 1e-4
    """adamw: decoupled weight decay, applied to kernels and biases."""

    batch_size: Annotated[int, Range(1)] = 128
    """Examples per step. The last batch of an epoch is padded and masked, never dropped."""
    num_epochs: Annotated[int, Range(1, 10**6)] = 5
    """Passes over the training set."""
    seed: Annotated[int, Range(0, 2**32)] = 0
    """Determines the initial parameters and the order of every epoch."""
    steps_per_chunk: Annotated[int, Range(1)] = 67
    """Steps in one compiled call; 7 x 67 is an epoch of MNIST. It does not change the results."""
    checkpoint_every_steps: Annotated[int, Range(0)] = 0
    """Save also within an epoch, after at least so many steps. 0: only after each epoch."""
    keep: Annotated[int, Range(1)] = 3
    """Number of checkpoints to keep."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the extra `tensorboard`)."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, users in USED_BY.items():
            if self.optimizer not in users and getattr(self, name) != getattr(Config, name):
                raise UsageError(
                    f"{name} is set, but {self.optimizer} does not use it; leave it out"
                )


# The optimizers that use a setting. The others reject it.
USED_BY = {
    "decay": ("rmsprop",),
    "eps": ("rmsprop", "adam", "adamw"),
    "eps_in_sqrt": ("rmsprop",),
    "momentum": ("rmsprop", "sgd"),
    "b1": ("adam", "adamw"),
    "b2": ("adam", "adamw"),
    "weight_decay": ("adamw",),
}

# These do not affect the results: a resumed run may change them.
MAY_CHANGE = (
    "data_dir", "manual_dir", "require_full_data", "steps_per_chunk", "checkpoint_every_steps",
    "keep", "tensorboard",
)  # fmt: skip


def deciding_fields(config: Config) -> dict[str, Any]:
    """The settings that determine the results, which a resumed run must not change."""
    fields = {name: value for name, value in vars(config).items() if name not in MAY_CHANGE}
    if config.schedule == "constant":
        del fields["num_epochs"]  # Adding epochs does not change earlier ones.
    return fields


def reject(config: Config, *unused: str) -> None:
    """Raises UsageError if a setting is given that has no effect on a command."""
    for name in unused:
        if getattr(config, name) != getattr(Config, name):
            raise UsageError(f"{name} is set, but has no effect on this command; leave it out")


def load_config(path: str | Path) -> Config:
    """Loads a run's config.json, or the variable `config` of a Python file."""
    try:
        if Path(path).suffix == ".json":
            fields: dict[str, Any] = json.loads(Path(path).read_text())
            if not isinstance(fields, dict):
                raise UsageError("it must hold a JSON object")
            if unknown := fields.keys() - vars(Config()).keys():
                raise UsageError(f"unknown settings: {', '.join(sorted(unknown))}")
            for name, value in fields.items():
                fields[name] = tuple(value) if isinstance(value, list) else value  # as in Config
            return Config(**fields)
        config = runpy.run_path(str(path)).get("config")
    except UsageError as error:
        raise UsageError(f"{path} cannot be loaded: {error}") from error
    except (Exception, SystemExit) as error:  # a config file is a program, and may raise anything
        raise UsageError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise UsageError(f"{path} must define a variable `config` that is a Config")
    return config


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The flags of a command that trains: one per setting, and --config, a file of settings."""

    config: tyro.conf.OmitArgPrefixes[Config] = Config()
    preset: Annotated[Path | None, tyro.conf.arg(name="config", metavar="PATH")] = None
    """File of settings, .py or .json; flags override it. `train --workdir` has its own file."""

    @classmethod
    def defaults(cls, args: Sequence[str] | None) -> "RunOptions":
        """The options with the settings of the preset file, for `cli.parse`."""
        path = find_preset(args, CONFIG_FILE)
        return cls(config=load_config(path)) if path else cls()

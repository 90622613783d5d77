"""`rela fit`, `validate`, `test` and `predict`: LightningCLI with our names, a run's folder and readable mistakes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from rela_lightning._version import __version__
from rela_lightning.callback import ReLACallback
from rela_lightning.cli.bar import FitProgressBar
from rela_lightning.cli.messages import Readable
from rela_lightning.cli.noise import without_noise
from rela_lightning.cli.speed import ChannelsLast, compile_backbone
from rela_lightning.cli.system import check_writable
from rela_lightning.compat import command_arguments, is_first_process, uncompiled
from rela_lightning.config import own_errors, register_names
from rela_lightning.errors import ConfigError, ReLAError
from rela_lightning.module import ReLAMixin, ReLAModule, accelerate
from rela_lightning.optim import with_scheduler
from rela_lightning.probe import OnlineLinearProbe
from rela_lightning.runs.folder import choose_folder, release_folder, run_of
from rela_lightning.runs.names import CHECKPOINTS, CONFIG, RECORD
from rela_lightning.runs.read import read_run
from rela_lightning.runs.record import RunRecord, last_checkpoint
from rela_lightning.runs.resume import check_belongs, checkpoint_file, resumed

_WITH_OPTIMIZER = ("lr_scheduler", "exclude_bias_and_norm", "bias_and_norm_lr")
"""Options of our methods that go with `--model.optimizer`."""


def run(command: str, words: Sequence[str]) -> None:
    """`rela fit`, `validate`, `test` or `predict`; `words` are those after the command."""
    run_cli(RelaCLI, command, words)


def run_cli(cli: type[RelaCLI], command: str, words: Sequence[str]) -> None:
    """Run one of Lightning's commands, without its noise and with short errors."""
    register_names()
    with without_noise():
        try:
            cli(command, resumed(words, command))
        except MisconfigurationException as error:
            raise ReLAError(str(error)) from error


class FitParser(Readable, LightningArgumentParser):
    """LightningCLI's parser with short messages."""


class SaveConfig(SaveConfigCallback):
    """Writes `config.yaml` into the run's folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write it, also over the one of a run that is resumed."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config["ckpt_path"] = None  # whoever starts from this file wants a run of their own
        self.parser.save(config, str(folder / CONFIG), skip_none=False, overwrite=True, multifile=self.multifile)


class RelaCLI(LightningCLI):
    """LightningCLI for one of its four commands.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        words: Words after the command.
    """

    spoken: str | None = None
    """Name of the command as it is typed, where that is not Lightning's."""

    def __init__(self, command: str, words: Sequence[str]) -> None:
        self.command = command
        self._resumed: Path | None = None
        self._record: RunRecord | None = None
        self._folder: Path | None = None
        self._claimed = False  # the folder is one below runs/ that was made for this run
        try:
            super().__init__(
                save_config_callback=SaveConfig if command == "fit" else None,
                seed_everything_default=0,
                parser_class=FitParser,
                parser_kwargs={
                    "prog": "rela",
                    "description": "Cheaper self-supervised pre-training (ReLA).",
                    "version": __version__,
                    "default_env": True,
                    "env_prefix": "RELA",
                    "allow_abbrev": False,
                },
                trainer_defaults={} if command == "fit" else {"logger": False},
                args=[command, *words],
            )
        except BaseException:
            self._say_how_to_go_on()
            raise
        finally:
            self._leave_no_name_taken()

    def _leave_no_name_taken(self) -> None:
        """Take away the folder that was made for a run that never began."""
        trainer = getattr(self, "trainer", None)
        if self._claimed and self._folder is not None and not (trainer is not None and trainer.global_step):
            release_folder(self._folder)

    def _say_how_to_go_on(self) -> None:
        """After a failure or a signal in training, name the command that goes on from the last checkpoint."""
        trainer = getattr(self, "trainer", None)
        if self._record is None or trainer is None or not trainer.global_step or not trainer.is_global_zero:
            return
        if last_checkpoint(trainer) is not None:
            sys.stderr.write(f"rela: go on from the last checkpoint by: rela fit --resume {self._record.folder}\n")

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one command: parsers of the others would take seconds to build."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Name of the run, and what makes it faster; for every command, so that each reads a run's config.yaml."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Name of the run that `fit` starts; null for <method>-<data>. Its folder is runs/<name>, unless "
            "trainer.default_root_dir names one.",
        )
        parser.add_argument(
            "--resume",
            type=str | None,
            default=None,
            help="Of `fit`: folder of a run, or its name below runs/, to go on with from its last checkpoint; short "
            "for its config.yaml as --config and the folder as --ckpt_path. Options beside it change that config.",
        )
        parser.add_argument(
            "--compile",
            type=bool | str,
            default=False,
            help="Compile the backbone and its teacher: true, or a backend of torch.compile (inductor, aot_eager).",
        )
        parser.add_argument(
            "--channels_last",
            type=bool,
            default=False,
            help="Keep convolution weights and images channels last in memory: quicker on a CPU, and in mixed "
            "precision on a GPU.",
        )

    @staticmethod
    def configure_optimizers(lightning_module: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
        """What `--optimizer` and `--lr_scheduler` give a module; `WarmupCosine` goes on at each step."""
        return with_scheduler(lightning_module, optimizer, lr_scheduler)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if "weights_only" in command_arguments(self, subcommand):
            parser.set_defaults({"weights_only": True})
        parser.prog = f"rela {self.spoken or subcommand}"
        return parser

    def _dump_config(self) -> None:
        """What a module saves as its hyper-parameters: inside `accelerate` its own, not those of ReLA."""
        super()._dump_config()
        model = self.config_dump.get("model")
        if isinstance(model, dict) and locate(str(model.get("class_path"))) is accelerate:
            self.config_dump["model"] = model["init_args"]["method"]

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint to go on from. The config holds, not the options saved in it."""
        options = self.config[self.command]
        self._resumed = checkpoint_file(options.get("ckpt_path"))
        if self._resumed is not None:
            options["ckpt_path"] = str(self._resumed)

    @property
    def _built(self) -> Any:
        """The options of the command, with the objects that were made of them."""
        return self.config_init[self.command]

    def instantiate_classes(self) -> None:
        """Build everything; refuse what does not fit together before anything is trained."""
        self._check_optimizer()
        with own_errors():
            super().instantiate_classes()
        module = uncompiled(self.model)
        if self.command == "fit" and self.datamodule is None and not is_overridden("train_dataloader", module):
            raise ConfigError(
                "There are no images to train on.",
                expected="a data module, or a module with a train_dataloader of its own",
                do="pass for example --data CIFAR10Data --data.root DIR",
            )
        if self._resumed is not None:
            warnings.filterwarnings("ignore", message=".*(exists and is not empty|dirpath has changed).*")
            check_belongs(self.model, self._resumed)
        self._check_classes()
        backend = self._built.get("compile", False)
        if backend is not False:
            compile_backbone(self.model, "inductor" if backend is True else backend)

    def _check_optimizer(self) -> None:
        """Refuse what would be left out without a word: a scheduler alone, options of an optimizer that is replaced."""
        if self.command != "fit":
            return
        options = self.config[self.command]
        optimizer, scheduler = options.get("optimizer"), options.get("lr_scheduler")
        if scheduler and not optimizer:
            raise ConfigError(
                "`--lr_scheduler` goes with `--optimizer`: without it the rate would stay as it is.",
                expected="both of them, or neither",
                found=f"--lr_scheduler {scheduler.get('class_path')} alone",
                do="pass --optimizer too; a method of rela_lightning has its own options, --model.optimizer and "
                "--model.lr_scheduler",
            )
        own = (options.get("model") or {}).get("init_args") or {}
        lost = [f"--model.{name}" for name in _WITH_OPTIMIZER if own.get(name)]
        if optimizer and lost:
            raise ConfigError(
                "`--optimizer` takes the place of the method's own, so options that go with that do nothing.",
                expected="one of the two",
                found=f"--optimizer beside {', '.join(lost)}",
                do="give the optimizer by --model.optimizer, which they go with",
            )

    def _check_classes(self) -> None:
        probes = [c for c in self.trainer.callbacks if isinstance(c, OnlineLinearProbe) and c.labels == "auto"]  # type: ignore[attr-defined]
        for part in (self.model, *probes):
            wanted = getattr(part, "num_classes", None)
            found = num_classes(self.datamodule) if isinstance(wanted, int) else None
            if found is not None and wanted != found:
                raise ConfigError(
                    f"The data have another number of classes than {type(part).__name__}.",
                    expected=f"{found}, as in {type(self.datamodule).__name__}",
                    found=f"num_classes = {wanted}",
                    do="give it the number of the data",
                )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer whose checkpoints, logs and record are in the run's folder."""
        options = self._built.get("trainer", {})
        callbacks = options.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
        if self.command == "fit" and not options.get("fast_dev_run"):
            kwargs = {**kwargs, **self._in_folder(options, callbacks)}
        if self._built.get("channels_last"):
            callbacks.append(ChannelsLast())
        kwargs["callbacks"] = callbacks
        if self.command != "fit" and options.get("logger") is None:  # null in a run's config.yaml
            kwargs["logger"] = False
        with own_errors():
            return super().instantiate_trainer(**kwargs)

    def _in_folder(self, options: Any, callbacks: list[Any]) -> dict[str, Any]:
        """Options of the trainer that keep a run in its folder; what is missing goes to the callbacks."""
        given = self._built.get("name")
        name = given or _name(self.model, self.datamodule, callbacks)
        root = options.get("default_root_dir")
        folder = choose_folder(root, name, self._resumed, given)
        self._folder, self._claimed = folder, root is None and (self._resumed is None or run_of(self._resumed) is None)
        self._record = RunRecord(folder, given or folder.name)
        callbacks.append(self._record)
        kinds = tuple(type(callback) for callback in callbacks)
        if options.get("enable_checkpointing") is not False and not any(issubclass(kind, Checkpoint) for kind in kinds):
            callbacks.append(
                ModelCheckpoint(
                    folder / CHECKPOINTS, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
                )
            )
        bar = options.get("enable_progress_bar") is not False and sys.stderr.isatty()
        if bar and not any(issubclass(kind, ProgressBar) for kind in kinds):
            callbacks.append(FitProgressBar())
        own: dict[str, Any] = {"default_root_dir": str(folder)}
        if options.get("logger") in (None, True):
            own["logger"] = CSVLogger(folder, name="logs")
        return own

    def before_fit(self) -> None:
        """Refuse folders that cannot be written, before anything is trained."""
        if self._folder is not None and is_first_process():
            kept = (getattr(callback, "dirpath", None) for callback in self.trainer.checkpoint_callbacks)
            check_writable([self._folder, *(Path(place) for place in kept if place is not None and "://" not in place)])

    def after_fit(self) -> None:
        """Say where the run is; by its record, as processes that were spawned share no memory with this one."""
        if self._record is None or not self.trainer.is_global_zero:
            return
        folder = self._record.folder
        if (folder / RECORD).is_file():
            record = read_run(folder)
            sys.stdout.write(f"{record['steps']} steps, {record['seconds']:.1f} s: {folder}\n")
        else:
            sys.stdout.write("0 steps: there is no run.\n")

    def after_validate(self) -> None:
        """Say so where nothing was measured; what was is in Lightning's table."""
        if self.trainer.is_global_zero and not self.trainer.callback_metrics:
            name = type(uncompiled(self.model)).__name__
            sys.stdout.write(
                f"Nothing was measured: {name} logs nothing in its validation. `rela probe RUN` measures its features; "
                "--trainer.callbacks+ KNNProbe does so in a validation.\n"
            )


def num_classes(data: Any) -> int | None:
    """Number of classes of a data module, where it is known before `setup`.

    Raises:
        ReLAError: What is wrong with the data, as far as this package sees it.
    """
    try:
        found = getattr(data, "num_classes", None)
    except ReLAError:
        raise
    except Exception:  # a property of the user's that needs `setup`
        return None
    return found if isinstance(found, int) else None


def _name(model: Any, data: Any, callbacks: Sequence[Any]) -> str:
    """`byol+rela-cifar10`: method and data, in small letters."""
    rela = any(isinstance(callback, ReLACallback) for callback in callbacks) or "configure_callbacks" in vars(model)
    name = type(model).__name__.lower() + ("+rela" if rela or isinstance(model, (ReLAMixin, ReLAModule)) else "")
    return name if data is None else f"{name}-{type(data).__name__.removesuffix('Data').lower()}"

"""`rela finetune`: what a run has trained, and a new classifier, with all labels or a few of each class."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden

from rela_lightning.cli.fit import RelaCLI, num_classes, run_cli
from rela_lightning.cli.images import other_scale, say_other_size
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.networks.build import LIBRARIES, SOURCES, UNTRAINED
from rela_lightning.runs.comparison import wilson
from rela_lightning.runs.measures import in_percent
from rela_lightning.runs.names import CONFIG, RECORD
from rela_lightning.runs.read import find_checkpoint, read_config, read_run
from rela_lightning.runs.rebuild import build_data, folder_of
from rela_lightning.runs.record import write_record

EPOCHS = 30


def run(command: str, words: Sequence[str]) -> None:
    """`rela finetune START`; `words` are those after the command, START and options of `rela fit`."""
    if any(word.partition("=")[0] == "--resume" for word in words):
        run_cli(FineTuneCLI, "fit", words)
        return
    start, rest = next(iter(words), ""), list(words[1:])
    if not start or start.startswith("-"):
        raise ConfigError(
            "`rela finetune` needs to know what to start from.",
            expected="the folder of a run, a checkpoint in one, or a network such as torchvision:resnet50/DEFAULT",
            found=start or "nothing",
            do="rela finetune runs/byol-cifar10 [options]",
        )
    own = [f"--model={FineTuneCLI.method}"]
    source = start.partition(":")[0]
    if source in SOURCES and not Path(start).exists():
        own.append(f"--model.backbone={start}")
        own += ['--model.backbone_kwargs={"pretrained": true}'] if source in {*LIBRARIES} - {*UNTRAINED} else []
    else:
        path = Path(start).expanduser()
        data = _data_of(path)  # refuses what is not there
        own.append(f"--model.backbone=run:{path.absolute()}")
        if data is not None and not any(word.partition("=")[0] in ("--data", "--config", "-c") for word in rest):
            own.append(_as_option(data))
    if not any(word.startswith("--trainer.max_") for word in rest):
        own.append(f"--trainer.max_epochs={EPOCHS}")
    run_cli(FineTuneCLI, "fit", [*own, *rest])


def _data_of(path: Path) -> dict[str, Any] | None:
    """What a run's config says of its data; None where there is none."""
    folder = folder_of(path, find_checkpoint(path))
    data = read_config(folder / CONFIG).get("data") if folder is not None else None
    return data if isinstance(data, dict) else None


def _as_option(data: dict[str, Any]) -> str:
    """The data of a run as an option, under the views of fine-tuning."""
    options = data.get("init_args") or {}
    usual = {"views": "auto", "views_kwargs": None, "data_ratio": 1.0, "drop_last": "auto"}
    changed = {name: value for name, value in usual.items() if name in options}
    return f"--data={json.dumps({**data, 'init_args': {**options, **changed}})}"


class FineTuneCLI(RelaCLI):
    """`rela fit` of one method, which takes its number of classes from the data."""

    method = "FineTune"
    spoken = "finetune"

    def before_instantiate_classes(self) -> None:
        """Fill the number of classes in, where it was not given."""
        options = self.config[self.command]
        module = options.model.get("init_args")
        if module is None or "num_classes" not in module or module.num_classes is not None or options.data is None:
            return
        data = build_data(options.data.as_dict())
        module.num_classes = num_classes(data)
        if module.num_classes is None:
            raise DataError(
                "The images have no labels, or the data do not say how many classes there are.",
                expected="labelled images, as a folder of images for each class",
                found=type(data).__name__,
                do="name data with labels by --data, or the number of classes by --model.num_classes",
            )

    def instantiate_classes(self) -> None:
        """Build everything; say so where the images are of another size than the run's, or normalised otherwise."""
        super().instantiate_classes()
        start = str(self.config[self.command].get("model.init_args.backbone"))
        if start.startswith("run:"):
            options = _data_of(Path(start.removeprefix("run:")))
            own: Any = build_data(options) if options is not None else None
            say_other_size(self.datamodule, own, "fine-tuned")
            if other_scale(self.datamodule, own):
                rank_zero_warn(
                    f"The run was trained on images normalised in another way than {type(self.datamodule).__name__} "
                    f"does; --data.mean '{own.mean}' --data.std '{own.std}' keep its own."
                )

    def after_fit(self) -> None:
        """Measure the last weights, and say how good they are, and where."""
        super().after_fit()
        if self._record is None or not self.trainer.callback_metrics:  # nothing was trained
            return
        with_images = is_overridden("val_dataloader", self.datamodule) if self.datamodule is not None else False
        if with_images and not self.trainer.interrupted:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        found = self.trainer.callback_metrics.get("val_top1")
        if found is None or not self.trainer.is_global_zero or not (self._record.folder / RECORD).is_file():
            return
        record = {**read_run(self._record.folder), "top1": float(found)}
        write_record(self._record.folder, record)
        images, half = record["validation_images"], ""
        if images:
            half = f" ± {in_percent(wilson(record['top1'], images))} % of {images:,} validation images"
        sys.stdout.write(f"top-1 {in_percent(record['top1'])}{half}\n")

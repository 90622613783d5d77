"""Wrong uses of the command `rela`."""

from __future__ import annotations

import contextlib
import io

from rela_lightning.cli import main
from rela_lightning.errors import ReLAError
from tests.wrong_uses.place import Place
from tests.wrong_uses.place import WrongUse as Use


class CommandFailed(ReLAError):
    """What a command wrote, and that it ended with code 2."""


def rela(words: str, *more: str) -> Use:
    """A command line; `more` holds what has blanks in it."""

    def call(place: Place) -> None:
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            try:
                code = main([*words.split(), *more])
            except SystemExit as stop:
                code = stop.code  # type: ignore[assignment]
        if code == 2:
            raise CommandFailed(told.getvalue().strip())
        raise AssertionError(f"exit code {code}: {told.getvalue()}")

    return Use(f"`rela {' '.join((words, *(repr(word) for word in more)))}`", call)


COMMANDS = [
    rela("fitt"),
    rela("fit"),
    rela("fit --model BYOLL"),
    rela("fit --model torch.nn.Linear"),
    rela("fit --model no_such_package.BYOL"),
    rela("fit --model BYOL"),
    rela("fit --model BYOL --data DigitData"),
    rela("fit --model BYOL --trainer.max_epoch 1"),
    rela("fit --model BYOL --model.momentun 1"),
    rela("fit --model BYOL --data DigitsData --data.batch_size 3.5"),
    rela("fit --model BYOL --config none.yaml"),
    rela("fit --model BYOL --trainer.callbacks+=rela_lightning.ReLACallback --trainer.callbacks.target t"),
    rela("fit --model BYOL --trainer.callbacks+=rela_lightning.ReLACallback"),
    rela("fit --model BYOL --data DigitsData --ckpt_path none.ckpt"),
    rela("fit --model Supervised"),
    rela("targets --prior timmm:x --data DigitsData --path t"),
    rela("targets --prior timm:resnet18 --data ImageFolderData --data.root no --path t"),
    rela("targets --prior timm:resnet18 --data Digits --path t"),
    rela("probe nowhere"),
    rela("probe nowhere --cross_folds 1"),
    rela("finetune"),
    rela("finetune nowhere"),
    rela("finetune lightly:resnet-9 --data DigitsData --data.labels_per_class 1000"),
    rela("similarity random:lightly:resnet-9"),
    rela("compare nowhere there"),
    rela("compare nowhere there --reach 60"),
    rela("export nowhere b.safetensors"),
    rela("demo --sedonds 3"),
]

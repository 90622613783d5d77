"""Wrong uses of the library, each with the message that its user gets."""

from __future__ import annotations

from tests.wrong_uses.commands import COMMANDS
from tests.wrong_uses.elsewhere import ELSEWHERE
from tests.wrong_uses.evaluating import EVALUATING
from tests.wrong_uses.labelling import LABELLING
from tests.wrong_uses.place import Place, WrongUse
from tests.wrong_uses.training import TRAINING

GROUPS: dict[str, list[WrongUse]] = {
    "Labelling": LABELLING,
    "Training": TRAINING,
    "Streams and places elsewhere": ELSEWHERE,
    "Probing and export": EVALUATING,
    "The command": COMMANDS,
}

__all__ = ["GROUPS", "Place", "WrongUse"]

"""Data sets, samplers and views."""

from rela_lightning.data.digits import Digits
from rela_lightning.data.sampler import BudgetSampler

__all__ = ["BudgetSampler", "Digits"]

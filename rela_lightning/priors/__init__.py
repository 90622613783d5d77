"""Priors: frozen networks whose features become training targets."""

from rela_lightning.priors.base import FusedPrior, Prior
from rela_lightning.priors.load import load_prior
from rela_lightning.priors.preprocess import Preprocess

__all__ = ["FusedPrior", "Preprocess", "Prior", "load_prior"]

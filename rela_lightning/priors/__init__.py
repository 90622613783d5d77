"""Priors: frozen networks whose features become training targets."""

from rela_lightning.networks.preprocess import Preprocess
from rela_lightning.priors.base import FusedPrior, Prior
from rela_lightning.priors.load import load_prior

__all__ = ["FusedPrior", "Preprocess", "Prior", "load_prior"]

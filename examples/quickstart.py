"""The cells of quickstart.ipynb; make_notebook.py writes it."""

# %% [markdown]
# # ReLA in a few cells
#
# A frozen *prior* embeds every training image once. Early in training, the features of your backbone are pulled to
# these targets; then your own objective takes over. Here on scikit-learn's handwritten digits: nothing is downloaded,
# and a few minutes on a CPU are enough.
#
# Needs `pip install 'rela-lightning[demo]'`.

# %%
import lightning.pytorch as L
import matplotlib.pyplot as plt
import torch

from rela_lightning import KNNProbe, ReLACallback, build_targets, load_prior
from rela_lightning.data import DigitsData
from rela_lightning.demo import PRIOR_FILE, PRIOR_SETTINGS
from rela_lightning.methods import BYOL
from rela_lightning.probe import extract_features, linear_evaluation
from rela_lightning.schedules import Switch

EPOCHS = 10

# %% [markdown]
# ## Images
#
# A data module brings the images under the views of the method, and under a plain view for the probes. Here is one
# digit, and what BYOL sees of it.

# %%
data = DigitsData(batch_size=64, views="byol")
image, label = data.dataset("train")[0]
views, _ = data.dataset("train", "views")[0]
figure, axes = plt.subplots(1, 3, figsize=(6, 2))
for axis, picture in zip(axes, [image, *(view.permute(1, 2, 0) for view in views)], strict=True):
    axis.imshow((picture - picture.min()) / (picture.max() - picture.min()) if picture is not image else picture)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Targets
#
# The prior was trained on pictures of clothes and comes with the package. `load_prior("open_clip:ViT-B-16/openai")`
# would take CLIP, `load_prior(my_module, image_size=..., mean=..., std=...)` a network of yours. A second call of
# `build_targets` finds what the first one wrote.

# %%
prior = load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS)
store = build_targets(prior, data.dataset("train"), "targets/digits")
print(f"{len(store)} rows of {store.dim} columns, {store.manifest['labelling_seconds']:.1f} seconds")

# %% [markdown]
# ## Training, without and with ReLA
#
# The callback is all that differs. `transform=None` keeps the data's own views; the default ones jitter colours, and
# digits have none.


# %%
class Curve(L.Callback):
    """Keeps the accuracy of the kNN probe after each epoch."""

    def __init__(self):
        self.points = []

    def on_train_epoch_end(self, trainer, pl_module):
        """Take the newest value."""
        self.points.append(float(trainer.callback_metrics["knn/top1"]))


def train(*callbacks):
    """BYOL for `EPOCHS` epochs; the backbone, and its curve."""
    L.seed_everything(0)
    model = BYOL("lightly:resnet-9", backbone_kwargs={"width": 0.25})
    curve = Curve()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = L.Trainer(max_epochs=EPOCHS, callbacks=[KNNProbe(), curve, *callbacks], **quiet)
    trainer.fit(model, datamodule=DigitsData(batch_size=64))
    return model.backbone, curve.points


curves = {}
plain, curves["BYOL"] = train()
accelerated, curves["BYOL + ReLA"] = train(ReLACallback("targets/digits", schedule=Switch(0.4), transform=None))

# %%
for name, points in curves.items():
    plt.plot(range(1, EPOCHS + 1), [100 * point for point in points], label=name)
plt.axvline(0.4 * EPOCHS, color="grey", linestyle=":", label="the switch")
plt.xlabel("epoch")
plt.ylabel("kNN top-1, %")
plt.legend()
plt.show()

# %% [markdown]
# ## Evaluation
#
# Afterwards: a linear classifier on frozen features, and an untrained backbone as the baseline.

# %%
torch.manual_seed(0)
untrained = BYOL("lightly:resnet-9", backbone_kwargs={"width": 0.25}).backbone
results = {}
for name, backbone in {"untrained": untrained, "BYOL": plain, "BYOL + ReLA": accelerated}.items():
    (x, y), (test_x, test_y) = (extract_features(backbone, data.dataset(split, "probe")) for split in ("train", "val"))
    results[name] = linear_evaluation(x, y, test_x, test_y, solver="lbfgs", standardise=True)["top1"]
    print(f"{name:>12}: {100 * results[name]:.1f} %")

# %% [markdown]
# Digits are an easy task: this shows how the parts fit together, not what ReLA gains on your data. Try a random prior
# (`load_prior("random:lightly:resnet-9", width=0.25, image_size=32, mean=0.3, std=0.3)`) before you credit the prior.

"""Makes the training that a user's options describe."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_bsqh.method.averaging import Averaging
from lightning_bsqh.method.device_refusals import check_layers
from lightning_bsqh.method.device_step import DeviceStepper
from lightning_bsqh.method.device_training import DeviceTraining
from lightning_bsqh.method.metric import make_metric
from lightning_bsqh.method.reduction import Reduction
from lightning_bsqh.method.regularization import Regularization
from lightning_bsqh.method.stepper import Stepper
from lightning_bsqh.method.training import Training
from lightning_bsqh.method.trial_schedule import TrialSchedule
from lightning_bsqh.network.layers import Layer
from lightning_bsqh.options import BSQHOptions


def make_training(layers: Sequence[Layer], regularization: Regularization, options: BSQHOptions) -> Training:
    """A training of these layers.

    Args:
        layers: The layers of the network.
        regularization: R over the training.
        options: All options, checked.

    Raises:
        ValueError: If the layers do not go together with an option.
    """
    metric = make_metric(options.metric)
    parts = (metric, regularization, options.make_augmentation(), TrialSchedule(options.longest_interval))
    averaging = Averaging(options.share_of_past)
    if options.decide == "host":
        return Training(Stepper(layers, metric, options.sweep, Reduction(), averaging), *parts)
    check_layers(layers)
    return DeviceTraining(DeviceStepper(layers, metric, options.sweep, Reduction(), averaging), *parts)

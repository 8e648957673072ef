"""All that the package uses of Lightning, under the name that the user's process has imported it by.

The same names twice: the first block is what type checkers see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_bsqh.namespace.chosen import FABRIC as FABRIC
from lightning_bsqh.namespace.chosen import NAME as NAME
from lightning_bsqh.namespace.chosen import OTHER as OTHER

if TYPE_CHECKING or NAME == "lightning.pytorch":
    import lightning.pytorch as pl
    from lightning.fabric.plugins.io import TorchCheckpointIO
    from lightning.fabric.utilities.cloud_io import get_filesystem
    from lightning.fabric.utilities.types import _PATH
    from lightning.pytorch.accelerators import Accelerator
    from lightning.pytorch.callbacks import (
        BaseFinetuning,
        GradientAccumulationScheduler,
        LearningRateFinder,
        ModelCheckpoint,
        ModelSummary,
        RichProgressBar,
        StochasticWeightAveraging,
    )
    from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
    from lightning.pytorch.loggers.logger import DummyExperiment, DummyLogger
    from lightning.pytorch.plugins import CheckpointIO, LayerSync, MixedPrecision, Precision
    from lightning.pytorch.plugins.environments import ClusterEnvironment
    from lightning.pytorch.strategies import (
        DDPStrategy,
        ModelParallelStrategy,
        ParallelStrategy,
        SingleDeviceStrategy,
        Strategy,
        StrategyRegistry,
    )
    from lightning.pytorch.trainer.states import TrainerFn
    from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
    from lightning.pytorch.utilities.model_helpers import is_overridden
    from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
    from lightning.pytorch.utilities.types import LRSchedulerConfig
else:
    import pytorch_lightning as pl
    from lightning_fabric.plugins.io import TorchCheckpointIO
    from lightning_fabric.utilities.cloud_io import get_filesystem
    from lightning_fabric.utilities.types import _PATH
    from pytorch_lightning.accelerators import Accelerator
    from pytorch_lightning.callbacks import (
        BaseFinetuning,
        GradientAccumulationScheduler,
        LearningRateFinder,
        ModelCheckpoint,
        ModelSummary,
        RichProgressBar,
        StochasticWeightAveraging,
    )
    from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme
    from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
    from pytorch_lightning.loggers.logger import DummyExperiment, DummyLogger
    from pytorch_lightning.plugins import CheckpointIO, LayerSync, MixedPrecision, Precision
    from pytorch_lightning.plugins.environments import ClusterEnvironment
    from pytorch_lightning.strategies import (
        DDPStrategy,
        ModelParallelStrategy,
        ParallelStrategy,
        SingleDeviceStrategy,
        Strategy,
        StrategyRegistry,
    )
    from pytorch_lightning.trainer.states import TrainerFn
    from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
    from pytorch_lightning.utilities.model_helpers import is_overridden
    from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
    from pytorch_lightning.utilities.types import LRSchedulerConfig

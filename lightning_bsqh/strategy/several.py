"""BSQHStrategy with several processes: Lightning's own DDPStrategy, whose step is an iteration of ours (method §5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from lightning_bsqh.namespace import DDPStrategy, pl
from lightning_bsqh.network.sharding import is_sharded
from lightning_bsqh.strategy.refusals import refuse_sharded
from lightning_bsqh.strategy.sweeps import LightningSweeps
from lightning_bsqh.strategy.together import Together


class Several(Together, DDPStrategy):
    """A process for each device, each with all parameters."""

    _trained: Sequence[bool] = ()

    @override
    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        super().setup_optimizers(trainer)
        self._unwrap_for(self._passes.sweeps)

    def _unwrap_for(self, sweeps: Any) -> None:
        if not isinstance(sweeps, LightningSweeps):
            # A pass has one exchange of gradients at its end, and no DistributedDataParallel in its micro-batches.
            self.model = self.lightning_module

    @override
    def _sweeps_now(self) -> Any:
        sweeps = super()._sweeps_now()
        self._unwrap_for(sweeps)
        return sweeps

    @override
    def configure_ddp(self) -> None:
        assert self.lightning_module is not None
        refuse_sharded(any(map(is_sharded, self.lightning_module.parameters())), None)
        self._trained = [p.requires_grad for p in self.lightning_module.parameters()]
        super().configure_ddp()

    @override
    def _own_step(self, *args: Any, **kwargs: Any) -> Any:
        module = self.lightning_module
        assert module is not None
        wrapped = self.model is not module
        if wrapped and self._trained != [p.requires_grad for p in module.parameters()]:
            # Somebody has frozen or unfrozen, of which DistributedDataParallel takes no notice.
            self.model = module
            self.configure_ddp()
        return super()._own_step(*args, **kwargs)

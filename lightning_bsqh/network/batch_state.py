"""A batch as it came, whatever training_step does to it (method §6)."""

from __future__ import annotations

from typing import Any

from lightning_bsqh.network import things
from lightning_bsqh.network.contents import Contents
from lightning_bsqh.network.reach import holding_of_value
from lightning_bsqh.network.tensor_copies import TensorCopies, is_writable
from lightning_bsqh.network.tree import version


class BatchState:
    """What is in a batch: in containers of all kinds, in attributes of objects, in arrays and tensors.

    Args:
        batch: The batch.
        tensors: Whether to copy its tensors, too.
    """

    def __init__(self, batch: Any, tensors: bool) -> None:
        self._batch = batch
        holding = holding_of_value(batch)
        self._contents = Contents(holding.things)
        self._tensors = [t for t in holding.tensors if is_writable(t) and not t.requires_grad]
        self._versions = list(map(version, self._tensors))
        self._copies = TensorCopies(self._tensors) if tensors else None
        self._values = [(value, things.value_of(value)) for value in holding.values]

    def was_written_into(self) -> bool:
        """Whether a tensor of the batch has been written into since."""
        if list(map(version, self._tensors)) != self._versions:
            return True
        # Through tensor.data nobody counts.
        return self._copies is not None and not self._copies.is_as(TensorCopies(self._tensors))

    def drop_copies(self) -> None:
        """Lets go of the copies of tensors, where nobody has written into them."""
        self._copies = None

    def again(self) -> BatchState:
        """The same batch as it is now."""
        return BatchState(self._batch, tensors=self._copies is not None)

    def restore(self) -> None:
        """Puts everything back."""
        self._contents.restore()
        if self._copies is not None:
            self._copies.restore()
        for target, value in self._values:
            if not things.same_value(things.value_of(target), value):
                things.put_value(target, value)

    def __reduce__(self) -> Any:
        # It is about these very objects: a copy of whoever holds it has none.
        return type(None), ()

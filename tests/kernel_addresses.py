"""A check of every address that interpreted kernels load from and store to.

The interpreter reads whatever memory an address points at, so a kernel that reads outside its tensors mostly passes on
the CPU, and faults or reads a neighbour's numbers on a device.
"""

from contextlib import contextmanager

import numpy as np
import torch
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor


def _storages(arguments):
    """Return the first and the one past the last address of each tensor's storage."""
    found = []
    for argument in arguments:
        if isinstance(argument, tuple):
            found += _storages(argument)
        elif isinstance(argument, TensorDescriptor):
            found += _storages([argument.base])
        elif isinstance(argument, torch.Tensor) or hasattr(argument, "base"):
            storage = getattr(argument, "base", argument).untyped_storage()
            found.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
    return found


def _outside(pointers, mask, storages):
    """Return how many of the addresses, one for each element of the mask that holds, belong to no storage."""
    addresses = pointers.data
    taken = addresses[np.broadcast_to(mask.data, addresses.shape).astype(bool)]
    if not taken.size:
        return 0
    size = pointers.get_element_ty().primitive_bitwidth // 8
    least, greatest = int(taken.min()), int(taken.max()) + size
    if any(first <= least and greatest <= end for first, end in storages):
        return 0
    inside = [(taken >= np.uint64(first)) & (taken + np.uint64(size) <= np.uint64(end)) for first, end in storages]
    return int((~np.any(inside, axis=0)).sum()) if inside else taken.size


@contextmanager
def checked_addresses():
    """Let kernels that the interpreter runs fail where they touch memory that no argument of the launch owns."""
    storages = []

    def keep(executor, *arguments):
        on_host = init(executor, *arguments)
        storages[:] = _storages([*on_host[0], *on_host[1].values()])
        return on_host

    def check(what, pointers, mask):
        outside = _outside(pointers, mask, storages)
        assert not outside, f"a kernel {what} {outside} elements outside its tensors"

    def load(builder, pointers, mask, *others, **options):
        check("loads", pointers, mask)
        return loads(builder, pointers, mask, *others, **options)

    def store(builder, pointers, value, mask, *others, **options):
        check("stores", pointers, mask)
        return stores(builder, pointers, value, mask, *others, **options)

    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    init, loads, stores = executor._init_args_hst, builder.create_masked_load, builder.create_masked_store
    executor._init_args_hst, builder.create_masked_load, builder.create_masked_store = keep, load, store
    try:
        yield
    finally:
        executor._init_args_hst, builder.create_masked_load, builder.create_masked_store = init, loads, stores

"""An emulator of a kernel in Gluon: its Python source is executed, one program after the other, on the CPU.

Partitions are threads of which one runs at a time; at every barrier, copy and product another may go on, as a random
number generator says. Copies by descriptors complete late and in any order. A product of warp groups reads its buffers
until it is waited for. What a device would answer with wrong numbers raises `EmulatorError`: a buffer that is read
before its barrier was waited for, or overwritten while it is read or before everyone has read it; numbers of a product
that may not be there yet; a copy that does not see what was written; wrong layouts; waiting for ever.
"""

from __future__ import annotations

import ast
import random
import threading
from pathlib import Path
from types import SimpleNamespace

import torch
from gluon_values import (
    FUNCTIONS,
    DotOperandLayout,
    DType,
    EmulatorError,
    NVMMADistributedLayout,
    Pointer,
    Value,
    numbers,
    scalar,
)

from attnc.runtime import gluon_kernels, kernel_math

LIBRARY = "\n".join(Path(module.__file__).read_text() for module in (kernel_math, gluon_kernels))


class Stopped(BaseException):
    """Ends the threads of partitions when another one has failed."""


class Barrier:
    """An mbarrier: a phase completes when all have arrived and all bytes have been copied."""

    def __init__(self, count):
        self.count = self.missing = count
        self.bytes = self.completed = 0

    def settle(self):
        if self.missing < 0 or self.bytes < 0:
            raise EmulatorError("more has arrived at a barrier than was expected")
        if self.missing == 0 and self.bytes == 0:
            self.completed += 1
            self.missing = self.count


class Barriers:
    def __init__(self, count):
        self.made = [None] * count
        self.shape = (count, 1)

    def index(self, number):
        return SimpleNamespace(owner=self, number=int(number))


def barrier_of(place):
    found = place.owner.made[place.number]
    if found is None:
        raise EmulatorError("a barrier is used before it is made")
    return found


class Buffer:
    """One buffer of shared memory and what is under way with it."""

    def __init__(self, shape, dtype):
        self.data = torch.full(shape, float("nan"), dtype=dtype)
        self.loading = False
        self.published = None
        self.written = False
        self.unfenced = None
        self.reading = 0
        self.readers = set()


class Shared:
    """Buffers in a row."""

    def __init__(self, dtype, shape, layout):
        self.dtype, self.shape, self.layout = dtype, tuple(shape), layout
        self.buffers = [Buffer(shape[1:], dtype.torch) for _ in range(shape[0])]

    def index(self, number):
        return View(self.buffers[int(number)], self.dtype, self.shape[1:], self.layout)


class View:
    """A buffer seen with another shape, and perhaps transposed."""

    def __init__(self, buffer, dtype, shape, layout, transposed=False):
        self.buffer, self.dtype, self.shape, self.layout = buffer, dtype, tuple(shape), layout
        self.transposed = transposed

    def reshape(self, shape):
        return View(self.buffer, self.dtype, shape, self.layout)

    def permute(self, order):
        assert tuple(order) == (1, 0)
        return View(self.buffer, self.dtype, self.shape[::-1], self.layout, not self.transposed)

    @property
    def data(self):
        if self.transposed:
            return self.buffer.data.reshape(self.shape[::-1]).T
        return self.buffer.data.reshape(self.shape)

    def load(self, layout):
        self.require_written()
        return Value(self.data.clone(), layout)

    def store(self, value):
        if self.buffer.reading or self.buffer.loading:
            raise EmulatorError("a buffer is written while it is read or filled")
        if tuple(value.shape) != self.shape or value.dtype != self.dtype:
            raise EmulatorError("what is stored has another shape or type than its buffer")
        self.buffer.data = value.data.reshape(self.buffer.data.shape).clone()
        self.buffer.published, self.buffer.written = None, True
        self.buffer.unfenced = threading.current_thread()

    def require_written(self):
        if self.buffer.loading or not (self.buffer.written or self.buffer.published):
            raise EmulatorError("a buffer is read before it is filled")


class Product:
    """A product under way."""

    def __init__(self, a, b, acc, use_acc):
        self.a, self.b, self.acc, self.use_acc = a, b, acc, use_acc
        self.layout, self.result = acc.layout, None
        self.buffers = [operand.buffer for operand in (a, b) if isinstance(operand, View)]
        for buffer in self.buffers:
            buffer.reading += 1

    def finish(self):
        result = self.a.data.float() @ self.b.data.float()
        self.result = Value(result + self.acc.data if self.use_acc else result, self.layout)
        for buffer in self.buffers:
            buffer.reading -= 1


class Descriptor:
    def __init__(self, described):
        self.tensor, self.layout = described.base, described.layout
        assert list(described.shape) == list(self.tensor.shape)
        steps = [step for length, step in zip(self.tensor.shape, described.strides, strict=True) if length > 1]
        assert steps == [step for length, step in zip(*self._sizes(), strict=True) if length > 1]
        size = self.tensor.element_size()
        assert all(step * size % 16 == 0 for step in described.strides[:-1])
        shape = tuple(described.block_shape)
        self.block_type = SimpleNamespace(shape=shape, nbytes=torch.Size(shape).numel() * size)
        self.dtype = DType(self.tensor.dtype)

    def _sizes(self):
        return self.tensor.shape, self.tensor.stride()

    def window(self, coordinates):
        """Return the part of a block that lies inside the tensor, in the tensor and in the block."""
        places, within = [], []
        for first, size, end in zip(map(int, coordinates), self.block_type.shape, self.tensor.shape, strict=True):
            low, high = max(first, 0), max(min(first + size, end), max(first, 0))
            low = min(low, high)
            places.append(slice(low, high))
            within.append(slice(low - first, high - first))
        return tuple(places), tuple(within)


class Partition(threading.Thread):
    def __init__(self, machine, function, arguments):
        super().__init__(daemon=True)
        self.machine, self.function, self.arguments = machine, function, arguments
        self.turn, self.ready = threading.Semaphore(0), lambda: True
        self.products, self.observed, self.done, self.error = [], {}, False, None

    def run(self):
        self.turn.acquire()
        try:
            if not self.machine.stopped:
                self.function(*self.arguments)
                if self.products:
                    raise EmulatorError("a partition ends before its products")
        except Stopped:
            pass
        except BaseException as error:
            self.error = error
        self.done = True
        self.machine.back.release()


class Machine:
    """Runs programs of one kernel."""

    def __init__(self, source, seed=0):
        self.random = random.Random(seed)
        self.copies, self.buffers, self.partitions, self.stopped, self.stores = [], [], [], False, 0
        self.back = threading.Semaphore(0)
        self.program = 0
        common = SimpleNamespace(**FUNCTIONS, core=SimpleNamespace(**FUNCTIONS))
        gl = SimpleNamespace(
            **FUNCTIONS,
            program_id=lambda axis: scalar(self.program),
            allocate_shared_memory=self.allocate,
            warp_specialize=self.specialize,
        )
        jit = lambda *function, **_: function[0] if function else lambda kernel: kernel  # noqa: E731
        self.names = {
            "gl": gl, "tl": common, "gluon": SimpleNamespace(jit=jit), "triton": SimpleNamespace(jit=jit),
            "mbarrier": SimpleNamespace(
                MBarrierLayout=lambda: "barriers", init=self.make_barrier, expect=self.expect, arrive=self.arrive,
                wait=self.wait,
            ),
            "tma": SimpleNamespace(store_wait=self.wait_for_stores), "load_described": self.load_described,
            "store_described": self.store_described, "fence_async_shared": self.fence,
            "warpgroup_mma": self.multiply, "warpgroup_mma_wait": self.wait_for_products, "mma_v2": mma_v2,
            "range": numbers,
        }  # fmt: skip
        for text in (LIBRARY, source):
            functions = [node for node in _parsed(text).body if isinstance(node, ast.FunctionDef) and _is_jitted(node)]
            module = ast.Module([ast.parse("from __future__ import annotations").body[0], *functions], [])
            exec(compile(module, "<kernel>", "exec"), self.names)

    # programs

    def launch(self, kernel, grid, arguments):
        """Run all programs of a launch."""
        function = self.names[kernel]
        given = {name: _argument(name, value, function) for name, value in arguments.items()}
        for self.program in range(grid):
            self.copies, self.buffers, self.stores = [], [], 0
            function(**given)
            if self.stores or self.copies:
                raise EmulatorError("a program ends before its copies")

    def specialize(self, partitions, warps, registers):
        if list(warps) != [4, 1] or sum(registers) * 4 > 64 * 1024 // 128 * 4 or len(partitions) != 3:
            raise EmulatorError("partitions have other warps than the kernel's layouts")
        self.partitions = [Partition(self, function, arguments) for function, arguments in partitions]
        self.stopped = False
        for partition in self.partitions:
            partition.start()
        try:
            while not all(partition.done for partition in self.partitions):
                self.step()
        finally:
            self.stopped = True
            for partition in self.partitions:
                partition.turn.release()
                partition.join()

    def step(self):
        """Let one partition go on, or let a copy arrive."""
        able = [one for one in self.partitions if not one.done and one.ready()]
        if self.copies and (not able or self.random.random() < 0.3):
            self.copies.pop(self.random.randrange(len(self.copies)))()
            return
        if not able:
            raise EmulatorError("all partitions wait for ever")
        chosen = self.random.choice(able)
        chosen.turn.release()
        self.back.acquire()
        if chosen.error is not None:
            raise chosen.error

    def pause(self, ready=lambda: True):
        """Let other partitions go on until this one is able to."""
        current = threading.current_thread()
        if not isinstance(current, Partition):
            if not ready():
                raise EmulatorError("the whole program waits for ever")
            return
        current.ready = ready
        self.back.release()
        current.turn.acquire()
        if self.stopped:
            raise Stopped

    # shared memory and barriers

    def allocate(self, dtype, shape, layout):
        if layout == "barriers":
            return Barriers(shape[0])
        shared = Shared(dtype, shape, layout)
        self.buffers.extend(shared.buffers)
        return shared

    def make_barrier(self, place, count):
        place.owner.made[place.number] = Barrier(count)

    def expect(self, place, size):
        barrier = barrier_of(place)
        barrier.bytes += size
        barrier.missing -= 1
        barrier.settle()

    def arrive(self, place, count=1):
        barrier = barrier_of(place)
        barrier.missing -= count
        barrier.settle()
        self.pause()

    def wait(self, place, phase):
        barrier, parity = barrier_of(place), int(phase)
        self.pause(lambda: barrier.completed % 2 != parity)
        observed = threading.current_thread().observed
        observed[barrier] = max(observed.get(barrier, 0), barrier.completed)

    def fence(self):
        for buffer in self.buffers:
            if buffer.unfenced is threading.current_thread():
                buffer.unfenced = None

    # copies by descriptors

    def load_described(self, described, coordinates, place, view):
        buffer, barrier = view.buffer, barrier_of(place)
        if view.layout != described.layout or view.shape != described.block_type.shape:
            raise EmulatorError("a buffer has another layout than its descriptor")
        if buffer.reading or buffer.loading:
            raise EmulatorError("a tile is overwritten while a product reads it")
        if buffer.published and len(buffer.readers) < 2:
            raise EmulatorError("a tile is overwritten before both groups have read it")
        buffer.data, buffer.loading, buffer.published = torch.full_like(buffer.data, float("nan")), True, None
        places, within = described.window(coordinates)

        def finish():
            buffer.data = torch.zeros_like(buffer.data)
            buffer.data[within] = described.tensor[places]
            buffer.loading, buffer.readers, buffer.published = False, set(), (barrier, barrier.completed + 1)
            barrier.bytes -= described.block_type.nbytes
            barrier.settle()

        self.copies.append(finish)
        self.pause()

    def store_described(self, described, coordinates, view):
        view.require_written()
        if view.buffer.unfenced is not None:
            raise EmulatorError("a copy may not see what was written: a fence is missing")
        places, within = described.window(coordinates)
        described.tensor[places] = view.buffer.data[within]
        self.stores += 1

    def wait_for_stores(self, pending):
        self.stores = min(self.stores, pending)

    # products

    def multiply(self, a, b, acc, use_acc=True, is_async=False):
        current = threading.current_thread()
        if not is_async or not isinstance(acc, Value):
            raise EmulatorError("kernels start products on sums that are there")
        layout = acc.layout
        rows, columns = acc.shape
        if not isinstance(layout, NVMMADistributedLayout) or layout.version != (3, 0):
            raise EmulatorError(f"{layout} is no layout of such products")
        if layout.instr_shape != (16, columns, 16) or layout.warps_per_cta != (4, 1) or rows != 64:
            raise EmulatorError(f"a group of warps has no {rows} x {columns} as {layout}")
        if isinstance(a, Value) and a.layout != DotOperandLayout(0, layout, 2):
            raise EmulatorError(f"{a.layout} is no operand of {layout}")
        for operand in (a, b):
            if isinstance(operand, View):
                self.read(operand, current)
        product = Product(a, b, acc, use_acc)
        current.products.append(product)
        self.pause()
        return product

    def read(self, view, current):
        """Check that a partition may read a buffer, and note that it does."""
        view.require_written()
        barrier, completed = view.buffer.published
        if current.observed.get(barrier, 0) < completed:
            raise EmulatorError("a buffer is read before its barrier was waited for")
        view.buffer.readers.add(current)

    def wait_for_products(self, count, deps):
        current = threading.current_thread()
        while len(current.products) > count:
            current.products.pop(0).finish()
        found = [dep.result if isinstance(dep, Product) else dep for dep in deps]
        if any(one is None for one in found):
            raise EmulatorError("a product is used before it is finished")
        return found[0] if len(found) == 1 else tuple(found)


def mma_v2(a, b, acc):
    for number, operand in enumerate((a, b)):
        if operand.layout != DotOperandLayout(number, acc.layout, 2):
            raise EmulatorError(f"{operand.layout} is no operand of {acc.layout}")
    return Value(a.data.float() @ b.data.float() + acc.data, acc.layout)


def _argument(name, value, function):
    if "constexpr" in str(function.__annotations__.get(name, "")) or value is None:
        return value
    if isinstance(value, torch.Tensor):
        return Pointer.of(value)
    return scalar(value) if isinstance(value, int | float) else Descriptor(value)


def _is_jitted(node):
    return any(".jit" in ast.unparse(decorator) for decorator in node.decorator_list)


_TREES: dict[str, ast.Module] = {}


def _parsed(text):
    if text not in _TREES:
        _TREES[text] = ast.parse(text)
    return _TREES[text]

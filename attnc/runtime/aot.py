"""Compiling generated Triton kernels without the device that they are for, and what the compiler made of them.

Nothing runs: the launcher is called on tensors without data, and what it would have launched is compiled instead.
Triton must not be in its interpreter's mode (`TRITON_INTERPRET`).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.gluon_kernels import TensorDescriptor
from attnc.runtime.gluon_launch import GluonLaunch, prefer_template
from attnc.runtime.gradient_launch import GradientLaunch
from attnc.runtime.gradient_strips import PAIR_AXES, PairSum
from attnc.runtime.kernel_launch import compile_options
from attnc.runtime.launch import Begun
from attnc.runtime.pairs import Pairs, Sizes
from attnc.runtime.program import Program, TableRead, TensorArgument
from attnc.runtime.tiles import Tiles, assume_target
from attnc.runtime.tuned import watch_kernels

ARCHITECTURES = {
    "sm_80": ("cuda", 80, 32),
    "sm_86": ("cuda", 86, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
"""Backend, architecture and threads of a warp of each target."""

SHARED_LIMITS = {"sm_80": 163, "sm_86": 99, "sm_90": 227, "sm_100": 227, "gfx942": 64}
"""Shared memory that one program may use, in KiB."""

LENGTH = 4096
"""Queries and keys that a launcher is told of; kernels do not depend on it."""

_MATRIX = {
    "cuda": re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)\b"),
    "hip": re.compile(r"\bv_mfma_\w+"),
}


@dataclass(frozen=True, slots=True)
class KernelReport:
    """What a compiler made of a kernel.

    Attributes:
        kernel: name of its function.
        identity: what tuned tiles know it by.
        registers: per thread.
        spills: bytes of registers kept in memory, per thread.
        tiles: what it was compiled with.
        shared: bytes of shared memory of a program.
        shared_limit: bytes that a program of this target may use.
        matrix_instructions: number of them in the code.
        shares: how many programs share the keys of the same rows.
        joined: how many programs' sums it joins, instead of walking keys; 0 for none.
        assembly: PTX or AMD assembly.
        binary: what the device would be given.
    """

    kernel: str
    identity: str
    target: str
    dtype: str
    head_size: int
    registers: int
    spills: int
    tiles: Tiles
    shared: int
    shared_limit: int
    matrix_instructions: int
    shares: int
    joined: int
    assembly: str
    binary: bytes

    @property
    def name(self) -> str:
        """What the launch computes: the kernel's name, and which of its steps where it is launched in several."""
        name = self.kernel.removeprefix("_").removesuffix("_kernel")
        if self.joined:
            return f"{name}, sums joined"
        return f"{name}, keys shared" if self.shares > 1 else name

    @property
    def is_clean(self) -> bool:
        """Whether a kernel of a 16-bit type is without spills, on matrix units, and fits in shared memory."""
        multiplies = self.matrix_instructions > 0 or self.joined > 0
        return self.fits and (self.dtype == "float32" or (self.spills == 0 and multiplies))

    @property
    def fits(self) -> bool:
        """Whether the target can launch it."""
        return self.shared <= self.shared_limit


def compile_kernels(
    module: ModuleType,
    target: str,
    dtype: torch.dtype,
    head_size: int,
    *,
    name: str | None = None,
    value_size: int | None = None,
    precision: str | None = None,
    tiles: Tiles | None = None,
    shares: int = 0,
    gradients: bool = False,
    wanted: Callable[[str], bool] = lambda kernel: True,
    template: str = "tl",
) -> tuple[KernelReport, ...]:
    """Compile the kernels of one attention of a generated module, in the order in which a call runs them.

    Args:
        module: imported.
        target: one of `ARCHITECTURES`.
        dtype: of query, key and value.
        head_size: of query and key.
        name: of the attention; the module's only one unless said.
        value_size: of the value; `head_size` unless said.
        precision: of products of float32.
        tiles: instead of the module's own for this target, type and head size.
        shares: programs that share the keys of the same rows, which are then followed by a launch that joins what they
            leave; 0 for what suits a call with many rows.
        gradients: compile the kernels of gradients instead.
        wanted: tells by the name of a kernel's function whether to compile it.
        template: `gluon` for kernels in Gluon, where the module has them.

    Raises:
        ValueError: an unknown target, or a module with several attentions and no `name`.
        RuntimeError: Triton is missing or interprets its kernels.
    """
    if target not in ARCHITECTURES:
        raise ValueError(f"unknown target {target}; known: {', '.join(ARCHITECTURES)}")
    program = find_program(module, name)
    record = record_gradients if gradients else record_launches
    with prefer_template(template):
        launches = record(module, program, target, dtype, head_size, value_size, precision, tiles, shares)
    chosen = (launch for launch in launches if wanted(launch.kernel.__name__))
    return tuple(report_launch(launch, target, dtype, head_size) for launch in chosen)


def compile_kernel(
    module: ModuleType,
    target: str,
    dtype: torch.dtype,
    head_size: int,
    *,
    name: str | None = None,
    value_size: int | None = None,
    precision: str | None = None,
    tiles: Tiles | None = None,
) -> KernelReport:
    """Compile the first kernel that `compile_kernels` would; most attentions have one."""
    sizes = {"value_size": value_size, "precision": precision, "tiles": tiles}
    return compile_kernels(module, target, dtype, head_size, name=name, **sizes)[0]  # type: ignore[arg-type]


def compile_recorded(launch: Recorded, target: str, dtype: torch.dtype, head_size: int = 0) -> KernelReport:
    """Compile a kernel with the arguments of one launch of it. Raises as `compile_kernels` does."""
    if target not in ARCHITECTURES:
        raise ValueError(f"unknown target {target}; known: {', '.join(ARCHITECTURES)}")
    return report_launch(launch, target, dtype, head_size)


def report_launch(launch: Recorded, target: str, dtype: torch.dtype, head_size: int) -> KernelReport:
    """Compile what would have been launched and return what the compiler made of it."""
    kernel, arguments = launch.kernel, launch.arguments
    compiled = _compile(kernel, arguments, target)
    backend = ARCHITECTURES[target][0]
    if backend == "cuda":
        assembly = compiled.asm["ptx"]
        registers, spills = nvidia_resources(compiled.asm["cubin"])
    else:
        assembly = compiled.asm["amdgcn"]
        registers, spills = (
            _greatest(assembly, r"\.vgpr_count:\s*(\d+)"),
            4 * _greatest(assembly, r"\.vgpr_spill_count:\s*(\d+)"),
        )
    return KernelReport(
        kernel=kernel.__name__,
        identity=launch.identity,
        target=target,
        dtype=str(dtype).removeprefix("torch."),
        head_size=head_size,
        registers=registers,
        spills=spills,
        tiles=_tiles(arguments),
        shared=compiled.metadata.shared,
        shared_limit=SHARED_LIMITS[target] * 1024,
        matrix_instructions=len(_MATRIX[backend].findall(assembly)),
        shares=arguments.get("SHARES", 1),
        joined=arguments.get("JOINED", 0),
        assembly=assembly,
        binary=compiled.asm["cubin" if backend == "cuda" else "hsaco"],
    )


def _tiles(arguments: Mapping[str, Any]) -> Tiles:
    names = {"query": "BLOCK_M", "key": "BLOCK_N", "warps": "num_warps", "stages": "num_stages"}
    more = {"descriptors": "DESCRIPTORS", "chunk": "CHUNK_N", "fused": "FUSED", "persistent": "PERSISTENT"}
    found = {field: arguments[name] for field, name in (names | more).items() if name in arguments}
    return Tiles(**found)


def find_program(module: ModuleType, name: str | None = None) -> Program:
    """Return the program of an attention of a generated module. Raises ValueError if it is not the only one."""
    suffix = "_program"
    found = {key[1 : -len(suffix)]: value for key, value in vars(module).items() if key.endswith(suffix)}
    programs = {key: value for key, value in found.items() if hasattr(value, "launch")}
    if name is not None and name in programs:
        return programs[name]  # type: ignore[no-any-return]
    if name is not None or len(programs) != 1:
        raise ValueError(f"{module.__name__} has the attentions {', '.join(programs)}; name one of them")
    return next(iter(programs.values()))  # type: ignore[no-any-return]


def record_launches(
    module: ModuleType,
    program: Program,
    target: str,
    dtype: torch.dtype,
    head_size: int,
    value_size: int | None = None,
    precision: str | None = None,
    tiles: Tiles | None = None,
    shares: int = 0,
) -> list[Recorded]:
    """Call launchers on tensors without data; return the kernels that they would have launched, and their arguments.

    Those for sequences of any length come first, then those of the launchers for short ones that are not among them,
    and then those that run beside a library.
    """
    meta = _MetaCall.of(program, dtype, head_size, value_size)
    state = meta.state if program.kept else None

    def call(launch: Any) -> None:
        launch(meta.query, meta.key, meta.value, meta.out, state, meta.inputs, None, precision, None)

    every = [program.launch, *(short.launch for short in program.short)]
    if program.part is not None and program.part.launch is not None:
        every.append(partial(program.part.launch, begun=Begun(0, meta.out, meta.state)))
    return _recorded(module, program, every, call, target, tiles, shares)


def record_gradients(
    module: ModuleType,
    program: Program,
    target: str,
    dtype: torch.dtype,
    head_size: int,
    value_size: int | None = None,
    precision: str | None = None,
    tiles: Tiles | None = None,
    shares: int = 0,
) -> list[Recorded]:
    """Return the kernels of gradients in the same way; all gradients of tables are wanted."""
    meta = _MetaCall.of(program, dtype, head_size, value_size)
    state, delta = (meta.state, torch.empty(2, 4, LENGTH, device="meta")) if program.kept else (None, None)
    sums = [_sum_of(read) for read in program.reads]

    def call(launch: Any) -> None:
        launch(meta.query, meta.key, meta.value, meta.out, state, delta, sums, meta.inputs, None, precision, None)

    every = [program.gradients, *(short.gradients for short in program.short)]
    every += [] if program.part is None else [program.part.gradients]
    found = _recorded(module, program, every, call, target, tiles, shares)
    # what pairs contribute is left by the same kernel for each strip of rows
    return list({launch.kernel.__name__: launch for launch in found}.values())


def _sum_of(read: TableRead) -> Tensor | PairSum:
    """Return where a read's gradient goes: nothing is ever there."""
    if read.axes in PAIR_AXES:
        return _NoPairs(Pairs(Sizes(1, 1, 1, 1, 1, 1, 1), {}, torch.float32, torch.device("meta")), read, {})
    return torch.empty(2, 4, LENGTH, device="meta")


class _NoPairs(PairSum):
    """Takes what is never computed."""

    def add(self, strip: GradientLaunch, pairs: Tensor) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class _MetaCall:
    """Arguments of a call, without data."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    state: Tensor
    inputs: tuple[Tensor | float | int, ...]

    @classmethod
    def of(cls, program: Program, dtype: torch.dtype, head_size: int, value_size: int | None) -> _MetaCall:
        sizes = head_size, head_size, value_size or head_size, value_size or head_size
        query, key, value, out = (torch.empty(2, 4, LENGTH, size, dtype=dtype, device="meta") for size in sizes)
        known = Sizes(B=2, H=4, N=LENGTH, M=LENGTH, D=head_size, g=1, value_size=value.shape[3])
        inputs = tuple(_stand_in(tensor, known) for tensor in program.tensors)
        state = torch.empty(program.state_shape(2, 4, LENGTH), device="meta")
        return cls(query, key, value, out, state, inputs)


def _recorded(
    module: ModuleType,
    program: Program,
    launchers: Iterable[Any],
    call: Callable[[Any], None],
    target: str,
    tiles: Tiles | None,
    shares: int,
) -> list[Recorded]:
    """Call launchers and return what they would have launched, kernels of later ones only where they are others."""
    launches: list[Recorded] = []
    seen: set[str] = set()
    with assume_target(target, tiles, shares=shares):
        for launch in launchers:
            if launch is None:
                raise RuntimeError(f"{program.name} has no Triton kernel here: is triton installed?")
            own: list[Recorded] = []
            with _recording(module, own):
                call(launch)
            launches.extend(one for one in own if one.kernel.__name__ not in seen)
            seen |= {one.kernel.__name__ for one in own}
    return launches


def _stand_in(tensor: TensorArgument, sizes: Sizes) -> Tensor | float | int:
    """Return an input without data: 32-bit floats, 64-bit ints, numbers for scalars."""
    if not tensor.dims:
        return 0.5 if tensor.type == "float" else 7
    dtype = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}[tensor.type]
    shape = [64 if dim is None else int(dim(sizes)) for dim in tensor.dims]
    return torch.empty(shape, dtype=dtype, device="meta")


@dataclass(frozen=True, slots=True)
class Recorded:
    """A launch that did not happen: the kernel, what tuned tiles know it by, and its arguments by name."""

    kernel: Any
    identity: str
    arguments: dict[str, Any]


class _Recorder:
    """Stands in for a kernel and keeps what it is called with."""

    def __init__(self, kernel: Any, identity: str, launches: list[Recorded]) -> None:
        self._kernel = kernel
        self._identity = identity
        self._launches = launches

    def __getitem__(self, grid: object) -> _Recorder:
        return self

    def __call__(self, **arguments: Any) -> None:
        self._launches.append(Recorded(self._kernel, self._identity, arguments))


@contextmanager
def _recording(module: ModuleType, launches: list[Recorded]) -> Iterator[None]:
    names = ("launchable", "gluon_launchable")
    original = {name: vars(module)[name] for name in names if name in vars(module)}
    try:
        with watch_kernels() as asked:
            recorders = {
                "launchable": lambda kernel, call: _Recorder(kernel, asked[-1], launches),
                "gluon_launchable": lambda kernel, call: _recorder_of(call, kernel, f"{asked[-1]} gluon", launches),
            }
            vars(module).update({name: recorders[name] for name in original})
            yield
    finally:
        vars(module).update(original)


def _recorder_of(call: GluonLaunch, kernel: Any, identity: str, launches: list[Recorded]) -> Any:
    """Return what stands in for a kernel in Gluon, whose tiles are no arguments of its own."""
    tiles = {"BLOCK_M": call.tiles.query, "num_warps": call.tiles.warps, "num_stages": call.tiles.stages}
    return partial(_Recorder(kernel, identity, launches), **tiles)


def _compile(kernel: Any, arguments: dict[str, Any], target: str) -> Any:
    """Compile a jitted kernel for what a launch would have specialised it to."""
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from triton.experimental.gluon._runtime import GluonASTSource
    except ImportError as error:
        raise RuntimeError("compiling ahead of time needs triton") from error
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError("compiling ahead of time does not work with TRITON_INTERPRET set")
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, parameter in enumerate(kernel.params):
        argument = arguments[parameter.name]
        free = not parameter.do_not_specialize
        if parameter.is_constexpr or argument is None or (free and _is_one(argument)):
            signature[parameter.name] = "constexpr"
            constants[(position,)] = argument
            continue
        signature[parameter.name] = _type_name(argument)
        if free and (isinstance(argument, Tensor) or (isinstance(argument, int) and argument % 16 == 0)):
            attributes[(position,)] = [["tt.divisibility", 16]]
    made = GluonASTSource if kernel.is_gluon() else ASTSource
    source = made(kernel, signature, constants, attributes)
    machine = GPUTarget(*ARCHITECTURES[target])
    # kernels of gradients have nothing to join, and may use all registers as well; those in Gluon divide them up
    all_registers = arguments.get("JOINED", 1) > 0 and not kernel.is_gluon()
    options = compile_options(all_registers, nvidia=machine.backend == "cuda")
    options |= {name: arguments[name] for name in ("num_warps", "num_stages")}
    return triton.compile(source, target=machine, options=options)


def _is_one(argument: Any) -> bool:
    return isinstance(argument, int) and argument == 1


def _type_name(argument: Any) -> str:
    if isinstance(argument, Tensor):
        names = {
            torch.float16: "fp16",
            torch.bfloat16: "bf16",
            torch.float32: "fp32",
            torch.float64: "fp64",
            torch.int32: "i32",
            torch.int64: "i64",
            torch.bool: "i1",
        }
        return f"*{names[argument.dtype]}"
    if isinstance(argument, float):
        return "fp32"
    if TensorDescriptor is not None and isinstance(argument, TensorDescriptor):
        element = _type_name(argument.base).removeprefix("*")
        return f"tensordesc<{element}[{','.join(map(str, argument.block_shape))}],{argument.layout!r}>"
    return "i32" if -(2**31) <= argument < 2**31 else "i64"


def nvidia_resources(cubin: bytes) -> tuple[int, int]:
    """Return registers and bytes spilled of a kernel, as the tool that comes with Triton reads them from a binary."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [str(tool), "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _greatest(text, r"REG:(\d+)"), max(_greatest(text, r"STACK:(\d+)"), _greatest(text, r"LOCAL:(\d+)"))


def _greatest(text: str, pattern: str) -> int:
    """Return the greatest number that a pattern finds, 0 if none."""
    return max((int(found) for found in re.findall(pattern, text)), default=0)

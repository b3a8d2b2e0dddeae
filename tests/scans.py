"""Causal scans to try, and their definition: dense, in float64."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

LENGTHS = (1, 7, 63, 64, 65, 100, 257)
FORMS = ("plain", "decay", "steep", "growing", "holes", "rows", "keys")
"""What weights are like: 1; falling with the distance; falling to exp(-3000) within a few rows; growing toward later
keys, under small rows; some keys left out, and all of the first ones; of rows or of keys alone."""

NAMES = ("x", "y", "z", "rows", "keys", "state", "state_log")


@dataclass(frozen=True)
class Scan:
    """Arguments of a scan."""

    x: Tensor
    y: Tensor
    z: Tensor
    rows: Tensor | None
    keys: Tensor | None
    state: Tensor | None
    state_log: Tensor | None
    heads: int
    reverse: bool

    @property
    def tensors(self):
        return tuple(getattr(self, name) for name in NAMES)

    @property
    def options(self):
        return {"heads": self.heads, "reverse": self.reverse}

    def replaced(self, **changed):
        return replace(self, **changed)

    def to(self, dtype):
        """Return the same with rows and keys of a type."""
        return replace(self, x=self.x.to(dtype), y=self.y.to(dtype), z=self.z.to(dtype))


def make_scan(
    length, features, values, groups=(2, 2, 2, 2, 2), *, form="plain", state="none", reverse=False, seed=0
):  # fmt: skip
    """Return a scan of random numbers.

    Args:
        length: of the rows.
        features: numbers of a row or key.
        values: numbers of what is summed.
        groups: batch, heads, and the heads of `x`, `y` and `z`.
        form: one of `FORMS`.
        state: what the scan starts from: `none`, `plain`, or `with log`.
        reverse: walk from the end.
        seed: of the numbers.
    """
    random = torch.Generator().manual_seed(seed)
    batch, heads, of_x, of_y, of_z = groups

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    x, y = draw(batch, of_x, length, features), draw(batch, of_y, length, features)
    z = draw(batch, of_z, length, values)
    rows, keys = _make_logs(form, length, heads, draw)
    if reverse:
        rows, keys = (None if part is None else part.flip(-1) for part in (rows, keys))
    start = None if state == "none" else draw(batch, heads, features, values)
    limit = 0.0 if rows is None or not length else -rows.amax().item()
    log = torch.full((1, heads), min(limit, 1.0) - 0.5).double() if state == "with log" else None
    return Scan(x, y, z, rows, keys, start, log, heads, reverse)


def _make_logs(form, length, heads, draw):
    place = torch.arange(length, dtype=torch.float64)
    rate = torch.tensor([0.02, 0.7, 0.0, 5.0, 0.1, 1.0], dtype=torch.float64)[:heads, None]
    match form:
        case "plain":
            return None, None
        case "decay":
            return (-rate * place)[None] - 0.1, (rate * place)[None]
        case "steep":
            return (-1000 * place)[None, None], (1000 * place)[None, None]
        case "growing":
            keys = (50 * place).clamp(max=3000)[None, None].expand(1, heads, length)
            return torch.full((1, 1, length), -3000.0).double(), keys
        case "holes":
            keys = (rate * place)[None].masked_fill(draw(1, heads, length) < 0.3, -torch.inf)
            keys[..., : length // 3] = -torch.inf
            return (-rate * place)[None], keys
        case "rows":
            return -draw(1, heads, length).abs(), None
        case "keys":
            return None, -draw(1, 1, length).abs()


def _parts(scan):
    x, y, z = (part.double().repeat_interleave(scan.heads // part.shape[1], 1) for part in (scan.x, scan.y, scan.z))
    zeros = torch.zeros(1, 1, x.shape[2], dtype=torch.float64)
    rows, keys = (zeros if part is None else part for part in (scan.rows, scan.keys))
    log = torch.zeros(1, 1, dtype=torch.float64) if scan.state_log is None else scan.state_log
    return x, y, z, rows, keys, log


def definition(scan):
    """Return the output, with a weight for every pair."""
    x, y, z, rows, keys, log = _parts(scan)
    seen = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool).tril()
    seen = seen.T if scan.reverse else seen
    weights = (rows[..., :, None] + keys[..., None, :]).masked_fill(~seen, -torch.inf).exp()
    out = (weights * (x @ y.mT)) @ z
    if scan.state is not None:
        out = out + (rows + log[..., None]).exp()[..., None] * (x @ scan.state.double())
    return out


def end_of_definition(scan, end_log):
    """Return the sums at the end, without `exp(end_log)`."""
    _, y, z, _, keys, log = _parts(scan)
    end_log = torch.zeros(1, 1, dtype=torch.float64) if end_log is None else end_log
    end = (y * (keys - end_log[..., None]).exp()[..., None]).mT @ z
    return end if scan.state is None else end + scan.state * (log - end_log).exp()[..., None, None]

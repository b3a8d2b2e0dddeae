"""Products of blocks that are views."""

import pytest
import torch

from attnc.runtime.bands import FULL, Band
from attnc.runtime.views import block_product, key_view, row_view

BANDS = {
    "overlapping": Band(0, 8, 3, ((24, FULL),), count=5, row_step=8, key_step=8),
    "apart": Band(2, 4, 0, ((8, FULL),), count=4, row_step=10, key_step=12),
    "same keys": Band(0, 8, 5, ((16, FULL),), count=6, row_step=8, key_step=0),
    "single": Band(4, 8, 1, ((40, FULL),)),
    "gathered": Band(4, 8, 1, ((10, FULL), (6, FULL)), starts=(1, 30)),
}


@pytest.mark.parametrize("band", BANDS.values(), ids=BANDS)
@pytest.mark.parametrize("joined", [True, False])
def test_products_of_blocks_are_those_of_their_copies(band, joined):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, length, 3, 16, generator=generator).transpose(1, 2) for length in (64, 80))
    if joined:
        query, key = query.contiguous(), key.contiguous()
    rows, keys = row_view(query, band), key_view(key, band)
    products = block_product(rows, keys.transpose(-1, -2))
    expected = rows.double() @ keys.double().transpose(-1, -2)
    torch.testing.assert_close(products, expected.float())
    sums = block_product(products, keys)
    torch.testing.assert_close(sums, (expected @ keys.double()).float())
    turned = block_product(products.transpose(-1, -2), rows)
    torch.testing.assert_close(turned, (expected.transpose(-1, -2) @ rows.double()).float())

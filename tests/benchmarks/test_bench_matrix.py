"""The roofline's products, and the profile of the linears: threads that run side by side count as one."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from benchmarks.matrix import THREADED, Products, linears_profile


def test_products_are_those_of_every_linear_on_every_token() -> None:
    threads = torch.get_num_threads()
    products = Products([(8, 16), (16, 4)])
    assert products.multiply_adds == 8 * 16 + 16 * 4
    for kind in products.kinds:
        found = linears_profile(lambda kind=kind: products.run(kind, 5))
        calls = sum(one["calls"] * found["lanes"] for one in found["operators"] if one["name"] in ("aten::mm", "mkldnn::_linear_pointwise"))
        assert calls == 2 * (min(5, threads) if kind == THREADED else 1), kind
    torch.set_num_threads(threads)


@pytest.mark.parametrize("lanes", [1, 2])
def test_lanes_are_averaged_not_summed(lanes: int) -> None:
    x, together = torch.randn(64, 64), Barrier(lanes)

    def product(_: int) -> None:
        together.wait(5)
        torch.mm(x, x)

    with ThreadPoolExecutor(lanes) as pool:
        found = linears_profile(lambda: list(pool.map(product, range(lanes))))
    (mm,) = (one for one in found["operators"] if one["name"] == "aten::mm")
    assert found["lanes"] == lanes
    assert mm["calls"] == 1
    assert mm["ms"] == pytest.approx(found["linears ms"])
    assert 0 < found["linears ms"] <= found["whole ms"]

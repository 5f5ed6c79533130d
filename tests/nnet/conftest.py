"""What the tests of cells share."""

import pytest
import torch

from speechbrain_summarymixing.nnet import reference


@pytest.fixture(scope="session")
def assert_equal_to_reference():
    """Compares a cell with the equations."""

    def check(cell, x, twin=reference.summary_mixing, **masks):
        """Outputs, and gradients of a random projection by input and every parameter."""
        results = []
        direction = torch.randn(*x.shape[:2], cell.d_out, dtype=x.dtype)
        for run in (
            lambda x: cell(x, **masks)[0],
            lambda x: twin(cell, x, **masks),
        ):
            cell.zero_grad()
            leaf = x.clone().requires_grad_()
            output = run(leaf)
            (output * direction).sum().backward()
            gradients = {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in cell.named_parameters()
            }
            results.append((output.detach(), leaf.grad, gradients))
        (output, by_input, by_weight), (expected, expected_by_input, expected_by_weight) = results
        torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-8)
        torch.testing.assert_close(by_input, expected_by_input, atol=1e-10, rtol=1e-8)
        for name, gradient in by_weight.items():
            torch.testing.assert_close(gradient, expected_by_weight[name], atol=1e-10, rtol=1e-8)

    return check

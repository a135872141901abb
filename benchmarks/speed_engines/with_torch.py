"""Opacus over the same networks in PyTorch: hooks, functorch and ghost clipping, and PyTorch's ordinary step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from speed_engines.shapes import CLASSES, HIDDEN, PROJECTED, Shapes, records
from torch import nn
from torch.nn import functional


def make_encoder(shapes: Shapes) -> nn.Module:
    """The fixed encoder; its first layer is the projection, which reads the image alone."""
    projection = nn.Linear(shapes.pixels, PROJECTED, bias=False)
    head = nn.Sequential(
        *(nn.Linear(PROJECTED + CLASSES, HIDDEN), nn.ELU(), nn.Linear(HIDDEN, HIDDEN), nn.ELU()),
        nn.Linear(HIDDEN, 2 * shapes.latent),
    )
    return nn.ModuleList([projection, head]).requires_grad_(False)


def make_decoder(shapes: Shapes) -> nn.Sequential:
    """Channels first, as PyTorch has it; otherwise as in TensorFlow."""
    stack, width = [], shapes.latent + CLASSES
    for units in shapes.dense:
        stack += [nn.Linear(width, units), nn.ReLU()]
        width = units
    if shapes.start is None:
        return nn.Sequential(*stack, nn.Linear(width, shapes.pixels))
    height, across, channels = shapes.start
    stack.append(nn.Unflatten(1, (channels, height, across)))
    for filters in shapes.filters:
        stack += [nn.ConvTranspose2d(channels, filters, 4, 2, 1), nn.ReLU()]
        channels = filters
    return nn.Sequential(*stack[:-1], nn.Flatten())


class _ExampleLoss:
    """Nats of each example; Opacus' ghost loss sets `reduction`."""

    reduction = "mean"

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nats = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        return nats.mean() if self.reduction == "mean" else nats


def build(engine: str, shapes: Shapes, batch: int, draws: int) -> Callable[[], None]:
    """One whole step of the engine, for one draw of z."""
    assert draws == 1
    torch.manual_seed(0)
    projection, head = make_encoder(shapes)
    images, labels = (torch.from_numpy(array) for array in records(shapes, batch))
    decoder, criterion = make_decoder(shapes), _ExampleLoss()
    decoder, optimizer = _private(engine, decoder, batch)
    if engine == "opacus-ghost":
        criterion = DPLossFastGradientClipping(decoder, optimizer, criterion)

    def run() -> None:
        targets = images.flatten(1).float() / 255
        label = functional.one_hot(labels.long(), CLASSES).float()
        with torch.no_grad():
            mean, log_variance = head(torch.cat([projection(targets), label], 1)).chunk(2, 1)
            latent = mean + torch.exp(0.5 * log_variance.clamp(-12, 12)) * torch.randn_like(mean)
        optimizer.zero_grad()
        loss = criterion(decoder(torch.cat([latent, label], 1)), targets)
        loss.backward()
        optimizer.step()
        loss.item()

    return run


def _private(engine: str, decoder: nn.Module, batch: int):
    adam = torch.optim.Adam(decoder.parameters(), 1e-3)
    if engine == "torch-non-private":
        return decoder, adam
    noise = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": batch}
    if engine == "opacus-ghost":
        wrapped = GradSampleModuleFastGradientClipping(decoder, max_grad_norm=1.0, use_ghost_clipping=True)
        return wrapped, DPOptimizerFastGradientClipping(adam, **noise)
    wrapped = GradSampleModule(decoder, force_functorch=engine == "opacus-functorch")
    return wrapped, DPOptimizer(adam, **noise)

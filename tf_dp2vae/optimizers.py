"""tensorflow-privacy's DP optimizer over Keras 3's Adam and SGD.

The base classes come from tensorflow-privacy's own factory. Left as they are, they would add `tf.random` noise that a
user's seed reproduces, divide by the batch that was drawn, let `apply()` take raw gradients, and lose clip norm and noise
on saving. So this module overrides, and only overrides, what those four need:

  `_compute_gradients`  takes its noised sum from the one door (`mechanisms`) and divides by the *expected* batch;
  `apply`               accepts nothing but what `_compute_gradients` returned last;
  `get_config`          keeps C, σ and the expected batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_dp2vae._tfp import make_vectorized_keras_optimizer_class
from tf_dp2vae.validation import check

NoisedSum = Callable[[Sequence[keras.Variable], float, float], list[tf.Tensor]]
"""(variables, l2_norm_clip, noise_multiplier) → Σ clipped gradients + noise, one tensor a variable."""


class DPOptimizerMixin:
    """The overrides; see the module's docstring."""

    def __init__(
        self,
        learning_rate: Any = None,
        *,
        l2_norm_clip: float | None = None,
        noise_multiplier: float | None = None,
        expected_batch_size: float | None = None,
        **kwargs: Any,
    ):
        """Creates the optimizer. `DP2VAE.fit` sets the three privacy arguments from the plan it calibrated.

        Args:
          learning_rate: a number or a schedule; None is the Keras optimizer's own default.
          l2_norm_clip: C, bound on one record's gradient. `Privacy.l2_norm_clip` decides; another C here is refused.
          noise_multiplier: σ, noise deviation divided by C. None: not calibrated yet, refuses to step.
          expected_batch_size: q·N.
          **kwargs: those of the Keras optimizer (`use_ema`, …).
        """
        check(
            not any(kwargs.get(name) for name in ("clipnorm", "clipvalue", "global_clipnorm")),
            "clipnorm, clipvalue and global_clipnorm act after the noise: leave them out; Privacy(l2_norm_clip=…) is the "
            "clip for each example.",
        )
        check(
            kwargs.get("loss_scale_factor") is None,
            "loss_scale_factor would divide every update, for no loss is scaled here: leave it out.",
        )
        clip = 1.0 if l2_norm_clip is None else l2_norm_clip
        rate = {} if learning_rate is None else {"learning_rate": learning_rate}
        super().__init__(l2_norm_clip=clip, noise_multiplier=noise_multiplier or 0.0, **rate, **kwargs)
        self._issued: list[Any] = []
        self._asked_clip = l2_norm_clip
        self.configure(clip, noise_multiplier, expected_batch_size)

    @property
    def _name(self) -> str:
        return self.name  # type: ignore[attr-defined]  # tensorflow-privacy reads the Keras 2 attribute

    def check_clip(self, l2_norm_clip: float) -> None:
        """Refuses a C of its own that is not the guarantee's."""
        check(
            self._asked_clip in (None, l2_norm_clip),
            f"the optimizer was made, or saved, with l2_norm_clip={self._asked_clip}, the model with Privacy(l2_norm_clip="
            f"{l2_norm_clip:g}), which decides: compile with an optimizer that leaves it out.",
        )

    def check_variables(self, variables: Sequence[keras.Variable]) -> None:
        """Refuses an optimizer whose moments and averages are of other variables than are to be trained."""
        own = self._trainable_variables if self.built else variables  # type: ignore[attr-defined]
        check(
            [id(variable) for variable in own] == [id(variable) for variable in variables],
            f"the optimizer was built for {len(own)} variables, which are not the {len(variables)} that are to be trained: "
            "for another model, or before layers were frozen or thawed. Compile with a new optimizer.",
        )

    def configure(self, l2_norm_clip: float, noise_multiplier: float | None, expected_batch_size: float | None) -> None:
        """Sets C, σ and q·N."""
        self._l2_norm_clip = l2_norm_clip
        self._noise_multiplier = noise_multiplier
        self.expected_batch_size = expected_batch_size

    @property
    def l2_norm_clip(self) -> float:
        """C."""
        return self._l2_norm_clip

    @property
    def noise_multiplier(self) -> float | None:
        """σ, or None before calibration."""
        return self._noise_multiplier

    def private_gradients(self, noised_sum: NoisedSum, variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
        """The noised mean gradient, to be handed to `apply`."""
        pairs: list[Any] = self._compute_gradients(noised_sum, variables)
        return [gradient for gradient, _ in pairs]

    def _compute_gradients(self, loss, var_list, grad_loss=None, tape=None) -> Any:
        if not callable(loss) or tape is not None or grad_loss is not None:
            raise TypeError("A DP optimizer takes the noised sum of a mechanism, not a loss tensor and its tape.")
        if self._noise_multiplier is None or not self.expected_batch_size:
            raise ValueError(
                "The DP optimizer has no noise multiplier yet: train through DP2VAE.fit, which calibrates it."
            )
        self._was_dp_gradients_called = True
        sums: Any = loss(var_list, self._l2_norm_clip, self._noise_multiplier)
        self._issued = [noised * (1 / self.expected_batch_size) for noised in sums]
        return list(zip(self._issued, var_list))

    def apply(self, grads, trainable_variables=None):
        """Updates the variables with gradients from `private_gradients`; refuses any others.

        Raises:
          ValueError: a gradient did not come from the last call of `private_gradients`.
        """
        grads = list(grads)
        if len(grads) != len(self._issued) or any(a is not b for a, b in zip(grads, self._issued)):
            raise ValueError(
                "Refused: these gradients did not come from private_gradients, so nothing bounds or noises them. Train "
                "through DP2VAE.fit."
            )
        self._issued = []
        return super().apply(grads, trainable_variables)  # type: ignore[misc]

    def get_config(self) -> dict[str, Any]:
        """Keras's, with clip norm, noise multiplier and expected batch."""
        config = super().get_config()  # type: ignore[misc]
        return {
            **config,
            "l2_norm_clip": self._l2_norm_clip,
            "noise_multiplier": self._noise_multiplier,
            "expected_batch_size": self.expected_batch_size,
        }


@keras.saving.register_keras_serializable("tf_dp2vae")
class DPAdam(DPOptimizerMixin, make_vectorized_keras_optimizer_class(keras.optimizers.Adam)):
    """Adam (Kingma and Ba 2015) on DP-SGD's gradients (Abadi et al. 2016).

    Args: those of `keras.optimizers.Adam`, but for `clipnorm`, `clipvalue` and `global_clipnorm`, which are refused because
    they would act after the noise. `DP2VAE.fit` sets clip norm, noise multiplier and expected batch.
    """


@keras.saving.register_keras_serializable("tf_dp2vae")
class DPSGD(DPOptimizerMixin, make_vectorized_keras_optimizer_class(keras.optimizers.SGD)):
    """SGD, with momentum where asked, on DP-SGD's gradients (Abadi et al. 2016).

    Args: those of `keras.optimizers.SGD`, with the exceptions of `DPAdam`.
    """


DP_OPTIMIZERS = {"dp-adam": DPAdam, "dp-sgd": DPSGD}


def get_dp_optimizer(optimizer: str | DPOptimizerMixin) -> Any:
    """The optimizer itself, or a new one for `"dp-adam"` or `"dp-sgd"`.

    Raises:
      InvalidInputError: for anything that would train without noise.
    """
    if isinstance(optimizer, str):
        check(
            optimizer in DP_OPTIMIZERS,
            f"optimizer={optimizer!r} is not private: choose one of {', '.join(DP_OPTIMIZERS)}.",
        )
        return DP_OPTIMIZERS[optimizer](learning_rate=1e-3)
    check(
        isinstance(optimizer, DPOptimizerMixin),
        f"optimizer={type(optimizer).__name__} is not private: use DPAdam, DPSGD, 'dp-adam' or 'dp-sgd'.",
    )
    return optimizer

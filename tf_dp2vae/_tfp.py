"""The one place that imports tensorflow-privacy.

Its package imports estimators, which TensorFlow dropped in 2.16. The switch below is its own: with it the package's
modules can be imported one at a time. It must be set before the first of them is.
"""

import sys

sys.skip_tf_privacy_import = True  # type: ignore[attr-defined]

from tensorflow_privacy.privacy.dp_query.gaussian_query import GaussianSumQuery  # noqa: E402
from tensorflow_privacy.privacy.optimizers.dp_optimizer_keras_vectorized import (  # noqa: E402
    make_vectorized_keras_optimizer_class,
)

__all__ = ["GaussianSumQuery", "make_vectorized_keras_optimizer_class"]

"""The levers: one change of a recipe each, with what was expected of it before it was run."""

from __future__ import annotations

from dataclasses import dataclass

from tf_dp2vae.recipes import FamilyName


@dataclass(frozen=True)
class Lever:
    """One change of a recipe.

    Attributes:
      name: for the table.
      flags: of train.py.
      expected: what was expected of it, before it was run.
      change: of `changed_train.py`, where no flag makes it; several are joined by +.
    """

    name: str
    flags: str
    expected: str
    change: str = ""

    def command(self, family: FamilyName) -> str:
        """What python runs; the family sets what the lever leaves open."""
        program = f"benchmarks/changed_train.py {self.change}" if self.change else "train.py"
        return " ".join(filter(None, [program, f"--family {family}", _COMMON, self.flags]))


REFERENCE = "as it is"
_COMMON = "--batch-size 1024 --steps 150"
"""Before a lever's own flags, which win."""
_OF_BOTH = (
    Lever(
        "no refinement", "--refine-share 0 --moments-share 0.5", "worse: marks of noise, and samples of other classes"
    ),
    Lever("a judge, no matching", "--refine-steps 0", "worse for clothes, which are too smooth to be judged"),
    Lever("matching, no judge", "--candidates 1", "worse: samples of other classes stay"),
    Lever("twice the candidates", "--candidates 8", "a little better: a stricter choice, for free"),
    Lever("twice the matching", "--refine-steps 600", "even: matched by then"),
    Lever("one more convolution", "", "even", "deeper"),
    Lever(
        "Gaussian likelihood", "", "worse: gradients of a few images rule, and the dark ones hardly learn", "gaussian"
    ),
    Lever("a quarter of the KL", "", "better for clothes: sharper pictures", "quarter-kl"),
    Lever("DP-AdamBC", "", "even: weight averages hide what Adam's bias costs", "adam-bc"),
    Lever(
        "no training of the first layer",
        "",
        "even: two thirds less noise, but classes' shapes are made there",
        "frozen-first-layer",
    ),
    Lever("a low-rank update of the first layer", "", "better than none: a tenth of the weights' noise", "low-rank"),
    Lever("weight standardisation", "", "a little better: gradients of one size", "weight-standardised"),
    Lever("PLD accountant", "--accountant pld", "a little better: less noise for the same ε"),
    Lever("no sleep", "--sleep-steps 0", "worse: the encoder knows dreams only"),
    Lever("five rounds", "--rounds 5", "better: an encoder that follows the decoder more closely"),
    Lever("latent prior N(0, I)", "--prior normal", "much worse: the posterior's classes are no standard normals"),
    Lever("latent clip 2 instead of 1.4", "--prior-clip 2", "worse: twice the noise on the prior's covariances"),
    Lever("twice the budget for the prior", "--prior-share 0.1", "a little better there, a little worse elsewhere"),
    Lever("twice the budget for refinement", "--refine-share 0.2 --moments-share 0.35", "even"),
    Lever("more for the dreams", "--moments-share 0.6", "even: better dreams, noisier decoder"),
    Lever("less for the dreams", "--moments-share 0.3", "worse"),
    Lever("longer pre-training", "--pretrain-steps 4000", "even: dreams are learned by then"),
    Lever("half the pre-training", "--pretrain-steps 1000", "even, and a fifth of the time less"),
    Lever("no weight average", "--ema 0", "worse: the last step's noise stays in the weights"),
    Lever("half the steps", "--steps 75", "even"),
    Lever("half the width", "--width 16", "even: fewer weights, less noise, less detail"),
    Lever("half the latent dimensions", "--latent-dim 12", "worse detail, better prior"),
    Lever("twice the latent dimensions", "--latent-dim 48", "worse: a prior of four times as many entries"),
    Lever("twice the steps", "--steps 300", "even: more progress, more noise in each step"),
    Lever("batch 2,048", "--batch-size 2048", "even or a little better, at twice the time"),
    Lever("batch 4,096", "--batch-size 4096", "better: less noise for the same ε"),
    Lever("batch 4,096, twice the steps", "--batch-size 4096 --steps 300", "better still at ε = 10, even at 1"),
    Lever("batch 4,096, four times the steps", "--batch-size 4096 --steps 600", "better still at ε = 10, worse at 1"),
    Lever("4 latent draws", "--draws 4", "better: less variance in each gradient, for time only"),
    Lever("8 copies, shifted by up to 2 pixels", "--draws 8 --shifts 2", "better for digits: more varied gradients"),
)
_HASTE = "worse: noise moves the weights faster than data do"
LEVERS: dict[FamilyName, tuple[Lever, ...]] = {
    "strokes": (
        Lever(REFERENCE, "", "the reference"),
        Lever("no residual block", "--blocks 0", "worse for digits, even for clothes"),
        Lever("two residual blocks", "--blocks 2", "even: depth against noise on its weights"),
        Lever("a constant learning rate", "--schedule constant --learning-rate 1e-3", "a little worse"),
        Lever("twice the learning rate", "--learning-rate 4e-3", _HASTE),
        Lever("latents at a temperature of 1.5", "--temperature 1.5", "better: samples vary less than records do"),
        *_OF_BOTH,
    ),
    "surfaces": (
        Lever(REFERENCE, "", "the reference"),
        Lever("latents at a temperature of 1", "--temperature 1", "worse: samples vary less than records do"),
        Lever("a residual block", "", "even: what it adds is lost to noise on its weights", "residual"),
        Lever(
            "a residual block with group normalisation",
            "--blocks 1",
            "a little better: gradients of one size",
        ),
        Lever(
            "a cosine learning rate",
            "--schedule cosine --learning-rate 2e-3",
            "even: the weight average does its work already",
        ),
        Lever(
            "a residual block with group normalisation, and a cosine learning rate",
            "--blocks 1 --schedule cosine --learning-rate 2e-3",
            "better than each alone",
        ),
        Lever("twice the learning rate", "--learning-rate 2e-3", _HASTE),
        Lever("four times the learning rate", "--learning-rate 4e-3", "better where noise is large, as in nats"),
        Lever("half the learning rate", "--learning-rate 5e-4", "better for clothes, whose dreams are good already"),
        Lever("a cosine learning rate, half as high on average", "--schedule cosine", "the same"),
        *_OF_BOTH,
    ),
}

"""What a release really tells: lower bounds on ε measured by attack, and tests of the mechanisms' implementation.

| module             | the attacker sees                                | and answers                                     |
|--------------------|--------------------------------------------------|-------------------------------------------------|
| `encoder_matching` | released decoders of `unprotected`, many runs    | which encoder, hence which data set?            |
| `transcript`       | every noised answer of a run, many runs          | was the worst-case record there?                |
| `gradient_canaries`| every noised gradient sum of one run             | which of many canaries were there?              |
| `image_canaries`   | the release of one run                           | which of many canary images were there?         |
| `implementation`   | a mechanism with its randomness laid open        | does it clip, noise, sample and divide as said? |
| `finished`         | a run's folder                                   | do its numbers agree, and what does it leak?    |

`bounds` and `one_run` turn guesses into lower bounds on ε, with confidence. `python -m tf_dp2vae.audit runs/<name>` audits a
finished run.
"""
